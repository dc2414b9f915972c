"""Prove that a GGUF pair under llama.cpp answers as the Hugging Face model does.

from parity import check
verdict = check("model-folder", "model-Q8_0.gguf", "mmproj-model.gguf", "photos")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.pairs.check import check

__all__ = ["check"]


def __getattr__(name: str) -> Any:
    # What is behind it loads torch and llama.cpp, and most of the package needs neither. By name, as an import would
    # make it a part of all that any module here does (pipeline/core/closure.py).
    if name == "check":
        return importlib.import_module(".pairs.check", __name__).check
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
