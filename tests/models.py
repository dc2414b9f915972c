"""Small models and GGUF files for the tests; the fixtures that share them through a session are in conftest.py."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from parity.engines.llamacpp import LlamaCppPredictor
from pipeline.contract import Contract, Runtime, Tiling
from pipeline.core.gguf_types import MmprojType, TextType
from pipeline.core.toolchain import load_gguf
from pipeline.export.convert import KEY_CONTRACT, KEY_RECIPE, Metadata, convert_mmproj, convert_text
from pipeline.models.smolvlm.embedded import build_model, build_tokenizer
from pipeline.models.smolvlm.encoding import Encoder, make_encoder
from pipeline.models.smolvlm.folder import VisionGeometry, load_tokenizer, read_geometry, write_model_folder
from pipeline.recipe import ExportSettings, Recipe

NAME, RECIPE = "Tiny-Element", "tiny"
"""``general.name`` and recipe of every GGUF made for the tests."""


def write_tiny(folder: Path, tiling: Tiling = Tiling()) -> Path:  # noqa: B008  (frozen)
    """Write ``embedded:tiny`` with its language layers' weights tripled.

    As it is made, before any training, it repeats the prompt's last token whatever the picture. Tripled, it answers 24
    pictures in 24 ways.
    """
    import torch

    model, geometry = build_model("embedded:tiny", 0), VisionGeometry(256, 16, 4, (0.5,) * 3, (0.5,) * 3, 49190)
    with torch.no_grad():
        for parameter in model.model.text_model.layers.parameters():
            if parameter.ndim == 2:
                parameter *= 3
    write_model_folder(folder, model, build_tokenizer(), tiling, geometry)
    return folder


def bundle_recipe(**export: Any) -> Recipe:
    """The recipe of the tests' bundles."""
    return Recipe(name=RECIPE, export=ExportSettings.model_validate({"name": NAME, **export}))


@dataclass(frozen=True)
class Pair:
    """A language half and a vision half."""

    text: Path
    mmproj: Path


def pair_in(folder: Path, text_type: TextType, mmproj_type: MmprojType) -> Pair:
    """What :func:`export_pair` writes into ``folder``."""
    return Pair(folder / f"{NAME}-{text_type}.gguf", folder / f"mmproj-{NAME}-{mmproj_type}.gguf")


def export_pair(model: Path, folder: Path, text_type: TextType, mmproj_type: MmprojType) -> Pair:
    """Convert a model folder, both halves at once, under the default contract."""
    pair = pair_in(folder, text_type, mmproj_type)
    added: Metadata = {KEY_CONTRACT: Contract().digest, KEY_RECIPE: RECIPE}
    with ThreadPoolExecutor(1) as other:
        half = other.submit(convert_mmproj, model, pair.mmproj, mmproj_type, NAME, added)
        convert_text(model, pair.text, text_type, NAME, added, threads=2)
        half.result()
    return pair


@cache
def opened(path: Path) -> Any:
    """The reader of a GGUF of this session, which is opened once."""
    return load_gguf().GGUFReader(path)  # type: ignore[attr-defined]


def rewrite(
    source: Path,
    target: Path,
    keys: dict[str, Any] | None = None,
    drop: str | None = None,
    change: dict[str, Callable[[Any], Any]] | None = None,
    as_f16: str | None = None,
) -> Path:
    """Copy a GGUF with other metadata (``keys``, new ones too; ``change``: a function of the old value), without the
    tensor ``drop``, or with the tensor ``as_f16`` stored as F16."""
    keys, change = keys or {}, change or {}
    gguf: Any = load_gguf()
    reader = opened(source)
    writer = gguf.GGUFWriter(target, arch=reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value = keys.get(field.name, field.contents())
        value = change.get(field.name, lambda same: same)(value)
        kind = field.types[0]
        writer.add_key_value(
            field.name, value, kind, sub_type=field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        )
    for key in keys.keys() - reader.fields.keys():
        writer.add_key_value(key, keys[key], gguf.GGUFValueType.get_type(keys[key]))
    for tensor in reader.tensors:
        if tensor.name == drop:
            continue
        if tensor.name == as_f16:
            writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float16))
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def encoder_for(model: Path, contract: Contract) -> Encoder:
    """A contract's encoder for a model folder."""
    return make_encoder(contract, load_tokenizer(model), read_geometry(model))


@contextmanager
def llama(model: Path, pair: Pair, contract: Contract) -> Iterator[LlamaCppPredictor]:
    """llama.cpp's side of a contract."""
    with LlamaCppPredictor(pair.text, pair.mmproj, encoder_for(model, contract)) as predictor:
        yield predictor


def runtime(kv: str, **settings: Any) -> Runtime:
    """The phone's profile with another type of KV cache."""
    return Runtime.model_validate({"type_k": kv, "type_v": kv, **settings})


def canvases(n: int) -> list[Any]:
    """Pictures to tell apart: smooth colours, then noise. uint8 [256, 256, 3]."""
    generator = np.random.default_rng(7)
    made = []
    for index in range(n):
        corners = generator.integers(0, 256, (2, 2, 3))
        weights = np.linspace(0, 1, 256)
        rows = np.outer(1 - weights, [1, 0]) + np.outer(weights, [0, 1])
        smooth = np.einsum("yr,xc,rck->yxk", rows, rows, corners)
        noise = generator.normal(0, 8 * index, smooth.shape)
        made.append(np.clip(smooth + noise, 0, 255).astype(np.uint8))
    return made
