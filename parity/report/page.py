"""``report.html``: one file that loads nothing, made by Jinja from ``page.html.j2``, ``page.css`` and ``page.js``.

Labels, ids and generated texts are untrusted: everything is escaped by Jinja, the script builds its elements without
HTML, and the page's Content-Security-Policy lets nothing run but the one script whose hash it names. What can be read
without a script is in the HTML: verdict, ladder, statistics, matrices and the first flips.
"""

import base64
import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup, escape

from parity.compare.ladder import RUNGS, Ladder
from parity.judge.verdict import Audit, Verdict
from parity.report.attached import NOTHING, Attached, Tensors
from parity.report.brief import cause_name, photos_needed, proven, shown_gates, what_ran
from parity.report.drawing import axis, scatter, steps
from parity.report.explained import why
from parity.report.layers import layer_chart
from parity.report.pictures import Budget, ImageOf, Pictures, collect, counted
from parity.report.provenance import provenance
from parity.report.reproduction import reproduction
from parity.report.rows import KINDS, NO_ANSWER, Kind, Pair, columns, pair_up, probabilities
from parity.report.staircase import bet_words, class_words, pass_line, staircase, stop_words
from parity.results import Results, display_name

SHOWN_CARDS = 12
"""Flips that are seen at first."""
FLIP_CARDS = 60
"""Flips written out in the HTML; the list of all images has the others."""
CARD_LABELS = 6
"""Labels in a card's distribution; the dialog shows all."""
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
MARKS = {"green": "✓", "red": "✗", "undecided": "?", "not measured": DASH}
STATUS_MARKS = {"PASS": "✓", "FAIL": "✗", "INCONCLUSIVE": "?", "REFUSED": "⊘"}
_ORDER: tuple[Kind, ...] = ("lost", "won", "other")


def render_page(
    verdict: Verdict,
    reference: Results,
    candidate: Results,
    ladder: Ladder | None,
    image_of: ImageOf,
    budget: Budget | None = None,
    written: datetime | None = None,
    attached: Attached = NOTHING,
) -> str:
    """The whole page. ``image_of``: see :data:`parity.report.pictures.ImageOf`. ``written``: when the candidate's
    results were. ``attached``: what lies beside them."""
    pairs = pair_up(verdict, reference, candidate, ladder)
    flips = sorted((pair for pair in pairs if pair.kind != "same"), key=lambda pair: _ORDER.index(pair.kind))
    worst = [worst.key for gate in verdict.gates for worst in gate.worst]
    if verdict.label_logprobs:
        drifted = verdict.label_logprobs.image_id
        worst += [pair.key for pair in pairs if pair.reference.image_id == drifted]
    layers = verdict.causes.layers if verdict.causes else ()
    shown_again = reproduction(verdict, pairs, attached)
    headers = (reference.header, candidate.header)
    budget = budget or Budget()
    first = [shown_again.key] if shown_again else []
    whole = [*first, *(pair.key for pair in flips[:SHOWN_CARDS]), *worst, *(pair.key for pair in flips)]
    pictures = collect(pairs, whole, headers, image_of, budget)
    style, script = _text("page.css"), _text("page.js")
    return _environment().get_template("page.html.j2").render(
        v=verdict,
        sides=(verdict.reference, verdict.candidate),
        names=(display_name(verdict.reference.side), display_name(verdict.candidate.side)),
        style=style,
        script=script,
        policy=_policy(style, script),
        steps=(walked := steps(verdict)),
        diverge=next((f"{step.rung} {step.name}" for step in walked if step.rails == "parting"), ""),
        proven=proven(verdict),
        cause_name=cause_name(verdict),
        ran=what_ran(verdict, written),
        photos_needed=photos_needed(verdict),
        shown=SHOWN_CARDS,
        off_ladder=[gate for gate in shown_gates(verdict) if gate.rung is None],
        unmeasured=[gate for gate in shown_gates(verdict) if gate.status == "not measured"],
        **_phone(verdict.audit),
        ladder=ladder,
        layer_charts=[chart for one in layers if (chart := layer_chart(one))],
        open_tiles=_open_tiles(verdict, pairs),
        scored=any(gate.stage == "score" for gate in verdict.gates),
        accuracy_axis=_accuracy_axis(verdict),
        gap_axis=_gap_axis(verdict),
        recall_axis=axis((0.0, 100.0), 4),
        classes_by_loss=sorted(
            zip(verdict.reference.per_class, verdict.candidate.per_class, strict=True),
            key=lambda both: (not both[0].support, both[1].recall - both[0].recall),
        ),
        reproduction=shown_again,
        picture=pictures.full.get(shown_again.key) if shown_again else None,
        attached=attached,
        tensors=_named(attached, pairs),
        flips=[_card(pair, verdict) for pair in flips[:FLIP_CARDS]],
        flip_count=len(flips),
        kinds=KINDS,
        counts=Counter(pair.kind for pair in pairs),
        parted_words=_parted_words(flips, ladder is not None),
        rungs=RUNGS,
        scatter=scatter(pairs),
        phases=_phases(verdict),
        provenance=provenance(verdict),
        pictures=counted(pictures, pairs),
        budget=budget,
        packed=_packed(pairs, pictures),
        data=columns(pairs, verdict, pictures.saw),
        n_pairs=len(pairs),
        no_answer=NO_ANSWER,
        marks=MARKS,
        status_marks=STATUS_MARKS,
    )  # fmt: skip


