"""The bundle: what goes to the phone and what proves where it came from.

<name>-<type>.gguf  mmproj-<name>-<type>.gguf  contract.json  manifest.json
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.export.check import check_mmproj, check_text
from pipeline.export.convert import (
    KEY_ADD_BOS,
    KEY_CONTRACT,
    KEY_RECIPE,
    KEY_WEIGHTS,
    Metadata,
    convert_mmproj,
    convert_text,
)
from pipeline.files import atomic_folder, sha256_file, write_json
from pipeline.provenance import machine, versions, weights_digest
from pipeline.recipe import Recipe

CONTRACT = "contract.json"
MANIFEST = "manifest.json"


def text_name(recipe: Recipe) -> str:
    """File name of the language half."""
    return f"{recipe.export.name}-{recipe.export.text_type}.gguf"


def mmproj_name(recipe: Recipe) -> str:
    """File name of the vision half."""
    return f"mmproj-{recipe.export.name}-{recipe.export.mmproj_type}.gguf"


def bundle_names(recipe: Recipe) -> tuple[str, ...]:
    """File names of all that an export writes."""
    return text_name(recipe), mmproj_name(recipe), CONTRACT, MANIFEST


def write_bundle(
    merged: Path,
    out: Path,
    recipe: Recipe,
    inputs: dict[str, Any],
    threads: int,
    image: dict[str, str] | None = None,
) -> None:
    """Export ``merged`` as the bundle folder ``out``, replacing what is there once the new one is whole and checked.

    ``inputs`` are the digests of all that went in, ``image`` is the container image that this runs in; both stand in
    the manifest. Raises CheckFailed.
    """
    export, contract = recipe.export, recipe.contract
    added: Metadata = {
        KEY_CONTRACT: contract.digest,
        KEY_RECIPE: recipe.name,
        KEY_WEIGHTS: weights_digest(merged),
    }
    with atomic_folder(out) as folder:
        text, mmproj = folder / text_name(recipe), folder / mmproj_name(recipe)
        with ThreadPoolExecutor(
            1
        ) as other:  # the converter is a process of its own, and most of its time is one core's
            half = other.submit(convert_mmproj, merged, mmproj, export.mmproj_type, export.name, added)
            convert_text(merged, text, export.text_type, export.name, added | {KEY_ADD_BOS: contract.add_bos}, threads)
            half.result()
        check_text(text, merged, export.name, contract, recipe.name, export.text_type)
        check_mmproj(mmproj, merged, export.name, contract, recipe.name, export.mmproj_type)
        write_json(folder / CONTRACT, contract.model_dump(mode="json"))
        manifest = {
            "schema_version": 1,
            "recipe": recipe.model_dump(mode="json"),
            "contract_sha256": contract.digest,
            "inputs": inputs,
            "outputs": {path.name: sha256_file(path) for path in sorted(folder.iterdir())},
            "versions": versions(),
            "machine": machine(),
            "threads": threads,
            "image": image,
        }
        write_json(folder / MANIFEST, manifest)
