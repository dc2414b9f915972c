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
from pipeline.recipe import Recipe

TEXT, MMPROJ = "Tiny-Q8_0.gguf", "mmproj-Tiny-Q8_0.gguf"


def write_gguf(path: Path, keys: dict[str, Any]) -> None:
    """A GGUF with a value of every type, then ``keys``, and one tensor."""
    gguf: Any = load_gguf()
    kinds = gguf.GGUFValueType
    writer = gguf.GGUFWriter(path, arch="llama")
    for kind in kinds:
        if kind in (kinds.STRING, kinds.ARRAY):
            continue
        value: Any = {kinds.BOOL: True, kinds.FLOAT32: 0.5, kinds.FLOAT64: 0.25}.get(kind, 7)
        writer.add_key_value(f"one.{kind.name}", value, kind)
        writer.add_key_value(f"many.{kind.name}", [value] * 3, kinds.ARRAY, sub_type=kind)
    writer.add_array("tokenizer.ggml.tokens", ["a", "ä", "parity.contract_sha256"])
    writer.add_array("none", [])
    for key, value in keys.items():
        writer.add_key_value(key, value, kinds.get_type(value))
    writer.add_string("general.name", "Tiny")
    writer.add_tensor("w", np.arange(1000, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_manifest(folder: Path, **values: Any) -> None:
    """List what is in ``folder`` as the export does; ``values`` take the place of its own."""
    recipe = Recipe(name="tiny")
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
