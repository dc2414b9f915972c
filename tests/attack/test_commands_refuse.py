"""The command line, in a process of its own, given what it cannot use: one sentence and the documented exit code."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from bundles import write_fake_bundle
from made import CONTRACT, LOSES, Run, make_run
from malformed import DEPTHS, place_cases, some
from photo_cases import METADATA, SIZE, chunk, png_of, png_parts, seeds
from test_malformed_texts import RECIPE
from trial import ROOT, Case, FalsePass, Hang, Lost, Trials, WrongCode, tried

PIPELINE, PARITY = "pipeline.cli", "parity.cli"
SECONDS = 60


@dataclass(frozen=True)
class Command:
    """A command, with FILE where the malformed file's path goes."""

    kind: str
    module: str
    arguments: tuple[str, ...]
    codes: tuple[int, ...] = (2,)
    """Those that are right for what it is given."""


COMMANDS = [
    Command("recipe", PIPELINE, ("dataset", "FILE", "--runs", "RUN/runs")),
    Command("contract", PIPELINE, ("letterbox", "RUN/photo.png", "RUN/out.png", "--contract", "FILE")),
    Command("photo", PIPELINE, ("letterbox", "FILE", "RUN/out.png"), (0, 2)),
    Command("results", PARITY, ("judge", "FILE", "RUN/parity/llamacpp.results.jsonl")),
    Command("results", PARITY, ("judge", "RUN/parity/hf.results.jsonl", "FILE")),
    Command("results", PARITY, ("diff", "RUN/parity/hf.results.jsonl", "FILE")),
    Command("results", PARITY, ("baseline", "RUN/parity/hf.results.jsonl", "FILE", "--out", "RUN/b.json")),
    Command(
        "contract",
        PARITY,
        ("judge", "RUN/parity/hf.results.jsonl", "RUN/parity/llamacpp.results.jsonl", "--contract", "FILE"),
    ),
    Command(
        "ladder",
        PARITY,
        ("judge", "RUN/parity/hf.results.jsonl", "RUN/parity/llamacpp.results.jsonl", "--ladder", "FILE"),
        (2, 4),
    ),
    Command(
        "baseline",
        PARITY,
        ("judge", "RUN/parity/hf.results.jsonl", "RUN/parity/llamacpp.results.jsonl", "--baseline", "FILE"),
    ),
    Command("results", PARITY, ("plan", "FILE", "RUN/parity/llamacpp.results.jsonl", "--out", "RUN/p.json")),
    Command(
        "plan",
        PARITY,
        ("judge", "RUN/parity/hf.results.jsonl", *["RUN/parity/llamacpp.results.jsonl"] * 2, "--plan", "FILE"),
    ),
]


