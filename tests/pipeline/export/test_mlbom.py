"""The bill of materials is CycloneDX 1.6, says what it should, and is the same for the same run."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from bundles import MMPROJ, TEXT, read_manifest, write_fake_bundle, write_manifest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from pipeline.core.files import canonical_json, sha256_bytes, sha256_file
from pipeline.export.mlbom import Metric, model_bom
from pipeline.recipe import Recipe

METRICS = [
    Metric("accuracy", "hf", 0.918149, 0.880121, 0.944873),
    Metric("accuracy", "llamacpp", 0.921708, 0.884210, 0.947823),
    Metric("recall", "llamacpp, fire", 1.0),
    Metric("accuracy difference", "llamacpp minus hf", 0.003559, -0.006942, 0.019862),
]
IMAGE = {"content_digest": "2" * 64, "id": "sha256:" + "3" * 64, "name": "parity-train:cpu"}


@pytest.fixture
def manifest(tmp_path: Path) -> dict[str, Any]:
    return read_manifest(write_fake_bundle(tmp_path / "bundle"))


def bom_of(manifest: dict[str, Any], **values: Any) -> dict[str, Any]:
    settings = {
        "family": "idefics3",
        "architecture": "Idefics3ForConditionalGeneration",
        "dataset_sha256": "4" * 64,
        "metrics": METRICS,
        "properties": {"verdict": "PASS"},
    }
    return model_bom(manifest, **settings | values)


def problems(bom: dict[str, Any]) -> list[str]:
    """What the schema of CycloneDX 1.6 says against it."""
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bom))
    return [] if error is None else [str(error)]


def properties(bom: dict[str, Any]) -> dict[str, str]:
    found = bom["metadata"]["component"]["properties"]
    assert len({item["name"] for item in found}) == len(found)
    return {item["name"]: item["value"] for item in found}


def test_it_is_cyclonedx(manifest: dict[str, Any]) -> None:
    assert problems(bom_of(manifest)) == []
    full = manifest | {"image": IMAGE}
    full["recipe"] = Recipe.model_validate(
        {"name": "x", "base": {"model": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "revision": "a" * 40}}
    ).model_dump(mode="json")
    assert problems(bom_of(full, timestamp="2026-01-02T03:04:05Z")) == []
    assert problems(bom_of(manifest, metrics=[], properties={})) == []


def test_the_validator_finds_what_is_not_cyclonedx(manifest: dict[str, Any]) -> None:
    for path, value in (
        (("metadata", "component", "type"), "model"),
        (("metadata", "component", "modelCard", "quantitativeAnalysis", "performanceMetrics", 0, "value"), 0.9),
        (("components", 0, "hashes", 0, "content"), "4"),
        (("serialNumber",), "1"),
    ):
        bom = copy.deepcopy(bom_of(manifest))
        place: Any = bom
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        assert problems(bom), path


def test_the_model_and_its_files(manifest: dict[str, Any], tmp_path: Path) -> None:
    model = bom_of(manifest)["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", manifest["recipe"]["export"]["name"])
    files = {part["name"]: part["hashes"] for part in model["components"]}
    assert files == {
        name: [{"alg": "SHA-256", "content": sha256_file(tmp_path / "bundle" / name)}] for name in (TEXT, MMPROJ)
    }
    parameters = model["modelCard"]["modelParameters"]
    assert parameters["architectureFamily"] == "idefics3"
    assert parameters["inputs"][0] == {"format": "picture, 256x256 pixels, 8-bit RGB"}
    assert parameters["outputs"] == [{"format": "text that holds one of: water, land, fire, wood, metal"}]


def test_the_measured_numbers(manifest: dict[str, Any]) -> None:
    found = bom_of(manifest)["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert found == [
        {
            "type": "accuracy",
            "value": "0.9181",
            "slice": "hf",
            "confidenceInterval": {"lowerBound": "0.8801", "upperBound": "0.9449"},
        },
        {
            "type": "accuracy",
            "value": "0.9217",
            "slice": "llamacpp",
            "confidenceInterval": {"lowerBound": "0.8842", "upperBound": "0.9478"},
        },
        {"type": "recall", "value": "1.0000", "slice": "llamacpp, fire"},
        {
            "type": "accuracy difference",
            "value": "0.0036",
            "slice": "llamacpp minus hf",
            "confidenceInterval": {"lowerBound": "-0.0069", "upperBound": "0.0199"},
        },
    ]


def test_what_it_was_made_from(manifest: dict[str, Any]) -> None:
    bom = bom_of(manifest)
    dataset = next(part for part in bom["components"] if part["type"] == "data")
    assert dataset["hashes"] == [{"alg": "SHA-256", "content": "4" * 64}]
    assert bom["metadata"]["component"]["modelCard"]["modelParameters"]["datasets"] == [{"ref": dataset["bom-ref"]}]
    (base,) = bom["metadata"]["component"]["pedigree"]["ancestors"]
    assert (base["name"], base["licenses"]) == ("embedded:tiny", [{"license": {"id": "Apache-2.0"}}])
    packages = {part["name"]: part["purl"] for part in bom["components"] if part["type"] == "library"}
    expected = {"torch": "2.13.0+cpu", "llama-cpp-python": "0.3.36"}
    assert packages == {name: PackageURL("pypi", None, name, version).to_string() for name, version in expected.items()}
    assert bom["metadata"]["tools"]["components"][0]["version"] == "0.1.0"
    manifest["recipe"]["base"] = {"model": "./own", "revision": None}
    (base,) = bom_of(manifest)["metadata"]["component"]["pedigree"]["ancestors"]
    assert base == {"type": "machine-learning-model", "bom-ref": "base-model", "name": "./own"}, "nothing is made up"


def test_every_dependency_is_a_component(manifest: dict[str, Any]) -> None:
    bom = bom_of(manifest)
    model = bom["metadata"]["component"]
    parts = [model, *model["components"], *model["pedigree"]["ancestors"], *bom["components"]]
    refs = [part["bom-ref"] for part in parts]
    assert len(set(refs)) == len(refs)
    named = [item["ref"] for item in bom["dependencies"]]
    named += [ref for item in bom["dependencies"] for ref in item.get("dependsOn", [])]
    assert set(named) == {"model", *(part["bom-ref"] for part in bom["components"])}


def test_the_properties(manifest: dict[str, Any]) -> None:
    found = properties(bom_of(manifest))
    assert found == {
        "parity:recipe": "tiny",
        "parity:recipe_sha256": sha256_bytes(canonical_json(manifest["recipe"])),
        "parity:contract_sha256": manifest["contract_sha256"],
        "parity:input.dataset_sha256": "1" * 64,
        "parity:input.merged_sha256": "0" * 64,
        "parity:verdict": "PASS",
    }
    in_container = properties(bom_of(manifest | {"image": IMAGE}))
    assert in_container == found | {f"parity:image.{name}": value for name, value in IMAGE.items()}
    del manifest["image"]  # a bundle made before there was the field
    assert properties(bom_of(manifest)) == found


def test_the_same_run_gives_the_same_bytes(manifest: dict[str, Any]) -> None:
    assert json.dumps(bom_of(manifest)) == json.dumps(bom_of(copy.deepcopy(manifest)))
    assert "timestamp" not in bom_of(manifest)["metadata"]


def test_another_run_has_another_serial_number(manifest: dict[str, Any], tmp_path: Path) -> None:
    write_manifest(tmp_path / "bundle", versions={"torch": "2.12.0"})
    boms = [
        bom_of(manifest),
        bom_of(manifest, metrics=METRICS[:1]),
        bom_of(manifest, timestamp="2026-01-02T03:04:05Z"),
        bom_of(manifest | {"image": IMAGE}),
        bom_of(read_manifest(tmp_path / "bundle")),
    ]
    assert len({bom["serialNumber"] for bom in boms}) == len(boms)
