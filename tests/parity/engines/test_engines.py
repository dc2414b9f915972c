"""Both sides answer alike, under every profile; what they are given and what they refuse."""

import ctypes
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
import torch
from llama_cpp import mtmd_cpp
from models import Pair, canvases, encoder_for, llama, rewrite, runtime
from PIL import Image

from parity.engines.hf import hf_predictor
from parity.engines.llamacpp import LlamaCppPredictor
from pipeline.contract import Contract, ImageContract, KvType, Runtime, Tiling
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes
from pipeline.models.prediction import Prediction, log_softmax
from pipeline.models.smolvlm.embedded import smollm2_gguf
from pipeline.models.smolvlm.folder import load_model, load_tokenizer
from pipeline.models.smolvlm.inference import HfPredictor, embed, encode

# Largest difference from the HF side's label log-probabilities (-11 to -54), over 24 pictures and the 4 labels below.
# (files, KV cache, flash attention): (allowed, measured). Flash attention takes keys and values as half floats.
TOLERANCE = {
    ("F32", "f32", False): (0.006, 0.0019),
    ("F32", "f16", False): (0.008, 0.0024),
    ("F32", "f16", True): (0.05, 0.016),
    ("F32", "q8_0", True): (0.15, 0.046),
    ("Q8_0", "f16", True): (0.6, 0.19),
    ("Q8_0", "q4_0", True): (2.5, 0.79),
}
QUICK = (("F32", "f32", False), ("Q8_0", "q4_0", True))
LABELS = ("fire", "light rain", "a hailstorm", "zigzag pattern")  # 1, 2, 3 and 4 tokens
EXACT = Runtime(type_k="f32", type_v="f32", flash_attn=False, n_threads=1)
CONTRACT = Contract(labels=LABELS, max_new_tokens=6, runtime=EXACT)
CANVASES = canvases(24)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads that wait for each other by spinning take minutes where a third process wants a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    return load_model(tiny)


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(tiny)


@pytest.fixture(scope="module")
def reference(tiny: Path) -> list[Prediction]:
    return list(hf_predictor(tiny, encoder_for(tiny, CONTRACT)).predict(CANVASES))


@pytest.fixture(scope="module")
def candidate(tiny: Path, exact_pair: Pair) -> list[Prediction]:
    return answers(tiny, exact_pair, CONTRACT)


def answers(model: Path, pair: Pair, contract: Contract, n: int = len(CANVASES)) -> list[Prediction]:
    with llama(model, pair, contract) as side:
        return list(side.predict(CANVASES[:n]))


def difference(ours: list[Prediction], theirs: list[Prediction]) -> float:
    pairs = [(a.label_logprobs, b.label_logprobs) for a, b in zip(ours, theirs, strict=True)]
    return max(abs(a[label] - b[label]) for a, b in pairs for label in a)


@torch.inference_mode()
def forced(model: Any, encoder: Any, canvas: Any, answer: tuple[int, ...]) -> torch.Tensor:
    """The model's own forward pass over prompt + answer: [len(answer), vocabulary] logits of the answer."""
    ids = torch.tensor([[*encoder.prompt_ids, *answer]])
    pixels = torch.from_numpy(encoder.pixel_values(canvas))[None]
    logits: torch.Tensor = model(input_ids=ids, pixel_values=pixels).logits[0, -len(answer) - 1 : -1]
    return logits


@pytest.mark.parametrize(
    ("files", "kv", "flash"),
    # The exact one, and what is shipped; what lies between takes longer.
    [pytest.param(*key, marks=() if key in QUICK else pytest.mark.slow) for key in TOLERANCE],
)
def test_label_probabilities_agree(
    tiny: Path, reference: list[Prediction], request: pytest.FixtureRequest, files: str, kv: KvType, flash: bool
) -> None:
    pair = request.getfixturevalue("exact_pair" if files == "F32" else "phone_pair")
    contract = CONTRACT.model_copy(update={"runtime": runtime(kv, flash_attn=flash, n_threads=1)})
    found = difference(reference, answers(tiny, pair, contract))
    assert found < TOLERANCE[files, kv, flash][0]


