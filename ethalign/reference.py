"""What the reference pages of the book are made of: parameters, faults, speed, models, modules."""

from __future__ import annotations

import json
import re

import pandas as pd

from ethalign import config, models, plots, records, results, study, tables
from ethalign.config import ROOT

FAULTS = ROOT / "tests" / "faults" / "matrix.yaml"
SPEED, GROWTH, TIMES = (
    ROOT / "benchmarks" / f"{name}.json" for name in ("results", "growth", "times")
)
#: Files that these pages tell, beside the package itself.
FILES = (FAULTS, SPEED, GROWTH, TIMES)


def parameter_table() -> str:
    """Every parameter with type, default, meaning and the stages that read it, in Markdown.

    Those that no stage reads are left out.
    """
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for owner in study.everything():
        for name, kind, default, about in config.parameters(owner.run):
            keys = [s.name for s in owner.stages if config.within(name, (*s.reads, *s.handles))]
            if keys:
                shown = "" if default == "" else f"`{json.dumps(default, default=str)}`"
                row = (name, kind, shown, about)
                rows.setdefault(row, []).append(f"{owner.name}: {', '.join(keys)}")
    body = [
        (f"`{name}`", _plain(about), kind, shown, "; ".join(readers))
        for (name, kind, shown, about), readers in sorted(rows.items(), key=lambda r: r[0][0])
    ]
    return tables.markdown(["parameter", "meaning", "type", "default", "read by"], body)


def fault_table() -> str:
    """Every fault that the tests provoke, where it strikes, and what becomes of it."""
    heads = ["what goes wrong", "where", "what happens", "the same in the end"]
    same = {True: "yes", False: "no", None: ""}
    rows = [
        (records.plain(row["fault"]), row["stage"], row["outcome"], same[row["equal"]])
        for row in config.read_yaml(FAULTS).values()
    ]
    return tables.markdown(heads, rows)


def speed_table() -> str:
    """Every recorded benchmark in Markdown: ours, the peer, their ratio with its spread, how."""
    rows = []
    for row in json.loads(SPEED.read_text(encoding="utf-8")):
        spread = "" if row["low"] is None else f" [{row['low']:.2g}, {row['high']:.2g}]"
        sides = (f"{row[side]:.3g} {row['unit']}" for side in ("ours", "peer"))
        rows.append((row["benchmark"], *sides, f"{row['ratio']:.2g}{spread}", row["conditions"]))
    return tables.markdown(["benchmark", "here", "peer", "times better", "conditions"], rows)


def growth() -> str:
    """The figure of how scoring grows, with the ends of each curve in words."""
    table, said = pd.DataFrame(json.loads(GROWTH.read_text(encoding="utf-8"))), []
    for along, part in table.groupby("along", sort=False):
        ends = (
            f"{row['size']:,} in {row['seconds']:.0f} s and {row['memory']:.1f} GB"
            for row in part.iloc[[0, -1]].to_dict("records")
        )
        said.append(f"{along}: {', '.join(ends)}")
    plots.style()
    return plots.svg(plots.growth(table), f"Growth of scoring. {'; '.join(said)}.") + "\n"


def times() -> str:
    """Where the time of a whole book goes, in Markdown: notebooks and seconds of each part."""
    rows = json.loads(TIMES.read_text(encoding="utf-8"))
    told = [(row["part"], row["notebooks"] or "", f"{row['seconds']:,}") for row in rows]
    return tables.markdown(["part", "notebooks", "seconds"], told)


def made(name: str, scale: str = "small") -> str:
    """How the committed runs of a study were made, in Markdown: a row for each way and model.

    The last column has further settings that the scale does not have by itself and that the
    stages of the run read.
    """
    shown = ("model.id", "tuning.epochs", "tuning.lr")
    owner, found = study.find(name), dict[tuple[str, ...], dict[str, list[str]]]()
    for path in sorted((results.RESULTS / name / scale).glob("*/*/*/run.json")):
        model, variant, seed = path.parts[-4:-1]
        record = json.loads(path.read_text(encoding="utf-8"))
        reads = [k for s in owner.stages if s.name in record["stages"] for k in s.reads]
        own = {k: v for k, v in record["set"].items() if config.within(k, reads)}
        told = ", ".join(f"`{k}={json.dumps(v)}`" for k, v in own.items() if k not in shown)
        tuning = config.read_yaml(path.parent / "config.yaml")["tuning"]
        tuned = "finetune" in record["stages"]
        facts = record["stages"].get("finetune", {})
        dtype = next((s["model"]["dtype"] for s in record["stages"].values() if "model" in s), "")
        rows = f"{facts['rows']:,}" if "rows" in facts else ""
        how = [rows, *(f"{tuning[key]:g}" if tuned else "" for key in ("epochs", "lr")), dtype]
        found.setdefault((model, *how, told), {}).setdefault(variant, []).append(seed)
    body = []
    for (model, *how), variants in sorted(found.items(), key=lambda f: records.size_of(f[0][0])):
        known = sorted(variants, key=lambda v: (*owner.order, v).index(v))
        told = "; ".join(f"{tables.word(name, v)} ({len(variants[v])})" for v in known)
        body.append((tables.word(name, model), told, *how))
    heads = ["model", "variant (seeds)", "rows", "epochs", "learning rate", "dtype", "also set"]
    # A column that says nothing of any run takes room from the others.
    kept = [k for k in range(len(heads)) if any(row[k] for row in body)]
    return tables.markdown([heads[k] for k in kept], [[row[k] for k in kept] for row in body])


def packaged_models() -> str:
    """Every packaged model: what was packed, in which packages, and by which hash it is known."""
    told = [
        f"`{name}`\n"
        f": {_plain(spec.about)}\n"
        f": made from `{spec.upstream}`, {spec.licence}\n"
        f": in `{spec.wheel.format(part=f'1…{spec.parts}')}`\n"
        f": SHA-256 of the {'joined file' if spec.parts > 1 else 'wheel'}: `{spec.sha256}`\n"
        for name, spec in models.PACKAGED.items()
        if spec.wheel
    ]
    return "\n".join(told)


def _plain(text: str) -> str:
    """Text with its angle brackets and bars as text, for a cell of a table."""
    return text.replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|")


def api_pages() -> str:
    """Every module with the first sentence of its docstring, then their members by autodoc."""
    table, pages = [], []
    for path in sorted((ROOT / "ethalign").rglob("*.py"), key=lambda p: (len(p.parts), p)):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.stem != "__init__":
            first = re.match(r'"""(.*?)(?:\.\s|\.?\n\n|\.?""")', path.read_text(), re.S)
            about = " ".join(first[1].split()) if first else ""
            about += "." if about and not about.endswith("?") else ""
            table.append((f"{{py:mod}}`{name}`", _plain(about)))
            pages += ["", f"## {name.removeprefix('ethalign.')}", ""]
            pages += ["```{eval-rst}", f".. automodule:: {name}", "```"]
    return tables.markdown(["module", "in a word"], table) + "\n".join(pages) + "\n"
