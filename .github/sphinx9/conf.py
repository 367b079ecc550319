"""The book by Sphinx and myst-nb alone: the way out, should Jupyter Book 1 end.

Everything is read from _config.yml. Once the pages and the table of contents are there
(``ethalign book``), from the root of the repository:

    python -m sphinx -b html -c .github/sphinx9 book _build/sphinx9
"""

import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "book"
told: dict[str, Any] = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
sys.path[:0] = [str(ROOT), str(BOOK / "_ext")]
globals().update(told["sphinx"]["config"])
extensions = [e for e in told["sphinx"]["config"]["extensions"] if e != "jupyter_book"]
project, author, copyright = told["title"], told["author"], told["copyright"]
# Paths are relative to this file, where Jupyter Book has them relative to the book.
bibtex_bibfiles = [str(BOOK / name) for name in told["bibtex_bibfiles"]]
html_extra_path = [str(BOOK / name) for name in told["sphinx"]["config"]["html_extra_path"]]
html_favicon = str(BOOK / told["html"]["favicon"])
myst_enable_extensions = told["parse"]["myst_enable_extensions"]
nb_execution_mode = "off"
external_toc_path = "_generated/toc.yml"
external_toc_exclude_missing = told["only_build_toc_files"]
exclude_patterns = ["_generated/**.md", "_generated/beside", "_generated/files"]
html_theme, html_title = "sphinx_book_theme", project
html_static_path = [str(BOOK / "_static")]
html_css_files = sorted(path.name for path in (BOOK / "_static").glob("*.css"))
html_js_files = sorted(path.name for path in (BOOK / "_static").glob("*.js"))
