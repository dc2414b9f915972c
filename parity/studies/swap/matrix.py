"""What a swap measures, as data: the rows that are tried, what each gave, and the parts that an error is split into."""

from typing import Literal

from pipeline.contract import ChannelOrder, KvType, Runtime
from pipeline.core.gguf_types import MmprojType, TextType
from pipeline.core.jsonl import Number
from pipeline.core.settings import Frozen

Takes = Literal["own", "pixels", "embeddings"]
PartName = Literal[
    "conversion and engine, language half",
    "conversion and engine, vision half",
    "preprocessing",
    "vision quantization",
    "text quantization",
    "runtime",
]
FLOOR, EXACT, SHIPPED, SWAPPED = "hf-bfloat16", "exact", "shipped", "swapped-channels"
EXACT_KV: KvType = "f32"


class Variant(Frozen):
    """What a row tries. Hugging Face's row has neither types nor runtime."""

    name: str
    """Of its file, and what the attribution finds it by."""
    title: str
    takes: Takes = "own"
    """What is put in of Hugging Face's: nothing, the normalized pictures, or the image embeddings."""
    text_type: TextType | None = None
    mmproj_type: MmprojType | None = None
    runtime: Runtime | None = None
    fed: ChannelOrder

    @property
    def llama(self) -> tuple[TextType, MmprojType, Runtime]:
        """Types and runtime of a row of llama.cpp's; ValueError for Hugging Face's."""
        if self.text_type is None or self.mmproj_type is None or self.runtime is None:
            raise ValueError(f"{self.name} is Hugging Face's")
        return self.text_type, self.mmproj_type, self.runtime


class SwapRow(Frozen):
    """What a variant gave against Hugging Face in float32. A null stands where the model gave NaN or an infinity."""

    variant: Variant
    samples: int
    tiles_floats: Number
    """Largest difference of the normalized pictures made (which ``takes`` puts others in place of)."""
    embeddings_error: Number
    """Relative, Frobenius; median over the images."""
    kl_median: Number
    """KL divergence of the next token over the vocabulary, nats."""
    kl_mean: Number
    kl_p95: Number
    kl_labels_median: Number
    """KL divergence over the labels' probabilities made to sum to 1, nats."""
    kl_labels_mean: Number
    logits_rms: Number
    """Root of the mean square of the logits' differences, in the reference's standard deviations."""
    top1_changes: int
    label_flips: int
    """Images with another label than the reference gives."""
    correct: int
    reference_correct: int
    """Hugging Face's in float32, which is the same in every row."""

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0..1."""
        return self.correct / self.samples


class Part(Frozen):
    """A part of the way from the Hugging Face model to the shipped pair's answers."""

    name: PartName
    what: str
    """The files or settings that it stands for."""
    kl: Number
    """Mean KL that it adds, nats: :attr:`row` less :attr:`base`."""
    share: Number
    """Of the shipped pair's mean KL; below 0 where the part undoes another's error."""
    square_share: Number
    """Of the shipped pair's mean square of the logits' differences."""
    row: str
    base: str | None
    broken: bool
    """It is beyond what its type explains."""


class Attribution(Frozen):
    """Where the shipped pair's error comes from."""

    parts: tuple[Part, ...]
    together: Number
    """Mean KL of the shipped pair less the sum of the parts, nats: what they do to one another."""
    carrier: PartName
    """The broken part, else the one that adds most."""
    broken: bool
    sentence: str
    fix: str


class SwapMatrix(Frozen):
    """``swap.json``."""

    schema_version: Literal[1] = 1
    samples: int
    contract_sha256: str
    dataset_sha256: str
    model: dict[str, str]
    """``model`` and ``mmproj`` of the shipped pair -> SHA-256."""
    rows: tuple[SwapRow, ...]
    attribution: Attribution


def text_row(text_type: TextType) -> str:
    """Name of the row that tries this type of language half alone."""
    return "exact-embeddings" if text_type == "F32" else f"text-{text_type}"


def mmproj_row(mmproj_type: MmprojType) -> str:
    """Name of the row that tries this type of vision half alone."""
    return "exact-pixels" if mmproj_type == "F32" else f"mmproj-{mmproj_type}"


def runtime_row(runtime: Runtime) -> str:
    """Name of the row that tries this KV cache and flash attention alone."""
    if runtime.type_k == runtime.type_v == EXACT_KV and not runtime.flash_attn:
        return "exact-embeddings"
    return f"kv-{kv_name(runtime).replace('/', '-')}{'-flash' if runtime.flash_attn else ''}"


def kv_name(runtime: Runtime) -> str:
    """The cache's types as a person reads them."""
    return runtime.type_k if runtime.type_k == runtime.type_v else f"{runtime.type_k}/{runtime.type_v}"


def number(value: float | None) -> str:
    """In a column's few characters."""
    if value is None:
        return "NaN"
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"
