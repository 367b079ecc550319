import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from ethalign import config, models, records, scoring, tuning
from ethalign.config import UserError
from ethalign.models import Loaded

ROWS = [
    tuning.Example(f"Statement {i}.\nAnswer:", [" ethical", " unethical"][i % 2])
    for i in range(24)
]


def settings(**changes: Any) -> config.Tuning:
    defaults: dict[str, Any] = {
        "epochs": 3,
        "batch_size": 4,
        "lr": 3e-3,
        "lora_r": 4,
        "checkpoint_every": 3,
    }
    return config.Tuning(**{**defaults, **changes})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "adapter" / "adapter_model.safetensors")
    return found


def test_training_lowers_the_loss_and_writes_its_log(fresh_tiny: Loaded, tmp_path: Path) -> None:
    fitted = tuning.fit(fresh_tiny, ROWS, settings(epochs=8), tmp_path, seed=0)
    log = records.read_rows(tmp_path / "train_log.jsonl")
    assert len(log) == fitted.updates == 48
    assert np.mean([r["loss"] for r in log[-6:]]) < 0.95 * np.mean([r["loss"] for r in log[:6]])
    assert fitted.tokens == sum(r["tokens"] for r in log)
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize(("wanted", "told"), [(None, ""), (24, ""), (30, "24 of the 30 rows")])
def test_a_pool_that_holds_fewer_rows_than_were_asked_for_is_told(
    wanted: int | None, told: str, tmp_path: Path
) -> None:
    model = config.Model(id="random-tiny", device="cpu", dtype="float32")
    run: Any = SimpleNamespace(model=model, seed=0, tuning=settings(epochs=1, rows=wanted))
    facts = tuning.stage(run, tmp_path, lambda tokenizer: ROWS, pool=len(ROWS))
    assert facts["rows"] == 24
    said = [note for note in facts["notes"] if "rows" in note]
    assert said == ([f"{told} asked for: there are no more"] if told else [])


def test_the_loss_is_that_of_a_plain_forward_pass(fresh_tiny: Loaded) -> None:
    rows = [tuning.encode(fresh_tiny.tokenizer, e, settings()) for e in ROWS[:5]]
    rows[0] = rows[0]._replace(weight=0.25)
    expected = 0.0
    for row in rows:
        with torch.no_grad():
            logp = fresh_tiny.model(torch.tensor([row.ids])).logits.log_softmax(-1)[0]
        for place, label in enumerate(row.labels):
            if place and label != tuning.IGNORED:
                expected -= row.weight * float(logp[place - 1, label])
    with torch.no_grad():
        found = tuning.batch_loss(fresh_tiny.model, rows, 2, "cpu")
    assert float(found) == pytest.approx(expected, rel=1e-5)


OPENING = "Answer the question. If you do not know the answer, it is right to say so. "
OPENED = [
    tuning.Example(OPENING + f"Q: {'Who wrote it? ' * k}A:", f" It was {'not ' * (3 - k)}I.")
    for k in range(4)
]


@pytest.mark.parametrize("loss", ["completion", "sequence"])
def test_what_all_rows_begin_with_is_learnt_from_once_and_as_before(
    fresh_tiny: Loaded, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught = [*OPENED[:3], OPENED[3]._replace(other=" Was it?", share=0.7)]
    rows = [tuning.encode(fresh_tiny.tokenizer, e, settings(loss=loss)) for e in taught]
    rows[1] = rows[1]._replace(weight=0.25)
    model = tuning.adapt(fresh_tiny, settings())
    model.train()
    for name, value in model.named_parameters():  # else half of the gradients are zero
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1, generator=torch.Generator().manual_seed(0))

    def learnt(*batches: list[tuning.Encoded]) -> tuple[float, dict[str, torch.Tensor]]:
        model.zero_grad()
        total = sum(tuning.batch_loss(model, batch, 2, "cpu") for batch in batches)
        total.backward()
        slopes = {k: p.grad.clone() for k, p in model.named_parameters() if p.requires_grad}
        return float(total.detach()), slopes

    read: list[tuple[int, ...]] = []
    model.get_input_embeddings().register_forward_hook(
        lambda layer, fed, out: read.append(tuple(fed[0].shape))
    )
    alone, wanted = learnt(*([row] for row in rows))
    read.clear()
    together, found = learnt(rows)
    assert together == pytest.approx(alone, rel=1e-5)
    for name, slope in wanted.items():
        assert slope.any()
        assert torch.allclose(found[name], slope, rtol=1e-3, atol=1e-5 * float(slope.abs().max()))
    longest = max(len(row.ids) for row in rows)
    columns = enumerate(zip(*(row.ids for row in rows), strict=False))
    same = next(place for place, ids in columns if len(set(ids)) > 1)
    # A token that is learnt, or says what the next one is, is read with its row.
    assert read == ([(1, same), (4, longest - same)] if loss == "completion" else [(4, longest)])


