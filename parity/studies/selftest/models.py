"""Faults of what is run, and of what becomes of the answers. Each changes one thing of a Bench."""

import ctypes
import os
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from parity.judge.baseline import make_baseline
from parity.results import Row
from parity.studies.selftest.bench import Bench, Evidence
from parity.studies.selftest.forge import Draft
from pipeline.core.errors import UserError

LN_EPSILON = "clip.vision.attention.layer_norm_epsilon"
RMS_EPSILON = "llama.attention.layer_norm_rms_epsilon"


def vision_value(bench: Bench, key: str, value: float) -> Evidence:
    """Another number in the mmproj's metadata."""
    return bench.with_vision(lambda draft: draft.set(key, value))


def text_value(bench: Bench, key: str, value: float) -> Evidence:
    """Another number in the language half's metadata."""
    return bench.with_text(lambda draft: draft.set(key, value))


def _last(names: Any, prefix: str) -> int:
    """The number of the last layer."""
    return max(int(name.removeprefix(prefix).split(".")[0]) for name in names if name.startswith(prefix))


def vision_layers(bench: Bench) -> Evidence:
    """The first and the last layer's tensors have changed places."""
    last = _last(bench.read_vision().names(), "v.blk.")
    return bench.with_vision(lambda draft: draft.swap("v.blk.0.", f"v.blk.{last}."))


def text_layers(bench: Bench) -> Evidence:
    """The first and the last layer's tensors have changed places."""
    last = _last(bench.read_text().names(), "blk.")
    return bench.with_text(lambda draft: draft.swap("blk.0.", f"blk.{last}."))


def _interleaved(draft: Draft, name: str, heads: int) -> None:
    """Reorder a projection's rows as llama.cpp's converter does for rotary embeddings (``LlamaModel.permute``)."""
    rows: npt.NDArray[Any] = draft.tensor(name)
    rows[:] = rows.reshape(heads, 2, len(rows) // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def vision_rows(bench: Bench) -> Evidence:
    """The converter reorders the first layer's queries, which have no rotary embedding."""
    heads = bench.read_vision().value("clip.vision.attention.head_count")
    return bench.with_vision(lambda draft: _interleaved(draft, "v.blk.0.attn_q.weight", heads))


def text_rows(bench: Bench) -> Evidence:
    """The converter reorders the first layer's keys twice."""
    heads = bench.read_text().value("llama.attention.head_count_kv")
    return bench.with_text(lambda draft: _interleaved(draft, "blk.0.attn_k.weight", heads))


def stale_mmproj(bench: Bench) -> Evidence:
    """The vision half of the model before its training."""
    return bench.compared(bench.run_candidate(mmproj=bench.export_base()[1]))


def dropped_adapter(bench: Bench) -> Evidence:
    """The language half of the model before its training."""
    return bench.compared(bench.run_candidate(model=bench.export_base()[0]))


def coarse(bench: Bench) -> Evidence:
    """The language half quantized to Q4_0; its metadata say what they said before.

    The logits would not tell: a KV cache of Q4_0 does as much harm to them as these weights (measured with the tiny
    model, median KL over 96 images: 3.4e-5 and 4.9e-5 under a cache of Q4_0, 9.0e-6 and 3.1e-5 under F16). The types of
    the file's own tensors do.
    """
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread, parameters.ftype, parameters.allow_requantize = os.cpu_count() or 1, 2, True
    target = bench.scratch / "coarse.gguf"
    code = llama_cpp.llama_model_quantize(os.fsencode(bench.model), os.fsencode(target), ctypes.byref(parameters))
    if code != 0:
        raise UserError(f"llama.cpp cannot quantize {bench.model} to Q4_0: give a recipe with another text_type")
    return bench.compared(bench.run_candidate(model=target, samples=bench.few))


def lost_end(bench: Bench) -> Evidence:
    """The GGUF names another end token, and the trained one has a text that llama.cpp does not know."""
    encoder = bench.encoder(bench.contract)

    def change(draft: Draft) -> None:
        text = draft.values("tokenizer.ggml.tokens")[encoder.end_id]
        text[:] = np.frombuffer(b"<" + b"x" * (len(text) - 2) + b">", np.uint8)
        draft.set("tokenizer.ggml.eos_token_id", bench.read_text().value("tokenizer.ggml.bos_token_id"))

    return bench.with_text(change)


# --- what becomes of the answers -------------------------------------------------------------------------------------


def labels_by_number(bench: Bench) -> Evidence:
    """The app looks the answer's number up in a list of labels that begins elsewhere."""
    labels = bench.contract.labels
    following = dict(zip(labels, labels[1:] + labels[:1], strict=True))
    rows = bench.saved.candidate.rows
    return bench.saved.with_candidate(
        {
            key: row.model_copy(update={"label": following[row.label] if row.label else None})
            for key, row in rows.items()
        }
    )


def _second_best(bench: Bench, row: Row) -> Row:
    """The answer where the label first given cannot be."""
    label = max(
        (label for label in bench.contract.labels if label != row.label),
        key=lambda label: row.label_logprobs.get(label) or -np.inf,
    )
    ids = bench.encoder(bench.contract).answer_ids[label]
    text = bench.contract.answer_text(label)
    return row.model_copy(update={"label": label, "text": text, "generated_token_ids": ids})


def _without(bench: Bench, label: str, evidence: Evidence) -> Evidence:
    return evidence.with_candidate(
        {key: _second_best(bench, row) if row.label == label else row for key, row in evidence.candidate.rows.items()}
    )


def silent_label(bench: Bench) -> Evidence:
    """The app's grammar lacks the first label, so its sampler takes the next best."""
    return _without(bench, bench.contract.labels[0], bench.saved)


def silent_rare_label(bench: Bench) -> Evidence:
    """The same, where the label is so rare that the accuracy stays within the margin."""
    label, saved = bench.contract.labels[0], bench.saved
    own = [key for key, row in saved.reference.rows.items() if row.truth == label]
    others = [key for key in saved.reference.rows if key not in own]
    right = [key for key in own if saved.reference.rows[key].correct and saved.candidate.rows[key].correct]
    # As many as keep lost / (others + lost) within the margin.
    margin = Fraction(str(bench.contract.gate.margin_points)) / 100
    chosen = {*others, *right[: int(margin * len(others))]}
    kept = {key: row for key, row in saved.candidate.rows.items() if key in chosen}
    return _without(bench, label, saved.with_candidate(kept))


def worse_than_before(bench: Bench) -> Evidence:
    """The last release answered these images better, and this one is still within the margin."""
    saved = bench.saved
    baseline = make_baseline(saved.judged(), saved.candidate)
    right = [key for key, row in saved.candidate.rows.items() if row.correct and saved.reference.rows[key].correct]
    margin = Fraction(str(bench.contract.gate.margin_points)) / 100
    lost = right[:: max(1, len(right) // int(margin * len(saved.candidate.rows)) + 1)]
    rows = saved.candidate.rows | {key: _second_best(bench, saved.candidate.rows[key]) for key in lost}
    return replace(saved.with_candidate(rows), baseline=baseline)
