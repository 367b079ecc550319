"""Every fault of ``matrix.yaml`` is provoked, and its outcome compared with the table."""

from __future__ import annotations

import csv
import errno
import functools
import html
import importlib
import inspect
import json
import math
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import psutil
import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from safetensors.torch import load_file, save_file
from servers import STRANGE, serving

import ethalign
from ethalign import (
    code,
    config,
    data,
    encoders,
    endpoint,
    models,
    pipeline,
    plots,
    records,
    sources,
    study,
    tuning,
)
from ethalign.ambiguity import data as votes
from ethalign.config import UserError
from ethalign.reasons import data as reasons

MATRIX = yaml.safe_load((Path(__file__).parent / "matrix.yaml").read_text())
TINY = config.Model(id="random-tiny", device="cpu", dtype="float32")
RUN = config.resolve("reasons", "L", "smoke")
ROWS = [tuning.Example(f"Row {i}.\nAnswer:", [" ethical", " unethical"][i % 2]) for i in range(8)]
SETTINGS = config.Tuning(epochs=2, batch_size=4, lr=3e-3, lora_r=2, checkpoint_every=1)
ADAPTER, WEIGHTS = "adapter_model.safetensors", "model.safetensors"


class Scene(NamedTuple):
    """Where a fault happens: an empty folder, and one in which nothing has gone wrong."""

    home: Path
    calm: Path
    patch: pytest.MonkeyPatch


Seen = tuple[str, bool | None]


