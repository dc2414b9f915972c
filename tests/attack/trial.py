"""Trying a reader on malformed input, in a child process with a limit of time and of memory.

A reader may return a value, or raise UserError or CheckFailed. Anything else is counted: another exception or a process
that dies (``tracebacks``), a reader that does not come back (``hangs``), and what a test's own reader finds and raises
(:class:`Lost`, :class:`FalsePass`, :class:`WrongCode`).
"""

import faulthandler
import multiprocessing
import os
import re
import resource
import shutil
import signal
import stat
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import tally

from pipeline.core.errors import CheckFailed, UserError

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 10.0
"""Longest that a reader may take over one small file; the slowest good one takes a tenth of that."""
MEMORY = 1 << 30
"""Bytes that a reader may ask for beyond what its process has when it begins."""
KEPT_BYTES = 4 << 20
SHOWN = 40


class Lost(Exception):
    """A reader came back with less than there was, and said nothing."""


class FalsePass(Exception):
    """What must not pass was passed."""


class WrongCode(Exception):
    """A command ended with another exit code than the case deserves."""


class Hang(BaseException):
    """Raised in a reader that does not come back; no `except Exception` may keep it."""


COUNT_OF = {Lost: "lost", FalsePass: "false_pass", WrongCode: "wrong_codes", Hang: "hangs"}


@dataclass(frozen=True)
class Case:
    """One attack on one file."""

    name: str
    put: Callable[[Path], object]
    """Makes what is to be read at a path where nothing is."""


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    count: str = ""
    """The count that it adds to; empty where all is well."""
    text: str = ""
    """The exception, or what the reader said."""
    where: str = ""
    """The last line of this project that the exception came through."""
    refused: bool = False
    """Whether the reader said that the input is bad."""


def tried(reader: Callable[[], object], seconds: float = SECONDS) -> Outcome:
    """Call a reader in this process, under a limit of time."""

    def stop(*_: object) -> None:
        raise Hang(f"not back after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        reader()
        return Outcome()
    except (UserError, CheckFailed) as error:
        return Outcome(text=str(error), refused=True)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        count = COUNT_OF.get(type(error), "tracebacks")
        return Outcome(count, f"{type(error).__name__}: {' '.join(str(error).split())}"[:300], _where(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _where(error: BaseException) -> str:
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith((str(ROOT / "pipeline"), str(ROOT / "parity")))
    ]
    return f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].lineno}" if own else ""


