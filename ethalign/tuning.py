"""LoRA and QLoRA fine-tuning of a causal language model on (prompt, completion) pairs.

A plain loop: the memory-hungry logits are computed only where there is a loss, rows of like
length share a batch, and the state is saved often enough to be killed at any moment.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ethalign import models, records, sources
from ethalign.config import Endpoint, Model, Run, Tuning, UserError, digest
from ethalign.scoring import left_pad, logits, read, shared, split

#: The label of a position that does not count in the loss.
IGNORED = -100


class Example(NamedTuple):
    """One row to learn; ``weight`` multiplies its loss.

    Of a soft target ``completion`` has the ``share`` and ``other`` the rest, at the token where
    the two part; what comes before and behind it is learnt as ``completion`` has it.
    """

    prompt: str
    completion: str
    weight: float = 1.0
    other: str = ""
    share: float = 1.0


class Encoded(NamedTuple):
    """Token ids, the same with positions without loss set to ``IGNORED``, and the weight.

    ``soft`` is the place of a second label, that label, and the share of the first.
    """

    ids: list[int]
    labels: list[int]
    weight: float
    soft: tuple[int, int, float] | None = None


class Fitted(NamedTuple):
    """What training did."""

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
    judge: Callable[[models.Loaded], float] | None = None,
) -> Fitted:
    """Fine-tune adapters and save them to ``out/adapter``, on from a checkpoint if there is one.

    The loss of an update is the weighted mean over its target tokens of
    -log p(token | tokens before it); with ``loss: sequence`` the prompt's tokens count as well
    (Beyond Labels trains so; see also its equation in the study's chapter).

    Args:
        loaded: its model is wrapped in place.
        examples: rows, or a function of the epoch that gives its rows (for targets drawn anew).
        out: run folder; gets ``adapter/``, ``train_log.jsonl``, meanwhile ``checkpoint/``.
        seed: draws adapter weights, order of rows and dropout.
        judge: a loss of the model after an epoch, on rows held out of training; the adapter is
            that of the epoch with the least one (``held_out`` in the log), else of the last.

    Raises:
        UserError: no rows, or a loss that is not finite.
    """
    import torch

    def encoded(epoch: int) -> list[Encoded]:
        rows = examples(epoch) if callable(examples) else examples
        return [encode(loaded.tokenizer, row, settings) for row in rows]

    first, length = encoded(0), settings.max_length
    if not first:
        raise UserError("no training rows; check data.train and data.limit_train.")
    updates = len(_updates(first, settings, seed)) * settings.epochs
    if not updates:
        raise UserError(
            f"no row reaches its answer within tuning.max_length={length} tokens; raise it, or"
            " shorten the texts."
        )
    torch.manual_seed(seed)  # before the adapter exists: its weights are drawn on creation
    work = _Training(loaded, settings, out, updates, judge)
    steps = (
        (epoch, micro)
        for epoch in range(settings.epochs)
        for micro in _updates(encoded(epoch), settings, seed + epoch)
    )
    tokens = work.run(itertools.islice(steps, work.done, None))
    truncated = sum(len(row.ids) == length for row in first)
    count = sum(p.numel() for p in work.trained)
    return Fitted(updates, tokens, truncated, count, work.done)


class _Training:
    """What an update changes and a checkpoint holds, from start or checkpoint to the adapter."""

    def __init__(
        self, loaded: models.Loaded, settings: Tuning, out: Path, updates: int, judge: Any
    ) -> None:
        import torch
        from transformers import get_scheduler

        self.judge = judge
        self.loaded, self.settings, self.out, self.updates = loaded, settings, out, updates
        self.checkpoint = out / "checkpoint"
        self.model = adapt(loaded, settings)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer, notes = _optimizer(self.trained, settings, loaded.device)
        loaded.notes.extend(notes)
        # Gradients of float16 vanish below 6e-8: the loss is scaled up, and they down again.
        self.scaler = torch.amp.GradScaler(loaded.device, enabled=loaded.dtype == "float16")
        # The authors set a warm-up beside "constant", which ignores it; so does this schedule.
        warm = math.ceil(settings.warmup * updates) if settings.schedule != "constant" else None
        self.schedule = get_scheduler(settings.schedule, self.optimizer, warm, updates)
        self.done = self.restore() if self.checkpoint.is_dir() else 0

    def run(self, steps: Iterator[tuple[int, list[list[Encoded]]]]) -> int:
        """Do what is left (epoch, forward passes of encoded rows), save; the tokens of all."""
        log = self.out / "train_log.jsonl"
        # The log belongs to the attempt: rows of steps done again would stand there twice.
        earlier = records.read_rows(log)[: self.done]
        records.write(log, "".join(map(records.line, earlier)))
        tokens, pending = sum(row["tokens"] for row in earlier), []
        best = min((row["held_out"] for row in earlier if "held_out" in row), default=math.inf)
        steps = records.progress(steps, self.updates - self.done, "fine-tuning", "update")
        self.model.train()
        for step, (epoch, micro) in enumerate(steps, self.done + 1):
            pending.append({"step": step, "epoch": epoch, **self.update(step, micro)})
            tokens += pending[-1]["tokens"]
            if self.judge and step % (self.updates // self.settings.epochs) == 0:
                self.model.eval()
                pending[-1]["held_out"] = score = self.judge(self.loaded)
                self.model.train()
                if not score >= best:
                    best = score
                    self.keep()
            if step % self.settings.checkpoint_every == 0 or step == self.updates:
                records.append_rows(log, pending)
                pending = []
                self.save(step)
        if not self.judge:
            self.keep()
        shutil.rmtree(self.checkpoint, ignore_errors=True)
        return int(tokens)

    def keep(self) -> None:
        """Write the adapters as they are now."""
        with _replacing(self.out / "adapter") as path:
            self.model.save_pretrained(path)
            # PEFT notes where the base model lies on this machine.
            (path / "README.md").unlink()
            note = json.loads((path / "adapter_config.json").read_text())
            note["base_model_name_or_path"] = self.loaded.record["id"]
            records.write(path / "adapter_config.json", note)

    def update(self, step: int, micro: list[list[Encoded]]) -> dict[str, Any]:
        """One optimiser step over its forward passes; the loss before the step, and facts."""
        import torch

        clock, loaded = time.perf_counter(), self.loaded
        # Half-precision weights are used as they are; the adapters, in float32, are cast to them.
        half = {"dtype": getattr(torch, loaded.dtype), "enabled": loaded.dtype != "float32"}
        weight = sum(row.weight * _targets(row) for batch in micro for row in batch)
        total = 0.0
        for batch in micro:
            with torch.autocast(loaded.device, **half):
                loss = batch_loss(self.model, batch, loaded.tokenizer.pad_token_id, loaded.device)
                loss = loss / weight
            self.scaler.scale(loss).backward()
            total += float(loss.detach())
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.trained, self.settings.max_grad_norm)
        self.scaler.step(self.optimizer)  # not where scaled gradients overflowed
        self.scaler.update()
        self.optimizer.zero_grad()
        if not math.isfinite(total):
            raise UserError(f"the loss is {total} at update {step}; lower tuning.lr.")
        rate = self.schedule.get_last_lr()[0]
        self.schedule.step()
        tokens = sum(len(row.ids) for batch in micro for row in batch)
        seconds = round(time.perf_counter() - clock, 3)
        scale = {"scale": self.scaler.get_scale()} if self.scaler.is_enabled() else {}
        return {"loss": total, "lr": rate, "tokens": tokens, "seconds": seconds, **scale}

    def save(self, step: int) -> None:
        """Adapters, optimiser, schedule and random state, without pickles."""
        import torch
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        state: dict[str, Any] = {"adapter": get_peft_model_state_dict(self.model)}
        state["optimizer"] = self.optimizer.state_dict()["state"]
        state["random"] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["random"]["cuda"] = torch.cuda.get_rng_state()
        leaves = dict(_leaves(state))
        tensors = {k: v.contiguous() for k, v in leaves.items() if isinstance(v, torch.Tensor)}
        note = {"step": step, "schedule": self.schedule.state_dict()}
        note["scaler"] = self.scaler.state_dict()
        note["numbers"] = {k: v for k, v in leaves.items() if k not in tensors}
        with _replacing(self.checkpoint) as path:
            path.mkdir()
            save_file(tensors, path / "state.safetensors")
            note["check"] = digest([note, sources.sha256(path / "state.safetensors")])
            records.write(path / "state.json", note)

    def restore(self) -> int:
        """Load what ``save`` wrote; the number of updates already done, 0 if it is damaged."""
        import torch
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        try:
            note = json.loads((self.checkpoint / "state.json").read_text())
            check = note.pop("check")
            sound = check == digest([note, sources.sha256(self.checkpoint / "state.safetensors")])
        except (OSError, ValueError, LookupError, AttributeError, TypeError, UserError):
            sound = False
        if not sound:
            self.loaded.notes.append("the checkpoint was damaged: training began anew")
            return 0
        tree: dict[str, Any] = {"optimizer": {}}
        for key, value in (
            *load_file(self.checkpoint / "state.safetensors").items(),
            *note["numbers"].items(),
        ):
            *path, name = key.split("/")
            functools.reduce(lambda part, step: part.setdefault(step, {}), path, tree)[name] = (
                value
            )
        random = tree["random"]
        set_peft_model_state_dict(self.model, tree["adapter"])
        state = {int(number): values for number, values in tree["optimizer"].items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.schedule.load_state_dict(note["schedule"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(note["scaler"])
        rates = self.schedule.get_last_lr()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        torch.set_rng_state(random["cpu"])
        if "cuda" in random and torch.cuda.is_available():
            torch.cuda.set_rng_state(random["cuda"])
        return int(note["step"])


def stage(
    run: Run,
    where: Path,
    make: Callable[[Any], Sequence[Example] | Callable[[int], Any]],
    judge: Callable[[models.Loaded], float] | None = None,
    pool: int | None = None,
) -> dict[str, Any]:
    """The fine-tuning stage of a study; facts for its record.

    ``make`` gives, from the tokenizer, rows or a function of the epoch; see ``fit`` for ``judge``.
    ``pool`` is how many rows there were to make them from: fewer than were asked for are told.
    """
    loaded = models.load(run.model, seed=run.seed)
    fitted = fit(loaded, make(loaded.tokenizer), run.tuning, where, seed=run.seed, judge=judge)
    facts = {"tokens": fitted.tokens, "updates": fitted.updates, "trained": fitted.trainable}
    if pool is not None:
        facts["rows"] = pool
        if pool < (run.tuning.rows or 0):
            loaded.notes.append(
                f"{pool} of the {run.tuning.rows} rows asked for: there are no more"
            )
    return {"model": loaded.record, "notes": loaded.notes, **facts, "cut": fitted.truncated}


def adapt(loaded: models.Loaded, settings: Tuning) -> Any:
    """The model with fresh LoRA adapters (PEFT). Seed before calling: weights are drawn here."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    model: Any = loaded.model
    if getattr(model, "is_loaded_in_4bit", False):
        again: dict[str, Any] = {"use_reentrant": False}
        model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs=again)
    shape: dict[str, Any] = {"r": settings.lora_r, "lora_alpha": settings.lora_alpha}
    shape["target_modules"] = None if settings.lora_targets == "default" else "all-linear"
    shape |= {"lora_dropout": settings.lora_dropout, "bias": "none", "task_type": "CAUSAL_LM"}
    return get_peft_model(model, LoraConfig(**shape))


