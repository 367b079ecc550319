"""LoRA and QLoRA fine-tuning of a causal language model on (prompt, completion) pairs.

A plain loop: the memory-hungry logits are computed only where there is a loss, rows of like
length share a batch, and the state is saved often enough to be killed at any moment.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ethalign import models, records
from ethalign.config import Model, Run, Tuning, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IGNORED = -100


class Example(NamedTuple):
    """One row to learn; ``weight`` multiplies its loss (soft targets are weighted rows)."""

    prompt: str
    completion: str
    weight: float = 1.0


class Encoded(NamedTuple):
    """Token ids, the same with positions without loss set to ``IGNORED``, and the weight."""

    ids: list[int]
    labels: list[int]
    weight: float


class Fitted(NamedTuple):
    """What training did."""

    adapter: Path
    updates: int
    tokens: int
    truncated: int
    trainable: int
    resumed_at: int


def fit(
    loaded: models.Loaded,
    examples: Sequence[Example] | Callable[[int], Sequence[Example]],
    settings: Tuning,
    out: Path,
    *,
    seed: int,
) -> Fitted:
    """Fine-tune adapters and save them to ``out/adapter``, on from a checkpoint if there is one.

    The loss of an update is the weighted mean over its target tokens of
    -log p(token | tokens before it); with ``loss: sequence`` the prompt's tokens count as well
    (Beyond Labels trains so; see also its equation in the study's chapter).

    Args:
        loaded: model and tokenizer; the model is wrapped in place.
        examples: rows, or a function of the epoch that gives its rows (for targets drawn anew).
        settings: the ``tuning`` block of a run.
        out: run folder; gets ``adapter/``, ``train_log.jsonl`` and, while at work,
            ``checkpoint/``.
        seed: draws adapter weights, order of rows and dropout.

    Raises:
        UserError: no rows, or a loss that is not finite.
    """
    import torch
    from accelerate import Accelerator

    rows = examples if callable(examples) else (lambda epoch: examples)
    if not rows(0):
        raise UserError("no training rows; check data.train and data.limit_train.")
    torch.manual_seed(seed)  # before the adapter exists: its weights are drawn on creation
    model = adapt(loaded, settings)
    trained = [p for p in model.parameters() if p.requires_grad]
    plan = _Plan(loaded.tokenizer, rows, settings, seed)
    if not plan.updates:
        raise UserError(
            f"no row reaches its answer within tuning.max_length={settings.max_length} tokens;"
            " raise it, or shorten the texts."
        )
    accelerator = Accelerator()
    optimizer = _optimizer(trained, settings)
    schedule = _schedule(optimizer, settings, plan.updates)
    checkpoint, log = out / "checkpoint", out / "train_log.jsonl"
    done = 0
    if checkpoint.is_dir():
        done = _restore(checkpoint, model, optimizer, schedule)
    # The log belongs to the attempt: rows of steps that are done again would stand there twice.
    records.write(log, "".join(json.dumps(r) + "\n" for r in records.read_rows(log)[:done]))
    model, optimizer = accelerator.prepare(model, optimizer)
    model.train()
    tokens = sum(r["tokens"] for r in records.read_rows(log))
    pending: list[dict[str, Any]] = []
    steps = records.progress(plan.steps(done), plan.updates - done, "fine-tuning", "update")
    for step, (epoch, micro) in enumerate(steps, done + 1):
        clock = time.perf_counter()
        share = micro[accelerator.process_index :: accelerator.num_processes]
        loss = _update(model, optimizer, trained, share, loaded, settings, accelerator)
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} at update {step}; lower tuning.lr.")
        entry = {"step": step, "epoch": epoch, "loss": loss, "lr": schedule.get_last_lr()[0]}
        entry["tokens"] = sum(len(row.ids) for batch in micro for row in batch)
        entry["seconds"] = round(time.perf_counter() - clock, 3)
        tokens += entry["tokens"]
        pending.append(entry)
        schedule.step()
        if accelerator.is_main_process and (
            step % settings.checkpoint_every == 0 or step == plan.updates
        ):
            records.append_rows(log, pending)
            pending = []
            _save(checkpoint, accelerator.unwrap_model(model), optimizer, schedule, step)
    adapter = out / "adapter"
    plain = accelerator.unwrap_model(model)
    if accelerator.is_main_process:
        _replace(adapter, lambda path: plain.save_pretrained(path))
        shutil.rmtree(checkpoint, ignore_errors=True)
    count = sum(p.numel() for p in trained)
    return Fitted(adapter, plan.updates, tokens, plan.truncated, count, done)


def stage(
    run: Run, where: Path, make: Callable[[Any], Sequence[Example] | Callable[[int], Any]]
) -> dict[str, Any]:
    """The fine-tuning stage of a study; facts for its record.

    Args:
        run: gives ``model``, ``tuning`` and the seed.
        where: run folder, see ``fit``.
        make: rows, or a function of the epoch, from the tokenizer.
    """
    loaded = models.load(run.model, seed=run.seed)
    fitted = fit(loaded, make(loaded.tokenizer), run.tuning, where, seed=run.seed)
    return {
        "model": loaded.record,
        "notes": loaded.notes,
        "tokens": fitted.tokens,
        "updates": fitted.updates,
        "trained": fitted.trainable,
        "cut": fitted.truncated,
    }


def adapt(loaded: models.Loaded, settings: Tuning) -> Any:
    """The model with fresh LoRA adapters (PEFT). Seed before calling: weights are drawn here."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    model: Any = loaded.model
    if getattr(model, "is_loaded_in_4bit", False):
        model = prepare_model_for_kbit_training(model)
    shape = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear" if settings.lora_targets == "all-linear" else None,
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, shape)


