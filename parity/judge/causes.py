"""What made the outputs diverge, as a check found it by conforming one side to the other, step by step."""

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from pipeline.core.errors import UserError
from pipeline.core.files import read_regular, write_json
from pipeline.core.settings import Frozen
from pipeline.core.wording import first_fault

CAUSES = "causes.json"

Kind = Literal["template", "limits", "resize", "padding", "pixels", "tiling", "vision", "language", "unknown"]
"""The chat template or the text around a picture; the least or most tokens a picture may take; the rounding of its
size; padding where the other side stretches; other bytes at the same size; the grid it is cut into; the vision half;
the language half; something that could not be tried."""


class Cause(Frozen):
    """One cause, with the pictures that it explains."""

    kind: Kind
    detail: str
    """Of the first of the pictures."""
    fix: str
    pictures: int = Field(ge=1)
    image_ids: tuple[str, ...]
    """A few of them."""


class LayerErrors(Frozen):
    """How far the layers of one half are apart in one picture, on equal inputs."""

    half: Literal["vision", "language"]
    image_id: str
    errors: tuple[float | None, ...]
    """||candidate - reference|| / ||reference|| of each layer's output; null where a side does not show it."""
    first: int | None
    """The first layer that jumps; 0 where the outputs diverge before any layer or in the first."""


class Causes(Frozen):
    """All that was tried."""

    schema_version: Literal[1] = 1
    how: Literal["conformed", "matched"] = "conformed"
    """``conformed``: one side was made like the other, step by step. ``matched``: what was done to the pixels was done
    again, and gave the very bytes (:mod:`parity.judge.mistakes`)."""
    tried: int
    """Pictures that were conformed or matched."""
    differ: int
    """Pictures that are beyond a limit."""
    found: tuple[Cause, ...]
    """The commonest first."""
    survey: str = ""
    """At which sizes of pictures, these or others, the sides take as many tokens; empty where it could not be told."""
    layers: tuple[LayerErrors, ...] = ()
    """Where they were looked at (``--layers``)."""


def write_causes(causes: Causes, path: Path) -> None:
    """Write ``causes.json`` atomically."""
    write_json(path, causes.model_dump(mode="json"))


def read_causes(path: Path) -> Causes | None:
    """Read ``causes.json``; None where there is none. Raises UserError where it is none."""
    try:
        data = json.loads(read_regular(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    try:
        return Causes.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise UserError(f"{path} is no list of causes: {first_fault(error)}; run `parity check` again") from None
