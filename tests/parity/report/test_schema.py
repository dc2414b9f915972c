"""The JSON Schema of a results file's lines."""

import json
from pathlib import Path

import jsonschema
import pytest
from sides import results, right, write_results

from parity.report.schema import RESULTS_SCHEMA, results_schema

SCHEMA = json.loads(RESULTS_SCHEMA.read_text(encoding="utf-8"))


def test_the_file_is_the_models() -> None:
    assert results_schema() == SCHEMA, "run python -m parity.report.schema"


def test_it_takes_every_line_of_a_results_file_and_nothing_else(tmp_path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    validator = jsonschema.Draft202012Validator(SCHEMA)
    path = tmp_path / "results.jsonl"
    write_results(results(right(3)), path)
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert len(lines) == 5
    for line in lines:
        validator.validate(line)
    header, row, end = lines[0], lines[1], lines[-1]
    wrong = [header | {"schema_version": 3}, header | {"extra": 1}, row | {"key": "abc"}, row | {"stop_reason": ""}]
    wrong += [{**line, name: None} for line, name in ((header, "side"), (row, "text"), (end, "rows"))]
    for line, names in ((header, ("schema_version", "engine")), (row, ("key", "label")), (end, ("kind", "sha256"))):
        wrong += [{key: value for key, value in line.items() if key != name} for name in names]
    for line in wrong:
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(line)


def test_it_explains_every_field_that_the_models_do() -> None:
    properties = {name: model["properties"] for name, model in SCHEMA["$defs"].items()}
    assert properties["Header"]["images"]["description"].startswith("How many images")
    assert properties["Row"]["key"]["description"].startswith("The image's content")
    assert properties["EndLine"]["sha256"]["description"] == "Of every byte before this line."