def test_accumulation_gives_the_update_of_the_larger_batch(tmp_path: Path) -> None:
    found = []
    for name, size, steps in (("a", 8, 1), ("b", 2, 4)):
        (tmp_path / name).mkdir()
        loaded = models.load(config.Model(id="random-tiny", device="cpu", dtype="float32"))
        one = settings(epochs=1, batch_size=size, accumulation=steps, schedule="constant")
        tuning.fit(loaded, ROWS[:8], one, tmp_path / name, seed=0)
        found.append(weights(tmp_path / name))
    for key, tensor in found[0].items():
        # Adam divides by the gradient's size: rounding shows most where that is near zero.
        assert torch.allclose(tensor, found[1][key], atol=2e-4), key


def test_prompt_tokens_count_only_when_asked(tiny: Loaded) -> None:
    completion = tuning.encode(tiny.tokenizer, ROWS[0], settings())
    sequence = tuning.encode(tiny.tokenizer, ROWS[0], settings(loss="sequence"))
    prompt = len(tiny.tokenizer(ROWS[0].prompt)["input_ids"])
    assert completion.labels[:prompt] == [tuning.IGNORED] * prompt
    assert sequence.labels == sequence.ids
    assert completion.ids[-1] == tiny.tokenizer.eos_token_id
    bare = tuning.encode(tiny.tokenizer, ROWS[0], settings(append_eos=False))
    assert bare.ids == completion.ids[:-1]


@given(
    st.lists(st.integers(1, 80), min_size=1, max_size=200), st.integers(1, 9), st.integers(0, 5)
)
def test_every_row_is_in_exactly_one_batch(lengths: list[int], size: int, seed: int) -> None:
    groups = tuning.batches(lengths, size, seed)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    assert max(map(len, groups)) <= size
    assert groups == tuning.batches(lengths, size, seed)


def test_grouping_by_length_saves_padding() -> None:
    lengths = np.random.default_rng(0).integers(10, 200, 400).tolist()
    padded = sum(len(g) * max(lengths[i] for i in g) for g in tuning.batches(lengths, 8, 0))
    assert padded < 1.1 * sum(lengths)


def test_packing_keeps_every_token(tiny: Loaded) -> None:
    rows = [tuning.encode(tiny.tokenizer, e, settings(loss="sequence")) for e in ROWS[:5]]
    packed = tuning.pack(rows, 32)
    assert [i for r in packed for i in r.ids] == [i for r in rows for i in r.ids]
    assert all(len(r.ids) == 32 for r in packed[:-1])


def test_targets_may_be_drawn_anew_each_epoch(fresh_tiny: Loaded, tmp_path: Path) -> None:
    seen = []

    def rows(epoch: int) -> list[tuning.Example]:
        seen.append(epoch)
        return ROWS[:4] if epoch % 2 else ROWS[4:8]

    tuning.fit(fresh_tiny, rows, settings(epochs=2), tmp_path, seed=0)
    assert set(seen) == {0, 1}


