"""The swap matrix finds a planted fault in the part where it was planted, and goes on where it was killed.

The model is the tests' untrained one; its files in F32 and Q8_0 are the session's, and stand in for F16.
"""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import NAME, Pair, canvases, opened, rewrite
from rich.console import Console

import parity.studies.swap.job
from parity.engines import hf
from parity.studies.swap.job import Swaps, variants
from parity.studies.swap.matrix import SwapMatrix, SwapRow
from parity.studies.swap.tables import markdown, print_matrix
from pipeline.contract import Contract, Runtime
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes
from pipeline.core.progress import Reporter
from pipeline.core.toolchain import load_gguf
from pipeline.export import half
from pipeline.export.half import Exporter

pytestmark = pytest.mark.slow

PHONE = Runtime(n_threads=1)
CONTRACT = Contract(max_new_tokens=2, runtime=PHONE)
N = 5


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


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads that wait for each other take long where other programs want the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_converter(monkeypatch: pytest.MonkeyPatch, exact_pair: Pair) -> None:
    """A conversion takes 3 to 7 seconds; F32's files are at hand."""
    monkeypatch.setattr(half, "convert_text", lambda _, out, *__: _copy(exact_pair.text, out))
    monkeypatch.setattr(half, "convert_mmproj", lambda _, out, *__: _copy(exact_pair.mmproj, out))
    # They state another contract and type, which is the checks' alone to see.
    monkeypatch.setattr(half, "check_text", lambda *_: None)
    monkeypatch.setattr(half, "check_mmproj", lambda *_: None)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def swaps(tiny: Path, pair: Pair, folder: Path, contract: Contract = CONTRACT, **changed: Any) -> Swaps:
    found = Swaps(
        exporter=Exporter(tiny, NAME, contract, "swap", threads=1),
        merged_sha256="0" * 64,
        text=pair.text,
        mmproj=pair.mmproj,
        text_type="Q8_0",
        mmproj_type="Q8_0",
        samples=SAMPLES,
        dataset_sha256="0" * 64,
        folder=folder,
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


def test_a_sound_pair_has_nothing_broken_and_its_cache_carries_the_error(clean: Path) -> None:
    matrix = read(clean)
    rows, found = rows_of(matrix), matrix.attribution
    assert list(rows) == [variant.name for variant in variants(CONTRACT, "Q8_0", "Q8_0")]
    assert not found.broken
    assert found.carrier == "runtime"  # KV Q4_0
    assert "Nothing is broken" in found.sentence
    assert "KV f16" in found.fix
    total = sum(part.kl or 0.0 for part in found.parts) + (found.together or 0.0)
    assert total == pytest.approx(rows["shipped"].kl_mean)
    assert {row.samples for row in matrix.rows} == {N}


def test_each_half_moves_what_it_can_move(clean: Path) -> None:
    rows = rows_of(read(clean))
    for name, row in rows.items():
        assert (row.embeddings_error == 0) == (row.variant.takes == "embeddings"), name
    errors = {name: row.embeddings_error or 0.0 for name, row in rows.items()}
    assert errors["exact"] < 1e-3 < errors["mmproj-Q8_0"] == errors["shipped"]
    assert (rows["exact-embeddings"].kl_mean or 0.0) < (rows["text-Q8_0"].kl_mean or 0.0)
    assert (rows["swapped-channels"].tiles_floats or 0.0) > 0.1
    assert rows["swapped-channels"].variant.fed == "bgr"


def test_with_embeddings_put_in_only_the_language_half_is_left(
    clean: Path, tiny: Path, exact_pair: Pair, phone_pair: Pair
) -> None:
    """Computed anew with scipy, and with another vision half, which must not matter."""
    from models import encoder_for
    from scipy.stats import entropy

    from parity.engines.hf import hf_predictor
    from parity.engines.llamacpp import LlamaCppPredictor

    encoder, seen = encoder_for(tiny, CONTRACT), [sample.rgb for sample in SAMPLES]
    ours = [taps for _, taps in hf_predictor(tiny, encoder).observe(seen)]
    with LlamaCppPredictor(phone_pair.text, exact_pair.mmproj, encoder, tapped=True) as side:
        theirs = [taps for _, taps in side.observe(seen, embeddings=iter([taps.embeddings for taps in ours]))]
    kl = [entropy(np.exp(a.log_probs), np.exp(b.log_probs)) for a, b in zip(ours, theirs, strict=True)]
    row = rows_of(read(clean))["shipped-embeddings"]
    assert row.kl_mean == pytest.approx(np.mean(kl), rel=1e-6)
    assert row.kl_median == pytest.approx(np.median(kl), rel=1e-6)


def scaled(source: Path, target: Path, name: str, factor: float) -> Path:
    """A copy of a GGUF with a tensor of floats multiplied."""
    shutil.copyfile(source, target)
    tensor = next(tensor for tensor in opened(source).tensors if tensor.name == name)
    assert tensor.tensor_type == load_gguf().GGMLQuantizationType.F32
    values = np.memmap(target, np.float32, "r+", tensor.data_offset, (tensor.n_elements,))
    values *= factor
    values.flush()
    return target


def other_mean(source: Path, target: Path) -> Path:
    return rewrite(source, target, {"clip.vision.image_mean": [0.4, 0.5, 0.5]})


Fault = Callable[[Path, Path], Path]
FAULTS: dict[str, tuple[str, Fault, str]] = {
    "vision": ("mmproj", lambda a, b: scaled(a, b, "v.post_ln.weight", 4.0), "vision quantization"),
    "mean": ("mmproj", other_mean, "preprocessing"),
    "text": ("text", lambda a, b: scaled(a, b, "output_norm.weight", 1.3), "text quantization"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_shipped_file_is_found_in_its_part(
    tiny: Path, phone_pair: Pair, clean: Path, folder: Path, fault: str
) -> None:
    half, plant, part = FAULTS[fault]
    bad = plant(getattr(phone_pair, half), folder / "bad.gguf")
    matrix = swaps(tiny, replace(phone_pair, **{half: bad}), folder).run()
    assert broken(matrix) == [part]
    assert matrix.attribution.carrier == part
    assert part in matrix.attribution.sentence
    assert "BROKEN" in markdown(matrix)
    before, after = rows_of(read(clean)), rows_of(matrix)
    own, pixels, embeddings = (after[f"shipped{end}"].kl_median or 0.0 for end in ("", "-pixels", "-embeddings"))
    if fault == "vision":
        assert after["shipped-embeddings"] == before["shipped-embeddings"]
        assert embeddings < own / 10
        assert embeddings < pixels / 10
    elif fault == "mean":
        made = {"tiles_floats": before["shipped-pixels"].tiles_floats}  # its own pictures are measured, too
        assert after["shipped-pixels"].model_copy(update=made) == before["shipped-pixels"]
        assert pixels < own / 10
    else:
        assert min(pixels, embeddings) > own / 2


def test_a_fault_of_the_conversion_is_not_blamed_on_the_type(
    tiny: Path, exact_pair: Pair, phone_pair: Pair, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty = scaled(exact_pair.mmproj, folder / "faulty.gguf", "v.post_ln.weight", 4.0)
    monkeypatch.setattr(half, "convert_mmproj", lambda _, out, *__: _copy(faulty, out))
    for path in (folder / "gguf").glob("mmproj-*"):
        path.unlink()
    assert broken(swaps(tiny, phone_pair, folder).run()) == ["conversion and engine, vision half"]


def test_without_quantized_cache_the_runtime_is_not_the_carrier(tiny: Path, phone_pair: Pair, folder: Path) -> None:
    better = CONTRACT.model_copy(update={"runtime": Runtime(type_k="f16", type_v="f16", n_threads=1)})
    found = swaps(tiny, phone_pair, folder, contract=better).run().attribution
    assert not found.broken
    assert found.carrier in ("text quantization", "vision quantization")


def test_a_killed_run_goes_on(tiny: Path, phone_pair: Pair, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = ["text-F16", "kv-f16", "shipped"]
    for name in again:
        (folder / "rows" / f"{name}.json").unlink()
    (folder / "swap.json").unlink()
    counted, limit = 0, N + 2
    before = parity.studies.swap.job.measure

    def counting(*arguments: Any) -> Any:
        nonlocal counted
        if counted == limit:
            raise KeyboardInterrupt
        counted += 1
        return before(*arguments)

    monkeypatch.setattr(parity.studies.swap.job, "measure", counting)
    with pytest.raises(KeyboardInterrupt):
        swaps(tiny, phone_pair, folder).run()
    assert not (folder / "swap.json").exists()
    counted, limit = 0, 10**9
    matrix = swaps(tiny, phone_pair, folder).run()
    assert counted == 2 * N  # the first of the three was done
    assert json.loads((folder / "swap.json").read_text()) == matrix.model_dump(mode="json")


def test_what_is_done_is_not_done_again(
    tiny: Path, exact_pair: Pair, phone_pair: Pair, clean: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[str] = []

    def convert(_: Path, out: Path, *__: Any) -> None:
        exported.append(out.name)
        _copy(exact_pair.text, out)

    monkeypatch.setattr(half, "convert_text", convert)
    monkeypatch.setattr(hf, "open_hf", None)  # no model may be loaded
    assert swaps(tiny, phone_pair, folder).run() == read(clean)
    assert exported == []
    (folder / "gguf" / f"{NAME}-F16.gguf").write_bytes(b"damaged")
    assert swaps(tiny, phone_pair, folder).run() == read(clean)
    assert exported == [f"{NAME}-F16.gguf"]


def test_another_layout_of_the_prompt_is_refused(tiny: Path, phone_pair: Pair, folder: Path) -> None:
    other = Contract.model_validate(CONTRACT.model_dump() | {"tiling": {"plan": "overview"}})
    with pytest.raises(UserError, match="tokens"):
        swaps(tiny, phone_pair, folder, contract=other).run()


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_fits_the_screen(clean: Path, width: int) -> None:
    matrix = read(clean)
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        print_matrix(matrix, console)
    text = capture.get()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for row in matrix.rows:
        assert row.variant.title in text
    assert matrix.attribution.sentence.split(";")[0] in " ".join(text.split())


def test_numbers_that_are_none_are_the_part_that_made_them(clean: Path) -> None:
    from parity.studies.swap.attribution import attribute

    rows = rows_of(read(clean))
    for name in ("text-Q8_0", "shipped", "shipped-pixels", "shipped-embeddings"):
        rows[name] = rows[name].model_copy(update={"kl_median": None, "kl_mean": None, "kl_p95": None})
    found = attribute(rows, 1.0)
    assert [part.name for part in found.parts if part.broken] == ["text quantization"]
    assert "NaN" in found.sentence
    assert found.together is None
