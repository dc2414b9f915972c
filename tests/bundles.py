"""Small bundles for the tests: real GGUF files, the contract and a manifest, made in milliseconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contract import Contract
from pipeline.core.files import sha256_file, write_json
from pipeline.core.toolchain import load_gguf
from pipeline.export.bundle import CONTRACT, MANIFEST
from pipeline.export.convert import KEY_CONTRACT
from pipeline.recipe import ExportSettings, Recipe

TEXT, MMPROJ = "Tiny-Q8_0.gguf", "mmproj-Tiny-Q8_0.gguf"


def write_gguf(path: Path, keys: dict[str, Any], tensors: dict[str, Any] | None = None) -> None:
    """The half that the file's name says, in Q8_0: a key with a value of every type, then ``keys`` (None leaves one of
    its own out), and two or three small tensors; ``tensors`` (float32, or (type, float32)) take the place of its own.
    """
    gguf: Any = load_gguf()
    kinds, q8_0 = gguf.GGUFValueType, gguf.GGMLQuantizationType.Q8_0
    vision = path.name.startswith("mmproj-")
    generator = np.random.default_rng(0)

    def noise(*shape: int) -> Any:
        return generator.normal(size=shape).astype(np.float32)

    own: dict[str, Any] = {"general.file_type": 7}
    if vision:
        own |= {"clip.has_vision_encoder": True, "clip.vision.block_count": 1}
        made = {
            "v.patch_embd.weight": noise(4, 3, 2, 2),
            "v.blk.0.ln1.weight": noise(9),
            "mm.model.fc.weight": (q8_0, noise(4, 64)),
        }
    else:
        own |= {"llama.block_count": 1}
        made = {"token_embd.weight": (q8_0, noise(3, 64)), "blk.0.attn_norm.weight": noise(1000)}
    writer = gguf.GGUFWriter(path, arch=keys.get("general.architecture", "clip" if vision else "llama"))
    for kind in kinds:
        if kind in (kinds.STRING, kinds.ARRAY):
            continue
        value: Any = {kinds.BOOL: True, kinds.FLOAT32: 0.5, kinds.FLOAT64: 0.25}.get(kind, 7)
        writer.add_key_value(f"one.{kind.name}", value, kind)
        writer.add_key_value(f"many.{kind.name}", [value] * 3, kinds.ARRAY, sub_type=kind)
    if not vision:
        writer.add_array("tokenizer.ggml.tokens", ["a", "ä", "parity.contract_sha256"])
    writer.add_array("none", [])
    for key, value in (own | keys).items():
        if key != "general.architecture" and value is not None:
            writer.add_key_value(key, value, kinds.get_type(value))
    writer.add_string("general.name", "Tiny")
    for name, tensor in (made if tensors is None else tensors).items():
        kind, values = tensor if isinstance(tensor, tuple) else (gguf.GGMLQuantizationType.F32, tensor)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_manifest(folder: Path, **values: Any) -> None:
    """List what is in ``folder`` as the export does; ``values`` take the place of its own."""
    recipe = Recipe(name="tiny", export=ExportSettings(name="Tiny"))
    manifest = {
        "schema_version": 1,
        "recipe": recipe.model_dump(mode="json"),
        "contract_sha256": recipe.contract.digest,
        "inputs": {"merged": "0" * 64, "dataset": "1" * 64},
        "outputs": {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST},
        "versions": {"android-vlm-parity": "0.1.0", "torch": "2.13.0+cpu", "llama-cpp-python": "0.3.36"},
        "machine": {},
        "threads": 2,
        "image": None,
    }
    write_json(folder / MANIFEST, manifest | values)


def write_fake_bundle(folder: Path, contract: Contract | None = None) -> Path:
    """A bundle that nothing is wrong with but its weights."""
    contract = contract or Contract()
    folder.mkdir(parents=True)
    for name in (TEXT, MMPROJ):
        write_gguf(folder / name, {KEY_CONTRACT: contract.digest})
    write_json(folder / CONTRACT, contract.model_dump(mode="json"))
    write_manifest(folder, contract_sha256=contract.digest)
    return folder


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest as it stands."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def flip(path: Path, offset: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
