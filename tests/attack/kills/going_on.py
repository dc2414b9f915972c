"""Whether a run that goes on after a kill comes to the same end, and does again nothing that was done."""

import json
import re
from pathlib import Path
from typing import Any

from accounts import account, differences, rows
from forking import Ended
from states import IMAGES, STEPS, WORKS, States

from pipeline.training.checkpoints import is_complete

DONE = re.compile(r"(\w+) .*\(\d+\.\d s\)")
"""How a stage says that it has worked."""
ROWS = {"hf.results.jsonl": "ResultsWriter", "llamacpp.results.jsonl": "ResultsWriter", "ladder.jsonl": "LadderWriter"}


def finished(run: Path, wanted: dict[str, Any], begin: Path) -> dict[str, Any]:
    """What is done in a run's folder as a kill left it, and so must not be done again: stages, steps, rows.

    ``begin``: the run's folder as the work found it. A record that stood there is of the work before, which may have
    had the same result.
    """
    adapter = "lora_adapter/adapter_model.safetensors"
    checkpoints = [int(folder.name.partition("-")[2]) for folder in run.glob("checkpoints/checkpoint-*")
                   if is_complete(folder)]  # fmt: skip
    now = account(run) if run.exists() else {}
    trained = {path for path in wanted if path.startswith("lora_adapter/")}
    whole = adapter in wanted and all(now.get(path) == wanted[path] for path in trained)
    return {
        "stages": {path.stem for path in run.glob("stages/*.json") if _is_done(path, wanted, begin)},
        "steps": STEPS if whole else max(checkpoints, default=0),
        "rows": {name: len(rows(run / "parity" / name)) for name in ROWS},
    }


def _is_done(record: Path, wanted: dict[str, Any], begin: Path) -> bool:
    before = begin / "stages" / record.name
    if before.exists() and before.read_bytes() == record.read_bytes():
        return False
    return {"result": json.loads(record.read_text())["result"]} == wanted.get(f"stages/{record.name}")


def problems(name: str, again: Ended, before: dict[str, Any], run: Path, states: States) -> list[tuple[str, str]]:
    """(count, what is wrong) with the run that went on after a kill."""
    work, wanted = WORKS[name], states.wanted(name)
    if again.hung:
        return [("hangs", "the next run hangs")]
    if again.traceback:
        return [("tracebacks", again.brief)]
    if again.code != work.code:
        return [("wrong_codes", f"the next run ends with {again.brief}")]
    found = [("lost", text) for text in differences(account(run), wanted)]
    worked = {match[1] for line in again.err.splitlines() if (match := DONE.fullmatch(line))}
    found += [("lost", f"{stage} is done again") for stage in sorted(before["stages"] & worked)]
    if name in ("train", "train again") and again.counts.get("step", 0) > STEPS - before["steps"]:
        found.append(("lost", f"{again.counts['step']} steps again, of {STEPS} of which {before['steps']} were done"))
    for file, writer in ROWS.items() if name in ("parity", "sides") else ():
        answered = again.counts.get(f"{writer} {file}", 0)
        if answered > IMAGES - before["rows"][file]:
            found.append(("lost", f"{answered} images again in {file}, which had {before['rows'][file]} of {IMAGES}"))
    return found
