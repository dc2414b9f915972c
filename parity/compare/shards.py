"""Large runs in parts: which images a shard has, running one, and putting all of them together again.

    runs/<recipe>/parity/shards/<i>-of-<N>/   hf.results.jsonl  llamacpp.results.jsonl  ladder.jsonl

Shards are numbered 1 to N. The images are dealt out in the order of their keys, so that a shard depends on what the
images are and not on where they stand, every image is in exactly one shard, and shards differ by one image at most.

Merging is exact: the merged files are, byte for byte, what one process would have written, but for how long each image
took and, in the headers, the machines. Nothing is written unless every file is whole, of the same run, and of the run
that merges: the bundle, the dataset and what the pictures are fed as may have changed since a shard was run.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from parity.compare.ladder import LadderHeader, Measured, NoiseFloor, header_digest
from parity.compare.runner import CANDIDATE, LADDER, REFERENCE
from parity.compare.samples import row_check
from parity.results import Header, Row
from pipeline.core.errors import UserError
from pipeline.core.files import lock, write_bytes
from pipeline.core.jsonl import Item, line_of, read_lines, whole_file

FILES = (REFERENCE, CANDIDATE, LADDER)
"""What a shard leaves behind."""

Work = Callable[[list[Any], Path], object]
"""Answers the samples, appending to the three files in the folder and going on from what they hold."""

SHOWN = 20
"""Shards that a message names in full."""

_THREADS = "n_threads"
"""Key of ``runtime`` that follows from the machine, as ``device`` does."""

_FREE: dict[type, dict[str, Any]] = {
    Header: {"images": True, "device": True, "runtime": {_THREADS}},
    LadderHeader: {
        "images": True,
        "reference_sha256": True,
        "candidate_sha256": True,
        "floor": set(NoiseFloor.model_fields) - {"samples"},
    },
}
"""What shards of one run may differ in, as pydantic's ``exclude``."""

AnyHeader = TypeVar("AnyHeader", Header, LadderHeader)


def shard_folder(folder: Path, shards: int, shard: int) -> Path:
    """Where one shard's files are; ``folder`` is the run's ``parity``."""
    return folder / "shards" / f"{shard}-of-{shards}"


def shard_keys(keys: Iterable[str], shards: int, shard: int) -> list[str]:
    """The keys of shard ``shard`` of ``shards``, sorted. Raises UserError where there is no such shard."""
    if not 1 <= shard <= shards:
        raise UserError(f"there is no shard {shard} of {shards}: shards are numbered 1 to {max(shards, 1)}")
    return sorted(keys)[shard - 1 :: shards]


def select(samples: Sequence[Any], shards: int, shard: int) -> list[Any]:
    """The samples of one shard, by key. Raises UserError where there is no such shard."""
    by_key = {sample.key: sample for sample in samples}
    return [by_key[key] for key in shard_keys(by_key, shards, shard)]


def run_shard(work: Work, samples: Sequence[Any], folder: Path, shards: int, shard: int) -> Path:
    """Let ``work`` do one shard, or go on with it; returns the shard's folder.

    ``samples`` are those of the whole run. Raises UserError where there is no such shard, or another process has it.
    """
    mine = select(samples, shards, shard)
    where = shard_folder(folder, shards, shard)
    with lock(where):
        work(mine, where)
    return where


@dataclass(frozen=True)
class Expected:
    """What the headers of a run's shards must say, as the run that merges them has it: part of a header's fields, as
    JSON has them, dictionaries in part, too."""

    reference: dict[str, Any]
    candidate: dict[str, Any]
    ladder: dict[str, Any]


