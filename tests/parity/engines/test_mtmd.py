"""Any pair under llama.cpp: counting, walking a given answer, answering freely, and what is put in place of its own.

The tests are of Qwen2.5-VL (M-RoPE), the slow ones of Gemma 3 (a picture's tokens see one another both ways) and of
families whose memory cannot be taken back. The contract's path on SmolVLM, which was there first, is the yardstick.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from anypair import EXACT, Tiny, open_candidate, picture, tiny_pair
from models import Pair, canvases, encoder_for, runtime
from session import Once

from parity.engines.given import Given
from parity.engines.llamacpp import LlamaCppPredictor
from parity.engines.mtmd import Mtmd
from parity.terms import MARKER
from pipeline.contract import Contract
from pipeline.core.errors import UserError

PROMPT = f"<|im_start|>user\n{MARKER}What is this?<|im_end|>\n<|im_start|>assistant\n"
RGB = picture(112, 84)
STEPS = 4
FORCED = (100, 7, 2000, 345)
"""An answer that no model gives."""

SAME = 3e-4
"""Largest difference of two log-probabilities of one token, computed in one batch or one by one. Measured with
Qwen2.5-VL and Gemma 3: 9.3e-5 at most."""
VISION_SAME, VISION_LOGITS = 3e-4, 2e-3
"""Relative error of embeddings, and difference of log-probabilities, with and without flash attention in the vision
half. Measured: 9.7e-5 and 5.2e-4 at most."""


@pytest.fixture(scope="module", params=["qwen2.5-vl", pytest.param("gemma3", marks=pytest.mark.slow)])
def pair(request: pytest.FixtureRequest, once: Once) -> Tiny:
    return tiny_pair(once, request.param)


@pytest.fixture(scope="module")
def side(pair: Tiny) -> Iterator[Mtmd]:
    with open_candidate(pair) as opened:
        yield opened


def apart(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    return float(np.abs(a - b).max())


@pytest.mark.parametrize("size", [(56, 56), (112, 84), (300, 40)])
def test_tokens_are_counted_without_encoding(side: Mtmd, size: tuple[int, int]) -> None:
    _, trace = side.answer(picture(*size), PROMPT, (), 1)
    assert side.count(size, PROMPT) == len(trace.ids)
    assert trace.positions.shape[1] == len(trace.ids)
    assert trace.ids.count(-1) > 0
    assert not np.isnan(trace.inputs[np.array(trace.ids) == -1]).any()


def test_a_walked_answer_is_the_one_walked_step_by_step(side: Mtmd) -> None:
    _, whole = side.answer(RGB, PROMPT, FORCED, 1)
    assert whole.log_probs.shape == (len(FORCED) + 1, side.n_vocab)
    for step in range(len(FORCED) + 1):
        # The answer so far as part of the prompt; its ids go in as they are.
        with_texts = replace(Given(), texts=[texts_of(side)[0], [*texts_of(side)[1], *FORCED[:step]]])
        _, alone = side.answer(RGB, PROMPT, (), 1, with_texts)
        assert apart(whole.log_probs[step], alone.log_probs[0]) < SAME


def texts_of(side: Mtmd) -> list[list[int]]:
    """The ids before and behind the picture."""
    _, trace = side.answer(RGB, PROMPT, (), 1)
    before, slots, behind = trace.layout
    assert isinstance(slots, int)
    return [list(before), list(behind)]  # type: ignore[arg-type]


@pytest.mark.parametrize("common", range(STEPS + 1))
def test_the_free_answer_does_not_hang_on_the_one_walked(side: Mtmd, common: int) -> None:
    free, alone = side.answer(RGB, PROMPT, (), STEPS)
    reference = [*free.ids[:common], *FORCED[: STEPS - common]]
    again, walked = side.answer(RGB, PROMPT, reference, STEPS)
    assert (again.ids, again.text, again.stop_reason) == (free.ids, free.text, free.stop_reason)
    assert apart(alone.log_probs[0], walked.log_probs[0]) == 0
    assert len(walked.log_probs) == STEPS + 1
    _, fewer = side.answer(RGB, PROMPT, reference, STEPS, steps=2)
    assert apart(fewer.log_probs, walked.log_probs[:2]) < SAME


def test_its_own_inputs_in_place_of_its_own_change_nothing(side: Mtmd) -> None:
    own, trace = side.answer(RGB, PROMPT, (), STEPS)
    assert trace.pixels
    slots = np.array(trace.ids) == -1
    for given in (
        Given(texts=texts_of(side)),
        Given(tiles=trace.pixels.tiles),
        Given(embeddings=trace.inputs[slots]),
    ):
        answer, found = side.answer(RGB, PROMPT, (), STEPS, given)
        assert answer.ids == own.ids
        assert found.layout == trace.layout
        assert np.array_equal(found.inputs, trace.inputs, equal_nan=True)
        assert np.array_equal(found.log_probs, trace.log_probs)


def test_what_is_given_changes_what_follows_it_alone(side: Mtmd) -> None:
    _, own = side.answer(RGB, PROMPT, (), 1)
    assert own.pixels
    slots = np.array(own.ids) == -1
    _, other = side.answer(RGB, PROMPT, (), 1, Given(tiles=[-tile for tile in own.pixels.tiles]))
    assert other.layout == own.layout
    assert apart(other.inputs[slots], own.inputs[slots]) > 0.1
    assert apart(other.log_probs, own.log_probs) > 0.1
    _, other = side.answer(RGB, PROMPT, (), 1, Given(embeddings=-own.inputs[slots]))
    assert np.array_equal(other.inputs[slots], -own.inputs[slots])
    assert other.pixels is None  # nothing was encoded
    assert apart(other.log_probs, own.log_probs) > 0.1
    before, behind = texts_of(side)
    _, other = side.answer(RGB, PROMPT, (), 1, Given(texts=[before[:-1], behind]))
    assert other.ids == own.ids[: len(before) - 1] + own.ids[len(before) :]
    assert np.array_equal(other.inputs[np.array(other.ids) == -1], own.inputs[slots])
    assert apart(other.log_probs, own.log_probs) > 1e-3


def test_texts_that_do_not_go_around_the_pictures_are_a_mistake(side: Mtmd) -> None:
    with pytest.raises(ValueError, match="3 texts do not go around 1 pictures"):
        side.answer(RGB, PROMPT, (), 1, Given(texts=[[1], [2], [3]]))


def test_looking_at_layers_changes_no_logit(side: Mtmd) -> None:
    _, before = side.answer(RGB, PROMPT, FORCED, 1)
    for half in ("vision", "language"):
        seen: set[int] = set()
        with side.layers(half, lambda number, _, seen=seen: seen.add(number)):  # type: ignore[arg-type, misc]
            _, during = side.answer(RGB, PROMPT, FORCED, 1)
        _, after = side.answer(RGB, PROMPT, FORCED, 1)
        assert apart(during.log_probs, before.log_probs) < SAME
        assert np.array_equal(after.log_probs, before.log_probs)
        assert seen == set(range(len(seen)))
        assert len(seen) >= 3


def test_the_context_is_as_large_as_it_must_be(pair: Tiny) -> None:
    with Mtmd(pair.text, pair.mmproj, EXACT) as side:
        n = side.count((112, 84), PROMPT)
        assert side.open_context(n + 1) >= n + 1
        assert side.answer(RGB, PROMPT, (), 1)[0].ids
        with pytest.raises(UserError, match=r"are 1000000 tokens, and .*\.gguf was trained with \d+: give smaller"):
            side.open_context(1_000_000)
    small = EXACT.model_copy(update={"ctx": 16})
    with Mtmd(pair.text, pair.mmproj, small) as side, pytest.raises(UserError, match=r"has 16: give --ctx-size 17"):
        side.open_context(17)


def test_a_prompt_without_its_marker_is_told(side: Mtmd) -> None:
    with pytest.raises(UserError, match="must have the picture's marker just once"):
        side.answer(RGB, "no picture", (), 1)


def test_limits_hold_while_they_are_asked_for(once: Once) -> None:
    with open_candidate(tiny_pair(once, "qwen2.5-vl")) as side:
        own = side.count((280, 280), PROMPT)
        with side.limited(1, 16):
            assert side.count((280, 280), PROMPT) == own - 100 + 16
        assert side.count((280, 280), PROMPT) == own


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lfm2-vl", "minicpm-v", "qwen3-vl", "glm-4v", "pixtral"])
def test_other_families_walk_and_answer_alike(once: Once, name: str) -> None:
    """LFM2-VL's and MiniCPM-V's state cannot be taken back where an answer parts from the reference."""
    with open_candidate(tiny_pair(once, name)) as side:
        free, alone = side.answer(RGB, PROMPT, (), STEPS)
        for common in (0, 2, STEPS):
            reference = [*free.ids[:common], *FORCED[: STEPS - common]]
            again, walked = side.answer(RGB, PROMPT, reference, STEPS)
            assert again.ids == free.ids
            assert apart(alone.log_probs[0], walked.log_probs[0]) == 0
        assert side.count((112, 84), PROMPT) == len(alone.ids)


@pytest.mark.parametrize("flash", [True, False])
def test_the_contracts_path_gives_the_same(tiny: Path, exact_pair: Pair, flash: bool) -> None:
    """SmolVLM under a contract has a path of its own, several images together; the general one agrees with it."""
    contract = Contract(
        labels=("fire", "light rain"), max_new_tokens=STEPS, runtime=runtime("f32", flash_attn=flash, n_threads=1)
    )
    pictures = canvases(6)
    with LlamaCppPredictor(exact_pair.text, exact_pair.mmproj, encoder_for(tiny, contract), tapped=True) as own:
        wanted = list(own.observe(pictures))
    settings = EXACT.model_copy(update={"flash_attn": "on" if flash else "off"})
    with open_candidate(Tiny(tiny, exact_pair.text, exact_pair.mmproj), settings) as side:
        found = [side.answer(canvas, contract.prompt, (), STEPS) for canvas in pictures]
    for (prediction, taps), (answer, trace) in zip(wanted, found, strict=True):
        assert trace.ids == taps.prompt_ids
        assert (answer.ids, answer.text, answer.stop_reason) == (
            prediction.generated_ids,
            prediction.text,
            prediction.stop_reason,
        )
        assert trace.pixels
        assert np.array_equal(np.stack(list(trace.pixels.tiles)), np.stack(list(taps.tiles)))
        assert (trace.pixels.mean, trace.pixels.std) == (tuple(taps.mean), tuple(taps.std))
        embeddings = trace.inputs[np.array(trace.ids) == -1]
        own_embeddings = taps.embeddings.reshape(embeddings.shape)
        # The contract says nothing of the vision half's attention, which libmtmd computes as flash attention there.
        assert np.array_equal(embeddings, own_embeddings) == flash
        assert np.linalg.norm(embeddings - own_embeddings) < VISION_SAME * np.linalg.norm(embeddings)
        assert apart(trace.log_probs[0], taps.log_probs.astype(np.float32)) <= (0 if flash else VISION_LOGITS)
