import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import load_file

from ethalign import config, models, records, study, tuning
from ethalign.ambiguity import finetune, prompts
from ethalign.models import Loaded

from . import resolved

ROWS = [tuning.Example(f"{i}?", [" yes", " no"][i % 2]) for i in range(8)]


def test_the_epoch_that_does_best_on_held_out_rows_is_kept(tmp_path: Path) -> None:
    """Also if training was cut off after it, and goes on from an earlier checkpoint."""
    losses = iter([2.0, 1.0, math.nan, 1.0, 3.0])  # the checkpoint lies before the second epoch

    def judge(loaded: Loaded) -> float:
        assert not loaded.model.training
        if math.isnan(loss := next(losses)):
            raise KeyboardInterrupt
        return loss

    def fit(name: str, epochs: int, judge: Any = None) -> dict[str, Any]:
        how = {"batch_size": 4, "lr": 3e-3, "schedule": "constant", "checkpoint_every": 3}
        loaded = models.load(config.Model(id="random-tiny", device="cpu", dtype="float32"))
        settings, out = config.Tuning(epochs=epochs, **how), tmp_path / name  # type: ignore[arg-type]
        out.mkdir(exist_ok=True)
        tuning.fit(loaded, ROWS, settings, out, seed=0, judge=judge)
        found: dict[str, Any] = load_file(out / "adapter" / "adapter_model.safetensors")
        return found

    with pytest.raises(KeyboardInterrupt):
        fit("a", 3, judge)
    kept, second, last = fit("a", 3, judge), fit("b", 2), fit("c", 3)
    assert all((kept[key] == second[key]).all() for key in kept)
    assert any((kept[key] != last[key]).any() for key in kept)
    log = records.read_rows(tmp_path / "a" / "train_log.jsonl")
    assert [row.get("held_out") for row in log] == [None, 2.0, None, 1.0, None, 3.0]


def test_what_is_kept_is_as_close_to_the_held_out_votes_as_was_judged(tmp_path: Path) -> None:
    overrides = {"tuning.epochs": 2, "data.limit_test": 200, "tuning.lr": 0.01}
    for stage in ("finetune", "evaluate"):
        job = study.job("ambiguity", stage, "hard", "smoke", 0, overrides, tmp_path)
        job.compute()
    log = pd.DataFrame(records.read_rows(job.where / "train_log.jsonl"))
    judged = log["held_out"].dropna()
    assert len(judged) == 2
    rows = pd.DataFrame(json.loads((job.where / "metrics.json").read_text()))
    rows = rows[(rows["dataset"] == "held-out") & (rows["metric"] == "cross_entropy")]
    assert rows["value"].item() == pytest.approx(judged.min(), abs=1e-4)
    assert finetune.facts(pd.DataFrame(), job.home)["learnt"]["hard"]["verdict"]


def test_a_guess_costs_as_much_as_a_coin_toss(tiny: Loaded) -> None:
    run, pairs = resolved("hard"), [{"first": "a", "second": "b", "votes1": 5, "votes2": 0}] * 8
    rows = prompts.examples(run, pd.DataFrame(pairs), 0)
    tokens = (len(" first") + len(" second")) / 2 + 1  # bytes, and the end
    found = finetune.blind(run, rows, tiny.tokenizer)
    assert found == pytest.approx(math.log(2) / tokens, abs=1e-6)
    # One written share on all rows needs no item to be known.
    same = [tuning.Example("?", " 80 %")] * 4
    assert finetune.blind(resolved("verbalised"), same, tiny.tokenizer) == 0
    soft = [tuning.Example("?", " first", other=" again", share=0.8)]
    known = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2)) / 7
    assert finetune.blind(resolved("soft"), soft, tiny.tokenizer) == pytest.approx(known, abs=1e-6)
    whole = resolved("hard", tuning__loss="sequence")
    assert finetune.blind(whole, rows, tiny.tokenizer) is None


@pytest.mark.parametrize(
    ("variant", "losses", "record", "verdict"),
    [
        # Those of the first reference runs: one token and its end, so a coin toss is ln 2 / 2.
        ("hard", [0.36, 0.35, 0.35, 0.36], None, "not learnt"),
        ("hard", [0.30, 0.31, 0.29, 0.30], None, "learnt"),
        ("hard", [0.30, 0.31, 0.29, 0.30], 0.25, "not learnt"),
        ("hard", [6.90, 0.70, 0.29, 0.30], None, "learnt"),  # the form of an answer comes first
        ("hard", [0.30, 0.37, 0.31, 0.38], None, "not learnt"),  # less, but not surely
        ("verbalised", [0.30, 0.31], None, "not known"),
    ],
)
def test_what_was_not_learnt_is_called_so(
    tmp_path: Path, variant: str, losses: list[float], record: float | None, verdict: str
) -> None:
    folder = tmp_path / "model" / variant / "0"
    rows = [{"step": k, "epoch": 1, "loss": loss} for k, loss in enumerate(losses)]
    # The kept epoch is the one that counts, not the last.
    judged = [{"step": 9, "epoch": 0, "loss": 0.1, "held_out": 0.8}, *rows]
    judged[-1]["held_out"] = 0.7
    judged.append({"step": 10, "epoch": 2, "loss": 0.01, "held_out": 0.9})
    for log in (rows, judged):
        records.write(folder / "train_log.jsonl", "".join(map(records.line, log)))
        known = {} if record is None else {"blind": record}
        records.write(folder / "run.json", {"stages": {"finetune": known}})
        found = finetune.learnt(folder)
        assert found is not None
        assert (found.epoch, found.verdict) == (1, verdict)
    assert finetune.learnt(tmp_path) is None
