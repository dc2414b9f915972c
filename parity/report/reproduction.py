"""One picture with which a maintainer of llama.cpp sees the difference, without this project."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parity.judge.verdict import Verdict
from parity.report.attached import Attached
from parity.report.rows import Pair
from parity.terms import MARKER
from pipeline.contract import Contract

_AFTER_THE_PIXELS = ("tiles", "tokens", "embeddings", "logits", "generation", "answers", "accuracy", "classes")
"""Checks that fail because of the GGUFs or llama.cpp. What comes before is the app's own doing."""
_AS_IT_IS = "{{ messages[0].content }}"
"""A chat template that adds nothing, so that ``-p`` is the whole prompt."""


@dataclass(frozen=True)
class Reproduction:
    """A command, and what it should print."""

    key: str
    image_id: str
    file: str
    """What the command calls the picture."""
    command: str
    expected: str
    """What Hugging Face answers."""
    seen: str
    """What llama.cpp answered."""
    prompt: str
    """As Hugging Face's processor writes it; empty where the command has it whole."""


def reproduction(verdict: Verdict, pairs: Sequence[Pair], attached: Attached) -> Reproduction | None:
    """One picture whose answers differ, as a command for llama-mtmd-cli; None where there is no such difference, or
    where llama-mtmd-cli cannot be made to do what the app does.

    The options are those of common/arg.cpp and tools/mtmd/mtmd-cli.cpp.
    """
    files = str(verdict.candidate_header.runtime.get("files", "")).split(" + ")
    if verdict.status != "FAIL" or verdict.audit or len(files) != 2:
        return None
    if attached.contract:
        return _of_an_app(verdict, pairs, attached, attached.contract, files)
    return _of_a_pair(verdict, pairs, files)


def _of_an_app(
    verdict: Verdict, pairs: Sequence[Pair], attached: Attached, contract: Contract, files: Sequence[str]
) -> Reproduction | None:
    runtime = verdict.candidate_header.runtime
    if (
        verdict.first_bad_stage not in _AFTER_THE_PIXELS
        or runtime.get("fed") != "rgb"  # a file is decoded to R, G, B
        or contract.tiling.plan != "grid"  # the other plan is this project's own
    ):
        return None
    found = [pair for pair in pairs if pair.reference.text != pair.candidate.text]
    if not found:
        return None
    pair = min(found, key=lambda pair: (pair.kind != "lost", pair.kind == "same", pair.index))
    own = contract.runtime
    options: list[object] = ["--ctx-size", own.n_ctx, "--batch-size", own.n_batch]
    options += ["--cache-type-k", own.type_k, "--cache-type-v", own.type_v]
    options += ["--flash-attn", "on" if own.flash_attn else "off"]
    if not contract.add_bos and any(half.keys.get("tokenizer.ggml.add_bos_token") == "true" for half in attached.ggufs):
        options += ["--override-kv", "tokenizer.ggml.add_bos_token=bool:false"]
    prompt = contract.prompt.replace(contract.media_marker, MARKER)
    options += [*_raw(prompt), "--temp", 0, "-n", contract.max_new_tokens]
    return _made(pair, files, f"{pair.reference.image_id}.png", options, "")


def _of_a_pair(verdict: Verdict, pairs: Sequence[Pair], files: Sequence[str]) -> Reproduction | None:
    """The first picture of the first cause of a check, with the GGUF's own chat template around the question."""
    runtime, causes = verdict.candidate_header.runtime, verdict.causes
    if causes is None or causes.how != "conformed" or not causes.found:
        return None
    named = causes.found[0].image_ids
    found = [pair for pair in pairs if pair.reference.image_id in named]
    found.sort(key=lambda pair: pair.reference.text == pair.candidate.text)
    if not found:
        return None
    pair = found[0]
    options: list[object] = []
    for option, key, usual in (
        ("--ctx-size", "ctx", 0), ("--cache-type-k", "type_k", "f16"), ("--cache-type-v", "type_v", "f16"),
        ("--flash-attn", "flash_attn", "auto"), ("--image-min-tokens", "image_min_tokens", None),
        ("--image-max-tokens", "image_max_tokens", None),
    ):  # fmt: skip
        if runtime.get(key, usual) != usual:
            options += [option, runtime[key]]
    options += _asked(runtime)
    steps = max(len(row.generated_token_ids) for row in (pair.reference, pair.candidate))
    options += ["--temp", 0, "-n", max(steps, 1)]
    prompt = str(verdict.reference_header.runtime.get("prompt", ""))
    return _made(pair, files, pair.reference.image_id, options, prompt)


def _asked(runtime: Mapping[str, Any]) -> list[object]:
    """The question, or the whole prompt where it was sent raw."""
    if question := runtime.get("question"):
        return ["-p", _escaped(str(question))]
    return _raw(str(runtime.get("prompt", "")))


def _raw(prompt: str) -> list[object]:
    return ["--jinja", "--chat-template", _AS_IT_IS, "-p", _escaped(prompt)]


def _escaped(text: str) -> str:
    """On one line, as ``-p`` takes it: a backslash begins an escape there."""
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _made(pair: Pair, files: Sequence[str], picture: str, options: Sequence[object], prompt: str) -> Reproduction:
    parts = ["llama-mtmd-cli", "-m", files[0], "--mmproj", files[1], "--image", picture, *map(str, options)]
    return Reproduction(
        key=pair.key,
        image_id=pair.reference.image_id,
        file=picture,
        command=shlex.join(parts),
        expected=pair.reference.text,
        seen=pair.candidate.text,
        prompt=prompt,
    )
