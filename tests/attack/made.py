"""A run's folder as `parity run` leaves it, made in a second around a real bundle: what the attacks damage.

    <run>/dataset/   <run>/bundle/   <run>/parity/{hf,llamacpp}.results.jsonl ladder.jsonl verdict.json

A file of lines is edited as a careless hand does (the closing line stays as it was), or ``remade``: with
:func:`reseal`, which makes count and closing line anew, so that only what the lines say can give it away.
"""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from headers import gguf_text
from PIL import Image
from pydantic import ValidationError
from sides import FLOOR

from parity.compare.ladder import LadderHeader, LadderWriter, Measured, header_digest
from parity.results import Header, ResultsWriter, Row, label_kl
from pipeline.contract import Contract
from pipeline.core.files import sha256_bytes, sha256_file, write_json
from pipeline.core.provenance import versions
from pipeline.dataset.records import SCHEMA_VERSION, Record, read_dataset, stored_settings
from pipeline.export.convert import KEY_WEIGHTS

CONTRACT = Contract()
LABELS = CONTRACT.labels
IMAGES = 300
"""Enough for 3 points of margin: with 2 flips each way Tango's interval goes down to -2.4 points."""
LOSES = 27
"""Images that the candidate of a run that must fail gets wrong and the reference does not: 9 points."""

Line = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """The files of a run."""

    root: Path

    @property
    def parity(self) -> Path:
        return self.root / "parity"

    @property
    def hf(self) -> Path:
        return self.parity / "hf.results.jsonl"

    @property
    def llamacpp(self) -> Path:
        return self.parity / "llamacpp.results.jsonl"

    @property
    def sides(self) -> tuple[Path, Path]:
        return self.hf, self.llamacpp

    @property
    def ladder(self) -> Path:
        return self.parity / "ladder.jsonl"

    @property
    def files(self) -> tuple[Path, Path, Path]:
        return self.hf, self.llamacpp, self.ladder

    @property
    def verdict(self) -> Path:
        return self.parity / "verdict.json"

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"

    @property
    def dataset(self) -> Path:
        return self.root / "dataset"

    @property
    def text(self) -> Path:
        """The language half."""
        return next(path for path in self.bundle.glob("*.gguf") if not path.name.startswith("mmproj-"))

    @property
    def mmproj(self) -> Path:
        return next(self.bundle.glob("mmproj-*.gguf"))


# --- making one ------------------------------------------------------------------------------------------------------


