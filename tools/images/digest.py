"""What a container image holds, path by path, its digest, and in words where two images differ. Standard library only.

The engine's own image id takes in when every file was written and how the layers were cut, so two builds of the same
files have two ids. A content digest takes in what a program inside can tell, clocks aside: every path with its kind,
mode, owner, content or link target, and file capabilities. How names share an inode is layout, not content: each name
of a hard link counts as a file of its own.

To compute a digest with other means: export a container of the image (``docker create``, ``docker export``), leave out
the root folder, :data:`IGNORED` and an ``etc`` in which nothing is left, and take the SHA-256 of one JSON object, in
ASCII, without spaces, its keys sorted:

    {"etc":["folder","0755",0,0,0,"",""],"etc/x":["file","0644",0,0,2,"<SHA-256 of the content>",""]}

The values are those of :class:`Entry` in its order, the mode as four octal digits. A character outside ASCII is
``\\uXXXX`` in lower case (a pair of them above U+FFFF), a byte of a name that is not UTF-8 is ``\\udcXX``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import posixpath
import subprocess
import tarfile
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from pipeline.core.errors import UserError

if TYPE_CHECKING:
    from typing import Self  # Python 3.11

# Left out, with all below them: what is there when a container runs is the engine's, whatever the image has, so it
# cannot make two images behave differently. Docker puts them into the container when it creates it, in place of the
# image's own; buildah puts in none of them, but its RUN leaves an empty etc/hosts in the image. Seen with Docker 20.10
# and buildah 1.28.
IGNORED = frozenset(
    {
        ".dockerenv",
        "dev",
        "etc/hostname",
        "etc/hosts",
        "etc/mtab",
        "etc/resolv.conf",
        "proc",
        "run/.containerenv",
        "sys",
    }
)

BLOCK = 1 << 16  # bytes; the fastest of 10 KiB to 1 MiB

KINDS = {
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "link",
    tarfile.CHRTYPE: "character device",
    tarfile.BLKTYPE: "block device",
    tarfile.FIFOTYPE: "pipe",
}


@dataclass(frozen=True)
class Entry:
    """One path of a root file system, clocks left out.

    ``value`` is the SHA-256 of a file, the target of a symbolic link, major:minor of a device, else empty. ``mode``
    has the permission bits with setuid, setgid and sticky (of a link always 0777: Linux gives links none). ``size`` is
    in bytes, 0 for all but files. ``capabilities`` is the ``security.capability`` attribute in hex, most often empty.
    """

    kind: str  # "file", "folder", "link", "character device", "block device" or "pipe"
    mode: int
    uid: int
    gid: int
    size: int
    value: str
    capabilities: str = ""


@dataclass(frozen=True)
class Tree:
    """A root file system: every path (no leading slash) with its entry, and the bytes of the files that were kept."""

    entries: dict[str, Entry]
    kept: dict[str, bytes]


class _Header(tarfile.TarInfo):
    """A member's header. A TarFile takes a stream that stops or turns to garbage at a header for one that has ended."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the block of zeros that ends every tar
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


def keep_none(path: str) -> bool:
    """Keep the bytes of no file."""
    return False


def read_tree(stream: IO[bytes], keep: Callable[[str], bool] = keep_none) -> Tree:
    """Read a root file system from an uncompressed tar stream, to its end; memory grows with the paths, not the bytes.

    ``keep`` says by path of which files to hold the bytes. Raises UserError for a stream that is cut short or no tar.
    """
    entries: dict[str, Entry] = {}
    kept: dict[str, bytes] = {}
    try:
        with tarfile.open(
            fileobj=stream, mode="r|", bufsize=BLOCK, tarinfo=_Header, encoding="utf-8", errors="surrogateescape"
        ) as tar:
            for member in tar:
                path = _normal(member.name)
                kept.pop(path, None)
                if member.islnk():
                    target = _normal(member.linkname)
                    if target not in entries:
                        raise UserError(
                            f"{shown(path)} in the tar stream is a hard link to nothing before it: export again"
                        )
                    entries[path] = entries[target]
                    if target in kept:
                        kept[path] = kept[target]
                    elif entries[path].kind == "file" and keep(path):
                        raise UserError(
                            f"{shown(path)} in the image is a hard link to {shown(target)}, whose bytes are gone by"
                            " then: make it a file of its own"
                        )
                elif member.isfile():
                    held: list[bytes] | None = [] if keep(path) else None
                    entries[path] = _entry(member, "file", member.size, _sha256(tar, member, held))
                    if held is not None:
                        kept[path] = b"".join(held)
                elif member.type in KINDS:
                    value = member.linkname if member.issym() else ""
                    value = f"{member.devmajor}:{member.devminor}" if member.isdev() and not member.isfifo() else value
                    entries[path] = _entry(member, KINDS[member.type], 0, value)
                else:
                    raise UserError(f"{shown(path)} in the tar stream is of an unknown type {member.type!r}")
        while stream.read(BLOCK):  # the padding, so that the writer sees no broken pipe
            pass
    except tarfile.TarError as error:
        raise UserError(
            f"the tar stream of a root file system is cut short or damaged after {len(entries)} paths ({error}): make"
            " it again"
        ) from None
    entries = {path: entry for path, entry in entries.items() if _counts(path)}
    if not any(path.startswith("etc/") for path in entries):  # Docker makes one where the image has none
        entries.pop("etc", None)
    return Tree(entries, {path: data for path, data in kept.items() if path in entries})


