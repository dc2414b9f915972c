"""Odd places: names, folders, clocks and standard outputs that a careful program meets some day."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from accounts import account, differences
from forking import ROOT, Ended, Forks
from states import INCONCLUSIVE, WORKS, States, copy_state
from tally import tally

USAGE = 2
BOTH = ("runs/small/parity/hf.results.jsonl", "runs/small/parity/llamacpp.results.jsonl")
JUDGE = ("parity", "judge", *BOTH)
REPORT, VERIFY = ("parity", "report", "runs/small"), ("pipeline", "verify", "runs/small/bundle")


def sound(ended: Ended, *codes: int, kind: str = "odd places", said: str = "") -> None:
    """Count a program's end and fail where it is not one of those that may be."""
    wrong = ended.code not in codes or (ended.code == USAGE and ended.err.count("error:") != 1) or said not in ended.err
    tally(kind, tried=1, tracebacks=ended.traceback, hangs=ended.hung, wrong_codes=wrong)
    assert not ended.hung
    assert not ended.traceback, ended.brief
    assert not wrong, ended.brief


def done_again(said: str) -> list[str]:
    """What a run says of work that it did, though all was done. It always judges anew, and writes its reports."""
    lines = [line for line in said.splitlines() if line.endswith(" s)")]
    return [line for line in lines if line.split()[1] not in ("judge", "report")]


def same_end(states: States, run: Path, name: str) -> None:
    """Fail where a run is not what an undisturbed one is."""
    found = differences(account(run), states.wanted(name))
    tally("odd places", lost=bool(found))
    assert not found


# ---- where it is -----------------------------------------------------------------------------------------------------

ODD = [
    "two words",
    "quote ' \" end",
    "ünï — 火",
    "$HOME `id` $(id) ;&|",
    "-rf",
    "new\nline",
    "[bold]x[/bold]",
    "a%20b*?",
]


@pytest.mark.attack
@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("work", ["dataset", "export", "parity"])
def test_folders_of_any_name(forks: Forks, states: States, tmp_path: Path, name: str, work: str) -> None:
    where = states.begin(work, tmp_path / name)
    sound(forks.run(*WORKS[work].words, cwd=where), WORKS[work].code)
    same_end(states, where / "runs" / "small", work)


@pytest.mark.attack
@pytest.mark.parametrize("name", ODD)
def test_runs_and_recipe_of_any_name(forks: Forks, states: States, tmp_path: Path, name: str) -> None:
    where = states.begin("parity", tmp_path / "here")
    (where / name).parent.mkdir(exist_ok=True)  # [/bold] has a slash in it
    (where / "runs").rename(where / name)
    (where / "small.yaml").rename(where / f"{name}.yaml")
    ended = forks.run("parity", "run", "--runs", name, "--", f"{name}.yaml", cwd=where)
    sound(ended, INCONCLUSIVE)
    same_end(states, where / name / "small", "parity")


