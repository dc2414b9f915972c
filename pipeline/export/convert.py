"""Merged model folder -> GGUF pair, by the pinned llama.cpp's own converter and quantizer.

The text half is converted to F16 or F32 and then quantized by ``llama_model_quantize``; the vision half is written by
the converter in its final type (the quantizer has nothing to add for Q8_0, and the converter reads the float32 weights
directly). Same folder, same settings, same machine: the same bytes.
"""

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import CheckFailed
from pipeline.core.files import says_full
from pipeline.core.gguf_types import FILE_TYPES, MmprojType, TextType
from pipeline.core.toolchain import LlamaLog, load_gguf, source_tree

# Keys that this project adds to a GGUF's metadata.
KEY_CONTRACT = "parity.contract_sha256"
KEY_RECIPE = "parity.recipe"
KEY_WEIGHTS = "parity.weights_sha256"

# llama.cpp's own key: without it SmolLM2's tokenizer never puts a BOS in front, whatever the caller asks for.
KEY_ADD_BOS = "tokenizer.ggml.add_bos_token"

Metadata = dict[str, str | bool]


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a scratch path beside ``path``; flushed to disk, it takes ``path``'s place when the block succeeds.

    Where it fails on a full disk, the OSError that says so is raised, whatever the block made of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp") as folder:
        scratch = Path(folder) / path.name
        try:
            yield scratch
        except Exception:
            _try_disk(Path(folder))
            raise
        with open(scratch, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)


def _try_disk(folder: Path) -> None:
    """Raise OSError where the disk is full: llama.cpp's quantizer says something else or ends with half a file."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(1 << 20))
        file.flush()


def _run_converter(model: Path, out: Path, outtype: str, name: str, mmproj: bool, flags: Sequence[str] = ()) -> None:
    command = [
        sys.executable,
        str(source_tree() / "convert_hf_to_gguf.py"),
        str(model),
        *("--outfile", str(out), "--outtype", outtype, "--model-name", name),
        *(["--mmproj"] if mmproj else []),
        *flags,
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0 or not out.exists():
        if says_full(result.stderr):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out))
        last = [line for line in result.stderr.strip().splitlines() if line.strip()][-1:] or ["no message"]
        half = "vision" if mmproj else "text"
        raise CheckFailed(f"llama.cpp's converter refused the {half} half of {model}: {last[0]}")


def _quantize(source: Path, target: Path, text_type: TextType, threads: int) -> None:
    import ctypes

    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = threads
    parameters.ftype = FILE_TYPES[text_type]
    with LlamaLog() as log:
        code = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters))
    if code != 0:
        raise CheckFailed(f"llama.cpp could not quantize {source.name} to {text_type}: {log.error()}")


def copy_gguf(
    source: Path, target: Path, added: Metadata, tensors: Mapping[str, npt.NDArray[np.float32]] | None = None
) -> None:
    """Copy a GGUF, adding or replacing keys and adding ``tensors``, which stay float32.

    The ``gguf`` package's own script adds keys with a progress bar.
    """
    gguf: Any = load_gguf()
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, arch=reader.fields[gguf.Keys.General.ARCHITECTURE].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in (gguf.Keys.General.ARCHITECTURE, *added):
            kind = field.types[0]
            sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=sub_type)
    for key, value in added.items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for tensor in reader.tensors:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    for name, values in (tensors or {}).items():
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        writer.write_tensor_data(tensor.data)
    for values in (tensors or {}).values():
        writer.write_tensor_data(values)
    writer.close()


def convert_text(
    model: Path,
    out: Path,
    text_type: TextType,
    name: str,
    added: Metadata,
    threads: int,
    flags: Sequence[str] = (),
) -> None:
    """Write the language half of ``model`` as ``out``, with ``general.name`` and the ``added`` metadata.

    Quantized types go through F16, as llama.cpp's own instructions do; F32 stays F32. ``flags``: more options of the
    converter. Raises CheckFailed.
    """
    with atomic_file(out) as scratch:
        plain = scratch.with_suffix(".plain")
        _run_converter(model, plain, "f32" if text_type == "F32" else "f16", name, mmproj=False, flags=flags)
        if text_type not in ("F32", "F16"):
            quantized = scratch.with_suffix(".quantized")
            _quantize(plain, quantized, text_type, threads)
            plain.unlink()
            plain = quantized
        copy_gguf(plain, scratch, added)


def convert_mmproj(model: Path, out: Path, mmproj_type: MmprojType, name: str, added: Metadata) -> None:
    """Write the vision half and the connector of ``model`` as ``out``. Raises CheckFailed."""
    with atomic_file(out) as scratch:
        plain = scratch.with_suffix(".plain")
        _run_converter(model, plain, mmproj_type.lower(), name, mmproj=True)
        copy_gguf(plain, scratch, added)
