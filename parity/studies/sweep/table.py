"""What a sweep found, as data (``sweep.json``), as a table on the screen and in ``sweep.md``."""

import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.judge.verdict import Status
from pipeline.core.errors import EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_PASS
from pipeline.core.settings import Frozen
from pipeline.dataset.split import Split

BUSY_CORES = 0.2
"""Cores that others may use, on average, before the times are said to be of a busy machine."""


class Cost(Frozen):
    """What a pair's process needed."""

    process_bytes: int
    """Greatest resident size of the whole process (VmHWM): Python, torch (which the tokenizer's library imports), both
    GGUF files as far as they are mapped, llama.cpp's buffers."""
    pair_bytes: int | None
    """What the pair added to it: the greatest resident size while images were answered (without comparing them), less
    the resident size before the pair was loaded. Null where the system does not tell."""
    other_cores: float
    """Cores that other programs kept busy meanwhile, on average."""
    load_average: float
    """Of the last minute, at the end."""
    answered: int
    """Images of this process; a killed one may have answered more before."""


class PairScore(Frozen):
    """One pair, measured and judged."""

    text_type: str
    mmproj_type: str
    text_bytes: int
    mmproj_bytes: int
    text_tensors: dict[str, int]
    """Type -> number of the text half's tensors of it."""
    encode_ms: float
    """Median an image, as are the next three; one image at a time, as the phone does."""
    prefill_ms: float
    generate_ms: float
    total_ms: float
    images_per_second: float | None
    """Images divided by the sum of their times, so that a pause of the machine shows here and not in the medians."""
    cost: Cost
    accuracy: float
    points: float
    """Accuracy less the reference's, percentage points; ``low`` and ``high`` are Tango's 95 % interval."""
    low: float
    high: float
    kl_median: float | None
    """Nats over the vocabulary, at the first answer token; null where no image could be compared."""
    agreement: float
    status: Status
    first_bad_stage: str | None
    headline: str
    needed: int | None = None
    """Images to plan a run on that would tell, at the differences seen; null where no number would."""

    @property
    def name(self) -> str:
        """Both types."""
        return pair_name(self.text_type, self.mmproj_type)

    @property
    def size(self) -> int:
        """Bytes of both files."""
        return self.text_bytes + self.mmproj_bytes


class PairFailed(Frozen):
    """A pair that could not be measured."""

    text_type: str
    mmproj_type: str
    error: str
    """One sentence."""


class Sweep(Frozen):
    """All pairs."""

    schema_version: Literal[3] = 3
    recipe: str
    weights_sha256: str
    """Of the merged model that was exported."""
    contract_sha256: str
    dataset_sha256: str
    split: Split
    """Which of the dataset's images were answered."""
    n: int
    """Images that every pair answered."""
    images: int
    """Images that there are."""
    reference_accuracy: float
    margin_points: float
    machine: dict[str, str]
    pairs: tuple[PairScore, ...]
    failed: tuple[PairFailed, ...]
    front_kl: tuple[str, ...]
    """Pairs than which none is smaller without a greater KL, smallest first."""
    front_time: tuple[str, ...]
    """Pairs than which none is smaller without being slower (median of the images' total times)."""
    smallest: str | None
    """The smallest pair that passes; null where none does."""

    @property
    def sentence(self) -> str:
        """The answer."""
        found = next((pair for pair in self.pairs if pair.name == self.smallest), None)
        if found:
            return (
                f"smallest that passes: {found.name}, {found.size / 1e6:.1f} MB, accuracy {found.accuracy:.1%}"
                f" ({found.points:+.2f} points), KL {_kl(found.kl_median)} nats, {found.total_ms:.1f} ms an image"
            )
        said = f"none of the {len(self.pairs)} pairs passes"
        undecided = sorted((pair for pair in self.pairs if pair.status == "INCONCLUSIVE"), key=lambda pair: pair.size)
        if not undecided:
            return said
        first, many = undecided[0], len(undecided) > 1
        needed = self.needed(first)
        why = f"{needed:,} images or more would tell, and there are {self.n:,}" if needed else first.headline
        return f"{said}; {len(undecided)} {'are' if many else 'is'} INCONCLUSIVE ({first.name}: {why})"

    def needed(self, pair: PairScore) -> int | None:
        """Images that would tell of a pair that is INCONCLUSIVE; None where more images are not what is missing."""
        return pair.needed if pair.status == "INCONCLUSIVE" and pair.needed and pair.needed > self.n else None

    @property
    def exit_code(self) -> int:
        """0 where a pair passes, else 3 where more images could show one that does, else 1."""
        if self.smallest:
            return EXIT_PASS
        return EXIT_INCONCLUSIVE if any(pair.status == "INCONCLUSIVE" for pair in self.pairs) else EXIT_FAIL

    @property
    def notes(self) -> list[str]:
        """What weakens the figures, one sentence each."""
        found = []
        if self.n < self.images:
            found.append(f"measured on {self.n} of {self.images} {self.split} images")
        for kind, tensors in {pair.text_type: pair.text_tensors for pair in self.pairs}.items():
            if really(kind, tensors):
                held = ", ".join(f"{count} {name}" for name, count in sorted(tensors.items()))
                found.append(
                    f"{kind} is a name alone: 256 does not divide the rows of this model, so llama.cpp fell back to"
                    f" tensors of {held}"
                )
        busy = [pair.cost for pair in self.pairs if pair.cost.other_cores > BUSY_CORES]
        if busy:
            cores = [cost.other_cores for cost in busy]
            found.append(
                f"times and images/s are of a busy machine: beside {len(busy)} of {len(self.pairs)} pairs other"
                f" programs kept {min(cores):.1f} to {max(cores):.1f} of {self.machine.get('cores', '?')} cores at work"
                f" (load average up to {max(cost.load_average for cost in busy):.1f})"
            )
        return found


