"""What a run would need, before a model is loaded: memory by its shape, hours by records."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ethalign import models, records
from ethalign.config import ROOT, Model, Run, UserError, parameters, read_yaml
from ethalign.study import Job

# Of packaged models as they lie in their files, where a head of its own counts: there are records
# of some that are not on this machine, and nobody waits for a gigabyte to read an estimate.
PARAMETERS = {
    "smollm2-135m-instruct": 134_515_008,
    "qwen2.5-coder-0.5b-instruct": 630_167_424,
    "qwen2.5-coder-1.5b-instruct": 1_777_088_000,
}
# Bytes a weight; in four bits with a scale of 4 bytes for 64, or of 1 byte and again 4 for 256.
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
FOUR = {False: 0.5 + 4 / 64, True: 0.5 + (1 + 4 / 256) / 64}
# Intermediate values that one layer keeps for its backward pass, in multiples of its width.
KEPT = 34
# Settings that name a model, and how a name ends that carries its commit.
NAMING, PINNED = ("model.id", "tokenizer", "encoder", "_model"), re.compile(r"@[0-9a-f]{40}$")
# By a processor of the other kind. Two cores multiplied matrices at 1,280 GFLOP/s in bfloat16 with
# AMX, and at 120 to 165 in float32 with AVX2.
OTHER = {
    True: "measured without fast bfloat16, which is here: less",
    False: "measured with fast bfloat16, which is not here: more, up to tenfold",
}
WAY_OUT = "set model.quantization=nf4, choose a smaller model.id, or take a larger machine"


class Shape(NamedTuple):
    """Parameters of a model in all, in its vocabulary and by width; its layers and their cache."""

    total: int
    vocabulary: int
    rows: int
    width: int
    layers: int
    cache: int
    #: Weights of adapters of rank 1, by ``tuning.lora_targets``.
    adapters: dict[str, int]


@functools.lru_cache(maxsize=16)
def shape(settings: Model) -> Shape:
    """Of the model that a block ``model`` names, by its configuration alone (Hub: some kB).

    Raises:
        UserError: a configuration that cannot be had.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    place = models.locate(settings, weights=False)[0]
    config = AutoConfig.from_pretrained(place, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    inner, ends = config.get_text_config(), (model.get_input_embeddings(), model.lm_head)
    heads = getattr(inner, "num_key_value_heads", None) or inner.num_attention_heads
    width = getattr(inner, "head_dim", None) or inner.hidden_size // inner.num_attention_heads
    each = {
        name: m.in_features + m.out_features
        for name, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and m not in ends
    }
    # What PEFT adapts by default in the families of the papers: query and value.
    few = sum(size for name, size in each.items() if name.endswith(("q_proj", "v_proj")))
    return Shape(
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() for p in {id(m.weight): m.weight for m in ends}.values()),
        inner.vocab_size,
        inner.hidden_size,
        inner.num_hidden_layers,
        2 * heads * width,
        {"all-linear": sum(each.values()), "default": few},
    )


def memory(run: Run, found: Shape, dtype: str, *, training: bool) -> tuple[float, float]:
    """Bytes that are needed whatever the rows, and with rows of ``tuning.max_length`` tokens.

    A tenth is added for fragments. In four bits embeddings are tuned in float32, and of what a
    layer computes only its input is kept.
    """
    four, tuning = run.model.quantization == "nf4", run.tuning
    each = FOUR[run.model.double_quantization] if four else BYTES[dtype]
    ends = 4.0 if four and training else BYTES[dtype]
    weights = (found.total - found.vocabulary) * each + found.vocabulary * ends
    if not training:
        places = run.evaluation.batch_size * tuning.max_length
        # Log-probabilities are worked out in float32, with a copy of the head.
        least = weights + found.rows * found.width * 4
        return 1.1 * least, 1.1 * (least + places * found.layers * found.cache * BYTES[dtype])
    places = tuning.batch_size * tuning.max_length
    deep = found.layers + KEPT if four else found.layers * KEPT
    counted = places if tuning.loss == "sequence" else places / 8
    # Of an adapter: weights, gradients and Adam's two moments.
    least = weights + tuning.lora_r * found.adapters[tuning.lora_targets] * 16
    batch = places * deep * found.width * 4 + counted * found.rows * 12
    return 1.1 * least, 1.1 * (least + batch)


def hours(job: Job, total: int, device: str, dtype: str = "") -> tuple[float, str] | None:
    """Hours that a job would take on a device, and by which record; None if nothing was measured.

    By the same stage and variant of one's own runs or of the committed results, if possible by the
    same kind of processor and in the same precision, of the model nearest in size, in proportion
    to rows and parameters.
    """
    found = list[tuple[bool, bool, float, float, str]]()
    rows, fast = job.study.work(job.run, job.stage.name), _fast(device)
    for home in (job.runs, ROOT / "results") if rows else ():
        for path in sorted((home / job.study.name).glob(f"*/*/{job.run.variant}/*/run.json")):
            how = job.study.run, job.study.work, job.stage.name
            then = _measured(*how, path, path.stat().st_mtime_ns)
            if then and _kind(then.device) == device:
                times = total / then.size
                spent = then.seconds / then.rows * rows * times / 3600
                by = f"{then.model} in {then.dtype} on {then.device}"
                other = device == "cpu" and then.fast is not None and then.fast != fast
                by += f", {OTHER[fast]}" if other else ""
                found.append((other, then.dtype != dtype, abs(math.log(times)), spent, by))
    return min(found, key=lambda record: record[:3])[3:] if found else None