def with_adapter(
    settings: Model, adapter: Path | None, *, seed: int = 0, server: Endpoint | None = None
) -> models.Loaded:
    """A model for evaluation, with an adapter merged in where there is one.

    One that a ``server`` holds is taken as it is (see ``models.load``).

    Merged in float32 and cast afterwards: a small update would vanish in bfloat16 weights.
    """
    if adapter is None:
        return models.load(settings, seed=seed, server=server)
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    sha256 = models.weights_sha256(adapter)  # refuses pickles before anything is opened
    dtype, why = models.choose_dtype(settings.dtype, models.choose_device(settings.device)[0])
    quantized = settings.quantization != "none"
    wide = settings if quantized else settings.model_copy(update={"dtype": "float32"})
    loaded = models.load(wide, seed=seed)
    try:
        # Adapters are read where the model is, which need not be the fastest device there is.
        place: Any = {"torch_device": loaded.device}
        model: Any = PeftModel.from_pretrained(loaded.model, adapter, **place)
        with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
            fits = {*file.keys()} == {
                *get_peft_model_state_dict(model, save_embedding_layers=False)
            }
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError):
        fits = False
    if not fits:
        raise UserError(
            f"{adapter} is damaged or the adapter of another model than {settings.id};"
            f" {models.ANEW}."
        )
    models.finite(model, adapter)
    if not quantized:
        model = model.merge_and_unload().to(getattr(torch, dtype))
        loaded = loaded._replace(notes=[loaded.notes[0], why, "adapter merged in float32"])
    record = {**loaded.record, "dtype": dtype, "adapter": sha256}
    return loaded._replace(model=model.eval(), dtype=dtype, record=record)


