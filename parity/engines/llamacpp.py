"""The phone's side on the host: llama.cpp in process, through llama-cpp-python's bindings of libllama and libmtmd.

The model is loaded once; pictures go in from memory; the prompt is cut into chunks by ``mtmd_tokenize`` itself. What is
computed for a picture is what the app's ``mtmd_helper_eval_chunks`` computes, to the last bit (the tests compare), with
two savings: pictures whose tiles are equal are encoded once, and several images are decoded together, each in a
sequence of its own.
"""

import ctypes
import itertools
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import mtmd_cpp

from parity.engines.decoding import Decoder
from parity.engines.libmtmd import GGML_TYPE, Chunks, Tap, decode_file, free, normalization_of
from pipeline.contract import Contract
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes
from pipeline.core.toolchain import LlamaLog
from pipeline.models.prediction import Prediction, Taps, log_softmax, top_logits
from pipeline.models.smolvlm.encoding import Encoder, fed_bytes

# enum ggml_type in ggml.h

SEQUENCES = 8
"""Images decoded together. Measured with the tiny model on 2 cores: prompt 2.06 ms an image alone and at 4, 1.36 at 8,
1.39 at 16. A large model's time is its arithmetic, which is the same in any number."""
STEP_SECONDS = 1.0
"""A step of several images should not take longer than this, so that progress is seen and little is lost."""


