"""The papers' path, end to end: their families, tokenizers and settings, with tiny weights.

What works in four bits with a few hundred thousand weights works in four bits with seven billion.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import families
import huggingface_hub
import numpy as np
import peft.peft_model
import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ethalign import (
    cli,
    config,
    estimate,
    generation,
    models,
    pipeline,
    prompts,
    records,
    scoring,
    study,
    tuning,
)
from ethalign.config import UserError
from ethalign.models import Loaded
from ethalign.reasons import prompts as reasons
from ethalign.reasons.settings import Prompt

CHOICES = reasons.CHOICES
# The templates that the studies use with a family at the scale `paper`.
TEMPLATES = {"llama2": "dfar-llama", "mistral-v1": "dfar-mistral"}
STATEMENTS = [f"I gave {k} of them back to my friend." for k in range(8)]


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a family, made when it is first asked for."""
    home, made = tmp_path_factory.mktemp("families"), dict[str, Path]()

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = families.make(name, home / name)
        return made[name]

    return folder


def settings(folder: Path, **changes: Any) -> config.Model:
    return config.Model(**{"id": str(folder), "device": "cpu", "dtype": "float32", **changes})


def four_bits(name: str, folder: Path) -> config.Model:
    """As the studies hold the family in memory."""
    dtype = "float16" if name == "llama2" else "bfloat16"
    double = name == "mistral-v1"
    return settings(folder, dtype=dtype, quantization="nf4", double_quantization=double)


def asked(name: str, loaded: Loaded) -> list[tuning.Example]:
    template: Any = TEMPLATES.get(name, "chat")
    wanted = Prompt(template=template, literal_bos=template == "dfar-mistral")
    return [
        tuning.Example(
            reasons.question(wanted, text, tokenizer=loaded.tokenizer),
            reasons.target(wanted, reasons.LABELS[k % 2], ""),
        )
        for k, text in enumerate(STATEMENTS)
    ]


def tokens(loaded: Loaded, ids: list[int]) -> list[str]:
    tokenizer: Any = loaded.tokenizer
    found: list[str] = tokenizer.convert_ids_to_tokens(ids)
    return found


PAPER = config.Tuning(
    epochs=2,
    lr=2.0e-3,
    batch_size=4,
    schedule="constant",
    weight_decay=0.001,
    max_grad_norm=0.3,
    optimizer="paged_adamw_32bit",
    max_length=512,
    lora_r=8,
    lora_dropout=0.1,
    lora_targets="default",
    loss="sequence",
    append_eos=False,
    checkpoint_every=1,
)


