"""What a run is: a strict, typed configuration, resolved from YAML and hashed.

``configs/<study>/<variant>.yaml`` is laid over the defaults of the study's ``Run``, then the
scale's block of ``configs/<study>/scales.yaml``, then the overrides a person gave on the command
line or to papermill. An unknown key or a wrong type is refused before anything is loaded. The
blocks that several studies have are here; each study adds its own in its ``settings`` module.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import importlib
import json
import os
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

ROOT = Path(__file__).resolve().parents[1]
Json = dict[str, Any]
# What the reader of YAML raises; the last five for odd tags such as an empty !!int.
UNREADABLE = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
# Names of what is never shown.
SECRET = re.compile("(?:KEY|TOKEN|SECRET|PASSW)", re.I)
HOST = r"(?:[\w-]{1,63}\.)*[\w-]{1,63}|\[[\da-f:]+\]"
ADDRESS = re.compile(rf"(?ai)https?://({HOST})(:\d{{1,5}})?(/[\w.~%/+:,=-]*)?")
# Files of configs/<study>/ that are no variant.
NOT_VARIANTS = ("scales", "sources", "reported", "claims", "search")


class UserError(Exception):
    """A user's mistake. The message is one sentence that says what to do, without secrets."""

    def __init__(self, text: str) -> None:
        super().__init__(mask(text))

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows in place of a traceback."""
        return [f"ethalign: {self}"]


def mask(text: str) -> str:
    """Text without the keys and passwords of the environment, and those in addresses."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value.strip()) > 7:
            text = text.replace(value.strip(), "***")
    text = re.sub(r"//[^/\s@]+@", "//***@", text)
    return re.sub(rf"([?&][^=&\s]*{SECRET.pattern}[^=&\s]*=)[^&\s]+", r"\1***", text, flags=re.I)


@functools.cache
def warn(text: str) -> None:
    """Say once what is odd but no mistake."""
    print(f"ethalign: warning: {text}", file=sys.stderr, flush=True)


class Undeclared(RuntimeError):
    """A stage read a setting that it does not declare, so that nobody knows it depends on it."""


