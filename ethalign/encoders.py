"""Encoder classifiers with the losses of Scruples: hard, soft, counts, Dirichlet-multinomial."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ethalign import models, records
from ethalign.scoring import by_length
from ethalign.tuning import batches

if TYPE_CHECKING:
    from torch import Tensor

Loss = Literal["hard", "soft", "counts", "dirichlet"]
Texts = Sequence[str]
# Parts of the names of tensors that a pretrained encoder may have or lack.
HEADS = ("classifier", "cls", "lm_head", "pooler", "score")


class Encoder(NamedTuple):
    """A sequence classifier (or a bare encoder) and its tokenizer."""

    model: Any
    tokenizer: Any


def fit(
    path: Path,
    texts: Texts,
    targets: ArrayLike,
    *,
    loss: Loss = "hard",
    pairs: Texts | None = None,
    ranked: bool = False,
    epochs: int = 4,
    lr: float = 1e-4,
    batch_size: int = 16,
    accumulation: int = 1,
    weight_decay: float = 0.01,
    warmup: float = 0.1,
    seed: int = 0,
    max_length: int = 256,
    device: str = "cpu",
    judge: Callable[[Encoder], float] | None = None,
) -> Encoder:
    """Fine-tune an encoder as a classifier.

    With logits z, vote counts n and shares h = n / sum(n) (Lourie et al. 2020):
    ``hard`` -log softmax(z)_y; ``soft`` -sum_k h_k log softmax(z)_k; ``counts`` -sum_k n_k log
    softmax(z)_k; ``dirichlet`` the Dirichlet-multinomial likelihood of the vote sequence with
    alpha = exp(z).

    Args:
        path: folder of the encoder.
        texts: n texts, cut to ``max_length`` tokens.
        targets: (n,) class numbers for ``hard``, else (n, k) counts or shares.
        pairs: n second texts, for classifiers of pairs.
        ranked: texts and pairs are alternatives: each gets one score, and softmax goes over the
            two scores (the ranker of Scruples), so that their order cannot matter.
        epochs: passes over the texts.
        lr: learning rate of AdamW.
        batch_size: texts per update.
        weight_decay: of AdamW; biases and LayerNorm do not decay.
        accumulation: forward passes per update; each takes a part of the batch.
        warmup: share of the updates with rising learning rate; it falls linearly afterwards.
        seed: draws the new head, dropout and the order of rows.
        device: where it is fitted, and where it stays.
        judge: a loss after an epoch, on rows held out of training; the encoder is that of the
            epoch with the least one, else of the last.

    Raises:
        ValueError: no rows, or targets of another length than the texts.
    """
    import torch
    from transformers import get_scheduler

    wanted = np.asarray(targets)
    if ranked and pairs is None:
        raise ValueError("a ranker needs pairs")
    if not len(texts) or len(texts) != len(wanted):
        raise ValueError(f"{len(texts)} texts and {len(wanted)} targets")
    classes = max(2, int(wanted.max()) + 1 if loss == "hard" else wanted.shape[1])
    torch.manual_seed(seed)  # before the head exists: its weights are drawn on creation
    # Plain attention has the faster backward pass on a CPU.
    head: dict[str, Any] = {"num_labels": 1 if ranked else classes, "dtype": torch.float32}
    encoder = restore(path, attn_implementation="eager", **head)
    model = encoder.model.to(device).train()
    model.config.pad_token_id = encoder.tokenizer.pad_token_id
    lengths = [len(t) for t in texts]
    plan = [g for e in range(epochs) for g in batches(lengths, batch_size, seed + e)]
    # Biases and the weights of a LayerNorm are the parameters with one axis.
    decays = ((1, 0.0), (2, weight_decay))
    groups = [
        {"params": [p for p in model.parameters() if min(p.ndim, 2) == n], "weight_decay": decay}
        for n, decay in decays
    ]
    # One pass over each tensor instead of a dozen; it has no kernel for Apple's devices.
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=device in ("cpu", "cuda"))
    schedule = get_scheduler("linear", optimizer, int(warmup * len(plan)), len(plan))
    # Twice as fast where the processor multiplies bfloat16; weights stay in float32.
    half = models.choose_dtype("auto", device)[0] == "bfloat16"
    kind = torch.long if loss == "hard" else torch.float32
    goal, best, kept = torch.tensor(wanted, dtype=kind, device=device), math.inf, None
    for step, group in enumerate(records.progress(plan, len(plan), "encoder", "batch"), 1):
        for part in np.array_split(group, min(accumulation, len(group))):
            with torch.autocast(device, torch.bfloat16, enabled=half):
                found = _forward(encoder, texts, pairs, part.tolist(), max_length, ranked)
            share = len(part) / len(group)
            (share * batch_loss(found.float(), goal[part.tolist()], loss)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if judge and step % (len(plan) // epochs) == 0:
            score = judge(Encoder(model.eval(), encoder.tokenizer))
            if kept is None or score < best:
                best, kept = score, {k: v.clone() for k, v in model.state_dict().items()}
            model.train()
    model.load_state_dict(kept or model.state_dict())
    model.eval()
    return encoder


def batch_loss(logits: Tensor, target: Tensor, loss: Loss) -> Tensor:
    """Mean loss over a batch; logits (n, k), target (n,) or (n, k). See ``fit``."""
    import torch

    if loss == "hard":
        return torch.nn.functional.cross_entropy(logits, target)
    if loss == "dirichlet":
        alpha = logits.exp()
        whole, votes = alpha.sum(1), target.sum(1)
        each = (torch.lgamma(alpha + target) - torch.lgamma(alpha)).sum(1)
        return -(torch.lgamma(whole) - torch.lgamma(whole + votes) + each).mean()
    if loss == "soft":
        target = target / target.sum(1, keepdim=True)
    return -(target * logits.log_softmax(1)).sum(1).mean()


def logits(
    encoder: Encoder,
    texts: Texts,
    pairs: Texts | None = None,
    *,
    ranked: bool = False,
    batch_size: int = 64,
    max_length: int = 256,
) -> NDArray[np.float64]:
    """Logits (n, k) of texts, in their order; of a ranker (n, 2). See ``fit``."""
    import torch

    out = np.zeros((len(texts), 2 if ranked else encoder.model.config.num_labels))
    with torch.inference_mode():
        for group in by_length(texts, batch_size, "encoding", quiet=True):
            found = _forward(encoder, texts, pairs, group.tolist(), max_length, ranked)
            out[group] = found.cpu().double().numpy()
    return out


def _forward(
    encoder: Encoder, texts: Texts, pairs: Texts | None, rows: list[int], length: int, ranked: bool
) -> Tensor:
    """Logits of some rows, (rows, k), of at most ``length`` tokens."""
    import torch

    one = [texts[i] for i in rows]
    two = None if pairs is None else [pairs[i] for i in rows]
    asked = [(one, None), (two, None)] if ranked and two else [(one, two)]
    device = encoder.model.device
    sides = [_tokenize(encoder.tokenizer, *side, length).to(device) for side in asked]
    return torch.cat([encoder.model(**side).logits for side in sides], dim=1)


def embed(
    path: Path, texts: Texts, *, batch_size: int = 64, device: str = "cpu"
) -> NDArray[np.float64]:
    """Mean-pooled last hidden states of unit length, (n, width): a dot product is a cosine."""
    import torch
    from transformers import AutoModel

    tokenizer = _tokenizer(path)
    model: Any = models.read(AutoModel, path, HEADS, dtype=torch.float32).eval().to(device)
    out = np.zeros((len(texts), model.config.hidden_size))
    with torch.inference_mode():
        for start in range(0, len(texts), batch_size):
            rows = slice(start, start + batch_size)
            inputs = _tokenize(tokenizer, texts[rows], None, 256).to(device)
            hidden = model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None]
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            out[rows] = torch.nn.functional.normalize(mean, dim=1).cpu().double().numpy()
    return out


def save(encoder: Encoder, folder: Path) -> None:
    """Write weights (safetensors) and tokenizer."""
    encoder.model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)


def restore(folder: Path, **more: Any) -> Encoder:
    """Read what ``save`` wrote, or with ``num_labels`` a model that gets a new head.

    ``more`` is transformers' own.
    """
    from transformers import AutoModelForSequenceClassification as Classifier

    model: Any = models.read(Classifier, folder, HEADS if "num_labels" in more else (), **more)
    return Encoder(model.eval(), _tokenizer(folder))


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.padding_side = "right"
    return tokenizer


def _tokenize(tokenizer: Any, one: Any, two: Any, max_length: int) -> Any:
    how = {"truncation": True, "max_length": max_length, "padding": True, "return_tensors": "pt"}
    return tokenizer(list(one), two, **how)
