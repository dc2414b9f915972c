"""Both sides of any pair, loaded when they are asked for."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch

from parity.compare.photos import Photo
from parity.engines.auto import AutoSide
from parity.engines.chat import picture_text, render_hf, render_llamacpp
from parity.engines.hf import backends
from parity.engines.mtmd import Mtmd, try_pair
from parity.engines.pair import half_sha256, tensor_types, weights_of
from parity.engines.probe import probe
from parity.engines.trace import Answer, Trace
from parity.pairs.cost import announce, measure_machine, parameters
from parity.results import Header, Row
from parity.terms import MARKER, CheckTerms
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_file
from pipeline.core.progress import Reporter
from pipeline.core.provenance import digest, machine, versions
from pipeline.models.auto import attention_of, image_backend, load_model, load_processor

LOW_MEMORY_BATCH = 16
"""Pictures that one side answers before the other is loaded, where one model at a time is in memory."""


@dataclass(frozen=True)
class AnyPair:
    """What is compared."""

    model: str
    """A folder, or an id on the hub."""
    text: Path
    mmproj: Path
    adapter: Path | None = None


@dataclass(frozen=True)
class HfAnswer:
    """What Hugging Face made of a picture."""

    answer: Answer
    trace: Trace
    chosen: tuple[int, ...]
    """The tokens that it chose, its end token included."""


@dataclass
class Opened:
    """Both sides of a pair for a set of pictures. Use as a context manager: it holds native memory."""

    pair: AnyPair
    photos: Sequence[Photo]
    """All of the run: the context has room for the longest prompt among them."""
    terms: CheckTerms
    reporter: Reporter
    gpu: bool = False
    low_memory: bool = False
    """One model at a time."""
    n_ctx: int = 0
    _reference: AutoSide | None = None
    _candidate: Mtmd | None = None
    _processor: Any = None
    _probed: bool = False
    _announced: bool = False
    _ours: dict[str, str] = field(default_factory=dict)
    _theirs: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self._drop_candidate()
        self._drop_reference()

    @property
    def device(self) -> str:
        """Where Hugging Face computes."""
        return "cuda" if self.gpu else "cpu"

    @property
    def together(self) -> int:
        """Pictures that one side answers before the other begins."""
        return LOW_MEMORY_BATCH if self.low_memory else 1

    @property
    def dataset_sha256(self) -> str:
        """Of the pictures and what is known of them."""
        return digest([[photo.key, photo.image_id, photo.truth, photo.question] for photo in self.photos])

    def processor(self) -> Any:
        """The processor."""
        if self._processor is None:
            self._processor = load_processor(self.pair.model)
        return self._processor

    def load(self, dtype: str) -> AutoSide:
        """Hugging Face in a dtype, apart from what is kept here."""
        return AutoSide(self.processor(), load_model(self.pair.model, dtype, self.device, self.pair.adapter))

    def reference(self) -> AutoSide:
        """Hugging Face in float32."""
        if self.low_memory:
            self._drop_candidate()
        if self._reference is None:
            self._check_gpu()
            self._reference = self.load("float32")
        return self._reference

    def candidate(self) -> Mtmd:
        """llama.cpp, with room for the longest prompt."""
        if self.low_memory:
            self._drop_reference()
        if self._candidate is None:
            self._check_gpu()
            if not self._probed:
                self._probe()
            self._candidate = Mtmd(self.pair.text, self.pair.mmproj, self.terms.runtime, self.gpu)
            # One picture of each size and question.
            distinct = {(photo.size, photo.question): photo for photo in self.photos}.values()
            longest = max(self._candidate.count(photo.size, self.asked_llamacpp(photo)) for photo in distinct)
            self.n_ctx = self._candidate.open_context(longest + self.terms.max_new_tokens)
            self._announce(longest)
        return self._candidate

    def _check_gpu(self) -> None:
        if not self.gpu:
            return
        if not llama_cpp.llama_supports_gpu_offload():
            raise UserError(
                'llama.cpp was built for the CPU alone: run make setup SETUP="--backend cuda" (or vulkan), or leave'
                " --gpu out"
            )
        if not torch.cuda.is_available():
            raise UserError(
                "torch finds no GPU: leave --gpu out, or install the CUDA build (make setup SETUP='--torch cuda')"
            )

    def _announce(self, longest: int) -> None:
        """Say once how long it will take. On a GPU the first pictures say it sooner."""
        if self._announced or self.gpu:
            return
        self._announced = True
        weights = parameters(model_folder(self.pair.model))
        line = announce(weights, longest, self.terms.max_new_tokens, len(self.photos), measure_machine())
        if line:
            self.reporter.say("cost", line)

    def _probe(self) -> None:
        sizes = sorted({photo.size for photo in self.photos}, key=lambda size: size[0] * size[1])
        self.reporter.say("llama.cpp", "trying the pair in a process of its own")
        some = list(dict.fromkeys((sizes[0], sizes[-1])))
        probe(self.pair.text, self.pair.mmproj, try_pair, (self.terms.runtime, some))
        self._probed = True

    def _drop_reference(self) -> None:
        if self._reference is not None:
            self._reference = None
            gc.collect()
            if self.gpu:
                torch.cuda.empty_cache()

    def _drop_candidate(self) -> None:
        if self._candidate is not None:
            self._candidate.close()
            self._candidate = None

    def asked_hf(self, photo: Photo) -> str:
        """A picture's prompt as Hugging Face writes it, with the processor's words for a picture."""
        question = photo.question
        if question not in self._ours:
            raw = self.terms.raw
            self._ours[question] = (
                question.replace(MARKER, picture_text(self.processor()))
                if raw
                else render_hf(self.processor(), question)[0]
            )
        return self._ours[question]

    def asked_llamacpp(self, photo: Photo) -> str:
        """A picture's prompt as llama.cpp writes it, with the marker."""
        question = photo.question
        if question not in self._theirs:
            if self.terms.raw:
                self._theirs[question] = question
            else:
                content = question if MARKER in question else MARKER + question
                written = render_llamacpp(self.candidate().handle, content, self.pair.text.name)
                if written.count(MARKER) != 1:
                    raise UserError(
                        f"the chat template of {self.pair.text.name} writes the question {written.count(MARKER)} times:"
                        f" give the whole prompt with --raw, {MARKER} where the picture goes"
                    )
                self._theirs[question] = written
        return self._theirs[question]

    def hf(self, photo: Photo) -> HfAnswer:
        """Hugging Face's answer."""
        side = self.reference()
        answer, trace = side.answer(photo.rgb, self.asked_hf(photo), self.terms.max_new_tokens)
        return HfAnswer(answer, trace, tuple(side.chosen))

    def llamacpp(self, photo: Photo, reference: HfAnswer) -> tuple[Answer, Trace]:
        """llama.cpp's answer, and its way along the reference's."""
        return self.candidate().answer(
            photo.rgb, self.asked_llamacpp(photo), reference.answer.ids, self.terms.max_new_tokens,
            steps=len(reference.trace.log_probs),
        )  # fmt: skip

    def row(self, photo: Photo, answer: Answer, trace: Trace) -> Row:
        """What is written of an answer."""
        top = np.argsort(-trace.log_probs[0], kind="stable")[:8]
        return Row(
            key=photo.key,
            image_id=photo.image_id,
            rgb_sha256=photo.rgb_sha256,
            truth=photo.truth,
            text=answer.text,
            label=self.terms.parse_answer(answer.text),
            generated_token_ids=answer.ids,
            top_logits=tuple((int(token), float(trace.log_probs[0, token])) for token in top),
            ms=answer.ms,
            stop_reason=answer.stop_reason,
            layout=trace.layout,
            score=self.terms.score(answer.text, photo.truth),
        )

    def hf_header(self, code: str) -> Header:
        """Of Hugging Face's side; ``code``: digest of the code that answers."""
        side, hashes = self.reference(), model_hashes(self.pair.model, self.pair.adapter)
        runtime: dict[str, Any] = {"dtype": "float32", "device": self.device, "n_threads": torch.get_num_threads()}
        runtime |= {"attention": attention_of(side.model), "image_backend": image_backend(self.processor())}
        return self._header(
            "hf", "transformers", code, hashes, digest(hashes), machine() | backends(),
            runtime | {"prompt": self.asked_hf(self.photos[0])},
        )  # fmt: skip

    def llamacpp_header(self, code: str) -> Header:
        """Of llama.cpp's side."""
        side, text, mmproj = self.candidate(), self.pair.text, self.pair.mmproj
        runtime = self.terms.runtime.model_dump(mode="json", exclude={"threads"})
        runtime |= {"n_threads": side.n_threads, "n_ctx": self.n_ctx, "gpu": self.gpu}
        runtime |= {"text_matrices": tensor_types(text), "mmproj_matrices": tensor_types(mmproj)}
        runtime |= {"files": f"{text.name} + {mmproj.name}"}
        device = machine() | {"llama_cpp": _built_for()}
        return self._header(
            "llamacpp", "llama.cpp", code, {"model": half_sha256(text), "mmproj": half_sha256(mmproj)},
            weights_of(text, mmproj), device,
            runtime | {"prompt": self.asked_llamacpp(self.photos[0])}
            | ({} if self.terms.raw else {"question": self.photos[0].question}),
        )  # fmt: skip

    def _header(
        self,
        side: str,
        engine: str,
        code: str,
        model: dict[str, str],
        weights: str | None,
        device: dict[str, str],
        runtime: dict[str, Any],
    ) -> Header:
        return Header(
            side=side,
            engine=engine,
            contract_sha256=self.terms.digest,
            dataset_sha256=self.dataset_sha256,
            model=model,
            weights_sha256=weights,
            versions=versions() | {"code": code},
            device=device,
            runtime=runtime | {"fed": "rgb"},
            prompt_token_ids=(),
            image_slots=(),
        )


def _built_for() -> str:
    """What llama.cpp says of its own build: its backends, and the instruction sets of each."""
    return str(llama_cpp.llama_print_system_info().decode()).strip(" |")


def model_hashes(model: str, adapter: Path | None) -> dict[str, str]:
    """File -> SHA-256 of a model's weights, the adapter's among them. Raises UserError where there are none."""
    folder = model_folder(model)
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    if not files:
        raise UserError(f"{model} has no weights (*.safetensors): give a model's folder, or its id on the hub")
    found = {path.name: sha256_file(path) for path in files}
    if adapter:
        found |= {f"adapter/{path.name}": sha256_file(path) for path in sorted(adapter.glob("*.safetensors"))}
    return found


def model_folder(model: str) -> Path:
    """The folder of a model's files: itself, or where a hub's id was fetched to. Raises UserError."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except Exception:  # not fetched yet: transformers does it, and says why where it cannot
        load_processor(model)
        load_model(model)
        return Path(snapshot_download(model, local_files_only=True))
