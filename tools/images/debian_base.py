"""The base image where no registry answers: Debian's own archive, made into the same bytes on every machine.

mmdebstrap or debootstrap unpacks and configures the packages; :func:`normalise` then takes away what differs from run
to run (clocks, logs, caches, the mirror's name) and what no image needs (manual pages, translations). Both tools give
the same tar, to the byte. Its SHA-256 is pinned in ``docker/versions.env``; the packages that it was made from stand in
``docker/debian/base.lock``.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.files import sha256_file

LOCK = "docker/debian/base.lock"
SUITE = "bookworm"
_ARCHITECTURE = "amd64"
_STATUS = "var/lib/dpkg/status"
_MERGED_USR = "/usr/share/mmdebstrap/hooks/merged-usr"
# What each machine, or apt when it is next used, makes for itself, and what says when and from where this was made.
_DROPPED = re.compile(
    r"(dev|proc|sys|run|tmp|var/tmp|var/log|var/cache|var/lib/apt/lists|var/lib/systemd|etc/apt/sources\.list\.d)/.+"
    r"|etc/(hostname|hosts|resolv\.conf|machine-id|\.pwd\.lock|apt/sources\.list|(passwd|group|shadow|gshadow)-)"
    r"|var/lib/dpkg/([^/]+-old|lock.*|arch|available|cmethopt)"
    r"|var/lib/apt/(extended_states|mirrors/.*|periodic/.*)"
    r"|(etc/apt/apt\.conf\.d|etc/dpkg/dpkg\.cfg\.d)/.*(mmdebstrap|debootstrap).*"
    r"|debootstrap(/.*)?"
    r"|usr/share/(man|info|locale|lintian|bug)/.+"
    r"|usr/share/doc/.+/(?!copyright$)[^/]+"
    r"|(.*/)?__pycache__(/.*)?"
)


def find_mirror(option: str) -> str:
    """Address of the Debian archive to fetch from: ``option``, or the one that apt on this machine is set up with.

    Raises UserError where there is neither.
    """
    if option:
        return option.rstrip("/")
    if shutil.which("apt-get"):
        command = ["apt-get", "indextargets", "--format", "$(CREATED_BY) $(ORIGIN) $(REPO_URI)"]
        for line in subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout.splitlines():
            kind, _, origin_and_address = line.partition(" ")
            origin, _, address = origin_and_address.partition(" ")
            if (kind, origin) == ("Packages", "Debian") and "security" not in address:
                return address.rstrip("/")
    raise UserError(
        "no Debian archive is set up on this machine: name one, as in DEBIAN_MIRROR=http://HOST/debian, or take"
        " BASE=registry"
    )


def _bootstrap(tool: str, packages: list[str], mirror: str, epoch: int, scratch: Path) -> Path:
    """Run ``tool``; returns a tar of the root file system. Raises UserError with its last words."""
    log, tar, folder = scratch / "log", scratch / "raw.tar", scratch / "root"
    names = ",".join(packages)
    if tool == "mmdebstrap":
        source = f"deb {mirror} {SUITE} main"
        command = ["mmdebstrap", "--variant=minbase", "--format=tar", f"--architectures={_ARCHITECTURE}"]
        command += [f"--hook-dir={_MERGED_USR}"]  # as debootstrap does it; else usrmerge comes, and Perl with it
        commands = [[*command, f"--include={names}", SUITE, str(tar), source]]
    else:
        make = ["debootstrap", "--variant=minbase", f"--arch={_ARCHITECTURE}", f"--include={names}", SUITE]
        pack = ["tar", "--create", "--numeric-owner", "--one-file-system", "--file", str(tar), "--directory"]
        commands = [[*make, str(folder), mirror], [*pack, str(folder), "."]]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "LC_ALL": "C"}
    for command in commands:
        with open(log, "ab") as output:
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, check=False
            ).returncode
        if code:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["no output"]
            told = [line for line in lines if re.match(r"E: |W: Failure", line)] or lines
            raise UserError(f"{tool} could not make the base image from {mirror}: {told[-1]}")
    return tar


def normalise(source: Path, target: Path, epoch: int) -> None:
    """Copy a root file system's tar with every clock set to ``epoch`` and without what :data:`_DROPPED` names.

    Members are sorted by path and hard links become files, so that equal content gives equal bytes.
    """
    with tarfile.open(source, "r:") as old:
        members = {name: member for member in old for name in [_plain(member.name)] if not _DROPPED.fullmatch(name)}
        with open(target, "wb") as raw, tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as new:
            for name in sorted(members):
                member = members[name]
                content = None
                copy = tarfile.TarInfo(f"./{name}" if name else "./")
                copy.mode, copy.uid, copy.gid, copy.type = member.mode & 0o7777, member.uid, member.gid, member.type
                copy.linkname, copy.mtime = member.linkname, epoch
                if member.isreg() or member.islnk():
                    copy.type, copy.linkname = tarfile.REGTYPE, ""
                    opened = old.extractfile(member)
                    assert opened
                    data = opened.read()
                    if name in _REWRITTEN:
                        data = _REWRITTEN[name](data, epoch)
                    copy.size, content = len(data), io.BytesIO(data)
                new.addfile(copy, content)


def _plain(name: str) -> str:
    return re.sub(r"^(\./?|/)+", "", name).rstrip("/")


def _password_dates(data: bytes, epoch: int) -> bytes:
    """/etc/shadow with the day of the last change set to that of ``epoch``."""
    return re.sub(rb"(?m)^([^:]*:[^:]*:)\d*", lambda found: found[1] + str(epoch // 86400).encode(), data)


def _sorted_lines(data: bytes, epoch: int) -> bytes:
    """/etc/shells, to which packages add themselves in the order that they are configured in."""
    return b"".join(sorted(data.splitlines(keepends=True)))


def _no_priorities(data: bytes, epoch: int) -> bytes:
    """dpkg's list without the priorities, which one tool takes from the package and the other from the archive."""
    return re.sub(rb"(?m)^Priority: .*\n", b"", data)


