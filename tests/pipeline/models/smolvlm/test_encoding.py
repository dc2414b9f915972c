"""Encoding: token for token and byte for byte what libmtmd and Hugging Face make of the same picture and prompt."""

import ctypes
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from llama_cpp import mtmd_cpp
from models import Pair, canvases, encoder_for, llama, rewrite

from parity.engines.libmtmd import Chunks, chunk_tokens
from parity.engines.llamacpp import LlamaCppPredictor
from pipeline.contract import Contract, ImageContract, Runtime, Tiling
from pipeline.core.errors import UserError
from pipeline.models.smolvlm.encoding import IGNORE, Encoder, fed_bytes, make_encoder
from pipeline.models.smolvlm.folder import VisionGeometry, load_tokenizer, read_geometry

MARK = "<__media__>"
GRIDS = (1, 2, 4)
ODD = [
    "digits 0123456789 and 12,345.67 and ½ ² ٣ Ⅷ ① १२३ \U0001d7d8",
    "\n",
    "\n\n",
    "\n\n\n\nruns\n\n\n\n\n of\n newlines \n",
    " \n \n x",
    "\ttabs\t\tand \t mixed \t\n\t",
    "a\r\nb\r",
    "emoji 🙂🙃👩‍👩‍👧‍👦🏳️‍🌈 🈂️",
    "水土火木金 の 물고기 и рыба",
    "e\u0301 é ﬁ ß \u200b\ufeff\u00ad",
    "\u00a0nbsp \u2028line\u0085 \u3000wide \u1680",
    "don't I'LL we've it's",
    "trailing spaces   ",
    "   leading spaces",
    "<|im_start|>user",
    "<|im_end|>",
    "<|im_end|> <|im_end|>  x",
    "<|im_end",
    "x <row_1_col_2> y",
    "<row_7_col_1>",
    "<global-img>",
    "<end_of_utterance>",
    "</s>",
    "<|foo|>",
    "<fake_token_around_image>",
    "<|reserved_special_token_3|>",
    "<reponame> <file_sep><filename>",
    "<unk> [PAD] <0x0A> \x00",
]
PIECES = [
    *("a", "Z", "of", "the", " ", "  ", "\n", "\t", "\r", "7", "42", ".", ",", "!", "'s", '"', "-", "<", ">", "|", "_"),
    *(
        "é",
        "ß",
        "Ω",
        "\u0301",
        "\u00a0",
        "½",
        "\u0661",
        "水",
        "🙂",
        "<|im_end|>",
        "<row_1_col_1>",
        "</s>",
        "<global-img>",
    ),
]


@pytest.fixture(scope="module")
def mmprojs(exact_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The vision half for each grid: the converter writes the same file for each, but for this key."""
    folder, key = tmp_path_factory.mktemp("grids"), "clip.vision.preproc_image_size"
    return {grid: rewrite(exact_pair.mmproj, folder / f"{grid}.gguf", {key: 256 * grid}) for grid in GRIDS}


@pytest.fixture(scope="module")
def sides(tiny: Path, exact_pair: Pair, mmprojs: dict[int, Path]) -> Iterator[dict[int, LlamaCppPredictor]]:
    """llama.cpp's side for each grid."""
    opened = {
        grid: LlamaCppPredictor(exact_pair.text, mmproj, encoder_for(tiny, Contract(tiling=Tiling(grid=grid))))
        for grid, mmproj in mmprojs.items()
    }
    yield opened
    for predictor in opened.values():
        predictor.close()


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(tiny)


@pytest.fixture(scope="module")
def geometry(tiny: Path) -> VisionGeometry:
    return read_geometry(tiny)


def layout(encoder: Encoder) -> tuple[list[int], list[tuple[int, int]]]:
    """The encoder's prompt, pictures as -1, and its slots."""
    picture = encoder.geometry.image_token_id
    return [-1 if token == picture else token for token in encoder.prompt_ids], encoder.image_slots


def libmtmd_layout(side: LlamaCppPredictor, contract: Contract) -> tuple[list[int], list[tuple[int, int]]]:
    """libmtmd's chunks of another contract's prompt, in the same form."""
    ids: list[int] = []
    slots: list[tuple[int, int]] = []
    size = contract.image.size
    with Chunks(side._mtmd, np.zeros((size, size, 3), np.uint8), contract.prompt, contract.add_bos) as chunks:
        for chunk in chunks:
            tokens = chunk_tokens(chunk)
            if tokens is None:
                slots.append((len(ids), mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk)))
                tokens = [-1] * slots[-1][1]
            ids += tokens
    return ids, slots


