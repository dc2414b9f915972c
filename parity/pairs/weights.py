"""Whether a pair holds the weights of the model that it is held against, before anything runs.

Nothing in a GGUF says which training it came from, and a GGUF of another fine-tune loads and answers like one that was
converted badly. The weights say it. Some rows of each matrix are read from both files: what separates them must be what
the matrix's type rounds, which is measured by rounding Hugging Face's own rows to that type.
"""

import ctypes
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from parity.judge.causes import Cause, Causes
from pipeline.core.errors import CheckFailed, UserError
from pipeline.core.toolchain import load_gguf
from pipeline.export.verify import Gguf, read_gguf
from pipeline.models.smolvlm.inspect import read_object, stored_shapes

ROWS = 8
"""Rows read of a matrix, spread evenly."""
ROUNDING = 1.5
"""How many times the rounding of its type a matrix may be off. As llama.cpp rounds by itself it is 1.00 of it, with an
importance matrix over four orders of magnitude up to 1.4 (IQ2_XXS; Q4_K 1.12): tests/parity/pairs/test_weights.py."""
LEAST = 2e-3
"""A relative error that is always allowed: weights cast to bfloat16 on their way are 1.7e-3 off (the same test)."""

NAMED = 3
"""Matrices that a sentence names."""

_READ = re.compile(r"(attn_v|attn_out|attn_output|ffn_up|ffn_down|ffn_gate)\.weight$")
"""The matrices that the converter takes over row by row; of queries and keys it changes the order for some families."""
_LAYER = re.compile(r"layers\.\d+\..*")
_NOT_LANGUAGE = re.compile(r"vis(ion|ual)|audio|image|projector|connector")
_FLOATS = ("F32", "F16", "BF16")
_NOT_PLAIN = ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
_Changes = Callable[[str, list[int], tuple[int, int]], npt.NDArray[np.float32] | None]
_Names = Callable[[str], str | None]
"""Hugging Face's name of a tensor -> the GGUF's."""


@dataclass(frozen=True)
class Matrix:
    """A matrix that both files have."""

    name: str
    kind: str
    """The GGUF's type: ``Q8_0``."""
    error: float
    """|GGUF - Hugging Face| / |Hugging Face|, both Frobenius norms over the rows read."""
    rounding: float
    """The same of Hugging Face's rows rounded to that type."""

    @property
    def differs(self) -> bool:
        """Whether the difference is more than rounding."""
        return not self.error <= max(ROUNDING * self.rounding, LEAST)


@dataclass(frozen=True)
class Weights:
    """What was found of a half."""

    path: Path
    matrices: tuple[Matrix, ...]

    @property
    def different(self) -> list[Matrix]:
        """Those that are not Hugging Face's, the worst first."""
        return sorted((matrix for matrix in self.matrices if matrix.differs), key=lambda matrix: -matrix.error)


def compare_weights(folder: Path, half: Path, adapter: Path | None = None) -> Weights:
    """Hold a half's matrices against a model folder's ``*.safetensors``.

    ``adapter``: LoRA that belongs to the model. A matrix that the adapter changes in another way than LoRA's is left
    out, as is one that only one file has; a model of ``*.bin`` alone gives none. Raises UserError where the matrices of
    both have other sizes: a pair of another model.
    """
    try:
        head = read_gguf(half)
    except CheckFailed as error:
        raise UserError(f"{error}; export it again, or copy it again, whole") from None
    there = {name: shape for name, (_, shape) in head.tensors.items() if len(shape) == 2 and _READ.search(name)}
    found, odd = list[Matrix](), list[str]()
    named = _names(head)
    changes = _lora(adapter, named) if adapter else None
    data = np.memmap(half, np.uint8, "r")
    for name, stored in _matrices(folder, named):
        if name not in there:
            continue
        shape, theirs = tuple(stored.get_shape()), there[name][::-1]
        if shape != theirs:
            odd.append(f"{name} is {theirs[0]} x {theirs[1]}, and {shape[0]} x {shape[1]} in {folder}")
            continue
        chosen = np.unique(np.linspace(0, shape[0] - 1, ROWS).round().astype(int)).tolist()
        ours = np.concatenate([stored[row : row + 1].float().numpy() for row in chosen])
        if changes is not None:
            change = changes(name, chosen, shape)
            if change is None:
                continue
            ours = ours + change
        found.append(_held(name, head.tensors[name][0], data[head.offsets[name] :], chosen, ours))
    if len(odd) > len(found):
        raise UserError(f"{half} is of another model: {odd[0]}; give the model that it was converted from")
    return Weights(half, tuple(found))


