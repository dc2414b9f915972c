"""The phone's side on the host: llama.cpp in process, through llama-cpp-python's bindings of libllama and libmtmd.

The model is loaded once; pictures go in from memory; the prompt is cut into chunks by ``mtmd_tokenize`` itself. What is
run for a picture is what the app runs (``mtmd_helper_eval_chunks``), taken apart only to be timed.
"""

import ctypes
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import mtmd_cpp

from pipeline.contract import Contract, KvType
from pipeline.encoding import Encoder, fed_bytes
from pipeline.errors import UserError
from pipeline.export.toolchain import LlamaLog
from pipeline.files import sha256_bytes
from pipeline.prediction import Prediction, log_softmax, top_logits

# enum ggml_type in ggml.h
_GGML_TYPE: dict[KvType, int] = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8}


class LlamaCppPredictor:
    """Runs a GGUF pair under a contract's runtime profile. Use as a context manager: it holds native memory.

    Raises UserError where a file cannot be loaded or the runtime profile is refused, with llama.cpp's own reason.
    """

    side = "llamacpp"

    def __init__(self, model: Path, mmproj: Path, encoder: Encoder, cores: int | None = None) -> None:
        self._contract: Contract = encoder.contract
        self._answers = encoder.answer_ids
        runtime = self._contract.runtime
        self._n_batch = min(runtime.n_batch, runtime.n_ctx)
        self.n_threads = runtime.threads(cores or os.cpu_count() or 1)
        self._model: Any = None
        self._context: Any = None
        self._mtmd: Any = None
        llama_cpp.llama_backend_init()
        # One sequence of positions at a time is all that runs here; a batch is as long as the contract lets it be.
        self._batch: Any = llama_cpp.llama_batch_init(self._n_batch, 0, 1)
        try:
            with LlamaLog() as log:
                self._load(model, mmproj, log)
        except BaseException:
            self.close()
            raise
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._n_vocab = llama_cpp.llama_vocab_n_tokens(self._vocab)
        size = self._contract.image.size
        self.prompt_ids, self.image_slots = self._layout(np.zeros((size, size, 3), np.uint8))

    def _load(self, model: Path, mmproj: Path, log: LlamaLog) -> None:
        runtime = self._contract.runtime
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(model), parameters)
        if not self._model:
            raise UserError(f"llama.cpp cannot load {model}: {log.error()}")
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = runtime.n_ctx
        context.n_batch = context.n_ubatch = self._n_batch
        context.n_threads = context.n_threads_batch = self.n_threads
        context.type_k = _GGML_TYPE[runtime.type_k]
        context.type_v = _GGML_TYPE[runtime.type_v]
        context.flash_attn_type = int(runtime.flash_attn)  # LLAMA_FLASH_ATTN_TYPE_DISABLED 0, _ENABLED 1
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        if not self._context:
            raise UserError(f"llama.cpp refuses the contract's runtime profile for {model}: {log.error()}")
        settings = mtmd_cpp.mtmd_context_params_default()
        settings.use_gpu = False
        settings.print_timings = False
        settings.n_threads = self.n_threads
        settings.media_marker = self._contract.media_marker.encode()
        self._mtmd = mtmd_cpp.mtmd_init_from_file(os.fsencode(mmproj), self._model, settings)
        if not self._mtmd:
            raise UserError(f"llama.cpp cannot load {mmproj} for {model.name}: {log.error()}")

    def __enter__(self) -> "LlamaCppPredictor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the native memory; the predictor is of no use afterwards."""
        if self._mtmd:
            mtmd_cpp.mtmd_free(self._mtmd)
        if self._context:
            llama_cpp.llama_free(self._context)
        if self._model:
            llama_cpp.llama_model_free(self._model)
        if self._batch:
            llama_cpp.llama_batch_free(self._batch)
        self._mtmd = self._context = self._model = self._batch = None

    def predict(self, canvases: Iterable[npt.NDArray[np.uint8]]) -> Iterator[Prediction]:
        """See :class:`parity.predictors.Predictor`."""
        for canvas in canvases:
            yield self._predict(canvas)

    def tokenize(self, canvas: npt.NDArray[np.uint8]) -> "Chunks":
        """libmtmd's own chunks of prompt and picture, for a canvas uint8 [size, size, 3] as it is handed over."""
        return Chunks(self._mtmd, canvas, self._contract)

    def _layout(self, canvas: npt.NDArray[np.uint8]) -> tuple[list[int], list[tuple[int, int]]]:
        ids: list[int] = []
        slots: list[tuple[int, int]] = []
        with self.tokenize(canvas) as chunks:
            for chunk in chunks:
                text = chunk_tokens(chunk)
                if text is None:
                    length = mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk)
                    slots.append((len(ids), length))
                    text = [-1] * length
                ids += text
        return ids, slots

    def _predict(self, canvas: npt.NDArray[np.uint8]) -> Prediction:
        fed = fed_bytes(canvas, self._contract)
        ms = {"encode": 0.0, "prefill": 0.0, "generate": 0.0}
        memory = llama_cpp.llama_get_memory(self._context)
        llama_cpp.llama_memory_clear(memory, True)
        past = ctypes.c_int32(0)
        start = time.perf_counter()
        with self.tokenize(fed) as chunks:
            ms["encode"] = (time.perf_counter() - start) * 1e3  # cutting and scaling the tiles
            for index, chunk in enumerate(chunks):
                self._evaluate(chunk, past, index == len(chunks) - 1, ms)
        start = time.perf_counter()
        first = self._logits()
        label_logprobs = self._label_logprobs(first, past.value)
        ids, reason = self._generate(first, past.value)
        ms["generate"] = (time.perf_counter() - start) * 1e3
        return Prediction(
            rgb_sha256=sha256_bytes(fed.tobytes()),
            text=self._text(ids),
            generated_ids=tuple(ids),
            stop_reason=reason,
            label_logprobs=label_logprobs,
            top_logits=top_logits(first),
            ms=ms,
        )

    def _evaluate(self, chunk: Any, past: ctypes.c_int32, last: bool, ms: dict[str, float]) -> None:
        start = time.perf_counter()
        if chunk_tokens(chunk) is None:
            code = mtmd_cpp.mtmd_encode_chunk(self._mtmd, chunk)
            now = time.perf_counter()
            ms["encode"] += (now - start) * 1e3
            start = now
            if code == 0:
                embeddings = mtmd_cpp.mtmd_get_output_embd(self._mtmd)
                code = mtmd_cpp.mtmd_helper_decode_image_chunk(
                    self._mtmd, self._context, chunk, embeddings, past.value, 0, self._n_batch, ctypes.byref(past),
                    mtmd_cpp.mtmd_helper_post_decode_callback(), None,
                )  # fmt: skip
        else:
            code = mtmd_cpp.mtmd_helper_eval_chunk_single(
                self._mtmd, self._context, chunk, past.value, 0, self._n_batch, last, ctypes.byref(past)
            )
        ms["prefill"] += (time.perf_counter() - start) * 1e3
        if code != 0:
            raise RuntimeError(f"llama.cpp failed on a chunk of the prompt with code {code}")

    def _logits(self) -> npt.NDArray[np.float32]:
        """A copy of the last output's logits, [vocabulary]."""
        pointer = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, shape=(self._n_vocab,)).copy()

    def _decode(self, tokens: Sequence[int], position: int) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = position + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = True
        code = llama_cpp.llama_decode(self._context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode failed with code {code} at position {position}")

    def _label_logprobs(self, first: npt.NDArray[np.float32], past: int) -> dict[str, float]:
        """Sum over each label's answer tokens; the cache is left as it was after the prompt."""
        start = log_softmax(first)
        memory = llama_cpp.llama_get_memory(self._context)
        result = {}
        for label, ids in self._answers.items():
            total = float(start[ids[0]])
            for begin in range(0, len(ids) - 1, self._n_batch):
                part = ids[begin:-1][: self._n_batch]
                self._decode(part, past + begin)
                for index, token in enumerate(ids[begin + 1 :][: len(part)]):
                    pointer = llama_cpp.llama_get_logits_ith(self._context, index)
                    logits = np.ctypeslib.as_array(pointer, shape=(self._n_vocab,))
                    total += float(log_softmax(logits)[token])
            llama_cpp.llama_memory_seq_rm(memory, 0, past, -1)
            result[label] = total
        return result

    def _generate(self, first: npt.NDArray[np.float32], past: int) -> tuple[list[int], str]:
        """Greedy continuation: (ids without the end token, stop reason)."""
        ids: list[int] = []
        logits = first
        while len(ids) < self._contract.max_new_tokens:
            token = int(logits.argmax())
            if llama_cpp.llama_vocab_is_eog(self._vocab, token):
                return ids, "end"
            ids.append(token)
            if len(ids) < self._contract.max_new_tokens:
                self._decode([token], past)
                past += 1
                logits = self._logits()
        return ids, "length"

    def _text(self, ids: Sequence[int]) -> str:
        if not ids:
            return ""
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        size = 64 * len(ids)
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = llama_cpp.llama_detokenize(self._vocab, tokens, len(ids), buffer, size, False, False)
            if count >= 0:
                return buffer.raw[:count].decode(errors="replace")
            size = -count


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
            raise UserError(f"libmtmd cannot tokenize the contract's prompt (code {code}): is the marker in it?")

    def __enter__(self) -> "Chunks":
        return self

    def __exit__(self, *_: object) -> None:
        mtmd_cpp.mtmd_input_chunks_free(self._chunks)

    def __len__(self) -> int:
        return int(mtmd_cpp.mtmd_input_chunks_size(self._chunks))

    def __iter__(self) -> Iterator[Any]:
        return (mtmd_cpp.mtmd_input_chunks_get(self._chunks, index) for index in range(len(self)))


def chunk_tokens(chunk: Any) -> list[int] | None:
    """Token ids of a text chunk; None for a picture."""
    if mtmd_cpp.mtmd_input_chunk_get_type(chunk) != mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_TEXT:
        return None
    count = ctypes.c_size_t(0)
    tokens = mtmd_cpp.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
    return list(tokens[: count.value])
