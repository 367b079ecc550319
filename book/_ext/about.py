"""What stands at the end of every page, and in its head: what was run, how to cite it, its files.

The run is that of the page's own notebook where it has one; else the committed reference runs of
its study. Scholar and Open Graph tags say the same to machines.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from ethalign import config, records, results
from ethalign.config import ROOT

# What the theme's templates leave to be desired, and what to put there; none matches twice.
FOCUSABLE = ' tabindex="0" role="group" aria-label="Table"'
THEME = [
    (r'<summary>(?=<span class="toctree-toggle)', '<summary aria-label="Pages below">'),
    (r'<summary aria-label="Toggle hidden content">', "<summary>"),
    (r'(<i class="theme-switch [^>]*?)\s+title="[^"]*"', r"\1"),
    (r'<div role="list" class="citation-list">', '<div class="citation-list">'),
    (r'(search-button-field[^>]*?) aria-label="Search"', r"\1"),
    (r'(<div class="(?:pst-scrollable-table-container|output text_html)")>', rf"\1{FOCUSABLE}>"),
]
# The parameters of a long signature: a list of definitions without a term.
SIGNATURE = re.compile(r'<dl>(\s*<dd><em class="sig-param">.*?)</dl>', re.DOTALL)
PLAIN_HEAD = re.compile(r"<th\b((?:(?!scope=)[^>])*)>")
# Names of columns in one row of a table's head and names of what a row stands for in the next.
_BLANK, _NAMED = r"((?:\s*<th[^>]*></th>)+)", r"((?:\s*<th[^>]*>[^<]+</th>)+)"
TWO_HEADS = re.compile(rf"<tr[^>]*>{_BLANK}{_NAMED}\s*</tr>\s*<tr>{_NAMED}{_BLANK}\s*</tr>")
# A cell of a table, and from how many characters on it holds a sentence.
CELL, SENTENCE = re.compile(r"<(t[dh])\b([^>]*)>(.*?)</\1>", re.DOTALL), 60
# An interval in one; it is small, and breaks no line.
INTERVAL = re.compile(r"\[[+\N{MINUS SIGN}\d.,]+, [+\N{MINUS SIGN}\d.,]+\](?!</span>)")
# A description for machines is no longer than this.
MOST = 200


@functools.cache
def citation() -> dict[str, Any]:
    """``CITATION.cff``."""
    return dict(config.read_yaml(ROOT / "CITATION.cff"))


def authors() -> list[str]:
    """The names in ``CITATION.cff``."""
    return [
        str(a.get("name") or f"{a['given-names']} {a['family-names']}")
        for a in citation()["authors"]
    ]


def bibtex(year: str) -> str:
    """The companion as an entry of a bibliography."""
    cited = citation()
    fields = {
        "title": f"{{{cited['title']}}}",
        "author": " and ".join(f"{{{name}}}" for name in authors()),
        "year": year,
        "version": cited["version"],
        "license": cited["license"],
    }
    if "repository-code" in cited:
        fields["url"] = cited["repository-code"]
    lines = "".join(f"  {key} = {{{value}}},\n" for key, value in fields.items())
    return f"@software{{ethalign{year},\n{lines}}}"


@functools.cache
def reference(study: str) -> list[tuple[str, ...]]:
    """Reference runs of a study: model, seed, variant, data by hash, device, seconds, commit."""
    rows = []
    for path in sorted((results.RESULTS / study / "small").glob("*/*/*/run.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        stages = record["stages"].values()
        data = {f"{k} {v[:8]}" for stage in stages for k, v in stage.get("data", {}).items()}
        used = [stage["model"]["device"] for stage in stages if "model" in stage]
        devices = {records.device_words(device) for device in used}
        seconds = sum(stage["seconds"] for stage in stages)
        place = path.parent
        told = (", ".join(sorted(data)), ", ".join(sorted(devices)), f"{seconds:,.0f}")
        names = (place.parent.parent.name, place.name, place.parent.name)
        rows.append((*names, *told, record["commit"]))
    return rows


def launch(notebook: str) -> str:
    """Links that open a notebook on the machines of Colab and Binder.

    Nothing before ``CITATION.cff`` has the address of a public repository on GitHub.
    """
    address = str(citation().get("repository-code", "")).removesuffix("/").removesuffix(".git")
    place = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)", address)
    if not place:
        return ""
    where = {
        "Colab": f"https://colab.research.google.com/github/{place[1]}/blob/HEAD/{notebook}",
        "Binder": f"https://mybinder.org/v2/gh/{place[1]}/HEAD?labpath={notebook}",
    }
    links = " or ".join(f'<a href="{escape(to)}">{name}</a>' for name, to in where.items())
    return f"<p><strong>Run it.</strong> Open this page's notebook on {links}.</p>"


def end(page: str, path_to: Callable[..., str], root: Path, year: str) -> str:
    """The HTML at the end of a page; ``path_to`` makes an address relative, ``root`` is built."""
    folder = page.removeprefix("_runs/").split("/")[0]
    studies = [folder] if folder in config.studies() else config.studies()
    stage = page.split("/")[-1].partition("-")[0]
    own = page.startswith("_runs/")
    ran = "The notebook of this page was executed; its line <em>Run</em> says what on."
    if stage == "explore":
        ran = "The notebook of this page was executed; it reads data and runs no model."
    if stage in ("findings", "results"):
        ran = "The notebook of this page was executed; it reads records and runs no model."
    if not own:
        ran = "This page has no notebook. Any results on it come from the reference runs."
    tables = []
    if len(studies) == 1 and (rows := reference(folder)):
        heads = ["model", "seed", "variant", "data by SHA-256", "device", "seconds", "commit"]
        cells = [f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in row)}</tr>" for row in rows]
        tables = [
            "<details><summary>The reference runs</summary>",
            '<div class="pst-scrollable-table-container" tabindex="0" role="region"'
            ' aria-label="The reference runs"><table class="table"><thead><tr>',
            "".join(f'<th scope="col">{head}</th>' for head in heads),
            f"</tr></thead><tbody>{''.join(cells)}</tbody></table></div>",
            "<p>A commit with + had changes that were not committed yet.</p></details>",
        ]
    files, live = [], ""
    for copy in sorted((root.parent / "beside" / "runs" / folder).glob("*.ipynb") if own else ()):
        made, _, variant = copy.stem.partition("-")
        if made == stage:
            label = f"as it was executed{variant and ', '}{variant}"
            files.append((f"runs/{folder}/{copy.name}", label))
    if own and (root / "notebooks" / folder / f"{stage}.ipynb").is_file():
        files.insert(0, (f"notebooks/{folder}/{stage}.ipynb", "this page's notebook"))
        live = launch(f"notebooks/{folder}/{stage}.ipynb")
    for name in studies:
        for kind, label in (
            ("metrics.csv", f"{name}: every metric (CSV)"),
            ("predictions.csv.gz", f"{name}: every prediction (CSV, gzip)"),
        ):
            if (root / "data" / f"{name}-{kind}").is_file():
                files.append((f"data/{name}-{kind}", label))
    links = "".join(
        f'<li><a href="{escape(path_to(path, 1))}" download>{escape(label)}</a></li>'
        for path, label in files
    )
    cited = citation()
    told = f"{', '.join(authors())} ({year}). {cited['title']}. Version {cited['version']}"
    told += f", commit {records.commit()}."
    return (
        '<section class="about" aria-labelledby="about-this-page">'
        '<h2 id="about-this-page">About this page</h2>'
        f"<p><strong>What was run.</strong> {ran}</p>{''.join(tables)}"
        f"<p><strong>How to cite it.</strong> {escape(told)} Please cite the papers as well: "
        f'<a href="{escape(path_to("bibliography"))}">Bibliography</a>.</p>'
        f'<details><summary>BibTeX</summary><pre tabindex="0">{escape(bibtex(year))}</pre>'
        "</details>"
        + live
        + (f"<p><strong>To take along.</strong></p><ul>{links}</ul>" if links else "")
        + "</section>"
    )


def tags(title: str, about: str, year: str, *, first: bool) -> str:
    """Tags for Scholar and for links that are shared (Open Graph)."""
    site = str(citation()["title"])
    pairs = [("name", "citation_title", title if not first else site)]
    pairs += [("name", "citation_author", name) for name in authors()]
    pairs += [
        ("name", "citation_publication_date", year),
        ("name", "citation_language", "en"),
        ("name", "description", about),
        ("property", "og:title", title),
        ("property", "og:description", about),
        ("property", "og:type", "website" if first else "article"),
        ("property", "og:site_name", "ethalign"),
    ]
    return "".join(
        f'\n<meta {kind}="{key}" content="{escape(text)}">' for kind, key, text in pairs if text
    )


def description(doctree: nodes.document) -> str:
    """The first paragraph of a page that says something, cut at a word."""
    for paragraph in doctree.findall(nodes.paragraph):
        text = " ".join(paragraph.astext().split())
        if len(text) > 60:
            return text if len(text) <= MOST else f"{text[:MOST].rpartition(' ')[0]} …"
    return ""


def add(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Put both into a page that comes from a text."""
    if doctree is None or app.builder.name != "html":
        return
    title = nodes.Text(context["title"]).astext()
    year, first = str(app.config.copyright), page == app.config.root_doc
    root = Path(app.srcdir) / "_generated" / "files"
    context["body"] += end(page, context["pathto"], root, year)
    context["metatags"] += tags(title, description(doctree), year, first=first)


