"""A Hugging Face model under a contract: greedy, in batches. The reference side, and what training is judged by.

The model's own forward pass is run on ``input_ids`` and ``pixel_values``; only the loop around it is ours, because the
first step's logits, the labels' probabilities and the timings are wanted beside the text.
"""

import copy
import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.core.files import sha256_bytes
from pipeline.models.prediction import Prediction, Taps, log_softmax, top_logits
from pipeline.models.smolvlm.encoding import Encoder, fed_bytes

BATCH_SIZE = 16
LARGE_BATCH_SIZE = 4
"""For models of SmolVLM's own sizes, so that progress is seen: on 2 cores an image takes seconds."""
LARGE_HIDDEN = 512


def encode(model: Any, pixels: torch.Tensor, encoder: Encoder) -> torch.Tensor:
    """What the vision half makes of ``pixels`` [batch, tiles, 3, tile, tile]: [batch, tiles * tokens, hidden].

    Under the 1x1 plan tile and overview are the same picture, so it is encoded once and put into both slots, which
    halves the vision work.
    """
    same = encoder.contract.tiling.plan == "grid" and encoder.contract.tiling.grid == 1
    if same:
        pixels = pixels[:, :1]
    features = torch.stack(list(model.get_image_features(pixel_values=pixels).pooler_output))
    features = features.reshape(len(pixels), -1, features.shape[-1])
    if same:
        features = torch.cat([features, features], dim=1)
    return features


def embed(model: Any, ids: torch.Tensor, features: torch.Tensor, encoder: Encoder) -> torch.Tensor:
    """Embeddings of ``ids`` [batch, length], the pictures' slots filled with ``features``: [batch, length, hidden]."""
    embeddings = model.get_input_embeddings()(ids)
    mask = (ids == encoder.geometry.image_token_id).unsqueeze(-1)
    return embeddings.masked_scatter(mask, features.to(embeddings.dtype))


class HfPredictor:
    """Runs a model (on whatever device it is) under a contract's encoding."""

    side = "hf"

    def __init__(self, model: Any, tokenizer: Any, encoder: Encoder, batch_size: int | None = None) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._encoder = encoder
        large = model.config.text_config.hidden_size >= LARGE_HIDDEN
        self.batch_size = batch_size or (LARGE_BATCH_SIZE if large else BATCH_SIZE)
        picture = encoder.geometry.image_token_id
        self.prompt_ids = [-1 if token == picture else token for token in encoder.prompt_ids]
        self.image_slots = encoder.image_slots

    def predict(self, canvases: Iterable[npt.NDArray[np.uint8]]) -> Iterator[Prediction]:
        """See :class:`parity.engines.Predictor`."""
        return (prediction for prediction, _ in self.observe(canvases))

    def observe(self, canvases: Iterable[npt.NDArray[np.uint8]]) -> Iterator[tuple[Prediction, Taps]]:
        """See :class:`parity.engines.Observer`."""
        fed = (fed_bytes(canvas, self._encoder.contract) for canvas in canvases)
        while batch := list(itertools.islice(fed, self.batch_size)):
            # Always as many rows: the last bits of a product depend on their number (1e-5 nats), and an answer must not
            # depend on how many images happened to be left. In a full batch they do not depend on the neighbours.
            padding = [batch[-1]] * (self.batch_size - len(batch))
            yield from self._answer_batch(batch + padding)[: len(batch)]

    @torch.inference_mode()
    def _answer_batch(self, fed: list[npt.NDArray[np.uint8]]) -> list[tuple[Prediction, Taps]]:
        encoder, device, n = self._encoder, self._model.device, len(fed)
        start = time.perf_counter()
        pixels = np.stack([encoder.pixel_values(canvas) for canvas in fed])
        ids = torch.tensor([encoder.prompt_ids] * n).to(device)
        features = encode(self._model, torch.from_numpy(pixels).to(device), encoder)
        embeddings = embed(self._model, ids, features, encoder)
        encoded = time.perf_counter()
        output = self._model(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1)
        first = output.logits[:, -1].float().cpu().numpy()
        prefill = time.perf_counter()
        log_probs = log_softmax(first)
        label_logprobs = self._label_logprobs(log_probs, output.past_key_values)
        generated = self._generate(first, output.past_key_values)
        end = time.perf_counter()
        ms = {
            "encode": (encoded - start) * 1e3 / n,
            "prefill": (prefill - encoded) * 1e3 / n,
            "generate": (end - prefill) * 1e3 / n,
        }
        pictures = features.float().cpu().numpy().reshape(n, pixels.shape[1], -1, features.shape[-1])
        return [
            (
                Prediction(
                    rgb_sha256=sha256_bytes(canvas.tobytes()),
                    text=self._tokenizer.decode(tokens, skip_special_tokens=True),
                    generated_ids=tuple(tokens),
                    stop_reason=reason,
                    label_logprobs={label: float(values[index]) for label, values in label_logprobs.items()},
                    top_logits=top_logits(first[index]),
                    ms=ms,
                ),
                Taps(
                    tiles=pixels[index],
                    mean=encoder.geometry.image_mean,
                    std=encoder.geometry.image_std,
                    prompt_ids=self.prompt_ids,
                    embeddings=pictures[index],
                    log_probs=log_probs[index],
                ),
            )
            for index, (canvas, (tokens, reason)) in enumerate(zip(fed, generated, strict=True))
        ]

    def _label_logprobs(self, first: npt.NDArray[np.float64], cache: Any) -> dict[str, npt.NDArray[np.float64]]:
        """Label -> [batch] sums of log-probabilities over its answer tokens."""
        result = {}
        for label, ids in self._encoder.answer_ids.items():
            total = first[:, ids[0]]
            if len(ids) > 1:
                tokens = torch.tensor([ids[:-1]] * len(first), device=self._model.device)
                logits = self._model(input_ids=tokens, past_key_values=copy.deepcopy(cache), use_cache=True).logits
                steps = log_softmax(logits.float().cpu().numpy())
                total = total + sum(steps[:, index, token] for index, token in enumerate(ids[1:]))
            result[label] = total
        return result

    def _generate(self, first: npt.NDArray[np.float32], cache: Any) -> list[tuple[list[int], str]]:
        """Greedy continuations; finished rows are fed their last token again and its result is dropped."""
        stop, limit = self._encoder.stop_ids, self._encoder.contract.max_new_tokens
        rows: list[list[int]] = [[] for _ in first]
        done = [False] * len(rows)
        step = first.argmax(axis=-1)
        while True:
            for index, token in enumerate(step):
                if not done[index]:
                    done[index] = int(token) in stop
                    if not done[index]:
                        rows[index].append(int(token))
            if all(done) or max(len(row) for row in rows) >= limit:
                return [(row, "end" if ended else "length") for row, ended in zip(rows, done, strict=True)]
            tokens = torch.tensor(step, device=self._model.device)[:, None]
            logits = self._model(input_ids=tokens, past_key_values=cache, use_cache=True).logits
            step = logits[:, -1].float().cpu().numpy().argmax(axis=-1)
