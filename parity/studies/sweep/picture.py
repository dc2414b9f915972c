"""The sweep's picture: size against KL and against time, with the Pareto front of each."""

from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from parity.judge.verdict import Status
from parity.studies.sweep.table import PairScore, Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

# Shape and filling tell the verdict: nothing is told by colour.
MARKERS: dict[Status, tuple[str, str]] = {
    "PASS": ("o", "black"),
    "INCONCLUSIVE": ("s", "white"),
    "FAIL": ("X", "0.6"),
    "REFUSED": ("D", "0.6"),
}
Box = tuple[float, float, float, float]
"""Left, bottom, right, top, pixels."""
_NEAR = [(dx, dy) for distance in (6, 14, 24, 36) for dx in (1, -1) for dy in (0, distance, -distance)]
"""Where a label may stand, points from its marker: beside it first."""


def draw(sweep: Sweep, kind: Literal["png", "svg"]) -> bytes:
    """The picture. Same sweep, same bytes."""
    import matplotlib.style
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # The user's matplotlibrc must not change the bytes.
    with matplotlib.style.context("default"), rc_context({"svg.hashsalt": "sweep", "font.size": 9}):
        figure = Figure(figsize=(13, 5.6), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)  # it measures the labels, for the SVG too
        left, right = figure.subplots(1, 2)
        with_kl = [pair for pair in sweep.pairs if pair.kl_median is not None]
        if any(pair.kl_median for pair in with_kl):
            left.set_yscale("log")
        left.set_ylabel("KL divergence of the first answer token, median, nats")
        right.set_ylabel("time of an image, median, ms")
        right.set_title("front: no other pair is both smaller and quicker", fontsize=9)
        left.set_title("front: no other pair is both smaller and nearer to Hugging Face", fontsize=9)
        kl, times = [pair.kl_median or 0.0 for pair in with_kl], [pair.total_ms for pair in sweep.pairs]
        _points(left, with_kl, kl, sweep.front_kl)
        _points(right, sweep.pairs, times, sweep.front_time)
        shown = dict(zip(*reversed(right.get_legend_handles_labels()), strict=True))
        if shown:
            figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=len(shown), frameon=False)
        figure.suptitle(f"{sweep.recipe}, {sweep.n} images: {sweep.sentence}", fontsize=10)
        figure.canvas.draw()  # the scales are needed to see which labels would collide
        _labels(left, with_kl, kl, sweep.front_kl, sweep.smallest)
        _labels(right, sweep.pairs, times, sweep.front_time, sweep.smallest)
        buffer = BytesIO()
        # matplotlib's version and the day are left out of the file
        figure.savefig(buffer, format=kind, metadata={"Software": None} if kind == "png" else {"Date": None})
    return buffer.getvalue()


def _points(axes: "Axes", pairs: Sequence[PairScore], values: Sequence[float], front: Sequence[str]) -> None:
    axes.set_xlabel("both files, MB")
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(0.15, 0.12)
    place = _places(pairs, values)
    line = [place[name] for name in front]
    if line:
        # Steps: what lies between two pairs is not to be had.
        axes.plot(*zip(*line, strict=True), color="black", linewidth=1.2, drawstyle="steps-post", label="front")
    for status, (marker, face) in MARKERS.items():
        chosen = [place[pair.name] for pair in pairs if pair.status == status]
        if chosen:
            x, y = zip(*chosen, strict=True)
            axes.scatter(x, y, s=42, marker=marker, facecolor=face, edgecolor="black", zorder=3, label=status)


def _places(pairs: Sequence[PairScore], values: Sequence[float]) -> dict[str, tuple[float, float]]:
    return {pair.name: (pair.size / 1e6, value) for pair, value in zip(pairs, values, strict=True)}


def _labels(
    axes: "Axes", pairs: Sequence[PairScore], values: Sequence[float], front: Sequence[str], smallest: str | None
) -> None:
    """Name every point: markers, the front's steps and other names are kept free where that is possible."""
    place = _places(pairs, values)
    pixels = {name: axes.transData.transform(point) for name, point in place.items()}
    boxes: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in pixels.values()]
    for (x, y), (next_x, next_y) in pairwise(pixels[name] for name in front):
        boxes += [(x, y - 1, next_x, y + 1), (next_x - 1, next_y, next_x + 1, y)]
    for name in sorted(place, key=lambda name: (name not in front, place[name])):
        boxes.append(_label(axes, name, place[name], boxes, name == smallest, name in front))


def _label(
    axes: "Axes",
    name: str,
    point: tuple[float, float],
    boxes: Sequence[Box],
    smallest: bool,
    best: bool,
) -> Box:
    """Write a name near its point where it covers least; its box, pixels."""

    def covered(box: Box) -> float:
        inside = axes.get_window_extent().extents
        out = max(inside[0] - box[0], 0) + max(box[2] - inside[2], 0) + max(inside[1] - box[1], 0)
        out += max(box[3] - inside[3], 0)
        return out * 10 + sum(
            max(min(box[2], other[2]) - max(box[0], other[0]), 0)
            * max(min(box[3], other[3]) - max(box[1], other[1]), 0)
            for other in boxes
        )

    text = axes.annotate(
        name, point, (0, 0), textcoords="offset points", fontsize=8, va="center", zorder=4,
        color="black" if best else "0.35", weight="bold" if smallest else "normal",
        arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4},
    )  # fmt: skip
    text.set_in_layout(False)
    found = []
    for order, (side, dy) in enumerate(_NEAR):
        text.set_position((7 * side, dy))
        text.set_horizontalalignment("left" if side > 0 else "right")
        extent = _extent(text)
        found.append((covered(extent), order, extent))
    _, order, extent = min(found)
    side, dy = _NEAR[order]
    text.set_position((7 * side, dy))
    text.set_horizontalalignment("left" if side > 0 else "right")
    return extent


def _extent(annotation: "Annotation") -> Box:
    from matplotlib.text import Text

    canvas: Any = annotation.axes.figure.canvas if annotation.axes else None
    annotation.update_positions(canvas.get_renderer())
    box = Text.get_window_extent(annotation)  # an annotation's own has its line to the point in it
    return box.x0, box.y0, box.x1, box.y1