def refuse_other_weights(folder: Path, halves: Sequence[Path], adapter: Path | None = None) -> list[Weights]:
    """Hold each half against the model's folder.

    Raises UserError where most matrices of a half are not the model's: what would be judged is another training. Where
    fewer differ something happened to them, and the answers say what comes of it.
    """
    found = []
    for half in halves:
        held = compare_weights(folder, half, adapter)
        if 2 * len(held.different) > len(held.matrices):
            raise UserError(f"{half} does not hold the weights of {folder}{_with(adapter)}: {_most(held, adapter)}")
        found.append(held)
    return found


def _with(adapter: Path | None) -> str:
    return f" with {adapter}" if adapter else ""


def _most(held: Weights, adapter: Path | None) -> str:
    worst = held.different[0]
    told = (
        f"{len(held.different)} of {len(held.matrices)} matrices differ, {worst.name} by {worst.error:.2%} where"
        f" {worst.kind} rounds by {worst.rounding:.2%}; "
    )
    if adapter:
        return told + "merge the adapter into the model and convert that, or leave --adapter out"
    return (
        told + "give the model that it was converted from (with --adapter, where LoRA was merged), or convert it again"
    )


def explain(causes: Causes, text: Weights, mmproj: Weights) -> Causes:
    """Add to a half that differs what its weights say: whether the file is at fault, or what computes with it."""
    halves = {"language": text, "vision": mmproj}
    found = [_explained(cause, halves[cause.kind]) if cause.kind in halves else cause for cause in causes.found]
    return causes.model_copy(update={"found": tuple(found)})


def _explained(cause: Cause, held: Weights) -> Cause:
    count, different = len(held.matrices), held.different
    if not count:
        return cause
    if not different:
        detail = f"{cause.detail}; all {count} matrices compared are Hugging Face's"
        fix = (
            f"compare the keys of {held.path.name} (epsilon, scale, RoPE) with config.json; where they agree, llama.cpp"
            " computes this half differently"
        )
        return cause.model_copy(update={"detail": detail, "fix": fix})
    names = ", ".join(f"{one.name} ({one.error:.1%})" for one in different[:NAMED])
    more = f" and {len(different) - NAMED} more" if len(different) > NAMED else ""
    detail = f"{cause.detail}; {names}{more} of {count} matrices compared are not Hugging Face's"
    return cause.model_copy(
        update={"detail": detail, "fix": f"convert {held.path.name} again from this model's folder"}
    )


def _matrices(folder: Path, named: _Names) -> Iterator[tuple[str, Any]]:
    """(The GGUF's name, safetensors' slice) of each matrix in floats whose name the converter knows."""
    from safetensors import safe_open

    stored_shapes(folder)  # refuses files that are cut
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - no mapping
                name = named(key)
                if name is None:
                    continue
                stored = file.get_slice(key)
                if len(stored.get_shape()) == 2 and stored.get_dtype() in _FLOATS:
                    yield name, stored