def fit(folder: Path) -> models.Loaded:
    folder.mkdir(exist_ok=True)
    loaded = models.load(TINY)
    tuning.fit(loaded, ROWS, SETTINGS, folder, seed=0)
    return loaded


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with an adapter, and a copy of the model."""
    home = tmp_path_factory.mktemp("calm")
    fit(home)
    shutil.copytree(models.packaged("random-tiny"), home / "model")
    return home


@pytest.mark.parametrize("name", MATRIX)
def test_a_fault_has_the_outcome_that_the_table_says(
    name: str, tmp_path: Path, calm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provoke: Callable[[Scene], Seen] = globals()[name]
    seen = provoke(Scene(tmp_path, calm, monkeypatch))
    assert seen == (MATRIX[name]["outcome"], MATRIX[name]["equal"])


def refused(call: Callable[[], Any], *said: str) -> Seen:
    """The call ends in one sentence that holds all of these words."""
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert all(word in text for word in said), text
    assert "\n" not in text
    return "refused", None


def adapter(scene: Scene, change: Callable[[dict[str, torch.Tensor]], Any], *said: str) -> Seen:
    """An adapter whose tensors were changed is read for evaluation."""
    folder = Path(shutil.copytree(scene.calm / "adapter", scene.home / "adapter"))
    tensors = load_file(folder / ADAPTER)
    change(tensors)
    save_file(tensors, folder / ADAPTER)
    return refused(lambda: tuning.with_adapter(TINY, folder), str(folder), *said)


def adapter_nan(scene: Scene) -> Seen:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        next(iter(tensors.values()))[0, 0] = float("nan")

    return adapter(scene, change, "is not finite")


def adapter_smaller(scene: Scene) -> Seen:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".layers.1." in name]:
            del tensors[name]

    return adapter(scene, change, "the adapter of another model than random-tiny")


def adapter_wider(scene: Scene) -> Seen:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name, value in tensors.items():
            tensors[name] = torch.cat([value, value], dim=int("lora_B" in name)).contiguous()

    return adapter(scene, change, "is damaged")


def adapter_pickled(scene: Scene) -> Seen:
    folder = Path(shutil.copytree(scene.calm / "adapter", scene.home / "adapter"))
    (folder / ADAPTER).rename(folder / "adapter_model.bin")
    scene.patch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was opened"))
    return refused(lambda: tuning.with_adapter(TINY, folder), "pickled weights are not loaded")


def adapter_emptied(scene: Scene) -> Seen:
    folder = Path(shutil.copytree(scene.calm / "adapter", scene.home / "adapter"))
    (folder / "adapter_config.json").write_text("")
    return refused(lambda: tuning.with_adapter(TINY, folder), str(folder), "is damaged")


def model(scene: Scene, change: Callable[[dict[str, torch.Tensor]], Any], *said: str) -> Seen:
    """A folder with a model whose tensors were changed is loaded."""
    folder = Path(shutil.copytree(scene.calm / "model", scene.home / "model"))
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    settings = TINY.model_copy(update={"id": str(folder)})
    return refused(lambda: models.load(settings), str(folder), *said)


def model_lacks_a_tensor(scene: Scene) -> Seen:
    name = "model.layers.1.mlp.up_proj.weight"
    return model(scene, lambda tensors: tensors.pop(name), "1 missing tensors", name)


def model_has_a_tensor_too_many(scene: Scene) -> Seen:
    name = "model.layers.2.mlp.up_proj.weight"
    more = {name: torch.zeros(64, 32)}
    return model(scene, lambda tensors: tensors.update(more), "1 unexpected tensors", name)


def model_nan(scene: Scene) -> Seen:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][3] = float("nan")

    return model(scene, change, "model.norm.weight", "is not finite")


def model_cut(scene: Scene) -> Seen:
    folder = Path(shutil.copytree(scene.calm / "model", scene.home / "model"))
    os.truncate(folder / WEIGHTS, 5000)
    settings = TINY.model_copy(update={"id": str(folder)})
    return refused(lambda: models.load(settings), str(folder), "cannot be loaded")


def _cached(scene: Scene) -> Path:
    """A model in a cache of its own, whose checksum has been noted."""
    scene.patch.setenv("ETHALIGN_CACHE", str(scene.home))
    folder = Path(shutil.copytree(scene.calm / "model", scene.home / "models" / "mine"))
    models.weights_sha256(folder)
    return folder


def model_rots(scene: Scene) -> Seen:
    folder = _cached(scene)
    path = folder / WEIGHTS
    assert list(models.verify()) == [(folder, "")]
    time, content = path.stat().st_mtime_ns, bytearray(path.read_bytes())
    content[-9] ^= 64
    path.write_bytes(content)
    os.utime(path, ns=(time, time))
    sources._sha256.cache_clear()  # as in a new process
    ((where, problem),) = models.verify()
    assert where == folder
    assert "not what they were" in problem
    return "found by verify", None


def hash_note_emptied(scene: Scene) -> Seen:
    folder = _cached(scene)
    first = models.weights_sha256(folder)
    (note,) = (scene.home / "hashes").iterdir()
    for text in ("", "0" * 64, note.read_text()[1:]):
        note.write_text(text)
        if models.weights_sha256(folder) != first:
            return "taken", False
    return "made anew", True


def encoder_lacks_its_head(scene: Scene) -> Seen:
    folder = scene.home / "judge"
    encoders.save(encoders.restore(scene.calm / "model", num_labels=2), folder)
    assert encoders.restore(folder).model.config.num_labels == 2
    tensors = load_file(folder / WEIGHTS)
    del tensors["score.weight"]
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return refused(lambda: encoders.restore(folder), "1 missing tensors, such as score.weight")


def tokenizer_without_an_end(scene: Scene) -> Seen:
    folder = Path(shutil.copytree(scene.calm / "model", scene.home / "model"))
    path = folder / "tokenizer_config.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in kept.items() if k != "eos_token"}))
    settings = TINY.model_copy(update={"id": str(folder)})
    return refused(lambda: models.load(settings), "end-of-sequence", "model.tokenizer")


def checkpoint(scene: Scene, damage: Callable[[Path], Any], said: bool = True) -> Seen:
    """Training is cut off behind its second update, the checkpoint damaged, the run repeated.

    ``said``: the record notes that the checkpoint was damaged.
    """
    keep, saved = tuning._Training.save, []

    def save(work: tuning._Training, step: int) -> None:
        keep(work, step)
        saved.append(step)
        if len(saved) == 2:
            raise KeyboardInterrupt

    folder = scene.home / "run"
    scene.patch.setattr(tuning._Training, "save", save)
    with pytest.raises(KeyboardInterrupt):
        fit(folder)
    damage(folder / "checkpoint")
    loaded = fit(folder)
    same = [(f / "adapter" / ADAPTER).read_bytes() for f in (folder, scene.calm)]
    losses = [
        [(row["step"], row["loss"]) for row in records.read_rows(f / "train_log.jsonl")]
        for f in (folder, scene.calm)
    ]
    began = saved[2:] == [1, 2, 3, 4]
    if (folder / "checkpoint").exists() or not began:
        return "trained on", same[0] == same[1]
    assert any("checkpoint was damaged" in note for note in loaded.notes) == said
    return "made anew", same[0] == same[1] and losses[0] == losses[1]


def checkpoint_tensor(scene: Scene) -> Seen:
    def damage(folder: Path) -> None:
        path = folder / "state.safetensors"
        tensors = load_file(path)
        next(value for name, value in tensors.items() if "lora_A" in name)[0, 0] += 1
        save_file(tensors, path)

    return checkpoint(scene, damage)


def checkpoint_step(scene: Scene) -> Seen:
    def damage(folder: Path) -> None:
        path = folder / "state.json"
        path.write_text(path.read_text().replace('"step": 2', '"step": 3'))

    return checkpoint(scene, damage)


def checkpoint_emptied(scene: Scene) -> Seen:
    def damage(folder: Path) -> None:
        (folder / "state.json").write_text("")

    return checkpoint(scene, damage)


def log_without_a_checkpoint(scene: Scene) -> Seen:
    return checkpoint(scene, lambda folder: shutil.rmtree(folder), said=False)


def _items(count: int) -> list[dict[str, Any]]:
    return [{"id": k} for k in range(count)]


def _work(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**item, "twice": 2 * item["id"]} for item in items]


def _fill(path: Path) -> None:
    records.fill(path, _items(6), _work, keys=["id"], size=2, what="counting")


def compute(run: Any, where: Path, before: dict[str, Path]) -> dict[str, Any]:
    """A stage that fills predictions and leaves an adapter."""
    _fill(where / "predictions.jsonl")
    (where / "adapter").mkdir(exist_ok=True)
    (where / "adapter" / ADAPTER).write_bytes(bytes(range(64)))
    return {}


def measure(run: Any, where: Path, before: dict[str, Path]) -> study.Rows:
    """How many rows there are."""
    rows = records.read_rows(where / "predictions.jsonl")
    return [
        records.row(run, "d", "all", "rows", (len(rows), math.nan, math.nan, len(rows)), "count")
    ]


def job(scene: Scene) -> study.Job:
    """A stage that has run."""
    outputs = ("predictions.jsonl", "adapter", study.METRICS)
    stage = study.Stage("evaluate", ("tuning.lr",), compute, outputs=outputs)
    owner = study.Study("reasons", "Faults", type(RUN), (stage,), measure=measure)
    made = study.Job(owner, stage, RUN, scene.home, (0,), {})
    made.compute()
    assert made.compute() == "keep"
    return made


def again(made: study.Job, name: str, damage: Callable[[Path], Any]) -> Seen:
    """A file of a finished stage is damaged, and the stage asked for again."""
    path = made.where / name
    calm = path.read_bytes()
    damage(path)
    sources._sha256.cache_clear()
    said = {"anew": "made anew", "measure": "measured again", "keep": "kept"}
    return said[made.compute()], path.read_bytes() == calm


def adapter_bit(scene: Scene) -> Seen:
    def damage(path: Path) -> None:
        content, time = bytearray(path.read_bytes()), path.stat().st_mtime_ns
        content[5] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(time, time))

    return again(job(scene), f"adapter/{ADAPTER}", damage)


def predictions_altered(scene: Scene) -> Seen:
    return again(
        job(scene),
        "predictions.jsonl",
        lambda path: path.write_text(path.read_text().replace('"twice": 4', '"twice": 5')),
    )


def metrics_emptied(scene: Scene) -> Seen:
    return again(job(scene), study.METRICS, lambda path: path.write_text(""))


def record_cut(scene: Scene) -> Seen:
    made = job(scene)
    os.truncate(made.where / "run.json", 40)
    return refused(made.compute, "run.json is damaged; delete its folder")


def code_edited(scene: Scene) -> Seen:
    made = job(scene)
    scene.patch.setattr(code, "reach", lambda function: {"ethalign.x": "edited"})
    return "made anew" if made.compute() == "anew" else "kept", None


def predictions_half(scene: Scene) -> Seen:
    path, calm = scene.home / "a.jsonl", scene.home / "b.jsonl"
    _fill(calm)
    whole = calm.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    _fill(path)
    return "resumed", path.read_bytes() == whole


def predictions_null(scene: Scene) -> Seen:
    path = scene.home / "predictions.jsonl"
    path.write_text('{"id": 0, "twice": 0}\nnull\n')
    return refused(lambda: _fill(path), f"{path}, line 2", "delete the file")


def predictions_keyless(scene: Scene) -> Seen:
    path = scene.home / "predictions.jsonl"
    path.write_text('{"id": 0, "twice": 0}\n{}\n')
    return refused(lambda: _fill(path), f"{path}, line 2", "delete the file")


def disk_full(scene: Scene) -> Seen:
    path = scene.home / "predictions.jsonl"
    path.write_text('{"id": 0, "twice": 0}\n')

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    scene.patch.setattr(os, "fsync", full)
    seen = refused(lambda: _fill(path), str(path), "free some space and run again")
    assert records.read_rows(path) == [{"id": 0, "twice": 0}], "nothing half-written"
    return seen


def page_altered(scene: Scene) -> Seen:
    page = _page(scene)
    assert pipeline.intact(page)
    whole = page.read_text()
    for text in ("", whole[:-40], "[]", whole.replace("0.5", "0.6")):
        page.write_text(text)
        if pipeline.intact(page):
            return "kept", None
    return "made anew", None


def page_names_a_place(scene: Scene) -> Seen:
    page = _page(scene)
    assert json.loads(page.read_text())["metadata"]["papermill"] == {"duration": 1.0}
    note = json.loads((scene.calm / "adapter" / "adapter_config.json").read_text())
    assert note["base_model_name_or_path"] == "random-tiny"
    for path in (scene.calm / "adapter").iterdir():
        assert str(sources.cache()).encode() not in path.read_bytes(), path
    for found in pkgutil.walk_packages(ethalign.__path__, "ethalign."):
        for name, value in inspect.getmembers(importlib.import_module(found.name)):
            if inspect.isfunction(value) and value.__module__ == found.name:
                defaults = str(inspect.signature(value))  # the API in the book shows them
                assert str(config.ROOT) not in defaults, f"{found.name}.{name}"
    return ("named" if str(scene.home) in page.read_text() else "left out"), None


def _page(scene: Scene) -> Path:
    """A notebook as papermill leaves it, sealed."""
    page = scene.home / "page.ipynb"
    places = {"input_path": str(page), "output_path": str(page), "duration": 1.0}
    cell = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "0.5"}
    page.write_text(json.dumps({"cells": [cell], "metadata": {"papermill": places}}))
    pipeline.seal(page)
    return page


JOB = """
import subprocess, time
from ethalign import pipeline
pipeline.end_with_parent()
print(subprocess.Popen(["sleep", "60"]).pid, flush=True)
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys
environment = {**os.environ, "ETHALIGN_PARENT": str(os.getpid())}
# A shell in between, as Snakemake has one.
call = f"{sys.executable} -c '" + sys.argv[1] + "'; true"
child = subprocess.Popen(call, shell=True, env=environment)
print(child.pid, flush=True)
child.wait()
"""


def command_killed(scene: Scene) -> Seen:
    call = [sys.executable, "-c", PARENT, JOB.replace("'", '"')]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True, cwd=config.ROOT) as parent:
        assert parent.stdout is not None
        numbers = [int(parent.stdout.readline()) for _ in range(2)]
        tree = psutil.Process(parent.pid).children(recursive=True)
        assert {process.pid for process in tree} >= {*numbers}
        parent.kill()
    _, alive = psutil.wait_procs(tree, timeout=10)
    return "nothing left at work" if not alive else f"{alive} left at work", None


def two_at_once(scene: Scene) -> Seen:
    made, alone = job(scene), records.exclusive
    (made.where / "predictions.jsonl").unlink()
    scene.patch.setattr(records, "exclusive", lambda lock, folder, wait: alone(lock, folder))

    def twice(run: Any, where: Path, before: dict[str, Path]) -> dict[str, Any]:
        made.compute()
        return {}

    stage = made.stage._replace(compute=twice)
    return refused(made._replace(stage=stage).compute, "another run is at work", str(made.where))


def all_refused(calls: Mapping[str, Callable[[], Any]]) -> Seen:
    """Each call ends in a sentence that holds the word that it stands under."""
    return {refused(call, said) for said, call in calls.items()}.pop()


def own(scene: Scene, text: str) -> Callable[[], pd.DataFrame]:
    """A reader of a table of one's own."""
    path = scene.home / f"{len(list(scene.home.iterdir()))}.csv"
    path.write_text(text, encoding="utf-8")
    return lambda: data.load(str(path), source="path")


