"""What lies beside the results for whoever looks further into a difference: what the GGUFs say of themselves, the
prompt as it was sent, and the tensors of the worst images."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pydantic import ValidationError

from parity.terms import Terms
from pipeline.contract import Contract
from pipeline.core.files import read_regular, write_json
from pipeline.core.settings import Frozen
from pipeline.core.toolchain import load_gguf
from pipeline.export.verify import TENSOR_TYPES, read_gguf

GGUFS = "ggufs.json"
WORST = "worst"
_LONGEST = 200
"""Characters of a value; a chat template has thousands."""
_MOST = 32
"""Elements of an array that is shown."""


class GgufFacts(Frozen):
    """One half."""

    file: str
    tensors: str
    """How many of which type, such as ``170 Q8_0, 66 F32``."""
    keys: dict[str, str]
    """The metadata, without long arrays: the vocabulary."""


class Ggufs(Frozen):
    """``ggufs.json``: the text half, then the vision half."""

    halves: tuple[GgufFacts, ...]


@dataclass(frozen=True)
class Tensors:
    """The tensors of one image, in a file of their own."""

    key: str
    """As much of the image's key as the file's name has."""
    link: str
    """From the page to the file."""
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Attached:
    """All of it; what is not there is left out."""

    contract: Contract | None = None
    ggufs: tuple[GgufFacts, ...] = ()
    tensors: tuple[Tensors, ...] = ()


NOTHING = Attached()


def write_ggufs(models: Sequence[Path], folder: Path) -> None:
    """Write ``ggufs.json`` of a text half and a vision half. Raises CheckFailed where one is no GGUF."""
    halves = tuple(_facts(model) for model in models)
    write_json(folder / GGUFS, Ggufs(halves=halves).model_dump(mode="json"))


def _facts(path: Path) -> GgufFacts:
    found = read_gguf(path)
    types = Counter(TENSOR_TYPES[kind][0] for kind, _ in found.tensors.values())
    keys = dict(found.keys)
    if "tokenizer.ggml.tokens" not in keys:  # gguf-py takes a second for a vocabulary of 50,000
        for name, field in load_gguf().GGUFReader(path).fields.items():
            if keys.get(name, "") is None and len(field.data) <= _MOST:
                keys[name] = field.contents()
    return GgufFacts(
        file=path.name,
        tensors=", ".join(f"{count} {name}" for name, count in types.most_common()),
        keys={name: _shown(value) for name, value in keys.items() if value is not None},
    )


def _shown(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    text = str(value).lower() if isinstance(value, bool) else f"{value:.9g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text):,} characters)"


def find_attached(folder: Path, terms: Terms, page: Path) -> Attached:
    """What lies in the folder of results, for a page that is written to ``page``.

    A file that is not there, or is none of ours, is left out: nothing here is judged.
    """
    try:
        ggufs = Ggufs.model_validate_json(read_regular(folder / GGUFS), strict=True).halves
    except (OSError, ValidationError):
        ggufs = ()
    return Attached(terms if isinstance(terms, Contract) else None, ggufs, tuple(_tensors(folder / WORST, page)))


def _tensors(worst: Path, page: Path) -> list[Tensors]:
    found = []
    start = page.absolute().parent
    for path in sorted(worst.glob("*.npz")):
        try:
            size = path.stat().st_size
        except OSError:
            continue
        relative = os.path.relpath(path.absolute(), start)
        found.append(Tensors(path.stem, quote(Path(relative).as_posix()), size))
    return found