def _lora(adapter: Path, named: _Names) -> _Changes:
    """What LoRA adds to rows of a matrix, float32; None for a matrix whose change is not known here."""
    from safetensors import safe_open

    config = read_object(adapter / "adapter_config.json")
    stored_shapes(adapter)  # refuses files that are cut
    halves: dict[str, dict[str, Any]] = {}
    touched = set[str]()
    for path in sorted(adapter.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - no mapping
                base, _, part = key.removeprefix("base_model.model.").partition(".lora_")
                name = named(f"{base}.weight")
                if name is None:
                    continue
                touched.add(name)
                if part in ("A.weight", "B.weight"):
                    halves.setdefault(name, {})[part[0]] = file.get_tensor(key).float().numpy()
    # A scale of its own for some matrices, or a change that is no product of two: not known here.
    plain = config.get("peft_type") == "LORA" and not any(config.get(key) for key in _NOT_PLAIN)
    rank, alpha = config.get("r"), config.get("lora_alpha")

    def change(name: str, rows: list[int], shape: tuple[int, int]) -> npt.NDArray[np.float32] | None:
        if name not in touched:
            return np.zeros((1, 1), np.float32)
        own = halves.get(name, {})
        if not plain or not isinstance(rank, int) or not isinstance(alpha, (int, float)):
            return None
        if {key: value.shape for key, value in own.items()} != {"A": (rank, shape[1]), "B": (shape[0], rank)}:
            return None  # it fits nothing, as will be said when it is put on the model
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        return np.asarray(scale * (own["B"][rows] @ own["A"]), np.float32)

    return change


def _held(
    name: str, number: int, data: npt.NDArray[np.uint8], rows: list[int], ours: npt.NDArray[np.float32]
) -> Matrix:
    """``data``: the GGUF's bytes from the matrix on. ``ours``: Hugging Face's ``rows``, [rows, width]."""
    gguf = load_gguf()
    kind = gguf.GGMLQuantizationType(number)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    stride = ours.shape[1] // block * size
    theirs = gguf.quants.dequantize(np.stack([data[row * stride :][:stride] for row in rows]), kind)
    rounded = gguf.quants.dequantize(_rounded(ours, kind), kind)
    norm = float(np.linalg.norm(ours)) or 1.0
    return Matrix(
        name=name,
        kind=str(kind.name),
        error=float(np.linalg.norm(theirs - ours)) / norm,
        rounding=float(np.linalg.norm(rounded - ours)) / norm,
    )


def _rounded(rows: npt.NDArray[np.float32], kind: Any) -> npt.NDArray[Any]:
    """Rows [n, width] in a GGUF's type, by llama.cpp's own ``ggml_quantize_chunk``; its bytes, [n, bytes a row]."""
    quants, types = load_gguf().quants, load_gguf().GGMLQuantizationType
    if kind in (types.F32, types.F16, types.BF16):
        return np.asarray(quants.quantize(rows, kind)).view(np.uint8)
    block, size = load_gguf().GGML_QUANT_SIZES[kind]
    count, width = rows.shape
    made = np.empty((count, width // block * size), np.uint8)
    source = np.ascontiguousarray(rows, np.float32)
    # Types that want an importance matrix get one that weighs all alike.
    even = np.ones(width, np.float32) if _ggml().ggml_quantize_requires_imatrix(int(kind)) else None
    pointer = ctypes.POINTER(ctypes.c_float)
    _ggml().ggml_quantize_chunk(
        int(kind), source.ctypes.data_as(pointer), made.ctypes.data_as(ctypes.c_void_p), 0, count, width,
        even.ctypes.data_as(pointer) if even is not None else None,
    )  # fmt: skip
    return made


def _ggml() -> Any:
    library = llama_cpp.llama_cpp._lib
    chunk = library.ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [
        ctypes.c_int, ctypes.POINTER(ctypes.c_float), ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,
        ctypes.POINTER(ctypes.c_float),
    ]  # fmt: skip
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    library.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    return library


def _names(head: Gguf) -> _Names:
    """By the converter's own table; None for what that does not know."""
    gguf = load_gguf()
    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    arch = known.get(head.text("general.architecture"))
    if arch is None:
        return lambda name: None
    layers = [int(found[1]) for name in head.tensors if (found := re.search(r"blk\.(\d+)\.", name))]
    table = gguf.get_tensor_name_map(arch, max(layers, default=0) + 1)
    vision = arch == gguf.MODEL_ARCH.MMPROJ

    def named(name: str) -> str | None:
        # A language model's tensors have the name that they would have if it stood alone.
        layer = _LAYER.search(name)
        tried = [name, name.removeprefix("model.")]
        if not vision and layer and not _NOT_LANGUAGE.search(name):
            tried.append(f"model.{layer[0]}")
        return next((found for one in tried if (found := table.get_name(one, try_suffixes=(".weight",)))), None)

    return named