class LlamaCppPredictor:
    """Runs a GGUF pair under a contract's runtime profile. Use as a context manager: it holds native memory.

    ``threads``: by default the contract's, on this machine. ``tapped`` reads the encoder's own input for
    :meth:`observe`. ``sequences``: images decoded together; by default
    SEQUENCES where that changes no bit, else 1. Raises UserError where a file cannot be loaded or the runtime profile
    is refused, with llama.cpp's own reason.
    """

    side = "llamacpp"

    def __init__(
        self,
        model: Path,
        mmproj: Path,
        encoder: Encoder,
        threads: int | None = None,
        sequences: int | None = None,
        tapped: bool = False,
    ) -> None:
        self._contract: Contract = encoder.contract
        runtime = self._contract.runtime
        self._n_batch = min(runtime.n_batch, runtime.n_ctx)
        self._sequences = sequences
        self.n_threads = threads or runtime.threads(os.cpu_count() or 1)
        self._model: Any = None
        self._context: Any = None
        self._mtmd: Any = None
        self._tap = Tap() if tapped else None
        llama_cpp.llama_backend_init()
        try:
            with LlamaLog() as log:
                self._load(model, mmproj, log)
            self.decoder = Decoder(
                self._model, self._context, self._n_batch, encoder.answer_ids, self._contract.max_new_tokens
            )
            self.mean, self.std = normalization_of(mmproj) if tapped else ((), ())
            size = self._contract.image.size
            # Noise: a tile and an overview of it that are equal can only be the same picture.
            noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
            self.parts: list[list[int] | int] = []
            self._same_tiles = False
            with self.tokenize(noise) as chunks:
                self.parts = chunks.parts
                first, *others = [self._encode(picture) for picture in chunks.pictures]
            self._same_tiles = all(np.array_equal(first, other) for other in others)
        except BaseException:
            self.close()
            raise
        self.prompt_ids, self.image_slots = _layout(self.parts)

    def _load(self, model: Path, mmproj: Path, log: LlamaLog) -> None:
        runtime = self._contract.runtime
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(model), parameters)
        if not self._model:
            raise UserError(f"llama.cpp cannot load {model}: {log.error()}")
        # llama.cpp wants room in a batch for a token of each sequence.
        self.batch_size = min(self._sequences or _sequences(self._model), self._n_batch)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = runtime.n_ctx * self.batch_size
        context.n_seq_max = self.batch_size
        context.kv_unified = False  # each sequence has the window that it has on the phone
        context.n_batch = context.n_ubatch = self._n_batch
        context.n_threads = context.n_threads_batch = self.n_threads
        context.type_k = GGML_TYPE[runtime.type_k]
        context.type_v = GGML_TYPE[runtime.type_v]
        context.flash_attn_type = int(runtime.flash_attn)  # LLAMA_FLASH_ATTN_TYPE_DISABLED 0, _ENABLED 1
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        if not self._context:
            raise UserError(f"llama.cpp refuses the contract's runtime profile for {model}: {log.error()}")
        settings = mtmd_cpp.mtmd_context_params_default()
        settings.use_gpu = False
        settings.print_timings = False
        settings.n_threads = self.n_threads
        settings.media_marker = self._contract.media_marker.encode()
        if self._tap:
            settings.cb_eval = self._tap.callback
        self._mtmd = mtmd_cpp.mtmd_init_from_file(os.fsencode(mmproj), self._model, settings)
        if not self._mtmd:
            raise UserError(f"llama.cpp cannot load {mmproj} for {model.name}: {log.error()}")
        if mtmd_cpp.mtmd_decode_use_mrope(self._mtmd) or mtmd_cpp.mtmd_decode_use_non_causal(self._mtmd, None):
            raise UserError(f"{mmproj} wants M-RoPE or a non-causal mask, which this predictor does not do")

    def __enter__(self) -> "LlamaCppPredictor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the native memory; the predictor is of no use afterwards."""
        free(self._mtmd, self._context, self._model)
        self._mtmd = self._context = self._model = None

    def predict(self, canvases: Iterable[npt.NDArray[np.uint8]]) -> Iterator[Prediction]:
        """See :class:`parity.engines.Predictor`."""
        return (prediction for prediction, _ in self._answer(canvases, None))

    def observe(
        self,
        canvases: Iterable[npt.NDArray[np.uint8]],
        tiles: Iterable[npt.NDArray[np.float32] | None] | None = None,
        embeddings: Iterable[npt.NDArray[np.float32] | None] | None = None,
    ) -> Iterator[tuple[Prediction, Taps]]:
        """See :class:`parity.engines.Observer`; needs ``tapped``.

        For each canvas, ``tiles`` (float32 [n, 3, tile, tile]) are encoded in place of libmtmd's own, and
        ``embeddings`` (float32 [n, tokens, hidden]) are decoded in place of the encoder's; None leaves its own.
        """
        if not self._tap:
            raise ValueError("observe() needs a predictor made with tapped=True")
        return self._answer(canvases, _Given(iter(tiles) if tiles else None, iter(embeddings) if embeddings else None))

    def decoded(self, path: Path) -> npt.NDArray[np.uint8]:
        """An image file as libmtmd itself decodes it, RGB [height, width, 3]. Raises UserError."""
        return decode_file(self._mtmd, path)

    def tokenize(self, canvas: npt.NDArray[np.uint8]) -> Chunks:
        """libmtmd's own chunks of prompt and picture, for a canvas uint8 [size, size, 3] as it is handed over."""
        return Chunks(self._mtmd, canvas, self._contract.prompt, self._contract.add_bos)

    def _answer(
        self, canvases: Iterable[npt.NDArray[np.uint8]], given: "_Given | None"
    ) -> Iterator[tuple[Prediction, Taps]]:
        waiting, count = iter(canvases), 1
        while batch := list(itertools.islice(waiting, count)):
            start = time.perf_counter()
            answered = self._answer_batch(batch, given)
            seconds = (time.perf_counter() - start) / len(batch)
            yield from answered
            count = min(self.batch_size, max(1, int(STEP_SECONDS / seconds)))

    def _answer_batch(
        self, canvases: list[npt.NDArray[np.uint8]], given: "_Given | None"
    ) -> list[tuple[Prediction, Taps]]:
        n = len(canvases)
        fed = [fed_bytes(canvas, self._contract) for canvas in canvases]
        pictures, tiles, encode_ms = [], [], []
        for canvas in fed:
            start = time.perf_counter()
            embeddings, seen = self._encode_canvas(canvas, given)
            pictures.append(embeddings)
            tiles.append(seen)
            encode_ms.append((time.perf_counter() - start) * 1e3)
        start = time.perf_counter()
        first, length = self.decoder.prefill(self.parts, np.stack(pictures))
        prefill = time.perf_counter()
        log_probs = log_softmax(first)
        labels = self.decoder.label_logprobs(log_probs, length)
        generated = self.decoder.generate(first, length)
        end = time.perf_counter()
        shared = {"prefill": (prefill - start) * 1e3 / n, "generate": (end - prefill) * 1e3 / n}
        return [
            (
                Prediction(
                    rgb_sha256=sha256_bytes(fed[i].tobytes()),
                    text=self.decoder.text(ids),
                    generated_ids=tuple(ids),
                    stop_reason=reason,
                    label_logprobs={label: float(values[i]) for label, values in labels.items()},
                    top_logits=top_logits(first[i]),
                    ms={"encode": encode_ms[i], **shared},
                ),
                Taps(
                    tiles=tiles[i], mean=self.mean, std=self.std, prompt_ids=self.prompt_ids,
                    embeddings=pictures[i], log_probs=log_probs[i],
                ),
            )
            for i, (ids, reason) in enumerate(generated)
        ]  # fmt: skip

    def _encode_canvas(
        self, fed: npt.NDArray[np.uint8], given: "_Given | None"
    ) -> tuple[npt.NDArray[np.float32], tuple[npt.NDArray[np.float32], ...]]:
        """(embeddings [n, tokens, hidden], the tiles as the encoder got them where tapped) of a canvas."""
        replacements = next(given.tiles) if given and given.tiles else None
        embeddings: list[npt.NDArray[np.float32]] = []
        seen: list[npt.NDArray[np.float32]] = []
        with self.tokenize(fed) as chunks:
            if chunks.parts != self.parts:
                raise RuntimeError("libmtmd lays the prompt out otherwise for this picture than for the first")
            for number, picture in enumerate(chunks.pictures):
                if self._same_tiles and replacements is None and number:
                    embeddings.append(embeddings[0])
                    seen += seen[:1]
                    continue
                embeddings.append(self._encode(picture, None if replacements is None else replacements[number]))
                if self._tap:
                    seen += self._tap.tiles
        made = np.stack(embeddings)
        injected = next(given.embeddings) if given and given.embeddings else None
        return (made if injected is None else injected), tuple(seen)

    def _encode(self, picture: Any, replacement: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
        """A copy of a picture chunk's embeddings, [tokens, hidden]."""
        if self._tap:
            self._tap.arm(None if replacement is None else [replacement])
        code = mtmd_cpp.mtmd_encode_chunk(self._mtmd, picture)
        if code != 0:
            raise RuntimeError(f"libmtmd failed to encode a picture with code {code}")
        if self._tap and self._tap.refused:
            raise ValueError(self._tap.refused)
        shape = (mtmd_cpp.mtmd_input_chunk_get_n_tokens(picture), self.decoder.width)
        return np.ctypeslib.as_array(mtmd_cpp.mtmd_get_output_embd(self._mtmd), shape=shape).copy()


class _Given:
    """What :meth:`LlamaCppPredictor.observe` puts in place of llama.cpp's own, canvas by canvas."""

    def __init__(
        self,
        tiles: Iterator[npt.NDArray[np.float32] | None] | None,
        embeddings: Iterator[npt.NDArray[np.float32] | None] | None,
    ) -> None:
        self.tiles, self.embeddings = tiles, embeddings


def _sequences(model: Any) -> int:
    """How many images to decode together.

    Quantized matrices are multiplied row by row with integers, and every number of rows gives the same bits (measured
    on Q8_0, Q6_K, Q5_K_M, Q4_K_M and Q4_0, each with three kinds of KV cache, 32 images: not one bit differs). Floats
    are summed in an order that depends on it: 5e-6 nats.
    """
    value = ctypes.create_string_buffer(8)
    llama_cpp.llama_model_meta_val_str(model, b"general.file_type", value, len(value))
    return 1 if value.value in (b"0", b"1", b"32") else SEQUENCES  # F32, F16, BF16 of enum llama_ftype


def _layout(parts: list[list[int] | int]) -> tuple[list[int], list[tuple[int, int]]]:
    """(prompt ids with -1 at a picture's positions, (start, length) of each picture)."""
    ids: list[int] = []
    slots: list[tuple[int, int]] = []
    for part in parts:
        if isinstance(part, int):
            slots.append((len(ids), part))
            ids += [-1] * part
        else:
            ids += part
    return ids, slots
