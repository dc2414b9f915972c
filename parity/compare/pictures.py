"""What a phone's runner is given to answer: canvases as PNG files, and their list (docs/android.md)."""

import json
from collections.abc import Sequence
from pathlib import Path

from parity.compare.samples import Sample
from pipeline.core.errors import UserError
from pipeline.core.files import write_bytes

LIST = "pictures.jsonl"


def write_pictures(
    samples: Sequence[Sample], dataset_sha256: str, folder: Path, plan_sha256: str | None = None
) -> Path:
    """Write the canvases of ``samples`` and their list, in this order, into ``folder``; returns the list's path.

    ``dataset_sha256``: the dataset's digest; ``plan_sha256``: the plan's whose order this is. Files are named for
    their keys, so that a folder that has some of them is filled up. Raises UserError: no samples, or samples of several
    splits; a canvas that cannot be read; a place that cannot be written.
    """
    splits = {sample.split for sample in samples}
    if len(splits) != 1:
        raise UserError(f"a phone answers images of one split, and these are of {len(splits)}: give some of one")
    header = {"schema_version": 1, "kind": "pictures", "images": len(samples), "dataset_sha256": dataset_sha256}
    lines = [header | {"split": splits.pop(), "plan_sha256": plan_sha256}]
    for sample in samples:
        try:
            content = sample.path.read_bytes()
        except OSError as error:
            raise UserError(f"{sample.path} cannot be read: {error.strerror}; make the dataset again") from None
        name = f"{sample.key}.png"
        if not (folder / name).is_file() or (folder / name).read_bytes() != content:
            write_bytes(folder / name, content)
        lines.append({"key": sample.key, "image_id": sample.image_id, "file": name, "truth": sample.truth})
    path = folder / LIST
    write_bytes(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    return path