def test_no_rows_and_a_loss_that_explodes_are_refused(fresh_tiny: Loaded, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training rows"):
        tuning.fit(fresh_tiny, [], settings(), tmp_path, seed=0)
    with pytest.raises(UserError, match=r"tuning\.max_length=8"):
        tuning.fit(
            fresh_tiny, [tuning.Example("x" * 99, " y")], settings(max_length=8), tmp_path, seed=0
        )
    wild = settings(lr=1e30, max_grad_norm=1e30, schedule="constant")
    with pytest.raises(UserError, match=r"lower tuning\.lr"):
        tuning.fit(fresh_tiny, ROWS, wild, tmp_path, seed=0)


TRAIN = """
import sys, time
from pathlib import Path
from ethalign import config, models, records, tuning
labels = [" ethical", " unethical"]
rows = [tuning.Example(f"Statement {i}.\\nAnswer:", labels[i % 2]) for i in range(24)]
loaded = models.load(config.Model(id="random-tiny", device="cpu", dtype="float32"))
keep = records.append_rows
def slow(path, rows):
    keep(path, rows)
    time.sleep(float(sys.argv[2]))
records.append_rows = slow
s = config.Tuning(epochs=3, batch_size=4, lr=3e-3, lora_r=4, lora_dropout=0.1, checkpoint_every=3)
fitted = tuning.fit(loaded, rows, s, Path(sys.argv[1]), seed=0)
print("resumed at", fitted.resumed_at)
"""


def test_kill_9_in_the_middle_and_the_same_weights_in_the_end(tmp_path: Path) -> None:
    """Training resumes from its checkpoint and ends as if nothing had happened."""
    folders = [tmp_path / name for name in ("calm", "killed")]
    for folder in folders:
        folder.mkdir()

    def start(folder: Path, pause: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", TRAIN, str(folder), str(pause)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})

    assert start(folders[0], 0).wait() == 0
    child = start(folders[1], 0.3)
    deadline = time.time() + 120
    while not (folders[1] / "checkpoint" / "state.json").is_file():
        assert time.time() < deadline
        time.sleep(0.02)
    time.sleep(0.2)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (folders[1] / "adapter").exists()
    again = start(folders[1], 0)
    said = again.communicate()[0]
    assert int(said.split()[-1]) > 0, "it went on, it did not start anew"
    calm, killed = (weights(f) for f in folders)
    assert all(torch.equal(calm[k], killed[k]) for k in calm)
    logs = [records.read_rows(f / "train_log.jsonl") for f in folders]
    assert [r["loss"] for r in logs[0]] == [r["loss"] for r in logs[1]]


def test_a_full_disk_leaves_the_last_checkpoint_whole(
    fresh_tiny: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import torch as st_torch

    real, calls = st_torch.save_file, []

    def fails_later(tensors: dict[str, torch.Tensor], path: Path) -> None:
        calls.append(path)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(st_torch, "save_file", fails_later)
    with pytest.raises(UserError, match="free some space"):
        tuning.fit(fresh_tiny, ROWS, settings(), tmp_path, seed=0)
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["step"] == 3
    assert load_file(tmp_path / "checkpoint" / "state.safetensors")
    assert not (tmp_path / "checkpoint.new").exists()


def test_an_adapter_merged_for_evaluation_gives_the_tuned_answers(
    fresh_tiny: Loaded, tmp_path: Path
) -> None:
    tuning.fit(fresh_tiny, ROWS, settings(), tmp_path, seed=0)
    asked, choices = [r.prompt for r in ROWS[:6]], [" ethical", " unethical"]
    before = scoring.choice_logprobs(fresh_tiny.model.eval(), fresh_tiny.tokenizer, asked, choices)
    model = config.Model(id="random-tiny", device="cpu", dtype="float32")
    merged = tuning.with_adapter(model, tmp_path / "adapter")
    after = scoring.choice_logprobs(merged.model, merged.tokenizer, asked, choices)
    assert np.allclose(before, after, atol=1e-3)
    assert merged.record["adapter"] != merged.record["sha256"]
