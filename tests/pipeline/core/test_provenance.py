"""What a result says of the machine it was made on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core.files import sha256_bytes
from pipeline.core.provenance import digest, folder_hashes, machine

VERSIONS = {
    "535.104.05": (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"
        "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"
    ),
    "570.86.15": (
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs-builder@U22-I3)"
        "  Fri Jan 24 21:32:54 UTC 2025\nGCC version:  gcc version 12.3.0\n"
    ),
}


def kernel(root: Path, gpus: list[str], version: str = "") -> Path:
    """A /proc with so many GPUs, as NVIDIA's driver shows them."""
    (root / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 2.0GHz\n")
    for number, name in enumerate(gpus):
        folder = root / "driver" / "nvidia" / "gpus" / f"0000:{number:02x}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t {name}\nIRQ:   \t\t 18\nGPU UUID: \t GPU-0000\n")
    if version:
        (root / "driver" / "nvidia" / "version").write_text(version)
    return root


def test_without_a_gpu_nothing_is_said_of_one(tmp_path: Path) -> None:
    found = machine(kernel(tmp_path, []))
    assert found["cpu"] == "Some CPU @ 2.0GHz"
    assert found.keys() == {"cpu", "cores", "system"}


@pytest.mark.parametrize("number", VERSIONS)
def test_the_driver_is_named_by_either_kernel_module(tmp_path: Path, number: str) -> None:
    found = machine(kernel(tmp_path, ["NVIDIA L4"], VERSIONS[number]))
    assert (found["gpu"], found["gpu_driver"]) == ("NVIDIA L4", number)


def test_every_gpu_is_named_in_the_order_of_the_bus(tmp_path: Path) -> None:
    names = ["NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3", "NVIDIA T400"]
    assert machine(kernel(tmp_path, names))["gpu"] == "2 x NVIDIA H100 80GB HBM3, NVIDIA T400"


def test_a_machine_is_named_without_loading_torch() -> None:
    code = "import sys; from pipeline.core.provenance import machine; machine(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_folder_with_odd_files_has_hashes(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff")).write_bytes(b"a")
    (tmp_path / "memory").symlink_to("/proc/self/mem")
    os.mkfifo(tmp_path / "fifo")
    found = folder_hashes(tmp_path)
    assert found == {r"\udcff": sha256_bytes(b"a"), "memory": "unreadable: Input/output error"}
    assert len(digest(found)) == 64
    assert folder_hashes(tmp_path, follow_links=False)["memory"] == "link to /proc/self/mem"
