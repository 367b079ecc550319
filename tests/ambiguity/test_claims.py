import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ethalign import claims, records
from ethalign.ambiguity import claims as own


def rows(knows: float, items: int = 200, bias: float = 0.0) -> pd.DataFrame:
    """A model whose log-odds follow the votes as far as it knows them."""
    votes = [(i * 7) % 6 for i in range(items)]
    return pd.DataFrame(
        {"part": "test" if i % 2 else "held-out", "id": str(i), "dataset": "dilemmas"}
        | {
            "votes1": n,
            "votes2": 5 - n,
            "logp1": knows * (n - 2.5) / 2.5 - 2 + bias,
            "logp2": -2.0,
        }
        for i, n in enumerate(votes)
    )


def claim(**changes: str) -> claims.Claim:
    known = {c.id: c for c in claims.declared("ambiguity")}
    return known["tuning-improves-cross-entropy"].model_copy(update=changes)


def value(told: claims.Claim, parts: dict[str, pd.DataFrame]) -> float:
    found = own.contrast(told, parts)
    return math.nan if found is None else float(found.statistic(*found.arrays))


def test_claims_are_judged_from_predictions(tmp_path: Path) -> None:
    """A tuned model that knows the votes beats one that knows nothing, and a coin."""
    for variant, knows in (("zero-shot", 0.0), ("soft", 2.0), ("hard", 0.0)):
        path = tmp_path / "small" / variant / "0" / "predictions.jsonl"
        lines = rows(knows).to_dict("records")
        records.write(path, "".join(json.dumps(line) + "\n" for line in lines))
    found = claims.assess("ambiguity", {"here": tmp_path}).set_index("id")["verdict"]
    assert found["tuning-improves-cross-entropy"] == "supported", "the better one is chosen"
    assert found["soft-beats-uniform"] == found["soft-beats-scaled"] == "supported"
    assert found["hard-improves"] != "supported"
    assert found["tuned-on-par-with-gpt-4o"] == found["sampled-improves"] == "not run"
    assert found["tuning-improves-cross-entropy-stories"] == "not run"


def test_better_than_a_bad_model_is_not_better_than_a_coin() -> None:
    parts = {"zero-shot": rows(0.0, bias=3), "soft": rows(0.0, bias=1.5)}
    assert value(claim(), parts) < 0
    assert value(claim(second="uniform"), parts) > 0
    assert value(claim(second="zero-shot-scaled"), parts) > 0
    assert value(claim(first="soft", second="mean-votes"), parts) > 0


def test_what_reads_nothing_is_never_better_than_the_mean_votes() -> None:
    """Even one that was chosen on the test votes; here they differ from the held-out ones."""
    table = rows(0.0)
    table.loc[table["part"] == "test", ["votes1", "votes2"]] = [[4, 1], [5, 0]] * 50
    told = claim(first="soft", second="mean-votes")
    for odds in np.linspace(-4, 4, 81):
        assert value(told, {"soft": table.assign(logp1=odds)}) >= -1e-12
    assert value(told, {"soft": table.assign(logp1=math.log(9) - 2)}) == pytest.approx(0)


def test_the_best_is_chosen_on_held_out_rows() -> None:
    """A model that is right on test rows alone must not be preferred for that."""
    lucky = rows(2.0)
    lucky.loc[lucky["part"] == "held-out", "logp1"] -= 9
    parts = {"zero-shot": rows(0.0), "hard": lucky, "soft": rows(0.5)}
    chosen = value(claim(), parts)
    assert chosen == pytest.approx(value(claim(first="soft"), parts))
    assert chosen != pytest.approx(value(claim(first="hard"), parts))


def test_only_the_same_items_are_compared() -> None:
    assert own.contrast(claim(), {"zero-shot": rows(0), "soft": rows(2, items=50)}) is None


def test_an_encoder_is_compared_on_the_items_that_the_language_model_was_asked() -> None:
    """It answers all, once for every model; what it did not answer cannot be compared."""
    table = rows(2.0).rename(columns={"logp1": "z1", "logp2": "z2"})
    beside = table.assign(variant="encoder-soft")
    told = claim(first="encoder-soft")
    few = rows(0.0)[:60]
    found = own.contrast(told, {"ceiling": beside, "zero-shot": few})
    assert found is not None
    assert {*found.items} == {*few.loc[few["part"] == "test", "id"]}
    assert own.contrast(told, {"ceiling": beside[:60], "zero-shot": rows(0.0)}) is None
    half = claim(first="encoder-soft", second="encoder-hard")
    both = pd.concat([beside, beside[:60].assign(variant="encoder-hard")])
    assert own.contrast(half, {"ceiling": both, "zero-shot": few}) is None


def test_encoders_stand_beside_and_the_control_is_never_the_best_one() -> None:
    table = rows(2.0).rename(columns={"logp1": "z1", "logp2": "z2"})
    beside = pd.concat(
        [
            table.assign(variant="encoder-shuffled"),
            table.assign(variant="encoder-soft", z1=0.5 * table["z1"], z2=0.5 * table["z2"]),
        ]
    )
    parts = {"ceiling": beside, "zero-shot": rows(0.0)}
    told = claim(first="best-encoder", second="best-language-model")
    assert value(told, parts) == pytest.approx(value(claim(first="encoder-soft"), parts))


def test_who_knows_what_divides_people_is_less_sure_there() -> None:
    told = claim(estimand="entropy_correlation", second="uniform")
    knows = rows(3.0)
    turned = knows.assign(logp1=-2 + 3 / (1 + abs(knows["votes1"] - 2.5)))
    same = rows(0.0, bias=1.0)
    for table, low, high in ((knows, 0.9, 1), (turned, -1, -0.8), (same, -1e-9, 1e-9)):
        assert low <= value(told, {"zero-shot": knows, "soft": table}) <= high


def test_pairs_that_share_an_action_are_resampled_together() -> None:
    """Whichever of the two predictors has told the actions; with neither they stand alone."""
    n = 200
    told = rows(2.0).assign(action1=np.arange(n) // 2, action2=(np.arange(n) // 2 + 1) % 100)
    for parts, grouped in (
        ({"soft": told, "zero-shot": rows(0.0)}, True),
        ({"soft": told, "zero-shot": told}, True),
        ({"soft": rows(2.0), "zero-shot": rows(0.0)}, False),
    ):
        found = own.contrast(claim(first="soft"), parts)
        assert found is not None
        assert (found.groups is not None) == grouped
        if found.groups is not None:
            assert len(found.groups) == len(found.arrays[0]) == 100
            assert np.bincount(found.groups).tolist() == [5] * 20


def test_more_is_measured_in_nats_and_in_shares() -> None:
    parts = {"zero-shot": rows(0.0, bias=3), "hard": rows(0.5)}
    losses = {k: own._losses(t) for k, t in parts.items()}
    new, old = losses["hard"].mean(), losses["zero-shot"].mean()
    nats = (new["dm"] - old["dm"]) - (new["ce"] - old["ce"])
    share = new["raw"] / old["raw"] - new["ce"] / old["ce"]
    told = claim(estimand="more_raw", first="hard")
    assert value(claim(estimand="more_nats"), parts) == pytest.approx(nats)
    assert value(told, parts) == pytest.approx(share)
    # The raw mass is that of one order, and so must be what it is compared with.
    both = {k: t.assign(swapped1=-1.0, swapped2=-3.0) for k, t in parts.items()}
    assert value(claim(estimand="more_nats"), both) != pytest.approx(nats)
    assert value(told, both) == pytest.approx(share)
    assert np.sign(nats) != 0
