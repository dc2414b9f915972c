"""Any pair of GGUFs under llama.cpp, as llama-mtmd-cli runs it: chunks, embeddings, M-RoPE and non-causal attention by
libmtmd itself, one picture at a time.

Nothing here knows a family. SmolVLM under an app's contract has a path of its own (:mod:`parity.engines.llamacpp`),
which is quicker.
"""

import ctypes
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import mtmd_cpp

from parity.engines.decoding import detokenize
from parity.engines.given import CannotConform, Given, Parts, arrange
from parity.engines.libmtmd import GGML_TYPE, Batch, Chunks, LayerTap, Tap, decode_file, free, normalization_of
from parity.engines.trace import Answer, Pixels, Trace, layout_of
from parity.terms import MARKER, ToolRuntime
from pipeline.core.errors import UserError
from pipeline.core.toolchain import LlamaLog
from pipeline.models.prediction import log_softmax

"""``enum ggml_type`` of ggml.h"""
FLASH_ATTN = {"auto": -1, "off": 0, "on": 1}
"""``enum llama_flash_attn_type`` of llama.h"""


def try_pair(model: Path, mmproj: Path, runtime: ToolRuntime, sizes: Sequence[tuple[int, int]]) -> None:
    """Let a pair answer a made-up picture of each (width, height), for :func:`parity.engines.probe.probe`."""
    with Mtmd(model, mmproj, runtime) as side:
        longest = max(side.count(size, MARKER + "?") for size in sizes)
        side.open_context(longest + 2)
        for width, height in sizes:
            rgb = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
            side.answer(rgb, MARKER + "?", (), 1)