class Measured(NamedTuple):
    """How long a stage took: rows of so many parameters, seconds, in what precision, on what.

    ``fast``: some model of the stage was in bfloat16, which is slow where no unit is made for it;
    None where all were asked for in float32, from which nobody can tell.
    """

    size: int
    rows: int
    seconds: float
    model: str
    dtype: str
    device: str
    fast: bool | None


@functools.lru_cache(maxsize=1000)
def _measured(
    kind: type[Run], work: Callable[[Any, str], int], stage: str, path: Path, changed: int
) -> Measured | None:
    """What a ``run.json`` that was ``changed`` last at that time tells; None if nothing."""
    facts = records.stages(path.parent).get(stage, {})
    used = facts.get("model", {})
    if facts.get("status") != "complete" or "device" not in used:
        return None
    then = kind.model_validate(read_yaml(path.parent / "config.yaml"))
    size = _parameters(then.model)
    rows = work(then, stage) if size else 0
    notes = [note for note in facts["notes"] if note.startswith("dtype")]
    chosen = [note.startswith("dtype bfloat16") for note in notes if "float32: as" not in note]
    how = used["id"], used["dtype"], used["device"], any(chosen) if chosen else None
    return Measured(size, rows, facts["seconds"], *how) if rows else None


def _parameters(settings: Model) -> int:
    """Of a model with which something was measured; nothing that is not here is fetched for it.

    0 if that cannot be known: the model of a record need not be on this machine.
    """
    if settings.id in PARAMETERS:
        return PARAMETERS[settings.id]
    try:
        return shape(settings).total
    except UserError:
        return 0


def _fast(device: str) -> bool:
    return models.choose_dtype("auto", device)[0] == "bfloat16"


def _kind(device: str) -> str:
    return device.partition(" (")[0]


def unpinned(run: Run) -> list[str]:
    """Hub models that a run names without their commit, as ``key=value``."""
    keys = [key for key, *_ in parameters(type(run)) if key.endswith(NAMING)]
    found = {key: str(name) for key, name in run.values(keys).items() if name}
    if run.model.revision:
        found["model.id"] += f"@{run.model.revision}"
    return [
        f"{key}={name}"
        for key, name in found.items()
        if "/" in name and not Path(name).is_dir() and not PINNED.search(name)
    ]


def lines(points: Mapping[str, Iterable[Job]]) -> Iterator[str]:
    """What each job would need, a line each, all hours together, and what nobody can promise.

    Args:
        points: jobs by the name of a point of a sweep, or by ``""``. Of work that is the same at
            several points the first does it.

    Raises:
        UserError: a job that does not fit into the memory of this machine; says what to change.
    """
    loose: dict[str, None] = {}
    done, spent = set[tuple[str, str]](), list[float | None]()
    for point, job in ((point, job) for point, jobs in points.items() for job in jobs):
        run, stage = job.run, job.stage
        name = f"{point and f'{point}: '}{job.study.name} {stage.name} {run.variant} {run.seed}"
        loose |= dict.fromkeys(unpinned(run))
        work = stage.name, job.fingerprint()
        if not stage.compute or "model.id" not in stage.models or work in done:
            continue
        done.add(work)
        if job.state() == "keep":
            yield f"{name}: complete"
        elif run.served:
            yield f"{name}: {run.model.id}, behind a server; not estimated"
        else:
            told, time = _needs(job, name)
            spent.append(time)
            yield told
    known = [time for time in spent if time is not None]
    if len(known) > 1:
        unknown = len(spent) - len(known)
        rest = f", and {unknown} more that were not measured" if unknown else ""
        yield f"about {sum(known):.2g} h in all, one job at a time{rest}"
    if loose:
        yield f"not pinned, the newest commit is used and recorded: {', '.join(loose)}"


def _needs(job: Job, name: str) -> tuple[str, float | None]:
    """The line of a job whose model runs on this machine, and its hours if they can be told."""
    run = job.run
    device = models.choose_device(run.model.device)[0]
    dtype, _ = models.choose_dtype(run.model.dtype, device)
    found, here = shape(run.model), models.device_name(device)
    training = "adapter" in job.stage.outputs
    # A study may have its answers in more than the model's own precision.
    asked = run.evaluation.model_dump().get("precision", "model")
    if asked != "model" and not training and run.model.quantization == "none":
        dtype = asked
    least, most = (b / 1e9 for b in memory(run, found, dtype, training=training))
    have = models.capacity(device) / 1e9
    size = f"{run.model.id}, {found.total / 1e9:.2g} billion parameters"
    if least > have:
        needs = f"{least:.0f} GB at least, {here} has {have:.0f}"
        raise UserError(f"{name}: {size} need {needs}; {WAY_OUT}.")
    room = "" if most < have else ", too much for rows of tuning.max_length"
    spent = hours(job, found.total, _kind(here), dtype)
    time = f"{spent[0]:.2g} h as {spent[1]}" if spent else f"not measured on {here}"
    told = f"{name}: {size}, {least:.1f} to {most:.1f} GB of {have:.0f}{room}; {time}"
    return told, spent[0] if spent else None
