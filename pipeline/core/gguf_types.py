"""The GGUF types a bundle may have; apart from the converter so that a recipe can be read without it."""

from typing import Any, Literal, get_args

TextType = Literal["F32", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"]
MmprojType = Literal["F32", "F16", "Q8_0"]

# What a K-quant may fall back to for a matrix whose rows 256 does not divide (llama-quant.cpp, tensor_type_fallback),
# and the types its mixtures use beside the one it is named after.
MATRIX_TYPES: dict[str, set[str]] = {
    "F32": {"F32"},
    "F16": {"F16"},
    "Q8_0": {"Q8_0"},
    "Q4_0": {"Q4_0", "Q6_K", "Q8_0"},
    "Q6_K": {"Q6_K", "Q8_0"},
    "Q5_K_M": {"Q5_K", "Q6_K", "Q5_1", "Q8_0"},
    "Q4_K_M": {"Q4_K", "Q6_K", "Q5_0", "Q5_1", "Q8_0"},
}
"""Type of an export -> the types that its matrices may have."""

NAMED_AFTER: dict[str, set[str]] = {
    "F32": {"F32"},
    "F16": {"F16"},
    "Q8_0": {"Q8_0"},
    "Q4_0": {"Q4_0"},
    "Q6_K": {"Q6_K", "Q8_0"},
    "Q5_K_M": {"Q5_K", "Q5_1"},
    "Q4_K_M": {"Q4_K", "Q5_0"},
}
"""Type of an export -> the types of which some of its matrices are: its own, or what that falls back to."""

FILE_TYPES: dict[str, int] = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18}
"""Type of an export -> its number (``enum llama_ftype`` of llama.h)."""


def canonical(value: Any, allowed: Any) -> Any:
    """A type in whatever case it was typed, as ``allowed`` (a Literal) spells it; what is none of them as it is.

    Two spellings of a recipe are one recipe: what depends on it must not see which was typed.
    """
    if not isinstance(value, str):
        return value
    return {name.casefold(): name for name in get_args(allowed)}.get(value.strip().casefold(), value)
