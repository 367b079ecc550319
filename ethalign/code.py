"""Which code a result follows from: the definitions that a function reaches, and no others.

Read from the sources, not from running code. A function, class or constant of the package counts
if it is named in the body of one that counts; so an edit of a colour leaves training alone, and
an edit of a prompt does not. Docstrings, comments, annotations and error messages are prose.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ethalign.config import ROOT

PACKAGE = "ethalign"


#: Modules of the package by their dotted names: where each lies, and when it was changed.
Files = tuple[tuple[str, tuple[str, int]], ...]


class Module(NamedTuple):
    """Top-level definitions by name, and what imported names stand for: (module, name or "")."""

    nodes: dict[str, list[ast.AST]]
    imports: dict[str, tuple[str, str]]


def reach(*functions: Callable[..., Any]) -> dict[str, str]:
    """Modules of the package that functions reach, each with a hash of what they reach there.

    Dotted module names to 16 hexadecimal digits.
    """
    return _hashes([(f.__module__, f.__qualname__.partition(".")[0]) for f in functions])


def reach_of_text(source: str) -> dict[str, str]:
    """The same for a program, for instance the code cells of a notebook; itself under ``""``."""
    own, targets = _program(source)
    return {"": own, **_hashes(list(targets))}


def _hashes(start: list[tuple[str, str]]) -> dict[str, str]:
    return dict(_followed(tuple(dict.fromkeys(start)), _files()))


@functools.lru_cache(maxsize=512)
def _followed(start: tuple[tuple[str, str], ...], files: Files) -> dict[str, str]:
    """What definitions reach, worked out once as long as the files are the same."""
    places, seen, queue = dict(files), dict[tuple[str, str], str](), list(start)
    while queue:
        place = queue.pop()
        if place in seen or place[0] not in places:
            continue
        seen[place], targets = _definition(places[place[0]], place[1])
        # `records.write`: an imported module and what is in it, or a class and what it has.
        queue += [(home or place[0], name) for home, name in targets]
    named: dict[str, list[str]] = {}
    for (module, name), dump in sorted(seen.items()):
        if dump:
            named.setdefault(module, []).append(f"{name}\n{dump}")
    return {module: _digest("\n".join(parts)) for module, parts in named.items()}


@functools.lru_cache(maxsize=256)
def _program(source: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Hash of a program, and what of other modules it names."""
    module = _parse(source)
    nodes = [node for some in module.nodes.values() for node in some]
    targets = dict.fromkeys(target for node in nodes for target in _targets(node, module))
    return _digest("\n".join(map(ast.dump, nodes))), tuple(targets)


@functools.lru_cache(maxsize=8192)
def _definition(file: tuple[str, int], name: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """A definition as text, and what it names; read once as long as its file is the same."""
    module = _read(file)
    nodes = module.nodes.get(name, [])
    targets = [target for node in nodes for target in _targets(node, module)]
    if name in module.imports:  # a name that the module only passes on
        targets.append(module.imports[name])
    return "\n".join(map(ast.dump, nodes)), tuple(dict.fromkeys(targets))


def _targets(node: ast.AST, module: Module) -> Iterator[tuple[str, str]]:
    """Definitions named in a piece of code, as (module, name); "" is the module itself."""
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
            home, name = module.imports.get(part.value.id, ("", ""))
            if home:
                yield (f"{home}.{name}" if name else home), part.attr
        elif isinstance(part, ast.Name):
            if part.id in module.nodes:
                yield "", part.id
            elif part.id in module.imports:
                yield module.imports[part.id]


def _files() -> Files:
    """Every module of the package, with its source file and when that was changed."""
    found = []
    for folder, _, names in os.walk(ROOT / PACKAGE):
        inside = os.path.relpath(folder, ROOT).replace(os.sep, ".")
        for name in names:
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                module = f"{inside}.{name[:-3]}".removesuffix(".__init__")
                found.append((module, (path, os.stat(path).st_mtime_ns)))
    return tuple(sorted(found))


@functools.lru_cache(maxsize=256)
def _read(file: tuple[str, int]) -> Module:
    return _parse(Path(file[0]).read_text(encoding="utf-8"))


def _parse(source: str) -> Module:
    tree = _Bare().visit(ast.parse(source))
    nodes: dict[str, list[ast.AST]] = {}
    imports: dict[str, tuple[str, str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                imports[alias.asname or alias.name] = (node.module or "", alias.name)
        elif isinstance(node, ast.Import):
            imports |= {a.asname or a.name.partition(".")[0]: (a.name, "") for a in node.names}
    for node in tree.body:
        for name in _names(node):
            nodes.setdefault(name, []).append(node)
    return Module(nodes, imports)


def _names(node: ast.stmt) -> list[str]:
    """What a top-level statement defines or changes; "" if it is something else."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return []
    targets = [*getattr(node, "targets", []), getattr(node, "target", None)]
    found = [p.id for t in targets if t for p in ast.walk(t) if isinstance(p, ast.Name)]
    return found or [""]


class _Bare(ast.NodeTransformer):
    """Leaves out what computes nothing: docstrings, annotations, messages of errors."""

    def visit(self, node: ast.AST) -> Any:
        super().generic_visit(node)
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body[0] = ast.Pass()
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.Call):
            node.keywords = [k for k in node.keywords if k.arg != "description"]
        elif isinstance(node, ast.Raise):
            return ast.copy_location(ast.Raise(), node)
        return node


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
