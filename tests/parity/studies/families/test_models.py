"""Tiny models of other families: they load without a hub, tell pictures apart, and become pairs that llama.cpp loads.

`make test` tries two of them, and one conversion; the slow tests try each from the folder to both sides' logits.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors import safe_open
from session import Once
from transformers.utils.import_utils import is_torchvision_available

from parity.studies.families import models
from parity.studies.families.models import FAMILIES, LINE_BREAK, convert_family, make_family
from pipeline.core.errors import UserError
from pipeline.core.provenance import folder_hashes
from pipeline.core.toolchain import load_gguf
from pipeline.models.auto import load_model, load_processor

QUICK = ("qwen2.5-vl", "gemma3")
SIZES = ((256, 256), (640, 480))
TEXT = "The quick brown fox jumps over the lazy dog."

TEXT_KL = 1e-5
"""Nats between the two sides' next words after TEXT, F32. Measured: Gemma 3 1.1e-6 (llama.cpp's table of GELU is F16),
Qwen2.5-VL 4.5e-10, the others below 2e-11."""


def everyone(*names: str) -> Any:
    """Each family once; those not in ``names`` are slow."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]


@pytest.fixture(scope="module")
def made(once: Once) -> Callable[[str], Path]:
    """Makes a family's folder, once."""
    return lambda name: once(name, lambda folder: make_family(name, folder))


def pictures(width: int, height: int) -> list[npt.NDArray[np.uint8]]:
    """Two pictures of coloured noise, uint8 [height, width, 3]."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (2, height // 16, width // 16, 3), dtype=np.uint8)
    return list(coarse.repeat(16, axis=1).repeat(16, axis=2))


@pytest.mark.parametrize("name", everyone(*QUICK))
def test_answers_depend_on_the_picture(made: Callable[[str], Path], name: str) -> None:
    if name == "lfm2-vl" and not is_torchvision_available():
        with pytest.raises(UserError, match="with torchvision alone"):
            load_processor(str(made(name)))
        return
    folder = made(name)
    processor, model = load_processor(str(folder)), load_model(str(folder))
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}
    prompt = processor.apply_chat_template([message], add_generation_prompt=True)
    for size in SIZES:
        logits = []
        for picture in pictures(*size):
            inputs = processor(images=[picture], text=[prompt], return_tensors="pt")
            with torch.inference_mode():
                logits.append(model(**inputs).logits[0, -1].log_softmax(-1))
        # Nats. Measured: 0.15 to 4.5; as transformers initializes the weights, at most 0.005.
        assert torch.nn.functional.kl_div(logits[1], logits[0], log_target=True, reduction="sum") > 0.05


@pytest.mark.parametrize("name", everyone(QUICK[0]))
def test_a_model_is_the_same_to_the_byte(made: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    torch.manual_seed(99)
    make_family(name, tmp_path)
    assert folder_hashes(tmp_path) == folder_hashes(made(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_is_small(made: Callable[[str], Path], name: str) -> None:
    file = made(name) / "model.safetensors"
    assert file.stat().st_size < 32e6
    with safe_open(file, framework="np") as weights:
        assert {weights.get_slice(key).get_dtype() for key in weights.keys()} == {"F32"}  # noqa: SIM118
    config = json.loads((made(name) / "config.json").read_text())
    assert config["model_type"] == FAMILIES[name].model_type


def test_an_unknown_family_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no family 'llava-9': give one of smolvlm, qwen2\.5-vl"):
        make_family("llava-9", tmp_path)


def test_a_refusal_has_the_converters_words(made: Callable[[str], Path], tmp_path: Path) -> None:
    for file in made(QUICK[0]).iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = tmp_path / "config.json"
    content = json.loads(config.read_text()) | {"architectures": ["NoSuchModel"]}
    config.unlink()
    config.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"refused the text half of .*NoSuchModel"):
        convert_family(tmp_path, tmp_path / "out")


def test_a_vision_half_without_a_tensor_is_told(
    made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "convert_text", lambda *_, **__: None)
    # What the converter itself does with InternVL3 as transformers saves it.
    monkeypatch.setattr(models, "convert_mmproj", lambda _, out, *__: write_gguf(out, {}))
    with pytest.raises(UserError, match="wrote a vision half without a tensor"):
        convert_family(made(QUICK[0]), tmp_path)


def write_gguf(path: Path, tensors: dict[str, npt.NDArray[np.float32]]) -> None:
    """A vision half with nothing but ``tensors``."""
    writer = load_gguf().GGUFWriter(path, arch="clip")
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_line_break_is_added_to_a_vision_half(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    save_file({"language_model.model.embed_tokens.weight": table}, tmp_path / "model.safetensors")
    tokens = [{"content": "[IMG]", "id": 1}, {"content": "[IMG_BREAK]", "id": 2}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    write_gguf(tmp_path / "mmproj.gguf", {"mm.1.weight": np.ones((2, 2), np.float32)})
    models.add_line_break(tmp_path, tmp_path / "mmproj.gguf")
    there = {tensor.name: tensor.data.tolist() for tensor in load_gguf().GGUFReader(tmp_path / "mmproj.gguf").tensors}
    assert there == {"mm.1.weight": [[1, 1], [1, 1]], LINE_BREAK: [6, 7, 8]}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_answers_as_transformers(made: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    folder = made(name)
    text, mmproj = convert_family(folder, tmp_path)
    # In a process of its own: some faults end it.
    command = [sys.executable, __file__, str(text), str(mmproj), str(tmp_path / "logits.npy")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    tokens, *slots = json.loads(done.stdout)
    ids = load_processor_tokens(folder)
    assert tokens == ids
    assert all(count > 0 for count in slots)
    with torch.inference_mode():
        wanted = load_model(str(folder))(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    given = torch.from_numpy(np.load(tmp_path / "logits.npy")).log_softmax(-1)
    divergence = torch.nn.functional.kl_div(given, wanted, log_target=True, reduction="sum").item()
    assert math.isfinite(divergence)
    assert divergence < TEXT_KL


def load_processor_tokens(folder: Path) -> list[int]:
    """TEXT as the family's tokenizer cuts it."""
    from transformers import AutoTokenizer

    ids: list[int] = AutoTokenizer.from_pretrained(folder).encode(TEXT, add_special_tokens=False)
    return ids


