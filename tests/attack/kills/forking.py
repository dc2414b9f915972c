"""Programs that begin at once: one process imports all that is heavy and forks for each command line.

``python forking.py SOCKET`` is the process that forks; :class:`Forks` is the test's side. What is forked runs the real
``main()`` of the command line in a process group of its own, and ends as any program does.
"""

import contextlib
import ctypes
import encodings
import gc
import importlib
import itertools
import json
import os
import pkgutil
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from watching import Decide, Watcher, be_watched

ROOT = Path(__file__).parents[3]
LONGEST = 300.0
"""Seconds after which a program counts as hanging; the longest of these works takes 30."""


@dataclass
class Ended:
    """How a program ended."""

    code: int
    """The exit code; minus the signal's number where one ended it."""
    out: str
    err: str
    hung: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    """What it did, by name: ``step`` of training, rows appended to each file."""

    @property
    def brief(self) -> str:
        """Its last words: of a traceback the innermost line of this project, and the exception."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        if self.traceback:
            inner = [line.strip() for line in lines if f'"{ROOT}/p' in line and "site-packages" not in line]
            lines = [*inner[-1:], *lines[-1:]]
        return f"code {self.code}: " + " / ".join(line[-250:] for line in lines[-3:])

    @property
    def traceback(self) -> bool:
        """Whether a user saw one."""
        return "Traceback (most recent call last)" in self.out + self.err


@dataclass(frozen=True)
class Around:
    """What a program finds when it begins."""

    cwd: Path | str
    environment: dict[str, str] = field(default_factory=dict)
    """What is added to this process's own."""
    gone: bool = False
    """Whether the folder that it begins in is removed by then."""
    user: int | None = None
    """Whose program it is, in place of this process's user."""
    out: Path | str | None = None
    """What it writes its standard output to, in place of a file of its own."""
    terminal: str | None = None
    """The terminal that it is the foreground of, and reads from and writes to."""
    converter: bool = False
    """Whether llama.cpp's converter is a program of its own, which takes 5 seconds to begin, and not a fork."""
    no_tmp: bool = False
    """Whether no place for temporary files can be written to; the working folder is then /mnt. Needs root."""
    backwards: bool = False
    """Whether the clock that Python's modules read is in 1971 and set back by an hour whenever it is looked at."""


class Program:
    """A program that runs."""

    def __init__(self, connection: socket.socket, place: Path, watcher: Watcher | None, pid: int) -> None:
        self.pid = pid
        self._connection, self._place, self._watcher = connection, place, watcher

    def send(self, number: int) -> None:
        """Send a signal to the process group, as a terminal does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return not select.select([self._connection], [], [], 0)[0]

    def wait(self, longest: float = LONGEST) -> Ended:
        """Wait for the end; what takes longer than ``longest`` seconds is killed and counts as hanging."""
        self._connection.settimeout(longest)
        hung = False
        try:
            data = self._connection.recv(64)
        except TimeoutError:
            hung = True
            self.send(signal.SIGKILL)
            self._connection.settimeout(10)
            data = self._connection.recv(64)
        self._connection.close()
        if self._watcher:
            self._watcher.join(10)
            if self._watcher.failure:
                raise self._watcher.failure
        counts: dict[str, int] = {}
        for line in _read(self._place / "counts").splitlines():
            counts[line] = counts.get(line, 0) + 1
        code = os.waitstatus_to_exitcode(int(data))
        return Ended(code, _read(self._place / "out"), _read(self._place / "err"), hung, counts)


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


class Forks:
    """Starts programs; made by :func:`forks`."""

    def __init__(self, address: str, scratch: Path) -> None:
        self._address, self._scratch = address, scratch

    def start(self, *words: str | Path, watched: Path | None = None, decide: Decide | None = None,
              **around: Any) -> Program:  # fmt: skip
        """Start ``pipeline ...`` or ``parity ...``; ``around`` are the fields of :class:`Around`.

        ``decide`` is asked before every call that changes a file in ``watched``.
        """
        place = Path(tempfile.mkdtemp(dir=self._scratch))
        place.chmod(0o777)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(self._address)
        request = {
            "words": [str(word) for word in words], "place": str(place), "watched": watched is not None,
            "around": asdict(Around(**around)),
        }  # fmt: skip
        connection.sendall(json.dumps(request, default=str).encode())
        pid, watcher = 0, None
        while not pid or (watched is not None and watcher is None):  # the one comes from the fork, one from its parent
            said, handles, _, _ = socket.recv_fds(connection, 64, 1)
            if handles:
                assert watched is not None
                assert decide is not None
                watcher = Watcher(handles[0], watched, decide)
                watcher.start()
            else:
                assert not pid, f"it ended before it began: {_read(place / 'err')}"
                pid = int(said)
        return Program(connection, place, watcher, pid)

    def run(self, *words: str | Path, **options: Any) -> Ended:
        """Start a program and wait for its end."""
        return self.start(*words, **options).wait()


@contextlib.contextmanager
def forks(scratch: Path) -> Iterator[Forks]:
    """The process that forks, until the block ends."""
    address = str(scratch / "forks")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, __file__, address]
    with (
        tempfile.TemporaryDirectory() as settings,  # matplotlib's; every user may look into it
        subprocess.Popen(
            command, env=environment | {"MPLCONFIGDIR": settings}, cwd=ROOT, stdout=subprocess.PIPE
        ) as process,
    ):
        Path(settings).chmod(0o755)
        try:
            assert process.stdout
            assert process.stdout.readline(), "the process that forks did not begin"
            yield Forks(address, scratch)
        finally:
            process.kill()


def _count(place: Path) -> None:
    """Note each step of training and each row of a file."""
    import transformers

    from pipeline.core.appending import LinesWriter

    handle = os.open(place / "counts", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def note(text: str) -> None:
        """One line, whole, whatever kills the writer a moment later."""
        os.write(handle, f"{text}\n".encode())

    step, append = transformers.Trainer.training_step, LinesWriter.append

    def counted_step(self: Any, *arguments: Any, **options: Any) -> Any:
        note("step")
        return step(self, *arguments, **options)

    def counted_append(self: Any, row: Any) -> None:
        append(self, row)
        note(type(self).__name__ + " " + Path(self._file.name).name)

    transformers.Trainer.training_step = counted_step
    LinesWriter.append = counted_append  # type: ignore[method-assign]


def _converter(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
    """What ``subprocess.run`` does, without importing all that is here already: the program is run in a fork."""
    with open(os.memfd_create("said"), "w+", encoding="utf-8") as said:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.dup2(said.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                _, *sys.argv = command
                sys.path.insert(0, str(Path(sys.argv[0]).parent))
                runpy.run_path(sys.argv[0], run_name="__main__")
                code = 0
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        said.seek(0)
        return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(status), "", said.read())


def _become(request: dict[str, Any], connection: socket.socket) -> None:
    """Run the command line in this process, which was forked for it."""
    place, around = Path(request["place"]), Around(**request["around"])
    _count(place)
    _take_place(place, around)
    if around.backwards:
        clock = itertools.count(365 * 86400, -3600)
        time.time = lambda: float(next(clock))
    if not around.converter:
        import pipeline.export.convert

        pipeline.export.convert.subprocess = types.SimpleNamespace(run=_converter)  # type: ignore[assignment]
    if request["watched"]:
        listener = be_watched()
        socket.send_fds(connection, [b"listener"], [listener])
        os.close(listener)
    connection.close()
    program, *sys.argv[1:] = request["words"]
    sys.argv[0] = program
    from parity.cli import main as parity
    from pipeline.cli import main as pipeline

    {"parity": parity, "pipeline": pipeline}[program]()


def _take_place(place: Path, around: Around) -> None:
    """Make this process the leader of its group, and give it its files, its folder and its user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell started in the background
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if around.terminal:
        os.setsid()  # the terminal that is opened next is this session's
        for target in (0, 1, 2):
            _open(target, around.terminal, os.O_RDWR)
    else:
        os.setpgid(0, 0)
        _open(0, os.devnull, os.O_RDONLY)
        _open(1, place / "out" if around.out is None else around.out, _NEW)
        _open(2, place / "err", _NEW)
    os.chdir(around.cwd)
    if around.gone:
        os.rmdir(around.cwd)
    if around.no_tmp:
        _leave_no_tmp()
    os.environ |= around.environment
    if around.user is not None:
        os.setgroups([])
        os.setgid(around.user)
        os.setuid(around.user)


