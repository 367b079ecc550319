from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ethalign import encoders, models

TEXTS = [f"{'good' if i % 2 else 'bad'} thing number {i}" for i in range(32)]
COUNTS = np.array([[1.0, 4.0] if i % 2 else [5.0, 0.0] for i in range(32)])


@pytest.fixture(scope="module")
def path() -> Path:
    return models.encoder("random-tiny")


@pytest.mark.parametrize("loss", ["hard", "soft", "counts", "dirichlet"])
def test_every_loss_learns_which_class_is_more_likely(path: Path, loss: encoders.Loss) -> None:
    targets = COUNTS.argmax(1) if loss == "hard" else COUNTS
    fitted = encoders.fit(path, TEXTS, targets, loss=loss, epochs=30, lr=3e-3, seed=0)
    found = encoders.logits(fitted, TEXTS)
    assert found.shape == (32, 2)
    assert (found.argmax(1) == COUNTS.argmax(1)).mean() > 0.9


def test_losses_by_hand() -> None:
    """papers.md 4.3 at z = (0, ln 3), n = (1, 3)."""
    z, n = torch.tensor([[0.0, np.log(3)]]), torch.tensor([[1.0, 3.0]])
    p = np.array([0.25, 0.75])
    assert float(encoders.batch_loss(z, torch.tensor([1]), "hard")) == pytest.approx(-np.log(p[1]))
    soft = -(0.25 * np.log(p[0]) + 0.75 * np.log(p[1]))
    assert float(encoders.batch_loss(z, n, "soft")) == pytest.approx(soft)
    assert float(encoders.batch_loss(z, n, "counts")) == pytest.approx(4 * soft)
    # alpha = (1, 3): the sequence's probability is 1*3*4*5 / (4*5*6*7).
    assert float(encoders.batch_loss(z, n, "dirichlet")) == pytest.approx(-np.log(60 / 840))


def test_the_order_of_texts_does_not_matter(path: Path) -> None:
    fitted = encoders.fit(path, TEXTS, COUNTS.argmax(1), epochs=1, seed=0)
    forward = encoders.logits(fitted, TEXTS, batch_size=5)
    assert np.allclose(forward[::-1], encoders.logits(fitted, TEXTS[::-1]), atol=1e-4)


def test_saved_and_loaded_is_the_same(path: Path, tmp_path: Path) -> None:
    fitted = encoders.fit(path, TEXTS, COUNTS.argmax(1), pairs=TEXTS[::-1], epochs=1, seed=0)
    encoders.save(fitted, tmp_path / "e")
    assert not list((tmp_path / "e").glob("*.bin")), "no pickles"
    again = encoders.restore(tmp_path / "e")
    before = encoders.logits(fitted, TEXTS, pairs=TEXTS[::-1])
    assert np.allclose(before, encoders.logits(again, TEXTS, pairs=TEXTS[::-1]))


def test_the_same_seed_gives_the_same_encoder(path: Path) -> None:
    found = [
        encoders.logits(encoders.fit(path, TEXTS, COUNTS, loss="soft", epochs=1, seed=s), TEXTS)
        for s in (1, 1, 2)
    ]
    assert (found[0] == found[1]).all()
    assert (found[0] != found[2]).any()


def test_the_epoch_that_does_best_on_held_out_rows_is_kept(path: Path) -> None:
    losses, seen = iter([3.0, 1.0, 2.0]), []

    def judge(encoder: encoders.Encoder) -> float:
        seen.append(encoders.logits(encoder, TEXTS))
        return next(losses)

    how: Any = {"loss": "soft", "epochs": 3, "seed": 0, "lr": 1e-3}
    kept = encoders.logits(encoders.fit(path, TEXTS, COUNTS, judge=judge, **how), TEXTS)
    assert len(seen) == 3
    assert (kept == seen[1]).all()
    last = encoders.logits(encoders.fit(path, TEXTS, COUNTS, **how), TEXTS)
    assert (last == seen[2]).all(), "to be judged changes nothing"


def test_biases_and_layer_norms_do_not_decay(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no learning at all, decay is what is left to change weights."""
    real, groups = torch.optim.AdamW, []

    def optimizer(parameters: Any, **more: Any) -> Any:
        groups.extend(parameters)
        return real(parameters, **more)

    monkeypatch.setattr(torch.optim, "AdamW", optimizer)
    fitted = encoders.fit(path, TEXTS, COUNTS, loss="soft", epochs=1, weight_decay=0.5)
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    for name, parameter in fitted.model.named_parameters():
        free = "norm" in name or name.endswith("bias")
        assert decay[id(parameter)] == (0.0 if free else 0.5), name


def test_embeddings_have_unit_length(path: Path) -> None:
    found = encoders.embed(path, TEXTS[:5])
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(5))


def test_targets_of_another_length_are_refused(path: Path) -> None:
    for texts, targets in ((TEXTS, [0, 1]), ([], [])):
        with pytest.raises(ValueError, match="targets"):
            encoders.fit(path, texts, targets)


@pytest.mark.parametrize("loss", ["hard", "counts"])
def test_a_batch_in_parts_learns_the_same(
    path: Path, loss: encoders.Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten texts in batches of 7 and 3, in 4 parts of unequal size or at once.

    In float32 and without dropout: half precision rounds the sum of four parts otherwise.
    """
    monkeypatch.setattr("ethalign.models.choose_dtype", lambda *given: ("float32", ""))
    passes, forward = [], encoders._forward

    def counted(*given: Any) -> torch.Tensor:
        passes.append(len(given[3]))
        return forward(*given)

    monkeypatch.setattr(encoders, "_forward", counted)
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda module, x: x)
    targets = COUNTS[:10].argmax(1) if loss == "hard" else COUNTS[:10]
    found = []
    for parts in (1, 4):
        how: Any = {"loss": loss, "epochs": 2, "lr": 1e-3, "batch_size": 7, "seed": 0}
        fitted = encoders.fit(path, TEXTS[:10], targets, accumulation=parts, **how)
        found.append(torch.cat([p.detach().flatten() for p in fitted.model.parameters()]))
    assert sorted(passes[:4]) == [3, 3, 7, 7]
    assert max(passes[4:]) == 2
    assert torch.allclose(found[0], found[1], atol=2e-4)
    assert not torch.equal(found[0], found[1])