def main(text: str, mmproj: str, out: str) -> None:
    """llama.cpp's side: prints its ids of TEXT and the sizes of the pictures' slots; writes the last word's logits."""
    import ctypes

    import llama_cpp
    from llama_cpp import mtmd_cpp

    from parity.engines.libmtmd import chunk_tokens

    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model: Any = llama_cpp.llama_model_load_from_file(text.encode(), parameters)
    context_parameters = llama_cpp.llama_context_default_params()
    context_parameters.n_ctx = 512
    context_parameters.type_k = context_parameters.type_v = 0  # F32
    context_parameters.flash_attn_type = 0
    context: Any = llama_cpp.llama_init_from_model(model, context_parameters)
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    ids = (llama_cpp.llama_token * 64)()
    count = llama_cpp.llama_tokenize(vocabulary, TEXT.encode(), len(TEXT), ids, 64, False, True)
    if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(ids, count)):
        raise SystemExit("llama.cpp failed to decode the text")
    width = llama_cpp.llama_vocab_n_tokens(vocabulary)
    np.save(out, np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), shape=(width,)).copy())
    settings = mtmd_cpp.mtmd_context_params_default()
    settings.use_gpu = False
    settings.print_timings = False
    settings.media_marker = b"<__media__>"
    mtmd: Any = mtmd_cpp.mtmd_init_from_file(mmproj.encode(), model, settings)
    slots = []
    for width, height in SIZES:
        prompt = b"a <__media__> b"
        given = mtmd_cpp.mtmd_input_text(text=prompt, text_len=len(prompt), add_special=False, parse_special=True)
        data = np.ascontiguousarray(pictures(width, height)[0])
        bitmap = mtmd_cpp.mtmd_bitmap_init(width, height, data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
        chunks = mtmd_cpp.mtmd_input_chunks_init()
        if mtmd_cpp.mtmd_tokenize(mtmd, chunks, ctypes.byref(given), (mtmd_cpp.mtmd_bitmap_p_ctypes * 1)(bitmap), 1):
            raise SystemExit("libmtmd failed to tokenize a picture")
        every = [
            mtmd_cpp.mtmd_input_chunks_get(chunks, index) for index in range(mtmd_cpp.mtmd_input_chunks_size(chunks))
        ]
        shown = [chunk for chunk in every if chunk_tokens(chunk) is None]
        if not shown or any(mtmd_cpp.mtmd_encode_chunk(mtmd, chunk) for chunk in shown):
            raise SystemExit("libmtmd failed to encode a picture")
        slots.append(sum(mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk) for chunk in shown))
    print(json.dumps([list(ids[:count]), *slots]))


if __name__ == "__main__":
    main(*sys.argv[1:])
