"""Writes the reference again: `.venv/bin/python docs/reference/update.py`, or `make docs`.

parity.md, pipeline.md     every command and option, from the command line's own definitions
recipe.md, contract.md     every key, from the models that read them and their docstrings

A test fails where a page is out of date.
"""

import ast
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import typer
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from parity.cli import app as parity
from pipeline import contract, recipe
from pipeline.cli import app as pipeline

FOLDER = Path(__file__).parent
NOTE = "<!-- Made by docs/reference/update.py; changes are lost. -->"
KINDS = {str: "TEXT", int: "NUMBER", float: "NUMBER", Path: "PATH", bool: ""}
WORDS = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most", "exclusiveMaximum": "less than"}


def cell(text: object) -> str:
    """A text that may stand in a table; what is not code in it has no HTML."""
    parts = " ".join(str(text).split()).replace("|", "\\|").split("`")
    return "`".join(part if number % 2 else part.replace("<", "&lt;") for number, part in enumerate(parts))


def code(text: object) -> str:
    """A text as code that may stand in a table."""
    return f"`{' '.join(str(text).split()).replace('|', chr(92) + '|')}`" if str(text) else ""


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Markdown lines."""
    return [f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows]]


def command_page(name: str, app: typer.Typer) -> str:
    """Every sub-command of a program, in the order of its help."""
    group: Any = typer.main.get_command(app)
    lines = [NOTE, f"# `{name}`", "", group.help]
    if group.epilog:
        lines += ["", group.epilog]
    for sub, command in group.commands.items():
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        options = [one for one in command.params if one.param_type_name == "option"]
        usage = [f".venv/bin/{name} {sub}", *(_value(one) for one in arguments), "[OPTIONS]"]
        lines += ["", f"## `{name} {sub}`", "", command.help, "", "```text", " ".join(usage), "```", ""]
        rows = [[code(_value(one)), "", cell(one.help or "")] for one in arguments]
        rows += [[code(_names(one)), _default(one), cell(one.help or "")] for one in options]
        lines += table(["argument or option", "default", "meaning"], rows)
    return "\n".join(lines) + "\n"


def _value(argument: Any) -> str:
    """The name that stands for an argument."""
    shown: str = argument.metavar or argument.name.upper()
    return f"{shown}..." if argument.nargs == -1 and not argument.metavar else shown


def _names(param: Any) -> str:
    """``--limit NUMBER, -l NUMBER`` as it is typed."""
    names = sorted([*param.opts, *param.secondary_opts], key=lambda name: not name.startswith("--"))
    of = param.type_descriptor.annotation
    kind = KINDS[get_args(of)[0] if get_args(of) else of]
    return ", ".join(names if param.is_flag else [f"{name} {kind}" for name in names])


def _default(param: Any) -> str:
    if param.required:
        return "required"
    value = param.default
    if value is None or value == "" or callable(value) or value is False or (param.is_flag and value is True):
        return "on" if param.is_flag and value is True else ""
    return code(value)


def documents(module: ModuleType) -> dict[str, tuple[str, dict[str, str]]]:
    """Class -> (its docstring, field -> the docstring under the field)."""
    found = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ClassDef):
            fields = {}
            for statement, after in zip(node.body, node.body[1:], strict=False):
                if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr):
                    fields[ast.unparse(statement.target)] = inspect.cleandoc(ast.literal_eval(after.value))
            found[node.name] = (ast.get_docstring(node) or "", fields)
    return found


def plain(text: str) -> str:
    """Markdown of a docstring."""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")


def groups(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """(dotted prefix, model) of a model and of those in it, depth first."""
    yield prefix, model
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from groups(field.annotation, f"{prefix}{name}.")


def _kind(schema: dict[str, Any]) -> str:
    """What a value may be, from its JSON schema."""
    if "anyOf" in schema:
        return "; or ".join(_kind(part) for part in schema["anyOf"])
    if "const" in schema:
        return code(json.dumps(schema["const"]))
    if "enum" in schema:
        return ", ".join(code(value) for value in schema["enum"])
    names = {"integer": "whole number", "boolean": "true or false", "string": "text", "array": "list", "object": "map"}
    words = [names.get(schema.get("type", ""), schema.get("type", ""))]
    words += [f"{word} {schema[key]:,}" for key, word in WORDS.items() if key in schema]
    if "pattern" in schema:
        words.append(f"matching {code(schema['pattern'])}")
    return words[0] + (f", {' and '.join(words[1:])}" if words[1:] else "")


def key_page(title: str, intro: list[str], model: type[BaseModel], module: ModuleType, other: set[str]) -> str:
    """Every key of a model. Groups whose prefix is in ``other`` are told on a page of their own."""
    texts = documents(module)
    lines = [NOTE, f"# {title}", "", *intro]
    for prefix, group in groups(model):
        if any(prefix.startswith(name) for name in other):
            continue
        about, fields = texts[group.__name__]
        schema = group.model_json_schema()
        places = {"$defs": schema.get("$defs", {})}
        rows = []
        for name, field in group.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                continue
            part = schema["properties"][name]
            if "$ref" in part:
                part = places["$defs"][part["$ref"].rpartition("/")[2]]
            default = "required" if field.is_required() else code(_yaml(field.get_default(call_default_factory=True)))
            rows.append([code(prefix + name), _kind(part), default, cell(plain(fields.get(name, "")))])
        if prefix:
            lines += ["", f"## `{prefix[:-1]}`", "", plain(about), ""]
        elif rows:
            lines += ["", "## Top level", ""]
        if rows:
            lines += table(["key", "value", "default", "meaning"], rows)
    return "\n".join(lines) + "\n"


def _yaml(value: Any) -> str:
    return json.dumps(to_jsonable_python(value), ensure_ascii=False)


def pages() -> dict[str, str]:
    """File name -> what stands in it."""
    about_recipe = [
        "A recipe is one YAML file and describes one run. Keys that are left out take their defaults; an unknown key,",
        "or values that contradict one another, are errors. `--set train.epochs=1` or `SET=` changes keys for one run.",
        "The keys of `contract:` are in the [contract reference](contract.md).",
    ]
    about_contract = [
        "The contract states what the app on the phone does with a photo and with an answer. A recipe states only what",
        "differs from the defaults, under `contract:`; a contract file of your own is JSON with the same keys. The",
        "defaults are the file `android_fixtures/contract.json`.",
    ]
    return {
        "parity.md": command_page("parity", parity),
        "pipeline.md": command_page("pipeline", pipeline),
        "recipe.md": key_page("Recipe keys", about_recipe, recipe.Recipe, recipe, {"contract."}),
        "contract.md": key_page("Contract keys", about_contract, contract.Contract, contract, set()),
    }


def main() -> None:
    """Write the pages that differ."""
    for name, text in pages().items():
        path = FOLDER / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"docs/reference/{name}", file=sys.stderr)


if __name__ == "__main__":
    main()
