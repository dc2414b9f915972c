"""How long a check will take, before it starts: from the weights' number, the prompts' length and this machine."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.models.smolvlm.inspect import stored_shapes

SHOWN_SECONDS = 60
"""A check that takes less is not announced."""


@dataclass(frozen=True)
class Machine:
    """What this machine does."""

    flops: float
    """Float32 multiply-adds a second, times two, of a large product."""
    bytes_per_second: float
    """Read from memory."""


def measure_machine() -> Machine:
    """A fifth of a second of each."""
    size = 768
    a, b = torch.rand(size, size), torch.rand(size, size)
    flops = 2 * size**3 * _per_second(lambda: torch.mm(a, b))
    large = torch.rand(1 << 24)
    return Machine(flops, large.nbytes * _per_second(large.sum))


def _per_second(work: Callable[[], object]) -> float:
    work()
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < 0.2:
        work()
        count += 1
    return count / (time.perf_counter() - begin)


def parameters(folder: Path) -> int:
    """How many a model folder's weights have."""
    total = 0
    for shape in stored_shapes(folder).values():
        count = 1
        for side in shape:
            count *= side
        total += count
    return total


def seconds_a_picture(weights: int, tokens: int, answer: int, machine: Machine) -> float:
    """Of Hugging Face in float32: a product of every weight with every token of the prompt, then all weights read once
    for each token of the answer. The vision half sees more patches than it makes tokens, but has fewer weights; no more
    than a first guess, which the rate shown while it runs replaces."""
    return 2 * weights * tokens / machine.flops + 4 * weights * answer / machine.bytes_per_second


def announce(weights: int, tokens: int, answer: int, pictures: int, machine: Machine) -> str | None:
    """One line for the person who waits; None where there is nothing to wait for. ``tokens``: of the longest prompt."""
    each = 2 * seconds_a_picture(weights, tokens, answer, machine)  # both sides
    total = each * pictures
    if total < SHOWN_SECONDS:
        return None
    whole = f"{total / 3600:.1f} hours" if total > 5400 else f"{total / 60:.0f} minutes"
    return (
        f"{weights / 1e6:.0f} million weights on this machine: about {each:.0f} s a picture for both sides,"
        f" {whole} for {pictures} pictures and as much again where many differ; --limit takes fewer"
    )
