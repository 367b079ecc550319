"""What a run is: a strict, typed configuration, resolved from YAML and hashed.

``configs/<study>/<variant>.yaml`` is laid over the defaults below, then the study's block of
``configs/scales.yaml`` for the chosen scale, then the overrides a person gave on the command
line or to papermill. An unknown key or a wrong type is refused before anything is loaded.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import json
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

ROOT = Path(__file__).resolve().parents[1]
Json = dict[str, Any]


class UserError(Exception):
    """A user's mistake. The message is one sentence that says what to do."""


class Section(BaseModel):
    """Base of every block: unknown keys are errors, values are never coerced from text."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Columns(Section):
    """Names of the columns in the user's own CSV."""

    statement: str = "Statement"
    label: str = "Label"
    reason: str = "Reason"


class Data(Section):
    """Which rows a run sees."""

    source: Literal["sample", "official"] = Field(
        "sample", description="shipped samples or the papers' files"
    )
    train: str | None = Field(None, description="own CSV to train on, in place of the source")
    test: str | None = Field(None, description="own CSV to test on, in place of the source")
    columns: Columns = Columns()
    labels: dict[str, Literal["ethical", "unethical"]] = Field(
        {"0": "ethical", "1": "unethical", "ethical": "ethical", "unethical": "unethical"},
        description="label values of the file and what they mean",
    )
    limit_train: int | None = Field(None, ge=1, description="use this many training rows")
    limit_test: int | None = Field(None, ge=1, description="use this many rows per test set")
    cross: bool = Field(True, description="also test on ETHOS (or the sample comments)")
    repair_encoding: bool = Field(True, description="mend the test file's double encoding")
    shuffle_labels: bool = Field(False, description="negative control: permute training labels")


class Model(Section):
    """Which causal language model, and how it is held in memory."""

    id: str = Field("smollm2-135m-instruct", description="packaged name, org/name, or a folder")
    revision: str | None = Field(None, description="commit of a Hub model; recorded if left out")
    sha256: str | None = Field(None, description="expected SHA-256 over the weight files")
    tokenizer: str | None = Field(None, description="tokenizer of another model (Hub id or path)")
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["none", "nf4"] = Field("none", description="nf4 = QLoRA's 4 bits")
    double_quantization: bool = False


class Prompt(Section):
    """How an item is put to the model."""

    template: Literal["plain", "chat", "dfar-llama", "dfar-mistral"] = "plain"
    target: Literal["label", "label-reason", "reason-label"] = "label"
    literal_bos: bool = Field(False, description="write <s> into the text (Mistral notebooks)")


class Tuning(Section):
    """LoRA fine-tuning."""

    enabled: bool = Field(True, description="false for the model as it is")
    rows: int | None = Field(None, ge=1, description="tune on this many of the training rows")
    epochs: int = Field(2, ge=1)
    lr: float = Field(5.0e-4, gt=0)
    batch_size: int = Field(8, ge=1, description="rows per forward pass")
    accumulation: int = Field(1, ge=1, description="forward passes per update")
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: float = Field(0.05, ge=0, le=1, description="share of updates")
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    optimizer: Literal["adamw", "paged_adamw_32bit"] = "adamw"
    max_length: int = Field(512, ge=8, description="tokens per row; longer rows lose their end")
    lora_r: int = Field(16, ge=1)
    lora_alpha: int = Field(32, ge=1)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_targets: Literal["all-linear", "default"] = Field(
        "all-linear", description="default = PEFT's own choice (query and value)"
    )
    loss: Literal["completion", "sequence"] = Field(
        "completion", description="sequence also trains on prompt tokens, as the papers did"
    )
    append_eos: bool = Field(True, description="false: the model never learns to stop")
    packing: bool = Field(False, description="join rows into blocks of max_length")
    checkpoint_every: int = Field(20, ge=1, description="updates between checkpoints")


class Evaluation(Section):
    """Scoring and generating."""

    batch_size: int = Field(16, ge=1)
    max_new_tokens: int = Field(64, ge=1, description="for a reason")
    temperature: float = Field(0.0, ge=0, description="0 is greedy")
    generate: bool = Field(True, description="false: log-probabilities only")
    limit_generate: int | None = Field(None, ge=0, description="write answers for this many items")
    bootstrap: int = Field(1000, ge=10, description="draws for intervals")
    precision: Literal["model", "float32"] = Field(
        "model", description="honesty: float32 keeps greedy answers free of what shares a batch"
    )