def really(kind: str, tensors: dict[str, int]) -> list[str]:
    """The types that a text half's matrices have, most of them first, where none has the one it is named after."""
    if kind.removesuffix("_M") in tensors:
        return []
    matrices = sorted((-count, name) for name, count in tensors.items() if name != "F32")  # vectors are always F32
    return [name for _, name in matrices]


def pair_name(text_type: str, mmproj_type: str) -> str:
    """How a pair is called."""
    return f"{text_type} + {mmproj_type}"


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points than which no other is as small in both coordinates and smaller in one, by the first.

    Equal points are all in or all out.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: points[index]):
        # In this order only the last one kept, which has the smallest second coordinate so far, can be better.
        if not front or points[index][1] < points[front[-1]][1] or points[index] == points[front[-1]]:
            front.append(index)
    return front


def fronts(pairs: Sequence[PairScore]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(size against KL, size against time), names by size."""

    def front(value: Callable[[PairScore], float | None]) -> tuple[str, ...]:
        known = [(pair, found) for pair in pairs if (found := value(pair)) is not None]
        return tuple(known[index][0].name for index in pareto([(pair.size, found) for pair, found in known]))

    return front(lambda pair: pair.kl_median), front(lambda pair: pair.total_ms)


def smallest_passing(pairs: Sequence[PairScore]) -> str | None:
    """Name of the smallest pair that passes, of equal ones the one that differs least; None where none does."""
    passing = [pair for pair in pairs if pair.status == "PASS"]
    return min(passing, key=lambda pair: (pair.size, pair.kl_median or 0.0)).name if passing else None


def print_sweep(sweep: Sweep, console: Console, ship: Sequence[str] = ()) -> None:
    """The answer, then two tables no wider than 80 columns and what is to be known of them.

    ``ship``: commands that ship the smallest pair that passes.
    """
    _print_lines([sweep.sentence], console, "bold")
    for number, command in enumerate(ship if sweep.smallest else ()):
        # In one piece, to be copied.
        console.print(Text(f"  {'or' if number else 'ship it:':>8}  {command}"), soft_wrap=True)
    answers = ("pair", "MB", "right", "difference", "KL", "agree", "verdict")
    costs = (
        "pair",
        "text MB",
        "mmproj MB",
        "encode ms",
        "prefill ms",
        "generate ms",
        "images/s",
        "memory MB",
        "best in",
    )
    for names in (answers, costs):
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for name in names:
            head = name.replace(" ", "\n") if name.endswith((" MB", " ms", " in")) else name.replace("/", "\n/")
            table.add_column(head, justify="left" if name in ("pair", "verdict", "best in") else "right", no_wrap=True)
        for pair in sweep.pairs:
            cells = _cells(sweep, pair)
            cells["best in"] = cells["best in"].replace(", ", "\n")
            if names is answers:
                cells |= {name: "\n".join(filter(None, (cells[name], note))) for name, note in _remarks(sweep, pair)}
            table.add_row(*(cells[name] for name in names), style="bold" if pair.name == sweep.smallest else "")
        console.print()
        for line in console.render_lines(table, pad=False):
            text = Text.assemble(*((segment.text, segment.style or "") for segment in line))
            text.rstrip()
            console.print(text, soft_wrap=True)
    console.print()
    _print_lines((*_failures(sweep), *_legend(sweep), *(f"note: {note}" for note in sweep.notes)), console)


def _print_lines(lines: Iterable[str], console: Console, style: str = "") -> None:
    """Wrapped at spaces alone, so that no number and no name is broken, and without spaces at the ends."""
    for line in lines:
        for part in textwrap.wrap(line, console.width, break_long_words=False, break_on_hyphens=False):
            console.print(Text(part, style=style), soft_wrap=True)


def markdown(sweep: Sweep) -> str:
    """The same as one table with the picture."""
    names = list(_cells(sweep, sweep.pairs[0])) if sweep.pairs else []
    lines = [f"# Quantization sweep of {sweep.recipe}", "", f"**{sweep.sentence}**", ""]
    if names:
        lines += ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
        for pair in sweep.pairs:
            cells = _cells(sweep, pair)
            cells |= {name: " ".join(filter(None, (cells[name], note))) for name, note in _remarks(sweep, pair)}
            lines.append("| " + " | ".join(cells.values()) + " |")
        lines += ["", "![size against KL and against time](sweep.svg)"]
    lines += ["", *(f"- {line}" for line in (*_failures(sweep), *_legend(sweep), *sweep.notes))]
    return "\n".join(lines) + "\n"


def _remarks(sweep: Sweep, pair: PairScore) -> list[tuple[str, str]]:
    """(column, what is to be known of this row's cell there), empty where there is nothing."""
    types, needed = really(pair.text_type, pair.text_tensors), sweep.needed(pair)
    return [
        ("pair", f"(is {', '.join(types[:2])})" if types else ""),
        ("verdict", f"needs {needed:,}" if needed else ""),
    ]


def _cells(sweep: Sweep, pair: PairScore) -> dict[str, str]:
    best = [word for word, front in (("KL", sweep.front_kl), ("speed", sweep.front_time)) if pair.name in front]
    speed, memory = pair.images_per_second, pair.cost.pair_bytes
    return {
        "pair": pair.name,
        "MB": f"{pair.size / 1e6:.1f}",
        "right": f"{pair.accuracy:.1%}",
        "difference": f"{pair.points:+.1f} ({pair.low:+.1f}, {pair.high:+.1f})",
        "KL": _kl(pair.kl_median),
        "agree": f"{pair.agreement:.1%}",
        "verdict": pair.status,
        "stops at": pair.first_bad_stage or "",
        "best in": ", ".join(best),
        "text MB": f"{pair.text_bytes / 1e6:.1f}",
        "mmproj MB": f"{pair.mmproj_bytes / 1e6:.1f}",
        "encode ms": _ms(pair.encode_ms),
        "prefill ms": _ms(pair.prefill_ms),
        "generate ms": _ms(pair.generate_ms),
        "images/s": "-" if speed is None else f"{speed:.3g}",
        "memory MB": "-" if memory is None else f"{memory / 1e6:.0f}",
        "process MB": f"{pair.cost.process_bytes / 1e6:.0f}",
    }


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _kl(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _failures(sweep: Sweep) -> list[str]:
    return [f"{pair_name(pair.text_type, pair.mmproj_type)} was not measured: {pair.error}" for pair in sweep.failed]


def _legend(sweep: Sweep) -> list[str]:
    needs = any(sweep.needed(pair) for pair in sweep.pairs)
    return [
        f"right: Hugging Face is right in {sweep.reference_accuracy:.1%} of the same {sweep.n} images",
        f"difference: percentage points from Hugging Face, with Tango's 95 % interval; {sweep.margin_points:g} are"
        " allowed",
        "KL: median, nats; agree: images with the same label as Hugging Face's",
        *(["needs: images that would tell, at the differences seen"] if needs else []),
        "best in KL: no other pair is both smaller and nearer; best in speed: none is both smaller and quicker",
        "times: median of an image; memory: what loading the pair and answering adds to its process at the most",
    ]
