"""libmtmd's and libllama's structures as the predictor needs them: chunks, batches, and the encoder's own input."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import mtmd_cpp

from pipeline.contract import Contract
from pipeline.core.errors import UserError


class Chunks:
    """``mtmd_tokenize``'s chunks of a contract's prompt and one picture; frees them when the block ends."""

    def __init__(self, mtmd: Any, fed: npt.NDArray[np.uint8], contract: Contract) -> None:
        height, width, _ = fed.shape
        prompt = contract.prompt.encode()
        # text_len must be given: left 0, libmtmd sees an empty prompt without a marker.
        text = mtmd_cpp.mtmd_input_text(
            text=prompt, text_len=len(prompt), add_special=contract.add_bos, parse_special=True
        )
        data = np.ascontiguousarray(fed)
        bitmap = mtmd_cpp.mtmd_bitmap_init(width, height, data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
        self._chunks = mtmd_cpp.mtmd_input_chunks_init()
        pictures = (mtmd_cpp.mtmd_bitmap_p_ctypes * 1)(bitmap)
        code = mtmd_cpp.mtmd_tokenize(mtmd, self._chunks, ctypes.byref(text), pictures, 1)
        mtmd_cpp.mtmd_bitmap_free(bitmap)
        if code != 0:
            mtmd_cpp.mtmd_input_chunks_free(self._chunks)
            # mtmd.h: 1, markers and pictures are not of one number; 2, the picture cannot be prepared.
            why = "is the marker in it?" if code == 1 else "the vision half's sizes do not suit the picture"
            raise UserError(f"libmtmd cannot tokenize the contract's prompt and a picture (code {code}): {why}")

    def __enter__(self) -> "Chunks":
        return self

    def __exit__(self, *_: object) -> None:
        mtmd_cpp.mtmd_input_chunks_free(self._chunks)

    def __len__(self) -> int:
        return int(mtmd_cpp.mtmd_input_chunks_size(self._chunks))

    def __iter__(self) -> Iterator[Any]:
        return (mtmd_cpp.mtmd_input_chunks_get(self._chunks, index) for index in range(len(self)))

    @property
    def parts(self) -> list[list[int] | int]:
        """Chunk by chunk: the ids of a text, or how many positions a picture takes."""
        return [
            mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk) if (ids := chunk_tokens(chunk)) is None else ids
            for chunk in self
        ]

    @property
    def pictures(self) -> list[Any]:
        """The chunks that are pictures."""
        return [chunk for chunk in self if chunk_tokens(chunk) is None]


def chunk_tokens(chunk: Any) -> list[int] | None:
    """Token ids of a text chunk; None for a picture."""
    if mtmd_cpp.mtmd_input_chunk_get_type(chunk) != mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_TEXT:
        return None
    count = ctypes.c_size_t(0)
    tokens = mtmd_cpp.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
    return list(tokens[: count.value])


def decode_file(mtmd: Any, path: Path) -> npt.NDArray[np.uint8]:
    """An image file as libmtmd decodes it (stb_image): RGB, [height, width, 3]. Raises UserError."""
    bitmap = mtmd_cpp.mtmd_helper_bitmap_init_from_file(mtmd, os.fsencode(path), False)
    if not bitmap:
        raise UserError(f"libmtmd cannot decode {path}: store the dataset's images as PNG")
    try:
        shape = (mtmd_cpp.mtmd_bitmap_get_ny(bitmap), mtmd_cpp.mtmd_bitmap_get_nx(bitmap), 3)
        data = ctypes.string_at(mtmd_cpp.mtmd_bitmap_get_data(bitmap), mtmd_cpp.mtmd_bitmap_get_n_bytes(bitmap))
        return np.frombuffer(data, np.uint8).reshape(shape)
    finally:
        mtmd_cpp.mtmd_bitmap_free(bitmap)


class Batch:
    """A ``llama_batch`` over memory of its own: ``size`` tokens, or embeddings of ``width`` where that is not 0."""

    def __init__(self, size: int, width: int = 0) -> None:
        def address(array: npt.NDArray[Any], kind: Any) -> Any:
            return array.ctypes.data_as(ctypes.POINTER(kind))

        self.tokens = np.zeros(size, np.int32)
        self.embeddings = np.zeros((size, width), np.float32)
        self.positions = np.zeros(size, np.int32)
        self.sequences = np.zeros(size, np.int32)
        self.wanted = np.zeros(size, np.int8)
        self._counts = np.ones(size, np.int32)
        # Each token names its sequences through a pointer; every token here belongs to one.
        pointers = self.sequences.ctypes.data + np.arange(size, dtype=np.uintp) * self.sequences.itemsize
        self._pointers = pointers.astype(np.uintp)
        self.raw = llama_cpp.llama_batch()
        if width:
            self.raw.embd = address(self.embeddings, ctypes.c_float)
        else:
            self.raw.token = address(self.tokens, llama_cpp.llama_token)
        self.raw.pos = address(self.positions, llama_cpp.llama_pos)
        self.raw.n_seq_id = address(self._counts, ctypes.c_int32)
        self.raw.seq_id = address(self._pointers, ctypes.POINTER(llama_cpp.llama_seq_id))
        self.raw.logits = address(self.wanted, ctypes.c_int8)


class _Tensor(ctypes.Structure):
    """``struct ggml_tensor`` of ggml.h, as far as its name; GGML_MAX_DIMS 4, GGML_MAX_OP_PARAMS 64, GGML_MAX_SRC 10."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


class Tap:
    """Reads, and can replace, the normalized picture that libmtmd hands its vision encoder.

    The bindings show no tiles, but libmtmd takes a callback that is asked about every node of the encoder's graph
    before any is computed (``mtmd_context_params.cb_eval``). The first node that reads ``inp_raw`` (clip.cpp,
    build_inp_raw) leads to it. Works for the CPU's memory, where this predictor runs.
    """

    def __init__(self) -> None:
        self.tile: npt.NDArray[np.float32] | None = None
        """[3, tile, tile], what the last encode was given by libmtmd itself."""
        self.replacement: npt.NDArray[np.float32] | None = None
        """[3, tile, tile] to encode instead."""
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._ask)

    def arm(self, replacement: npt.NDArray[np.float32] | None = None) -> None:
        """Get ready for the next encode."""
        self.tile, self.replacement = None, replacement

    def _ask(self, address: int, ask: bool, _: object) -> bool:
        if self.tile is None:
            for source in _Tensor.from_address(address).src:
                if source and _Tensor.from_address(source).name == b"inp_raw":
                    self._read(_Tensor.from_address(source))
                    break
        return False  # no result is waited for, so the graph is computed in one piece

    def _read(self, tensor: _Tensor) -> None:
        width, height, channels, _ = tensor.ne
        pixels = ctypes.cast(tensor.data, ctypes.POINTER(ctypes.c_float))
        view = np.ctypeslib.as_array(pixels, shape=(channels, height, width))
        self.tile = view.copy()
        if self.replacement is not None:
            view[:] = self.replacement