def test_the_sides_write_the_same_tokens(
    model: Any, tiny: Path, reference: list[Prediction], candidate: list[Prediction]
) -> None:
    encoder, clear = encoder_for(tiny, CONTRACT), 0
    for canvas, ours, theirs in zip(CANVASES, reference, candidate, strict=True):
        top = forced(model, encoder, canvas, ours.generated_ids).topk(2).values
        # Logits differ by up to 0.001 between the sides: what is nearer than that is anybody's choice.
        if (top[:, 0] - top[:, 1]).min() > 0.01:
            clear += 1
            assert (ours.generated_ids, ours.text, ours.stop_reason) == (
                theirs.generated_ids,
                theirs.text,
                theirs.stop_reason,
            )
    assert clear > 15
    assert len({prediction.generated_ids for prediction in reference}) > 15


def test_the_first_logits_agree(reference: list[Prediction], candidate: list[Prediction]) -> None:
    for ours, theirs in zip(reference, candidate, strict=True):
        a, b = dict(ours.top_logits), dict(theirs.top_logits)
        assert len(a) == len(b) == 8
        assert list(a.values()) == sorted(a.values(), reverse=True)
        assert max(abs(a[token] - b[token]) for token in a.keys() & b.keys()) < 0.005  # measured 0.001
        assert len(a.keys() & b.keys()) >= 7  # the eighth and the ninth may be neighbours


def test_greedy_is_what_the_models_own_forward_pass_says(model: Any, tiny: Path, reference: list[Prediction]) -> None:
    encoder = encoder_for(tiny, CONTRACT)
    for canvas, prediction in zip(CANVASES[:6], reference, strict=False):
        logits = forced(model, encoder, canvas, prediction.generated_ids)
        assert tuple(logits.argmax(-1).tolist()) == prediction.generated_ids


def test_label_probabilities_are_the_models_own(
    model: Any, tiny: Path, reference: list[Prediction], candidate: list[Prediction]
) -> None:
    encoder = encoder_for(tiny, CONTRACT)
    assert sorted(map(len, encoder.answer_ids.values())) == [1, 2, 3, 4]
    for canvas, ours, theirs in list(zip(CANVASES, reference, candidate, strict=True))[:6]:
        for label, ids in encoder.answer_ids.items():
            steps = forced(model, encoder, canvas, ids).double().log_softmax(-1)
            expected = sum(float(steps[index, token]) for index, token in enumerate(ids))
            assert ours.label_logprobs[label] == pytest.approx(expected, abs=1e-4)  # measured 4e-6
            assert theirs.label_logprobs[label] == pytest.approx(expected, abs=0.006)  # measured 0.0015


@pytest.mark.parametrize("grid", [1, 2])
def test_encoding_a_picture_once_changes_nothing(model: Any, tiny: Path, grid: int) -> None:
    encoder = encoder_for(tiny, Contract(tiling=Tiling(grid=grid)))
    ids = torch.tensor([encoder.prompt_ids] * 2)
    pixels = torch.from_numpy(np.stack([encoder.pixel_values(canvas) for canvas in CANVASES[:2]]))
    with torch.inference_mode():
        own = model(input_ids=ids, pixel_values=pixels).logits
        ours = model(inputs_embeds=embed(model, ids, encode(model, pixels, encoder), encoder)).logits
    assert (own - ours).abs().max() < 1e-5  # measured 0; logits have a deviation of 1.7


@pytest.mark.parametrize("size", [1, 5, 24])
def test_the_batch_size_changes_no_answer(
    model: Any, tokenizer: Any, tiny: Path, reference: list[Prediction], size: int
) -> None:
    predictor = HfPredictor(model, tokenizer, encoder_for(tiny, CONTRACT), batch_size=size)
    found = list(predictor.predict(CANVASES))
    assert [one.generated_ids for one in found] == [one.generated_ids for one in reference]
    assert difference(found, reference) < 1e-4  # measured 4e-6


def test_predictions_come_as_they_are_ready(model: Any, tokenizer: Any, tiny: Path, exact_pair: Pair) -> None:
    taken = []

    def source() -> Iterator[Any]:
        for number, canvas in enumerate(CANVASES):
            taken.append(number)
            yield canvas

    next(HfPredictor(model, tokenizer, encoder_for(tiny, CONTRACT), batch_size=2).predict(source()))
    assert taken == [0, 1]
    taken.clear()
    with llama(tiny, exact_pair, CONTRACT) as side:
        next(side.predict(source()))
    assert taken == [0]


def test_an_answer_without_end_stops_at_the_limit(reference: list[Prediction], candidate: list[Prediction]) -> None:
    for prediction in (*reference, *candidate):
        assert (prediction.stop_reason, len(prediction.generated_ids)) == ("length", 6)


