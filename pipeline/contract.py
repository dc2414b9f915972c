"""What the phone does to a photo and to an answer, as data.

``android_fixtures/contract.json`` holds the phone's values; a user's own file states only what differs. Everything that
makes pixels, tokens or verdicts takes a :class:`Contract` and restates none of it. Its :attr:`Contract.digest` is
written into every dataset, GGUF, bundle and result, so that two sides judged against each other are known to have meant
the same thing.

Invariants: a Contract that exists is consistent (labels can be told apart, the prompt has one marker); it is frozen.
"""

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.core.errors import UserError
from pipeline.core.files import canonical_json, read_regular, sha256_bytes
from pipeline.core.gguf_types import canonical
from pipeline.core.settings import Frozen, validate

DEFAULT_CONTRACT = Path(__file__).parent.parent / "android_fixtures" / "contract.json"

ChannelOrder = Literal["rgb", "bgr"]
AnswerRule = Literal["contains", "exact"]
KvType = Literal["f32", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


class ImageContract(Frozen):
    """From a file's bytes to the RGB canvas that the model is given."""

    size: int = Field(256, ge=16, le=4096)
    """Side of the square canvas, pixels."""
    pad_color: tuple[int, int, int] = Field((0, 0, 0), strict=False)
    """R, G, B of the canvas around the photo, 0..255."""
    geometry: Literal["float32", "float64"] = "float32"
    """Arithmetic of the scaled size: Kotlin Float on the phone; float64 is what the same line gives in Python."""
    resample: Literal["android_bilinear", "lanczos", "area"] = "android_bilinear"
    """Skia's bilinear without mipmaps; ``lanczos`` and ``area`` are Pillow's LANCZOS and BOX."""
    offset: Literal["round_half_up", "floor"] = "round_half_up"
    """Where an odd margin goes: (size - scaled) / 2 rounded up at one half, or floored."""
    channel_order: ChannelOrder = "rgb"
    """Order of the bytes handed to the model; the app's JNI bridge swaps to ``bgr``."""
    exif: Literal["ignore", "transpose"] = "ignore"
    """BitmapFactory ignores the orientation tag."""
    alpha: Literal["black", "drop"] = "black"
    """Transparent pixels are composited over black while decoding, or their alpha is dropped."""
    colour_space: Literal["android", "ignore"] = "android"
    """``android``: a wide-gamut file is scaled in its own space and converted to sRGB only when drawn on the canvas."""

    @field_validator("pad_color")
    @classmethod
    def _bytes(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if not all(0 <= channel <= 255 for channel in value):
            raise ValueError("each channel is a whole number from 0 to 255")
        return value


class Tiling(Frozen):
    """Which pictures the vision encoder is given for one canvas.

    ``grid``: the canvas scaled to ``grid`` x ``grid`` encoder tiles, then the whole canvas as one tile (the overview).
    ``overview``: the whole canvas as one tile alone, which stock llama.cpp cannot be made to do (it always emits a grid
    of at least 1x1).
    """

    plan: Literal["grid", "overview"] = "grid"
    """``grid`` or ``overview``, as above."""
    grid: int = Field(1, ge=1, le=6)
    """Tiles a side; SmolVLM has position tokens for 6 rows and columns at most."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.plan == "overview" and self.grid != 1:  # 1 is what a contract written out holds
            raise ValueError(f"the plan 'overview' has no grid of {self.grid}: remove 'grid' or set the plan to 'grid'")
        return self

    @property
    def n_tiles(self) -> int:
        """Pictures encoded for one canvas, the overview included."""
        return 1 if self.plan == "overview" else self.grid**2 + 1

    def __str__(self) -> str:
        return "overview alone" if self.plan == "overview" else f"{self.grid}x{self.grid} + overview"


class Runtime(Frozen):
    """How the app sets llama.cpp up; the host runs the same profile."""

    n_ctx: int = Field(1024, ge=64, le=2**20)
    """Context window, tokens."""
    n_batch: int = Field(512, ge=1, le=2**20)
    """Most tokens handed to one decode call."""
    type_k: KvType = "q4_0"
    """Type of the KV cache's keys."""
    type_v: KvType = "q4_0"
    """Type of the KV cache's values; a quantized type needs flash attention."""
    flash_attn: bool = True
    """Whether flash attention is on."""
    n_threads: int | None = Field(None, ge=1, le=1024)
    """Threads; null is the app's rule, half the cores, at least 2 and at most 6."""

    @field_validator("type_k", "type_v", mode="before")
    @classmethod
    def _cache_type(cls, value: Any) -> Any:
        return canonical(value, KvType)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.flash_attn and self.type_v not in ("f32", "f16"):
            raise ValueError(f"type_v {self.type_v} needs flash_attn: true (llama.cpp refuses it otherwise)")
        return self

    def threads(self, cores: int) -> int:
        """Threads to run with on a machine of ``cores`` cores (the app's ``clamp(cores / 2, 2, 6)``)."""
        return self.n_threads or min(max(cores // 2, 2), 6)


class Gate(Frozen):
    """What the verdict allows."""

    margin_points: float = Field(3.0, gt=0, le=100)
    """Accuracies of HF and llama.cpp may differ by at most this many percentage points, either way."""
    noise_factor: float = Field(1.0, gt=0)
    """Multiplies the limits that follow from the measured noise floor (embeddings, logits)."""
    class_margin_points: float = Field(10.0, gt=0, le=100)
    """A label fails where the whole 95 % interval of its recall's difference is worse than this, percentage points."""
    recall_floors: dict[str, float] = Field(default_factory=dict)
    """Label -> recall, 0..1, that the candidate must reach."""
    baseline_factor: float = Field(1.5, ge=1)
    """Embeddings' and logits' differences may be this many times the committed baseline's."""

    @field_validator("recall_floors")
    @classmethod
    def _shares(cls, floors: dict[str, float]) -> dict[str, float]:
        for label, floor in floors.items():
            if not 0 < floor <= 1:
                raise ValueError(f"the floor of {label!r} is {floor:g}; a recall is more than 0 and at most 1")
        return floors


class Contract(Frozen):
    """All that must be the same on the phone, in training and in the harness."""

    schema_version: Literal[1] = 1
    """Version of this format."""
    name: str = Field("elements", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """For people; names the app's task."""
    labels: tuple[str, ...] = Field(("water", "land", "fire", "wood", "metal"), strict=False)
    """The classes, in the order in which the app looks for them in an answer."""
    prompt_template: str = (
        "<__media__>\nClassify this image into one of these elements: {labels}.\n\nElement:"  # the app's, to the byte
    )
    """Sent raw: no chat template. ``{labels}`` becomes the labels joined by ", "."""
    media_marker: str = Field("<__media__>", min_length=1)
    """libmtmd's marker for the picture. It is replaced before tokenizing and is never text for a tokenizer."""
    add_bos: bool = False
    """Whether a beginning-of-sequence token is put in front."""
    answer_prefix: str = " "
    """What stands between the prompt and the label in the text the model learns; ``Element:`` wants a space."""
    answer_rule: AnswerRule = "contains"
    """``contains``: the first label, in order, that the answer contains, whatever its case. ``exact``: the answer
    without the white space around it equals the label, whatever its case."""
    max_new_tokens: int = Field(32, ge=1, le=2**20)
    """Most tokens of an answer."""
    sampling: Literal["greedy"] = "greedy"
    """The most probable token, always."""
    context: Literal["never"] = "never"
    """The records' ``reason`` is never part of the prompt: the app has none to send."""
    image: ImageContract = ImageContract()
    tiling: Tiling = Tiling()
    runtime: Runtime = Runtime()
    gate: Gate = Gate()

    @field_validator("labels")
    @classmethod
    def _labels(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        return checked_labels(labels)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        markers = self.prompt_template.count(self.media_marker)
        if markers != 1:
            raise ValueError(
                f"prompt_template has {markers} of media_marker {self.media_marker!r}; it needs exactly one"
            )
        if any(self.media_marker in label for label in self.labels):
            raise ValueError(f"a label contains media_marker {self.media_marker!r}")
        for label in self.gate.recall_floors:
            if label not in self.labels:
                raise ValueError(f"gate.recall_floors has {label!r}, which is none of the labels")
        check_told_apart(self.labels, self.answer_rule)
        return self

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the contract as canonical JSON, defaults written out."""
        return sha256_bytes(canonical_json(self.model_dump(mode="json")))

    @property
    def prompt(self) -> str:
        """The prompt as the app sends it, marker included."""
        return self.prompt_template.replace("{labels}", ", ".join(self.labels))

    @property
    def prompt_parts(self) -> tuple[str, str]:
        """The prompt's text before and after the picture."""
        before, after = self.prompt.split(self.media_marker)
        return before, after

    def answer_text(self, label: str) -> str:
        """What the model is taught to write for ``label``, without the end token."""
        return self.answer_prefix + label

    def parse_answer(self, text: str) -> str | None:
        """The label that the app reads out of a generated text, or None where it finds none."""
        return read_label(text, self.labels, self.answer_rule)

    def check_budget(self, image_tokens: int, prompt_tokens: int) -> None:
        """Raise UserError where image + prompt + answer tokens do not fit the context window."""
        total = image_tokens + prompt_tokens + self.max_new_tokens
        if total > self.runtime.n_ctx:
            raise UserError(
                f"the tile plan {self.tiling} needs {image_tokens} image + {prompt_tokens} prompt +"
                f" {self.max_new_tokens} answer = {total} tokens, more than runtime.n_ctx {self.runtime.n_ctx}:"
                " choose a smaller tiling.grid or, if the app can be changed, a larger n_ctx"
            )


def checked_labels(labels: tuple[str, ...]) -> tuple[str, ...]:
    """``labels`` if they are at least two, plain and different. Raises ValueError."""
    if len(labels) < 2:
        raise ValueError("a classifier needs at least two labels")
    for label in labels:
        if not label or label != label.strip() or "\n" in label:
            raise ValueError(f"label {label!r} is empty or has white space around it or a line break in it")
        if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in label):
            raise ValueError(f"label {label!r} has a control character in it")
    folded = [label.casefold() for label in labels]
    for label, key in zip(labels, folded, strict=True):
        if folded.count(key) > 1:
            raise ValueError(f"label {label!r} stands more than once (case does not count)")
    return labels


def check_told_apart(labels: Sequence[str], rule: AnswerRule) -> None:
    """Raise ValueError where ``rule`` reads one label out of the answer that gives another."""
    if rule == "exact":
        return
    for inner in labels:
        for outer in labels:
            if inner != outer and inner.casefold() in outer.casefold():
                raise ValueError(
                    f"label {inner!r} is contained in {outer!r}, so answer_rule 'contains' cannot tell them"
                    " apart: rename one or use answer_rule 'exact'"
                )


def read_label(text: str, labels: Sequence[str], rule: AnswerRule) -> str | None:
    """The first of ``labels`` that a generated text gives by the rule, or None; see :attr:`Contract.answer_rule`."""
    folded = text.casefold()
    for label in labels:
        key = label.casefold()
        if folded.strip() == key or (rule == "contains" and key in folded):
            return label
    return None


def load_contract(path: Path = DEFAULT_CONTRACT) -> Contract:
    """Read a contract file. Keys left out take the phone's values.

    Raises UserError (unreadable file, not JSON, unknown key, contradictory values), naming the file and the key.
    """
    try:
        data = json.loads(read_regular(path))
    except OSError as error:
        raise UserError(f"contract {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"contract {path} is not valid JSON: {error}") from None
    return validate(Contract, data, f"contract {path}")
