from pathlib import Path

import pandas as pd

from ethalign import claims as shared
from ethalign import records, results
from ethalign.reasons import claims


def write(home: Path, model: str, variant: str, right: int) -> None:
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
    records.write(home / model / variant / "0" / "predictions.jsonl", pd.DataFrame(rows))


def test_each_claim_is_tested_for_every_run_and_model_that_has_both_variants(
    tmp_path: Path,
) -> None:
    for model, right in (("small", 90), ("large", 50)):
        write(tmp_path, model, "LR", right)
        write(tmp_path, model, "L", 50)
    table = claims.assess({"this run": tmp_path, "reference": tmp_path / "none"}, 0)
    assert list(table.columns) == shared.VERDICTS
    assert set(table["claim"]) == {"L+R beats L"}
    found = table.set_index(["data", "stratum"])["verdict"].to_dict()
    assert found == {
        ("dfar, this run, large", "all"): "not shown",
        ("dfar, this run, large", "clean"): "not shown",
        ("dfar, this run, large", "contaminated"): "not shown",
        ("dfar, this run, small", "all"): "holds",
        ("dfar, this run, small", "clean"): "not shown",
        ("dfar, this run, small", "contaminated"): "holds",
    }


def test_prose_quotes_the_audit_and_the_classes(tmp_path: Path) -> None:
    write(tmp_path, "small", "pretrained", 10)
    audit = {"variant": "audit", "dataset": "dfar", "metric": "test_in_train", "stratum": "all"}
    reference = pd.DataFrame([{**audit, "value": 0.378, "n": 500}])
    found = claims.facts(reference, tmp_path)
    assert found["leak"] == {
        "test_in_train": "189",
        "test_in_train_of": "500",
        "test_in_train_percent": "37.8 %",
    }
    assert found["classes"]["all"] == {"n": 100, "ethical": 66, "unethical": 34}
    assert set(found["classes"]) == {"all", "clean", "contaminated"}
    assert claims.leak(reference).loc[:, "share"].tolist() == ["37.8%"]
    empty = claims.facts(pd.DataFrame(columns=results.COLUMNS), tmp_path / "none")
    assert empty == {"leak": {}, "classes": {}}
