import json
from pathlib import Path

from ethalign import records
from ethalign.ambiguity import claims


def predictions(home: Path, model: str, variant: str, knows: float, items: int = 200) -> None:
    """A model whose log-odds follow the votes as far as it knows them."""
    lines = []
    for i in range(items):
        n = (i * 7) % 6
        lines.append(
            {"part": "test" if i % 2 else "held-out", "id": str(i), "votes1": n, "votes2": 5 - n}
            | {"logp1": knows * (n - 2.5) / 2.5 - 2, "logp2": -2.0}
        )
    path = home / model / variant / "0" / "predictions.jsonl"
    records.write(path, "".join(json.dumps(line) + "\n" for line in lines))


def test_claims_are_judged_from_predictions(tmp_path: Path) -> None:
    """A tuned model that knows the votes beats one that knows nothing; losses fall."""
    for variant, knows in (("zero-shot", 0.0), ("soft", 2.0), ("hard", 0.0)):
        predictions(tmp_path, "small", variant, knows)
    found = claims.assess({"here": tmp_path}).set_index("claim")
    assert found["verdict"]["soft improves cross-entropy"] == "holds"
    assert found["verdict"]["hard improves cross-entropy"] == "not shown"
    assert set(found["data"]) == {"here, small"}


def test_models_are_tested_apart_and_only_over_the_same_items(tmp_path: Path) -> None:
    for model, knows in (("small", 2.0), ("large", 0.0)):
        predictions(tmp_path, model, "zero-shot", 0.0)
        predictions(tmp_path, model, "soft", knows)
    predictions(tmp_path, "large", "hard", 2.0, items=50)
    found = claims.assess({"here": tmp_path}).set_index(["data", "claim"])["verdict"]
    assert found["here, small", "soft improves cross-entropy"] == "holds"
    assert found["here, large", "soft improves cross-entropy"] == "not shown"
    assert ("here, large", "hard improves cross-entropy") not in found