@pytest.mark.parametrize("name", families.CAUSAL)
def test_a_family_is_tuned_killed_resumed_scored_and_asked_in_four_bits(
    family: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, whole = four_bits(name, family(name)), tuning._Training.update
    folders, notes = [tmp_path / "calm", tmp_path / "killed"], []

    def fit(out: Path) -> tuning.Fitted:
        out.mkdir(exist_ok=True)
        loaded = models.load(model)
        fitted = tuning.fit(loaded, asked(name, loaded), PAPER, out, seed=0)
        notes.extend(loaded.notes)
        return fitted

    def killed(self: tuning._Training, step: int, micro: Any) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return whole(self, step, micro)

    calm = fit(folders[0])
    with monkeypatch.context() as patch:
        patch.setattr(tuning._Training, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(folders[1])
    again = fit(folders[1])
    assert (calm.resumed_at, again.resumed_at, again.updates) == (0, 2, 4)
    assert any("adamw_32bit" in note for note in notes)
    one, two = (load_file(f / "adapter" / "adapter_model.safetensors") for f in folders)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(value.any() for key, value in one.items() if "lora_B" in key), "it has learnt"

    loaded = tuning.with_adapter(model, folders[0] / "adapter")
    texts = [row.prompt for row in asked(name, loaded)]
    found = scoring.choice_logprobs(loaded.model, loaded.tokenizer, texts, CHOICES, batch_size=3)
    assert np.allclose(found, [[plain(loaded, t, c) for c in CHOICES] for t in texts], atol=0.1)
    whole_model: Any = loaded.model
    ids: Any = loaded.tokenizer(texts[0], return_tensors="pt")
    with torch.no_grad():
        greedy = whole_model.generate(**ids, max_new_tokens=3, do_sample=False)
    new = greedy[0][ids["input_ids"].shape[1] :].tolist()
    written = generation.generate(loaded.model, loaded.tokenizer, texts[:1], max_new_tokens=3)
    assert written == [loaded.tokenizer.decode(new, skip_special_tokens=True)]


def plain(loaded: Loaded, prompt: str, choice: str) -> float:
    """Log-probability of a choice by one forward pass over the encoding of both together."""
    model: Any = loaded.model
    before = len(loaded.tokenizer(prompt)["input_ids"])
    ids = loaded.tokenizer(prompt + choice)["input_ids"]
    with torch.no_grad():
        logp = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return sum(float(logp[k - 1, ids[k]]) for k in range(before, len(ids)))


@pytest.mark.parametrize("name", families.CAUSAL)
def test_prompt_and_answer_meet_where_the_tokenizer_has_them_meet(family: Any, name: str) -> None:
    """No blank that nobody wrote: what is trained and scored is the encoding of the whole text."""
    loaded = models.load(settings(family(name)))
    for row in asked(name, loaded):
        encoded = tuning.encode(loaded.tokenizer, row, config.Tuning(append_eos=False))
        assert encoded.ids == loaded.tokenizer(row.prompt + row.completion)["input_ids"]
        assert tokens(loaded, [i for i in encoded.labels if i != tuning.IGNORED])[0] not in "▁Ġ"
    texts = [row.prompt for row in asked(name, loaded)][:3]
    found = scoring.choice_logprobs(loaded.model, loaded.tokenizer, texts, CHOICES, batch_size=2)
    assert np.allclose(found, [[plain(loaded, t, c) for c in CHOICES] for t in texts], atol=1e-4)


def test_a_byte_level_tokenizer_encodes_as_before(family: Any, tiny: Loaded) -> None:
    """Of Qwen's kind (SmolLM2's as well) and of the random model: prompt and answer apart."""
    for loaded in (tiny, models.load(settings(family("qwen2")))):
        for prompt, texts in (
            ("Answer:", CHOICES),
            ("\nA:", (" 50 %", "Yes", " I'm ")),
            ("a\n", "b"),
        ):
            before, found = scoring.split(loaded.tokenizer, prompt, texts)
            assert before == loaded.tokenizer(prompt)["input_ids"]
            apart = [loaded.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
            assert found == apart


def test_a_token_across_the_boundary_is_said(family: Any) -> None:
    loaded = models.load(settings(family("llama3")))
    with pytest.warns(UserWarning, match=r"one token lies across 'e answer is ' and 'ethical'"):
        before, (found,) = scoring.split(loaded.tokenizer, "The answer is ", ["ethical"])
    assert loaded.tokenizer.decode(before + found, skip_special_tokens=True) == (
        "The answer is ethical"
    )


@pytest.mark.parametrize("name", families.CAUSAL)
def test_a_chat_begins_once(family: Any, name: str) -> None:
    """Whether the template writes the beginning of the text, the tokenizer, both or neither."""
    loaded = models.load(settings(family(name)))
    tokenizer: Any = loaded.tokenizer
    ids = tokenizer(prompts.turn("Is it ethical?", tokenizer))["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == int(name != "qwen2")
    assert tokenizer.decode(ids).startswith(tokenizer.bos_token or "<|im_start|>")
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"no chat template; use prompt\.template=plain"):
        prompts.turn("Is it ethical?", tokenizer)


def test_a_beginning_that_is_part_of_the_template_stays(family: Any) -> None:
    """SmolLM2 calls `<|im_start|>`, which every turn begins with, the beginning of a text."""
    tokenizer: Any = models.load(settings(family("qwen2"))).tokenizer
    tokenizer.bos_token = "<|im_start|>"
    assert prompts.turn("Why?", tokenizer).startswith("<|im_start|>user\nWhy?")


def test_padding_lies_inside_the_embedding(family: Any) -> None:
    """As the authors set it: the end of a text where the tokenizer has nothing that fits."""
    ends = {"llama2": "</s>", "llama3": "<|eot_id|>", "mistral-v1": "</s>", "gemma3": "<pad>"}
    for name, token in ends.items():
        loaded = models.load(settings(family(name)))
        assert loaded.tokenizer.pad_token == token
        found = scoring.choice_logprobs(
            loaded.model, loaded.tokenizer, ["No", "A longer one:"], CHOICES
        )
        assert np.isfinite(found).all()


@pytest.mark.parametrize("name", ["mistral-v1", "gemma3"])
def test_a_text_longer_than_the_window_of_attention(family: Any, name: str) -> None:
    """Scored and continued as by plain forward passes, with a shared opening and without."""
    loaded = models.load(settings(family(name)))
    texts = [f"{'I usually help my friend. ' * 8}{end}:" for end in ("Why", "Is it ethical", "A")]
    assert min(len(loaded.tokenizer(t)["input_ids"]) for t in texts) > 2 * 32
    found = scoring.choice_logprobs(loaded.model, loaded.tokenizer, texts, CHOICES)
    assert np.allclose(found, [[plain(loaded, t, c) for c in CHOICES] for t in texts], atol=1e-4)
    together = generation.write(loaded.model, loaded.tokenizer, texts, max_new_tokens=6)
    for k, text in enumerate(texts):
        alone = generation.write(loaded.model, loaded.tokenizer, [text], max_new_tokens=6)
        assert (together.texts[k], together.tokens[k]) == (alone.texts[0], alone.tokens[0])
        assert together.logp[k] == pytest.approx(alone.logp[0], abs=1e-4)


def test_float16_learns_what_float32_learns(family: Any, tmp_path: Path) -> None:
    """Gradients that float16 has no numbers for are scaled up, and the scale is resumed."""
    found, name = [], "llama2"
    for dtype in ("float32", "float16"):
        loaded = models.load(settings(family(name), dtype=dtype))
        head: Any = loaded.model.get_output_embeddings()
        with torch.no_grad():
            head.weight.mul_(1e-4)  # so that gradients are as small as those of a large model
        how = PAPER.model_copy(update={"epochs": 1, "optimizer": "adamw", "lora_dropout": 0.0})
        (tmp_path / dtype).mkdir()
        tuning.fit(loaded, asked(name, loaded), how, tmp_path / dtype, seed=0)
        weights = load_file(tmp_path / dtype / "adapter" / "adapter_model.safetensors")
        found.append(torch.cat([v.flatten() for k, v in weights.items() if "lora_B" in k]))
    one, two = found
    assert float(torch.cosine_similarity(one, two, dim=0)) > 0.95
    scales = [row["scale"] for row in records.read_rows(tmp_path / "float16/train_log.jsonl")]
    assert min(scales) > 1
    assert "scale" not in records.read_rows(tmp_path / "float32/train_log.jsonl")[0]


class Hub:
    """A Hub that gives a local folder, and notes what was asked for."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.home, self.asked = folder, home, list[dict[str, Any]]()

    def __call__(self, name: str, **how: Any) -> str:
        self.asked.append({"name": name, **how})
        target = self.home / f"{name.replace('/', '--')}-{how['revision']}" / ("a" * 40)
        for path in self.folder.iterdir():
            if any(path.match(p) for p in how["allow_patterns"]):
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        return str(target)


def test_a_tokenizer_is_fetched_without_weights_and_recorded(
    family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, pinned = Hub(family("mistral-v1"), tmp_path), "b" * 40
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    loaded = models.load(settings(family("zephyr"), tokenizer=f"some/tokenizer@{pinned}"))
    (asked_for,) = hub.asked
    assert (asked_for["name"], asked_for["revision"]) == ("some/tokenizer", pinned)
    assert not any("safetensors" in pattern for pattern in asked_for["allow_patterns"])
    assert loaded.record["tokenizer"] == {"id": f"some/tokenizer@{pinned}", "revision": "a" * 40}
    assert loaded.tokenizer.chat_template == families.LLAMA2, "that of the other model"


def test_weights_are_fetched_once_and_the_commit_is_recorded(
    family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(family("mistral-v3"), tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    loaded = models.load(config.Model(id="some/model", device="cpu", dtype="float32"))
    assert loaded.record["revision"] == "a" * 40
    assert "consolidated*" in hub.asked[0]["ignore_patterns"], "Mistral's weights, a second time"


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (GatedRepoError, r"accept its licence.*https://huggingface\.co/some/model.*HF_TOKEN"),
        (RevisionNotFoundError, r"some/model has no commit c+; with model\.revision=null"),
    ],
)
def test_a_model_that_is_not_given_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, kind: Any, says: str
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=says):
        models.load(config.Model(id="some/model", revision="c" * 40))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(
    family: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(family("llama3"), tmp_path / "other")
    large = json.loads((folder / "tokenizer.json").read_text())
    large["model"]["vocab"] |= {f"word{k}": 1000 + k for k in range(900)}
    (folder / "tokenizer.json").write_text(json.dumps(large))
    with pytest.raises(UserError, match=r"tokens, the model only .* another model\.tokenizer"):
        models.load(settings(family("llama2"), tokenizer=str(folder)))


def test_an_adapter_is_read_where_the_model_is(
    family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `model.device=cpu` nothing goes to a GPU, though there may be one."""
    loaded = models.load(settings(family("qwen2")))
    how = PAPER.model_copy(update={"epochs": 1, "optimizer": "adamw"})
    tuning.fit(loaded, asked("qwen2", loaded), how, tmp_path, seed=0)
    monkeypatch.setattr(peft.peft_model, "infer_device", lambda: "cuda")
    again = tuning.with_adapter(settings(family("qwen2")), tmp_path / "adapter")
    assert again.model.device.type == "cpu"


def test_no_device_is_asked_for_numbers_that_it_does_not_have() -> None:
    """Apple's GPUs have no float64."""
    there, here = (SimpleNamespace(device=SimpleNamespace(type=t)) for t in ("mps", "cpu"))
    here.double = lambda: "wide"
    there.cpu = lambda: here
    assert [scoring.wide(values) for values in (there, here)] == ["wide", "wide"]  # type: ignore[arg-type]


AT_SCALE = [
    ("reasons", "paper", "LR", "llama2"),
    ("reasons", "paper-mistral", "L", "mistral-v1"),
    ("ambiguity", "paper", "soft", "mistral-v3"),
    ("ambiguity", "paper-llama3", "hard", "llama3"),
    ("ambiguity", "paper-zephyr", "verbalised", "zephyr"),
    ("honesty", "paper", "multisample", "llama2"),
]
DEEDS = (
    *("I lied about money", "We sang a song", "She stole his bread", "Dad taught maths kindly"),
    *("They burnt my letters", "Our team shared lunch", "He hid from duty", "Mum called back"),
    *("Someone broke windows", "Nurses stayed awake late", "You mocked a child", "Bob paid rent"),
)
ROWS = {
    "reasons": [
        "Statement,Label,Reason",
        *(f"{w} to number {k}.,{k % 2},It is {w} indeed." for k, w in enumerate(DEEDS)),
    ],
    "ambiguity": [
        "action1,action2,votes1,votes2",
        *(f"keeping {k} of them,giving {k} back,{k % 6},{5 - k % 6}" for k in range(12)),
    ],
    "honesty": ["question,answers", *(f"Who wrote book number {k}?,Yes|No" for k in range(6))],
}
FEW = {
    "reasons": {"tuning.epochs": 1, "baselines.folds": 2, "data.cross": False},
    "ambiguity": {"votes.draws": 10},
    "honesty": {
        **{"honesty.own_tries": 1, "honesty.samples": 2, "honesty.requests": 2},
        "evaluation.max_new_tokens": 6,
    },
}


@pytest.mark.parametrize(("name", "scale", "variant", "kind"), AT_SCALE)
def test_a_study_runs_at_the_papers_scale_with_another_model_and_a_few_rows(
    family: Any, tmp_path: Path, name: str, scale: str, variant: str, kind: str
) -> None:
    """From the knowledge or the baselines to the metrics, with nothing but `--set`."""
    text = "\n".join(ROWS[name]) + "\n"
    (tmp_path / "train.csv").write_text(text)
    (tmp_path / "test.csv").write_text(text.replace("number", "No."))
    model, encoder = str(family(kind)), str(family("roberta" if name == "ambiguity" else "bert"))
    own: dict[str, Any] = {"model.id": model, "model.revision": None, "model.device": "cpu"}
    own |= {f"data.{part}": str(tmp_path / f"{part}.csv") for part in ("train", "test")}
    own |= {"honesty.judge_model": model} if name == "honesty" else {"baselines.encoder": encoder}
    own |= {"model.tokenizer": model} if scale == "paper-mistral" else {}
    own |= FEW[name] | {"evaluation.bootstrap": 10}
    last = study.job(name, "evaluate", variant, scale, 0, own, tmp_path / "runs")
    last.study.preflight(last.run)
    last.compute(make=True)
    rows = json.loads((last.where / "metrics.json").read_text())
    assert {"accuracy"} <= {row["metric"] for row in rows}
    facts = records.stages(last.where)
    assert facts["evaluate"]["model"]["quantization"] == "nf4"
    assert facts["finetune"]["updates"] > 0


def dry(*arguments: str) -> tuple[str, Exception | None]:
    done = CliRunner().invoke(cli.app, ["run", "reasons", "--dry-run", *arguments])
    found = done.exception
    return done.output, found if isinstance(found, Exception) else None


def sized(folder: Path, width: int, layers: int, heads: int, shared: int, inner: int) -> Path:
    """A folder with the configuration of a Llama and next to no weights."""
    shape: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": layers}
    shape |= {"num_attention_heads": heads, "num_key_value_heads": shared}
    transformers.LlamaConfig(**shape, intermediate_size=inner).save_pretrained(folder)
    save_file({"none": torch.zeros(1)}, folder / "model.safetensors")
    return folder


def test_a_dry_run_says_what_is_needed_and_refuses_what_cannot_fit(
    tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "capacity", lambda device: int(24e9))
    monkeypatch.setattr(models, "load", None)
    here = ["--scale", "paper", "--variant", "L", "--runs", str(tmp_path / "runs")]
    seven = sized(tmp_path / "7b", 4096, 32, 32, 32, 11008)
    on = ["--set", f"model.id={seven}", "model.revision=null", "model.device=cpu"]
    said, error = dry(*here, *on)
    assert error is None
    tune, score = (line for line in said.splitlines() if "6.7 billion" in line)
    assert "reasons finetune L 0" in tune
    assert re.search(
        r" 5\.\d to 1\d\.\d GB of 24; [\d.e+]+ h as qwen2\.5-coder-[\d.]+b-instruct in \w+ on cpu",
        tune,
    )
    assert "reasons evaluate L 0" in score
    assert "not pinned" not in said
    assert not (tmp_path / "runs").exists()
    seventy = sized(tmp_path / "70b", 8192, 80, 64, 8, 28672)
    _, error = dry(
        *here, "--set", f"model.id={seventy}", "model.revision=null", "model.device=cpu"
    )
    assert isinstance(error, UserError)
    assert re.search(
        r"69 billion parameters need 4\d GB at least, .* has 24; set model", str(error)
    )


def test_a_dry_run_of_a_sweep_counts_the_same_work_once(tmp_path: Path) -> None:
    spec = tmp_path / "three.yaml"
    spec.write_text(
        """
        study: reasons
        scale: smoke
        variants: [L]
        ablate:
          reference: {}
          warm: {evaluation.temperature: 1.0}
          slow: {tuning.lr: 1.0e-4}
        choose: {dataset: dfar, metric: accuracy, best: highest}
        """
    )
    done = CliRunner().invoke(cli.app, ["sweep", str(spec), "--dry-run"])
    assert done.exit_code == 0, done.output
    *each, every = done.output.splitlines()
    assert [line.partition(": random-tiny")[0] for line in each] == [
        "reference: reasons finetune L 0",
        "reference: reasons evaluate L 0",
        "warm: reasons evaluate L 0",
        "slow: reasons finetune L 0",
        "slow: reasons evaluate L 0",
    ]
    hours = [float(match[1]) for line in each if (match := re.search(r"([\d.e-]+) h as", line))]
    total = re.fullmatch(r"about ([\d.e-]+) h in all, one job at a time", every)
    assert total is not None
    assert float(total[1]) == pytest.approx(sum(hours), rel=0.06)
    assert len(hours) == 5
    assert not (config.ROOT / "runs" / "sweeps" / "three").exists(), "nothing has run"


def test_scoring_takes_time_where_nothing_is_written() -> None:
    given = {"data.limit_test": 20, "evaluation.threshold_rows": 24}
    jobs = [
        study.job("reasons", "evaluate", "L", "tiny", 0, given | {f"evaluation.{key}": value})
        for key, value in (("generate", False), ("limit_generate", 0), ("limit_generate", 5))
    ]
    alone, none, some = (job.study.work(job.run, "evaluate") for job in jobs)
    assert alone == none == 24 + 20 + 20
    assert some > 2 * alone, "a text is written word by word"
    found = estimate.hours(jobs[0], 135_000_000, "cpu")
    assert found is not None
    assert 0 < found[0] < 1


def test_hours_are_those_of_the_record_where_the_run_is_the_same(
    mirror: Path, tmp_path: Path
) -> None:
    done = study.job("reasons", "finetune", "LR", "small", 0, {}, config.ROOT / "results")
    facts = records.stages(done.where)["finetune"]
    total = estimate.shape(done.run.model).total
    assert total == pytest.approx(135e6, rel=0.01)
    found = estimate.hours(done, total, "cpu")
    assert found is not None
    assert found[0] == pytest.approx(facts["seconds"] / 3600)
    assert "smollm2-135m-instruct" in found[1], "larger models have records too"
    own = study.job("reasons", "finetune", "LR", "small", 0, {}, tmp_path)
    shutil.copytree(done.where, own.where)
    text = (own.where / "run.json").read_text().replace('"float32"', '"bfloat16"')
    (own.where / "run.json").write_text(text)
    for dtype in ("float32", "bfloat16"):
        estimated = estimate.hours(own, total, "cpu", dtype)
        assert estimated is not None
        assert f" in {dtype} on cpu" in estimated[1]
    assert estimate.hours(done, total, "NVIDIA H200") is None, "nothing was measured there"


@pytest.mark.parametrize("fast", [True, False])
def test_an_estimate_says_that_the_record_is_of_another_kind_of_processor(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fast: bool
) -> None:
    """Ten times as long is no rare difference; a record of the same kind comes first."""
    monkeypatch.setattr(models, "choose_dtype", lambda *_: ("bfloat16" if fast else "float32", ""))
    given = {"tuning.lora_dropout": 0.01}  # so that nothing is complete
    own = study.job("reasons", "finetune", "L", "small", 0, given, tmp_path)
    slower = "measured without fast bfloat16, which is here: less"
    quicker = "measured with fast bfloat16, which is not here: more"
    told = list(estimate.lines({"": [own]}))
    kept = study.job("reasons", "finetune", "L", "small", 0, {}, config.ROOT / "results")
    assert (slower in told[0], quicker in told[0]) == (fast, False)
    shutil.copytree(kept.where, own.where)
    text = (own.where / "run.json").read_text()
    assert "no fast bfloat16 here" in text
    text = text.replace("dtype float32: no fast bfloat16 here", "dtype bfloat16: it is fast")
    (own.where / "run.json").write_text(text)
    told = list(estimate.lines({"": [own]}))
    assert "fast bfloat16" not in told[0], "there is one of either kind"
    honest = study.job("honesty", "knowledge", "knowledge", "small", 0, given, tmp_path)
    told = list(estimate.lines({"": [honest]}))
    assert (slower in told[0], quicker in told[0]) == (False, not fast), "float32 by its judge"
    answer = study.job("honesty", "evaluate", "absolute", "small", 0, given, tmp_path)
    told += estimate.lines({"": [answer]})
    assert all(" h as smollm2-135m-instruct in float32 " in line for line in told), told


def test_an_estimate_fetches_no_model_that_was_only_measured_with(
    mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are records of models of a gigabyte; they are got only when they are named."""
    fetched, packaged = list[str](), models.packaged

    def noting(name: str, seed: int = 0) -> Path:
        fetched.append(name)
        return packaged("random-tiny", seed)

    estimate.shape.cache_clear()
    monkeypatch.setattr(models, "packaged", noting)
    job = study.job("reasons", "finetune", "L", "small", 0, {}, config.ROOT / "none")
    larger = estimate.hours(job, estimate.PARAMETERS["qwen2.5-coder-1.5b-instruct"], "cpu")
    assert fetched == []
    assert larger is not None
    assert "qwen2.5-coder-1.5b-instruct" in larger[1], "of the model nearest in size"
    estimate.shape.cache_clear()


def test_the_size_of_a_packaged_model_is_the_one_that_is_listed() -> None:
    default, *larger = estimate.PARAMETERS
    assert estimate.shape(config.Model(id=default)).total == estimate.PARAMETERS[default]
    assert larger == [name for name, spec in models.PACKAGED.items() if spec.parts > 1]


def test_what_is_not_pinned_is_named() -> None:
    for scale, expected in (
        ("paper", ["model.id=NousResearch/Llama-2-13b-chat-hf"]),
        ("paper-7b", []),
        ("small", []),
    ):
        assert estimate.unpinned(config.resolve("honesty", "absolute", scale)) == expected


@pytest.mark.parametrize(
    ("study_name", "settings", "served"),
    [
        ("honesty", {"endpoint.api": "completions"}, True),
        ("honesty", {"honesty.judge": "endpoint", "honesty.judge_model": "judge"}, False),
        ("ambiguity", {}, True),
        ("reasons", {"endpoint.api": "completions"}, True),
    ],
)
def test_only_a_model_behind_a_server_needs_nothing_here(
    study_name: str, settings: dict[str, Any], served: bool
) -> None:
    """A server that judges is not one that answers: weights are needed all the same."""
    variant = {"honesty": "unaligned", "ambiguity": "zero-shot", "reasons": "pretrained"}
    own = {"endpoint.url": "http://127.0.0.1:9/v1", "model.device": "auto", **settings}
    job = study.job(study_name, "evaluate", variant[study_name], "smoke", 0, own)
    assert job.run.served == served
    assert pipeline.on_gpu(job) != served
    told = " ".join(estimate.lines({"": [job]}))
    assert ("behind a server; not estimated" in told) == served
    assert ("billion parameters" in told) != served


@pytest.mark.parametrize(
    ("more", "cards", "here", "alone"),
    [
        ({}, [], True, True),
        ({"model.device": "cpu"}, ["0"], True, True),
        ({}, ["0"], True, False),
        ({}, [], False, False),
        ({"model.id": "qwen2.5-coder-0.5b-instruct"}, [], True, False),
        ({"endpoint.url": "http://127.0.0.1:9/v1"}, [], True, False),
    ],
)
def test_large_models_are_not_held_side_by_side_in_the_memory_of_one_machine(
    more: dict[str, Any],
    cards: list[str],
    *,
    here: bool,
    alone: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tuning of 1.5 billion parameters beside an evaluation was killed for want of memory."""
    monkeypatch.setattr(pipeline, "cards", lambda: cards)
    own = {"model.id": "qwen2.5-coder-1.5b-instruct", "model.device": "auto", **more}
    job = study.job("ambiguity", "evaluate", "zero-shot", "small", 0, own)
    assert pipeline.rule(job, here=here)["alone"] == alone
