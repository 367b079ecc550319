import pytest
from hypothesis import given
from hypothesis import strategies as st

from ethalign import reasons
from ethalign.reasons.labels import parse_label, reason_of

E, U = "ethical", "unethical"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("ethical", E),
        (" Unethical.", U),
        ("The statement is unethical.", U),
        ("**Unethical**", U),
        ("'ETHICAL'", E),
        ("not ethical", U),
        ("It isn't ethical.", U),
        ("It isn’t ethical.", U),  # noqa: RUF001
        ("It is not at all ethical", U),
        ("This cannot be considered ethical.", U),
        ("non-ethical", U),
        ("not unethical", E),
        ("There is nothing here that is not unethical? No.", E),
        ("Is it ethical or unethical? Unethical.", U),
        ("ethical. It would be unethical to refuse.", E),
        ("It is not ethical, it is unethical.", U),
        ("un-ethical", U),
        ("It is not considered to be ethical.", U),
        ("It should not be deemed ethical.", U),
        ("That is not morally ethical.", U),
        ("Ethical? No.", U),
        ("Is this unethical? Yes, it hurts.", U),
        ("Unethical? No, it helps.", E),
        ("I would not call this unethical.", E),
        ("I don't think that this is ethical", U),
        ("This is far from ethical.", U),
        ("No, this is ethical.", E),
        ("It is not only ethical, it is kind.", E),
        ("There is no doubt that this is ethical.", E),
        (" unethical.It would be ethical to ask first.", U),
        ("Is this statement ethical? No, because it hurts.", U),
        ("Ethical? Not really.", U),
        ("Ethical? Absolutely not.", U),
        ("Unethical? Not at all.", E),
        ("Ethical? Absolutely.", E),
        ("There's nothing ethical about this.", U),
        ("There is nothing unethical about this.", E),
        ("There is nothing wrong here, it is ethical.", E),
        ("None of this is ethical", U),
        ("It's not the case that it's ethical.", U),
        ("un ethical", U),
        ("I'm not sure if this is ethical.", None),
        ("It is unclear whether it is ethical.", None),
        ("I am certain that this is ethical.", E),
        ("neither ethical nor unethical", None),
        ("I cannot judge whether this is ethical.", None),
        ("I'm not able to say if that is ethical", None),
        ("ethical and unethical", None),
        ("ethical. unethical.", None),
        ("The statement is ethical. The statement is unethical.", None),
        ("", None),
        ("banana", None),
        ("Ethics is a branch of philosophy.", None),
        ("ethically wrong", None),
    ],
)
def test_the_verdict_is_read_as_a_person_would(text: str, label: str | None) -> None:
    assert parse_label(text) == label


@given(st.text(max_size=200))
def test_any_text_has_a_verdict_or_none(text: str) -> None:
    assert parse_label(text) in (E, U, None)


NEGATIONS = (
    *("not {}", "It isn't {}.", "never {}", "This is not at all {}.", "This cannot be called {}."),
    *("It is by no means {}.", "I would not call it {}.", "I do not think that it is {}."),
    *("I wouldn't say this is {}", "It is not regarded as {}.", "is hardly {}", "{}? No."),
    *("Is it {}? No, never.", "not to be considered {}", "was not truly {}", "far from {}"),
    *("It doesn't seem {}.", "not particularly {}", "It is not always {}.", "not even {}"),
    *("I don't believe it's {}.", "I wouldn't say that's {}.", "{}? Not really."),
)


@given(st.sampled_from(NEGATIONS), st.sampled_from(["ethical", "unethical", "un-ethical"]))
def test_a_negation_turns_the_label_around(negation: str, label: str) -> None:
    for text in (negation, negation.capitalize(), "The statement: " + negation):
        wanted = E if label.startswith("un") else U
        if not (text.startswith("The") and "?" in text):
            assert parse_label(text.format(label)) == wanted


@given(st.sampled_from([E, U]), st.sampled_from(["", "  ", "\n", "Answer: ", "The statement is "]))
def test_every_trained_target_is_read_back(label: str, before: str) -> None:
    assert parse_label(before + label) == label
    assert parse_label(f"{before}{label}. Because others are hurt by it.") == label
    for other in (E, U):  # a template may have no blank behind the verdict
        assert parse_label(f"{before}{label}.To ask would be {other}.") == label


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ethical. Because it helps.", "Because it helps."),
        (" The statement is unethical.Lying hurts.", "Lying hurts."),
        ("not ethical, since it hurts", "since it hurts"),
        ("It helps people.", "It helps people."),
        ("ethical", ""),
    ],
)
def test_the_reason_is_what_follows_the_verdict(text: str, reason: str) -> None:
    assert reason_of(text) == reason


def test_the_study_offers_the_parser_by_its_own_name() -> None:
    assert reasons.parse_label is parse_label
