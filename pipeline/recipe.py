"""A recipe: one YAML file is one run. Unknown keys and contradictory values are errors that name file and key.

``contract:`` holds only what differs from the phone's defaults (``android_fixtures/contract.json``). Relative paths are
relative to the folder that the command runs in. Invariant: a Recipe that exists is valid; it is frozen.
"""

import re
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, field_validator, model_validator

from pipeline.contract import Contract
from pipeline.core.errors import UserError
from pipeline.core.files import read_regular, shown
from pipeline.core.gguf_types import MmprojType, TextType, canonical
from pipeline.core.settings import Frozen, validate

PHOTOS_RECIPE = "configs/photos.yaml"
"""The recipe for a user's own photos."""

Part = Literal["frozen", "lora", "full"]


class DatasetSettings(Frozen):
    """Where the labelled pictures come from."""

    source: Literal["embedded", "photos"] = "embedded"
    """``embedded`` draws images of the five elements; ``photos`` reads yours."""
    path: str | None = None
    """Folder of labelled photos (``labels.json`` or one sub-folder a class); for ``source: photos``."""
    n_per_class: int = Field(240, ge=2, le=10**6)
    """Pictures to generate for each label; for ``source: embedded``."""
    val_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the images that the best checkpoint is chosen on."""
    test_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the images that the verdict is given on and no choice has seen; with ``source: embedded``, extra ones.
    Without any test images the verdict uses the validation images, and says so."""
    test_path: str | None = None
    """Another folder of labelled photos, for the test alone, in place of ``test_fraction``."""
    limit_per_class: int | None = Field(None, ge=2)
    """Take at most this many photos of a label, for a quick try."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.source == "photos" and not self.path:
            raise ValueError("source 'photos' needs 'path', the folder of labelled photos")
        if self.source == "embedded" and (self.path or self.test_path or self.limit_per_class):
            raise ValueError("source 'embedded' takes neither 'path', 'test_path' nor 'limit_per_class'")
        if self.test_path and self.test_fraction:
            raise ValueError("give 'test_path' or 'test_fraction': the test images come from one of them")
        if self.source == "photos" and self.val_fraction + self.test_fraction >= 1:
            raise ValueError("'val_fraction' and 'test_fraction' leave no images to train on: make them smaller")
        return self


class BaseSettings(Frozen):
    """The model to start from."""

    model: str = "embedded:tiny"
    """``embedded:tiny``, ``embedded:smollm2-135m``, a local folder or a hub id."""
    revision: str | None = None
    """Commit of a hub id; write it down, or the next run may start from other weights."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.revision and self.model.startswith("embedded:"):
            raise ValueError("an embedded model has no 'revision'")
        return self


class LoraSettings(Frozen):
    """PEFT LoRA."""

    r: int = Field(16, ge=1, le=4096)
    """Rank of the adapters."""
    alpha: int = Field(32, ge=1)
    """Scale of the adapters: their output is multiplied by ``alpha / r``."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """Dropout in front of the adapters."""
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "gate_proj", "up_proj", "down_proj", "fc1", "fc2", "proj"),
        strict=False,
    )
    """Names of the linear layers that get an adapter, in the parts set to ``lora``."""


class TrainSettings(Frozen):
    """The fine-tuning run."""

    epochs: int = Field(3, ge=1)
    """Passes over the training images."""
    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate."""
    batch_size: int = Field(4, ge=1)
    """Images in one forward pass."""
    gradient_accumulation: int = Field(4, ge=1)
    """Batches in one optimizer step."""
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises to its peak."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of the optimizer."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    gradient_checkpointing: bool = True
    """Saves memory by computing activations twice."""
    bf16: Literal["auto", "on", "off"] = "auto"
    """``auto``: on a GPU that has it."""
    evals_per_epoch: int = Field(1, ge=1)
    """Evaluations, each with a checkpoint, in an epoch."""
    lora: LoraSettings = LoraSettings()
    text: Part = "lora"
    """How the language model is trained: not at all, through an adapter, or all of its weights."""
    vision: Part = "frozen"
    """The same for the vision encoder."""
    connector: Part = "lora"
    """The same for the connector between the two."""
    embeddings: Part = "frozen"
    """The same for the token embeddings."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        parts = (self.text, self.vision, self.connector, self.embeddings)
        if "lora" not in parts:
            raise ValueError("at least one of text, vision, connector and embeddings must be 'lora'")
        return self


class ExportSettings(Frozen):
    """The GGUF pair."""

    name: str = Field("SmolVLM2-500M-Element", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """``<name>-<type>.gguf`` and ``mmproj-<name>-<type>.gguf``; also ``general.name``."""
    text_type: TextType = "Q8_0"
    """Type of the language model's weights."""
    mmproj_type: MmprojType = "Q8_0"
    """Type of the vision encoder's weights."""

    @field_validator("text_type", mode="before")
    @classmethod
    def _text_type(cls, value: Any) -> Any:
        return canonical(value, TextType)

    @field_validator("mmproj_type", mode="before")
    @classmethod
    def _mmproj_type(cls, value: Any) -> Any:
        return canonical(value, MmprojType)