def table_ragged(scene: Scene) -> Seen:
    head = "Statement,Label,Reason\n"
    return all_refused(
        {
            "row 2: 4 cells": own(scene, f'{head}What said "Goethe", Johann?,1,it\n'),
            "row 3: 4 cells": own(scene, f"{head}I lied.,1,it\nI helped.,0,it,\n"),
            "row 4: 2 cells": own(scene, f"{head}I lied.,1,it\n\nI helped.,0\n"),
            "unexpected end": own(scene, f'{head}"I lied.,1,it\n'),
        }
    )


def table_missing(scene: Scene) -> Seen:
    """A relative path hangs on the project, wherever the command is given."""
    scene.patch.chdir(scene.home)
    both = {"data.train": "none.csv", "data.test": "none.csv"}
    for name, variant in (("reasons", "L"), ("ambiguity", "soft"), ("honesty", "absolute")):
        run = config.resolve(name, variant, "smoke", overrides=both)
        check = functools.partial(study.find(name).preflight, run)
        seen = refused(check, f"{config.ROOT}/none.csv is missing")
    return seen


def table_twice(scene: Scene) -> Seen:
    text = "id,Statement,Label\nx,I lied.,1\nx,I helped.,0\n"
    return refused(own(scene, text), "row 3", "'x' is there twice")