def encode(tokenizer: Any, example: Example, settings: Tuning) -> Encoded:
    """Token ids and labels of one row, cut to ``max_length`` at its end.

    Prompt and completion meet where they do at evaluation, see ``scoring.split``.
    """
    prompt, (answer,) = split(tokenizer, example.prompt, [example.completion])
    if settings.append_eos:
        answer = [*answer, tokenizer.eos_token_id]
    before = prompt if settings.loss == "sequence" else [IGNORED] * len(prompt)
    end = settings.max_length
    row = Encoded([*prompt, *answer][:end], [*before, *answer][:end], example.weight)
    if example.share == 1:
        return row
    only = example._replace(completion=example.other, share=1.0)
    both = enumerate(zip(row.labels, encode(tokenizer, only, settings).labels, strict=False))
    parted = ((place, second) for place, (one, second) in both if one != second)
    return row._replace(soft=next(((*at, example.share) for at in parted), None))


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
    order, window = random.permutation(len(lengths)), size * 50
    groups: list[list[int]] = []
    for start in range(0, len(order), window):
        near = sorted(order[start : start + window].tolist(), key=lambda i: -lengths[i])
        groups += [near[i : i + size] for i in range(0, len(near), size)]
    return [groups[i] for i in random.permutation(len(groups))]


