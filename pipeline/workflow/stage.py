"""A stage runs when something it depends on changed, and is skipped otherwise.

``stages/<name>.json`` in the run's folder holds what the stage depended on (settings, hashes of its inputs, hash of its
code, package versions) and the hash of every file it made. A stage whose record equals what it would depend on now,
and whose files are still what it made, has nothing to do. The record is written after the files, so a killed stage has
none. The code is what the function that does the work can execute (:mod:`pipeline.core.closure`).
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.closure import code_digest
from pipeline.core.files import sha256_file, write_json
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

    def _made(self, root: Path) -> dict[str, str]:
        made: dict[str, str] = {}
        for output in self.outputs:
            path = root / output
            if path.is_dir():
                made |= {f"{output}/{name}": value for name, value in folder_hashes(path).items()}
            elif path.is_file():
                made[output] = sha256_file(path)
        return made

    def run(self, root: Path, say: Callable[[str, str], None]) -> str:
        """Do the work unless it is done; returns the digest of what the stage made.

        ``say`` gets the stage's name and a line for the person waiting.
        """
        wanted = {"depends": self.depends, "code": code_digest(self.work)}
        wanted = json.loads(json.dumps(wanted))
        record = root / "stages" / f"{self.name}.json"
        try:
            known = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        if known.get("wanted") == wanted:
            made = self._made(root)
            if made and made == known["made"]:
                say(self.name, f"unchanged: {known['result']}")
                return digest(made)
        start = time.perf_counter()
        result = self.work()
        seconds = time.perf_counter() - start
        made = self._made(root)
        write_json(record, {"wanted": wanted, "made": made, "result": result, "seconds": round(seconds, 2)})
        say(self.name, f"{result} ({seconds:.1f} s)")
        return digest(made)
