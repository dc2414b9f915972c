"""Compiles the pinned llama.cpp for the machine at hand, the Python bindings and two of its programs; and the runner,
for this machine or for a phone.

All come from the one source tree that ``bootstrap.py`` unpacks, and the first two with the same options, so that they
calculate alike. The runner is linked to the bindings' own libraries.
Another llama.cpp, a maintainer's own, is compiled beside it and never takes its place in ``.venv``.
Where ccache is installed, its folder, the user's own, keeps what was compiled: the programs take over most of the
bindings' objects, and another clone takes all. It gives back what the compiler would give, so no key depends on it.
Standard library only: there is no environment yet when this runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from pipeline.core.errors import UserError
from pipeline.core.files import atomic_folder, write_json, write_text
from pipeline.core.pinned import LLAMA_CPP_COMMIT, RUNNER, runner_folder

TOOLS = ("llama-mtmd-cli", "llama-server")
# GGML_NATIVE compiles for this very CPU, as a phone's build is made for its own. curl and OpenSSL would only make the
# result depend on what else is installed.
OPTIONS = {"GGML_NATIVE": "ON", "GGML_CCACHE": "OFF", "LLAMA_CURL": "OFF", "LLAMA_OPENSSL": "OFF"}
BACKENDS = {"cpu": {}, "cuda": {"GGML_CUDA": "ON"}, "vulkan": {"GGML_VULKAN": "ON"}, "metal": {"GGML_METAL": "ON"}}
"""What llama.cpp can compute on beside the CPU -> its build options."""
COMPILERS = {
    "cuda": ("nvcc", "NVIDIA's CUDA toolkit"),
    "vulkan": ("glslc", "the Vulkan SDK (`apt-get install glslc libvulkan-dev`)"),
}
"""The program that a backend is compiled with, and where it comes from."""
TOOL_OPTIONS = {
    **OPTIONS,
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "ON",  # as the bindings are: the same objects
    "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
    "CMAKE_INSTALL_RPATH": "$ORIGIN",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",  # on, it downloads the web page that the server would show
}
LIBRARIES = ("llama", "mtmd", "parity-chat")
"""Targets that the bindings load; what they are linked to comes along."""
BUILT = ("CMakeLists.txt", "cmake", "common", "ggml", "include", "src", "tools", "vendor")
CONVERTER = ("convert_hf_to_gguf.py", "conversion", "gguf-py")
"""What of a llama.cpp tree is compiled, and what converts."""
# Variables that change what is compiled. SOURCE_DATE_EPOCH turns every x86 instruction set off (ggml/CMakeLists.txt).
IGNORED_VARIABLES = ("SOURCE_DATE_EPOCH", "CMAKE_ARGS", "CMAKE_GENERATOR", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS")
CHAT = Path(__file__).resolve().parent.parent.parent / "parity" / "engines" / "native"
"""A small library that is built along: it shows llama.cpp's own chat templates."""
RUNNER_SOURCE = Path(__file__).resolve().parent.parent.parent / "android_fixtures" / "runner"
RUNNER_CROSS = "aarch64-linux-gnu-g++"
"""The compiler that a phone's runner is made with."""
BUILD_WHEEL = (
    "import json, sys; from scikit_build_core.build import *; build_wheel(sys.argv[1], json.loads(sys.argv[2]))"
)
PLAIN_SECONDS = 20  # between two progress lines where the output is not a terminal


class Failed(Exception):
    """A command failed; ``output`` is what it printed."""

    def __init__(self, output: str) -> None:
        super().__init__(output[-2000:])
        self.output = output


