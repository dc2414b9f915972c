"""What the attacks of a session came to, kind by kind: the table that `make attack` ends with.

``tried`` counts cases; every other count is something that must not be, so a test that adds to one fails as well.
"""

from collections import Counter
from collections.abc import Mapping

COUNTS = {
    "tried": "tried",
    "tracebacks": "tracebacks",
    "hangs": "hangs",
    "wrong_codes": "wrong codes",
    "lost": "lost",
    "false_pass": "false PASS",
}
"""Count -> the heading of its column. A process that dies counts as a traceback."""

_found: dict[str, Counter[str]] = {}


def tally(kind: str, **counts: int) -> None:
    """Add to a kind's counts: keys of :data:`COUNTS`. Raises ValueError for any other."""
    if unknown := counts.keys() - COUNTS.keys():
        raise ValueError(f"there is no count {', '.join(sorted(unknown))}: {', '.join(COUNTS)} there are")
    _found.setdefault(kind, Counter()).update(counts)


def found() -> dict[str, dict[str, int]]:
    """Kind -> its counts, as plain data."""
    return {kind: dict(counts) for kind, counts in _found.items()}


def add(others: Mapping[str, Mapping[str, int]]) -> None:
    """Add what another process found."""
    for kind, counts in others.items():
        tally(kind, **counts)


def table(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """The lines of the table: a kind each, then all together. No lines where nothing was tried."""
    if not counts:
        return []
    rows = sorted(counts.items()) + [("all", sum((Counter(own) for own in counts.values()), Counter()))]
    wide = max(len(kind) for kind, _ in rows)
    lines = ["  ".join(["kind".ljust(wide), *(heading.rjust(len(heading)) for heading in COUNTS.values())])]
    for kind, own in rows:
        cells = [str(own.get(count, 0)).rjust(len(heading)) for count, heading in COUNTS.items()]
        lines.append("  ".join([kind.ljust(wide), *cells]))
    return lines