def test_an_answer_ends_at_the_end_token(
    model: Any, tokenizer: Any, tiny: Path, exact_pair: Pair, reference: list[Prediction], tmp_path: Path
) -> None:
    number, ids = next(
        (i, p.generated_ids) for i, p in enumerate(reference) if p.generated_ids[0] != p.generated_ids[1]
    )
    end = ids[1]  # this model knows no end token: take the second word that it writes for one
    encoder = replace(encoder_for(tiny, CONTRACT), stop_ids=frozenset({end}))
    text = rewrite(exact_pair.text, tmp_path / "end.gguf", {"tokenizer.ggml.eos_token_id": end})
    with LlamaCppPredictor(text, exact_pair.mmproj, encoder) as side:
        for predictor in (side, HfPredictor(model, tokenizer, encoder)):
            one = next(predictor.predict([CANVASES[number]]))
            assert (one.generated_ids, one.text, one.stop_reason) == (ids[:1], tokenizer.decode(ids[:1]), "end")


def test_times_are_those_of_the_parts(reference: list[Prediction], candidate: list[Prediction]) -> None:
    for prediction in (*reference, *candidate):
        assert set(prediction.ms) == {"encode", "prefill", "generate"}
        assert all(milliseconds > 0 for milliseconds in prediction.ms.values())


def test_the_cache_type_is_honoured(tiny: Path, exact_pair: Pair, reference: list[Prediction]) -> None:
    found = {}
    for kv in ("f16", "q8_0", "q4_0"):
        contract = CONTRACT.model_copy(update={"runtime": runtime(kv, n_threads=1)})
        found[kv] = difference(reference[:6], answers(tiny, exact_pair, contract, 6))
    assert found["f16"] < found["q8_0"] < found["q4_0"]  # measured 0.008, 0.027, 0.44


def test_the_rest_of_the_profile_is_honoured(tiny: Path, exact_pair: Pair) -> None:
    contract = Contract(runtime=Runtime(n_ctx=512, n_batch=64))
    with LlamaCppPredictor(exact_pair.text, exact_pair.mmproj, encoder_for(tiny, contract), threads=6) as side:
        assert side.n_threads == llama_cpp.llama_n_threads(side._context) == contract.runtime.threads(cores=12) == 6
        assert llama_cpp.llama_n_ctx(side._context) == 512 * side.batch_size
        assert llama_cpp.llama_n_batch(side._context) == llama_cpp.llama_n_ubatch(side._context) == 64
    with llama(tiny, exact_pair, Contract(runtime=Runtime(n_threads=3))) as side:
        assert side.n_threads == llama_cpp.llama_n_threads_batch(side._context) == 3


@pytest.mark.parametrize("n_batch", [1, 2, 7])
def test_a_small_batch_changes_no_answer(
    tiny: Path, exact_pair: Pair, candidate: list[Prediction], n_batch: int
) -> None:
    contract = CONTRACT.model_copy(update={"runtime": EXACT.model_copy(update={"n_batch": n_batch})})
    found = answers(tiny, exact_pair, contract, 4)
    assert difference(candidate[:4], found) < 1e-4  # measured 2e-6
    assert [one.generated_ids for one in found] == [one.generated_ids for one in candidate[:4]]


def test_one_picture_leaves_nothing_behind_for_the_next(
    tiny: Path, exact_pair: Pair, candidate: list[Prediction]
) -> None:
    with llama(tiny, exact_pair, CONTRACT) as side:
        again = list(side.predict([CANVASES[3], CANVASES[0], CANVASES[3]]))
    for one, number in zip(again, (3, 0, 3), strict=True):
        assert (one.top_logits, one.label_logprobs) == (
            candidate[number].top_logits,
            candidate[number].label_logprobs,
        )


def test_a_swapped_channel_order_feeds_other_bytes(
    model: Any, tokenizer: Any, tiny: Path, exact_pair: Pair, reference: list[Prediction], candidate: list[Prediction]
) -> None:
    swapped = CONTRACT.model_copy(update={"image": ImageContract(channel_order="bgr")})
    hf = next(HfPredictor(model, tokenizer, encoder_for(tiny, swapped)).predict(CANVASES[:1]))
    phone = answers(tiny, exact_pair, swapped, 1)[0]
    straight, bgr = (sha256_bytes(canvas.tobytes()) for canvas in (CANVASES[0], CANVASES[0][..., ::-1]))
    assert reference[0].rgb_sha256 == candidate[0].rgb_sha256 == straight
    assert hf.rgb_sha256 == phone.rgb_sha256 == bgr
    assert difference([hf], [phone]) < TOLERANCE["F32", "f32", False][0]
    assert difference([hf], reference[:1]) > 0.1  # measured 1.7: the model sees another picture