def content_digest(tree: Tree) -> str:
    """``sha256:<hex>`` of a tree; this module's docstring says how to compute it with other means."""
    rows = {
        path: [entry.kind, f"{entry.mode:04o}", entry.uid, entry.gid, entry.size, entry.value, entry.capabilities]
        for path, entry in tree.entries.items()
    }
    text = json.dumps(rows, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(text.encode("ascii")).hexdigest()


def differences(a: Tree, b: Tree) -> list[str]:
    """One line for every path that is not the same in both, sorted by path, with what differs in words."""
    found = []
    for path in sorted(a.entries.keys() | b.entries.keys()):
        first, second = a.entries.get(path), b.entries.get(path)
        if first != second:
            found.append(f"{shown(path)}: {_what_differs(first, second)}")
    return found


def shown(path: str) -> str:
    """A path on one line that every UTF-8 terminal takes: what cannot be printed as Python escapes it."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in path)


def image_tree(engine_command: list[str], image: str, keep: Callable[[str], bool] = keep_none) -> Tree:
    """The tree of an image that the engine has: a container of it is created, never started, exported and removed.

    ``engine_command`` is docker's or podman's command line up to the verb. Raises UserError with the engine's words
    where it refuses, and where there is no such engine.
    """
    name = f"content-digest-{uuid.uuid4().hex}"  # known before there is a container, so that none is ever left behind
    remove = [*engine_command, "rm", "--force", "--volumes", name]
    try:
        # An image without a command of its own needs one here; it never runs.
        _engine([*engine_command, "create", "--pull=never", f"--name={name}", image, "none"])
        tree = _export([*engine_command, "export", name], keep)
    except BaseException:
        with contextlib.suppress(OSError):  # no engine, no container
            subprocess.run(remove, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        raise
    _engine(remove)
    return tree


def _normal(name: str) -> str:
    return posixpath.normpath("/" + name).lstrip("/")


def _counts(path: str) -> bool:
    """Whether a path is the image's: not the root folder (Docker exports none), nor in IGNORED or below it."""
    parts = path.split("/")
    return path != "" and not any("/".join(parts[: end + 1]) in IGNORED for end in range(len(parts)))


def _sha256(tar: tarfile.TarFile, member: tarfile.TarInfo, held: list[bytes] | None) -> str:
    """Hash a file's content and add it to ``held``."""
    content = tar.extractfile(member)
    assert content is not None  # it is a file
    sha256 = hashlib.sha256()
    while True:
        block = content.read(BLOCK)
        if not block:
            return sha256.hexdigest()
        sha256.update(block)
        if held is not None:
            held.append(block)


def _entry(member: tarfile.TarInfo, kind: str, size: int, value: str) -> Entry:
    mode = 0o777 if kind == "link" else member.mode & 0o7777
    attribute = member.pax_headers.get("SCHILY.xattr.security.capability", "")
    capabilities = attribute.encode("utf-8", "surrogateescape").hex()
    return Entry(kind, mode, member.uid, member.gid, size, value, capabilities)


def _what_differs(first: Entry | None, second: Entry | None) -> str:
    if first is None or second is None:
        return "only in the second" if first is None else "only in the first"
    if first.kind != second.kind:
        return f"a {first.kind} in the first, a {second.kind} in the second"
    found = []
    if first.mode != second.mode:
        found.append(f"mode {first.mode:04o} and {second.mode:04o}")
    if (first.uid, first.gid) != (second.uid, second.gid):
        found.append(f"owner {first.uid}:{first.gid} and {second.uid}:{second.gid}")
    if first.capabilities != second.capabilities:
        found.append(f"capabilities {first.capabilities or 'none'} and {second.capabilities or 'none'}")
    if first.size != second.size:
        found.append(f"content, {first.size} and {second.size} bytes")
    elif first.value != second.value:
        values = f" {shown(first.value)} and {shown(second.value)}"
        found.append(
            {"file": f"content, {first.size} bytes in both", "link": "target" + values}.get(first.kind, values[1:])
        )
    return "; ".join(found)


def _engine(command: list[str]) -> None:
    """Run an engine's command to its end. Raises UserError."""
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    except OSError as error:
        raise UserError(f"the container engine {command[0]} cannot be run: {error.strerror}") from None
    if done.returncode:
        raise _refusal(command, done.stderr)


def _refusal(command: list[str], said: bytes) -> UserError:
    words = " ".join(said.decode("utf-8", "replace").split()) or "nothing"
    return UserError(f"`{' '.join(command)}` failed and said: {words}")


def _export(command: list[str], keep: Callable[[str], bool]) -> Tree:
    """Read what the engine exports. Where both have something to say, the engine's words are the cause."""
    with tempfile.TemporaryFile() as said:
        trouble: UserError | None = None
        tree = Tree({}, {})
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said) as process:
            assert process.stdout is not None
            try:
                tree = read_tree(process.stdout, keep)
            except UserError as error:
                trouble = error
                while process.stdout.read(BLOCK):  # so that the engine ends as it would have
                    pass
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            said.seek(0)
            raise _refusal(command, said.read())
    if trouble:
        raise trouble
    return tree
