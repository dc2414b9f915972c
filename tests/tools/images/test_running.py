"""A container gets no more than it needs, a key reaches nothing but it, and what comes out is the caller's."""

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from tools.images.engine import Engine
from tools.images.running import RunOptions, container_command, read_keys, run_job, user_options

IMAGE = "android-vlm-parity/train:latest"
DIGEST = "sha256:" + "d" * 64
HARDENED = [
    ["--read-only"], ["--cap-drop", "ALL"], ["--security-opt", "no-new-privileges"], ["--network", "none"], ["--init"],
    ["--rm"], ["--env", "HF_HUB_OFFLINE=1"],
]  # fmt: skip


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a recipe and the digest of image 123; it is the current folder."""
    folder = tmp_path / "checkout"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "tiny.yaml").touch()
    kept = folder / ".cache" / "docker" / "digests" / "123.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps({"content_digest": DIGEST}))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """An engine whose image is 123. ``run`` writes its arguments and the mounted keys down and ends with code 3."""
    client = tmp_path / "docker"
    client.write_text(
        f"#!{sys.executable}\n"
        "import os, pathlib, re, sys\n"
        f"place = pathlib.Path({str(tmp_path)!r})\n"
        "arguments = sys.argv[1:]\n"
        "if arguments[:2] == ['image', 'inspect']: print('sha256:123')\n"
        "if arguments[0] == 'run':\n"
        "    (place / 'arguments').write_text('\\n'.join(arguments))\n"
        "    found = re.search(r'src=(\\S+),dst=/run/secrets/keys', ' '.join(arguments))\n"
        "    if found:\n"
        "        about = os.stat(found[1])\n"
        "        (place / 'keys').write_text(f'{about.st_mode & 0o777:o} {about.st_uid}\\n' + open(found[1]).read())\n"
        "    runs = re.search(r'src=(\\S+),dst=/work/runs', ' '.join(arguments))[1]\n"
        "    (place / 'owner').write_text(str(os.stat(runs).st_uid))\n"
        "    open(runs + '/made', 'w').close(); os.chown(runs + '/made', os.stat(runs).st_uid, -1)\n"
        "    if (place / 'wait').exists():\n"
        "        import signal, threading\n"
        "        signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))\n"
        "        (place / 'ready').touch()\n"
        "        threading.Event().wait(30)\n"
        "    sys.exit(3)\n"
    )
    client.chmod(0o755)
    return Engine("legacy", str(client), "")


def pairs(command: list[str]) -> list[list[str]]:
    """Every word, and every two that follow each other."""
    return [[word] for word in command] + [list(two) for two in pairwise(command)]


def mounted(command: list[str]) -> dict[str, tuple[str, bool]]:
    """Target -> (source, whether it is read-only)."""
    found = {}
    for option, value in pairwise(command):
        if option == "--mount":
            kind, source, target, *rest = value.split(",")
            assert kind == "type=bind"
            found[target.removeprefix("dst=")] = (source.removeprefix("src="), rest == ["readonly"])
    return found


@pytest.mark.parametrize("job", ["train", "parity", "shell"])
def test_every_job_has_as_few_rights(checkout: Path, engine: Engine, job: str) -> None:
    command, _ = container_command(checkout, engine, job, RunOptions(), IMAGE, [], ["--user", "5:6"])
    options = pairs(command[: command.index(IMAGE)])
    assert [wanted for wanted in HARDENED if wanted not in options] == []
    assert ["--user", "5:6"] in options
    assert not any(word.startswith(("--privileged", "--cap-add", "--device", "--volume", "-v")) for word in command)
    assert mounted(command) == {
        "/work/runs": (str(checkout / "runs"), False),
        "/work/configs": (str(checkout / "configs"), True),
    }
    words = command[command.index(IMAGE) + 1 :]
    assert (
        words
        == {
            "train": ["pipeline", "export", "configs/tiny.yaml"],
            "parity": ["parity", "run", "configs/tiny.yaml"],
            "shell": ["bash"],
        }[job]
    )


def test_the_container_is_told_which_image_it_is(checkout: Path, engine: Engine) -> None:
    command, _ = container_command(checkout, engine, "train", RunOptions(), IMAGE, [], [])
    (stated,) = [word for word in command if word.startswith("PARITY_IMAGE=")]
    image = {"name": IMAGE, "id": "sha256:123", "content_digest": DIGEST}
    assert json.loads(stated.removeprefix("PARITY_IMAGE=")) == image


def test_photos_model_and_recipe_are_mounted_to_be_read(checkout: Path, engine: Engine, tmp_path: Path) -> None:
    for name in ("photos", "model", "mine"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine" / "my.yaml").touch()
    options = RunOptions(
        str(tmp_path / "mine" / "my.yaml"), str(tmp_path / "photos"), str(tmp_path / "model"), ["train.epochs=1"]
    )
    command, _ = container_command(checkout, engine, "parity", options, IMAGE, [], [])
    there = mounted(command)
    for target, source in {"/photos": "photos", "/model": "model", "/work/recipe": "mine"}.items():
        assert there[target] == (str(tmp_path / source), True)
    words = command[command.index(IMAGE) + 1 :]
    assert words[:3] == ["parity", "run", "/work/recipe/my.yaml"]
    assert words[3:] == ["--set", "train.epochs=1", "--set", "dataset.path=/photos", "--set", "base.model=/model"]


def test_a_network_is_given_by_name_only(checkout: Path, engine: Engine) -> None:
    command, _ = container_command(checkout, engine, "train", RunOptions(network="bridge"), IMAGE, [], [])
    assert ["--network", "bridge"] in pairs(command)
    assert "none" not in command
    assert "HF_HUB_OFFLINE=1" not in command


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (RunOptions(recipe="no.yaml"), "there is no recipe no.yaml"),
        (RunOptions(photos="nowhere"), "PHOTOS=nowhere is no folder"),
        (RunOptions(model="nowhere"), "MODEL=nowhere is no folder"),
        (RunOptions(photos="a,b"), "for the comma in its name"),
        (RunOptions(runs="a,b"), "for the comma in its name"),
        (RunOptions(runs="configs/tiny.yaml"), "for the results cannot be made: File exists"),
        (RunOptions(keys=["NO_SUCH_VARIABLE"]), "KEYS names NO_SUCH_VARIABLE, which is not set"),
        (RunOptions(keys_file="nowhere"), "KEYS_FILE=nowhere cannot be read: No such file"),
    ],
)
def test_a_mistake_is_one_sentence_and_starts_nothing(
    checkout: Path, engine: Engine, tmp_path: Path, options: RunOptions, words: str
) -> None:
    (checkout / "a,b").mkdir()
    with pytest.raises(UserError, match=words):
        run_job(checkout, engine, "train", options)
    assert not (tmp_path / "arguments").exists()


def test_an_image_that_is_not_there_is_named(checkout: Path, tmp_path: Path) -> None:
    client = tmp_path / "docker"
    client.write_text("#!/bin/sh\nexit 1\n")
    client.chmod(0o755)
    with pytest.raises(UserError, match=f"there is no image {IMAGE}: run `make docker-build` first"):
        run_job(checkout, Engine("legacy", str(client), ""), "train", RunOptions())


def test_buildah_alone_runs_nothing(checkout: Path) -> None:
    with pytest.raises(UserError, match="install docker or podman"):
        run_job(checkout, Engine("buildah", "buildah", ""), "train", RunOptions())


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_keys_come_from_variables_and_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HERE", "a=b c")
    (tmp_path / "keys").write_text("# mine\n\nexport ONE=1\nTWO='2 2'\nFROM_HERE=overridden\n")
    options = RunOptions(keys=["FROM_HERE"], keys_file=str(tmp_path / "keys"))
    assert read_keys(options) == {"ONE": "1", "TWO": "2 2", "FROM_HERE": "a=b c"}


@pytest.mark.parametrize("line", ["hunter2", "=hunter2", "my-name=hunter2"])
def test_a_line_that_is_no_key_is_named_by_number_and_not_repeated(tmp_path: Path, line: str) -> None:
    (tmp_path / "keys").write_text(f"GOOD=hunter2\n{line}\n")
    with pytest.raises(UserError, match="line 2, is not NAME=value") as caught:
        read_keys(RunOptions(keys_file=str(tmp_path / "keys")))
    assert "hunter2" not in str(caught.value)


def test_a_key_of_several_lines_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEM", "hunter2\nrest")
    with pytest.raises(UserError, match=r"PEM .*more than one line") as caught:
        read_keys(RunOptions(keys=["PEM"]))
    assert "hunter2" not in str(caught.value)


def test_a_key_is_in_a_file_that_only_the_container_reads_and_then_gone(
    checkout: Path, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(checkout / "memory"))
    (checkout / "memory").mkdir()
    monkeypatch.setenv("SOME_TOKEN", "hunter2")
    assert run_job(checkout, engine, "train", RunOptions(keys=["SOME_TOKEN"])) == 3
    user = 10001 if os.getuid() == 0 else os.getuid()
    assert (tmp_path / "keys").read_text() == f"600 {user}\nSOME_TOKEN=hunter2\n"
    assert "hunter2" not in (tmp_path / "arguments").read_text()
    assert list((checkout / "memory").iterdir()) == []
    said = capfd.readouterr()
    assert "hunter2" not in said.out + said.err


# ---- whose files -----------------------------------------------------------------------------------------------------


def test_an_ordinary_caller_is_the_containers_user(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 1234)
    monkeypatch.setattr("os.getgid", lambda: 567)
    assert user_options(engine) == (["--user", "1234:567"], None)


def test_root_is_an_ordinary_user_inside(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 0)
    assert user_options(engine) == (["--user", "10001:10001"], (10001, 10001))


def test_a_rootless_engines_root_is_the_caller(tmp_path: Path) -> None:
    client = tmp_path / "docker"
    client.write_text("#!/bin/sh\necho '[name=seccomp,profile=default name=rootless]'\n")
    client.chmod(0o755)
    assert user_options(Engine("legacy", str(client), "")) == (["--user", "0:0"], None)
    assert user_options(Engine("legacy", str(tmp_path / "podman"), "")) == (["--userns=keep-id"], None)


@pytest.mark.skipif(os.getuid() != 0, reason="only root hands files to another user and back")
def test_root_gets_the_results_back(checkout: Path, engine: Engine, tmp_path: Path) -> None:
    assert run_job(checkout, engine, "train", RunOptions()) == 3
    assert (tmp_path / "owner").read_text() == "10001", "while it ran"
    assert {path.stat().st_uid for path in (checkout / "runs", checkout / "runs" / "made")} == {0}


def test_sigterm_reaches_the_engines_client_and_its_exit_code_is_returned(
    checkout: Path, engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "wait").touch()
    code = (
        "import sys; from pathlib import Path\n"
        "from tools.images.engine import Engine\n"
        "from tools.images.running import RunOptions, run_job\n"
        f"sys.exit(run_job(Path({str(checkout)!r}), Engine('legacy', {engine.client!r}, ''), 'train', RunOptions()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "the same command resumes" in process.stdout.readline()
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 130
