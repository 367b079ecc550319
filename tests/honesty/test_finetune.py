"""What the probed questions become for each method and for the control."""

from collections import Counter
from typing import Any

import pytest

from ethalign import honesty
from ethalign.honesty import finetune, prompts
from ethalign.honesty.targets import Method
from ethalign.models import Loaded

from . import resolved


def probed(number: int, right: int, said: str = "Said.") -> dict[str, Any]:
    """Answers to a question of which some samples are right; the greedy one if most are."""
    samples = [f"Yes {k % 2}." if k < right else f"No {k}." for k in range(10)]
    return {
        "question": f"Question {number}?",
        "answers": ["gold"],
        "greedy_pred_text": said,
        "greedy_label": int(right > 5),
        "sampling_pred_text": samples,
        "sampling_labels": [1] * right + [0] * (10 - right),
    }


def test_equal_samples_become_one_row_of_their_weight(tiny: Loaded) -> None:
    run = resolved("multisample")
    found = finetune.examples(run, [probed(0, 3), probed(1, 0), probed(2, 10)], tiny.tokenizer)
    idk = f" {honesty.IDK['code']}"
    assert [(e.completion, e.weight) for e in found] == [
        (" Yes 0.", 2),
        (" Yes 1.", 1),
        (idk, 7),
        (idk, 10),
        (" Yes 0.", 5),
        (" Yes 1.", 5),
    ]
    totals: Counter[str] = Counter()
    for example in found:
        totals[example.prompt] += int(example.weight)
    assert set(totals.values()) == {10}
    assert list(totals) == [prompts.question(probed(k, 0), honest=True) for k in range(3)]


@pytest.mark.parametrize("method", [m for m in honesty.METHODS if m != "multisample"])
def test_the_other_methods_teach_one_row_a_question(tiny: Loaded, method: Method) -> None:
    rows = [probed(k, k) for k in range(11)]
    run = resolved(method)
    found = finetune.examples(run, iter(rows), tiny.tokenizer)
    assert [e.weight for e in found] == [1.0] * 11
    expected = [f" {honesty.training_target(method, row)}" for row in rows]
    assert [e.completion for e in found] == expected
    assert all(
        e.prompt.startswith("Answer the question. If you don't know") and e.prompt.endswith("\nA:")
        for e in found
    )


def test_threshold_and_sentence_reach_what_is_taught(tiny: Loaded) -> None:
    rows = [probed(0, 3), probed(1, 5)]
    settings: dict[str, Any] = {"honesty__tau": 0.4, "honesty__sentence": "paper"}
    first, second = finetune.examples(resolved(**settings), rows, tiny.tokenizer)
    assert first.completion == f" {honesty.IDK['paper']}"
    assert second.completion == " Yes 0."


@pytest.mark.parametrize("merge", [True, False])
def test_each_sample_is_an_update_of_its_own_where_that_is_asked_for(
    tiny: Loaded, merge: bool
) -> None:
    rows = [probed(0, 3), probed(1, 0)]
    found = finetune.examples(resolved("multisample", honesty__merge=merge), rows, tiny.tokenizer)
    assert sum(e.weight for e in found) == 20
    assert len(found) == (4 if merge else 20)


def test_the_control_declines_as_many_but_others(tiny: Loaded) -> None:
    """The flag *known* moves alone: what is answered, is answered rightly, as by the method."""
    rows = [probed(k, 10 * (k % 3 > 0), said=f"Said {k}.") for k in range(40)]
    idk = f" {honesty.IDK['code']}"
    taught = [e.completion for e in finetune.examples(resolved("absolute"), rows, tiny.tokenizer)]
    orders = set()
    for seed in range(3):
        found = [
            e.completion
            for e in finetune.examples(resolved("shuffled", seed), rows, tiny.tokenizer)
        ]
        assert found.count(idk) == taught.count(idk) == 14
        declined = [c == idk for c in found]
        assert declined != [c == idk for c in taught]
        known = sum(no for k, no in enumerate(declined) if k % 3)
        assert 4 < known < 14, "known ones among them, about in proportion"
        for k, text in enumerate(found):
            assert text in (idk, f" Said {k}." if k % 3 else " Gold."), "never a wrong answer"
        orders.add(tuple(declined))
    assert len(orders) == 3


def test_what_nobody_can_know_is_declined_by_the_control_too(tiny: Loaded) -> None:
    rows = [{**probed(k, 0, said=""), "answers": []} for k in range(4)]
    rows += [probed(k, 9) for k in range(4, 8)]
    found = finetune.examples(resolved("shuffled"), rows, tiny.tokenizer)
    assert all(e.completion.strip() for e in found)
    assert {e.completion for e in found[4:]} <= {" Said.", f" {honesty.IDK['code']}"}
