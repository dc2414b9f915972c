"""The JSON Schema of ``verdict.json``: ``verdict.schema.json``, made from the models and their docstrings.

``python -m parity.report.schema`` writes it again; a test keeps the two equal.
"""

import ast
import inspect
from pathlib import Path
from typing import Any

from parity import results
from parity.judge import causes, verdict
from parity.judge.verdict import Verdict

SCHEMA = Path(__file__).parent / "verdict.schema.json"


def verdict_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of a verdict as it is written."""
    made = Verdict.model_json_schema(mode="serialization")
    version = made["properties"]["schema_version"]["const"]
    documents = _documents()
    definitions: dict[str, dict[str, Any]] = made.pop("$defs")
    for name, definition in [("Verdict", made), *definitions.items()]:
        for key, part in definition.get("properties", {}).items():
            if text := documents.get(name, {}).get(key):
                part["description"] = text
    for key in ("title", "description"):
        made.pop(key, None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:android-vlm-parity:verdict:{version}",
        "title": "Parity verdict",
        "description": "Whether the GGUF under llama.cpp answers as the Hugging Face model does, and where they part.",
        **made,
        "$defs": definitions,
    }


def _documents() -> dict[str, dict[str, str]]:
    """Class -> field -> the docstring under the field, which Python itself drops."""
    found: dict[str, dict[str, str]] = {}
    for module in (verdict, causes, results):
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
