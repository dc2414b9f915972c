"""The run that the attacks begin from, as it stands before each of its works, and what an undisturbed run makes."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accounts import account
from forking import Forks
from watching import Event, why_not

RECIPE = """
name: small
dataset: {n_per_class: 4, val_fraction: 0.25, test_fraction: 0.5}
base: {model: "embedded:tiny"}
train: {epochs: 2, learning_rate: 2.0e-3, batch_size: 8, gradient_accumulation: 1, gradient_checkpointing: false}
export: {name: Small}
contract: {max_new_tokens: 2, gate: {margin_points: 10.0}}
"""
STEPS, IMAGES = 4, 10
"""Of a training, with a checkpoint after each second step; and those that are judged."""
INCONCLUSIVE = 3
"""The exit code of the verdict: ten images cannot show anything."""


EVENTS, SECONDS = "events.txt", "seconds.txt"
"""In the folder of a state: the calls that changed files on the way to it, those that count, a line each; how long it
took."""


@dataclass(frozen=True)
class Work:
    """A command line, and the state that it begins from."""

    words: tuple[str, ...]
    begins: str
    """The work whose end it begins from; empty: the recipe alone."""
    run: str = "small"
    """The folder in runs/ that it writes."""
    code: int = 0


def _work(words: str, begins: str, **options: Any) -> Work:
    program, job, *rest = words.split()
    return Work((program, job, "small.yaml", *rest), begins, **options)


WORKS = {
    "dataset": _work("pipeline dataset", ""),
    "base": _work("pipeline base", "dataset"),
    "train": _work("pipeline train", "base"),
    "merge": _work("pipeline merge", "train"),
    "export": _work("pipeline export", "merge"),
    "parity": _work("parity run", "export", code=INCONCLUSIVE),
    "sides": _work("parity run --no-ladder", "export", code=INCONCLUSIVE),
    "shard": _work("parity run --shards 2 --shard 1", "export"),
    "other shard": _work("parity run --shards 2 --shard 2", "shard"),
    "shards": _work("parity run --shards 2", "other shard", code=INCONCLUSIVE),
    # What is there already is replaced.
    "dataset again": _work("pipeline dataset --set seed=1", "parity"),
    "train again": _work("pipeline train --set train.learning_rate=1.0e-3", "parity"),
    "export again": _work("pipeline export --set export.text_type=F16", "parity"),
    "parity again": _work("parity run --set export.text_type=F16", "export again", code=INCONCLUSIVE),
    # What another run has made is taken from there.
    "taken": _work("pipeline merge --set name=other", "parity", run="other"),
}


def copy_state(state: Path, place: Path) -> Path:
    """A copy of a state. Models are one file under two names, as nothing here may ever write into one."""

    def copy(source: str, target: str) -> None:
        if source.endswith((".safetensors", ".gguf")):
            Path(target).hardlink_to(source)
        else:
            shutil.copy2(source, target)

    return Path(shutil.copytree(state, place, copy_function=copy))


class States:
    """Makes each state when it is asked for; ``once`` shares them with the other processes of the session."""

    def __init__(self, forks: Forks, once: Any) -> None:
        self._forks, self._once = forks, once
        self._accounts: dict[str, dict[str, Any]] = {}

    def end(self, name: str) -> Path:
        """The folder as the work ``name`` leaves it; never changed. Empty: as it is before any."""

        def make(folder: Path) -> None:
            if not name:
                (folder / "small.yaml").write_text(RECIPE)
                (folder / "runs").mkdir()
                return
            work = WORKS[name]
            begins = self.end(work.begins)
            folder.rmdir()
            copy_state(begins, folder)
            seen: list[Event] = []
            watched = {"watched": folder / "runs", "decide": lambda event: seen.append(event) or 0}
            began = time.monotonic()
            ended = self._forks.run(*work.words, cwd=folder, **(watched if why_not() is None else {}))
            assert ended.code == work.code, ended.out + ended.err
            (folder / SECONDS).write_text(str(time.monotonic() - began))
            (folder / EVENTS).write_text("".join(f"{event}\n" for event in seen if event.counts))

        return Path(self._once(f"state of {name or 'nothing'}", make))

    def events(self, name: str) -> list[str]:
        """The calls that change files in a work that nothing disturbs, those that count."""
        return (self.end(name) / EVENTS).read_text().splitlines()

    def seconds(self, name: str) -> float:
        """How long a work takes."""
        return float((self.end(name) / SECONDS).read_text())

    def begin(self, name: str, place: Path) -> Path:
        """A copy of what the work ``name`` begins from."""
        return copy_state(self.end(WORKS[name].begins), place)

    def found(self, name: str) -> Path:
        """The run's folder as the work ``name`` finds it; never changed."""
        work = WORKS[name]
        return self.end(work.begins) / "runs" / work.run

    def wanted(self, name: str) -> dict[str, Any]:
        """The account of what the work leaves behind where nothing disturbs it."""
        if name not in self._accounts:
            self._accounts[name] = account(self.end(name) / "runs" / WORKS[name].run)
        return self._accounts[name]
