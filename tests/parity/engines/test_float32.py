"""The reference's float32 is float32: no switch of torch lets a kernel round it, whatever was set before."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from parity.engines.hf import hf_predictor, load_reference, open_hf
from parity.studies.selftest.bench import Bench
from pipeline.contract import Contract
from pipeline.core.provenance import machine

BACKENDS: Any = torch.backends
OWNERS = (
    "cuda.matmul", "cudnn", "cudnn.conv", "cudnn.rnn", "mkldnn", "mkldnn.conv", "mkldnn.matmul", "mkldnn.rnn",
)  # fmt: skip


def owner(name: str) -> Any:
    found = BACKENDS
    for part in name.split("."):
        found = getattr(found, part)
    return found


def rounded() -> list[str]:
    """The switches that let float32 be rounded, or do not say that they don't."""
    said = {"torch.backends": BACKENDS.fp32_precision} | {name: owner(name).fp32_precision for name in OWNERS}
    found = [name for name, precision in said.items() if precision != "ieee"]
    older = (BACKENDS.cuda.matmul.allow_tf32, BACKENDS.cudnn.allow_tf32, torch.get_float32_matmul_precision())
    return found if older == (False, False, "highest") else [*found, f"older switches {older}"]


def put(name: str, attribute: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(owner(name), attribute, value)


BEFORE: dict[str, Callable[[], None]] = {
    "allow_tf32 of both": lambda: (put("cudnn", "allow_tf32", True)(), put("cuda.matmul", "allow_tf32", True)())[0],
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "everything": lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
    **{f"{name} TF32": put(name, "fp32_precision", "tf32") for name in OWNERS},
    "oneDNN bfloat16": put("mkldnn.matmul", "fp32_precision", "bf16"),
}


@pytest.mark.parametrize("before", BEFORE)
def test_no_switch_is_left_on(tiny: Path, before: str) -> None:
    BEFORE[before]()
    load_reference(tiny)
    assert rounded() == []


def test_torch_begins_with_a_switch_on() -> None:
    """What makes the above necessary; where torch no longer does so, this test and its reason may go."""
    code = "import torch; print(torch.backends.cudnn.allow_tf32)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_every_reference_is_opened_so(tiny: Path) -> None:
    from models import encoder_for

    for opening in (
        lambda: hf_predictor(tiny, encoder_for(tiny, Contract())),
        lambda: Bench._load_reference.__wrapped__(SimpleNamespace(merged=tiny)),  # type: ignore[attr-defined]
    ):
        BEFORE["high"]()
        put("cudnn.conv", "fp32_precision", "tf32")()
        opening()
        assert rounded() == []


def test_the_header_says_what_computed(tiny: Path) -> None:
    contract, machine_alone = Contract(), machine()
    device = open_hf(tiny, contract, "0" * 64).header.device
    assert device == open_hf(tiny, contract, "0" * 64, "bfloat16").header.device, "the same through the whole run"
    assert machine_alone.items() <= device.items()
    assert device["torch_cpu_kernels"] == torch.backends.cpu.get_cpu_capability()
    assert device["torch_tf32"] == "off"
    built = torch.__config__.show()
    assert device["torch_blas"].removeprefix("MKL ") in built
    assert device["torch_onednn"] in built
    assert ("torch_cudnn" in device) == torch.backends.cudnn.is_available()
