"""The error of each layer as the page draws it: on a logarithmic scale, the first that jumps marked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from parity.judge.causes import LayerErrors
from parity.report.drawing import Axis, axis, power_of_ten


@dataclass(frozen=True)
class LayerChart:
    """One half\'s layers, in a view box of 1000 x 1000 with y downwards; places on the axes in percent."""

    half: str
    image_id: str
    layers: Axis
    decades: tuple[tuple[float, str], ...]
    """(percent from the top, text) of the powers of ten."""
    path: str
    dots: tuple[tuple[float, float], ...]
    """Percent from the left and from the top, one a layer that was measured."""
    jump: tuple[float, float] | None
    words: str
    """What it shows, in one sentence."""


def layer_chart(found: LayerErrors) -> LayerChart | None:
    """None where no layer was measured."""
    known = [(number, error) for number, error in enumerate(found.errors) if error is not None and error > 0]
    if not known:
        return None
    low = math.floor(min(math.log10(error) for _, error in known))
    high = max(math.ceil(max(math.log10(error) for _, error in known)), low + 1)
    last = max(len(found.errors) - 1, 1)
    ticks = tuple(tick for tick in axis((0.0, float(last)), 8).ticks if tick == int(tick) and tick <= last)
    across = Axis(-0.5, last + 0.5, ticks)

    def top(error: float) -> float:
        return round(100 * (high - math.log10(error)) / (high - low), 2)

    dots = {number: (across.at(number), top(error)) for number, error in known}
    path = "M" + "L".join(f"{10 * x:.1f} {10 * y:.1f}" for x, y in dots.values())
    return LayerChart(
        half=found.half,
        image_id=found.image_id,
        layers=across,
        decades=tuple((top(10.0**power), power_of_ten(power)) for power in range(low, high + 1)),
        path=path,
        dots=tuple(dots.values()),
        jump=dots.get(found.first) if found.first is not None else None,
        words=_words(found, [error for _, error in known]),
    )


def _words(found: LayerErrors, errors: Sequence[float]) -> str:
    if found.first is None:
        return f"no layer of the {found.half} half jumps; the largest error is {max(errors):.2g}"
    at = found.errors[found.first]
    if found.first == 0:
        return f"the {found.half} half parts before its first layer or in it: {at:.2g} behind layer 0"
    before = [error for error in found.errors[: found.first] if error is not None]
    return f"layer {found.first} of the {found.half} half jumps to {at:.2g}, from {before[-1]:.2g} in the one before"
