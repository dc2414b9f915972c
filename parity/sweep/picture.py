"""The sweep's picture: size against KL and against time, with the Pareto front of each."""

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

from parity.judgement import Status
from parity.sweep.table import PairScore, Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
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
        right.set_title("no other pair is smaller and quicker", fontsize=9)
        left.set_title("no other pair is smaller and nearer to Hugging Face", fontsize=9)
        _panel(figure, left, with_kl, [pair.kl_median or 0.0 for pair in with_kl], sweep.front_kl, sweep.smallest)
        times = [pair.total_ms for pair in sweep.pairs]
        _panel(figure, right, sweep.pairs, times, sweep.front_time, sweep.smallest)
        figure.suptitle(f"{sweep.recipe}, {sweep.n} images: {sweep.sentence}", fontsize=10)
        buffer = BytesIO()
        # matplotlib's version and the day are left out of the file
        figure.savefig(buffer, format=kind, metadata={"Software": None} if kind == "png" else {"Date": None})
    return buffer.getvalue()


def _panel(
    figure: "Figure",
    axes: "Axes",
    pairs: Sequence[PairScore],
    values: Sequence[float],
    front: Sequence[str],
    smallest: str | None,
) -> None:
    axes.set_xlabel("both files, MB")
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(0.15, 0.12)
    place = {pair.name: (pair.size / 1e6, value) for pair, value in zip(pairs, values, strict=True)}
    line = [place[name] for name in front]
    if line:
        axes.plot(*zip(*line, strict=True), color="black", linewidth=1.2, label="front")
    for status, (marker, face) in MARKERS.items():
        chosen = [place[pair.name] for pair in pairs if pair.status == status]
        if chosen:
            x, y = zip(*chosen, strict=True)
            axes.scatter(x, y, s=42, marker=marker, facecolor=face, edgecolor="black", zorder=3, label=status)
    if not pairs:
        return
    legend = axes.legend(loc="upper right", fontsize=8)
    figure.canvas.draw()  # the axes' scales are needed to see which labels would collide
    taken = [axes.transData.transform(point) for point in place.values()]
    boxes: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in taken]
    around = legend.get_window_extent()
    boxes.append((around.x0, around.y0, around.x1, around.y1))
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