def table_vote(scene: Scene) -> Seen:
    def read(vote: str) -> Callable[[], Any]:
        rows = pd.DataFrame({"id": ["a"], "votes1": [vote], "votes2": ["1"]})
        rows.attrs["path"] = "own.csv"
        return lambda: votes.check(rows)

    calls = {
        f"{vote!r} is not a vote": read(vote) for vote in ("1e30", "-1", "many", "nan", "inf")
    }
    return all_refused(calls)


def table_huge_cell(scene: Scene) -> Seen:
    text = f"Statement,Label\nI lied.,1\n{'x' * 40_000},0\n"
    return refused(own(scene, text), "row 3, column Statement", "10,000 characters")


def table_leaves_nothing(scene: Scene) -> Seen:
    """In every study, before anything is loaded."""

    def check(name: str, variant: str, text: str, **more: str) -> Callable[[], Any]:
        path = scene.home / f"{len(list(scene.home.iterdir()))}"
        path.write_text(text)
        given = {key.replace("__", "."): str(path) for key in more}
        run = config.resolve(name, variant, "smoke", overrides=given)
        return lambda: study.find(name).preflight(run)

    own = {"data__train": "", "data__test": ""}
    pairs = "action1,action2,votes1,votes2\n"
    rows = "Statement,Label\nI lied.,1\nI helped.,0\n"
    return all_refused(
        {
            "every statement of": check("reasons", "pretrained", rows, **own),
            "give data.train others": check("reasons", "L-leak-free", rows, **own),
            "share an action": check("ambiguity", "soft", f"{pairs}a,b,1,2\na,c,2,1\n", **own),
            "too few rows with votes": check("ambiguity", "hard", f"{pairs}a,b,0,0\n", **own),
            "no probed question": check("honesty", "knowledge", "", honesty__probes=""),
        }
    )