def damaged(command: Command, run: Run) -> list[Case]:
    """The worst of each kind of damage: the lists of the readers' own tests are long."""
    name = next(part for part in reversed(command.arguments) if part == "FILE")
    assert name
    texts = {
        "recipe": RECIPE.encode(),
        "contract": CONTRACT.model_dump_json().encode(),
        "photo": seeds()["rgb.png"],
        "results": run.llamacpp.read_bytes(),
        "ladder": run.ladder.read_bytes(),
        "baseline": b'{"schema_version": 1, "kind": "baseline", "status": "PASS"}',
        "plan": b'{"schema_version": 1, "kind": "plan", "seed": ""}',
    }
    data = texts[command.kind]
    files: dict[str, bytes] = {
        "nothing": b"",
        "a NUL": b"\0" * 100,
        "half of it": data[: len(data) // 2],
        "null": b"null\n",
        "a list": b"[]\n",
        "deep lists": b"[" * 100_000 + b"]" * 100_000 + b"\n",
        "deep objects": b'{"a":' * 100_000 + b"\n",
        "5,000 digits": b'{"schema_version": ' + b"9" * 5000 + b', "side": 1, "kind": 1}\n',
        "NaN": b'{"schema_version": NaN, "side": 1, "kind": 1}\n',
        "half a surrogate": b'{"schema_version": "\\ud800", "side": "\\ud800", "kind": "\\ud800"}\n',
        "UTF-16": data.decode(errors="replace").encode("utf-16"),
        "0xff": b"\xff" * 1000,
    }
    if command.kind == "photo":
        parts = png_parts(data)
        files = {"nothing": b"", "half of it": data[: len(data) // 2], "a text": b"hello"}
        for what, content in METADATA.items():
            files[f"EXIF {what}"] = png_of([parts[0], (b"eXIf", content), *parts[1:]])
        files["a palette with 300 transparencies"] = png_of(
            [*png_parts(seeds()["palette.png"])[:2], (b"tRNS", bytes(300)), *png_parts(seeds()["palette.png"])[3:]]
        )
        files["a side of 2**31"] = data[:8] + chunk(b"IHDR", b"\x7f\xff\xff\xff" * 2 + parts[0][1][8:]) + data[33:]
        files["a picture of no height"] = (
            data[:8] + chunk(b"IHDR", bytes([0, 0, 0, SIZE[0], 0, 0, 0, 0]) + parts[0][1][8:]) + data[33:]
        )
    made = [Case(name, partial(_put, content)) for name, content in files.items()]
    return made + [case for case in place_cases() if case.name != "a link to /dev/zero" or command.kind != "photo"]


def _put(content: bytes, path: Path) -> None:
    path.write_bytes(content)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that must fail, around a bundle without weights."""
    folder = tmp_path_factory.mktemp("commands")
    made = make_run(folder / "run", write_fake_bundle(folder / "bundle"), LOSES)
    (made.root / "photo.png").write_bytes(seeds()["rgb.png"])
    (made.root / "recipe.yaml").write_text(RECIPE)
    return made


def ended(module: str, arguments: Iterable[str | Path], codes: Iterable[int]) -> None:
    """Run a command to its end. Raises WrongCode, FalsePass or Hang; a traceback is raised as what it is."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, env=environment, cwd=ROOT, check=False)
    except subprocess.TimeoutExpired:
        raise Hang(f"not back after {SECONDS} s") from None
    said = done.stderr.decode(errors="replace")
    if "Traceback" in said or done.returncode in (70, *range(-64, 0)):
        raise RuntimeError(f"exit code {done.returncode}: {said.strip()[-300:]}")
    if done.returncode not in codes:
        count = FalsePass if done.returncode == 0 and command[3] in ("judge", "report", "gate") else WrongCode
        raise count(f"exit code {done.returncode}: {said.strip()[-300:]}")
    if done.returncode and len([line for line in said.splitlines() if line.startswith(("error:", "failed:"))]) > 1:
        raise WrongCode(f"more than one sentence: {said[-300:]}")


@DEPTHS
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.arguments[:3]))
def test_a_command_refuses_what_it_cannot_use(
    command: Command, depth: str, run: Run, tmp_path: Path, trials: Trials
) -> None:
    for number, case in enumerate(some(damaged(command, run), "quick", 1 if depth == "quick" else 12)):
        file = tmp_path / f"{number}.file"
        case.put(file)
        arguments = [str(file) if part == "FILE" else part.replace("RUN", str(run.root)) for part in command.arguments]
        outcome = tried(lambda arguments=arguments: ended(command.module, arguments, command.codes), SECONDS + 10)
        trials.note(command.kind, f"{' '.join(command.arguments[:2])}: {case.name}", outcome, file)


SETTINGS = [
    "contract.labels=[a, b",
    "train.epochs=2026-11-27",
    "train.epochs=!!int abc",
    "seed=" + "9" * 5000,
    "seed=" + "[" * 9000,
    "contract.gate.noise_factor=.inf",
    "contract.gate.noise_factor=.nan",
    "name=" + "n" * 300,
    "name=../out",
    "name=*a",
    "train.learning_rate=.inf",
    "dataset.n_per_class=999999999999999999999999",
    "contract.labels=&a [*a, *a]",
]


@DEPTHS
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting[:40])
def test_a_setting_that_cannot_be_is_refused(
    setting: str, depth: str, run: Run, tmp_path: Path, trials: Trials
) -> None:
    if depth == "quick" and setting not in SETTINGS[:2]:
        return
    arguments = ("dataset", run.root / "recipe.yaml", "--runs", tmp_path / "runs", "--set", setting)
    trials.note("recipe", setting[:60], tried(lambda: ended(PIPELINE, arguments, (2,)), SECONDS + 10))