class Baselines(Section):
    """Classifiers, the encoder and the learned judge."""

    folds: int = Field(10, ge=2, description="folds of the ETHOS protocol")
    encoder: str = Field("minilm-l6", description="encoder of the classifier and the judge")
    encoder_epochs: int = Field(4, ge=1)
    encoder_lr: float = Field(1.0e-4, gt=0)
    encoder_batch_size: int = Field(16, ge=1)
    encoder_weight_decay: float = Field(0.01, ge=0)
    encoder_warmup: float = Field(0.1, ge=0, le=1, description="share of updates")
    encoder_trials: int = Field(
        0, ge=0, description="ambiguity: try this many draws from configs/search.yaml; 0 for none"
    )
    judge_epochs: int = Field(3, ge=1)
    judge_rows: int | None = Field(None, ge=8, description="training statements for the judge")


class Votes(Section):
    """The ambiguity study: whose votes, how they are asked for, and what a model learns."""

    dataset: Literal["dilemmas", "anecdotes"] = "dilemmas"
    split: Literal["dev", "train", "excerpt"] = Field(
        "dev", description="official rows to train on; excerpt = the 60 anecdotes that are small"
    )
    held_out: float = Field(
        0.2, gt=0, lt=1, description="share of training rows kept to fit temperatures on"
    )
    answers: Literal["words", "letters", "yes-no"] = Field(
        "words", description="first/second (right/wrong), A/B, or Yes/No"
    )
    target: Literal["hard", "sampled", "soft", "verbalised"] = Field(
        "hard", description="majority, one vote an epoch, all votes by weight, or a written share"
    )
    max_words: int = Field(250, ge=10, description="of a story; the rest is cut off")
    draws: int = Field(1000, ge=10, description="posterior draws of the best possible scores")
    bins: int = Field(10, ge=1, description="of reliability diagrams")


class Honesty(Section):
    """The honesty study: what is asked, what a model learns to say, and who judges answers."""

    method: Literal[
        "unaligned",
        "prompt-based",
        "fine-tuned",
        "absolute",
        "confidence-num",
        "confidence-verb",
        "multisample",
    ] = Field("unaligned", description="the paper's names")
    pool: int | None = Field(None, ge=2, description="ask this many training questions")
    samples: int = Field(10, ge=1, description="answers drawn per question, the paper's m")
    temperature: float = Field(1.0, gt=0, description="of the drawn answers")
    tau: float = Field(0.1, ge=0, le=1, description="absolute: least share of a known question")
    behaviour: Literal["code", "paper"] = Field("code", description="where the two differ")
    sentence: Literal["code", "paper"] = Field("code", description="how not knowing is said")
    judge: Literal["string", "model", "endpoint"] = Field(
        "string", description="of right answers; beside string match a model in two steps"
    )
    judge_model: str = Field("smollm2-135m-instruct", description="id of the judging model")
    consistent: float = Field(0.7, ge=0, le=1, description="judge: a right answer scores above")
    judged: int = Field(24, ge=0, description="compare judges on this many answers")
    own_questions: int = Field(24, ge=0, description="PKQA of the own model: keep at most")
    own_tries: int = Field(4, ge=1, description="PKQA of the own model: questions per topic")
    limits: dict[str, int] = Field({}, description="test questions by set, over data.limit_test")
    form: int = Field(24, ge=0, description="questions that are put in other forms as well")
    requests: int = Field(30, ge=0, description="requests for help, to see what honesty costs")


class Endpoint(Section):
    """An OpenAI-compatible server in the place of a local model."""

    url: str | None = Field(None, description="base URL, e.g. http://localhost:8000/v1")
    key_env: str = Field("OPENAI_API_KEY", description="environment variable with the key")
    top: int = Field(20, ge=2, le=20, description="log-probabilities asked for per token")
    max_requests: int = Field(6000, ge=1, description="refuse to send more: the guard of costs")
    per_minute: int = Field(600, ge=1, description="requests a minute")
    timeout: float = Field(60.0, gt=0, description="seconds to wait for an answer")
    retries: int = Field(5, ge=0, description="after 429, 5xx, time-outs and broken answers")
    wait: float = Field(1.0, ge=0, description="seconds, the first pause before a retry")


