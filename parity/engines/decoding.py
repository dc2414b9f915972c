"""Decoding under llama.cpp: prompts of text and pictures, the labels' probabilities, greedy answers, several images at
once, each in a sequence of its own."""

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from parity.engines.libmtmd import Batch
from pipeline.models.prediction import log_softmax


class Decoder:
    """A llama context that is used for one batch of images after another.

    ``answers``: label -> ids of its answer text. The context stays its owner's, who frees it.
    """

    def __init__(
        self, model: Any, context: Any, n_batch: int, answers: Mapping[str, Sequence[int]], max_new_tokens: int
    ) -> None:
        self._context, self._n_batch = context, n_batch
        self._answers, self._max_new_tokens = answers, max_new_tokens
        self.vocab = llama_cpp.llama_model_get_vocab(model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.width = llama_cpp.llama_model_n_embd(model)
        self._tokens, self._embeddings = Batch(n_batch), Batch(n_batch, self.width)

    def prefill(
        self, parts: Sequence[list[int] | int], pictures: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], int]:
        """Decode the prompt of n images, pictures [n, pictures, tokens, hidden]: (last logits [n, vocabulary], length).

        Chunk by chunk, as mtmd_helper_eval_chunks does.
        """
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        n, position, picture = len(pictures), 0, 0
        logits = np.empty((n, 0, self.n_vocab), np.float32)
        everyone = np.arange(n)
        for number, part in enumerate(parts):
            if isinstance(part, int):
                self._decode(everyone, pictures[:, picture], position, [])
                picture += 1
                position += part
            else:
                last = [len(part) - 1] if number == len(parts) - 1 else []
                logits = self._decode(everyone, np.tile(np.array(part, np.int32), (n, 1)), position, last)
                position += len(part)
        return logits[:, 0], position

    def _decode(
        self, sequences: npt.NDArray[Any], inputs: npt.NDArray[Any], position: int, wanted: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """Append token ids [n, length] or embeddings [n, length, hidden] to n sequences, each at ``position``.

        Returns copies of the logits at the ``wanted`` places of ``inputs``, [n, wanted, vocabulary].
        """
        n, length = inputs.shape[:2]
        batch = self._tokens if inputs.ndim == 2 else self._embeddings
        logits = np.empty((n, len(wanted), self.n_vocab), np.float32)
        together = max(1, self._n_batch // length)
        for row in range(0, n, together):
            for begin in range(0, length, self._n_batch):
                part = inputs[row : row + together, begin : begin + self._n_batch]
                rows, size = part.shape[:2]
                count = rows * size
                if inputs.ndim == 2:
                    batch.tokens[:count] = part.reshape(-1)
                else:
                    batch.embeddings[:count] = part.reshape(count, -1)
                batch.positions[:count] = np.tile(np.arange(position + begin, position + begin + size), rows)
                batch.sequences[:count] = np.repeat(sequences[row : row + rows], size)
                here = [(index, place - begin) for index, place in enumerate(wanted) if begin <= place < begin + size]
                batch.wanted[:count] = 0
                for _, place in here:
                    batch.wanted[place:count:size] = 1
                batch.raw.n_tokens = count
                code = llama_cpp.llama_decode(self._context, batch.raw)
                if code != 0:
                    raise RuntimeError(f"llama_decode failed with code {code} at position {position + begin}")
                for offset in range(rows):
                    for index, place in here:
                        pointer = llama_cpp.llama_get_logits_ith(self._context, offset * size + place)
                        logits[row + offset, index] = np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))
        return logits

    def label_logprobs(self, start: npt.NDArray[np.float64], past: int) -> dict[str, npt.NDArray[np.float64]]:
        """Label -> [n] sums over its answer tokens; the cache is left as it was after the prompt."""
        memory = llama_cpp.llama_get_memory(self._context)
        everyone = np.arange(len(start))
        result = {}
        for label, ids in self._answers.items():
            total = start[:, ids[0]].copy()
            if len(ids) > 1:
                tokens = np.tile(np.array(ids[:-1], np.int32), (len(start), 1))
                steps = self._decode(everyone, tokens, past, range(len(ids) - 1))
                for step, token in enumerate(ids[1:]):
                    total += log_softmax(steps[:, step])[:, token]
                llama_cpp.llama_memory_seq_rm(memory, -1, past, -1)
            result[label] = total
        return result

    def generate(self, first: npt.NDArray[np.float32], past: int) -> list[tuple[list[int], str]]:
        """Greedy continuations: for each image (ids without the end token, stop reason)."""
        rows: list[list[int]] = [[] for _ in first]
        reasons = ["length"] * len(rows)
        active, logits = np.arange(len(rows)), first
        while True:
            going = []
            for place, (index, token) in enumerate(zip(active, logits.argmax(axis=-1).tolist(), strict=True)):
                if llama_cpp.llama_vocab_is_eog(self.vocab, token):
                    reasons[index] = "end"
                else:
                    rows[index].append(token)
                    going.append(place)
            active = active[going]
            if not len(active) or len(rows[active[0]]) >= self._max_new_tokens:
                return list(zip(rows, reasons, strict=True))
            tokens = np.array([[rows[index][-1]] for index in active], np.int32)
            logits = self._decode(active, tokens, past, [0])[:, 0]
            past += 1

    def text(self, ids: Sequence[int]) -> str:
        """What llama.cpp makes of generated ids."""
        return detokenize(self.vocab, ids)


def detokenize(vocab: Any, ids: Sequence[int], special: bool = False) -> str:
    """The text of token ids; ``special``: with what stands for special tokens. ``vocab``: ``llama_vocab *``."""
    if not ids:
        return ""
    tokens = (llama_cpp.llama_token * len(ids))(*ids)
    size = 64 * len(ids)
    while True:
        buffer = ctypes.create_string_buffer(size)
        count = llama_cpp.llama_detokenize(vocab, tokens, len(ids), buffer, size, False, special)
        if count >= 0:
            return buffer.raw[:count].decode(errors="replace")
        size = -count