def mend(text: str) -> str:
    """A written page whose theme says to a screen reader what it shows to the eye.

    Toggles of the contents get a name, buttons have the name that can be seen on them, the two
    rows at the head of a pandas table become one, cells at the head of a column or row say of
    which, and tables that scroll can be reached by keyboard. Cells that hold a sentence are
    marked: they are not to be narrowed to a word a line. Intervals are kept on one.
    """
    for old, new in THEME:
        text = re.sub(old, new, text)
    text = SIGNATURE.sub(
        lambda found: f'<div class="sig-list">{found[1].replace("dd>", "div>")}</div>', text
    )
    text = TWO_HEADS.sub(_one_head, text)
    for part, scope in (("thead", "col"), ("tbody", "row")):
        whole = re.compile(rf"<{part}\b.*?</{part}>", re.DOTALL)
        head = rf'<th scope="{scope}"\1>'
        text = whole.sub(lambda found, h=head: PLAIN_HEAD.sub(h, found[0]), text)
    return CELL.sub(_roomy, text)


def _roomy(cell: re.Match[str]) -> str:
    kind, more, inside = cell.groups()
    inside = INTERVAL.sub(r'<span class="interval">\g<0></span>', inside)
    if len(re.sub(r"<[^>]*>", "", inside).strip()) < SENTENCE or "sentence" in more:
        return f"<{kind}{more}>{inside}</{kind}>"
    marked = more.replace('class="', 'class="sentence ', 1)
    marked = marked if marked != more else f'{more} class="sentence"'
    return f"<{kind}{marked}>{inside}</{kind}>"


def _one_head(found: re.Match[str]) -> str:
    """Both rows as one, if no column has two names or none."""
    before, names, index, after = found.groups()
    widths = [part.count("<th") for part in (before, names, index, after)]
    return f"<tr>{index}{names}</tr>" if widths[:2] == widths[2:] else found[0]


def mend_all(app: Sphinx, error: Exception | None) -> None:
    """``mend`` every page that was written."""
    if error or app.builder.name != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        if "_static" not in path.parts:
            text = path.read_text(encoding="utf-8")
            if (mended := mend(text)) != text:
                path.write_text(mended, encoding="utf-8")


def join(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Keep a number and its per cent on one line."""
    for text in list(doctree.findall(nodes.Text)):
        joined = re.sub(r"(?<=\d) (?=%)", "\N{NO-BREAK SPACE}", text)
        if joined != text and not isinstance(text.parent, nodes.literal | nodes.literal_block):
            text.parent.replace(text, nodes.Text(joined))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to the writing of pages."""
    app.connect("doctree-resolved", join)
    app.connect("html-page-context", add)
    app.connect("build-finished", mend_all)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