class Run(Section):
    """One run: study, variant, scale and seed, with every parameter resolved."""

    study: Literal["ambiguity", "honesty", "reasons"]
    variant: str
    scale: str
    seed: int = Field(0, ge=0)
    data: Data = Data()
    model: Model = Model()
    prompt: Prompt = Prompt()
    tuning: Tuning = Tuning()
    evaluation: Evaluation = Evaluation()
    baselines: Baselines = Baselines()
    votes: Votes = Votes()
    honesty: Honesty = Honesty()
    endpoint: Endpoint = Endpoint()

    def hash(self, *keys: str) -> str:
        """First 16 hex digits of SHA-256 over the named blocks or dotted keys (default all)."""
        dump = self.model_dump(mode="json")
        kept = {key: functools.reduce(lambda d, k: d[k], key.split("."), dump) for key in keys}
        return digest(kept or dump)

    def depends(self, stage: str) -> str:
        """Hash of everything in the configuration that a stage's result depends on."""
        keys = [key for key in DEPENDS[stage] if owned(key, self.study)]
        return self.hash("study", "variant", "seed", *keys)


def digest(settings: Mapping[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 of settings as sorted JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


# The first stage, on which the variants build: it holds everything but their language models, or
# what the model knew before it was tuned.
BASE = {"ambiguity": "ceiling", "honesty": "knowledge", "reasons": "baselines"}
# Studies whose tuning needs the first stage, and variants that others are set against.
TAUGHT = ("honesty",)
BEFORE = {"honesty": "unaligned"}
# Blocks that some studies read and the others refuse.
ONLY = {"endpoint": ("ambiguity", "honesty"), "honesty": ("honesty",), "votes": ("ambiguity",)}
_TRAIN = "source train columns labels limit_train repair_encoding shuffle_labels"
_ASKED = tuple(
    f"honesty.{key}"
    for key in "pool samples temperature judge judge_model consistent judged".split()  # noqa: SIM905
)
_TAUGHT = tuple(f"honesty.{key}" for key in ("method", "tau", "behaviour", "sentence"))
_OTHER = ("votes", "endpoint")
# What each stage reads, without blocks of other studies. A change elsewhere runs nothing.
DEPENDS: dict[str, tuple[str, ...]] = {
    "explore": ("data", *_OTHER),
    "baselines": ("data", "baselines", "evaluation.bootstrap"),
    "ceiling": ("data", "baselines", "evaluation.bootstrap", *_OTHER),
    "knowledge": (
        *(f"data.{key}" for key in ("source", "train", "limit_train")),
        "model",
        "prompt",
        "evaluation",
        "tuning.rows",
        "honesty.own_questions",
        "honesty.own_tries",
        *_ASKED,
        "endpoint",
    ),
    "finetune": (
        *(f"data.{key}" for key in _TRAIN.split()),
        "model",
        "prompt",
        "tuning",
        *_TAUGHT,
        *_OTHER,
    ),
    "evaluate": (
        "data",
        "model",
        "prompt",
        "evaluation",
        "tuning.enabled",
        "tuning.rows",
        *(f"honesty.{key}" for key in ("method", "judge", "judge_model", "consistent")),
        *(f"honesty.{key}" for key in ("limits", "form", "requests")),
        *_OTHER,
    ),
    "results": ("data", "evaluation.bootstrap", *_OTHER),
}


def owned(key: str, study: str) -> bool:
    """Does a study read this dotted key?"""
    return study in ONLY.get(key.partition(".")[0], (study,))


def load(
    study: str,
    variant: str,
    scale: str = "tiny",
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """Resolve one run.

    Args:
        study: folder under ``configs/``.
        variant: YAML file in that folder, without its ending.
        scale: key of ``configs/scales.yaml``.
        seed: every random draw of the run derives from it.
        overrides: dotted keys to values, e.g. ``{"tuning.lr": 1.0e-4}``; they win.

    Raises:
        UserError: unknown study, variant, scale or key, or a value of the wrong type.
    """
    choose("study", study, studies())
    choose("variant", variant, variants(study))
    overlays = read_yaml(ROOT / "configs" / "scales.yaml")
    choose("scale", scale, list(overlays))
    for key in overrides or {}:
        if not owned(key, study):
            owners = " or ".join(ONLY[key.partition(".")[0]])
            raise UserError(f"parameter {key} belongs to the study {owners}, not to {study}.")
    merged: Json = {"study": study, "variant": variant, "scale": scale, "seed": seed}
    # A file's own label values come on top of the default ones; nothing is forgotten.
    merged["data"] = {"labels": Data().labels}
    for layer in (
        read_yaml(ROOT / "configs" / study / f"{variant}.yaml"),
        overlays[scale].get(study) or {},
        nested(overrides or {}),
    ):
        merged = overlay(merged, layer)
    try:
        return Run.model_validate(merged)
    except ValidationError as error:
        raise UserError(explain(error)) from None


def studies() -> list[str]:
    """Studies that have configurations."""
    return sorted(p.name for p in (ROOT / "configs").iterdir() if p.is_dir())


def variants(study: str) -> list[str]:
    """Variants of a study, by file name.

    Raises:
        UserError: an unknown study.
    """
    choose("study", study, studies())
    return sorted(p.stem for p in (ROOT / "configs" / study).glob("*.yaml"))


def scales() -> list[str]:
    """Scales, from smallest to largest as the file lists them."""
    return list(read_yaml(ROOT / "configs" / "scales.yaml"))


@functools.lru_cache(maxsize=64)
def _yaml_text(path: Path, mtime: int) -> str:
    return path.read_text(encoding="utf-8")


def read_yaml(path: Path) -> Json:
    """A YAML mapping; an empty file is an empty mapping."""
    if not path.is_file():
        raise UserError(f"{path} is missing; run from a checkout of the project.")
    return yaml.safe_load(_yaml_text(path, path.stat().st_mtime_ns)) or {}


def overlay(base: Json, top: Mapping[str, Any]) -> Json:
    """``top`` laid over ``base``: mappings merge, everything else is replaced."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        both = isinstance(below, dict) and isinstance(value, Mapping)
        merged[key] = overlay(below or {}, value) if both else value
    return merged


def nested(dotted: Mapping[str, Any]) -> Json:
    """``{"tuning.lr": 1e-4}`` as ``{"tuning": {"lr": 1e-4}}``."""
    tree: Json = {}
    for key, value in dotted.items():
        head, *rest = reversed(key.split("."))
        branch: Json = {head: value}
        for part in rest:
            branch = {part: branch}
        tree = overlay(tree, branch)
    return tree


def parse_setting(text: str) -> tuple[str, Any]:
    """``key=value`` from the command line; the value is read as YAML, and 1e-4 is a number."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise UserError(f"--set {text!r} is not key=value; write for example tuning.lr=1e-4.")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        parsed = value
    if isinstance(parsed, str):
        # YAML 1.1 takes 1e-4 for a string; a person means the number.
        with contextlib.suppress(ValueError):
            parsed = float(parsed)
    return key.strip(), parsed


def choose(what: str, name: str, known: list[str]) -> str:
    """``name`` if it is known.

    Raises:
        UserError: it is not; the message names the nearest known one.
    """
    if name in known:
        return name
    raise UserError(f"unknown {what} {name!r}{nearest(name, known)}")


def nearest(name: str, known: list[str]) -> str:
    """The end of an error message: the nearest known name, or all of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.45)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}."


def explain(error: ValidationError) -> str:
    """A pydantic error as one sentence that names the key and the way out."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = [name for name, *_ in parameters()]
        return f"unknown parameter {key!r}{nearest(key, known)}"
    wanted = {name: kind for name, kind, *_ in parameters()}.get(key, "")
    kind = f" (it takes {wanted})" if wanted else ""
    return f"parameter {key} = {first['input']!r} is refused: {first['msg'].lower()}{kind}."


def parameters(
    model: type[BaseModel] = Run, prefix: str = ""
) -> Iterator[tuple[str, str, Any, str]]:
    """Every parameter as (dotted key, type, default, description), in order."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from parameters(field.annotation, f"{prefix}{name}.")
        else:
            default = "" if field.is_required() else field.default
            yield f"{prefix}{name}", _kind(field.annotation), default, field.description or ""


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(str(a) for a in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_kind(a) for a in get_args(annotation)).replace("NoneType", "null")
    return annotation.__name__ if isinstance(annotation, type) else "mapping of values"
