from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ethalign import claims as shared
from ethalign import records, results
from ethalign.reasons import claims


def items(right: int) -> pd.DataFrame:
    rows = [
        {
            "id": f"i{k}",
            "dataset": "dfar",
            "stratum": "clean" if k < 50 else "contaminated",
            "gold": "ethical" if k % 3 else "unethical",
            "verdict": ("ethical" if k % 3 else "unethical") if k < right else "neither",
        }
        for k in range(100)
    ]
    return pd.DataFrame(rows)


def claim(**changes: Any) -> shared.Claim:
    told = {"id": "x", "claim": "X.", "source": "companion", "dataset": "dfar"}
    told |= {"estimand": "accuracy", "first": "LR", "second": "L", "direction": "greater"}
    return shared.Claim.model_validate({**told, **changes})


def parts(right: dict[str, int], **columns: list[Any]) -> dict[str, pd.DataFrame]:
    return {name: items(count).assign(**columns) for name, count in right.items()}


def difference(told: shared.Claim, given: dict[str, pd.DataFrame]) -> Any:
    found = claims.contrast(told, given)
    return found and (float(found.statistic(*found.arrays)), len(found.arrays[0]))


def test_every_claim_of_the_file_is_understood() -> None:
    told = shared.declared("reasons")
    assert {c.dataset for c in told} <= {*claims.SAME}
    estimands = {c.estimand for c in told}
    assert estimands <= {"auc", *claims.RIGHT, *claims.MISALIGNED}
    primary = [c for c in told if c.family == "primary"]
    assert {c.source for c in primary} == {"abstract"}
    assert any(c.estimand.startswith("misalignment") and c.second == "L" for c in primary)


def test_variants_are_compared_on_the_items_that_both_answered() -> None:
    given = parts({"LR": 90, "L": 50})
    assert difference(claim(), given) == (pytest.approx(0.4), 100)
    assert difference(claim(stratum="clean"), given) == (0, 50)
    assert difference(claim(stratum="seen"), given) is None
    assert difference(claim(second="pretrained"), given) is None
    assert difference(claim(estimand="accuracy_prior"), given) is None
    given["L"] = given["L"][20:]
    assert difference(claim(), given) == (pytest.approx(0.5), 80)
    sample = {name: t.assign(dataset="statements") for name, t in given.items()}
    assert difference(claim(), sample) == (pytest.approx(0.5), 80)
    clean = {name: t.assign(stratum="clean") for name, t in given.items()}
    assert difference(claim(stratum="clean"), clean) == (pytest.approx(0.5), 80)


def test_rows_tuned_on_are_those_of_the_first_variant() -> None:
    """A model that was tuned on none of them is asked them all the same."""
    given = parts({"L": 90, "L-leak-free": 80})
    given["L"]["seen"] = [75 <= k < 85 for k in range(100)]
    given["L-leak-free"]["seen"] = False
    told = claim(first="L", second="L-leak-free", stratum="seen")
    assert difference(told, given) == (pytest.approx(0.5), 10)
    other = claim(first="L", second="L-leak-free", stratum="unseen")
    assert difference(other, given) == (pytest.approx(0.125), 40)
    assert difference(claim(first="L-leak-free", second="L", stratum="seen"), given) is None


def test_reason_first_is_compared_where_it_wrote_a_reason() -> None:
    """It is right on the written items alone; older records tell them by their judgement."""
    written = [k < 30 for k in range(100)]
    given = parts({"LR": 15, "R-then-L": 30})
    new = {**given, "R-then-L": given["R-then-L"].assign(written=written)}
    judged: list[Any] = [False if w else None for w in written]
    old = given["R-then-L"].assign(judge_misaligned=judged)
    for found in (new, {**given, "R-then-L": old}):
        assert difference(claim(second="R-then-L"), found) == (-0.5, 30)


def test_an_area_under_the_curve_is_compared_with_chance() -> None:
    given = parts({"L": 100})
    perfect = [-1.0 if gold == "ethical" else 1.0 for gold in given["L"]["gold"]]
    given["L"] = given["L"].assign(logp_ethical=0.0, logp_unethical=perfect)
    assert difference(claim(estimand="auc", first="L", second="chance"), given) == (0.5, 100)
    assert difference(claim(estimand="auc"), given) is None


def test_a_variant_of_the_baselines_can_be_compared_with() -> None:
    given = parts({"LR": 90})
    given["baselines"] = pd.concat([items(40).assign(variant="majority")])
    assert difference(claim(second="majority"), given) == (pytest.approx(0.5), 100)
    given["LR"] = given["LR"].assign(logp_ethical=0.0, logp_unethical=1.0)
    assert difference(claim(second="majority", estimand="auc"), given) is None, "no probabilities"


