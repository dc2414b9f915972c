"""One picture with which a maintainer of llama.cpp sees a check's difference, without this project."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from parity.judge.verdict import Verdict
from parity.report.rows import Pair


@dataclass(frozen=True)
class Reproduction:
    """A command, and what it should print."""

    image_id: str
    command: str
    expected: str
    """What Hugging Face answers."""
    seen: str
    """What llama.cpp answered."""
    prompt: str
    """As Hugging Face's processor writes it."""


def reproduction(verdict: Verdict, pairs: Sequence[Pair]) -> Reproduction | None:
    """The first picture of the first cause whose answers differ; None where a check found no difference.

    The options are those of llama-mtmd-cli (common/arg.cpp). Its own chat template stands around ``-p``, so a prompt
    that was sent raw cannot be given this way, and is left out.
    """
    runtime, causes = verdict.candidate_header.runtime, verdict.causes
    files = str(runtime.get("files", "")).split(" + ")
    if verdict.status != "FAIL" or causes is None or causes.how != "conformed" or not causes.found or len(files) != 2:
        return None
    named = causes.found[0].image_ids
    found = [pair for pair in pairs if pair.reference.image_id in named]
    found.sort(key=lambda pair: pair.reference.text == pair.candidate.text)
    if not found:
        return None
    pair = found[0]
    parts = ["llama-mtmd-cli", "-m", files[0], "--mmproj", files[1], "--image", pair.reference.image_id]
    for option, key, usual in (
        ("--ctx-size", "ctx", 0), ("--cache-type-k", "type_k", "f16"), ("--cache-type-v", "type_v", "f16"),
        ("--flash-attn", "flash_attn", "auto"), ("--image-min-tokens", "image_min_tokens", None),
        ("--image-max-tokens", "image_max_tokens", None),
    ):  # fmt: skip
        if runtime.get(key, usual) != usual:
            parts += [option, str(runtime[key])]
    if question := runtime.get("question"):
        parts += ["-p", str(question)]
    steps = max(len(row.generated_token_ids) for row in (pair.reference, pair.candidate))
    parts += ["--temp", "0", "-n", str(max(steps, 1))]
    return Reproduction(
        image_id=pair.reference.image_id,
        command=shlex.join(parts),
        expected=pair.reference.text,
        seen=pair.candidate.text,
        prompt=str(verdict.reference_header.runtime.get("prompt", "")),
    )
