"""Any family's model under Hugging Face, one picture at a time: its own processor, its own ``generate``.

Hooks show what the language half is given. Nothing here knows a family. SmolVLM under an app's contract has a path of
its own (:mod:`pipeline.models.smolvlm.inference`), which is quicker.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import LogitsProcessor, LogitsProcessorList

from parity.engines.pixels import pixels_of
from parity.engines.trace import Answer, Trace, layout_of
from pipeline.core.errors import UserError
from pipeline.models.prediction import log_softmax


class AutoSide:
    """A processor and a model. The model\'s own generation settings give way to greedy decoding."""

    side = "hf"

    def __init__(self, processor: Any, model: Any) -> None:
        self._processor, self.model = processor, model
        self.tokenizer = processor.tokenizer
        self.chosen: list[int] = []
        """What the last answer chose, its end token included."""
        self.end_ids = _end_ids(model, self.tokenizer)
        from transformers import GenerationConfig

        # What generate() is not told it takes from here: a repetition penalty, sampling, beams.
        model.generation_config = GenerationConfig(eos_token_id=sorted(self.end_ids), pad_token_id=min(self.end_ids))

    def encode(self, rgb: npt.NDArray[np.uint8], prompt: str) -> Any:
        """The processor's output for a picture [height, width, 3] and a prompt with the processor's words for it.

        Raises UserError where the processor refuses the picture.
        """
        begin = self.tokenizer.bos_token
        # As apply_chat_template() does: a template that writes the token itself must not get a second one.
        special = not (begin and prompt.startswith(begin))
        try:
            return self._processor(
                text=[prompt], images=[Image.fromarray(rgb)], return_tensors="pt", add_special_tokens=special
            )
        except Exception as error:  # whatever a family's own code makes of an odd picture
            height, width, _ = rgb.shape
            raise UserError(
                f"the processor cannot prepare a picture of {width}x{height}: {type(error).__name__}: {error}"
            ) from None

    @torch.inference_mode()
    def answer(
        self, rgb: npt.NDArray[np.uint8], prompt: str, max_new_tokens: int, follow: Sequence[int] | None = None
    ) -> tuple[Answer, Trace]:
        """Answer greedily; ``log_probs`` has a row for each token that was chosen, the end token included.

        ``follow``: tokens to choose whatever is likeliest, so that two runs of a model can be compared step by step.
        """
        start = time.perf_counter()
        inputs = self.encode(rgb, prompt)
        pixels = pixels_of(inputs, self._processor.image_processor)
        prepared = time.perf_counter()
        moved = inputs.to(self.model.device, dtype=self.model.dtype)
        forced = LogitsProcessorList([_Follow(follow, inputs["input_ids"].shape[1])] if follow is not None else [])
        with _watched(self.model) as seen:
            output = self.model.generate(
                **moved, max_new_tokens=max_new_tokens if follow is None else len(follow), do_sample=False,
                logits_processor=forced, return_dict_in_generate=True,
                output_logits=True,
            )  # fmt: skip
        end = time.perf_counter()
        ids = inputs["input_ids"][0].tolist()
        chosen = output.sequences[0, len(ids) :].tolist()
        ended = bool(chosen) and chosen[-1] in self.end_ids and (follow is None or follow[-1] in self.end_ids)
        answer = chosen[:-1] if ended else chosen
        logits = torch.cat(output.logits).float().cpu().numpy()
        embeddings, positions = self._inputs(moved["input_ids"], seen)
        text = self.model.get_input_embeddings()(moved["input_ids"])[0].float().cpu().numpy()
        pictures = (embeddings[:, : text.shape[1]] != text).any(axis=1)
        trace = Trace(
            layout=layout_of([-1 if picture else token for token, picture in zip(ids, pictures, strict=True)]),
            positions=positions,
            pixels=pixels,
            inputs=embeddings,
            log_probs=log_softmax(logits).astype(np.float32),
        )
        ms = {"prepare": (prepared - start) * 1e3, "generate": (end - prepared) * 1e3}
        self.chosen = chosen
        said = self.tokenizer.decode(answer, skip_special_tokens=True)
        return Answer(tuple(answer), said, "end" if ended else "length", ms), trace

    def _inputs(self, ids: torch.Tensor, seen: dict[str, Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """(embeddings [length, width] with deepstack's appended, positions [1 or 3, length]) of the prompt."""
        length = ids.shape[1]
        embeddings = seen["inputs_embeds"][0].float().cpu().numpy()
        positions = seen.get("position_ids")
        if positions is None:
            places = np.arange(length, dtype=np.int32)[None]
        else:
            places = positions.reshape(-1, length)[-3:].cpu().numpy().astype(np.int32)
            if positions.ndim == 2:
                places = places[:1]
        deeper = seen.get("deepstack_visual_embeds")
        if deeper:
            mask = seen["visual_pos_masks"][0].cpu().numpy()
            layers = []
            for layer in deeper:
                rows = np.zeros_like(embeddings)
                rows[mask] = layer.float().cpu().numpy()
                layers.append(rows)
            embeddings = np.concatenate([embeddings, *layers], axis=1)
        return embeddings, places


class _Follow(LogitsProcessor):
    """Leaves one token at each step; ``generate`` keeps the logits as they were."""

    def __init__(self, ids: Sequence[int], begin: int) -> None:
        self._ids, self._begin = ids, begin

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        only = torch.full_like(scores, -float("inf"))
        only[:, self._ids[input_ids.shape[1] - self._begin]] = 0.0
        return only


@contextmanager
def layer_outputs(model: Any) -> Iterator[tuple[list[list[Any]], list[list[Any]]]]:
    """(vision, language): what each layer makes while the block runs, a list of [rows, width] a layer, call by call.

    The vision tower is whatever list of modules is longest outside the decoder.
    """
    decoder = model.get_decoder()
    inside = {id(module) for module in decoder.modules()}
    towers = [
        module for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and id(module) not in inside and len(module)
    ]  # fmt: skip
    tower = max(towers, key=len, default=torch.nn.ModuleList())
    language = next((m for m in decoder.modules() if isinstance(m, torch.nn.ModuleList)), torch.nn.ModuleList())
    seen: tuple[list[list[Any]], list[list[Any]]] = ([[] for _ in tower], [[] for _ in language])
    handles = []

    def keep(into: list[Any]) -> Any:
        def note(_: Any, __: Any, output: Any) -> None:
            found = output[0] if isinstance(output, tuple) else output
            into.append(found.detach().float().cpu().numpy().reshape(-1, found.shape[-1]))

        return note

    for layers, kept in zip((tower, language), seen, strict=True):
        for layer, into in zip(layers, kept, strict=True):
            handles.append(layer.register_forward_hook(keep(into)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """The ids at which Hugging Face ends an answer."""
    for holder in (model.generation_config, model.config, getattr(model.config, "text_config", None), tokenizer):
        found = getattr(holder, "eos_token_id", None)
        if found is not None:
            return frozenset(found if isinstance(found, list) else [found])
    raise UserError("the model has no end token: neither generation_config.json, config.json nor the tokenizer has one")


@contextmanager
def _watched(model: Any) -> Iterator[dict[str, Any]]:
    """What the decoder is given at its first call."""
    seen: dict[str, Any] = {}

    def note(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if not seen:
            seen.update(kwargs)

    handle = model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
