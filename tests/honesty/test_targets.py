"""What each method teaches, for questions of every degree of knowledge."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ethalign.honesty import IDK, METHODS, is_idk, training_target
from ethalign.honesty.scores import stated_confidence
from ethalign.honesty.targets import Method, gold


def record(correct: int, greedy: bool = False, m: int = 10) -> dict[str, Any]:
    """The first ``correct`` samples are right; the greedy answer if asked for."""
    return {
        "question": "Who?",
        "answers": ["gold one", "other"],
        "greedy_pred_text": "Greedy.",
        "greedy_label": "correct" if greedy else "wrong",
        "sampling_pred_text": [f"Sample {i}." for i in range(m)],
        "sampling_labels": ["correct"] * correct + ["wrong"] * (m - correct),
    }


def taught(method: Method, row: dict[str, Any]) -> str:
    """The one text that a method teaches."""
    target = training_target(method, row)
    assert isinstance(target, str)
    return target


@pytest.mark.parametrize(
    ("method", "correct", "greedy", "target"),
    [
        ("fine-tuned", 3, True, "Greedy."),
        ("fine-tuned", 3, False, "Sample 0."),
        ("fine-tuned", 0, False, "Gold one."),
        ("absolute", 3, True, "Greedy."),
        ("absolute", 1, False, "Sample 0."),
        ("absolute", 0, False, IDK["code"]),
        ("absolute", 0, True, "Greedy."),
        ("confidence-num", 0, True, IDK["code"]),
        ("confidence-verb", 0, True, IDK["code"]),
        ("confidence-verb", 1, False, "I'm really not sure about this, but sample 0."),
        ("confidence-verb", 4, True, "I'm not completely sure about this, but greedy."),
        ("confidence-verb", 6, True, "I don't have strong feelings either way, but greedy."),
        ("confidence-verb", 7, True, "I'm fairly confident that greedy."),
        ("confidence-verb", 10, True, "I'm absolutely certain that greedy."),
    ],
)
def test_targets_as_in_the_code(method: Method, correct: int, greedy: bool, target: str) -> None:
    assert training_target(method, record(correct, greedy)) == target


@pytest.mark.parametrize(("k", "start"), [(1, "I'm only about 10% "), (5, "I'm only about 50% ")])
def test_low_confidence_is_named_as_such(k: int, start: str) -> None:
    text = taught("confidence-num", record(k))
    assert text.startswith(start)
    assert "correctly, but based on my understanding" in text
    assert text.endswith("what I think is correct. Sample 0.")


def test_high_confidence_has_a_template_of_its_own() -> None:
    text = taught("confidence-num", record(6))
    assert text.startswith("I'm about 60% confident to answer the question correctly, and based")


def test_multisample_keeps_what_is_right_and_declines_the_rest() -> None:
    rows = training_target("multisample", record(2, m=4))
    assert rows == ["Sample 0.", "Sample 1.", IDK["code"], IDK["code"]]


def test_the_threshold_may_be_any() -> None:
    half = record(5)
    assert training_target("absolute", half, tau=0.5) == "Sample 0."
    assert training_target("absolute", half, tau=0.6) == IDK["code"]


def test_paper_and_code_differ_where_only_the_greedy_answer_is_right() -> None:
    odd = record(0, greedy=True)
    assert training_target("absolute", odd, behaviour="code") == "Greedy."
    assert training_target("absolute", odd, behaviour="paper") == IDK["code"]
    drawn = {training_target("absolute", record(9), behaviour="paper", seed=s) for s in range(30)}
    assert len(drawn) > 3, "a correct sample at random"
    assert training_target("absolute", odd, behaviour="paper", sentence="paper") == (IDK["paper"])


def test_every_method_has_a_target_for_every_record() -> None:
    for method, k, greedy in itertools.product(METHODS, range(11), (True, False)):
        target = training_target(method, record(k, greedy))
        assert target
        assert all(
            isinstance(t, str) and t for t in ([target] if isinstance(target, str) else target)
        )
    with pytest.raises(ValueError, match="method"):
        training_target("absolut", record(1))  # type: ignore[arg-type]


@given(
    st.integers(1, 10), st.booleans(), st.sampled_from([str, lambda s: s.replace("'", "\u2019")])
)
def test_the_confidence_that_is_taught_is_read_back(
    k: int, greedy: bool, change: Callable[[str], str]
) -> None:
    row = record(k, greedy)
    number = change(taught("confidence-num", row))
    phrase = change(taught("confidence-verb", row))
    assert stated_confidence(number) == k / 10
    middle = (2 * ((k + 1) // 2) - 0.5) / 10
    assert stated_confidence(phrase) == pytest.approx(middle)
    assert stated_confidence(phrase.upper()) == pytest.approx(middle)


@given(st.sampled_from(METHODS), st.integers(0, 10), st.booleans())
def test_only_idk_is_taken_for_declining_of_all_that_is_taught(
    method: Method, k: int, greedy: bool
) -> None:
    target = training_target(method, record(k, greedy))
    for text in [target] if isinstance(target, str) else target:
        assert is_idk(text, "Who?") == (text == IDK["code"])


@pytest.mark.parametrize("method", METHODS)
def test_what_nobody_can_know_is_declined_by_every_method(method: Method) -> None:
    nobody = {**record(0), "answers": []}
    assert gold(nobody) == ""
    target = training_target(method, nobody)
    assert {*([target] if isinstance(target, str) else target)} == {IDK["code"]}
    assert training_target("fine-tuned", nobody, sentence="paper") == IDK["paper"]
    assert gold({"answer": "rome."}) == "Rome."


def test_an_option_is_taught_with_its_letter() -> None:
    row = {**record(10), "letter": "B", "answers": ["Lima"]}
    assert gold(row) == "B) Lima"
    said = {**row, "greedy_pred_text": "B) Lima", "greedy_label": 1}
    assert training_target("confidence-verb", said).endswith(" B) Lima")  # type: ignore[union-attr]
    plain = {**said, "greedy_pred_text": "Lima"}
    assert training_target("confidence-verb", plain).endswith(" lima")  # type: ignore[union-attr]


def test_gold_answers_are_capitalised_as_the_authors_do() -> None:
    assert gold({"answers": ["ann Bee", "x"]}) == "Ann bee."