def make_dataset(folder: Path, images: int = IMAGES, labels: Sequence[str] = LABELS, size: int = 256) -> None:
    """A valid dataset: ``images`` for the test, the labels in turn, and two for training and validation each."""
    (folder / "images").mkdir(parents=True)
    parts: dict[str, list[Record]] = {"train": [], "val": [], "test": []}
    for number in range(images + 4):
        pixels = np.full((size, size, 3), (number % 256, number // 256, 99), np.uint8)
        pixels[: size // 2] = (40 * (number % 5), 7, number % 199)
        path = f"images/image_{number:04d}.png"
        Image.fromarray(pixels).save(folder / path, compress_level=1)
        part = "test" if number < images else ("train", "val")[number % 2]
        parts[part].append(
            Record(
                image_id=f"image_{number:04d}",
                image_path=path,
                element=labels[number % len(labels)],
                sha256=sha256_file(folder / path),
                rgb_sha256=sha256_bytes(pixels.tobytes()),
            )
        )
    for split, records in parts.items():
        write_json(folder / f"{split}.json", [record.as_json() for record in records])
    about = {"schema_version": SCHEMA_VERSION, "image": stored_settings(CONTRACT), "labels": list(labels)}
    write_json(folder / "metadata.json", about)


def headers(digest: str, bundle: Path | None, images: int = IMAGES) -> tuple[Header, Header]:
    """Both sides' headers, as the engines make them. Without a bundle, of files that are nowhere."""
    ggufs = sorted(bundle.glob("*.gguf")) if bundle else []
    hashes = {("mmproj" if path.name.startswith("mmproj-") else "model"): sha256_file(path) for path in ggufs}
    weights = (gguf_text(ggufs[0].read_bytes(), KEY_WEIGHTS) if ggufs else None) or "5" * 64
    common: Line = {
        "contract_sha256": CONTRACT.digest,
        "dataset_sha256": digest,
        "split": "test",
        "weights_sha256": weights,
        "versions": versions() | {"code": "c" * 64, "runner": "d" * 64},
        "device": {"cpu": "a machine", "cores": "2"},
        "prompt_token_ids": [1, 49189, *[-1] * 16, 49189, *[-1] * 16, 49189, 28, 98],
        "image_slots": [[2, 16], [19, 16]],
        "images": images,
    }
    runtime = CONTRACT.runtime.model_dump(mode="json")
    ours = {
        "side": "hf",
        "engine": "transformers",
        "model": {"model.safetensors": "a" * 64},
        "runtime": {"dtype": "float32", "device": "cpu", "n_threads": 2, "fed": "rgb"},
    }
    theirs = {
        "side": "llamacpp",
        "engine": "llama.cpp",
        "model": hashes or {"model": "e" * 64, "mmproj": "f" * 64},
        "runtime": runtime | {"n_threads": 2, "fed": "rgb", "text_types": "Q8_0", "mmproj_types": "Q8_0"},
    }
    return Header.model_validate(common | ours), Header.model_validate(common | theirs)


def rows(records: Sequence[Record], loses: int = 2) -> tuple[list[Row], list[Row]]:
    """Both sides' answers. The reference is right in ten of eleven; of these the candidate gets ``loses`` wrong, and it
    gets two right that the reference gets wrong."""
    chance = random.Random(7)
    ours, theirs = [], []
    for number, record in enumerate(records):
        truth = record.element
        other = LABELS[(LABELS.index(truth) + 1) % len(LABELS)]
        mine = other if number % 11 == 9 else truth
        yours = mine
        if number % 11 == 4 and number // 11 < loses:
            yours = other
        elif number in (9, 20):
            yours = truth
        values = {label: -4.0 - chance.random() for label in LABELS}
        drift = {label: chance.gauss(0, 3e-3) for label in LABELS}
        first = values | {mine: -0.1 - 0.1 * chance.random()}
        second = {label: value + drift[label] for label, value in first.items()}
        if yours != mine:
            second = second | {mine: second[yours], yours: second[mine]}
        spent = {name: chance.uniform(1, 2) for name in ("encode", "prefill", "generate")}
        for side, label, logprobs in ((ours, mine, first), (theirs, yours, second)):
            side.append(
                Row(
                    key=record.rgb_sha256,
                    image_id=record.image_id,
                    rgb_sha256=record.rgb_sha256,
                    truth=truth,
                    text=f" {label}",
                    label=label,
                    generated_token_ids=(1000 + LABELS.index(label),),
                    label_logprobs=logprobs,
                    top_logits=((1000 + LABELS.index(label), 11.5 + logprobs[label]), (7, 2.5)),
                    ms=spent,
                    stop_reason="end",
                )
            )
    return ours, theirs


def ladder_header(ours: Header, theirs: Header, images: int = IMAGES) -> LadderHeader:
    """As the walk of a Q8_0 pair leaves it."""
    values: Line = {
        "reference_sha256": header_digest(ours),
        "candidate_sha256": header_digest(theirs),
        "contract_sha256": ours.contract_sha256,
        "dataset_sha256": ours.dataset_sha256,
        "text_type": "Q8_0",
        "mmproj_type": "Q8_0",
        "kv_type": f"{CONTRACT.runtime.type_k}/{CONTRACT.runtime.type_v}",
        "floor": FLOOR,
        "images": images,
    }
    return LadderHeader.model_validate(values)


def measured(a: Row, b: Row, chance: random.Random) -> Measured:
    """A comparison that both rows bear out."""
    return Measured(
        key=a.key,
        image_id=a.image_id,
        decoded_equal=True,
        pixels_equal=a.rgb_sha256 == b.rgb_sha256,
        tiles=(2, 2),
        tiles_bytes=0,
        tiles_bytes_share=0.0,
        tiles_floats=1.2e-7,
        tokens_equal=True,
        tokens_first=None,
        embeddings_error=0.009 * chance.lognormvariate(0, 0.1),
        embeddings_cosine=0.9999,
        logits_kl=5e-5 * chance.lognormvariate(0, 1.0),
        logits_kl_labels=label_kl(a, b),
        logits_top1_equal=a.top_logits[0][0] == b.top_logits[0][0],
        logits_max=0.02,
        generated_equal=a.generated_token_ids == b.generated_token_ids,
        label_equal=a.label == b.label,
    )


def write_files(folder: Path, records: Sequence[Record], digest: str, bundle: Path | None, loses: int = 2) -> None:
    """The three files of lines of a run that came to its end."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(records)
    ours, theirs = headers(digest, bundle, count)
    sides = rows(records, loses)
    chance = random.Random(11)
    compared = [measured(a, b, chance) for a, b in zip(*sides, strict=True)]
    for name, header, lines in (("hf", ours, sides[0]), ("llamacpp", theirs, sides[1])):
        with ResultsWriter(folder / f"{name}.results.jsonl", header) as writer:
            for row in lines:
                writer.append(row)
    with LadderWriter(folder / "ladder.jsonl", ladder_header(ours, theirs, count)) as steps:
        for step in compared:
            steps.append(step)


def make_run(root: Path, bundle: Path, loses: int = 2) -> Run:
    """A whole run without its verdict, which the command line writes; ``loses`` as for :func:`rows`."""
    run = Run(root)
    make_dataset(run.dataset)
    shutil.copytree(bundle, run.bundle, copy_function=os.link)
    read = read_dataset(run.dataset, CONTRACT)
    write_files(run.parity, read.test, read.digest, run.bundle, loses)
    return run


def copy_run(run: Run, root: Path) -> Run:
    """A copy to damage: large files are links to the first one's and must be replaced, not written into."""
    root.mkdir()
    shutil.copytree(run.parity, root / "parity")
    for name in ("bundle", "dataset"):
        shutil.copytree(run.root / name, root / name, copy_function=os.link)
    return Run(root)


# --- damaging one ----------------------------------------------------------------------------------------------------


def replace(path: Path, data: bytes | str) -> None:
    """Put a file in another's place; what other names it has keep the old content."""
    path.unlink(missing_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def is_end(line: Line) -> bool:
    return line.get("kind") == "end"


def read(path: Path) -> tuple[Line, list[Line], list[Line]]:
    """(header, rows, closing lines) of a file of lines."""
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    return lines[0], [line for line in lines[1:] if not is_end(line)], [line for line in lines[1:] if is_end(line)]


def write(path: Path, header: Line, rows: Iterable[Line], end: Iterable[Line] = ()) -> None:
    """Write it as it is given."""
    replace(path, "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in (header, *rows, *end)))


def reseal(path: Path) -> None:
    """Make count and closing line anew for the lines that are there."""
    header, lines, _ = read(path)
    header["images"] = len(lines)
    write(path, header, lines)
    body = path.read_bytes()
    end = {"kind": "end", "rows": len(lines), "sha256": sha256_bytes(body)}
    replace(path, body + json.dumps(end, separators=(",", ":")).encode() + b"\n")


def edit_rows(path: Path, change: Callable[[list[Line]], Iterable[Line] | None]) -> None:
    """Change a file's rows, in place or by what ``change`` returns; closing line and header stay as they are."""
    header, lines, end = read(path)
    changed = change(lines)
    write(path, header, lines if changed is None else changed, end)


def edit_header(path: Path, change: Callable[[Line], object]) -> None:
    """Change a file's header; the rest stays."""
    header, lines, end = read(path)
    change(header)
    write(path, header, lines, end)


def remake(run: Run) -> None:
    """Make everything anew that a careful hand would: closing lines, and the headers that the ladder names."""
    for path in run.sides:
        reseal(path)
    if run.ladder.exists():
        with suppress(ValidationError):  # a header that no reader takes
            stated = [header_digest(Header.model_validate(read(path)[0])) for path in run.sides]
            edit_header(
                run.ladder, lambda header: header.update(reference_sha256=stated[0], candidate_sha256=stated[1])
            )
        reseal(run.ladder)


def remeasure(run: Run) -> None:
    """Make the ladder's lines anew for the rows that are there, and everything else."""
    ours, theirs = ({line["key"]: Row.model_validate(line) for line in read(path)[1]} for path in run.sides)
    chance = random.Random(11)
    steps = [measured(row, theirs[key], chance).model_dump(mode="json") for key, row in ours.items() if key in theirs]
    header, _, end = read(run.ladder)
    write(run.ladder, header, steps, end)
    remake(run)


def remake_manifest(bundle: Path) -> None:
    """The manifest with the hashes of the files that are there."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    files = sorted(
        path for path in bundle.iterdir() if path.is_file() and path.name not in ("manifest.json", "model.sig")
    )
    manifest["outputs"] = {path.name: sha256_file(path) for path in files}
    replace(bundle / "manifest.json", json.dumps(manifest))
