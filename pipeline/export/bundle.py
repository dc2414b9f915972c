"""The bundle: what goes to the phone and what proves where it came from.

<name>-<type>.gguf  mmproj-<name>-<type>.gguf  contract.json  manifest.json
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.core.files import atomic_folder, sha256_file, write_json
from pipeline.core.provenance import machine, versions
from pipeline.export.half import Exporter
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
    exporter = Exporter(merged, export.name, contract, recipe.name, threads)
    with atomic_folder(out) as folder:
        # The converter is a process of its own, and most of its time is one core's.
        with ThreadPoolExecutor(1) as other:
            vision = other.submit(exporter.export, "mmproj", export.mmproj_type, folder / mmproj_name(recipe))
            exporter.export("text", export.text_type, folder / text_name(recipe))
            vision.result()
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
