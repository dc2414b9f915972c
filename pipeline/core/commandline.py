"""How a command line of this project runs and ends, whatever happens in it. Exit codes: :mod:`pipeline.core.errors`.

A user's mistake is one sentence, a full disk is one, and what nobody foresaw is called a bug of this program, with an
exit code of its own, so that a crash is never taken for a FAIL. The exit code is the command's whatever becomes of what
it prints: a reader that goes away takes nothing with it.
"""

import contextlib
import errno
import io
import os
import platform
import re
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from pipeline.core.errors import EXIT_BUG, EXIT_FAIL, EXIT_INTERRUPTED, EXIT_USAGE, CheckFailed, NotReleased, UserError
from pipeline.core.files import OF_THE_PLACE, says_full


def run(command: Callable[[], Any]) -> None:
    """Run a command to the end of this process."""
    _keep_standard_streams()
    _interrupt_on_signals()
    code = _ended(command)
    _ignore_signals()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # /dev/full, or closed
            code = code or EXIT_USAGE
    sys.exit(code)


def _ended(command: Callable[[], Any]) -> Any:
    """The exit code, with what is wrong said."""
    try:
        command()
        return 0
    except SystemExit as stopped:
        if stopped.code == EXIT_INTERRUPTED:  # typer's own answer to KeyboardInterrupt, without a word
            _say("interrupted: run the same command again to go on")
        return stopped.code
    except KeyboardInterrupt:
        _say("interrupted: run the same command again to go on")
        return EXIT_INTERRUPTED
    except UserError as error:
        _say(f"error: {error}")
        return EXIT_USAGE
    except NotReleased as error:
        _say(f"not released: {error}")
        return error.code
    except CheckFailed as error:
        _say(f"failed: {error}")
        return EXIT_FAIL
    except Exception as error:
        if disk_full(error):
            _say("error: the disk is full: free some space and run the same command again to go on")
            return EXIT_USAGE
        if isinstance(error, MemoryError):
            _say("error: there is not enough memory: end other programs, or choose a smaller model or batch")
            return EXIT_USAGE
        if unusable := _unusable(error):
            _say(f"error: {unusable}; choose another place")
            return EXIT_USAGE
        _say(_bug(error))
        return EXIT_BUG


def _unusable(error: Exception) -> str:
    """Which place an exception says cannot be used, and why; empty where it says no such thing."""
    if isinstance(error, OSError):
        number, place, why = error.errno, error.filename, error.strerror
    else:
        # safetensors passes on what the system said, in words of its own.
        told = re.search(r'I/O error: (.+?) \(os error (\d+)\)(?: at path "(.+)")?', str(error), re.DOTALL)
        number, place, why = (int(told[2]), told[3] or "a model's folder", told[1]) if told else (None, None, None)
    if place is None or number not in {*OF_THE_PLACE, errno.EIO}:
        return ""
    return f"{os.fsdecode(place)} cannot be used: {why}"


def disk_full(error: BaseException | None) -> bool:
    """Whether an exception, or what caused it, is a full disk; each library that writes has its own way to say so."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or says_full(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _bug(error: Exception) -> str:
    """What to tell of an exception that nobody foresaw; its details go into a file."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__} in {os.path.basename(place.filename)} line {place.lineno}"
    details = "".join(
        [
            f"time: {time.strftime('%Y-%m-%d %H:%M:%S %z')}\n",
            f"command: {sys.argv}\n",
            f"python: {sys.version}\nsystem: {platform.platform()}\n",
            *(f"{name}: {version}\n" for name, version in _versions().items()),
            "\n",
            *traceback.format_exception(error),
        ]
    )
    ask = "nothing that was finished is lost; please report it as an issue where you got this program, with"
    try:
        handle, path = tempfile.mkstemp(prefix="parity-bug-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(details)
    except OSError:
        return f"{details}\nerror: this is a bug of this program ({what}): {ask} the lines above"
    return f"error: this is a bug of this program ({what}): {ask} the file {path}"


def _versions() -> dict[str, str]:
    from pipeline.core.provenance import versions

    return versions()


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # where nobody listens, the exit code tells
        print(text, file=sys.stderr, flush=True)


def _interrupt_on_signals() -> None:
    """SIGTERM and SIGHUP end a command as Ctrl-C does, wherever it is. What was started to ignore one (nohup) goes on
    ignoring it."""
    import signal

    latest = signal.SIGINT

    def stop(number: int, *_: object) -> None:
        nonlocal latest
        latest = signal.Signals(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)

    usual = sys.unraisablehook

    def lost(told: Any) -> None:
        """An interrupt inside a callback of C code (llama.cpp's log, its graph) cannot be raised: once more, later."""
        if told.exc_type is KeyboardInterrupt:
            timer = threading.Timer(0.05, os.kill, (os.getpid(), latest))
            timer.daemon = True
            timer.start()
        else:
            usual(told)

    sys.unraisablehook = lost


def _ignore_signals() -> None:
    """The work is over and its exit code known: what comes now does not change it."""
    import signal

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


class _Unbroken(io.RawIOBase):
    """A file descriptor that swallows what is written after its reader went away; another error it raises once."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._broken = descriptor, False

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self._broken:
            return len(data)
        try:
            return os.write(self._descriptor, data)
        except OSError as error:
            self._broken = True  # Python tries again when it ends
            if isinstance(error, BrokenPipeError):
                return len(data)
            raise


def _keep_standard_streams() -> None:
    """Let printing end no command: descriptors that were closed are /dev/null (a file that is opened would take their
    place, and be printed into), readers may go away, and a name that is no UTF-8 is shown with its bytes escaped."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free
    sys.stdout, sys.stderr = (_stream(descriptor, stream) for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)))


def _stream(descriptor: int, old: TextIO | None) -> TextIO:
    if old is not None:
        old.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Unbroken(descriptor)),
        encoding=getattr(old, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=descriptor == 2 or os.isatty(descriptor),
        write_through=descriptor == 2,
    )
