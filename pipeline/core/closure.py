"""Which source files a function's result depends on, read from the imports. Nothing is run, nothing is listed by hand.

The function itself is followed name by name: what it uses of its own module (functions, classes, constants, imports at
the top and in its body) counts, its neighbours do not. From there on whole modules count, with everything that they
import anywhere, under ``if TYPE_CHECKING`` excepted. A text that is a module's full name counts as an import of it:
``python -m`` and ``import_module`` take such texts.

Invariants: the closure never leaves this project (versions of packages are recorded beside it), and it contains every
file of the project that the function can execute, but for names put together at run time.
"""

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from pipeline.core.files import canonical_json, sha256_bytes, sha256_file

ROOT = Path(__file__).resolve().parent.parent.parent
_DOTTED = re.compile(r"[a-z_]\w*(\.[a-z_]\w*)+", re.ASCII)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def code_digest(*functions: Callable[..., Any]) -> str:
    """SHA-256 over the closures of ``functions``: equal digests, equal code. Raises as :func:`closure` does."""
    found: dict[str, str] = {}
    for function in functions:
        found |= closure(function)
    return sha256_bytes(canonical_json(found))


def closure(function: Callable[..., Any]) -> dict[str, str]:
    """What ``function`` depends on: ``package/module.py`` -> SHA-256 of the file, and for the parts of its own module
    ``package/module.py::name`` -> SHA-256 of their source.

    A partial stands for what it calls, a method for its class, a nested function for the one around it. Raises
    ValueError for what is not defined at the top of a module of this project.
    """
    while isinstance(function, partial):
        function = function.func
    function = inspect.unwrap(function)
    module, name = function.__module__, function.__qualname__.partition(".")[0]
    path = _file_of(module)
    if path is None or name not in _bindings(path):
        raise ValueError(f"{module}.{function.__qualname__} is not defined at the top of a module of this project")
    parts, modules = _follow(path, name)
    found = {_relative(file): sha256_file(file) for file in _reachable(modules | _parents(module))}
    return found | {f"{_relative(path)}::{part}": digest for part, digest in sorted(parts.items())}


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def _file_of(module: str) -> Path | None:
    """The source of a module of this project; None for any other."""
    if not (ROOT / module.partition(".")[0] / "__init__.py").is_file():
        return None
    place = ROOT.joinpath(*module.split("."))
    for path in (place / "__init__.py", place.with_suffix(".py")):
        if path.is_file():
            return path
    return None


def _parents(module: str) -> set[str]:
    """The packages around a module, which are imported before it."""
    names = module.split(".")
    return {".".join(names[:end]) for end in range(1, len(names))}


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """``node`` and everything in it that can run."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).rpartition(".")[2] == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _nodes(other)
        else:
            yield from _nodes(child)


def _imported(node: ast.AST) -> set[str]:
    """Modules of this project that one node names."""
    names: set[str] = set()
    if isinstance(node, ast.Import):
        names = {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:  # no relative imports: ruff (TID252) refuses them
        names = {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _DOTTED.fullmatch(node.value):
        names = {node.value}
    found = {name for name in names if _file_of(name)}
    return found.union(*(_parents(name) for name in found))


@cache
def _imports(path: Path) -> frozenset[str]:
    return frozenset[str]().union(*(_imported(node) for node in _nodes(_tree(path))))


def _reachable(modules: set[str]) -> set[Path]:
    """The files of ``modules`` and of everything that they import."""
    waiting, seen = list(modules), set(modules)
    while waiting:
        path = _file_of(waiting.pop())
        assert path
        new = _imports(path) - seen
        seen |= new
        waiting += new
    return {path for module in seen if (path := _file_of(module))}


@cache
def _bindings(path: Path) -> dict[str, list[ast.stmt]]:
    """Name -> the statements at the top of a module that bind it."""
    found: dict[str, list[ast.stmt]] = {}
    for statement in _tree(path).body:
        names: list[str] = []
        if isinstance(statement, _DEFINITIONS):
            names = [statement.name]
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            names = [(alias.asname or alias.name).partition(".")[0] for alias in statement.names]
        else:  # an assignment, or one under a condition
            names = [node.id for node in _nodes(statement) if isinstance(node, ast.Name) and _is_stored(node)]
        for name in names:
            found.setdefault(name, []).append(statement)
    return found


def _is_stored(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Store)


def _follow(path: Path, name: str) -> tuple[dict[str, str], set[str]]:
    """(part of the module -> SHA-256 of its source, modules that these parts import), from one name on."""
    text = path.read_text(encoding="utf-8")
    bindings = _bindings(path)
    parts: dict[str, str] = {}
    modules: set[str] = set()
    waiting, seen = [name], {name}
    while waiting:
        current = waiting.pop()
        for statement in bindings[current]:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                modules |= _of_import(statement, current)
                continue
            source = "\n".join([*_decorators(statement, text), ast.get_source_segment(text, statement) or ""])
            parts[current] = sha256_bytes((parts.get(current, "") + source).encode())
            for node in _nodes(statement):
                modules |= _imported(node)
                if isinstance(node, ast.Name) and node.id in bindings and node.id not in seen:
                    seen.add(node.id)
                    waiting.append(node.id)
    return parts, modules


def _of_import(statement: ast.Import | ast.ImportFrom, name: str) -> set[str]:
    """The modules of this project that ``name`` is imported from; the statement's other names are not used here."""
    kept = [alias for alias in statement.names if (alias.asname or alias.name).partition(".")[0] == name]
    if isinstance(statement, ast.Import):
        return _imported(ast.Import(names=kept))
    return _imported(ast.ImportFrom(module=statement.module, names=kept, level=statement.level))


def _decorators(statement: ast.stmt, text: str) -> list[str]:
    """A definition's source begins behind them."""
    if not isinstance(statement, _DEFINITIONS):
        return []
    return [ast.get_source_segment(text, decorator) or "" for decorator in statement.decorator_list]
