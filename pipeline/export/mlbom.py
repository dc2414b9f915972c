"""What a model is made of, for programs: a CycloneDX 1.6 bill of materials with a model card (ML-BOM).

    runs/<recipe>/parity/model.cdx.json

The same run gives the same bytes: the serial number is derived from the content, and no clock is read.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from pipeline.core.provenance import digest

PROJECT = "android-vlm-parity"

# Of the models that this project's recipes start from, as their model cards state it. The embedded ones hold SmolLM2's
# tokenizer, and its weights where their name says so.
_LICENCES = {
    "embedded:smollm2-135m": "Apache-2.0",
    "embedded:tiny": "Apache-2.0",
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": "Apache-2.0",
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": "Apache-2.0",
}


class Metric(NamedTuple):
    """One measured number."""

    kind: str
    """``accuracy``, ``recall``, ..."""
    where: str
    """Side, and label where it is one label's."""
    value: float
    low: float | None = None
    """Lower end of its 95 % interval."""
    high: float | None = None


def model_bom(
    manifest: Mapping[str, Any],
    *,
    family: str,
    architecture: str,
    dataset_sha256: str,
    metrics: Sequence[Metric],
    properties: Mapping[str, str],
    timestamp: str | None = None,
) -> dict[str, Any]:
    """The bill of materials of a bundle, as JSON-able data.

    ``manifest``: the bundle's own. ``family``, ``architecture``: ``model_type`` and class in the model's config.json.
    ``dataset_sha256``: :attr:`pipeline.dataset.records.Dataset.digest`. ``properties``: further facts on the model,
    written as ``parity:<name>``. ``timestamp``: ISO 8601, written where given.

    Source of the format: the JSON schema of CycloneDX 1.6 (ECMA-424).
    """
    recipe = manifest["recipe"]
    versions = dict(manifest["versions"])
    project = versions.pop(PROJECT, None)
    packages = [_package(name, version) for name, version in sorted(versions.items())]
    model = _model(manifest) | {
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": "image classification",
                "architectureFamily": family,
                "modelArchitecture": architecture,
                "datasets": [{"ref": "dataset"}],
                **_formats(recipe["contract"]),
            },
            "quantitativeAnalysis": {"performanceMetrics": [_metric(metric) for metric in metrics]},
        },
        "properties": [*_properties(manifest), *_pairs(properties)],
    }
    tool = {"type": "application", "name": PROJECT} | ({"version": project} if project else {})
    bom: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": ({"timestamp": timestamp} if timestamp else {})
        | {"tools": {"components": [tool]}, "component": model},
        "components": [_dataset(recipe, dataset_sha256), *packages],
        "dependencies": [
            {"ref": "model", "dependsOn": ["dataset", *(package["bom-ref"] for package in packages)]},
            {"ref": "dataset"},
            *({"ref": package["bom-ref"]} for package in packages),
        ],
    }
    return {"serialNumber": uuid.uuid5(uuid.NAMESPACE_OID, digest(bom)).urn} | bom


def _model(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The model, its files and what it was made from; its version is the pair's digest."""
    ggufs = {name: sha256 for name, sha256 in sorted(manifest["outputs"].items()) if name.endswith(".gguf")}
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": manifest["recipe"]["export"]["name"],
        "version": digest(ggufs)[:12],
        "description": "A fine-tuned vision-language model as a pair of GGUF files for llama.cpp",
        "components": [
            {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": _hashes(sha256)}
            for name, sha256 in ggufs.items()
        ],
        "pedigree": {"ancestors": [_base(manifest["recipe"]["base"])]},
    }


def _base(settings: Mapping[str, Any]) -> dict[str, Any]:
    name, revision = settings["model"], settings["revision"]
    component: dict[str, Any] = {"type": "machine-learning-model", "bom-ref": "base-model", "name": name}
    if revision:
        component["version"] = revision
    if licence := _LICENCES.get(name):
        component["licenses"] = [{"license": {"id": licence}}]
    return component


def _dataset(recipe: Mapping[str, Any], sha256: str) -> dict[str, Any]:
    """The labelled pictures. They are no file, so the digest is said to be of what it is."""
    source = recipe["dataset"]["source"]
    return {
        "type": "data",
        "bom-ref": "dataset",
        "name": f"{recipe['name']}-dataset",
        "description": "SHA-256 of the records in order, pixels included",
        "hashes": _hashes(sha256),
        "data": [{"type": "dataset", "name": f"{recipe['name']}-dataset", "description": f"source: {source}"}],
    }


def _package(name: str, version: str) -> dict[str, Any]:
    """A package that took part in making or judging the model and does not go to the phone with it."""
    purl = f"pkg:pypi/{name}@{quote(version, safe='')}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "scope": "excluded", "purl": purl}


def _formats(contract: Mapping[str, Any]) -> dict[str, Any]:
    size = contract["image"]["size"]
    order = contract["image"]["channel_order"].upper()
    return {
        "inputs": [{"format": f"picture, {size}x{size} pixels, 8-bit {order}"}, {"format": "text, UTF-8"}],
        "outputs": [{"format": f"text that holds one of: {', '.join(contract['labels'])}"}],
    }


def _metric(metric: Metric) -> dict[str, Any]:
    found: dict[str, Any] = {"type": metric.kind, "value": f"{metric.value:.4f}", "slice": metric.where}
    if metric.low is not None and metric.high is not None:
        found["confidenceInterval"] = {"lowerBound": f"{metric.low:.4f}", "upperBound": f"{metric.high:.4f}"}
    return found


def _properties(manifest: Mapping[str, Any]) -> list[dict[str, str]]:
    values = {
        "recipe": manifest["recipe"]["name"],
        "recipe_sha256": digest(manifest["recipe"]),
        "contract_sha256": manifest["contract_sha256"],
    }
    values |= {f"input.{name}_sha256": value for name, value in sorted(manifest["inputs"].items())}
    values |= {f"image.{name}": value for name, value in sorted((manifest.get("image") or {}).items())}
    return _pairs(values)


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": f"parity:{name}", "value": value} for name, value in values.items()]


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]
