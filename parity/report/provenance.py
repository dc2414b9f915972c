"""Both sides' headers as the page lists them: what is the same once, what differs side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parity.judge.verdict import Verdict

_MINUS, _TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Fact:
    """One line."""

    name: str
    values: tuple[str | None, str | None]
    """None where a side does not have it."""
    expected: bool
    """Whether the sides may differ in it without anything being wrong."""

    @property
    def longest(self) -> int:
        """Characters of the longer value."""
        return max(len(value or "") for value in self.values)

    @property
    def differs(self) -> bool:
        """Whether the sides are not the same in it."""
        return self.values[0] != self.values[1]


def provenance(verdict: Verdict) -> list[tuple[str, list[Fact]]]:
    """(group, facts of both headers)."""
    a, b = verdict.reference_header, verdict.candidate_header
    versions = ({**a.versions}, {**b.versions})
    code = tuple(own.pop("code", None) for own in versions)  # a digest, and each side's own
    runner = tuple(own.pop("runner", None) for own in versions)
    return [
        (
            "What was judged",
            [
                Fact("side", (a.side, b.side), True),
                Fact("contract, SHA-256", (a.contract_sha256, b.contract_sha256), False),
                Fact("dataset, SHA-256", (a.dataset_sha256, b.dataset_sha256), False),
                Fact("images", (a.split or "unknown", b.split or "unknown"), False),
                Fact("trained weights, SHA-256", (a.weights_sha256 or "unknown", b.weights_sha256 or "unknown"), False),
                Fact("code of the side, SHA-256", (code[0] or "unknown", code[1] or "unknown"), True),
                Fact("code of the run, SHA-256", (runner[0] or "unknown", runner[1] or "unknown"), False),
            ],
        ),
        ("Files, SHA-256", _table(a.model, b.model, True)),
        ("Versions", _table(*versions, False)),
        ("Device", _table(a.device, b.device, False)),
        ("Runtime", _table(a.runtime, b.runtime, True)),
        (
            "Prompt",
            []
            if not a.prompt_token_ids and not b.prompt_token_ids  # each picture has its own
            else [
                Fact("tokens, pictures included", (str(len(a.prompt_token_ids)), str(len(b.prompt_token_ids))), False),
                Fact("pictures, (start, length)", (_slots(a.image_slots), _slots(b.image_slots)), False),
                Fact(f"token ids ({_MINUS}1: a picture)", (_ids(a.prompt_token_ids), _ids(b.prompt_token_ids)), False),
            ],
        ),
    ]


def _table(ours: Mapping[str, Any], theirs: Mapping[str, Any], expected: bool) -> list[Fact]:
    """``expected`` or not, a side may say what the other cannot, such as what computes for torch."""
    values = {name: (_value(ours, name), _value(theirs, name)) for name in (*ours, *theirs)}
    return [Fact(name, value, expected or None in value) for name, value in values.items()]


def _value(table: Mapping[str, Any], name: str) -> str | None:
    if name not in table:
        return None
    value = table[name]
    return "none" if value is None else ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _slots(slots: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"({start}, {length})" for start, length in slots) or "none"


def _ids(ids: Sequence[int]) -> str:
    """Runs of picture positions are written once."""
    parts: list[str] = []
    run = 0
    for token in (*ids, None):
        if token == -1:
            run += 1
            continue
        if run:
            parts.append(f"{_MINUS}1 {_TIMES} {run}")
            run = 0
        if token is not None:
            parts.append(str(token))
    return " ".join(parts)
