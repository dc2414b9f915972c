"""The reference side: the merged Hugging Face model."""

import re
from pathlib import Path
from typing import Any, Literal

import torch

from parity.engines import OpenSide
from parity.engines.header import encoder_of, header_of
from pipeline.contract import Contract
from pipeline.core.files import sha256_file
from pipeline.core.provenance import weights_digest
from pipeline.models.smolvlm.encoding import Encoder
from pipeline.models.smolvlm.folder import load_model, load_tokenizer
from pipeline.models.smolvlm.inference import HfPredictor

Dtype = Literal["float32", "bfloat16"]


def exact_float32() -> None:
    """Let no kernel of this process round float32 to TF32 or bfloat16, whatever was set before.

    cuDNN's convolutions take TF32 unless told otherwise: 10 bits of mantissa, as few as half precision has, in the
    first layer of the vision half. torch has two generations of switches, and reading one raises where the other says
    something else, so that both are set (torch 2.13: ``aten/src/ATen/Context.cpp``).
    """
    backends: Any = torch.backends  # torch types a part of them
    torch.set_float32_matmul_precision("highest")  # cuBLAS' and oneDNN's products
    backends.cudnn.allow_tf32 = False
    cudnn, onednn = backends.cudnn, backends.mkldnn
    for owner in (backends, backends.cuda.matmul, cudnn, cudnn.conv, cudnn.rnn, onednn, onednn.conv, onednn.matmul,
                  onednn.rnn):  # fmt: skip
        owner.fp32_precision = "ieee"


def backends() -> dict[str, str]:
    """What computes for torch in this process; the same from start to end once :func:`exact_float32` was called."""
    known: Any = torch.backends  # torch types a part of it
    mkl, blas = _built_with(r"Math Kernel Library Version (\S+)"), _built_with(r"BLAS_INFO=(\w+)")
    found = {
        "torch_cpu_kernels": known.cpu.get_cpu_capability(),
        "torch_blas": f"MKL {mkl}" if mkl else blas or "none",
        "torch_onednn": _built_with(r"MKL-DNN v(\S+)") or "none",
        "torch_tf32": "on" if known.cuda.matmul.allow_tf32 or known.cudnn.allow_tf32 else "off",
    }
    if torch.version.cuda:
        found |= {"torch_cuda": torch.version.cuda, "torch_cudnn": str(known.cudnn.version() or "none")}
    return found


def _built_with(pattern: str) -> str | None:
    match = re.search(pattern, torch.__config__.show())
    return match[1] if match else None


def load_reference(folder: Path, device: str | None = None, dtype: Dtype = "float32") -> Any:
    """A merged folder's model, its float32 exact, on a torch device: by default a GPU where there is one."""
    exact_float32()
    return load_model(folder).to(device=device or default_device(), dtype=getattr(torch, dtype))


def default_device() -> str:
    """``cuda`` where there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def hf_predictor(folder: Path, encoder: Encoder, device: str = "cpu", dtype: Dtype = "float32") -> HfPredictor:
    """Load a merged model folder on a torch device. float32 is the reference; bfloat16 shows what rounding does."""
    return HfPredictor(load_reference(folder, device, dtype), load_tokenizer(folder), encoder)


def open_hf(
    merged: Path, contract: Contract, dataset_sha256: str, dtype: Dtype = "float32", threads: int | None = None
) -> OpenSide:
    """The Hugging Face side of a merged model folder, on a GPU where there is one. ``threads``: torch's own."""
    if threads:
        torch.set_num_threads(threads)
    device = default_device()
    predictor = hf_predictor(merged, encoder_of(merged, contract), device, dtype)
    runtime = {"dtype": dtype, "device": device, "n_threads": torch.get_num_threads()}
    header = header_of(
        "hf", "transformers", open_hf, contract, dataset_sha256, predictor,
        model={path.name: sha256_file(path) for path in sorted(merged.glob("*.safetensors"))},
        weights_sha256=weights_digest(merged),
        runtime=runtime | {"fed": contract.image.channel_order},
        backends=backends(),
    )  # fmt: skip
    return OpenSide(predictor, header)