def _phone(audit: Audit | None) -> dict[str, Any]:
    """What the section about a phone needs."""
    if audit is None:
        return {}
    return {
        "device": audit.device_header.shown,
        "stairs": staircase(audit),
        "stop": stop_words(audit),
        "line": pass_line(audit.rows),
        "bet": bet_words(audit),
        "classes": class_words(audit.class_checks) if audit.class_checks else "",
    }


def _named(attached: Attached, pairs: Sequence[Pair]) -> list[tuple[str, Tensors]]:
    """(image id, its tensors), of the images of this page."""
    return [(pair.reference.image_id, one) for one in attached.tensors for pair in pairs
            if pair.key.startswith(one.key)]  # fmt: skip


def _text(name: str) -> str:
    return files("parity.report").joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """A Content-Security-Policy: no request at all, pictures from the page itself, one style and one script by hash."""

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; img-src data:; style-src {digest(style)}; script-src {digest(script)};"
        " base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("parity", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":"), "allow_nan": False}
    environment.filters |= {
        "pct": _percent,
        "sentence": _sentence,
        "points": lambda value: f"{value:+.2f}".replace("-", MINUS),
        "sig": lambda value: "no number" if value is None else f"{value:.3g}".replace("-", MINUS),
        "count": lambda number: f"{number:,}",
        "pvalue": lambda p: f"{p:.3f}" if p >= 0.001 else f"{p:.1e}",
    }
    return environment


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _sentence(text: str) -> Markup:
    """With a capital letter, where the first word is a word and no name (n_ctx, llama.cpp, hf); what stands between
    backticks as code."""
    first = text.split(" ", 1)[0]
    if first.rstrip(",:;").isalpha() and first not in ("hf", "llamacpp"):
        text = text[:1].upper() + text[1:]
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _parted_words(flips: Sequence[Pair], walked: bool) -> str:
    """At which stages the flips diverged, in words."""
    found = Counter(pair.parted for pair in flips)
    parts = [f"{found[rung]} diverged at {rung} {name}" for rung, name in RUNGS.items() if found[rung]]
    if found[None]:
        parts.append(f"{found[None]} " + ("at no stage but the answer" if walked else "where no ladder says"))
    return "; ".join(parts)


def _accuracy_axis(verdict: Verdict) -> Any:
    ends = [
        100 * end for side in (verdict.reference, verdict.candidate) for end in (side.accuracy_low, side.accuracy_high)
    ]
    return axis(ends, 5, 0.0, 100.0)


