"""Pairs of other families for the tests of ``parity check``: a tiny model, its GGUFs, pictures, both sides opened.

Everything is F32, with F32 keys and values and without flash attention, so that both sides agree to the last digits
that two ways to sum allow, and a fault stands out.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from session import Once

from parity.terms import ToolRuntime

EXACT = ToolRuntime(type_k="f32", type_v="f32", flash_attn="off", threads=1)
SETTINGS: dict[str, Any] = EXACT.model_dump(exclude_defaults=True)
"""The same as arguments of :func:`parity.check`."""


@dataclass(frozen=True)
class Tiny:
    """A tiny model's folder and its pair."""

    folder: Path
    text: Path
    mmproj: Path


def tiny_pair(once: Once, name: str) -> Tiny:
    """A family's tiny model, converted to F32; made once a session."""
    from parity.studies.families.models import convert_family, make_family

    folder = once(name, lambda folder: make_family(name, folder))
    made = once(f"{name}-gguf", lambda out: convert_family(folder, out))
    return Tiny(folder, made / f"{name}-F32.gguf", made / f"mmproj-{name}-F32.gguf")


def damaged(
    source: Path,
    target: Path,
    keys: dict[str, Any] | None = None,
    tensors: dict[str, Callable[[Callable[[str], Any]], Any]] | None = None,
) -> Path:
    """Copy a GGUF with other numbers in it; as large as before, so that it is quick even with a whole vocabulary.

    ``keys``: a number, or a list of as many. ``tensors``: name -> what makes its new content; it is given a function
    that reads a tensor as it was.
    """
    from pipeline.core.toolchain import load_gguf

    shutil.copy(source, target)
    reader: Any = load_gguf().GGUFReader(target, "r+")
    for key, value in (keys or {}).items():
        field = reader.fields[key]
        for place, number in zip(field.data, value if isinstance(value, list) else [value], strict=True):
            field.parts[place][0] = number
    there = {tensor.name: tensor.data for tensor in reader.tensors}
    made = {name: np.array(make(there.__getitem__)) for name, make in (tensors or {}).items()}
    for name, content in made.items():
        there[name][...] = content
    reader.data.flush()
    return target


def trained_further(source: Path, target: Path, by: float = 0.01) -> Path:
    """Copy a GGUF in F32 with each matrix of its layers a little off, as another training has it; ``by``: relative."""
    from pipeline.core.toolchain import load_gguf

    shutil.copy(source, target)
    reader: Any = load_gguf().GGUFReader(target, "r+")
    generator = np.random.default_rng(0)
    for tensor in reader.tensors:
        if "blk." in tensor.name and len(tensor.shape) == 2:
            size = by * np.linalg.norm(tensor.data) / np.sqrt(tensor.data.size)
            tensor.data[...] += size * generator.standard_normal(tensor.data.shape).astype(np.float32)
    reader.data.flush()
    return target


def reworded(source: Path, target: Path, old: str, new: str) -> Path:
    """Copy a GGUF with a text in it replaced by one as long, or a shorter one filled up with spaces."""
    content, was = source.read_bytes(), old.encode()
    assert content.count(was) == 1
    assert len(was) >= len(new.encode())
    target.write_bytes(content.replace(was, new.encode().ljust(len(was))))
    return target


def swapped(*names: str) -> dict[str, Callable[[Callable[[str], Any]], Any]]:
    """Two tensors, each in the other's place; for :func:`damaged`."""
    a, b = names
    return {a: lambda read: read(b), b: lambda read: read(a)}


def picture(width: int, height: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Patches of colour that run into one another, [height, width, 3]: noise would hang on the resampling alone."""
    coarse = np.random.default_rng(seed).integers(0, 256, (max(height // 8, 2), max(width // 8, 2), 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def write_photos(folder: Path, sizes: Sequence[tuple[int, int]]) -> Path:
    """A picture of each (width, height) as PNG, named by its number and size."""
    folder.mkdir(parents=True)
    for number, (width, height) in enumerate(sizes):
        Image.fromarray(picture(width, height, number)).save(folder / f"{number}-{width}x{height}.png")
    return folder


def open_reference(pair: Tiny) -> Any:
    """Hugging Face's side, an ``AutoSide``."""
    from parity.engines.auto import AutoSide
    from pipeline.models.auto import load_model, load_processor

    return AutoSide(load_processor(str(pair.folder)), load_model(str(pair.folder)))


@contextmanager
def open_candidate(pair: Tiny, runtime: ToolRuntime = EXACT, n_tokens: int = 1024) -> Iterator[Any]:
    """llama.cpp's side, a ``Mtmd`` with a context of ``n_tokens``."""
    from parity.engines.mtmd import Mtmd

    with Mtmd(pair.text, pair.mmproj, runtime) as side:
        side.open_context(n_tokens)
        yield side
