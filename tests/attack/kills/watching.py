"""Sees every call of the kernel that changes a file before it is done, and can kill the program there or fail the call.

A seccomp filter with a listener (SECCOMP_RET_USER_NOTIF, Linux 5.5 or later; no rights are needed): the calls of the
program's threads and of what it starts, native code's too (safetensors, torch, llama.cpp), wait until the watcher has
decided. Nothing that writes can be missed but what writes through a shared mapping, which nothing here does.

The structures and numbers are those of include/uapi/linux/seccomp.h and of x86-64's table of system calls.
"""

import ctypes
import errno
import fcntl
import os
import platform
import re
import select
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Name -> (number, the argument with the path that is changed, the argument with the folder's descriptor); a path of
# None stands for a call that takes a descriptor.
_CALLS: dict[str, tuple[int, int | None, int | None]] = {
    "write": (1, None, 0), "pwrite64": (18, None, 0), "writev": (20, None, 0), "pwritev": (296, None, 0),
    "pwritev2": (328, None, 0), "sendfile": (40, None, 0), "copy_file_range": (326, None, 2),
    "ftruncate": (77, None, 0), "fallocate": (285, None, 0), "fchmod": (91, None, 0),
    "truncate": (76, 0, None), "creat": (85, 0, None), "mkdir": (83, 0, None), "rmdir": (84, 0, None),
    "unlink": (87, 0, None), "chmod": (90, 0, None), "rename": (82, 1, None), "link": (86, 1, None),
    "symlink": (88, 1, None), "mkdirat": (258, 1, 0), "unlinkat": (263, 1, 0), "renameat": (264, 3, 2),
    "renameat2": (316, 3, 2), "linkat": (265, 3, 2), "symlinkat": (266, 2, 1), "fchmodat": (268, 1, 0),
    "open": (2, 0, None), "openat": (257, 1, 0),
}  # fmt: skip
_BY_NUMBER = {number: (name, path, folder) for name, (number, path, folder) in _CALLS.items()}
_WRITES = {"write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range"}
_OPENS = {"open": 1, "openat": 2}  # the argument with the flags
_CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC  # flags of an open that counts
_AT_FDCWD = -100

_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, _NO_NEW_PRIVS = 317, 1, 1 << 3, 38
_ALLOW, _NOTIFY, _X86_64 = 0x7FFF0000, 0x7FC00000, 0xC000003E
_RECEIVE, _SEND, _CONTINUE = 0xC0502100, 0xC0182101, 1


def why_not() -> str | None:
    """Why calls cannot be watched on this machine; None where they can."""
    if platform.machine() != "x86_64":
        return "the numbers of the kernel's calls are known for x86-64 only"
    available = Path("/proc/sys/kernel/seccomp/actions_avail")
    if not available.exists() or "user_notif" not in available.read_text().split():
        return "the kernel has no seccomp listeners (SECCOMP_RET_USER_NOTIF)"
    return None


def _program() -> bytes:
    """The filter: opens with flags that change something, and every other call of the table, are the listener's."""

    def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JSET|K, BPF_RET|K
    steps = [step(load, 4), step(equal, _X86_64, 1, 0), step(give, _ALLOW), step(load, 0)]
    for name, place in _OPENS.items():
        steps += [
            step(equal, _CALLS[name][0], 0, 4),
            step(load, 16 + 8 * place),  # in struct seccomp_data
            step(any_bit, _CHANGES, 0, 1),
            step(give, _NOTIFY),
            step(give, _ALLOW),
        ]
    for name, (number, _, _) in _CALLS.items():
        if name not in _OPENS:
            steps += [step(equal, number, 0, 1), step(give, _NOTIFY)]
    return b"".join([*steps, step(give, _ALLOW)])


def be_watched() -> int:
    """Put this process, and all that it starts, under a filter; the listener's descriptor. For a single thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    program = _program()
    code = ctypes.create_string_buffer(program)
    fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    listener: int = libc.syscall(_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, ctypes.c_char_p(fprog))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return listener


@dataclass(frozen=True)
class Event:
    """A call that is about to change something in the watched folder."""

    call: str
    path: str
    """Relative to the folder, the random part of temporary names made ``*``."""
    times: int
    """How often it has come for this very file, for a write since the file was opened; 1 the first time."""
    thread: int
    """The caller's number in /proc."""

    def __str__(self) -> str:
        return f"{self.call} {self.path}" + (f" (write {self.times})" if self.call in _WRITES else "")

    @property
    def needs_space(self) -> bool:
        """Whether a full disk fails it: what is written, and new names."""
        return self.call not in ("rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "chmod", "fchmod",
                                 "fchmodat", "truncate", "ftruncate")  # fmt: skip

    @property
    def group(self) -> int:
        """The caller's process group (field 5 of its stat)."""
        return int(Path(f"/proc/{self.thread}/stat").read_text().rpartition(")")[2].split()[2])

    @property
    def counts(self) -> bool:
        """Whether a kill here is one of those tried. Of a file's writes it is the 1st, 2nd, 4th, 8th, ...: before it
        is written, and torn at several places."""
        return self.call not in _WRITES or self.times & (self.times - 1) == 0


Decide = Callable[[Event], int]
"""What becomes of a call: 0 lets it be done, an ``errno`` fails it; KILLED: the caller was killed in place of it."""
KILLED = -1


class Watcher(threading.Thread):
    """Serves a listener until every process under the filter has ended."""

    def __init__(self, listener: int, folder: Path, decide: Decide) -> None:
        super().__init__(daemon=True)
        self._listener, self._folder, self._decide = listener, f"{folder.resolve()}/", decide
        self._times: Counter[str] = Counter()
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Serve."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        try:
            while poll.poll()[0][1] & select.POLLIN:
                self._serve()
        except BaseException as error:  # shown by the test, not lost in a thread
            self.failure = error
        finally:
            os.close(self._listener)

    def _serve(self) -> None:
        call = bytearray(80)  # struct seccomp_notif: id, pid, flags, then nr, arch, ip and six arguments
        try:
            fcntl.ioctl(self._listener, _RECEIVE, call)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):  # the caller is gone
                return
            raise
        number, thread, _, nr, _, _, *arguments = struct.unpack("QIIiIQ6Q", call)
        event = self._event(thread, nr, arguments)
        failed = self._decide(event) if event else 0
        if failed == KILLED:
            return  # an answer could still be in time to let the call be done
        answer = struct.pack("QqiI", number, 0, -failed, 0 if failed else _CONTINUE)
        try:
            fcntl.ioctl(self._listener, _SEND, bytearray(answer))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def _event(self, thread: int, nr: int, arguments: list[int]) -> Event | None:
        name, path, folder = _BY_NUMBER[nr]
        try:
            if path is None:
                assert folder is not None
                found = os.readlink(f"/proc/{thread}/fd/{arguments[folder]}").removesuffix(" (deleted)")
            else:
                found = _text(thread, arguments[path])
                if not found.startswith("/"):
                    handle = _AT_FDCWD if folder is None else ctypes.c_int32(arguments[folder]).value
                    beside = "cwd" if handle == _AT_FDCWD else f"fd/{handle}"
                    found = os.path.join(os.readlink(f"/proc/{thread}/{beside}"), found)
        except OSError:
            return None  # the caller is gone
        found = os.path.normpath(found)
        if not found.startswith(self._folder):
            return None
        if (name.startswith("mkdir") and os.path.isdir(found)) or (
            name in _OPENS and os.path.exists(found) and not arguments[_OPENS[name]] & os.O_TRUNC
        ):
            return None  # nothing is changed: the folder, or the file, is there
        if name in _WRITES:
            self._times[found] += 1
        else:
            self._times[found] = 0
        return Event(name, plain(found.removeprefix(self._folder)), self._times[found] or 1, thread)


def plain(path: str) -> str:
    """A path with the random part of temporary names made ``*``."""
    return re.sub(r"\.[a-z0-9_]{8}\.(tmp|old)(?=/|$)", r".*.\1", path)


def _text(thread: int, address: int) -> str:
    """The text at an address of another process."""
    found = b""
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
        while b"\0" not in found and len(found) < 8192:
            memory.seek(address + len(found))
            piece = memory.read(4096 - (address + len(found)) % 4096)  # no farther than the page, whose end may be all
            if not piece:
                break
            found += piece
    return os.fsdecode(found.partition(b"\0")[0])