def merge_shards(folder: Path, shards: int, samples: Sequence[Any], expected: Expected) -> None:
    """Write the three files in ``folder`` from those of its shards, all of them or none.

    ``samples``: those of the whole run, in the dataset's order. Raises UserError as :func:`merge_results` does; where a
    shard's ladder is of other results than those beside it; where a shard was run with another bundle, dataset or feed
    than ``expected``, or has a row that the dataset contradicts.
    """
    paths = {name: [shard_folder(folder, shards, i) / name for i in range(1, shards + 1)] for name in FILES}
    keys = [sample.key for sample in samples]
    reference = _collect(paths[REFERENCE], keys, Header, Row)
    candidate = _collect(paths[CANDIDATE], keys, Header, Row)
    ladder = _collect(paths[LADDER], keys, LadderHeader, Measured)
    _meant(reference.headers, expected.reference)
    _meant(candidate.headers, expected.candidate)
    _meant(ladder.headers, expected.ladder)
    for side in (reference, candidate):
        _of_dataset(side, samples)
    for path, header in ladder.headers.items():
        for name, stated, side in (
            (REFERENCE, header.reference_sha256, reference),
            (CANDIDATE, header.candidate_sha256, candidate),
        ):
            beside = side.headers.get(path.parent / name)
            if beside is None or stated != header_digest(beside):
                raise UserError(
                    f"{path} compares other results than those in {name} beside it: delete the folder {path.parent} and"
                    " run that shard again"
                )
    headers = _one_side(reference.headers), _one_side(candidate.headers)
    steps = _one_ladder(ladder.headers, *headers)
    write_bytes(folder / REFERENCE, reference.content(headers[0], keys))
    write_bytes(folder / CANDIDATE, candidate.content(headers[1], keys))
    write_bytes(folder / LADDER, ladder.content(steps, keys))


def _meant(headers: dict[Path, AnyHeader], wanted: dict[str, Any]) -> None:
    """UserError where a shard was run with something else than the run that merges."""
    for path, header in headers.items():
        found = _difference(wanted, _same_shape(header.model_dump(mode="json"), wanted))
        if found:
            raise UserError(
                f"{path} is of another run than this one: {found[0]} is {found[2]} there and {found[1]} here; delete"
                f" the folder {path.parent} and run that shard again, with the recipe and the options of this run"
            )


def _same_shape(value: Any, wanted: Any) -> Any:
    """``value`` without the keys that ``wanted`` has not, at any depth."""
    if isinstance(value, dict) and isinstance(wanted, dict):
        return {key: _same_shape(value[key], part) for key, part in wanted.items() if key in value}
    return value


def _of_dataset(parts: "_Parts[Header]", samples: Sequence[Any]) -> None:
    """UserError where the dataset contradicts a row."""
    check = row_check(next(iter(parts.headers.values())), samples)
    for key, line in parts.lines.items():
        if wrong := check(Row.model_validate_json(line)):
            path = parts.origins[key]
            raise UserError(f"{path}: {wrong}; delete the folder {path.parent} and run that shard again")


def merge_results(paths: Sequence[Path], out: Path, keys: Sequence[str]) -> None:
    """Write one side's rows of all shards to ``out``, in the order of ``keys``.

    ``paths``: shard 1's file, shard 2's, ...; that of a shard without images may be missing. Where the shards ran on
    several machines, each value of ``device`` and the number of threads have all of theirs, parted by `` | ``.

    Raises UserError: a file that cannot be read, headers that differ in more than the machine (naming both files and
    the first field), two different rows for one image, an image that is not in ``keys``, images that are missing or a
    file that is not finished (naming the shards to run again).
    """
    parts = _collect(paths, keys, Header, Row)
    write_bytes(out, parts.content(_one_side(parts.headers), keys))


@dataclass(frozen=True)
class _Parts(Generic[AnyHeader]):
    """All shards' files of one kind, checked to be whole. Lines and not rows: they take a tenth of the memory."""

    headers: dict[Path, AnyHeader]
    lines: dict[str, bytes]
    """Key -> line."""
    origins: dict[str, Path]
    """Key -> the file that its line is from."""

    def content(self, header: AnyHeader, keys: Sequence[str]) -> bytes:
        return whole_file(header, [self.lines[key] for key in keys])


def _collect(paths: Sequence[Path], keys: Sequence[str], head: type[AnyHeader], item: type[Item]) -> _Parts[AnyHeader]:
    """Read all files; UserError where they are not of one run, not whole, or of other images."""
    headers: dict[Path, AnyHeader] = {}
    lines: dict[str, bytes] = {}
    origins: dict[str, Path] = {}
    known, unfinished = set(keys), list[int]()
    for number, path in enumerate(paths, start=1):
        if not path.exists():
            continue  # its images are missed below, if it has any
        read = read_lines(path, head, item, unfinished=True)
        headers[path] = read.header
        if read.sha256 is None:
            unfinished.append(number)
        _same(headers, path)
        for key, row in read.rows.items():
            line = line_of(row)
            if key not in known:
                raise UserError(
                    f"{path} has image {row.image_id} (key {key}), which the dataset has not: delete the folder"
                    f" {path.parent} and run that shard again"
                )
            if lines.setdefault(key, line) != line:
                raise UserError(
                    f"image {row.image_id} (key {key}) has one row in {origins[key]} and another in {path}: delete the"
                    f" folder {path.parent} and run that shard again"
                )
            origins.setdefault(key, path)
    _whole(paths, keys, lines, unfinished)
    return _Parts(headers, lines, origins)


