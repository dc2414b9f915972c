"""Settings and records as data: what every model of this project that is read from a file has in common."""

import math
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.core.errors import UserError
from pipeline.core.files import shown
from pipeline.core.wording import SHOWN_LETTERS, fault, suggestion

Model = TypeVar("Model", bound=BaseModel)

MAX_DEPTH = 50
MAX_VALUES = 100_000
"""A file of settings that is deeper or longer than this is a mistake or worse (and 10 lines of YAML can stand for 10^9
values)."""
SHOWN = 10  # faults told in full


class Frozen(BaseModel):
    """A settings model: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _one_line(error: ValidationError, model: type[BaseModel]) -> str:
    parts = []
    for item in error.errors()[:SHOWN]:
        near = suggestion(model, item["loc"]) if item["type"] == "extra_forbidden" else ""
        parts.append(fault(item) + near)
    more = error.error_count() - SHOWN
    return shown("; ".join([*parts, *([f"and {more} more"] if more > 0 else [])]))


def _odd(value: Any) -> str | None:
    """What is wrong with one value that YAML and Python know and JSON does not; None for all others."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "the number is too large"
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return f"{value!r} has half a character in it, which is no text"
    if value is None or isinstance(value, str | int | float | dict | list | tuple):
        return None
    return f"{str(value)[:SHOWN_LETTERS]} is a {type(value).__name__}: put it in quotes if a text is meant"


def check_plain(data: Any, where: str) -> None:
    """Raise UserError, naming ``where`` and the key, unless ``data`` is what JSON can hold and of a sane size."""
    waiting: list[tuple[str, int, Any]] = [("", 0, data)]
    for seen in range(MAX_VALUES + 1):
        if not waiting:
            return
        place, depth, value = waiting.pop()
        at = f"{where}: {shown(place)}: " if place else f"{where}: "
        if depth > MAX_DEPTH:
            raise UserError(f"{where}: values are nested more than {MAX_DEPTH} levels deep")
        if reason := _odd(value):
            raise UserError(at + shown(reason))
        if isinstance(value, dict):
            for key, item in value.items():
                if reason := _odd(key):
                    raise UserError(f"{at}a key is odd: {shown(reason)}")
                if not isinstance(key, str):
                    raise UserError(f"{at}the key {shown(key)[:SHOWN_LETTERS]} is not a text: put it in quotes")
                waiting.append((f"{place}.{key}" if place else key, depth + 1, item))
        elif isinstance(value, list | tuple):
            waiting += [(f"{place}.{number}", depth + 1, item) for number, item in enumerate(value)]
        if len(waiting) + seen > MAX_VALUES:
            break
    raise UserError(f"{where}: it holds more than {MAX_VALUES:,} values")


def validate(model: type[Model], data: Any, where: str) -> Model:
    """Build a settings model from plain data, or raise UserError that names ``where`` and every key at fault."""
    check_plain(data, where)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {_one_line(error, model)}") from None
