"""Numbers to places: what the page's drawings need, in percent of their width or in the units of a view box."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from parity.compare.ladder import RUNGS
from parity.judge.verdict import GateResult, Verdict
from parity.report.brief import brief, of_limit, shown_gates
from parity.report.rows import Pair, margin


def nice_step(span: float, steps: int) -> float:
    """The 1, 2 or 5 times a power of ten that cuts ``span`` into at most ``steps`` parts."""
    rough = span / steps
    power = float(10 ** math.floor(math.log10(rough)))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


@dataclass(frozen=True)
class Axis:
    """A straight scale; places are percent of the drawing's width, 0..100."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Where a value stands; beyond the ends, the end."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 3)


def axis(values: Iterable[float], steps: int = 6, floor: float = -math.inf, ceiling: float = math.inf) -> Axis:
    """A scale with round ends around the values, not beyond ``floor`` and ``ceiling``."""
    known = list(values)
    low, high = min(known), max(known)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    step = nice_step(high - low, steps)
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    low, high = max(start * step, floor), min(end * step, ceiling)
    ticks = tuple(round(number * step, 10) for number in range(start, end + 1))
    return Axis(low, high, tuple(tick for tick in ticks if low <= tick <= high))


@dataclass(frozen=True)
class Gauge:
    """A stage's number by its limit, places in percent of the width."""

    value: float
    limit: float
    floor: float | None
    words: str
    """``6 % of the limit``"""


LIMIT_AT = 62.0
"""Percent of a gauge's width at which every stage's limit stands."""
DECADES = 3.0
"""Powers of ten that lie right of the limit; left of it the scale is straight, from 0."""


def gauge(gate: GateResult) -> Gauge | None:
    """None for a check without a limit above 0: what must not differ at all is counted instead."""
    limit = gate.limit
    if gate.value is None or not limit:
        return None

    def at(value: float) -> float:
        share = value / limit
        if share <= 1:
            return round(LIMIT_AT * max(share, 0.0), 2)
        beyond = math.log10(share) / DECADES if math.isfinite(share) else 1.0
        return round(LIMIT_AT + (100 - LIMIT_AT) * min(beyond, 1.0), 2)

    return Gauge(
        value=max(at(abs(gate.value)), 0.5),
        limit=LIMIT_AT,
        floor=None if gate.floor is None else at(abs(gate.floor)),
        words=of_limit(gate),
    )


def power_of_ten(exponent: int) -> str:
    """As a number where that is short."""
    return f"{10.0**exponent:g}" if -4 < exponent < 5 else f"1e{exponent}"


@dataclass(frozen=True)
class Step:
    """One rung of the ladder as it is drawn."""

    rung: str
    name: str
    gate: GateResult | None
    """None where the verdict has no such check."""
    gauge: Gauge | None
    status: str
    rails: str
    """``joined``: the outputs still agree; ``parting``: here they diverge; ``apart``: after that."""
    said: str
    """What was found, in a line."""
    open: bool
    """Whether all of it is shown: what decides the verdict, not what is green or follows from that."""


def _said(gate: GateResult) -> str:
    """A folded stage's line; how many differ, or by how much, stands beside it."""
    return brief(gate) if gate.red or gate.status == "not measured" else gate.detail.split(";")[0]


def steps(verdict: Verdict) -> list[Step]:
    """S0 to S7. The outputs diverge at the first red stage; where the verdict is REFUSED they were never together."""
    gates = {gate.rung: gate for gate in shown_gates(verdict) if gate.rung}
    result = []
    rails = "apart" if verdict.status == "REFUSED" else "joined"
    for rung, name in RUNGS.items():
        gate = gates.get(rung)
        if rails == "parting":
            rails = "apart"
        if gate and gate.red and rails == "joined":
            rails = "parting"
        result.append(
            Step(
                rung,
                gate.stage if gate else name,
                gate,
                gauge(gate) if gate else None,
                gate.status if gate else "not measured",
                rails,
                _said(gate) if gate else "",
                gate is not None and gate.stage == verdict.first_bad_stage,
            )
        )
    return result


@dataclass(frozen=True)
class Scatter:
    """Every image's margin on both sides, in a view box of 1000 x 1000 with y downwards."""

    axis: Axis
    dots: dict[str, str]
    """Kind -> path of dots (lines of no length; their round ends are what is seen)."""
    n: int
    quadrants: tuple[int, int, int, int]
    """Truth likeliest on both sides, on the reference alone, on the candidate alone, on neither."""
    correlation: float | None
    """Pearson's, of the two margins; None where one of them does not vary."""
    median_shift: float
    """Median of candidate minus reference, nats."""


def scatter(pairs: Sequence[Pair]) -> Scatter | None:
    """None where no image has label log-probabilities on both sides."""
    points = []
    for pair in pairs:
        x, y = margin(pair.reference), margin(pair.candidate)
        if x is not None and y is not None:
            points.append((pair, x, y))
    if not points:
        return None
    xs, ys = [x for _, x, _ in points], [y for _, _, y in points]
    scale = axis((*xs, *ys, 0.0))
    dots: dict[str, list[str]] = {"same": [], "other": [], "won": [], "lost": []}
    for pair, x, y in points:
        dots[pair.kind].append(f"M{10 * scale.at(x):.0f} {1000 - 10 * scale.at(y):.0f}h0")
    shifts = sorted(y - x for x, y in zip(xs, ys, strict=True))
    return Scatter(
        axis=scale,
        dots={kind: "".join(path) for kind, path in dots.items()},
        n=len(points),
        quadrants=(
            sum(x > 0 and y > 0 for x, y in zip(xs, ys, strict=True)),
            sum(x > 0 >= y for x, y in zip(xs, ys, strict=True)),
            sum(y > 0 >= x for x, y in zip(xs, ys, strict=True)),
            sum(x <= 0 and y <= 0 for x, y in zip(xs, ys, strict=True)),
        ),
        correlation=_pearson(xs, ys),
        median_shift=(shifts[(len(shifts) - 1) // 2] + shifts[len(shifts) // 2]) / 2,
    )


def _pearson(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    n = len(xs)
    mx, my = sum(xs) / n, sum(ys) / n
    sxx, syy = sum((x - mx) ** 2 for x in xs), sum((y - my) ** 2 for y in ys)
    if sxx == 0 or syy == 0:
        return None
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / math.sqrt(sxx * syy)