def _whole(paths: Sequence[Path], keys: Sequence[str], lines: dict[str, bytes], unfinished: Sequence[int]) -> None:
    shards = len(paths)
    wanted, lost = Counter[int](), Counter[int]()
    for index, key in enumerate(sorted(keys)):  # as shard_keys deals them
        shard = index % shards + 1
        wanted[shard] += 1
        lost[shard] += key not in lines
    lacking = [shard for shard in sorted(lost) if lost[shard]]
    if not lacking and unfinished:
        raise UserError(
            f"{paths[unfinished[0] - 1]} is not finished, it has no closing line: run --shards {shards} --shard"
            f" {unfinished[0]} again, then merge"
        )
    if lacking:
        shown = lacking[:SHOWN]
        each = [f"shard {shard} of {shards} is missing {lost[shard]} of {wanted[shard]} images" for shard in shown]
        more = f", and {len(lacking) - SHOWN} more shards are not whole" if len(lacking) > SHOWN else ""
        raise UserError(
            f"{', '.join(each)}{more} (in {paths[0].name}): run"
            f" {' and '.join(f'--shards {shards} --shard {shard}' for shard in shown)} again, then merge"
        )


def _one_side(headers: dict[Path, Header]) -> Header:
    """The header of all shards."""
    first = next(iter(headers.values()))
    machines = sorted({tuple(sorted(_machine(header).items())) for header in headers.values()})
    if len(machines) == 1:
        return first
    # Every value in the same order of machines, so that it shows which cpu goes with how many cores.
    joined = {}
    for field in sorted({field for machine in machines for field, _ in machine}):
        values = [dict(machine).get(field, "unknown") for machine in machines]
        joined[field] = values[0] if len(set(values)) == 1 else " | ".join(values)
    threads = joined.pop(_THREADS, None)
    runtime = first.runtime
    if threads is not None and threads != str(runtime.get(_THREADS)):
        runtime = runtime | {_THREADS: threads}
    return first.model_copy(update={"device": joined, "runtime": runtime})


def _machine(header: Header) -> dict[str, str]:
    """What a shard's header says of its machine."""
    threads = {_THREADS: str(header.runtime[_THREADS])} if _THREADS in header.runtime else {}
    return header.device | threads


def _one_ladder(headers: dict[Path, LadderHeader], reference: Header, candidate: Header) -> LadderHeader:
    """The ladder's header of all shards, for the two sides' merged headers.

    Every shard measures the noise floor on the same images. Other machines' arithmetic may differ in the last digits;
    the largest value of each is taken.
    """
    floor = _largest([header.floor.model_dump() for header in headers.values()])
    return next(iter(headers.values())).model_copy(
        update={
            "reference_sha256": header_digest(reference),
            "candidate_sha256": header_digest(candidate),
            "floor": NoiseFloor.model_validate(floor),
        }
    )


def _largest(values: list[Any]) -> Any:
    """Number by number, through dictionaries of one shape."""
    if isinstance(values[0], dict):
        return {key: _largest([value[key] for value in values]) for key in values[0]}
    return None if None in values else max(values)  # what open answers or labels leave out is left out by all


def _same(headers: dict[Path, AnyHeader], path: Path) -> None:
    """UserError where the header of ``path`` and the first one are not of one run."""
    first = next(iter(headers))
    a, b = (headers[one].model_dump(mode="json", exclude=_FREE[type(headers[one])]) for one in (first, path))
    found = _difference(a, b)
    if found:
        raise UserError(
            f"{first} and {path} cannot be merged: {found[0]} is {found[1]} in the first and {found[2]} in the second:"
            " run all shards with one recipe, one bundle and one version of the code"
        )


def _difference(a: Any, b: Any, at: str = "") -> tuple[str, str, str] | None:
    """(place, value in a, value in b) of the first difference of two JSON values; None where they are equal."""
    if a == b:
        return None
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            if a.get(key, _ABSENT) != b.get(key, _ABSENT):
                return _difference(a.get(key, _ABSENT), b.get(key, _ABSENT), f"{at}.{key}" if at else key)
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        index = next(index for index, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
        return _difference(a[index], b[index], f"{at}.{index}")
    return at, _short(a), _short(b)


_ABSENT = object()


def _short(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)