def _gap_axis(verdict: Verdict) -> Any:
    gap = verdict.difference
    return axis((gap.low, gap.high, -1.2 * gap.margin_points, 1.2 * gap.margin_points), 6)


@dataclass(frozen=True)
class _LabelBar:
    label: str
    shares: tuple[float | None, float | None]
    role: str
    """``truth`` where it is that, else empty."""


@dataclass(frozen=True)
class _Card:
    """A flip as the HTML has it."""

    pair: Pair
    bars: list[_LabelBar]
    more: int
    """Labels left out."""
    why: str
    """Whether noise explains it, or where it diverged."""
    common: int = 0
    """Characters that both answers begin with, up to the word at which they part."""


def _card(pair: Pair, verdict: Verdict) -> _Card:
    shares = [probabilities(row, verdict.labels) for row in (pair.reference, pair.candidate)]
    if all(share is None for side in shares for share in side):
        return _Card(pair, [], 0, why(pair, verdict), _common(pair.reference.text, pair.candidate.text))
    named = {pair.reference.truth, pair.reference.label, pair.candidate.label}
    order = sorted(
        range(len(verdict.labels)),
        key=lambda i: (verdict.labels[i] not in named, -max(shares[0][i] or 0.0, shares[1][i] or 0.0)),
    )
    shown = sorted(order[:CARD_LABELS])
    bars = [
        _LabelBar(
            verdict.labels[i],
            (shares[0][i], shares[1][i]),
            "truth" if verdict.labels[i] == pair.reference.truth else "",
        )
        for i in shown
    ]
    return _Card(pair, bars, len(verdict.labels) - len(shown), why(pair, verdict))


def _common(a: str, b: str) -> int:
    length = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a.rfind(" ", 0, length) + 1 if length < max(len(a), len(b)) else length


def _open_tiles(verdict: Verdict, pairs: Sequence[Pair]) -> list[tuple[str, str, str]]:
    """What the page shows first where answers are open: (name, value, note)."""
    lines = [pair.measured.answer for pair in pairs if pair.measured and pair.measured.answer]
    equal = sum(pair.kind == "same" for pair in pairs)
    tiles = [("Equal answers", f"{equal:,}", f"of {len(pairs):,}, to the letter")]
    if lines:
        shares = [1 - line.differ / line.steps for line in lines]
        tokens = sum(line.steps for line in lines)
        tiles.append(("Tokens agree", _percent(sum(shares) / len(shares)), f"of {tokens:,}, given the answer so far"))
        kls = sorted(line.kl_mean if line.kl_mean is not None else math.inf for line in lines)
        limit = verdict.limits.answer if verdict.limits else None
        allowed = f"nats a token; {limit:.2g} allowed" if limit is not None else "nats a token"
        tiles.append(("Median KL", f"{kls[len(kls) // 2]:.2g}", allowed))
    if verdict.causes:
        tiles.append(("Beyond a limit", f"{verdict.causes.differ:,}", f"of {len(pairs):,} pictures"))
    return tiles


def _phases(verdict: Verdict) -> list[tuple[str, tuple[float | None, float | None], tuple[float, float]]]:
    """(phase, median ms of both sides, bar lengths in percent of the longest)."""
    a, b = verdict.reference.ms_median, verdict.candidate.ms_median
    names = dict.fromkeys((*a, *b))
    longest = max([*a.values(), *b.values(), 1e-9])
    return [
        (name, (a.get(name), b.get(name)), (100 * a.get(name, 0.0) / longest, 100 * b.get(name, 0.0) / longest))
        for name in names
    ]


def _packed(pairs: Sequence[Pair], pictures: Pictures) -> list[tuple[int, str, str]]:
    """(image's index, kind, data URL), in the order of the pairs."""
    found = []
    for pair in pairs:
        if url := pictures.full.get(pair.key):
            found.append((pair.index, "full", url))
        elif url := pictures.previews.get(pair.key):
            found.append((pair.index, "preview", url))
    return found