def asking(prompt: str, grid: int) -> Contract:
    return Contract(prompt_template=prompt, tiling=Tiling(grid=grid), runtime=Runtime(n_ctx=8192))


@pytest.mark.parametrize("grid", GRIDS)
def test_the_default_prompt_is_laid_out_as_libmtmd_does(
    sides: dict[int, LlamaCppPredictor], tiny: Path, grid: int
) -> None:
    encoder = encoder_for(tiny, Contract(tiling=Tiling(grid=grid)))
    assert layout(encoder) == (sides[grid].prompt_ids, sides[grid].image_slots)
    assert [length for _, length in encoder.image_slots] == [16] * (grid**2 + 1)


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_odd_prompts_are_laid_out_as_libmtmd_does(
    sides: dict[int, LlamaCppPredictor], tokenizer: Any, geometry: VisionGeometry, text: str
) -> None:
    for grid in GRIDS:
        for prompt in (MARK + text, text + MARK, text + MARK + text):
            contract = asking(prompt, grid)
            assert layout(make_encoder(contract, tokenizer, geometry)) == libmtmd_layout(sides[grid], contract)


@pytest.mark.parametrize("seed", range(4))
def test_random_prompts_are_laid_out_as_libmtmd_does(
    sides: dict[int, LlamaCppPredictor], tokenizer: Any, geometry: VisionGeometry, seed: int
) -> None:
    draw = random.Random(seed)
    for number in range(40):
        if number % 2:
            parts = ["".join(draw.choices(PIECES, k=draw.randrange(40))) for _ in range(2)]
        else:  # any character but surrogates, the common blocks more often than the rest
            blocks = [range(1, 0x250), range(0x2000, 0x3100), range(1, 0xD800), range(0xE000, 0x20000)]
            parts = [
                "".join(chr(draw.choice(draw.choice(blocks))) for _ in range(draw.randrange(30))) for _ in range(2)
            ]
        contract = asking(MARK.join(parts), GRIDS[number % 3])
        side = sides[GRIDS[number % 3]]
        assert layout(make_encoder(contract, tokenizer, geometry)) == libmtmd_layout(side, contract), parts


def test_the_marker_is_the_users_choice(sides: dict[int, LlamaCppPredictor], tiny: Path, exact_pair: Pair) -> None:
    contract = Contract(prompt_template="Here <pic> is <__media__>?", media_marker="<pic>")
    with llama(tiny, exact_pair, contract) as side:
        assert layout(encoder_for(tiny, contract)) == (side.prompt_ids, side.image_slots)
        assert len(side.image_slots) == 2


def test_a_beginning_token_is_there_where_the_contract_asks_for_it(
    tiny: Path, exact_pair: Pair, tmp_path: Path
) -> None:
    added = rewrite(exact_pair.text, tmp_path / "bos.gguf", {"tokenizer.ggml.add_bos_token": True})
    for text, contract in ((added, Contract(add_bos=True)), (exact_pair.text, Contract())):
        encoder = encoder_for(tiny, contract)
        with LlamaCppPredictor(text, exact_pair.mmproj, encoder) as side:
            assert layout(encoder) == (side.prompt_ids, side.image_slots)
            assert (side.prompt_ids[0] == 1) is contract.add_bos


@pytest.mark.parametrize("grid", [2, 4])
def test_ids_and_pixels_equal_hugging_faces_processor(tokenizer: Any, geometry: VisionGeometry, grid: int) -> None:
    contract = Contract(tiling=Tiling(grid=grid))
    encoder = make_encoder(contract, tokenizer, geometry)
    for canvas in canvases(3):
        expected = hugging_face(tokenizer, contract, canvas, 256 * grid)
        assert list(encoder.prompt_ids) == expected["input_ids"][0].tolist()
        pixels = expected["pixel_values"][0]
        assert pixels.dtype == encoder.pixel_values(canvas).dtype
        np.testing.assert_array_equal(encoder.pixel_values(canvas), pixels)


def test_the_overview_alone_is_what_hugging_face_makes_of_a_picture_of_one_tile(
    tokenizer: Any, geometry: VisionGeometry
) -> None:
    contract = Contract(tiling=Tiling(plan="overview"))
    encoder = make_encoder(contract, tokenizer, geometry)
    canvas = canvases(2)[1]
    expected = hugging_face(tokenizer, contract, canvas, 256)
    assert list(encoder.prompt_ids) == expected["input_ids"][0].tolist()
    np.testing.assert_array_equal(encoder.pixel_values(canvas), expected["pixel_values"][0])
    fake, overview, picture = tokenizer.convert_tokens_to_ids(["<fake_token_around_image>", "<global-img>", "<image>"])
    assert list(encoder.prompt_ids[:19]) == [fake, overview, *[picture] * 16, fake]
    assert encoder.image_slots == [(2, 16)]