def refused(tiny: Path, pair: Pair, contract: Contract = CONTRACT) -> str:
    with pytest.raises(UserError) as error:
        LlamaCppPredictor(pair.text, pair.mmproj, encoder_for(tiny, contract))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_file_is_named(tiny: Path, exact_pair: Pair, tmp_path: Path) -> None:
    gone = tmp_path / "gone.gguf"
    for pair in (Pair(gone, exact_pair.mmproj), Pair(exact_pair.text, gone)):
        assert f"llama.cpp cannot load {gone}" in refused(tiny, pair)


@pytest.mark.parametrize("share", [0, 1000, 0.5, 0.99])
@pytest.mark.parametrize("half", ["text", "mmproj"])
def test_a_truncated_file_is_named(tiny: Path, exact_pair: Pair, tmp_path: Path, half: str, share: float) -> None:
    whole: Path = getattr(exact_pair, half)
    cut = tmp_path / "cut.gguf"
    shutil.copy(whole, cut)
    with open(cut, "rb+") as file:
        file.truncate(int(share if share >= 1 else whole.stat().st_size * share))
    pair = Pair(cut, exact_pair.mmproj) if half == "text" else Pair(exact_pair.text, cut)
    assert f"llama.cpp cannot load {cut}" in refused(tiny, pair)


def test_the_vision_half_of_another_model_is_named(tiny: Path, exact_pair: Pair) -> None:
    message = refused(tiny, Pair(smollm2_gguf(), exact_pair.mmproj))
    assert f"cannot load {exact_pair.mmproj} for {smollm2_gguf().name}" in message


def test_halves_that_were_mixed_up_are_named(tiny: Path, exact_pair: Pair) -> None:
    message = refused(tiny, Pair(exact_pair.mmproj, exact_pair.text))
    assert f"llama.cpp cannot load {exact_pair.mmproj}" in message
    assert f"llama.cpp cannot load {exact_pair.text}" in refused(tiny, Pair(exact_pair.text, exact_pair.text))


def test_a_profile_that_llama_cpp_refuses_is_told(tiny: Path, exact_pair: Pair) -> None:
    odd = CONTRACT.model_copy(update={"runtime": Runtime.model_construct(**dict(EXACT, type_v="q4_0"))})
    assert "refuses the contract's runtime profile" in refused(tiny, exact_pair, odd)


# ---- what the ladder reads and puts in place ------------------------------------------------------------------------


def as_the_app(side: LlamaCppPredictor, contract: Contract, canvas: Any) -> Any:
    """The next token's logits after mtmd_helper_eval_chunks, the call that the app makes."""
    past = ctypes.c_int32(0)
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(side._context), True)
    with side.tokenize(canvas) as chunks:
        code = mtmd_cpp.mtmd_helper_eval_chunks(
            side._mtmd, side._context, chunks._chunks, 0, 0, contract.runtime.n_batch, True, ctypes.byref(past)
        )
    assert code == 0
    assert past.value == len(side.prompt_ids)
    logits = llama_cpp.llama_get_logits_ith(side._context, -1)
    return np.ctypeslib.as_array(logits, shape=(side.decoder.n_vocab,)).copy()


@pytest.mark.parametrize("grid", [1, 2])
@pytest.mark.parametrize("kv", ["q4_0", "f16"])
def test_it_computes_what_the_apps_own_call_computes_to_the_last_bit(
    tiny: Path, phone_pair: Pair, tmp_path: Path, kv: KvType, grid: int
) -> None:
    contract = Contract(labels=LABELS, max_new_tokens=6, runtime=runtime(kv), tiling=Tiling(grid=grid))
    mmproj = rewrite(phone_pair.mmproj, tmp_path / "m.gguf", {"clip.vision.preproc_image_size": 256 * grid})
    pair, encoder = Pair(phone_pair.text, mmproj), encoder_for(tiny, contract)
    with (
        LlamaCppPredictor(pair.text, pair.mmproj, encoder, tapped=True) as together,
        LlamaCppPredictor(pair.text, pair.mmproj, encoder, sequences=1) as alone,
    ):
        assert (together.batch_size, alone.batch_size) == (8, 1)
        seen = [taps for _, taps in together.observe(CANVASES[:11])]
        for canvas, taps in zip(CANVASES, seen, strict=False):
            assert np.array_equal(log_softmax(as_the_app(alone, contract, canvas)), taps.log_probs)