_REWRITTEN: dict[str, Callable[[bytes, int], bytes]] = {
    "etc/shadow": _password_dates,
    "etc/shells": _sorted_lines,
    _STATUS: _no_priorities,
}


def read_packages(tar: Path) -> list[str]:
    """``name version`` of every package that a root file system's tar has, sorted: the form of ``base.lock``."""
    with tarfile.open(tar, "r:") as archive:
        for member in archive:
            if _plain(member.name) == _STATUS:
                opened = archive.extractfile(member)
                assert opened
                text = opened.read().decode()
                found = re.findall(r"(?m)^Package: (\S+)\n(?:.+\n)*?Version: (\S+)", text)
                return sorted(f"{name} {version}" for name, version in found)
    raise UserError(f"{tar} is no Debian root file system: it has no /{_STATUS}")


def package_names(path: Path) -> list[str]:
    """The packages of ``docker/debian/*.txt``."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def make_base(root: Path, target: Path, mirror: str, epoch: int, tool: str | None = None) -> None:
    """Write the normalised root file system to ``target``, with mmdebstrap or debootstrap, whichever is here.

    Raises UserError where neither is, or where it fails.
    """
    tool = tool or next((name for name in ("mmdebstrap", "debootstrap") if shutil.which(name)), None)
    if not tool:
        raise UserError(
            "BASE=bootstrap needs mmdebstrap or debootstrap: `apt-get install mmdebstrap`, or take BASE=registry"
        )
    if tool == "debootstrap" and os.geteuid():
        raise UserError("debootstrap works as root only: install mmdebstrap, or take BASE=registry")
    packages = package_names(root / "docker" / "debian" / "base.txt")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="base-") as folder:
        scratch = Path(folder)
        scratch.chmod(0o755)  # mmdebstrap drops its privileges and must still pass through
        normalise(_bootstrap(tool, packages, mirror, epoch, scratch), scratch / "base.tar", epoch)
        os.replace(scratch / "base.tar", target)


def check_base(root: Path, tar: Path, wanted: str) -> None:
    """Raise UserError unless ``tar`` has the SHA-256 ``wanted``, saying which packages differ where it has not."""
    got = sha256_file(tar)
    if got == wanted:
        return
    locked = set((root / LOCK).read_text(encoding="utf-8").splitlines())
    there = set(read_packages(tar))
    if locked != there:
        missing, extra = sorted(locked - there), sorted(there - locked)
        raise UserError(
            f"the Debian archive has other packages than {LOCK}: it lacks {', '.join(missing) or 'none'} and has"
            f" {', '.join(extra) or 'no other'}:"
            " name an archive of that date with DEBIAN_MIRROR, or run `make docker-lock`"
        )
    raise UserError(
        f"the base made from the packages of {LOCK} has SHA-256 {got}, and docker/versions.env pins {wanted}:"
        " a package was changed, or the bootstrap tool's version was (`make docker-lock` takes what is there)"
    )
