"""How fast and how large, against what people would use instead.

    pip install -e '.[benchmark]'
    python benchmarks/run.py                  every benchmark
    python benchmarks/run.py import memory    some of them

Both sides of a comparison run alternately, each in a fresh process, with the same model, rows and
batch size. Rows go to ``benchmarks/results.json``; a ratio above 1 means that ours is better, and
its interval spans the repetitions. Times on a busy machine say nothing: leave it alone meanwhile.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ethalign import (
    config,
    generation,
    models,
    records,
    scoring,
    tuning,
)
from ethalign.honesty import data as questions
from ethalign.honesty import prompts as asking
from ethalign.reasons import data, prompts

HERE = Path(__file__).resolve().parent
ROWS, REPEATS = 96, 3


def study() -> config.Run:
    """Labels and reasons at scale tiny: the shipped samples and the packaged model."""
    batch = {"tuning.batch_size": 8, "tuning.accumulation": 1}
    return config.load("reasons", "LR", "tiny", overrides=batch)


def training_rows(run: config.Run) -> list[tuple[str, str]]:
    """Prompts and completions of the first training rows."""
    rows = data.tuned(run).head(ROWS)
    return [
        (
            prompts.question(run.prompt, r["statement"]),
            prompts.target(run.prompt, r["label"], r["reason"]),
        )
        for r in rows.to_dict("records")
    ]


def tune_ours() -> dict[str, Any]:
    """One epoch with `tuning.fit`."""
    run = study()
    loaded = models.load(run.model)
    examples = [tuning.Example(*pair) for pair in training_rows(run)]
    settings = run.tuning.model_copy(update={"epochs": 1, "checkpoint_every": 10_000})
    with tempfile.TemporaryDirectory() as folder:
        clock = time.perf_counter()
        fitted = tuning.fit(loaded, examples, settings, Path(folder), seed=0)
        seconds = time.perf_counter() - clock
        log = records.read_rows(Path(folder) / "train_log.jsonl")
    return {"rate": fitted.tokens / seconds, "losses": [row["loss"] for row in log]}


def tune_trl(dtype: str) -> dict[str, Any]:
    """The same epoch with TRL's SFTTrainer: its own length grouping on, checkpointing off."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    run = study()
    t = run.tuning
    folder, _ = models.locate(run.model, 0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    tokenizer = models.load(run.model).tokenizer
    pairs = training_rows(run)
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
                bf16=True,
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
    found = scoring.choice_logprobs(loaded.model, loaded.tokenizer, asked, choices)
    return {"rate": len(asked) / (time.perf_counter() - clock), "values": found.tolist()}


def score_plain() -> dict[str, Any]:
    """One forward pass for each (prompt, choice), as an evaluation loop is usually written."""
    import torch

    loaded, asked, choices = score_items()
    found = []
    clock = time.perf_counter()
    with torch.inference_mode():
        for prompt in asked:
            row = []
            for choice in choices:
                before = loaded.tokenizer(prompt)["input_ids"]
                answer = loaded.tokenizer(choice, add_special_tokens=False)["input_ids"]
                logits = loaded.model(torch.tensor([before + answer])).logits[0].log_softmax(-1)
                places = range(len(before) - 1, len(before) + len(answer) - 1)
                row.append(sum(float(logits[i, t]) for i, t in zip(places, answer, strict=True)))
            found.append(row)
    return {"rate": len(asked) / (time.perf_counter() - clock), "values": found}


def asked() -> tuple[config.Run, list[str]]:
    """Questions of the honesty study's samples, with the plain prompt."""
    run = config.load("honesty", "unaligned", "tiny", overrides={"data.limit_test": 90})
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


def sample_generate(dtype: str) -> dict[str, Any]:
    """`generate` of transformers, greedy, one question at a time, stopped at the line's end."""
    import torch
    from transformers import AutoModelForCausalLM

    run, texts = asked()
    folder, _ = models.locate(run.model, 0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    tokenizer = models.load(run.model).tokenizer
    tokens = 0
    clock = time.perf_counter()
    for text in texts[:24]:
        batch = tokenizer(text, return_tensors="pt")
        out = model.generate(
            **batch,
            max_new_tokens=run.evaluation.max_new_tokens,
            do_sample=False,
            stop_strings="\n",
            tokenizer=tokenizer,
            pad_token_id=tokenizer.pad_token_id,
        )
        tokens += out.shape[1] - batch["input_ids"].shape[1]
    return {"rate": tokens / (time.perf_counter() - clock), "tokens": tokens / 24}


SIDES: dict[str, Callable[[], dict[str, Any]]] = {
    "tune-ours": tune_ours,
    "tune-trl-bf16": lambda: tune_trl("bfloat16"),
    "tune-trl-fp32": lambda: tune_trl("float32"),
    "score-ours": score_ours,
    "score-plain": score_plain,
    "sample-ours": sample_ours,
    "sample-generate-bf16": lambda: sample_generate("bfloat16"),
    "sample-generate-fp32": lambda: sample_generate("float32"),
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


def tuning_benchmark() -> Any:
    """Training tokens per second against the faster of two ways to call TRL."""
    found = alternate("tune-ours", "tune-trl-bf16", "tune-trl-fp32")
    rates = {side: [one["rate"] for one in runs] for side, runs in found.items()}
    best = max(("tune-trl-bf16", "tune-trl-fp32"), key=lambda s: statistics.median(rates[s]))
    first, last = (
        [statistics.mean(found[side][0]["losses"][part]) for side in ("tune-ours", best)]
        for part in (slice(0, 4), slice(-4, None))
    )
    how = (
        f"LoRA r=16 on all linear layers, {ROWS} rows of the samples with reasons, batch 8, one"
        f" epoch, bf16 autocast; TRL {version('trl')} with group_by_length, completion-only loss,"
        f" {best.rpartition('-')[2]} weights (the faster); mean loss of the first four updates"
        f" {first[0]:.3f} and {first[1]:.3f}, of the last four {last[0]:.3f} and {last[1]:.3f}"
    )
    return compared("tuning-vs-trl", "tokens/s", rates["tune-ours"], rates[best], how)


def scoring_benchmark() -> Any:
    """Scored items per second against one pass for each (prompt, choice)."""
    import numpy as np

    found = alternate("score-ours", "score-plain")
    ours, peer = found["score-ours"], found["score-plain"]
    gap = float(np.abs(np.array(ours[0]["values"]) - np.array(peer[0]["values"])).max())
    how = f"float32, sample test items, choices of 1, 1 and 5 tokens; largest gap {gap:.1e} nats"
    rates = [[one["rate"] for one in side] for side in (ours, peer)]
    return compared("scoring-vs-plain-loop", "items/s", *rates, how)


def sampling_benchmark() -> Any:
    """Sampled tokens per second against one-by-one greedy `generate`; the limit is 6 times."""
    names = ("sample-generate-bf16", "sample-generate-fp32")
    found = alternate("sample-ours", *names)
    rates = {side: [one["rate"] for one in runs] for side, runs in found.items()}
    best = max(names, key=lambda side: statistics.median(rates[side]))
    mean = {side: found[side][0]["tokens"] for side in ("sample-ours", best)}
    how = (
        f"48 sample questions with 10 samples each at temperature 1 in batches of 60 sequences"
        f" ({mean['sample-ours']:.1f} tokens each) against greedy `generate` of"
        f" transformers {version('transformers')} one by one ({mean[best]:.1f} tokens each),"
        f" {best.rpartition('-')[2]} weights (the faster), both stopped at the end of a line"
    )
    return compared("sampling-vs-generate", "tokens/s", rates["sample-ours"], rates[best], how)


def version(name: str) -> str:
    """Installed version of a package."""
    from importlib.metadata import version as installed

    return installed(name)


def timed(*arguments: str) -> float:
    """Seconds of a fresh Python, best of five: the rest is the machine's noise."""
    best = []
    for _ in range(5):
        clock = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
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


def memory_benchmark() -> Any:
    """Largest memory while the book is made at scale tiny, all processes; the limit is 6 GB."""
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, "-m", "ethalign.cli", "book", "--runs", folder]
        clock = time.perf_counter()
        child = subprocess.Popen(call)
        peak = watch(child) / 1e9
        seconds = time.perf_counter() - clock
    if child.returncode:
        raise RuntimeError("the book was not made")
    how = f"every study at tiny and the book, {seconds:.0f} s; unique memory of all processes"
    return row("memory", peak, 6.0, 6 / peak, None, None, "GB", f"{how}; peer: the limit")


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


ALL: dict[str, Callable[[], Any]] = {
    "import": import_benchmark,
    "help": help_benchmark,
    "scoring-vs-plain-loop": scoring_benchmark,
    "tuning-vs-trl": tuning_benchmark,
    "sampling-vs-generate": sampling_benchmark,
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
    for name in sys.argv[1:] or ALL:
        kept[name] = ALL[config.choose("benchmark", name, list(ALL))]()
        print(json.dumps(kept[name], indent=1), flush=True)
        records.write(path, [kept[key] for key in ALL if key in kept])


if __name__ == "__main__":
    main()