def table_one_label(scene: Scene) -> Seen:
    said: list[str] = []
    scene.patch.setattr(reasons, "warn", said.append)
    assert len(own(scene, "Statement,Label\nI lied.,1\nI stole.,1\n")()) == 2
    return ("warned" if "every row is unethical" in said[0] else str(said)), None


def settings_broken(scene: Scene) -> Seen:
    def read(name: str, content: bytes) -> Callable[[], Any]:
        path = scene.home / f"{name}.yaml"
        path.write_bytes(content)
        return lambda: config.read_yaml(path)

    return all_refused(
        {
            "tab.yaml": read("tab", b"a:\n\tb: 1\n"),
            "nul.yaml": read("nul", b"a: \0\n"),
            "tag.yaml": read("tag", b"a: !!python/object/apply:os.getcwd []\n"),
            "holds a list": read("list", b"- a\n"),
            "holds a str": read("scalar", b"a\n"),
            "latin.yaml": read("latin", "a: \xe4\n".encode("latin-1")),
            "the key 'a' is there twice": read("twice", b"a: 1\nb: 2\na: 3\n"),
        }
    )


def load(**overrides: Any) -> Callable[[], Any]:
    """A resolver of settings; ``a__b`` stands for ``a.b``."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return lambda: config.resolve("ambiguity", "zero-shot", "smoke", overrides=dotted)


def settings_escape(scene: Scene) -> Seen:
    return all_refused(
        {
            "scale is not set by --set": load(scale="../../esc"),
            "seed is not set by --set": load(seed=3),
            "variant is not set by --set": load(variant="../x"),
            "study is not set by --set": load(study="x"),
            "unknown scale": lambda: config.resolve("ambiguity", "hard", "../../esc"),
            "unknown variant": lambda: config.resolve("ambiguity", "../hard"),
            "parameter seed": lambda: config.resolve("ambiguity", "hard", "smoke", 2**32),
        }
    )


def settings_absurd(scene: Scene) -> Seen:
    def run(**more: Any) -> Callable[[], Any]:
        return lambda: pipeline.run(["reasons"], scale="smoke", **more)

    return all_refused(
        {
            "--runs '' is no folder": run(runs=""),
            "--runs 'a{b}' is no folder": run(runs="a{b}"),
            "--cores -1 is not a number": run(cores=-1, runs=str(scene.home)),
        }
    )


def settings_infinite(scene: Scene) -> Seen:
    return all_refused(
        {
            "tuning.lr": load(tuning__lr=math.inf),
            "weight_decay": load(tuning__weight_decay=math.nan),
        }
    )


def secret_in_settings(scene: Scene) -> Seen:
    secret = "canary-4711"
    for given in (
        load(endpoint__url=f"https://ann:{secret}@api.example/v1"),
        load(endpoint__url=f"https://api.example/v1?api-key={secret}"),
        load(endpoint__key_env=secret),
    ):
        with pytest.raises(UserError) as caught:
            given()
        if secret in str(caught.value):
            return "shown", None
    return "refused", None


def download(
    scene: Scene, pack: Callable[[Path], Any], name: str = "data.zip"
) -> Callable[[], Any]:
    """A fetch of ``part/wanted.csv`` from an archive; nothing that is wrong is left behind it."""
    number = len(list(scene.home.iterdir()))
    folder = scene.home / str(number)
    folder.mkdir()
    pack(folder / name)
    wanted = sources.Source("http://x.org/x.zip", "0" * 64, f"{number}/wanted.csv", "MIT", "part/")

    def fetch() -> Any:
        scene.patch.setenv("ETHALIGN_CACHE", str(scene.home / "cache"))
        scene.patch.delenv("ETHALIGN_MIRROR", raising=False)
        scene.patch.setattr("pooch.retrieve", lambda *_, **__: str(folder / name))
        try:
            return sources.fetch(wanted)
        finally:
            left = [p for p in (scene.home / "cache").rglob("*") if p.is_file()]
            assert not left, "nothing half-written"
            assert not (folder / name).exists(), "a damaged archive is fetched again"

    return fetch


def _zip(path: Path, name: str = "part/wanted.csv", how: int = zipfile.ZIP_DEFLATED) -> bytearray:
    with zipfile.ZipFile(path, "w", how) as packed:
        packed.writestr(name, "words, words, words\n" * 99)
    return bytearray(path.read_bytes())


def archive_broken(scene: Scene) -> Seen:
    def altered(change: Callable[[bytearray], Any]) -> Callable[[Path], Any]:
        def pack(path: Path) -> None:
            content = _zip(path)
            change(content)
            path.write_bytes(content)

        return pack

    def encrypt(content: bytearray) -> None:
        content[6] |= 1
        content[content.index(b"PK\1\2") + 8] |= 1

    def odd(content: bytearray) -> None:
        content[8] = content[content.index(b"PK\1\2") + 10] = 97

    def corrupt(content: bytearray) -> None:
        content[45] |= 7  # a block of a type that does not exist

    return all_refused(
        {
            "not be unpacked": download(scene, altered(lambda c: c.__delitem__(slice(60, None)))),
            "Error -3": download(scene, altered(corrupt)),
            "encrypted": download(scene, altered(encrypt)),
            "compression": download(scene, altered(odd)),
            "holds no single part/": download(scene, lambda path: _zip(path, "else/wanted.csv")),
        }
    )


def archive_bomb(scene: Scene) -> Seen:
    scene.patch.setattr(sources, "LARGEST", 500)
    return refused(download(scene, _zip), "more than 100,000 files or 500 bytes")


def archive_links(scene: Scene) -> Seen:
    def pack(path: Path) -> None:
        with tarfile.open(path, "w") as packed:
            for name, kind in (("part/wanted.csv", tarfile.SYMTYPE), ("part/b", tarfile.LNKTYPE)):
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, "/etc/passwd"
                packed.addfile(member)

    seen = refused(download(scene, pack, "data.tar"), "holds no single part/")

    def leave(path: Path) -> None:
        _zip(path, "../../part/../../../wanted.csv")

    return seen and refused(download(scene, leave), "holds no single part/")


def cache_not_writable(scene: Scene) -> Seen:
    scene.patch.setenv("ETHALIGN_CACHE", "/dev/null/cache")
    return refused(sources.cache, "/dev/null/cache cannot be written", "ETHALIGN_CACHE")


def server_strange(scene: Scene) -> Seen:
    with serving() as server:
        settings = config.Endpoint(url=server.url, retries=0, timeout=0.5, per_minute=100_000)
        asking = endpoint.Client(settings, "m")
        faults: list[int | str] = [*STRANGE, "drip", "cut", 307]
        for fault in faults:
            server.script = [fault]
            seen = refused(lambda: asking.complete(["a"], 5), server.url, "gave no answer")
    return seen


def server_no_probability(scene: Scene) -> Seen:
    with serving() as server:
        asking = endpoint.Client(config.Endpoint(url=server.url, retries=0), "m")
        for logp in (math.nan, 50.0, math.inf, None, "x"):
            server.top = [("first", -0.5), ("second", logp)]
            seen = refused(
                lambda: asking.answers(["Which?"], ("first", "second")),
                "no valid log-probabilities",
            )
    return seen


MARKERS = (
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "[a](javascript:alert(1)) **b** `c` | d",
    "{{ 7 * 7 }} {% raw %} {term}`x` ::: $x^2$ %matplotlib",
    "a & b &lt;b&gt; # c ~~d~~",
)


def text_as_markup(scene: Scene) -> Seen:
    frame = pd.DataFrame({MARKERS[0]: [*MARKERS], "list": [[text] for text in MARKERS], "n": 1})
    page = plots.texts(frame).to_html()
    shown = [html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", page, re.S)]
    assert shown[::3] == [*MARKERS], "every word of it is there"
    assert not re.findall(r"<(?:img|script|b)\b", page)
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    for text in MARKERS:
        (block,) = [t for t in parser.parse(records.plain(text)) if t.type == "inline"]
        kinds = {part.type for part in block.children or ()}
        assert kinds <= {"text", "text_special"}, (text, kinds)
        assert block.children is not None
        assert "".join(part.content for part in block.children) == text
    for path in (config.ROOT / "notebooks").glob("*/*.ipynb"):
        source = "\n".join(pipeline.code_cells(path))
        assert ".style.hide" not in source, f"{path}: use plots.texts"
        # Figures are drawn here, and what is said of them is escaped.
        assert not re.search(r"HTML\((?!plots\.(?:svg|slider)\(|book\.effects\(\))", source), path
    return "shown as text", None


def text_as_formula(scene: Scene) -> Seen:
    signs = "=+-@\uff1d\uff0b\uff0d\uff20"
    before = ["", " ", "\u200b", "\ufeff", "\0", "'\"", "\t", "x;", "x,\n", "x|\u200b "]
    cells = [f"{start}{sign}cmd|' /C calc'!A0" for start in before for sign in signs]
    records.write(scene.home / "sheet.csv", pd.DataFrame({"=id": cells, "n": -1.5}))
    with (scene.home / "sheet.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    for cell in (head[0], *(row[0] for row in rows)):
        for part in re.split(r"[;,|\t\n]", cell):
            first = re.sub(r"^[^\w'=+\-@\uff1d\uff0b\uff0d\uff20]+", "", part)[:1]
            if first and first in signs:
                return f"{cell!r} is a formula", None
    plain = "Ethical. I helped, as I was asked (a 3-1 vote)."
    assert records.inert(plain) == plain
    assert [row[1] for row in rows] == ["-1.5"] * len(cells), "numbers stay numbers"
    return "shown as text", None
