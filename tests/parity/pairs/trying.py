"""One picture of a pair, both sides of it and what conforming makes of them, without the files of a check."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from anypair import EXACT, Tiny, damaged, open_reference, swapped, tiny_pair, write_photos
from rich.console import Console
from session import Once

from parity.compare.ladder import Compared, LadderHeader, Measured
from parity.compare.photos import load_photos
from parity.compare.traces import measure_traces
from parity.engines.given import Given
from parity.engines.pixels import token_limits
from parity.judge.causes import LayerErrors
from parity.judge.gates.limits import limits_of
from parity.judge.verdict import Limits
from parity.pairs.conforming import Conformed, Subject, conform
from parity.pairs.job import _layers, _measure_floor
from parity.pairs.layers import Half, layer_errors
from parity.pairs.opening import AnyPair, Opened
from parity.terms import CheckTerms
from pipeline.core.progress import Reporter

QUESTION = "What is this?"


@dataclass
class Trying:
    """Both sides of a pair, and what is allowed between them: measured on the same pictures, as a check does."""

    opened: Opened
    limits: Limits

    def subject(self, number: int = 0) -> Subject:
        """Both sides of a picture."""
        opened, photo = self.opened, self.opened.photos[number]
        one = opened.hf(photo)
        answer, trace = opened.llamacpp(photo, one)
        rows = opened.row(photo, one.answer, one.trace), opened.row(photo, answer, trace)
        allowed = token_limits(opened.processor().image_processor)
        return Subject(photo, opened.asked_llamacpp(photo), one.answer, one.trace, trace, rows, allowed)

    def measured(self, number: int = 0) -> Measured:
        """Both sides of a picture, held against each other."""
        found = self.subject(number)
        sides = (found.rows[0], found.reference), (found.rows[1], found.candidate)
        return measure_traces(*sides, found.photo.size, None)

    def conformed(self, number: int = 0) -> Conformed:
        """What a picture's difference hangs on."""
        return conform(self.opened.candidate(), self.subject(number), self.limits)

    def layers(self, number: int = 0) -> LayerErrors:
        """The layers of the half that differs, after conforming."""
        subject = self.subject(number)
        found = conform(self.opened.candidate(), subject, self.limits)
        (layers,) = _layers(self.opened, subject, found, self.limits)
        return layers

    def layers_of(self, half: Half) -> LayerErrors:
        """The layers of a half of the first picture as it is."""
        opened, subject = self.opened, self.subject()
        prompt, rgb = opened.asked_hf(subject.photo), subject.photo.rgb
        limit = self.limits.embeddings_each
        return layer_errors(half, opened.reference, opened.candidate, subject, prompt, Given(), rgb, limit)


@contextmanager
def trying(
    pair: Tiny,
    folder: Path,
    sizes: list[tuple[int, int]],
    reference: Any = None,
    limits: Limits | None = None,
    **asked: Any,
) -> Iterator[Trying]:
    """``sizes``: of the pictures. ``reference``: an opened side, of this model or another. ``limits``: by default
    measured. ``asked``: of the terms."""
    torch.set_num_threads(1)
    terms = CheckTerms(**({"prompt": QUESTION, "max_new_tokens": 4, "runtime": EXACT} | asked))
    photos, _ = load_photos(write_photos(folder / "photos", sizes), terms.prompt)
    opened = Opened(
        AnyPair(str(pair.folder), pair.text, pair.mmproj),
        photos,
        terms,
        Reporter(Console(stderr=True), quiet=True),
        _reference=reference or open_reference(pair),
        _probed=True,
        _announced=True,
    )
    with opened:
        opened.candidate()
        yield Trying(opened, limits or floor_limits(opened))


def broken_language(once: Once) -> Tiny:
    """Qwen2.5-VL with two tensors of a language layer swapped, layer 1 of three."""
    pair = tiny_pair(once, "qwen2.5-vl")
    change = swapped("blk.1.ffn_up.weight", "blk.1.ffn_gate.weight")
    made = once("qwen2.5-vl-language", lambda out: damaged(pair.text, out / "text.gguf", tensors=change))
    return Tiny(pair.folder, made / "text.gguf", pair.mmproj)


def floor_limits(opened: Opened) -> Limits:
    """What a check of F32 halves would allow."""
    about = dict.fromkeys(Compared.model_fields, "0" * 64) | {"floor": _measure_floor(opened)}
    about |= {"text_type": "F32", "mmproj_type": "F32", "kv_type": "f32/f32"}
    header = LadderHeader(**about, reference_sha256="0" * 64, candidate_sha256="0" * 64)  # type: ignore[arg-type]
    return limits_of(header, opened.terms.gate)