def _open(target: int, path: Path | str, flags: int) -> None:
    handle = os.open(path, flags, 0o666)
    if handle != target:
        os.dup2(handle, target)
        os.close(handle)


def _leave_no_tmp() -> None:
    """Put the working folder at /mnt, and something that cannot be written to at every place for temporary files; for
    this process alone (a mount namespace of its own)."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, private, bind, read_only = 0x20000, 1 << 18 | 1 << 14, 1 << 12, 1

    def mount(source: str, target: str, kind: str | None, flags: int) -> None:
        if libc.mount(source.encode(), target.encode(), kind and kind.encode(), flags, None) != 0:
            raise OSError(ctypes.get_errno(), "mount", target)

    if libc.unshare(new_namespace) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    mount("none", "/", None, private)
    mount(".", "/mnt", None, bind)
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        mount("none", folder, "tmpfs", read_only)
    os.chdir("/mnt")


_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def _serve(connection: socket.socket) -> bool:
    """Fork the program and tell how it ended; True in the program itself."""
    request = json.loads(connection.recv(1 << 20))
    pid = os.fork()
    if pid == 0:
        _become(request, connection)
        return True
    with contextlib.suppress(OSError):  # the test was killed: the program ends with it all the same
        connection.sendall(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        connection.sendall(str(status).encode())
    return False


def main(address: str) -> None:
    """Import, then fork for each connection."""
    import parity.run
    import pipeline.cli

    pipeline.cli.quieten()
    # What is imported on the way, too: another user may have no right to read this one's Python.
    for package in (encodings, parity, pipeline):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name not in ("encodings.mbcs", "encodings.oem", "encodings.cp65001", "parity.compare.cluster"):
                importlib.import_module(module.name)
    for name in ("llama_cpp.mtmd_cpp", "matplotlib.figure", "matplotlib.backends.backend_agg", "peft",
                 "sklearn.metrics", "transformers.models.smolvlm.modeling_smolvlm"):  # fmt: skip
        importlib.import_module(name)
    from pipeline.core.closure import code_digest
    from pipeline.workflow import work

    code_digest(work.make_dataset, work.train_adapter, work.merge_adapter, work.export_bundle, parity.run.run)
    gc.freeze()  # what is here stays shared
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind(address)
    server.listen(64)
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        if os.fork() == 0:
            server.close()
            if _serve(connection):
                return
            os._exit(0)
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


if __name__ == "__main__":
    main(sys.argv[1])
