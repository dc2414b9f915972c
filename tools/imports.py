"""Counts the import graph of a package's rooms: ``python3 -m tools.imports [FOLDER]``; `make lint` prints it.

A room is a module or folder directly in the package, an arrow stands for all imports from one room to another, imports
in functions included and those for type checkers alone left out. Rooms that reach one another are a circle. Floors:
rooms on the longest way down.
"""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGES = ("pipeline", "parity", "tools")


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of what a module imports."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from imported(child)


def arrows(package: Path) -> dict[str, set[str]]:
    """Room -> rooms that it imports."""
    rooms = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    rooms -= {"__init__", "__main__"}
    found: dict[str, set[str]] = {room: set() for room in rooms}
    for path in package.rglob("*.py"):
        room = path.relative_to(package).with_suffix("").parts[0]
        if room in rooms:
            names = imported(ast.parse(path.read_text(encoding="utf-8")))
            others = {name.split(".")[1] for name in names if name.startswith(f"{package.name}.")}
            found[room] |= (others & rooms) - {room}
    return found


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Sets of rooms that reach one another."""

    @cache
    def reached(room: str) -> frozenset[str]:
        seen: set[str] = set()
        waiting = [room]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        return frozenset(seen)

    found: list[set[str]] = []
    for room in sorted(graph):
        circle = {other for other in graph if other in reached(room) and room in reached(other)}
        if len(circle) > 1 and circle not in found:
            found.append(circle)
    return found


def floors(graph: dict[str, set[str]]) -> int:
    """Rooms on the longest way down; a graph with circles has none."""

    @cache
    def depth(room: str) -> int:
        return 1 + max(map(depth, graph[room]), default=0)

    return max(map(depth, graph))


def counted(package: Path) -> str:
    """The numbers, in a line."""
    graph = arrows(package)
    found = circles(graph)
    down = "no floors" if found else f"{floors(graph)} floors"
    among = f" ({', '.join(sorted(set().union(*found)))})" if found else ""
    return (
        f"{package.name + '/':<10} {len(graph):2} rooms, {sum(map(len, graph.values())):3} arrows, {down},"
        f" {len(found)} circles{among}"
    )


def main() -> None:
    """Entry point."""
    root = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        if (root / name / "__init__.py").is_file():
            print(counted(root / name))


if __name__ == "__main__":
    main()
