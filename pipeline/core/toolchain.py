"""The pinned llama.cpp: where its source tree lies, and its ``gguf`` package.

Converter, ``gguf`` package and runtime all come from one archive (llama-cpp-python's source distribution), because each
changes the file format with the others. ``tools/setup/bootstrap.py`` unpacks it. Where another llama.cpp is put in its
place, its converter and its ``gguf`` package come along.
"""

import functools
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.core.pinned import llama_cpp_source

ROOT = Path(__file__).parent.parent.parent


def source_tree() -> Path:
    """The unpacked llama.cpp tree (the folder with ``convert_hf_to_gguf.py``)."""
    other = other_folder()
    return other / "llama.cpp" if other else llama_cpp_source(ROOT)


def other_folder() -> Path | None:
    """The folder of another llama.cpp whose bindings Python finds first (``make families LLAMA_CPP=folder`` puts it on
    PYTHONPATH, tools/setup/native.py makes it); None where they are the pinned ones."""
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent.parent
    return folder if (folder / "source.json").is_file() else None


def other_llama_cpp() -> str:
    """Which other llama.cpp runs: git's name for it, where it is a checkout, and its files' digest; else empty."""
    folder = other_folder()
    if folder is None:
        return ""
    source = json.loads((folder / "source.json").read_text(encoding="utf-8"))
    return " ".join(part for part in (source["commit"], f"sha256:{source['tree']}") if part)


def load_gguf() -> ModuleType:
    """The ``gguf`` Python package of that tree, never one installed from elsewhere."""
    folder = source_tree() / "gguf-py"
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    import gguf

    if Path(gguf.__file__).parent.parent != folder:
        raise RuntimeError(f"gguf was imported from {gguf.__file__}, not from the pinned {folder}")
    return gguf


class LlamaLog:
    """Catches what llama.cpp and libmtmd log while the ``with`` block runs; keeps the errors' text.

    The log callback is one for the whole process (``llama_log_set``), so blocks do not nest.
    """

    def __init__(self) -> None:
        self._errors: list[str] = []

    def __enter__(self) -> "LlamaLog":
        import llama_cpp
        from llama_cpp import mtmd_cpp

        @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
        def record(level: int, text: bytes, _: object) -> None:
            if level == 4:  # GGML_LOG_LEVEL_ERROR in ggml.h
                self._errors.append(text.decode(errors="replace").strip())

        self._record = record  # the C side keeps a bare pointer to it
        llama_cpp.llama_log_set(record, None)
        mtmd_cpp.mtmd_helper_log_set(record, None)
        return self

    def __exit__(self, *_: object) -> None:
        import llama_cpp
        from llama_cpp import mtmd_cpp

        silent = _silent()
        llama_cpp.llama_log_set(silent, None)
        mtmd_cpp.mtmd_helper_log_set(silent, None)

    def error(self) -> str:
        """The errors logged so far as one line, or a plain phrase where there was none."""
        return "; ".join(" ".join(text.split()) for text in self._errors if text) or "no message from llama.cpp"


@functools.cache
def _silent() -> Any:
    """A callback that drops everything; kept for the life of the process, since llama.cpp logs while it frees."""
    import llama_cpp

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def drop(level: int, text: bytes, _: object) -> None:
        pass

    return drop
