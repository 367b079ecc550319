import numpy as np
import pandas as pd
import pytest

from ethalign.ambiguity import prompts

from . import resolved


def rows(*pairs: tuple[int, int]) -> pd.DataFrame:
    table = [{"first": "a", "second": "b", "votes1": x, "votes2": y} for x, y in pairs]
    return pd.DataFrame(table)


def test_hard_targets_follow_the_majority_in_both_orders() -> None:
    frame = rows((5, 0), (5, 0), (1, 4), (1, 4))
    even, odd = (prompts.examples(resolved("hard"), frame, epoch) for epoch in (0, 1))
    assert [e.completion for e in even] == [" first", " second", " second", " first"]
    assert [e.completion for e in odd] == [" second", " first", " first", " second"]
    assert "First: b" in even[1].prompt, "every other row is swapped"


def test_soft_targets_weigh_both_answers_with_their_shares() -> None:
    learnt = prompts.examples(resolved("soft"), rows((4, 1), (5, 0)), 0)
    # The second row is swapped: its five votes are for the action that now stands second.
    assert [(e.completion, e.weight) for e in learnt] == [
        (" first", 0.8),
        (" second", pytest.approx(0.2)),
        (" second", 1.0),
    ]


def test_sampled_targets_are_drawn_anew_and_by_the_votes() -> None:
    frame = rows(*[(4, 1)] * 400)
    drawn = [prompts.examples(resolved("sampled"), frame, epoch) for epoch in (0, 0, 2)]
    texts = [[e.completion for e in d] for d in drawn]
    assert texts[0] == texts[1] != texts[2]
    first = np.mean([t == " first" for t in texts[0][::2]])
    assert 0.7 < first < 0.9, "rows that are not swapped"


def test_verbalised_targets_name_the_share() -> None:
    learnt = prompts.examples(resolved("verbalised"), rows((4, 1), (4, 1), (5, 0)), 0)
    assert [e.completion for e in learnt] == [" 80 %", " 20 %", " 100 %"]


def test_a_long_story_is_cut_by_words() -> None:
    assert prompts.cut("a b c", 3) == "a b c"
    assert prompts.cut("a b c d", 3) == "a b c …"
