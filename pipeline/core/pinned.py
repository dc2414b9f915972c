"""Where the pinned llama.cpp lies in a checkout, and which version the locks name. Standard library only, Python 3.9.

.cache/llama_cpp_python-<version>/vendor/llama.cpp   its sources, with the converter and the ``gguf`` package
.cache/llama-tools/                                  llama-mtmd-cli and llama-server
.cache/parity-runner/                                the runner for this machine
.cache/parity-runner-aarch64/                        the runner for a phone
"""

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import UserError

PYTHON_PACKAGE = "llama-cpp-python"
RUNNER = "parity-runner"
LLAMA_CPP_COMMIT = {"0.3.36": "0c1e57098bba43ac29e6e3b677cdceebdd22334f"}
"""Version of the bindings -> the commit of llama.cpp in them (docker/versions.env names it, too; a test compares)."""


@dataclass(frozen=True)
class Pin:
    """One package of a lock: ``text`` is its entry as pip reads it, version, marker (where it has one) and hashes."""

    name: str
    version: str
    text: str


def read_lock(path: Path) -> dict[str, Pin]:
    """The packages of a requirements file with hashes, by name. Raises UserError where there is no such file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"the lock {path} cannot be read: {error.strerror}") from None
    entries = re.findall(
        r"^([A-Za-z0-9._-]+)==(\S+)((?: ;[^\\\n]*)?(?:[ \t]*\\\n[ \t]+--hash=sha256:[0-9a-f]{64})+)", text, re.MULTILINE
    )
    return {name: Pin(name, version, f"{name}=={version}{rest}\n") for name, version, rest in entries}


def source_folder(root: Path, version: str) -> Path:
    """Where the unpacked source distribution of the bindings lies."""
    return root / ".cache" / f"llama_cpp_python-{version}"


def pinned_llama_cpp(root: Path) -> str:
    """The version that the locks name and, where the images' pins lie beside them, the commit of llama.cpp in it."""
    try:
        package = f"{PYTHON_PACKAGE} {read_lock(root / 'locks' / 'cpu.txt')[PYTHON_PACKAGE].version}"
        pins = (root / "docker" / "versions.env").read_text(encoding="utf-8")
    except (UserError, OSError):  # installed without its checkout
        return "of the installed llama-cpp-python"
    commit = re.search(r"^LLAMA_CPP_COMMIT=([0-9a-f]{12})", pins, re.MULTILINE)
    return f"{commit[1]} ({package})" if commit else f"of {package}"


def llama_cpp_source(root: Path) -> Path:
    """The unpacked llama.cpp tree (the folder with ``convert_hf_to_gguf.py``). Raises UserError before the set-up."""
    tree = source_folder(root, read_lock(root / "locks" / "cpu.txt")[PYTHON_PACKAGE].version) / "vendor" / "llama.cpp"
    if not (tree / "convert_hf_to_gguf.py").is_file():
        raise UserError(f"llama.cpp's sources are not in {tree}: run `make setup`")
    return tree


def llama_tool(root: Path, name: str) -> Path:
    """The program ``llama-mtmd-cli`` or ``llama-server`` of the pinned llama.cpp. Raises UserError before the build."""
    program = root / ".cache" / "llama-tools" / name
    if not program.is_file():
        raise UserError(f"{name} is not built: run `make tools`")
    return program


def runner_folder(root: Path, phone: bool = False) -> Path:
    """Where the runner is built to."""
    return root / ".cache" / (f"{RUNNER}-aarch64" if phone else RUNNER)


def runner(root: Path, phone: bool = False) -> Path:
    """The runner for this machine, or for a ``phone`` (aarch64, static). Raises UserError before the build."""
    program = runner_folder(root, phone) / RUNNER
    if not program.is_file():
        raise UserError(f"the runner is not built: run `make runner{' RUNNER=aarch64' if phone else ''}`")
    return program