class Console:
    """One line a step, with the time since the start; below it the progress of what is running."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.start = self.shown = time.monotonic()
        self.terminal = sys.stdout.isatty()

    def _time(self) -> str:
        seconds = int(time.monotonic() - self.start)
        return f"[{seconds // 60:2d}:{seconds % 60:02d}]"

    def step(self, text: str) -> None:
        """Say what is done next."""
        print(f"{self._time()} {text}", flush=True)
        self.shown = time.monotonic()

    def beat(self, text: str) -> None:
        """Show that work goes on: over one line in a terminal, else a line every ``PLAIN_SECONDS``."""
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{f'{self._time()}   {text}'[:width]}", end="", flush=True)
        elif time.monotonic() - self.shown >= PLAIN_SECONDS:
            self.step(f"  {text}")

    def clear(self) -> None:
        """Take the progress line away."""
        if self.terminal:
            print("\r\x1b[K", end="", flush=True)


def run(
    console: Console,
    command: list[str],
    progress: Callable[[str], str | None] | None,
    environment: dict[str, str],
    folder: Path,
    handle: int,
) -> str:
    """Run ``command`` in ``folder``; every line goes to the log and, through ``progress``, to the console.

    Returns the output. Raises Failed with it. ``handle``, if not negative, is kept open in the child.
    """
    console.log.parent.mkdir(parents=True, exist_ok=True)
    lines: queue.Queue[str | None] = queue.Queue()
    output: list[str] = []
    text = "working"
    with open(console.log, "a", encoding="utf-8") as log:
        log.write(f"$ {shlex.join(command)}\n")
        process = subprocess.Popen(
            command, cwd=folder, env=environment, text=True, errors="replace", start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            pass_fds=(handle,) if handle >= 0 else (),
        )  # fmt: skip

        assert process.stdout
        reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
        reader.start()
        try:
            while True:
                try:
                    line = lines.get(timeout=1)
                except queue.Empty:
                    line = ""
                if line is None:
                    break
                log.write(line)
                output.append(line)
                text = (progress(line) if progress and line else None) or text
                console.beat(text)
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)  # the group: pip and cmake leave their own children behind
            process.wait()
            raise
        finally:
            console.clear()
            reader.join()
            process.stdout.close()
    if code:
        ending = f"ended by signal {-code}" if code < 0 else f"exit status {code}"
        raise Failed("".join(output) or f"{shlex.join(command)}: {ending}")
    return "".join(output)


def explain(output: str, doing: str, log: Path) -> str:
    """One sentence for what pip or a compiler printed before it failed: what is wrong, where, and what to do."""
    mismatch = re.search(r"(\S+) from (\S+).*\n(?:\s+Expected \S+ \S+\s*\n)(?:.*\n)*?\s+Got\s+([0-9a-f]{64})", output)
    missing = re.search(r"No matching distribution found for (\S+)", output)
    if mismatch:
        file = mismatch[2].partition("#")[0].rpartition("/")[2]
        return (
            f"the file {file} offered for {mismatch[1]} has SHA-256 {mismatch[3]}, which is not in the lock: it is"
            " damaged or was replaced, so run `pip cache purge` and try again, or `make lock` if the change is meant"
        )
    if "No space left on device" in output or "Errno 28" in output:
        return f"the disk filled up while {doing}: free some space and run the same command again"
    if "CERTIFICATE_VERIFY_FAILED" in output:
        return (
            f"the package index's certificate was refused while {doing}: behind a proxy, name its CA bundle in pip's"
            " settings (`pip config set global.cert FILE`)"
        )
    if re.search(
        r"NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|name resolution|Connection (refused|reset)", output
    ):
        return f"the package index cannot be reached ({doing}): check the network and pip's settings, then run it again"
    if missing:
        return f"pip's index and find-links do not offer {missing[1]}: add the place that has it to pip's settings"
    if re.search(r"internal compiler error|Killed signal|fatal error: Killed", output):
        return (
            f"the compiler was killed, most likely for want of memory: free some and run the same command again ({log})"
        )
    library = re.search(r"links to:\s+(\S+)\s+but the target was not found", output)
    if library:
        return f"{library[1]}, which this backend of llama.cpp is linked to, is not installed here: install it ({log})"
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    compiler = [line for line in lines if ": error: " in line]
    python = [line for line in lines if re.match(r"\w+Error: |ERROR: ", line)]
    return f"{doing} failed: {[*compiler[:1], *python[-1:], lines[-1]][0]} (all of it in {log})"


def _read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def cpu_flags() -> str:
    """The instruction sets of this CPU, as Linux names them. A build for one CPU may crash on another."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return " ".join(sorted(found[1].split())) if found else ""