def test_floats_are_decoded_one_by_one(tiny: Path, exact_pair: Pair) -> None:
    """Their last bits depend on the neighbours."""
    with llama(tiny, exact_pair, CONTRACT) as side:
        assert side.batch_size == 1


@pytest.mark.parametrize("grid", [1, 2])
def test_the_encoders_input_is_seen_as_it_is(
    model: Any, tokenizer: Any, tiny: Path, exact_pair: Pair, tmp_path: Path, grid: int
) -> None:
    contract = CONTRACT.model_copy(update={"tiling": Tiling(grid=grid)})
    mmproj = rewrite(exact_pair.mmproj, tmp_path / "m.gguf", {"clip.vision.preproc_image_size": 256 * grid})
    encoder = encoder_for(tiny, contract)
    with LlamaCppPredictor(exact_pair.text, mmproj, encoder, tapped=True) as side:
        ours = [taps for _, taps in HfPredictor(model, tokenizer, encoder).observe(CANVASES[:3])]
        theirs = [taps for _, taps in side.observe(CANVASES[:3])]
    for a, b in zip(ours, theirs, strict=True):
        assert len(a.tiles) == len(b.tiles) == grid**2 + 1
        assert all(np.array_equal(x, y) for x, y in zip(a.tiles, b.tiles, strict=True))
        assert list(a.prompt_ids) == list(b.prompt_ids)
        assert a.embeddings.shape == b.embeddings.shape
        error = np.linalg.norm(a.embeddings - b.embeddings) / np.linalg.norm(a.embeddings)
        assert error < 1e-3  # measured 3e-5; the reference's own in bfloat16 is 2e-3


def test_other_tiles_and_other_embeddings_can_be_put_in_place(tiny: Path, exact_pair: Pair) -> None:
    with LlamaCppPredictor(exact_pair.text, exact_pair.mmproj, encoder_for(tiny, CONTRACT), tapped=True) as side:
        own, other = (taps for _, taps in side.observe(CANVASES[:2]))
        tiles = [None, np.stack(list(own.tiles))]
        by_tiles = [taps for _, taps in side.observe([CANVASES[0], CANVASES[1]], tiles=tiles)]
        assert np.array_equal(by_tiles[1].embeddings, own.embeddings)
        assert np.array_equal(by_tiles[1].log_probs, own.log_probs)
        assert np.array_equal(by_tiles[1].tiles[0], other.tiles[0]), "what libmtmd made is what is shown"
        by_embeddings = [taps for _, taps in side.observe(CANVASES[:2], embeddings=[other.embeddings, None])]
        assert np.array_equal(by_embeddings[0].log_probs, other.log_probs)
        assert np.array_equal(by_embeddings[1].log_probs, other.log_probs)
        assert not np.array_equal(own.log_probs, other.log_probs)
    with llama(tiny, exact_pair, CONTRACT) as side, pytest.raises(ValueError, match="tapped"):
        side.observe(CANVASES[:1])


def test_libmtmd_decodes_a_png_to_the_same_bytes(tiny: Path, exact_pair: Pair, tmp_path: Path) -> None:
    Image.fromarray(CANVASES[5]).save(tmp_path / "canvas.png")
    (tmp_path / "no.png").write_bytes(b"no picture")
    with llama(tiny, exact_pair, CONTRACT) as side:
        assert np.array_equal(side.decoded(tmp_path / "canvas.png"), CANVASES[5])
        with pytest.raises(UserError, match=r"cannot decode .*no\.png"):
            side.decoded(tmp_path / "no.png")


def test_an_answer_of_the_reference_does_not_depend_on_how_many_are_left(
    model: Any, tokenizer: Any, tiny: Path
) -> None:
    hf = HfPredictor(model, tokenizer, encoder_for(tiny, CONTRACT))
    whole = [taps for _, taps in hf.observe(CANVASES[:21])]
    for count in (1, 5, 16):
        some = [taps for _, taps in hf.observe(CANVASES[21 - count : 21])]
        assert all(np.array_equal(a.log_probs, b.log_probs) for a, b in zip(some, whole[-count:], strict=True))
