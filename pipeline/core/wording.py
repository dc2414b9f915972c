"""What pydantic refuses, told in a user's words: ``must be a whole number, not 'three'``.

Every place that shows a ValidationError takes its words from here, so that no message speaks of tuples, dictionaries or
models.
"""

import difflib
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.core.files import shown

SHOWN_LETTERS = 60  # of a value

KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "bytes": "text",
    "tuple": "a list, as in [a, b]",
    "list": "a list, as in [a, b]",
    "set": "a list, as in [a, b]",
    "dict": "a mapping of keys to values",
    "mapping": "a mapping of keys to values",
    "model": "a mapping of keys to values",
    "none": "null",
}
"""First word of an error's type -> what is wanted."""

BOUNDS = {
    "greater_than": ("gt", "must be more than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
}

PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "letters, digits, '.', '_' and '-', with a letter or digit first",
    r"^[0-9a-f]{64}$": "64 hexadecimal digits",
    r"^([0-9a-f]{64})?$": "64 hexadecimal digits",
}
"""What a pattern asks for; one that is not listed is shown itself."""


def told(item: ErrorDetails) -> str:
    """What is wrong with one value, without its key."""
    kind, value = item["type"], item["input"]
    context: dict[str, Any] = item.get("ctx") or {}
    if kind == "extra_forbidden":
        return "unknown key"
    if kind == "missing":
        return "a value is missing" if item["loc"] and isinstance(item["loc"][-1], int) else "this key is missing"
    if kind == "value_error":
        return item["msg"].removeprefix("Value error, ")
    if kind in BOUNDS:
        name, words = BOUNDS[kind]
        bound = context[name]
        number = f"{bound:g}" if isinstance(bound, float) else str(bound)
        return f"{words} {number}, not {_value(value)}"
    if kind == "literal_error":
        quotes = ": put it in quotes" if isinstance(value, bool) else ""  # YAML's own on and off
        return f"must be {context['expected']}, not {_value(value)}{quotes}"
    if kind == "string_pattern_mismatch":
        pattern = context["pattern"]
        return f"must be {PATTERNS.get(pattern) or f'text that matches {pattern}'}, not {_value(value)}"
    if kind == "finite_number":
        return f"must be a finite number, not {_value(value)}"
    wanted = KINDS.get(kind.partition("_")[0])
    if wanted and kind.endswith(("_type", "_parsing", "_from_float", "_attributes_type", "_parsing_size")):
        hint = ": put it in quotes" if wanted == "text" and isinstance(value, bool | int | float) else ""
        return f"must be {wanted}, not {_value(value)}{hint}"
    # What is left is of lengths and of files that are no JSON: 'String should have at most 100 characters'.
    return item["msg"].replace("should", "must").replace("Tuple", "The list").replace("String", "The text")


def fault(item: ErrorDetails) -> str:
    """The same with its key: ``train.epochs: must be a whole number, not 'x'``."""
    where = ".".join(str(part) for part in item["loc"])
    return f"{where}: {told(item)}" if where else told(item)


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong with a record, for the sentence that names its file."""
    return fault(error.errors()[0])


def _value(value: Any) -> str:
    """A value as a user wrote it, cut where it is long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | BaseModel):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value) if isinstance(value, str) else str(value)
    return shown(text if len(text) <= SHOWN_LETTERS else text[:SHOWN_LETTERS] + "...")


def suggestion(model: type[BaseModel], loc: tuple[str | int, ...]) -> str:
    """``; did you mean train.epochs?`` for an unknown key of ``model``, or the keys that its group has."""
    *parents, last = (str(part) for part in loc)
    group: Any = model
    for name in parents:
        field = group.model_fields.get(name)
        group = field.annotation if field else None
        if not (isinstance(group, type) and issubclass(group, BaseModel)):
            return ""
    place = "".join(f"{name}." for name in parents)
    begun = [name for name in group.model_fields if len(last) > 2 and name.startswith(last)]
    beside = begun[:1] or difflib.get_close_matches(last, group.model_fields, n=1)
    if beside:
        return f"; did you mean {place}{beside[0]}?"
    elsewhere = {key.rpartition(".")[2]: key for key in _keys(model)}
    if near := difflib.get_close_matches(last, elsewhere, n=1, cutoff=0.8):
        return f"; did you mean {elsewhere[near[0]]}?"
    return f"; the keys here are {', '.join(place + name for name in group.model_fields)}"


def _keys(model: type[BaseModel], before: str = "") -> Iterator[str]:
    """Every dotted key of a model."""
    for name, field in model.model_fields.items():
        yield before + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{before}{name}.")
