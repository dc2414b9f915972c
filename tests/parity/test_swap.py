"""The swap matrix finds a planted fault in the part where it was planted, and goes on where it was killed.

The model is the tests' untrained one; its files in F32 and Q8_0 are the session's, and stand in for F16.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import NAME, Pair, canvases, opened, rewrite
from rich.console import Console

import parity.swap
from parity.attribution import SwapMatrix, SwapRow, markdown, print_matrix
from parity.swap import Swaps, variants
from pipeline.contract import Contract, Runtime
from pipeline.errors import UserError
from pipeline.export.toolchain import load_gguf
from pipeline.files import sha256_bytes
from pipeline.progress import Reporter

PHONE = Runtime(n_threads=1)
CONTRACT = Contract(max_new_tokens=2, runtime=PHONE)
N = 6


@dataclass(frozen=True)
class Canvas:
    """What the matrix wants of a sample."""

    key: str
    image_id: str
    truth: str
    rgb: Any


SAMPLES: list[Any] = [
    Canvas(sha256_bytes(rgb.tobytes()), f"image_{number}", "fire", rgb) for number, rgb in enumerate(canvases(N))
]


@pytest.fixture(autouse=True)
def _no_converter(monkeypatch: pytest.MonkeyPatch, exact_pair: Pair) -> None:
    """A conversion takes 3 to 7 seconds; F32's files are at hand."""
    monkeypatch.setattr(parity.swap, "convert_text", lambda _, out, *__: _copy(exact_pair.text, out))
    monkeypatch.setattr(parity.swap, "convert_mmproj", lambda _, out, *__: _copy(exact_pair.mmproj, out))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def swaps(tiny: Path, pair: Pair, folder: Path, **changed: Any) -> Swaps:
    found = Swaps(
        merged=tiny,
        merged_sha256="0" * 64,
        text=pair.text,
        mmproj=pair.mmproj,
        text_type="Q8_0",
        mmproj_type="Q8_0",
        model_name=NAME,
        contract=CONTRACT,
        samples=SAMPLES,
        dataset_sha256="0" * 64,
        folder=folder,
        threads=1,
        reporter=Reporter(Console(), quiet=True),
    )
    return replace(found, **changed)


@pytest.fixture(scope="module")
def clean(tiny: Path, exact_pair: Pair, phone_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sound pair's matrix."""
    folder = tmp_path_factory.mktemp("swap")
    with pytest.MonkeyPatch.context() as patch:
        _no_converter.__wrapped__(patch, exact_pair)  # type: ignore[attr-defined]
        swaps(tiny, phone_pair, folder).run()
    return folder


@pytest.fixture
def folder(clean: Path, tmp_path: Path) -> Path:
    """A copy of it, so that a test measures only the rows that its fault changes."""
    return Path(shutil.copytree(clean, tmp_path / "swap"))


def rows_of(matrix: SwapMatrix) -> dict[str, SwapRow]:
    return {row.variant.name: row for row in matrix.rows}


def read(folder: Path) -> SwapMatrix:
    return SwapMatrix.model_validate_json((folder / "swap.json").read_text(encoding="utf-8"))


def broken(matrix: SwapMatrix) -> list[str]:
    return [part.name for part in matrix.attribution.parts if part.broken]
