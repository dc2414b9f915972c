"""A stage runs when something it depends on changed, and is skipped otherwise.

``stages/<name>.json`` in the run's folder holds what the stage depended on (settings, hashes of its inputs, hash of its
code, package versions) and the hash of every file it made. A stage whose record equals what it would depend on now,
and whose files are still what it made, has nothing to do. Where they are not, the run says so and removes them before
it makes them again, so that nothing goes on from a file that somebody edited. The record is written after the files, so
a killed stage has none; what only a killed stage needs is cleaned away after the record. The code is what the function
that does the work can execute (:mod:`pipeline.core.closure`). Nothing depends on the rest of the record: the result in
a few words, the seconds, and how threads waited for one another.

What another run has made of just the same is taken from there: a recipe with another quantization trains nothing again.
Large files are then one file under two names (hard links), so nothing here may ever write into a file that a stage
made; all of it is written beside and put in place.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.closure import code_digest
from pipeline.core.files import atomic_folder, read_regular, remove, sha256_file, shown, write_bytes, write_json
from pipeline.core.openmp import settled
from pipeline.core.provenance import digest, folder_hashes


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    ``depends`` is JSON-able; ``work`` makes ``outputs``, files and folders relative to the run's folder, and returns a
    few words on its result. It is a function of a module of this project, or a partial of one.
    """

    name: str
    depends: dict[str, Any]
    work: Callable[[], str]
    outputs: tuple[str, ...]
    clean: Callable[[], None] = lambda: None
    """Removes what is of no use once the record stands; called whenever the stage is done, as a kill may cut it off."""
    record: str = ""
    """The record's name where it is not the stage's."""

    def _made(self, root: Path) -> dict[str, str]:
        made: dict[str, str] = {}
        for output in self.outputs:
            path = root / output
            if path.is_dir():
                made |= {f"{output}/{name}": value for name, value in folder_hashes(path).items()}
            elif path.is_file():
                made[output] = sha256_file(path)
        return made

    def run(self, root: Path, say: Callable[[str, str], None], elsewhere: Iterable[Path] = ()) -> str:
        """Do the work unless it is done; returns the digest of what the stage made.

        ``say`` gets the stage's name and a line for the person waiting; ``elsewhere`` are folders of other runs.
        """
        wanted = json.loads(json.dumps({"depends": self.depends, "code": code_digest(self.work)}))
        known = self._known(root, wanted)
        if known and known["made"] == self._made(root):
            self.clean()
            say(self.name, f"unchanged: {known['result']}")
            return digest(known["made"])
        if known:
            self._drop_changed(root, known["made"], say)
        for other in elsewhere if self.outputs else ():
            known = self._known(other, wanted)
            if known and known["made"] == self._made(other) and self._take(other, root, known):
                self.clean()
                say(self.name, f"as in {other}: {known['result']}")
                return digest(known["made"])
        start = time.perf_counter()
        result = self.work()
        seconds = time.perf_counter() - start
        made = self._made(root)
        about = {"seconds": round(seconds, 2), "threads": settled()}
        write_json(self._record(root), {"wanted": wanted, "made": made, "result": result} | about)
        self.clean()
        say(self.name, f"{result} ({seconds:.1f} s)")
        return digest(made)

    def _record(self, root: Path) -> Path:
        return root / "stages" / f"{self.record or self.name}.json"

    def _known(self, root: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
        """The record in a run's folder if it is one, and of ``wanted``; its files may be others by now."""
        try:
            known = json.loads(read_regular(self._record(root)))
            if known["wanted"] == wanted and known["made"] and isinstance(known["result"], str):
                return {**known, "made": dict(known["made"])}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        return None

    def _drop_changed(self, root: Path, made: dict[str, Any], say: Callable[[str, str], None]) -> None:
        """Say which files are not what the stage made, and remove the outputs that they are in."""
        found = self._made(root)
        names = sorted(name for name in made.keys() | found.keys() if made.get(name) != found.get(name))
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        say(self.name, f"{shown(names[0])}{more} changed since it was made: made again")
        for output in self.outputs:
            if any(name == output or name.startswith(f"{output}/") for name in names):
                remove(root / output)

    def _take(self, other: Path, root: Path, known: dict[str, Any]) -> bool:
        """Put another run's files in place here; False where that run changed them meanwhile."""
        try:
            for output in self.outputs:
                target = root / output
                if (other / output).is_dir():
                    with atomic_folder(target) as scratch:
                        shutil.copytree(other / output, scratch, copy_function=_link, dirs_exist_ok=True)
                else:
                    write_bytes(target, (other / output).read_bytes())
        except OSError:  # a file that went away; a full disk is told by the work, which comes next
            return False
        if self._made(root) != known["made"]:
            return False
        write_json(self._record(root), known)
        return True


def _link(source: str, target: str) -> None:
    """One file under two names where the file system can, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
