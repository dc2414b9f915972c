"""What both sides of a pair are asked, and what is allowed between their answers.

An app's contract says it all (:class:`pipeline.contract.Contract`). Where there is no app and no contract, ``parity
check`` writes down what it was told as :class:`CheckTerms`; the judge takes either.
"""

import importlib
import json
import math
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.contract import (
    AnswerRule,
    ChannelOrder,
    Contract,
    Gate,
    ImageContract,
    KvType,
    check_told_apart,
    checked_labels,
    read_label,
)
from pipeline.core.errors import UserError
from pipeline.core.files import canonical_json, read_regular, sha256_bytes
from pipeline.core.gguf_types import canonical
from pipeline.core.settings import Frozen, validate

EXACT_MATCH = "exact_match"
MARKER = "<__media__>"
"""libmtmd's (``mtmd_default_marker``): where the picture goes in a raw prompt."""


class ToolRuntime(Frozen):
    """How llama.cpp is set up. Names and defaults are those of llama-mtmd-cli."""

    ctx: int = Field(0, ge=0, le=2**20)
    """Context window, tokens; 0 is as much as the longest prompt and its answer need."""
    batch: int = Field(2048, ge=1, le=2**20)
    ubatch: int = Field(512, ge=1, le=2**20)
    type_k: KvType = "f16"
    type_v: KvType = "f16"
    flash_attn: Literal["auto", "on", "off"] = "auto"
    threads: int | None = Field(None, ge=1, le=1024)
    """null: the cores of this machine."""
    image_min_tokens: int | None = Field(None, ge=1)
    """null: what the mmproj says."""
    image_max_tokens: int | None = Field(None, ge=1)

    @field_validator("type_k", "type_v", mode="before")
    @classmethod
    def _cache_type(cls, value: Any) -> Any:
        return canonical(value, KvType)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.flash_attn == "off" and self.type_v not in ("f32", "f16"):
            raise ValueError(f"type_v {self.type_v} needs flash attention (llama.cpp refuses it otherwise)")
        low, high = self.image_min_tokens, self.image_max_tokens
        if low and high and low > high:
            raise ValueError(f"image_min_tokens {low} is more than image_max_tokens {high}")
        return self


class OpenGate(Frozen):
    """What is allowed between answers that no label sums up."""

    agreement: float = Field(0.95, gt=0, lt=1)
    """Share of the answers' tokens, the mean over the pictures, that the candidate must put first where the reference
    does; the whole 95 % interval must reach it."""


class CheckTerms(Frozen):
    """What ``parity check`` was told, and the defaults of what it was not."""

    schema_version: Literal[1] = 1
    kind: Literal["check"] = "check"
    name: str = "check"
    labels: tuple[str, ...] = Field((), strict=False)
    """The classes; empty: answers are open."""
    prompt: str
    """As the user gave it; ``{column}`` takes a picture's own value."""
    raw: bool = False
    """Sent as it is, :data:`MARKER` where the picture goes; else put into each side's own chat template."""
    answer_rule: AnswerRule = "contains"
    """As in a contract."""
    metric: str | None = None
    """How an open answer is scored against the expected one (:func:`score_of`); null where none is expected."""
    max_new_tokens: int = Field(64, ge=1, le=2**20)
    image: ImageContract | None = None
    """How an app letterboxes; null: the photo as it is."""
    runtime: ToolRuntime = ToolRuntime()
    gate: Gate = Gate()
    open_gate: OpenGate = OpenGate()

    @field_validator("labels")
    @classmethod
    def _labels(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        return checked_labels(labels) if labels else labels

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.raw and self.prompt.count(MARKER) != 1:
            raise ValueError(
                f"a raw prompt has {MARKER} once, where the picture goes; this one has it {self.prompt.count(MARKER)}"
                " times"
            )
        if self.labels and self.metric:
            raise ValueError("answers are labels or are scored by a metric, not both")
        check_told_apart(self.labels, self.answer_rule)
        return self

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the terms as canonical JSON, defaults written out."""
        return sha256_bytes(canonical_json(self.model_dump(mode="json")))

    def parse_answer(self, text: str) -> str | None:
        """The label that a generated text gives, or None; of an open answer its words, however they are spaced."""
        if not self.labels:
            return " ".join(text.split()) or None
        return read_label(text, self.labels, self.answer_rule)

    def score(self, text: str, expected: str | None) -> float | None:
        """How well an open answer meets the one expected, 0..1 for most metrics; None where none is expected."""
        if self.metric is None or expected is None:
            return None
        return score_of(self.metric, text, expected)


Terms = Contract | CheckTerms


def score_of(metric: str, text: str, expected: str) -> float:
    """An answer's score by a metric's name: ``exact_match`` (the same words, whatever their case and spacing), or a
    function ``module:function`` that is given (answer, expected) and returns a number, the greater the better.

    Raises UserError where there is no such function, or it fails.
    """
    if metric == EXACT_MATCH:
        return float(text.casefold().split() == expected.casefold().split())
    module, found, name = metric.partition(":")
    try:
        if not found:
            raise ImportError(f"{metric!r} is neither {EXACT_MATCH} nor module:function")
        value = float(getattr(importlib.import_module(module), name)(text, expected))
    except Exception as error:  # a user's own function
        raise UserError(f"metric {metric}: {type(error).__name__}: {error}") from None
    if not math.isfinite(value):
        raise UserError(f"metric {metric} gives {value} for {text[:40]!r} and {expected[:40]!r}: it must be a number")
    return value


def channel_order(terms: Terms) -> ChannelOrder:
    """Of the bytes handed to the model."""
    return terms.image.channel_order if terms.image else "rgb"


def cache_types(terms: Terms) -> str:
    """Of the KV cache's keys and values, as in ``q4_0/q4_0``."""
    return f"{terms.runtime.type_k}/{terms.runtime.type_v}"


def load_terms(path: Path) -> Terms:
    """Read a contract or a check's terms. Raises UserError as :func:`pipeline.contract.load_contract` does."""
    try:
        data = json.loads(read_regular(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if isinstance(data, dict) and data.get("kind") == "check":
        return validate(CheckTerms, data, f"terms {path}")
    return validate(Contract, data, f"contract {path}")