def hugging_face(tokenizer: Any, contract: Contract, canvas: Any, edge: int) -> Any:
    from PIL import Image
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    images = Idefics3ImageProcessorPil(
        size={"longest_edge": edge},
        max_image_size={"longest_edge": 256},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor = Idefics3Processor(images, tokenizer, image_seq_len=16)
    text = contract.prompt.replace(MARK, "<image>")
    return processor(text=text, images=[Image.fromarray(canvas)], return_tensors="np")


@pytest.mark.parametrize("size", [256, 200, 384])
@pytest.mark.parametrize("grid", GRIDS)
def test_tiles_equal_what_libmtmd_hands_to_its_vision_encoder(
    sides: dict[int, LlamaCppPredictor],
    mmprojs: dict[int, Path],
    tokenizer: Any,
    geometry: VisionGeometry,
    grid: int,
    size: int,
) -> None:
    contract = Contract(tiling=Tiling(grid=grid), image=ImageContract(size=size))
    encoder = make_encoder(contract, tokenizer, geometry)
    canvas = np.random.default_rng(grid).integers(0, 256, (size, size, 3), dtype=np.uint8)
    seen = libmtmd_pixels(sides[grid], mmprojs[grid], contract, canvas)
    # The convolution that cuts the patches takes half floats (ggml_conv_2d), so that is what can be seen.
    np.testing.assert_array_equal(seen, encoder.pixel_values(canvas).astype(np.float16))
    np.testing.assert_array_equal(
        np.rint((seen.astype(np.float64) + 1) * 127.5), encoder.tiles_u8(canvas).transpose(0, 3, 1, 2)
    )


def libmtmd_pixels(side: LlamaCppPredictor, mmproj: Path, contract: Contract, canvas: Any) -> Any:
    """The pixels that libmtmd's vision encoder is given for a canvas, float16 [n, 3, 256, 256].

    Nothing in its interface gives them away, so the evaluation callback reads the first operation's result, which is
    the tile cut into patches.
    """
    ggml = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    results = {"ggml_op_desc": ctypes.c_char_p, "ggml_get_data": ctypes.c_void_p, "ggml_nelements": ctypes.c_int64}
    for name, result in results.items():
        getattr(ggml, name).restype = result
        getattr(ggml, name).argtypes = [ctypes.c_void_p]
    patches = []

    @llama_cpp.ggml_backend_sched_eval_callback
    def look(tensor: int, asked_whether_to_look: bool, _: object) -> bool:
        cutting = ggml.ggml_op_desc(tensor) == b"IM2COL"
        if cutting and not asked_whether_to_look:
            data = ctypes.cast(ggml.ggml_get_data(tensor), ctypes.POINTER(ctypes.c_uint16))
            halves = np.ctypeslib.as_array(data, shape=(ggml.ggml_nelements(tensor),)).copy().view(np.float16)
            patches.append(halves.reshape(16, 16, 3, 16, 16).transpose(2, 0, 3, 1, 4).reshape(3, 256, 256))
        return cutting or not asked_whether_to_look

    settings = mtmd_cpp.mtmd_context_params_default()
    settings.use_gpu = settings.warmup = settings.print_timings = False
    settings.cb_eval = look
    context = mtmd_cpp.mtmd_init_from_file(str(mmproj).encode(), side._model, settings)
    with Chunks(context, canvas, contract.prompt, contract.add_bos) as chunks:
        for chunk in chunks:
            if chunk_tokens(chunk) is None:
                assert mtmd_cpp.mtmd_encode_chunk(context, chunk) == 0
    mtmd_cpp.mtmd_free(context)
    return np.stack(patches)


def test_answers_end_where_llama_cpp_ends_them(sides: dict[int, LlamaCppPredictor], tiny: Path) -> None:
    vocabulary = sides[1].decoder.vocab
    count = llama_cpp.llama_vocab_n_tokens(vocabulary)
    ending = {token for token in range(count) if llama_cpp.llama_vocab_is_eog(vocabulary, token)}
    encoder = encoder_for(tiny, Contract())
    assert count == 49280
    assert encoder.stop_ids == ending == {0, 2, 4, 49279}  # <|endoftext|> <|im_end|> <reponame> <end_of_utterance>
    assert encoder.end_id == llama_cpp.llama_vocab_eos(vocabulary)


def test_the_loss_is_on_the_label_and_the_end_token_alone(tiny: Path) -> None:
    encoder = encoder_for(tiny, Contract())
    ids, labels = encoder.training_ids("fire")
    assert ids == [*encoder.prompt_ids, 2892, 49279]
    assert labels == [IGNORE] * len(encoder.prompt_ids) + [2892, 49279]
    assert IGNORE == -100


def test_labels_of_several_tokens(tokenizer: Any, geometry: VisionGeometry) -> None:
    labels = ("light rain", "no precipitation whatsoever", "日本", "42")
    encoder = make_encoder(Contract(labels=labels), tokenizer, geometry)
    for label in labels:
        answer = encoder.answer_ids[label]
        assert len(answer) > 1
        assert tokenizer.decode(answer) == " " + label
        ids, targets = encoder.training_ids(label)
        assert [token for token in targets if token != IGNORE] == [*answer, encoder.end_id] == ids[-len(answer) - 1 :]


def test_forty_labels_and_two(tokenizer: Any, geometry: VisionGeometry) -> None:
    forty = tuple(f"kind {number:02d}" for number in range(40))
    encoder = make_encoder(Contract(labels=forty), tokenizer, geometry)
    assert len(set(encoder.answer_ids.values())) == 40
    assert set(make_encoder(Contract(labels=("day", "night")), tokenizer, geometry).answer_ids) == {"day", "night"}


def test_a_label_that_tokenizing_destroys_is_refused(tokenizer: Any, geometry: VisionGeometry) -> None:
    with pytest.raises(UserError, match=r"label '<\|im_end\|>' is read back as None"):
        make_encoder(Contract(labels=("fire", "<|im_end|>")), tokenizer, geometry)


def test_a_label_that_no_answer_could_hold_is_refused(tokenizer: Any, geometry: VisionGeometry) -> None:
    with pytest.raises(UserError, match="label 'light rain' is 2 tokens and the end token, more than max_new_tokens 2"):
        make_encoder(Contract(labels=("sun", "light rain"), max_new_tokens=2), tokenizer, geometry)


def test_the_stock_plan_does_not_fit_the_apps_context(tokenizer: Any) -> None:
    stock = VisionGeometry(512, 16, 4, (0.5,) * 3, (0.5,) * 3, 49190)
    with pytest.raises(UserError) as error:
        make_encoder(Contract(tiling=Tiling(grid=4)), tokenizer, stock)
    for words in ("4x4 + overview", "1088 image", "32 answer", "runtime.n_ctx 1024", "tiling.grid"):
        assert words in str(error.value)
    assert make_encoder(Contract(tiling=Tiling(grid=4), runtime=Runtime(n_ctx=2048)), tokenizer, stock).prompt_ids


def test_the_budget_is_the_context_to_the_token(tokenizer: Any, geometry: VisionGeometry) -> None:
    needed = len(make_encoder(Contract(), tokenizer, geometry).prompt_ids) + 32
    make_encoder(Contract(runtime=Runtime(n_ctx=needed)), tokenizer, geometry)
    with pytest.raises(UserError, match=f"= {needed} tokens, more than runtime.n_ctx {needed - 1}"):
        make_encoder(Contract(runtime=Runtime(n_ctx=needed - 1)), tokenizer, geometry)


def test_the_models_own_picture_token_in_the_prompt_is_refused(tokenizer: Any, geometry: VisionGeometry) -> None:
    with pytest.raises(UserError, match=r"prompt_template contains <image>.*write <__media__>"):
        make_encoder(Contract(prompt_template="<__media__> is an <image>"), tokenizer, geometry)


def test_another_models_tokenizer_is_refused(geometry: VisionGeometry) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(UserError, match="lacks the picture token <image>: this is not a SmolVLM tokenizer"):
        make_encoder(Contract(), plain, geometry)


def test_a_swapped_channel_order_swaps_the_bytes_and_nothing_else(tokenizer: Any, geometry: VisionGeometry) -> None:
    canvas = canvases(2)[1]
    swapped = Contract(image=ImageContract(channel_order="bgr"))
    np.testing.assert_array_equal(fed_bytes(canvas, Contract()), canvas)
    np.testing.assert_array_equal(fed_bytes(canvas, swapped), canvas[..., [2, 1, 0]])
    assert fed_bytes(canvas, swapped).flags.c_contiguous
    assert (
        make_encoder(swapped, tokenizer, geometry).prompt_ids
        == make_encoder(Contract(), tokenizer, geometry).prompt_ids
    )


def test_the_default_plan_is_the_canvas_twice(tokenizer: Any, geometry: VisionGeometry) -> None:
    canvas = canvases(2)[1]
    tiles = make_encoder(Contract(), tokenizer, geometry).tiles_u8(canvas)
    np.testing.assert_array_equal(tiles, np.stack([canvas, canvas]))