class Mtmd:
    """A GGUF pair. Use as a context manager: it holds native memory.

    ``prompt tokens`` decide how large the context must be, so :meth:`open_context` comes after :meth:`count`. Raises
    UserError where a file cannot be loaded or the settings are refused, with llama.cpp's own reason.
    """

    side = "llamacpp"

    def __init__(self, model: Path, mmproj: Path, runtime: ToolRuntime, gpu: bool = False) -> None:
        self.runtime = runtime
        self.n_threads = runtime.threads or len(os.sched_getaffinity(0))
        self._path = model
        self._model: Any = None
        self._context: Any = None
        self._mtmd: Any = None
        self._tap = Tap()
        llama_cpp.llama_backend_init()
        try:
            with LlamaLog() as log:
                self._load(model, mmproj, gpu, log)
            self._normalization = normalization_of(mmproj)
        except BaseException:
            self.close()
            raise

    def _load(self, model: Path, mmproj: Path, gpu: bool, log: LlamaLog) -> None:
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = -1 if gpu else 0
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(model), parameters)
        if not self._model:
            raise UserError(f"llama.cpp cannot load {model}: {log.error()}")
        self._mmproj, self._gpu = mmproj, gpu
        self._mtmd = self._open_mmproj(self.runtime.image_min_tokens or -1, self.runtime.image_max_tokens or -1)
        if not self._mtmd:
            raise UserError(f"llama.cpp cannot load {mmproj} for {model.name}: {log.error()}")
        if not mtmd_cpp.mtmd_support_vision(self._mtmd):
            raise UserError(f"{mmproj} takes no pictures: give the mmproj of a vision model")
        self.vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.width = llama_cpp.llama_model_n_embd_inp(self._model)
        self.mrope = bool(mtmd_cpp.mtmd_decode_use_mrope(self._mtmd))

    def _open_mmproj(self, least: int, most: int) -> Any:
        settings = mtmd_cpp.mtmd_context_params_default()
        settings.use_gpu = self._gpu
        settings.print_timings = False
        settings.n_threads = self.n_threads
        settings.warmup = False
        settings.media_marker = MARKER.encode()
        settings.flash_attn_type = FLASH_ATTN[self.runtime.flash_attn]
        settings.image_min_tokens, settings.image_max_tokens = self._span = least, most
        settings.cb_eval = self._tap.callback
        return mtmd_cpp.mtmd_init_from_file(os.fsencode(self._mmproj), self._model, settings)

    def __enter__(self) -> "Mtmd":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the native memory; of no use afterwards."""
        free(self._mtmd, self._context, self._model)
        self._mtmd = self._context = self._model = None

    @property
    def handle(self) -> Any:
        """``llama_model *``"""
        return self._model

    def count(self, size: tuple[int, int], prompt: str) -> int:
        """How many tokens a prompt has with a picture of (width, height), without encoding any. Raises UserError."""
        with Chunks(self._mtmd, size, prompt, add_special=True) as chunks:
            return sum(mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk) for chunk in chunks)

    def picture(self, size: tuple[int, int]) -> tuple[int, int]:
        """How many positions a picture of (width, height) takes, alone and with the tokens that libmtmd puts around
        it. Raises UserError."""
        with Chunks(self._mtmd, size, MARKER, add_special=False) as chunks:
            parts = chunks.parts
        slots = sum(part for part in parts if isinstance(part, int))
        return slots, slots + sum(len(part) for part in parts if not isinstance(part, int))

    def open_context(self, n_tokens: int) -> int:
        """Make room for prompts and answers of ``n_tokens`` together, or as much as was asked for; the room made.

        Raises UserError where that is too little, or llama.cpp refuses the settings.
        """
        n_ctx = self.runtime.ctx or max(n_tokens, 512)
        trained = llama_cpp.llama_model_n_ctx_train(self._model)
        if n_tokens > n_ctx:
            raise UserError(
                f"the longest prompt and its answer are {n_tokens} tokens, and the context has {n_ctx}: give --ctx-size"
                f" {n_tokens}, or fewer tokens for a picture with --image-max-tokens"
            )
        if n_tokens > trained:
            raise UserError(
                f"the longest prompt and its answer are {n_tokens} tokens, and {self._path.name} was trained with"
                f" {trained}: give smaller pictures, or fewer tokens for a picture with --image-max-tokens"
            )
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = n_ctx
        self.n_batch = min(self.runtime.batch, n_ctx)
        context.n_batch = self.n_batch
        context.n_ubatch = min(self.runtime.ubatch, self.n_batch)
        context.n_threads = context.n_threads_batch = self.n_threads
        context.type_k = GGML_TYPE[self.runtime.type_k]
        context.type_v = GGML_TYPE[self.runtime.type_v]
        context.flash_attn_type = FLASH_ATTN[self.runtime.flash_attn]
        if self._context:
            llama_cpp.llama_free(self._context)
        with LlamaLog() as log:
            self._context = llama_cpp.llama_init_from_model(self._model, context)
        if not self._context:
            raise UserError(f"llama.cpp refuses the settings for {self._path}: {log.error()}")
        self._batch = Batch(self.n_batch)
        self._parameters = context
        return int(llama_cpp.llama_n_ctx(self._context))

    def decoded(self, path: Path) -> npt.NDArray[np.uint8]:
        """An image file as libmtmd itself decodes it, RGB [height, width, 3]. Raises UserError."""
        return decode_file(self._mtmd, path)

    def answer(
        self,
        rgb: npt.NDArray[np.uint8],
        prompt: str,
        reference: Sequence[int],
        max_new_tokens: int,
        given: Given | None = None,
        steps: int | None = None,
    ) -> tuple[Answer, Trace]:
        """Answer greedily, and walk the reference's answer, too.

        ``rgb``: uint8 [height, width, 3]. ``prompt`` has the marker where the picture goes. ``reference``: the ids of
        the reference's answer without its end token. ``steps``: rows of ``log_probs`` that the reference has; by
        default one more than its answer.
        """
        given = given or Given()
        with Chunks(self._mtmd, rgb, prompt, add_special=True) as made:
            chunks = arrange(made, given.texts)
            self._make_room(chunks, max(len(reference), max_new_tokens))
            start = time.perf_counter()
            trace, pictures = self._encode(chunks, given)
            encoded = time.perf_counter()
            first, past = self._prefill(chunks, pictures)
            prefill = time.perf_counter()
            steps = len(reference) + 1 if steps is None else steps
            follow = list(reference[: steps - 1])
            logits = np.concatenate([first, self._decode(follow, past, range(len(follow)))])
            followed = time.perf_counter()
            ids, reason = self._generate(chunks, pictures, logits, follow, past, max_new_tokens)
            end = time.perf_counter()
        ms = {
            "encode": (encoded - start) * 1e3,
            "prefill": (prefill - encoded) * 1e3,
            "follow": (followed - prefill) * 1e3,
            "generate": (end - followed) * 1e3,
        }
        log_probs = log_softmax(logits).astype(np.float32)
        answer = Answer(tuple(ids), self.text(ids), reason, ms)
        return answer, replace(trace, log_probs=log_probs)

    def _make_room(self, chunks: Parts, answer: int) -> None:
        """A larger context where a picture was made to take more tokens than any that was counted."""
        prompt = sum(
            len(text) if text is not None else mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk) for text, chunk in chunks
        )
        if prompt + answer + 1 > llama_cpp.llama_n_ctx(self._context):
            self.open_context(prompt + answer + 1)

    def _encode(self, chunks: Parts, given: Given) -> tuple[Trace, list[npt.NDArray[np.float32]]]:
        """The prompt's way up to the language half, and each picture chunk's embeddings [tokens, width]."""
        ids: list[int] = []
        positions: list[npt.NDArray[np.int32]] = []
        tiles: list[npt.NDArray[np.float32]] = []
        pictures: list[npt.NDArray[np.float32]] = []
        past, row = 0, 0
        for text, chunk in chunks:
            if text is not None:
                ids += text
                positions.append(np.tile(np.arange(past, past + len(text), dtype=np.int32), (3, 1)))
                past += len(text)
                continue
            count = mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk)
            ids += [-1] * count
            positions.append(self._positions(chunk, past, count))
            past += mtmd_cpp.mtmd_input_chunk_get_n_pos(chunk)
            if given.embeddings is not None:
                if len(given.embeddings) < row + count:
                    raise CannotConform(f"{len(given.embeddings)} embeddings for {row + count} positions")
                pictures.append(np.ascontiguousarray(given.embeddings[row : row + count], np.float32))
            else:
                replacements = given.tiles[len(tiles) :] if given.tiles is not None else None
                pictures.append(self._encode_chunk(chunk, count, replacements))
                tiles += self._tap.tiles
            row += count
        inputs = np.full((len(ids), self.width), np.nan, np.float32)
        inputs[np.array(ids) == -1] = np.concatenate(pictures)
        places = np.concatenate(positions, axis=1)
        trace = Trace(
            layout=layout_of(ids),
            positions=places if self.mrope else places[:1],
            pixels=Pixels(tiles, *self._normalization) if tiles else None,
            inputs=inputs,
            log_probs=np.empty((0, self.n_vocab), np.float32),
        )
        return trace, pictures

    def _positions(self, chunk: Any, past: int, count: int) -> npt.NDArray[np.int32]:
        """[3, count]: time, height, width."""
        if not self.mrope:
            return np.tile(np.arange(past, past + count, dtype=np.int32), (3, 1))
        image = mtmd_cpp.mtmd_input_chunk_get_tokens_image(chunk)
        found = (mtmd_cpp.mtmd_decoder_pos * count)()
        mtmd_cpp.mtmd_helper_image_get_decoder_pos(image, past, found)
        return np.array([[place.t, place.y, place.x] for place in found], np.int32).T

    def _encode_chunk(
        self, chunk: Any, count: int, replacements: Sequence[npt.NDArray[np.float32]] | None
    ) -> npt.NDArray[np.float32]:
        self._tap.arm(replacements)
        code = mtmd_cpp.mtmd_encode_chunk(self._mtmd, chunk)
        if code != 0:
            raise RuntimeError(f"libmtmd failed to encode a picture with code {code}")
        if self._tap.refused:
            raise CannotConform(self._tap.refused)
        found = mtmd_cpp.mtmd_get_output_embd(self._mtmd)
        return np.ctypeslib.as_array(found, shape=(count, self.width)).copy()

    def _prefill(
        self, chunks: Parts, pictures: Sequence[npt.NDArray[np.float32]]
    ) -> tuple[npt.NDArray[np.float32], int]:
        """(logits [1, vocabulary] of the token after the prompt, the position of that token)."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        past, picture = 0, 0
        logits = np.empty((0, self.n_vocab), np.float32)
        for number, (text, chunk) in enumerate(chunks):
            if text is not None:
                last = [len(text) - 1] if number == len(chunks) - 1 else []
                logits = self._decode(text, past, last)
                past += len(text)
                continue
            new = llama_cpp.llama_pos(0)
            data = pictures[picture].ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            code = mtmd_cpp.mtmd_helper_decode_image_chunk(
                self._mtmd, self._context, chunk, data, past, 0, self.n_batch, ctypes.byref(new),
                mtmd_cpp.mtmd_helper_post_decode_callback(), None,
            )  # fmt: skip
            if code != 0:
                raise RuntimeError(f"libmtmd failed to decode a picture with code {code}")
            picture += 1
            past = new.value
        return logits, past

    def _decode(self, ids: Sequence[int], past: int, wanted: Sequence[int] | range) -> npt.NDArray[np.float32]:
        """Append ``ids``; copies of the logits at the ``wanted`` places of them, [wanted, vocabulary]."""
        logits = np.empty((len(wanted), self.n_vocab), np.float32)
        batch = self._batch
        for begin in range(0, len(ids), self.n_batch):
            part = ids[begin : begin + self.n_batch]
            count = len(part)
            batch.tokens[:count] = part
            batch.positions[:count] = np.arange(past + begin, past + begin + count)
            batch.sequences[:count] = 0
            here = [(row, place - begin) for row, place in enumerate(wanted) if begin <= place < begin + count]
            batch.wanted[:count] = 0
            for _, place in here:
                batch.wanted[place] = 1
            batch.raw.n_tokens = count
            code = llama_cpp.llama_decode(self._context, batch.raw)
            if code != 0:
                raise RuntimeError(f"llama_decode failed with code {code} at position {past + begin}")
            for row, place in here:
                pointer = llama_cpp.llama_get_logits_ith(self._context, place)
                logits[row] = np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))
        return logits

    def _generate(
        self,
        chunks: Parts,
        pictures: Sequence[npt.NDArray[np.float32]],
        logits: npt.NDArray[np.float32],
        follow: Sequence[int],
        past: int,
        max_new_tokens: int,
    ) -> tuple[list[int], Literal["end", "length"]]:
        """The greedy answer. Where it is the reference's it was walked already, and goes on where the two part."""
        ids: list[int] = []
        for step, row in enumerate(logits):
            token = int(row.argmax())
            if llama_cpp.llama_vocab_is_eog(self.vocab, token):
                return ids, "end"
            ids.append(token)
            if len(ids) >= max_new_tokens:
                return ids, "length"
            if step == len(follow) or token != follow[step]:
                break
        same = len(ids) - 1  # tokens of the cache behind the prompt that are the answer's own
        if same < len(follow):
            memory = llama_cpp.llama_get_memory(self._context)
            # A recurrent state cannot be taken back; then the prompt is decoded again.
            if not llama_cpp.llama_memory_seq_rm(memory, -1, past + same, -1):
                self._prefill(chunks, pictures)
                self._decode(ids[:same], past, [])
        while True:
            token = int(self._decode(ids[-1:], past + len(ids) - 1, [0])[0].argmax())
            if llama_cpp.llama_vocab_is_eog(self.vocab, token):
                return ids, "end"
            ids.append(token)
            if len(ids) >= max_new_tokens:
                return ids, "length"

    @contextmanager
    def layers(
        self, half: Literal["vision", "language"], take: Callable[[int, npt.NDArray[np.float32]], None]
    ) -> Iterator[None]:
        """Hand on what each layer of a half makes, [rows, width], while the block runs. Raises UserError."""
        if half == "vision":
            self._tap.layers = LayerTap("layer_out-", take)
            try:
                yield
            finally:
                self._tap.layers = None
            return
        tap, before = LayerTap("l_out-", take), self._context
        self._parameters.cb_eval = tap.callback
        with LlamaLog() as log:
            self._context = llama_cpp.llama_init_from_model(self._model, self._parameters)
        try:
            if not self._context:
                raise UserError(f"llama.cpp refuses a second context for {self._path}: {log.error()}")
            yield
            llama_cpp.llama_free(self._context)
        finally:
            self._context = before

    @contextmanager
    def limited(self, least: int, most: int) -> Iterator[None]:
        """Let a picture take between ``least`` and ``most`` tokens while the block runs. Raises UserError."""
        before = self._mtmd, self._span
        with LlamaLog() as log:
            self._mtmd = self._open_mmproj(least, most)
        if not self._mtmd:
            self._mtmd, self._span = before
            raise UserError(f"libmtmd refuses {least} to {most} tokens for a picture: {log.error()}")
        try:
            yield
        finally:
            mtmd_cpp.mtmd_free(self._mtmd)
            self._mtmd, self._span = before

    def reopened(self) -> AbstractContextManager[None]:
        """Have the vision half opened anew, in other memory, while the block runs. Raises UserError."""
        return self.limited(*self._span)

    def text(self, ids: Sequence[int]) -> str:
        """What llama.cpp makes of generated ids."""
        return detokenize(self.vocab, ids)

    def shown(self, ids: Sequence[int]) -> str:
        """The same, with what stands for special tokens."""
        return detokenize(self.vocab, ids, special=True)
