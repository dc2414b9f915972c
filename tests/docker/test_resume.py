"""Training in a container that is stopped in every way there is goes on from its last checkpoint, to the same bytes."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest
from images import ROOT, SETTINGS, Running, container_name, end, interrupt, lines_until, start, wait_for

from pipeline.core.files import sha256_file

STEPS = 18
"""In all; a checkpoint every second one."""
Stop = Callable[[docker.DockerClient, str, "subprocess.Popen[str]"], None]


def kill(client: docker.DockerClient, name: str, process: "subprocess.Popen[str]") -> None:
    client.containers.get(name).kill("SIGKILL")


def docker_stop(client: docker.DockerClient, name: str, process: "subprocess.Popen[str]") -> None:
    client.containers.get(name).stop(timeout=60)


def sigterm(client: docker.DockerClient, name: str, process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGTERM)


def ctrl_c(client: docker.DockerClient, name: str, process: "subprocess.Popen[str]") -> None:
    interrupt(process)


STOPS: dict[str, Stop] = {"SIGKILL": kill, "docker stop": docker_stop, "SIGTERM": sigterm, "Ctrl-C": ctrl_c}


@dataclass
class Stopped:
    """A run up to its stop."""

    code: int
    said: str
    before: int
    """The step of the last whole checkpoint that it found; 0 for none."""
    made: set[int]
    """The steps of the checkpoints that it made itself."""
    left: set[str]
    """Containers of that name that are left."""


def whole(runs: Path) -> dict[int, int]:
    """Step -> time of writing of every checkpoint that counts."""
    found = {}
    for marker in runs.glob("tiny/checkpoints/checkpoint-*/complete.json"):
        try:
            found[int(marker.parent.name.partition("-")[2])] = marker.stat().st_mtime_ns
        except FileNotFoundError:  # superseded just now
            continue
    return found


def train_until_stopped(client: docker.DockerClient, runs: Path, stop: Stop) -> Stopped:
    """Train, note each checkpoint that is made, and stop at the first one that is new."""
    before = whole(runs)
    with start("train", "--no-build", "--runs", runs, *SETTINGS) as process:
        lines = lines_until(process, "container ")
        name = container_name(lines[-1])
        made: dict[int, int] = {}

        def new() -> bool:
            made.update({step: time for step, time in whole(runs).items() if before.get(step) != time})
            return bool(made)

        wait_for(new, process)
        stop(client, name, process)
        code, said = end(process)
    left = {container.name for container in client.containers.list(all=True, filters={"name": name})}
    return Stopped(code, said, max(before, default=0), set(made), left)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stopped") / "runs"


@pytest.fixture(scope="module")
def stopped(client: docker.DockerClient, runs: Path) -> dict[str, Stopped]:
    """One training, stopped in every way, one after the other."""
    return {way: train_until_stopped(client, runs, stop) for way, stop in STOPS.items()}


@pytest.mark.parametrize("way", list(STOPS)[1:])
def test_a_stop_is_code_130_and_says_how_to_go_on(stopped: dict[str, Stopped], way: str) -> None:
    assert stopped[way].code == 130, stopped[way].said
    assert stopped[way].said.splitlines()[-1] == "interrupted: run the same command again to go on"
    assert "Traceback" not in stopped[way].said


def test_a_kill_is_not_taken_for_an_end(stopped: dict[str, Stopped]) -> None:
    assert stopped["SIGKILL"].code == 128 + signal.SIGKILL


@pytest.mark.parametrize("way", STOPS)
def test_no_container_is_left(stopped: dict[str, Stopped], way: str) -> None:
    assert stopped[way].left == set()


def test_each_start_goes_on_from_the_last_checkpoint(stopped: dict[str, Stopped]) -> None:
    found = [stopped[way].before for way in STOPS]
    assert found[0] == 0
    assert found[1:] == sorted(set(found[1:])), "each stop came after one more checkpoint"
    for way, training in stopped.items():
        assert min(training.made) == training.before + 2, f"{way}: the next checkpoint after the one that was found"
        assert (f"going on from step {training.before}\n" in training.said) == (training.before > 0), training.said
    assert found[-1] < STEPS


def test_the_end_is_the_same_to_the_byte(stopped: dict[str, Stopped], runs: Path, trained: Running) -> None:
    found = max(whole(runs))
    assert 0 < found < STEPS
    with start("train", "--no-build", "--runs", runs, *SETTINGS) as process:
        code, said = end(process)
    assert code == 0, said
    assert f"going on from step {found}\n" in said
    names = ("bundle/Tiny-Element-Q8_0.gguf", "bundle/mmproj-Tiny-Element-Q8_0.gguf", "merged/model.safetensors")
    for name in names:
        assert sha256_file(runs / "tiny" / name) == sha256_file(trained.run / name), name
    # What was logged on the way, too; the last line has this process's seconds.
    logs = [(run / "logs" / "log.jsonl").read_text().splitlines()[:-1] for run in (runs / "tiny", trained.run)]
    assert len(logs[0]) > STEPS
    assert logs[0] == logs[1]


def test_ctrl_c_in_a_terminal_is_heard_inside(client: docker.DockerClient, tmp_path: Path) -> None:
    """There the engine's client hands the key on and not a signal; and the progress is a live bar."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "tools.images", "train", "--no-build", "--runs", str(tmp_path), *SETTINGS]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        said, pressed = b"", False
        with contextlib.suppress(OSError):  # which is how a terminal ends
            while True:
                said += os.read(ours, 4096)
                if b" images to train on" in said and not pressed:
                    os.write(ours, b"\x03")
                    pressed = True
        code = process.wait()
    os.close(ours)
    assert code == 130, said[-1000:].decode()
    assert said.rstrip().endswith(b"interrupted: run the same command again to go on")
    assert b"images/s" in said
    assert b"Traceback" not in said