class Section(BaseModel):
    """Base of every block: unknown keys are errors, values are never coerced from text."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )
    _owner: str = PrivateAttr("")

    if not TYPE_CHECKING:  # a type checker shall still find misspelt fields

        def __getattr__(self, name: str) -> Any:
            """Only called for what is not there: a setting withheld by ``Run.give``."""
            if name in type(self).model_fields:
                stage, _, prefix = self._owner.partition(":")
                raise Undeclared(
                    f"{stage} reads {prefix}{name}, which it does not declare; add it to the"
                    " stage's `reads` in the study's module."
                )
            return super().__getattr__(name)


class Data(Section):
    """Which rows a run sees."""

    source: Literal["sample", "official"] = Field(
        "sample", description="shipped samples or the papers' files"
    )
    train: str | None = Field(None, description="own CSV to train on, in place of the source")
    test: str | None = Field(None, description="own CSV to test on, in place of the source")
    limit_train: int | None = Field(None, ge=1, description="use this many training rows")
    limit_test: int | None = Field(None, ge=1, description="use this many rows per test set")
    shuffle_labels: bool = Field(False, description="negative control: permute training labels")


class Model(Section):
    """Which causal language model, and how it is held in memory."""

    id: str = Field("smollm2-135m-instruct", description="a packaged name, org/name, or a folder")
    revision: str | None = Field(None, description="commit of a Hub model; recorded if left out")
    sha256: str | None = Field(None, description="expected SHA-256 over the weight files")
    tokenizer: str | None = Field(None, description="tokenizer of another model (Hub id or path)")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="device; auto: the fastest"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="number format of the weights; auto is bfloat16 where it is native"
    )
    quantization: Literal["none", "nf4"] = Field("none", description="nf4 is QLoRA's 4 bits")
    double_quantization: bool = Field(False, description="also quantize the scales of nf4")


class Tuning(Section):
    """LoRA fine-tuning."""

    enabled: bool = Field(True, description="tune at all; false is the model as it is")
    rows: int | None = Field(None, ge=1, description="tune on this many of the training rows")
    epochs: int = Field(2, ge=1, description="passes over the rows")
    lr: float = Field(5.0e-4, gt=0, description="learning rate, at its highest")
    batch_size: int = Field(8, ge=1, description="rows per forward pass")
    accumulation: int = Field(1, ge=1, description="forward passes per update")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="course of the learning rate"
    )
    warmup: float = Field(0.05, ge=0, le=1, description="share of updates with a rising rate")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients longer than this are clipped")
    optimizer: Literal["adamw", "paged_adamw_32bit"] = Field(
        "adamw", description="the optimiser; paged_adamw_32bit needs bitsandbytes"
    )
    max_length: int = Field(512, ge=8, description="tokens per row; longer rows lose their end")
    lora_r: int = Field(16, ge=1, description="rank of the adapters")
    lora_alpha: int = Field(32, ge=1, description="adapters are scaled by lora_alpha / lora_r")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on what the adapters read")
    lora_targets: Literal["all-linear", "default"] = Field(
        "all-linear",
        description="adapted layers; default is PEFT's choice (query and value)",
    )
    loss: Literal["completion", "sequence"] = Field(
        "completion", description="tokens to learn; sequence has those of the prompt as well"
    )
    append_eos: bool = Field(True, description="teach where to stop; false as in some notebooks")
    packing: bool = Field(False, description="join rows into blocks of max_length")
    checkpoint_every: int = Field(20, ge=1, description="save after so many updates")


class Evaluation(Section):
    """Scoring and generating."""

    batch_size: int = Field(16, ge=1, description="items per forward pass")
    bootstrap: int = Field(1000, ge=10, description="bootstrap draws behind an interval")


class Encoder(Section):
    """Fine-tuning of an encoder classifier."""

    encoder: str = Field("minilm-l6", description="encoder: packaged, org/name, or a folder")
    encoder_epochs: int = Field(4, ge=1, description="passes of the encoder over its rows")
    encoder_lr: float = Field(1.0e-4, gt=0, description="learning rate of the encoder")
    encoder_accumulation: int = Field(
        1, ge=1, description="forward passes of the encoder per update"
    )


class Endpoint(Section):
    """An OpenAI-compatible server in the place of a local model."""

    url: str | None = Field(None, description="its address, e.g. http://localhost:8000/v1")
    api: Literal["chat", "completions"] = Field(
        "chat", description="completions: it stands for the run's model, token by token (vLLM)"
    )
    key_env: str = Field("OPENAI_API_KEY", description="environment variable with the key")
    top: int = Field(20, ge=2, le=20, description="log-probabilities asked for per token")
    max_requests: int = Field(6000, ge=1, description="refuse to send more: the guard of costs")
    per_minute: int = Field(600, ge=1, description="send at most so many requests a minute")
    concurrent: int = Field(4, ge=1, le=64, description="requests under way at once")
    timeout: float = Field(60.0, gt=0, description="seconds to wait for an answer")
    retries: int = Field(5, ge=0, description="tries after 429, 5xx, time-outs, broken answers")

    @property
    def server(self) -> Self | None:
        """Itself, if it goes on with texts as a model on this machine would."""
        url, api = self.url, self.api
        return self if url is not None and api == "completions" else None

    @field_validator("url", "key_env")
    @classmethod
    def _no_secret(cls, value: str | None, info: ValidationInfo) -> str | None:
        plain = ADDRESS if info.field_name == "url" else re.compile("[A-Z]+(_[A-Z0-9]+)+")
        if value is None or plain.fullmatch(value):
            return value
        raise ValueError(
            "endpoint.url must be a plain http(s) address without user info or query; name the"
            " environment variable that holds the key, such as MY_KEY, in endpoint.key_env instead"
        )


#: Settings that say which server takes part in a run, and as what.
SERVER = ("endpoint.url", "endpoint.api")
# Settings of a server that change the pace and the cost of a run, but not its result.
PACE = tuple(
    f"endpoint.{key}"
    for key in ("key_env", "max_requests", "per_minute", "concurrent", "timeout", "retries")
)


class Run(Section):
    """One run: study, variant, scale and seed, with every parameter resolved."""

    study: str
    variant: str
    scale: str
    seed: int = Field(0, ge=0, lt=2**32)
    data: Data = Data()
    model: Model = Model()
    tuning: Tuning = Tuning()
    evaluation: Evaluation = Evaluation()
    reported: str | None = Field(
        None, description="own YAML of printed figures, like configs/<study>/reported.yaml"
    )

    @property
    def served(self) -> bool:
        """Does a server stand for the model, so that no weights of it are needed here?"""
        endpoint: Endpoint | None = getattr(self, "endpoint", None)
        return endpoint is not None and endpoint.server is not None

    def values(self, keys: Iterable[str]) -> Json:
        """Dotted keys (of settings or whole blocks) to their values as JSON."""
        dump = self.model_dump(mode="json")
        return {key: at(dump, key) for key in sorted(keys)}

    def give(self, stage: str, keys: Iterable[str]) -> Self:
        """The run as one stage may read it: reading any other setting raises ``Undeclared``."""
        always = ("study", "variant", "scale", "seed")
        return _withhold(self, {*always, *keys}, stage, "")


S = TypeVar("S", bound=Section)


def _withhold(section: S, keys: set[str], stage: str, prefix: str) -> S:
    kept: Json = {}
    for name, value in section.__dict__.items():
        key = f"{prefix}{name}"
        if key in keys:
            kept[name] = value
        elif isinstance(value, Section) and any(k.startswith(f"{key}.") for k in keys):
            kept[name] = _withhold(value, keys, stage, f"{key}.")
    given = section.model_copy()
    given._owner = f"{stage}:{prefix}"
    object.__setattr__(given, "__dict__", kept)
    return given


def digest(content: Any) -> str:
    """First 16 hex digits of the SHA-256 over a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def resolve(
    study: str,
    variant: str,
    scale: str = "tiny",
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """Resolve one run.

    Args:
        study: folder in ``configs/``.
        variant: YAML file there.
        scale: key of its ``scales.yaml``.
        seed: every random draw of the run derives from it.
        overrides: dotted keys to values, e.g. ``{"tuning.lr": 1.0e-4}``; they win.

    Raises:
        UserError: unknown study, variant, scale or key, or a value of the wrong type.
    """
    choose("variant", variant, variants(study))
    choose("scale", scale, scales())
    overlays = read_yaml(ROOT / "configs" / study / "scales.yaml")
    if scale not in overlays:
        known = ", ".join(overlays)
        raise UserError(f"the study {study} has no scale {scale!r}; it has: {known}.")
    if fixed := {"study", "variant", "scale", "seed"} & {*(overrides or {})}:
        raise UserError(f"{min(fixed)} is not set by --set; give it as an option of its own.")
    kind: type[Run] = importlib.import_module(f"ethalign.{study}.study").STUDY.run
    blocks = {name: field.default for name, field in kind.model_fields.items()}
    merged: Json = {k: v.model_dump() for k, v in blocks.items() if isinstance(v, Section)}
    merged |= {"study": study, "variant": variant, "scale": scale, "seed": seed}
    own = read_yaml(ROOT / "configs" / study / f"{variant}.yaml")
    for layer in (own, overlays[scale] or {}, nested(overrides or {})):
        merged = overlay(merged, layer)
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise UserError(explain(error, kind)) from None


def studies() -> list[str]:
    """Studies, by their folders in the package."""
    return sorted(path.parent.name for path in (ROOT / "ethalign").glob("*/study.py"))


def variants(study: str) -> list[str]:
    """Variants of a study, by file name; a UserError if there is no such study."""
    choose("study", study, studies())
    files = (ROOT / "configs" / study).glob("*.yaml")
    return sorted(p.stem for p in files if p.stem not in NOT_VARIANTS)


def scales() -> list[str]:
    """Every scale that some study has, smallest first where the files agree."""
    files = [ROOT / "configs" / study / "scales.yaml" for study in studies()]
    return list(dict.fromkeys(name for path in files for name in read_yaml(path)))


class _Strict(yaml.SafeLoader):
    """YAML in which a key stands once; the last of two would win without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [str(key.value) for key, _ in node.value]
        for name in names if len(names) > len({*names}) else ():
            if names.count(name) > 1:
                said = f"the key {name!r} is there twice"
                raise yaml.MarkedYAMLError(problem=said, problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


@functools.lru_cache(maxsize=64)
def _yaml(path: Path, mtime: int) -> Json:
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), _Strict) or {}
    except UNREADABLE as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path} is not YAML in UTF-8: {said}.") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, not keys with values.")
    return found


def read_yaml(path: Path) -> Json:
    """A YAML mapping, to be read and not changed; an empty file is an empty mapping.

    Raises:
        UserError: a file that is missing, no YAML in UTF-8, no mapping, or has a key twice.
    """
    if not path.is_file():
        raise UserError(
            f"{path} is missing"
            + (
                "; run from a checkout of the project."
                if ROOT / "configs" in path.parents
                else "."
            )
        )
    return _yaml(path, path.stat().st_mtime_ns)


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
        for part in reversed(key.split(".")):
            value = {part: value}
        tree = overlay(tree, value)
    return tree


def at(tree: Json, key: str) -> Any:
    """The value below a dotted key."""
    return functools.reduce(lambda part, name: part[name], key.split("."), tree)


def within(key: str, blocks: Iterable[str]) -> bool:
    """Is a dotted key one of these keys, or below one of them?"""
    return any(f"{key}.".startswith(f"{block}.") for block in blocks)


def parse_setting(text: str) -> tuple[str, Any]:
    """``key=value`` from the command line; the value is read as YAML, and 1e-4 is a number."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise UserError(f"--set {text!r} is not key=value; write for example tuning.lr=1e-4.")
    try:
        parsed = yaml.safe_load(value)
    except UNREADABLE:
        parsed = value
    if isinstance(parsed, str):
        # YAML 1.1 takes 1e-4 for a string; a person means the number.
        with contextlib.suppress(ValueError):
            parsed = float(parsed)
    return key.strip(), parsed


def choose(what: str, name: str, known: list[str]) -> str:
    """``name`` if it is known; else a UserError that names the nearest known one."""
    if name in known:
        return name
    raise UserError(f"unknown {what} {name!r}{nearest(name, known)}")


def nearest(name: str, known: list[str]) -> str:
    """The end of an error message: the nearest known name, or all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}."


M = TypeVar("M", bound=BaseModel)


def checked(kind: type[M], content: Any, where: str) -> M:
    """What a file of another kind than a run's settings holds, by its model.

    Raises:
        UserError: an entry that is missing, unknown or of the wrong type; ``where`` it stands.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "entry"
        raise UserError(f"{where}: {key}: {first['msg']}.") from None


def explain(error: ValidationError, kind: type[Run]) -> str:
    """A pydantic error as one sentence that names the key and the way out."""
    first, known = error.errors()[0], {name: wanted for name, wanted, *_ in parameters(kind)}
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown parameter {key!r}{nearest(key, list(known))}"
    if first["type"] == "value_error":  # what was given is not shown: it may be a secret
        return f"parameter {key} is refused: {first['ctx']['error']}."
    takes = f" (it takes {known[key]})" if key in known else ""
    return f"parameter {key} = {first['input']!r} is refused: {first['msg'].lower()}{takes}."


def parameters(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, Any, str]]:
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