def compiler_version() -> str:
    """The first line of the C++ compiler's ``--version``. Raises UserError where there is no compiler."""
    command = shlex.split(os.environ.get("CXX", "")) or [shutil.which("c++") or shutil.which("g++") or ""]
    if not shutil.which(command[0]):
        raise UserError(
            "no C++ compiler is on the PATH, and llama.cpp is compiled here: install one with `apt-get install g++`"
        )
    answer = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return answer.stdout.partition("\n")[0]


def own_code() -> str:
    """SHA-256 of what is built along with llama.cpp."""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sorted(CHAT.glob("chat_template.*")))).hexdigest()


def tree_digest(tree: Path) -> str:
    """SHA-256 over the files of a llama.cpp tree that are compiled or convert. Raises UserError where it is none."""
    for name in ("CMakeLists.txt", "tools/mtmd/mtmd.h", CONVERTER[0]):
        if not (tree / name).is_file():
            raise UserError(f"{tree} is no llama.cpp tree: it has no {name}; give the folder of a checkout")
    whole = hashlib.sha256()
    for top in (*BUILT, *CONVERTER):
        place = tree / top
        for path in [place] if place.is_file() else sorted(place.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                whole.update(
                    f"{path.relative_to(tree).as_posix()}\0".encode() + hashlib.sha256(path.read_bytes()).digest()
                )
    return whole.hexdigest()


def tree_commit(tree: Path) -> str:
    """git's name for a tree that is a checkout, with ``-dirty`` where files were changed; empty where it is none."""
    if not (tree / ".git").exists():
        return ""
    command = ["git", "-C", str(tree), "describe", "--always", "--tags", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def build_key(source: str, options: dict[str, str]) -> str:
    """Names a build: same sources (by their name or digest), options, compiler and CPU give the same key."""
    parts = [source, compiler_version(), cpu_flags(), json.dumps(options, sort_keys=True)]
    parts += [own_code()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _environment(root: Path, source: Path, programs: Path) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in IGNORED_VARIABLES}
    environment["PATH"] = f"{programs}{os.pathsep}{environment.get('PATH', os.defpath)}"
    environment["CMAKE_BUILD_PARALLEL_LEVEL"] = str(len(os.sched_getaffinity(0)))
    # llama.cpp asks git for its build number; without a ceiling git would answer with this project's.
    environment["GIT_CEILING_DIRECTORIES"] = str(source.parent)
    environment["PYTHONUNBUFFERED"] = "1"
    if shutil.which("ccache"):
        for language in ("C", "CXX"):
            environment.setdefault(f"CMAKE_{language}_COMPILER_LAUNCHER", "ccache")
        environment["CCACHE_BASEDIR"] = str(root)  # the same objects, wherever the clone lies
        # What GGML_NATIVE makes depends on the CPU, and the folder may be one for several machines.
        environment["CCACHE_NAMESPACE"] = hashlib.sha256(cpu_flags().encode()).hexdigest()
    return environment


def _progress(line: str) -> str | None:
    done = re.match(r"\[(\d+)/(\d+)\] ", line)
    return f"{done[1]} of {done[2]} files compiled ({100 * int(done[1]) // int(done[2])} %)" if done else None


def check_backend(backend: str) -> None:
    """Raise UserError where llama.cpp cannot be compiled for a backend here."""
    if backend == "metal" and sys.platform != "darwin":
        raise UserError("the backend metal is Apple's, and this is no Mac: take cuda or vulkan")
    program, origin = COMPILERS.get(backend, ("", ""))
    if program and not shutil.which(program):
        raise UserError(f"the backend {backend} is compiled with {program}, which is not on the PATH: install {origin}")


def build_wheel(root: Path, source: Path, programs: Path, console: Console, handle: int, backend: str = "cpu") -> Path:
    """The bindings' wheel for this machine: from the cache, or compiled. ``programs`` is the environment's bin folder.

    ``backend``: what llama.cpp can compute on beside the CPU. Raises UserError (no compiler) and Failed (with the
    compiler's output).
    """
    check_backend(backend)
    key = build_key(source.name, OPTIONS | BACKENDS[backend])
    target = root / ".cache" / "wheels" / key
    if not target.is_dir():
        console.step("compiling llama.cpp, once for this machine (5 to 7 minutes on 2 cores)")
        build = root / ".cache" / "build" / key  # kept by a run that is killed: the next compiles only what is missing
        options = OPTIONS | BACKENDS[backend] | {"CMAKE_PROJECT_llama_cpp_INCLUDE": str(CHAT / "chat_template.cmake")}
        settings = {f"cmake.define.{name}": value for name, value in options.items()} | {"build-dir": str(build)}
        with atomic_folder(target) as scratch:
            command = [str(programs / "python"), "-c", BUILD_WHEEL, str(scratch), json.dumps(settings)]
            run(console, command, _progress, _environment(root, source, programs), source, handle)
        shutil.rmtree(build, ignore_errors=True)
    (wheel,) = target.glob("*.whl")
    return wheel


def build_tools(root: Path, source: Path, programs: Path, console: Console, handle: int) -> Path:
    """llama-mtmd-cli and llama-server in ``.cache/llama-tools``, compiled if need be. Raises as build_wheel does."""
    key = build_key(source.name, TOOL_OPTIONS)
    target = root / ".cache" / "llama-tools"
    stamp = target / "key.txt"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != key:
        console.step(f"compiling {' and '.join(TOOLS)}, once for this machine (8 minutes on 2 cores)")
        build = root / ".cache" / "build" / key
        environment, cmake = _environment(root, source, programs), str(programs / "cmake")
        options = [f"-D{name}={value}" for name, value in TOOL_OPTIONS.items()]
        tree = str(source / "vendor" / "llama.cpp")
        run(console, [cmake, "-G", "Ninja", "-S", tree, "-B", str(build), *options], None, environment, root, handle)
        run(console, [cmake, "--build", str(build), "--target", *TOOLS], _progress, environment, root, handle)
        with atomic_folder(target) as scratch:
            for file in [build / "bin" / name for name in TOOLS] + sorted((build / "bin").glob("*.so*")):
                shutil.copy(file, scratch, follow_symlinks=False)
            write_text(scratch / "key.txt", key)
        shutil.rmtree(build, ignore_errors=True)
    return target


def runner_code() -> str:
    """SHA-256 of the runner's own sources."""
    paths = [
        path for path in sorted(RUNNER_SOURCE.iterdir()) if path.suffix in (".cpp", ".h", ".inc", ".txt", ".cmake")
    ]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()


def build_runner(root: Path, source: Path, programs: Path, console: Console, handle: int, phone: bool = False) -> Path:
    """The runner in ``.cache/parity-runner``, compiled if need be.

    For a ``phone`` in ``.cache/parity-runner-aarch64``, static, its llama.cpp compiled along with the flags of the
    containers' build. Raises as build_wheel does.
    """
    target = runner_folder(root, phone)
    options = _phone_options(root, source) if phone else _runner_options(source, programs)
    key = build_key(f"{source.name} {runner_code()}", options)
    stamp = target / "key.txt"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == key:
        return target
    console.step(f"compiling the runner ({'5 minutes' if phone else '30 seconds'} on 2 cores)")
    build = root / ".cache" / "build" / key
    environment, cmake = _environment(root, source, programs), str(programs / "cmake")
    settings = [f"-D{name}={value}" for name, value in options.items()]
    tree = str(source / "vendor" / "llama.cpp") if phone else str(RUNNER_SOURCE)
    run(console, [cmake, "-G", "Ninja", "-S", tree, "-B", str(build), *settings], None, environment, root, handle)
    run(console, [cmake, "--build", str(build), "--target", RUNNER], _progress, environment, root, handle)
    made = build / "bin" / RUNNER if phone else build / RUNNER
    if phone:
        run(console, ["aarch64-linux-gnu-strip", str(made)], None, environment, root, handle)
    with atomic_folder(target) as scratch:
        shutil.copy(made, scratch)
        write_text(scratch / "key.txt", key)
    shutil.rmtree(build, ignore_errors=True)
    return target


def _runner_options(source: Path, programs: Path) -> dict[str, str]:
    """For this machine: on the very libraries that the bindings load, so that not a bit can differ."""
    (libraries,) = programs.parent.glob("lib/python3*/site-packages/llama_cpp/lib")
    return {
        "CMAKE_BUILD_TYPE": "Release",
        "LLAMA_CPP": str(source / "vendor" / "llama.cpp"),
        "LIBRARIES": str(libraries),
        "PARITY_LLAMA_COMMIT": _commit(source),
    }


def _phone_options(root: Path, source: Path) -> dict[str, str]:
    """For a phone: as docker/llama.sh, with the flags of docker/versions.env."""
    if not shutil.which(RUNNER_CROSS):
        raise UserError(f"{RUNNER_CROSS} is not on the PATH: install it with `apt-get install g++-aarch64-linux-gnu`")
    pins = (root / "docker" / "versions.env").read_text(encoding="utf-8")
    flags = dict(re.findall(r"^(LLAMA_FLAGS\w*)='(.*)'$", pins, re.MULTILINE))
    given = shlex.split(f"{flags['LLAMA_FLAGS']} {flags['LLAMA_FLAGS_AARCH64']}")
    return dict(flag.removeprefix("-D").split("=", 1) for flag in given) | {
        "CMAKE_PROJECT_llama.cpp_INCLUDE": str(RUNNER_SOURCE / "runner.cmake"),
        "LLAMA_BUILD_NUMBER": "0",
        "LLAMA_BUILD_COMMIT": _commit(source),
        "PARITY_LLAMA_COMMIT": _commit(source),
    }


def _commit(source: Path) -> str:
    """The commit of llama.cpp in a source distribution of the bindings."""
    return LLAMA_CPP_COMMIT[source.name.rpartition("-")[2]]


def build_other(tree: Path, root: Path, source: Path, programs: Path, console: Console, handle: int) -> Path:
    """The pinned bindings over another llama.cpp, ``tree``: a folder of ``.cache/llama-cpp`` for PYTHONPATH.

    llama_cpp/    the bindings' Python files, and the libraries of ``tree``
    llama.cpp/    its converter
    source.json   ``tree``: SHA-256 of its files; ``commit``: what git calls it, where it is a checkout

    ``source``: the bindings' source distribution. The bindings are written against one version of llama.cpp's C
    interface, so a tree whose interface has changed may fail to load, or worse. Raises UserError (no such tree, no
    compiler, files that change meanwhile) and Failed (with the compiler's output).
    """
    digest = tree_digest(tree)
    key = build_key(digest, TOOL_OPTIONS)
    target = root / ".cache" / "llama-cpp" / key
    if target.is_dir():
        return target
    console.step(f"compiling the llama.cpp in {tree} beside the pinned one (2 to 7 minutes on 2 cores)")
    build = root / ".cache" / "build" / key
    environment, cmake = _environment(root, tree, programs), str(programs / "cmake")
    included = {"CMAKE_PROJECT_llama.cpp_INCLUDE": str(CHAT / "chat_template.cmake")}
    options = [f"-D{name}={value}" for name, value in {**TOOL_OPTIONS, **included}.items()]
    run(console, [cmake, "-G", "Ninja", "-S", str(tree), "-B", str(build), *options], None, environment, root, handle)
    run(console, [cmake, "--build", str(build), "--target", *LIBRARIES], _progress, environment, root, handle)
    if tree_digest(tree) != digest:
        raise UserError(f"files in {tree} changed while it was compiled: run the same command again")
    with atomic_folder(target) as scratch:
        shutil.copytree(
            source / "llama_cpp", scratch / "llama_cpp", ignore=shutil.ignore_patterns("lib", "__pycache__")
        )
        (scratch / "llama_cpp" / "lib").mkdir()
        for file in sorted((build / "bin").glob("*.so*")):
            shutil.copy(file, scratch / "llama_cpp" / "lib", follow_symlinks=False)
        script, *folders = CONVERTER
        for name in folders:
            shutil.copytree(tree / name, scratch / "llama.cpp" / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(tree / script, scratch / "llama.cpp")
        write_json(scratch / "source.json", {"tree": digest, "commit": tree_commit(tree)})
    shutil.rmtree(build, ignore_errors=True)
    return target