def with_adapter(settings: Model, adapter: Path | None, *, seed: int = 0) -> models.Loaded:
    """A model for evaluation, with an adapter merged in where there is one.

    Merged in float32 and cast afterwards: a small update would vanish in bfloat16 weights.
    """
    if adapter is None:
        return models.load(settings, seed=seed)
    import torch
    from peft import PeftModel

    dtype, why = models.choose_dtype(settings.dtype, models.choose_device(settings.device)[0])
    quantized = settings.quantization != "none"
    wide = settings if quantized else settings.model_copy(update={"dtype": "float32"})
    loaded = models.load(wide, seed=seed)
    model: Any = PeftModel.from_pretrained(loaded.model, adapter)
    if not quantized:
        model = model.merge_and_unload().to(getattr(torch, dtype))
        loaded = loaded._replace(notes=[loaded.notes[0], why, "adapter merged in float32"])
    record = {**loaded.record, "dtype": dtype, "adapter": models.weights_sha256(adapter)}
    return loaded._replace(model=model.eval(), dtype=dtype, record=record)


def encode(tokenizer: Any, example: Example, settings: Tuning) -> Encoded:
    """Token ids and labels of one row, cut to ``max_length`` at its end.

    Prompt and completion are tokenised apart, so that their boundary is the same at evaluation.
    """
    prompt = tokenizer(example.prompt)["input_ids"]
    answer = tokenizer(example.completion, add_special_tokens=False)["input_ids"]
    if settings.append_eos:
        answer = [*answer, tokenizer.eos_token_id]
    before = prompt if settings.loss == "sequence" else [IGNORED] * len(prompt)
    end = settings.max_length
    return Encoded([*prompt, *answer][:end], [*before, *answer][:end], example.weight)


def pack(rows: Sequence[Encoded], length: int) -> list[Encoded]:
    """Rows joined end to end and cut into blocks of ``length`` tokens (TRL's early packing)."""
    ids = [i for row in rows for i in row.ids]
    labels = [i for row in rows for i in row.labels]
    starts = range(0, len(ids), length)
    return [Encoded(ids[s : s + length], labels[s : s + length], 1.0) for s in starts]


