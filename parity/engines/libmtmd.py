"""libmtmd's and libllama's structures as the predictor needs them: chunks, batches, and the encoder's own input."""

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import mtmd_cpp

from pipeline.contract import KvType
from pipeline.core.errors import UserError
from pipeline.core.toolchain import LlamaLog, load_gguf

GGML_TYPE: dict[KvType, int] = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8}
"""Name of a type -> its number (``enum ggml_type`` of ggml.h)."""


class Chunks:
    """``mtmd_tokenize``'s chunks of a prompt and one picture; frees them when the block ends.

    ``picture``: RGB [height, width, 3], or (width, height) alone to count tokens. ``prompt`` holds libmtmd's marker
    once. Raises UserError where libmtmd refuses them.
    """

    def __init__(
        self, mtmd: Any, picture: npt.NDArray[np.uint8] | tuple[int, int], prompt: str, add_special: bool
    ) -> None:
        encoded = prompt.encode()
        # text_len must be given: left 0, libmtmd sees an empty prompt without a marker.
        text = mtmd_cpp.mtmd_input_text(
            text=encoded, text_len=len(encoded), add_special=add_special, parse_special=True
        )
        if isinstance(picture, tuple):
            bitmap = mtmd_cpp.mtmd_bitmap_init(*picture, None)
        else:
            height, width, _ = picture.shape
            data = np.ascontiguousarray(picture)
            bitmap = mtmd_cpp.mtmd_bitmap_init(width, height, data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
        self._chunks = mtmd_cpp.mtmd_input_chunks_init()
        pictures = (mtmd_cpp.mtmd_bitmap_p_ctypes * 1)(bitmap)
        with LlamaLog() as log:
            code = mtmd_cpp.mtmd_tokenize(mtmd, self._chunks, ctypes.byref(text), pictures, 1)
        mtmd_cpp.mtmd_bitmap_free(bitmap)
        if code != 0:
            mtmd_cpp.mtmd_input_chunks_free(self._chunks)
            # mtmd.h: 1, markers and pictures are not of one number; 2, the picture cannot be prepared. This version
            # gives 2 for either (mtmd.cpp, mtmd_tokenizer).
            markers = code == 1 or "media markers" in log.error()
            why = (
                "the prompt must have the picture's marker just once"
                if markers
                else "the vision half's sizes do not suit the picture"
            )
            raise UserError(f"libmtmd cannot tokenize the prompt and a picture (code {code}): {why}")

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


def free(mtmd: Any, context: Any, model: Any) -> None:
    """Free what was opened of a side, each None where it was not: ``mtmd_context *``, ``llama_context *``,
    ``llama_model *``."""
    if mtmd:
        mtmd_cpp.mtmd_free(mtmd)
    if context:
        llama_cpp.llama_free(context)
    if model:
        llama_cpp.llama_model_free(model)


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


def normalization_of(mmproj: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) of each channel, as libmtmd reads them from the file. Raises UserError."""
    fields = load_gguf().GGUFReader(mmproj).fields
    found = [fields.get(f"clip.vision.image_{name}") for name in ("mean", "std")]
    if None in found:
        raise UserError(f"{mmproj} has no clip.vision.image_mean or image_std: export it again")
    mean, std = (tuple(field.contents()) for field in found)
    return mean, std


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


class LayerTap:
    """Hands on what each layer of a graph makes, while it is computed.

    ``prefix``: ``layer_out-`` in libmtmd's encoders, ``l_out-`` in llama.cpp's language models; the layer's number
    stands behind it. ``take`` is given the number and the layer's output, [rows, width].
    """

    def __init__(self, prefix: str, take: Callable[[int, npt.NDArray[np.float32]], None]) -> None:
        self._prefix, self._take = prefix.encode(), take
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(lambda address, ask, _: self.asked(address, ask))

    def asked(self, address: int, ask: bool) -> bool:
        """``ggml_backend_sched_eval_callback``: whether a node is wanted; later it is here, computed."""
        tensor = _Tensor.from_address(address)
        name = tensor.name
        if not name.startswith(self._prefix) or tensor.type != 0:  # GGML_TYPE_F32
            return not ask
        number = name[len(self._prefix) :].decode()
        if not number.isdigit():
            return not ask
        if not ask:
            width, *others = tensor.ne
            rows = np.empty((int(np.prod(others)), width), np.float32)
            _get(address, rows.ctypes.data, 0, rows.nbytes)
            self._take(int(number), rows)
        return True


class Tap:
    """Reads, and can replace, the normalized pictures that libmtmd hands its vision encoder.

    The bindings show no tiles, but libmtmd takes a callback that is asked about every node of the encoder's graph
    before any is computed (``mtmd_context_params.cb_eval``). The first node that reads ``inp_raw`` (clip.cpp,
    build_inp_raw) leads to it. Works for the CPU's memory and for a GPU's.
    """

    def __init__(self) -> None:
        self.tiles: list[npt.NDArray[np.float32]] = []
        """Each [3, height, width]: what the encodes since :meth:`arm` were given by libmtmd itself."""
        self.layers: LayerTap | None = None
        """Gets what each layer of the encoder makes, where it is set."""
        self._replacements: Sequence[npt.NDArray[np.float32]] | None = None
        self.refused = ""
        """Why a replacement could not be used; an exception would be lost in the native code between."""
        self._reader: int | None = None
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._ask)

    def arm(self, replacements: Sequence[npt.NDArray[np.float32]] | None = None) -> None:
        """Get ready for the next chunk. ``replacements``: tiles [3, height, width] to encode instead, in turn."""
        self.tiles, self._replacements, self._reader, self.refused = [], replacements, None, ""

    def _ask(self, address: int, ask: bool, _: object) -> bool:
        if ask and (self._reader is None or self._reader == address):
            for source in _Tensor.from_address(address).src:
                if source and _Tensor.from_address(source).name == b"inp_raw":
                    # A chunk of several tiles may be encoded one by one. Each graph has a first reader, and libmtmd
                    # builds its graphs in one memory, so that it lies at the same address in all of them.
                    self._reader = address
                    self._read(source)
                    break
        # Without layers no result is waited for, so the graph is computed in one piece.
        return self.layers is not None and self.layers.asked(address, ask)

    def _read(self, address: int) -> None:
        width, height, channels, count = _Tensor.from_address(address).ne
        pixels = np.empty((count, channels, height, width), np.float32)
        _get(address, pixels.ctypes.data, 0, pixels.nbytes)
        begin = len(self.tiles)
        self.tiles += list(pixels)
        if self._replacements is not None:
            given = np.array([*self._replacements[begin : begin + count]], np.float32)
            if given.shape != pixels.shape:
                self.refused = f"tiles of {given.shape} cannot replace {pixels.shape}"
                return
            _set(address, np.ascontiguousarray(given).ctypes.data, 0, given.nbytes)


def _ggml(name: str) -> Any:
    """``ggml_backend_tensor_get`` or ``_set`` of ggml-backend.h: to and from whatever memory a tensor is in."""
    function = getattr(llama_cpp.llama_cpp._lib, name)  # of a library that libllama is linked to
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
    function.restype = None
    return function


_get, _set = _ggml("ggml_backend_tensor_get"), _ggml("ggml_backend_tensor_set")
