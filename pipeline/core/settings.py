"""Settings and records as data: what every model of this project that is read from a file has in common."""

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.core.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


class Frozen(BaseModel):
    """A settings model: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _one_line(error: ValidationError) -> str:
    parts = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key"
        parts.append(f"{where}: {message}" if where else message)
    return "; ".join(parts)


def validate(model: type[Model], data: Any, where: str) -> Model:
    """Build a settings model from plain data, or raise UserError that names ``where`` and every key at fault."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {_one_line(error)}") from None
