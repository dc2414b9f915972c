"""Try a GGUF pair in a process of its own first: ``python -m parity.engines.probe``, with what to try on its stdin.

Much of what is wrong with a GGUF llama.cpp finds while it loads, and says so. The rest is a failed GGML_ASSERT, a
division by zero or a loop without end, which takes along the process that it runs in. A run's own files were checked
when they were exported, and are not tried.
"""

import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import EXIT_USAGE, UserError
from pipeline.models.smolvlm.encoding import Encoder

SECONDS, SECONDS_PER_GB = 60, 120
"""How long a pair may take, by its files' size. The tiny model's, a hundredth of a GB, takes 0.7 s of one core."""


def probe_pair(
    model: Path,
    mmproj: Path,
    encoder: Encoder,
    threads: int | None = None,
    sequences: int | None = None,
    tapped: bool = False,
    seconds: int | None = None,
) -> None:
    """Let a pair answer one made-up canvas, as :class:`parity.engines.llamacpp.LlamaCppPredictor` with the same
    arguments would, in a process of its own; see :func:`probe`."""
    probe(model, mmproj, _answer_canvas, (encoder, threads, sequences, tapped), seconds)


def probe(
    model: Path, mmproj: Path, work: Callable[..., None], arguments: tuple[Any, ...], seconds: int | None = None
) -> None:
    """Do ``work(model, mmproj, *arguments)``, a function of a module, in a process of its own.

    ``seconds``: how long it may take, by default by the files' size. Raises UserError with one sentence that names the
    files: a pair that cannot be loaded, or not under the runtime profile; one that llama.cpp dies of, with its last
    words; one that takes too long, or more memory than the machine has.
    """
    if seconds is None:
        seconds = int(SECONDS + SECONDS_PER_GB * sum(path.stat().st_size for path in (model, mmproj)) / 1e9)
    job = pickle.dumps((seconds, work, (model, mmproj, *arguments)))
    done = subprocess.run([sys.executable, "-m", "parity.engines.probe"], input=job, capture_output=True, check=False)
    if done.returncode == 0:
        return
    said = _last_words(done.stderr.decode(errors="replace"))
    if done.returncode == EXIT_USAGE and any(str(path) in said for path in (model, mmproj)):
        raise UserError(said)
    if done.returncode == -signal.SIGALRM:
        how = f"one picture takes it more than {seconds} s"
    elif done.returncode == -signal.SIGKILL:
        how = "the system ended it, as it does when memory runs out"
    elif done.returncode < 0:
        how = f"it dies by {signal.Signals(-done.returncode).name} ({said})"
    else:
        how = said
    raise UserError(f"llama.cpp cannot run {model} with {mmproj}: {how}; export them again, or copy them again, whole")


def files_made(record: Path) -> frozenset[str]:
    """SHA-256 of each file that a stage made, by its record (:mod:`pipeline.workflow.stage`); none where that cannot be
    read."""
    try:
        made = json.loads(record.read_text(encoding="utf-8"))["made"]
        return frozenset(value for value in made.values() if isinstance(value, str))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return frozenset()


def _last_words(errors: str) -> str:
    """The line that says what failed, without the folder that llama.cpp was compiled in."""
    lines = [" ".join(line.split()) for line in errors.splitlines() if line.strip()]
    told = [line for line in lines if "GGML_ASSERT" in line or "what():" in line]
    line = (told or lines or ["it left no message"])[-1]
    return re.sub(r"^\S*/(?=[^/\s]+:\d+: )", "", line)


def _restrain(seconds: int) -> None:
    """Let the system end this process, and no other, where the pair asks for too much."""
    signal.alarm(seconds)
    if resource.getrlimit(resource.RLIMIT_DATA)[1] == resource.RLIM_INFINITY:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    os.environ["GGML_NO_BACKTRACE"] = "1"  # ggml would start a debugger on this process, and wait for it


def _answer_canvas(
    model: Path, mmproj: Path, encoder: Encoder, threads: int | None, sequences: int | None, tapped: bool
) -> None:
    from parity.engines.llamacpp import LlamaCppPredictor

    size = encoder.contract.image.size
    canvas = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    with LlamaCppPredictor(model, mmproj, encoder, threads, sequences, tapped) as predictor:
        for _ in predictor.predict([canvas]):
            pass


def main() -> None:
    """Entry point of the process."""
    seconds, work, arguments = pickle.load(sys.stdin.buffer)
    _restrain(seconds)
    try:
        work(*arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_USAGE)


if __name__ == "__main__":
    main()