@pytest.mark.attack
def test_a_name_that_is_not_unicode(forks: Forks, states: States, tmp_path: Path) -> None:
    where = states.begin("export", Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")))
    sound(forks.run(*WORKS["export"].words, cwd=where), 0, USAGE)


def deep(place: Path, length: int) -> str:
    """A relative path of so many letters, made step by step, as no single call takes it."""
    parts = [f"{number:03d}" + "x" * 197 for number in range(length // 201)]
    parts += ["y" * (length - 201 * len(parts))] if length % 201 else []
    handle = os.open(place, os.O_RDONLY)
    for part in parts:
        os.mkdir(part, dir_fd=handle)
        inner = os.open(part, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(handle)
    return "/".join(parts)


@pytest.mark.attack
@pytest.mark.parametrize("length", [300, 1000, 3000, 3900, 4000, 4050, 4090, 4200])
@pytest.mark.parametrize("work", ["dataset", "parity"])
def test_runs_in_a_path_of_thousands_of_letters(
    forks: Forks, states: States, tmp_path: Path, length: int, work: str
) -> None:
    """As far as the kernel goes (4,095 letters) it works; beyond, it is a sentence."""
    where = states.begin(work, tmp_path / "here")
    runs = deep(where, length)
    before = account(where / "runs")
    ended = forks.run(*WORKS[work].words, "--runs", runs, cwd=where)
    sound(ended, WORKS[work].code, USAGE)
    if length <= 1000:
        assert ended.code == WORKS[work].code, ended.err
    assert account(where / "runs") == before


@pytest.mark.attack
@pytest.mark.parametrize("length", [1000, 3000, 3800])
def test_a_working_folder_of_thousands_of_letters(forks: Forks, states: States, tmp_path: Path, length: int) -> None:
    where = tmp_path / deep(tmp_path, length)
    shutil.copytree(states.end("train"), where, dirs_exist_ok=True)
    sound(forks.run(*WORKS["merge"].words, cwd=where), 0, USAGE)


@pytest.mark.attack
@pytest.mark.parametrize("key", ["name", "export.name"])
@pytest.mark.parametrize("length", [200, 235, 250, 256, 300, 4000])
def test_names_of_hundreds_of_letters(forks: Forks, states: States, tmp_path: Path, key: str, length: int) -> None:
    """What no file system takes (more than 255 bytes) is a sentence; up to there it works or is one."""
    where = states.begin("export", tmp_path / "here")
    option = f"{key}={'n' * length}"
    sound(forks.run(*WORKS["export"].words, "--set", option, cwd=where), USAGE, *([0] if length < 256 else []))


@pytest.mark.attack
def test_from_another_folder_nothing_is_done_again(forks: Forks, states: States, tmp_path: Path) -> None:
    """Paths are as they are given; what was made from one folder is known from another."""
    where = copy_state(states.end("parity"), tmp_path / "here")
    before = {path: path.stat().st_mtime_ns for path in where.rglob("*.safetensors")}
    for cwd, recipe, runs in (
        ("/", where / "small.yaml", where / "runs"),
        (where / "runs" / "small", "../../small.yaml", ".."),
    ):
        ended = forks.run("parity", "run", str(recipe), "--runs", str(runs), cwd=cwd)
        sound(ended, INCONCLUSIVE)
        worked = done_again(ended.err)
        tally("odd places", lost=bool(worked))
        assert not worked, worked
    assert {path: path.stat().st_mtime_ns for path in where.rglob("*.safetensors")} == before


@pytest.mark.attack
def test_a_working_folder_that_is_gone(forks: Forks, states: States, tmp_path: Path) -> None:
    """Of a shell whose folder somebody removed."""
    run = copy_state(states.end("parity"), tmp_path / "here")
    for words in (
        (*JUDGE[:2], *(str(run / path) for path in BOTH)),
        ("pipeline", "dataset", str(run / "small.yaml")),
        ("parity", "report", str(run / "runs" / "small")),
    ):
        gone = tmp_path / "gone"
        gone.mkdir()
        program = forks.start(*words, cwd=gone, gone=True)
        sound(program.wait(), 0, INCONCLUSIVE, USAGE)


@pytest.mark.attack
@pytest.mark.parametrize("name", ["dataset", "base", "train", "merge", "export", "parity", "shards", "taken"])
def test_without_a_place_for_temporary_files(forks: Forks, states: States, tmp_path: Path, name: str) -> None:
    """/tmp, /var/tmp and /dev/shm cannot be written to."""
    if os.getuid() != 0 or not Path("/mnt").is_dir():
        pytest.skip("only root can cover /tmp for a program, and it needs the folder /mnt")
    where = states.begin(name, tmp_path / "here")
    sound(forks.run(*WORKS[name].words, cwd=where, no_tmp=True), WORKS[name].code)
    same_end(states, where / "runs" / WORKS[name].run, name)


# ---- when it is ------------------------------------------------------------------------------------------------------


@pytest.mark.attack
@pytest.mark.parametrize("name", ["dataset", "base", "train", "merge", "export", "parity", "shards", "taken"])
def test_a_clock_that_is_set_back(forks: Forks, states: States, tmp_path: Path, name: str) -> None:
    """It is in 1971, goes backwards, and every file is from the future; nothing of it may be asked for the order."""
    where = states.begin(name, tmp_path / "here")
    for path in where.rglob("*"):
        os.utime(path, (4e9, 4e9))
    sound(forks.run(*WORKS[name].words, cwd=where, backwards=True), WORKS[name].code)
    same_end(states, where / "runs" / WORKS[name].run, name)
    again = forks.run(*WORKS[name].words, cwd=where, backwards=True)
    sound(again, WORKS[name].code)
    assert not done_again(again.err)


# ---- what it prints to -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [JUDGE, REPORT, ("parity", "diff", BOTH[0], BOTH[0])])
@pytest.mark.attack
def test_a_reader_that_goes_away(forks: Forks, states: States, tmp_path: Path, words: tuple[str, ...]) -> None:
    """As in ``parity judge ... | head -1``: the exit code stays the verdict's."""
    where = copy_state(states.end("parity"), tmp_path / "here")
    code = forks.run(*words, cwd=where).code
    for read in (0, 1):
        sound(gone_after(forks, where, words, read), code, kind="output")


def gone_after(forks: Forks, where: Path, words: tuple[str, ...], count: int) -> Ended:
    """How a program ends whose reader takes so many letters and goes."""
    pipe = where / "pipe"
    os.mkfifo(pipe)

    def read() -> None:
        with open(pipe, "rb", buffering=0) as file:
            file.read(count)

    reader = threading.Thread(target=read)
    reader.start()
    ended = forks.run(*words, cwd=where, out=pipe)
    reader.join()
    pipe.unlink()
    return ended


@pytest.mark.attack
@pytest.mark.parametrize("words", [JUDGE, REPORT, VERIFY, WORKS["parity"].words, ("pipeline", "--help")])
@pytest.mark.parametrize("where_to", [">&-", ">/dev/full"])
def test_an_output_that_is_closed_or_full(
    forks: Forks, states: States, tmp_path: Path, words: tuple[str, ...], where_to: str
) -> None:
    """Closed, nobody wants to see anything, and the code is the verdict's; full, it may be said instead."""
    where = copy_state(states.end("parity"), tmp_path / "here")
    code = forks.run(*words, cwd=where).code
    command = ["sh", "-c", f'exec "$@" {where_to}', "sh", sys.executable, "-m", f"{words[0]}.cli", *words[1:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=where, env=environment, stderr=subprocess.PIPE, text=True, timeout=120, check=False
    )
    ended = Ended(done.returncode, "", done.stderr)
    sound(ended, code, *([USAGE] if where_to == ">/dev/full" else []), kind="output")
    assert "Exception ignored" not in ended.err