class Room:
    """A child process that calls one reader again and again; another one takes its place where it dies.

    ``reader`` is called with a path. The child is forked, so a reader may be any function; ``fresh`` starts it as a new
    process of Python instead, as torch and llama.cpp want it, and then the reader must be one that can be pickled.
    """

    def __init__(
        self, reader: Callable[[Path], object], seconds: float = SECONDS, memory: int = MEMORY, fresh: bool = False
    ) -> None:
        self._reader, self._seconds, self._memory = reader, seconds, memory
        self._context = multiprocessing.get_context("spawn" if fresh else "fork")
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def attempt(self, path: Path) -> Outcome:
        """Let the reader read ``path``."""
        if self._process is None:
            self._open()
        assert self._pipe
        assert self._process
        try:
            self._pipe.send(path)
            if self._pipe.poll(self._seconds + 10):
                found: Outcome = self._pipe.recv()
                return found
            outcome = Outcome("hangs", "not back, and not to be stopped from within")
        except (EOFError, ConnectionError):
            self._process.join(10)
            outcome = Outcome("tracebacks", f"the process died, exit code {self._process.exitcode}")
        self.close()
        return outcome

    def must_read(self, path: Path) -> None:
        """Fail where the reader does not take a file that nothing is wrong with: it would refuse every other, too."""
        assert self.attempt(path) == Outcome()

    def _open(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        serve = (theirs, self._reader, self._seconds, self._memory)
        self._process = self._context.Process(target=_serve, args=serve, daemon=True)  # type: ignore[attr-defined]
        self._process.start()
        theirs.close()
        if not self._pipe.poll(120):
            self.close()
            raise RuntimeError("the child process did not begin within 120 s")
        self._pipe.recv()

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None


def _serve(pipe: Connection, reader: Callable[[Path], object], seconds: float, memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.disable()  # how a child dies is counted, not shown
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # the parent's threads are not here
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    pipe.send("ready")
    try:
        while True:
            path = pipe.recv()
            try:
                outcome = tried(lambda path=path: reader(path), seconds)
            except MemoryError:  # there was not even enough to tell
                outcome = Outcome("tracebacks", "MemoryError")
            pipe.send(outcome)
    except (EOFError, ConnectionError):
        pass
    finally:
        os._exit(0)


@dataclass(frozen=True)
class Bad:
    """A case that did not go well."""

    kind: str
    name: str
    outcome: Outcome
    kept: Path | None
    """A copy of the file."""


class Trials:
    """Tries cases, counts them and keeps the files of those that did not go well."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bad: list[Bad] = []
        self._rooms: list[Room] = []

    def room(self, reader: Callable[[Path], object], **limits: float | bool) -> Room:
        """A :class:`Room` that is closed with the test."""
        self._rooms.append(Room(reader, **limits))  # type: ignore[arg-type]
        return self._rooms[-1]

    def run(self, kind: str, room: Room, target: Path, cases: Iterable[Case]) -> None:
        """Put each case's file at ``target`` and let the room read it; then put back what stood there."""
        original = target.read_bytes() if target.is_file() else None
        for case in cases:
            clear(target)
            case.put(target)
            self.note(kind, case.name, room.attempt(target), target)
        clear(target)
        if original is not None:
            target.write_bytes(original)

    def note(self, kind: str, name: str, outcome: Outcome, file: Path | None = None) -> None:
        """Count a case that was tried."""
        tally.tally(kind, tried=1, **({outcome.count: 1} if outcome.count else {}))
        if outcome.count:
            self.bad.append(Bad(kind, name, outcome, self._keep(kind, name, file)))

    def _keep(self, kind: str, name: str, file: Path | None) -> Path | None:
        if file is None or file.is_symlink() or not file.is_file() or file.stat().st_size > KEPT_BYTES:
            return None
        kept = self.folder / "kept"
        kept.mkdir(exist_ok=True)
        slug = re.sub(r"[^A-Za-z0-9]+", "-", name)[:80]
        return Path(shutil.copyfile(file, kept / f"{len(self.bad):03d}-{kind}-{slug}{file.suffix}"))

    def close(self) -> None:
        """End the children."""
        for room in self._rooms:
            room.close()

    def report(self) -> str:
        """What went wrong, by cause: how often, the first names, the first file."""
        causes: dict[tuple[str, ...], list[Bad]] = defaultdict(list)
        for bad in self.bad:
            text = re.sub(r"\d+|'[^']*'|/\S+", "*", bad.outcome.text)[:120]
            causes[bad.kind, bad.outcome.count, bad.outcome.where, text].append(bad)
        lines = [f"{len(self.bad)} cases did not go well, of {len(causes)} causes:"]
        for (kind, count, where, _), group in sorted(causes.items(), key=lambda item: -len(item[1]))[:SHOWN]:
            first = group[0]
            names = "; ".join(bad.name for bad in group[:4]) + ("; ..." if len(group) > 4 else "")
            lines.append(f"{len(group):4d} x {kind}, {count}, {where or 'elsewhere'}: {first.outcome.text}")
            lines.append(f"       cases: {names}" + (f"\n       kept: {first.kept}" if first.kept else ""))
        return "\n".join(lines)


def clear(path: Path) -> None:
    """Remove whatever is at a path."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        shutil.rmtree(path)
    else:
        path.unlink()