def _updates(rows: list[Encoded], settings: Tuning, seed: int) -> list[list[list[Encoded]]]:
    """An epoch's updates in their order, each as its forward passes of encoded rows."""
    rows = pack(rows, settings.max_length) if settings.packing else rows
    rows = [row for row in rows if _targets(row)]
    groups = batches([len(row.ids) for row in rows], settings.batch_size, seed)
    filled, step = [[rows[i] for i in group] for group in groups], settings.accumulation
    return [filled[i : i + step] for i in range(0, len(filled), step)]


def _targets(row: Encoded) -> int:
    return sum(label != IGNORED for label in row.labels[1:])


def batch_loss(model: Any, rows: Sequence[Encoded], pad: int, device: str) -> Any:
    """Weighted sum of the negative log-likelihood of all target tokens (natural log).

    Only the hidden states that predict a target meet the vocabulary, as one matrix (targets,
    width): logits of all positions would be the largest array of all, and a slice of them has
    the head's weights copied for every row. What all rows begin with is read once, forward and
    backward, with one draw of dropout.
    """
    import torch

    opening = _opening(model, rows)
    hidden, *_ = read(model, [row.ids for row in rows], opening, pad, use_cache=False)
    behind = [[IGNORED, *row.labels[len(opening) + 1 :]] for row in rows]
    labels = left_pad(behind, IGNORED, "cpu").ids[:, 1:].to(device)
    counted = labels != IGNORED
    scores = logits(model, hidden[:, :-1][counted]).float()
    nll = torch.nn.functional.cross_entropy(scores, labels[counted], reduction="none")
    weights = torch.tensor([row.weight for row in rows], device=device)
    loss = (nll * weights[counted.nonzero()[:, 0]]).sum()
    for k, row in enumerate(rows):
        if row.soft:
            place, second, share = row.soft
            # Counted from the end, since rows are padded on the left.
            at = counted.flatten()[: (k + 1) * counted.shape[1] + place - len(row.ids)].sum()
            lost = scores[at, labels[k, place - len(row.ids)]] - scores[at, second]
            loss = loss + row.weight * (1 - share) * lost
    return loss


def _opening(model: Any, rows: Sequence[Encoded]) -> list[int]:
    """The tokens that all rows begin with, up to the first that one of them learns."""
    # Checkpointed layers keep no cache.
    if any(getattr(layer, "gradient_checkpointing", False) for layer in model.modules()):
        return []
    ids, labels = [row.ids for row in rows], [row.labels[1:] for row in rows]
    ends = [next(k for k, label in enumerate(row, 1) if label != IGNORED) for row in labels]
    before = [row[:end] for row, end in zip(ids, ends, strict=True)]
    return shared(model, before, max(map(len, ids)) - min(ends))


def _leaves(tree: dict[Any, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """What a nested dict holds, by the path there (bitsandbytes nests the state of AdamW)."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{place}{key}/")
        else:
            yield f"{place}{key}", value


def _optimizer(trained: list[Any], settings: Tuning, device: str) -> tuple[Any, list[str]]:
    """The optimiser, and a note where it is not quite what was asked for."""
    import torch

    options: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(trained, **options), []
    try:
        from bitsandbytes.optim import AdamW32bit, PagedAdamW32bit
    except ImportError:
        raise UserError(
            "tuning.optimizer=paged_adamw_32bit needs bitsandbytes (pip install 'ethalign[gpu]');"
            " without it use tuning.optimizer=adamw."
        ) from None
    if device == "cuda":
        return PagedAdamW32bit(trained, **options), []
    note = f"optimizer adamw_32bit: the same updates; only a GPU has memory to page, {device} not"
    return AdamW32bit(trained, **options), [note]


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A new folder to be filled, which takes the place of ``target`` afterwards.

    Raises:
        UserError: the disk is full; the old folder stays.
    """
    new, old = target.with_name(f"{target.name}.new"), target.with_name(f"{target.name}.old")
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        yield new
    except Exception as error:
        shutil.rmtree(new, ignore_errors=True)
        cause = error if isinstance(error, OSError) else OSError(0, str(error))
        raise records.disk_error(cause, target) from error
    if target.is_dir():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
