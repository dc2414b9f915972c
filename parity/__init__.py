"""Prove that a GGUF pair under llama.cpp answers as the Hugging Face model does.

from parity import check, judge, read_results
verdict = check("model-folder", "model-Q8_0.gguf", "mmproj-model.gguf", "photos")
verdict = judge("hf.results.jsonl", "phone.results.jsonl")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity import judge as judge
    from parity.pairs.check import check
    from parity.results import read_results

__all__ = ["check", "judge", "read_results"]

_PLACES = {"check": ".pairs.check", "read_results": ".results"}


def __getattr__(name: str) -> Any:
    # What is behind `check` loads torch and llama.cpp, and most of the package needs neither. By name, as an import
    # would make it a part of all that any module here does (pipeline/core/closure.py).
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
