"""The JSON Schemas of what is written for other programs, made from the models and their docstrings.

verdict.schema.json   ``verdict.json``
results.schema.json   one line of a results file (``docs/results-format.md``)

``python -m parity.report.schema`` writes them again; a test keeps files and models equal.
"""

import ast
import inspect
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from parity import results
from parity.judge import causes, verdict
from parity.judge.verdict import Verdict
from parity.results import Header, Row
from pipeline.core import jsonl
from pipeline.core.jsonl import EndLine

SCHEMA = Path(__file__).parent / "verdict.schema.json"
RESULTS_SCHEMA = Path(__file__).parent / "results.schema.json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def verdict_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of a verdict as it is written."""
    made = Verdict.model_json_schema(mode="serialization")
    version = made["properties"]["schema_version"]["const"]
    documents = {name: text for module in (verdict, causes, results) for name, text in _documents(module).items()}
    definitions: dict[str, dict[str, Any]] = made.pop("$defs")
    for name, definition in [("Verdict", made), *definitions.items()]:
        _describe(definition, documents.get(name, {}))
    for key in ("title", "description"):
        made.pop(key, None)
    return {
        "$schema": DIALECT,
        "$id": f"urn:android-vlm-parity:verdict:{version}",
        "title": "Parity verdict",
        "description": "Whether the GGUF under llama.cpp answers as the Hugging Face model does, and where they part.",
        **made,
        "$defs": definitions,
    }


def results_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of one line of a results file: header, row or closing line."""
    _, made = models_json_schema([(model, "validation") for model in (Header, Row, EndLine)])
    definitions: dict[str, dict[str, Any]] = made["$defs"]
    documents = _documents(jsonl) | _documents(results)
    for model in (Header, Row, EndLine):
        for parent in reversed(model.__mro__):  # what a class says of a field stands above what its parent says
            if issubclass(parent, BaseModel):
                _describe(definitions[model.__name__], documents.get(parent.__name__, {}))
    definitions["Header"].setdefault("required", []).insert(0, "schema_version")  # without it, it is no header
    definitions["EndLine"]["required"].insert(0, "kind")
    return {
        "$schema": DIALECT,
        "$id": f"urn:android-vlm-parity:results:{definitions['Header']['properties']['schema_version']['const']}",
        "title": "Parity results, one line",
        "description": "A results file is JSON lines: a header, one row for each image, and a closing line.",
        "anyOf": [{"$ref": f"#/$defs/{model.__name__}"} for model in (Header, Row, EndLine)],
        "$defs": definitions,
    }


def _describe(definition: dict[str, Any], documents: dict[str, str]) -> None:
    """Put the docstrings of a class's fields into its schema."""
    for key, part in definition.get("properties", {}).items():
        if text := documents.get(key):
            part["description"] = text


@cache
def _documents(module: ModuleType) -> dict[str, dict[str, str]]:
    """Class -> field -> the docstring under the field, which Python itself drops."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        fields = found.setdefault(node.name, {})
        for statement, after in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                fields[statement.target.id] = inspect.cleandoc(after.value.value).replace("``", "`")
    return found


if __name__ == "__main__":
    from pipeline.core.files import write_json

    write_json(SCHEMA, verdict_schema())
    write_json(RESULTS_SCHEMA, results_schema())