# --- places to write to ----------------------------------------------------------------------------------------------


def out_places() -> list[Case]:
    """What may not be replaced by a file, whatever the command."""
    kept = ("a FIFO", "a folder", "a socket", "a link to a folder", "a link to /dev/null", "a link to itself")
    return [case for case in place_cases() if case.name in kept] + [Case("a device", _device)]


def _device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))  # as /dev/null
    except PermissionError:  # only root may: a FIFO is as good
        os.mkfifo(path)


OUT = {
    "letterbox": (PIPELINE, ("letterbox", "RUN/photo.png", "FILE")),
    "judge --out": (
        PARITY,
        ("judge", "RUN/parity/hf.results.jsonl", "RUN/parity/llamacpp.results.jsonl", "--out", "FILE"),
    ),
    "diff --out": (
        PARITY,
        ("diff", "RUN/parity/hf.results.jsonl", "RUN/parity/llamacpp.results.jsonl", "--out", "FILE"),
    ),
    "baseline --out": (
        PARITY,
        ("baseline", "RUN/parity/hf.results.jsonl", "RUN/parity/llamacpp.results.jsonl", "--out", "FILE"),
    ),
    "--runs": (PIPELINE, ("dataset", "RUN/recipe.yaml", "--runs", "FILE")),
}


@DEPTHS
@pytest.mark.parametrize("name", OUT)
def test_what_is_no_file_is_not_written_over(name: str, depth: str, run: Run, tmp_path: Path, trials: Trials) -> None:
    module, parts = OUT[name]
    cases = [case for case in out_places() if name != "--runs" or case.name not in ("a folder", "a link to a folder")]
    for case in some(cases, "quick", 1 if depth == "quick" else 99):
        place = tmp_path / f"{case.name.replace('/', '-')}"
        case.put(place)
        before = place.lstat()

        def write(place: Path = place, before: os.stat_result = before) -> None:
            arguments = [str(place) if part == "FILE" else part.replace("RUN", str(run.root)) for part in parts]
            ended(module, arguments, (2,))
            after = place.lstat()
            if (after.st_mode, after.st_ino) != (before.st_mode, before.st_ino):
                raise Lost(f"{place} was replaced")

        trials.note("places", f"{name} {case.name}", tried(write, SECONDS + 10))


def test_the_commands_end_well_with_what_they_can_use(run: Run, tmp_path: Path) -> None:
    """Else they would refuse whatever they are given."""
    files = {"recipe": run.root / "recipe.yaml", "photo": run.root / "photo.png", "ladder": run.ladder}
    (tmp_path / "contract.json").write_text(CONTRACT.model_dump_json())
    files["contract"] = tmp_path / "contract.json"
    for command in COMMANDS:
        if command.kind in ("results", "baseline", "plan"):
            continue
        file = Path(shutil.copyfile(files[command.kind], tmp_path / command.kind))
        arguments = [str(file) if part == "FILE" else part.replace("RUN", str(run.root)) for part in command.arguments]
        arguments = [part.replace(str(run.root / "runs"), str(tmp_path / "runs")) for part in arguments]
        ended(command.module, arguments, (0, 1))
