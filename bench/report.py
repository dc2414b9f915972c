"""The bench's figures as aligned plain text, and the floors that they must not fall below."""

from collections.abc import Sequence
from typing import Any

LETTERBOX_FLOOR = 1.0
"""Pillow's LANCZOS time over ours, from :data:`LETTERBOX_MEGAPIXELS` up."""
LETTERBOX_MEGAPIXELS = 1.0
PREDICTOR_FLOORS = {"as the app does": 1.5, "llama-server": 1.8, "llama-mtmd-cli": 10.0}
"""Time an image of each other way over the in-process predictor's, on the tiny model."""
LADDER_CEILING = 2.0
"""Time of both sides with the ladder over their time without it."""
MEMORY_CEILING = 1.1
"""Greatest memory of the longest walk over that of the shortest."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text columns under their heads, the first to the left and the others to the right, two spaces apart."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = []
    for first, *rest in lines:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def letterbox_text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of :func:`bench.letterbox.run`."""
    cells = [
        (
            row["photo"],
            f"{row['megapixels']:.1f}",
            f"{row['pillow_ms']:.2f}",
            f"{row['ours_ms']:.2f}",
            f"{row['ratio']:.1f}x",
            f"{LETTERBOX_FLOOR:.1f}x" if row["megapixels"] >= LETTERBOX_MEGAPIXELS else "-",
        )
        for row in rows
    ]
    return table(("photo", "megapixels", "Pillow LANCZOS ms", "ours ms", "faster by", "floor"), cells)


def predictor_text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of :func:`bench.predictors.run`, the in-process predictor's first."""
    cells = []
    for row in rows:
        own = row is rows[0]
        floor = PREDICTOR_FLOORS.get(row["way"])
        cells.append(
            (
                row["way"],
                str(row["images"]),
                f"{row['ms']:.2f}",
                f"{1e3 / row['ms']:.1f}",
                "each image" if row["load_s"] is None else f"{row['load_s']:.2f}",
                "-" if own else f"{row['ratio']:.1f}x",
                "-" if floor is None else f"{floor:.1f}x",
                "-" if own else f"{row['same_label']} of {row['images']}",
            )
        )
    return table(("way", "images", "ms/image", "images/s", "loading s", "in process by", "floor", "same label"), cells)


def missed(letterbox: Sequence[dict[str, Any]], predictors: Sequence[dict[str, Any]]) -> list[str]:
    """One sentence for every floor that is missed; a way that answers otherwise did other work, which is a miss too."""
    found = [
        f"letterbox of {row['photo']}: {row['ratio']:.2f}x Pillow's speed, {LETTERBOX_FLOOR:.1f}x or more is wanted"
        for row in letterbox
        if row["megapixels"] >= LETTERBOX_MEGAPIXELS and row["ratio"] < LETTERBOX_FLOOR
    ]
    for row in predictors[1:]:
        floor = PREDICTOR_FLOORS.get(row["way"])
        if floor and row["ratio"] < floor:
            found.append(f"in process: {row['ratio']:.2f}x the speed of {row['way']}, {floor:.1f}x or more is wanted")
        if row["same_label"] < row["images"]:
            other = row["images"] - row["same_label"]
            found.append(f"{row['way'].strip()}: another label than in process for {other} of {row['images']} images")
    return found


def ladder_missed(spent: dict[str, float], held: Sequence[dict[str, float]]) -> list[str]:
    """One sentence for each ceiling that is passed; of :func:`bench.ladder.cost` and :func:`bench.ladder.memory`."""
    found = []
    if spent["ratio"] > LADDER_CEILING:
        found.append(f"ladder: {spent['ratio']:.2f}x the time of a plain run, {LADDER_CEILING:.1f}x at most is wanted")
    grown = held[-1]["mb"] / held[0]["mb"]
    if grown > MEMORY_CEILING:
        found.append(
            f"ladder: {held[-1]['images']:,} images take {grown:.2f}x the memory of {held[0]['images']:,},"
            f" {MEMORY_CEILING:.1f}x at most is wanted"
        )
    return found