def test_empty_reasons_are_not_compared() -> None:
    argues: list[Any] = ["ethical"] * 50 + [None] * 50
    given = parts({"LR": 1, "L": 1}, argues_for=argues, stance_misaligned=[True] * 100)
    given["LR"]["stance_misaligned"] = False
    told = claim(estimand="misalignment_stance", direction="less")
    assert difference(told, given) == (-1, 50)


def test_families_are_resampled_together() -> None:
    given = parts({"LR": 90, "L": 50}, family=[f"f{k % 10}" for k in range(100)])
    found = claims.contrast(claim(), given)
    assert found is not None
    assert found.groups is not None
    assert len(set(found.groups)) == 10


def test_reference_predictions_carry_their_judgements(tmp_path: Path) -> None:
    folder = tmp_path / "small" / "L" / "0"
    records.write(folder / "predictions.jsonl", items(3)[:2])
    judged = [{"id": "i1", "dataset": "dfar", "stance_misaligned": True}]
    records.write(folder / "judgements.jsonl", pd.DataFrame(judged))
    table = results.predictions(tmp_path, 0)["small"]["L"]
    assert table["stance_misaligned"].fillna("none").tolist() == ["none", True]


def test_false_alarms_of_judges_are_those_behind_right_verdicts(tmp_path: Path) -> None:
    home = tmp_path / "m" / "LR" / "0"
    verdicts = ["ethical", "ethical", "ethical", "unethical", "ethical"]
    told = pd.DataFrame({"id": [*"abcde"], "dataset": ["dfar"] * 4 + ["ethos"]})
    records.write(home / "predictions.jsonl", told.assign(gold="ethical", verdict=verdicts))
    stances: list[Any] = ["ethical", "unethical", None, "unethical", "ethical"]
    judged = told.assign(
        argues_for=stances,
        stance_misaligned=[False, True, True, True, True],
        judge_misaligned=[False, False, True, True, True],
    )
    records.write(home / "judgements.jsonl", judged)
    records.write(tmp_path / "m" / "pretrained" / "0" / "predictions.jsonl", told)
    found = claims.alarms(tmp_path).set_index("metric")
    # Right are a, b and c, of which c has no reason, and e is of another set.
    assert found["n"].tolist() == [2, 2]
    assert found["value"].to_dict() == {"stance_flags_right": 0.5, "judge_flags_right": 0.0}
    assert {*found["variant"]} == {"LR"}, "where no reason was judged there is nothing to tell"
    again = tmp_path / "m" / "LR" / "1"
    records.write(again / "predictions.jsonl", told.assign(gold="ethical", verdict=verdicts))
    records.write(again / "judgements.jsonl", judged.assign(judge_misaligned=True))
    both = claims.alarms(tmp_path).set_index("metric")
    assert both["value"].to_dict() == {"stance_flags_right": 0.5, "judge_flags_right": 0.5}
    assert both["seeds"].tolist() == [2, 2]


def test_prose_quotes_the_audit_and_the_classes(tmp_path: Path) -> None:
    records.write(tmp_path / "small" / "pretrained" / "0" / "predictions.jsonl", items(10))
    audit = {"variant": "audit", "dataset": "dfar", "metric": "test_in_train", "stratum": "all"}
    kappa = {**audit, "metric": "label_kappa", "value": 0.6252, "n": 1790, "unit": "kappa"}
    auc = {
        **audit,
        "variant": "R-then-L",
        "metric": "auc",
        "stratum": "clean",
        "value": 0.5351,
        "n": 311,
    }
    reference = pd.DataFrame(
        [{**audit, "value": 0.378, "n": 500}, kappa, {**auc, "unit": "score"}]
    ).assign(seed=0)
    found = claims.facts(reference, tmp_path)
    assert found["leak"] == {
        "test_in_train": "189",
        "test_in_train_of": "500",
        "test_in_train_percent": "37.8 %",
        "label_kappa": "0.625",
    }
    assert found["clean"] == {"R_then_L": {"auc": "0.535"}}
    assert found["classes"]["all"] == {"n": 100, "ethical": 66, "unethical": 34}
    assert set(found["classes"]) == {"all", "clean", "contaminated"}
    assert claims.leak(reference).loc[:, "share"].tolist() == ["37.8%"]
    empty = claims.facts(pd.DataFrame(columns=results.COLUMNS), tmp_path / "none")
    assert empty == {"leak": {}, "classes": {}, "clean": {}, "contaminated": {}}