def batches(lengths: Sequence[int], size: int, seed: int) -> list[list[int]]:
    """Shuffled batches of row numbers, rows of like length together.

    Sorting within windows of 50 batches keeps the order random and padding rare.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(lengths))
    window = size * 50
    groups: list[list[int]] = []
    for start in range(0, len(order), window):
        near = sorted(order[start : start + window].tolist(), key=lambda i: -lengths[i])
        groups += [near[i : i + size] for i in range(0, len(near), size)]
    return [groups[i] for i in random.permutation(len(groups))]


class _Plan:
    """Every update of a training, in order: (epoch, forward passes of encoded rows)."""

    def __init__(
        self,
        tokenizer: Any,
        rows: Callable[[int], Sequence[Example]],
        settings: Tuning,
        seed: int,
    ) -> None:
        self.settings, self.seed = settings, seed
        self._tokenizer, self._rows = tokenizer, rows
        first = self._encode(0)
        self.truncated = sum(len(row.ids) == settings.max_length for row in first)
        self.updates = len(self._epoch(0, first)) * settings.epochs

    def _encode(self, epoch: int) -> list[Encoded]:
        return [encode(self._tokenizer, row, self.settings) for row in self._rows(epoch)]

    def _epoch(self, epoch: int, rows: list[Encoded]) -> list[list[list[Encoded]]]:
        rows = pack(rows, self.settings.max_length) if self.settings.packing else rows
        rows = [row for row in rows if any(label != IGNORED for label in row.labels[1:])]
        groups = batches([len(r.ids) for r in rows], self.settings.batch_size, self.seed + epoch)
        filled = [[rows[i] for i in group] for group in groups]
        step = self.settings.accumulation
        return [filled[i : i + step] for i in range(0, len(filled), step)]

    def steps(self, done: int) -> Iterator[tuple[int, list[list[Encoded]]]]:
        """Updates after the first ``done``."""
        number = 0
        for epoch in range(self.settings.epochs):
            for micro in self._epoch(epoch, self._encode(epoch)):
                number += 1
                if number > done:
                    yield epoch, micro


def _update(
    model: Any,
    optimizer: Any,
    trained: list[torch.nn.Parameter],
    micro: list[list[Encoded]],
    loaded: models.Loaded,
    settings: Tuning,
    accelerator: Any,
) -> float:
    """One optimiser step over its forward passes; the loss before the step."""
    import torch

    weight = sum(row.weight * _targets(row) for batch in micro for row in batch)
    total = 0.0
    for number, batch in enumerate(micro, 1):
        last = number == len(micro)
        with contextlib.nullcontext() if last else accelerator.no_sync(model), _cast(loaded):
            loss = batch_loss(model, batch, loaded.tokenizer.pad_token_id, loaded.device) / weight
        accelerator.backward(loss)
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return total


def _targets(row: Encoded) -> int:
    return sum(label != IGNORED for label in row.labels[1:])


def _cast(loaded: models.Loaded) -> contextlib.AbstractContextManager[Any]:
    """Half-precision weights are used as they are; the adapters, in float32, are cast to them."""
    import torch

    if loaded.dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(loaded.device, getattr(torch, loaded.dtype))


def batch_loss(model: Any, rows: Sequence[Encoded], pad: int, device: str) -> Tensor:
    """Weighted sum of the negative log-likelihood of all target tokens (natural log).

    Rows are padded on the left, so that the targets stand at the end of every row and logits
    are needed for that end only.
    """
    import torch

    length = max(len(row.ids) for row in rows)
    keep = max(_span(row) for row in rows) + 1

    def padded(values: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([[fill] * (length - len(v)) + v for v in values], device=device)

    ids = padded([row.ids for row in rows], pad)
    mask = padded([[1] * len(row.ids) for row in rows], 0)
    labels = padded([[IGNORED, *row.labels[1:]] for row in rows], IGNORED)[:, length - keep + 1 :]
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        logits_to_keep=keep,
        use_cache=False,
    )
    counted = labels != IGNORED
    # Only counted positions are widened: the vocabulary makes this the largest array of all.
    nll = torch.nn.functional.cross_entropy(
        output.logits[:, :-1][counted].float(), labels[counted], reduction="none"
    )
    weights = torch.tensor([row.weight for row in rows], device=device)
    return (nll * weights[counted.nonzero()[:, 0]]).sum()


def _span(row: Encoded) -> int:
    """Tokens from the first target to the end of the row."""
    first = next(i for i, label in enumerate(row.labels) if i and label != IGNORED)
    return len(row.labels) - first


def _optimizer(trained: list[torch.nn.Parameter], settings: Tuning) -> Any:
    import torch

    options: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(trained, **options)
    try:
        from bitsandbytes.optim import PagedAdamW32bit
    except ImportError:
        raise UserError(
            "tuning.optimizer=paged_adamw_32bit needs bitsandbytes (pip install 'ethalign[gpu]');"
            " without it use tuning.optimizer=adamw."
        ) from None
    return PagedAdamW32bit(trained, **options)


def _schedule(optimizer: Any, settings: Tuning, updates: int) -> Any:
    from transformers import get_scheduler

    # The authors set a warm-up beside "constant", which ignores it; so does this schedule.
    warm = math.ceil(settings.warmup * updates) if settings.schedule != "constant" else None
    return get_scheduler(
        settings.schedule, optimizer, num_warmup_steps=warm, num_training_steps=updates
    )


def _save(folder: Path, model: Any, optimizer: Any, schedule: Any, step: int) -> None:
    """Adapters, optimiser, schedule and random state, without pickles, whole or not at all."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    state = optimizer.state_dict()["state"]
    tensors = {f"adapter/{k}": v.contiguous() for k, v in get_peft_model_state_dict(model).items()}
    for number, values in state.items():
        for name, value in values.items():
            tensors[f"optimizer/{number}/{name}"] = torch.as_tensor(value).contiguous()
    tensors["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    note = {"step": step, "schedule": schedule.state_dict()}

    def fill(path: Path) -> None:
        path.mkdir()
        save_file(tensors, path / "state.safetensors")
        records.write(path / "state.json", note)

    _replace(folder, fill)


def _restore(folder: Path, model: Any, optimizer: Any, schedule: Any) -> int:
    """Load what ``_save`` wrote; the number of updates already done."""
    import torch
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    tensors = load_file(folder / "state.safetensors")
    note = json.loads((folder / "state.json").read_text())
    parts: dict[str, Any] = {"adapter": {}, "random": {}}
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "optimizer":
            number, _, name = rest.partition("/")
            state.setdefault(int(number), {})[name] = tensor
        else:
            parts[kind][rest] = tensor
    set_peft_model_state_dict(model, parts["adapter"])
    whole = optimizer.state_dict()
    optimizer.load_state_dict({**whole, "state": state})
    schedule.load_state_dict(note["schedule"])
    for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
        group["lr"] = rate
    torch.set_rng_state(parts["random"]["cpu"])
    if "cuda" in parts["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(parts["random"]["cuda"])
    return int(note["step"])


def _replace(target: Path, fill: Callable[[Path], Any]) -> None:
    """Fill a new folder and put it in the place of ``target``.

    Raises:
        UserError: the disk is full; the old folder stays.
    """
    new, old = target.with_name(f"{target.name}.new"), target.with_name(f"{target.name}.old")
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        fill(new)
    except Exception as error:
        shutil.rmtree(new, ignore_errors=True)
        cause = error if isinstance(error, OSError) else OSError(0, str(error))
        raise records.disk_error(cause, target) from error
    if target.is_dir():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
