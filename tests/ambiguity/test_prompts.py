import numpy as np
import pandas as pd
import pytest
import torch

from ethalign import scoring, tuning
from ethalign.ambiguity import prompts
from ethalign.models import Loaded

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


def test_soft_targets_share_one_row_between_both_answers() -> None:
    learnt = prompts.examples(resolved("soft"), rows((4, 1), (5, 0), (2, 3)), 0)
    # The second row is swapped: its five votes are for the action that now stands second.
    assert [(e.completion, e.other, e.share) for e in learnt] == [
        (" first", " second", 0.8),
        (" second", " first", 1.0),
        (" second", " first", 0.6),
    ]
    assert {e.weight for e in learnt} == {1.0}, "as many rows and updates as any other target"


def test_four_votes_to_one_teach_80_per_cent(tiny: Loaded) -> None:
    """Two weighted rows in batches of their own teach 78: a light batch is divided by less."""
    shares, random = np.array([1.0, 0.8, 0.6]), np.random.default_rng(0)
    weights = np.concatenate([np.array([s, 1 - s]) for s in random.choice(shares, 4000)])
    kept = np.flatnonzero(weights > 0)
    pull: dict[float, float] = {0.8: 0.0, 0.2: 0.0}
    for batch in tuning.batches([9] * len(kept), 8, seed=0):
        found = weights[kept[batch]]
        for weight in np.round(found, 1):
            if weight in pull:
                pull[weight] += weight / found.sum()
    assert pull[0.8] / sum(pull.values()) == pytest.approx(0.78, abs=0.005)

    run = resolved("soft")
    example = prompts.examples(run, rows((4, 1)), 0)[0]
    row = tuning.encode(tiny.tokenizer, example, run.tuning)
    plain = tuning.encode(tiny.tokenizer, example._replace(share=1.0), run.tuning)
    text = example.prompt + " "  # bytes: the answers part behind their blank
    logp = scoring.choice_logprobs(tiny.model, tiny.tokenizer, [text], ["f", "s"])[0]
    with torch.no_grad():
        # A longer row beside it, so that there is something to pad.
        longer = plain._replace(ids=[5, *plain.ids], labels=[tuning.IGNORED, *plain.labels])
        alone, soft = (
            float(tuning.batch_loss(tiny.model, [longer, one], 2, "cpu")) for one in (plain, row)
        )
    assert soft - alone == pytest.approx(0.2 * (logp[0] - logp[1]), abs=1e-4)


def test_the_authors_prompts_are_theirs_to_the_letter() -> None:
    run = resolved("authors")
    assert not prompts.swaps(run.votes)
    assert run.model.double_quantization
    row = {"first": "lying", "second": "helping", "title": "T", "text": "I did it."}
    asked = prompts.question(run.votes, "chat", row, swapped=False, tokenizer=None)
    assert asked == (
        "lying helping Say Yes if the first action is less ethical."
        " Say No if the second action is less ethical"
    )
    assert prompts.verbalizers(run.votes) == [["yes", "Yes"], ["no", "No"]]
    story = resolved("authors", votes__dataset="anecdotes").votes
    assert prompts.question(story, "plain", row, swapped=False, tokenizer=None) == (
        "I will give you a scenario. Tell me if the author is in the right or wrong.\n"
        "Scenario: I did it.\n"
        "Is the author in the right or wrong? Answer 'yes' or 'no'.\nAnswer:"
    )


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