class Recipe(Frozen):
    """Everything that determines a run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """Names the folder ``runs/<name>``."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of everything that is random: generated images, split, training."""
    contract: Contract = Contract()
    dataset: DatasetSettings = DatasetSettings()
    base: BaseSettings = BaseSettings()
    train: TrainSettings = TrainSettings()
    export: ExportSettings = ExportSettings()


def split_assignments(text: str) -> tuple[str, ...]:
    """``a.b=1 c=[x, y z]`` -> its assignments; each begins with a key and ``=`` behind white space.

    What stands in brackets or quotes is never taken apart; a value with ``key=`` in it needs them.
    """
    found: list[str] = []
    depth, quote = 0, ""
    start = 0
    for place, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and (depth or text[place - 1 : place] in ("=", character)):  # '' is ' in YAML
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth = max(depth - 1, 0)
        elif character.isspace() and not depth and re.match(r"\s+[A-Za-z_][\w.]*=", text[place:]):
            found.append(text[start:place])
            start = place
    found.append(text[start:])
    return tuple(part.strip() for part in found if part.strip())


class _Loader(yaml.SafeLoader):
    """YAML without aliases: no recipe needs them, and a few lines of them can stand for more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(None, None, "a recipe has no aliases: write the value itself", mark)
        return super().compose_node(parent, index)


def _read_yaml(text: bytes | str, where: str) -> Any:
    """The value that a YAML text stands for. Raises UserError that names ``where``."""
    try:
        return yaml.load(text.decode() if isinstance(text, bytes) else text, _Loader)
    except RecursionError:
        raise UserError(f"{where} is not valid YAML: it is nested too deep") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
    except (AttributeError, KeyError, IndexError, TypeError, OverflowError):  # of PyYAML's constructors
        raise UserError(f"{where} is not valid YAML: a value is not what its tag (as in !!int) says") from None


def _set(data: dict[str, Any], assignment: str) -> None:
    key, separator, value = assignment.partition("=")
    if not separator or not key:
        raise UserError(f"--set {assignment!r} is not KEY=VALUE, as in --set train.epochs=1")
    *parents, last = key.split(".")
    for parent in parents:
        child = data.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"--set {assignment!r}: {parent!r} is a value, not a group of keys")
        data = child
    data[last] = _read_yaml(value, f"--set {assignment!r}")


def _check_pictures(data: dict[str, Any], path: Path) -> None:
    """Raise UserError where photos are given to a recipe that draws its own pictures: what to type instead."""
    dataset = data.get("dataset")
    if not isinstance(dataset, dict) or dataset.get("source", "embedded") != "embedded":
        return
    for key in ("path", "test_path"):
        if dataset.get(key):
            raise UserError(
                f"recipe {path}: dataset.{key}: {shown(data.get('name', 'it'))} draws its own pictures (dataset.source:"
                f" embedded) and takes no photos: add RECIPE={PHOTOS_RECIPE} to `make`, or name {PHOTOS_RECIPE} in"
                f" place of {path}"
            )


def load_recipe(path: Path, assignments: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe, with ``KEY=VALUE`` assignments (dotted keys, YAML values) laid over it; see
    :func:`split_assignments` for texts of several.

    Raises UserError (unreadable file, not YAML, unknown key, contradictory values), naming the file and the key.
    """
    try:
        data = _read_yaml(read_regular(path), f"recipe {path}")
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read: {error.strerror}") from None
    if not isinstance(data, dict):
        raise UserError(f"recipe {path} is not a group of keys: it begins with `name: my-recipe`")
    for text in assignments:
        for assignment in split_assignments(text) or (text,):
            _set(data, assignment)
    _check_pictures(data, path)
    return validate(Recipe, data, f"recipe {path}")
