"""The GGUF types a bundle may have; apart from the converter so that a recipe can be read without it."""

from typing import Literal

TextType = Literal["F32", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"]
MmprojType = Literal["F32", "F16", "Q8_0"]
