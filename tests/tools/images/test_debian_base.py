"""The base made from Debian's archive: equal content is equal bytes, whatever made it and when."""

import io
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.core.files import sha256_file
from tools.images.debian_base import check_base, find_mirror, make_base, normalise, package_names, read_packages

EPOCH = 1_700_000_000  # 2023-11-14, day 19675 since 1970
STATUS = """\
Package: base-files
Status: install ok installed
{priority}Architecture: amd64
Version: 12.4+deb12u5

Package: zlib1g
Status: install ok installed
Version: 1:1.2.13
"""


@dataclass(frozen=True)
class Member:
    name: str
    content: bytes = b""
    type: bytes = tarfile.REGTYPE
    link: str = ""
    mode: int = 0o644
    uid: int = 0
    mtime: int = 5


def file(name: str, text: str = "x") -> Member:
    return Member(name, text.encode())


def folder(name: str) -> Member:
    return Member(name, type=tarfile.DIRTYPE, mode=0o755)


KEPT = (
    folder("./"),
    folder("./usr"),
    folder("./usr/bin"),
    replace(file("./usr/bin/tool"), mode=0o4755),
    Member("./bin", type=tarfile.SYMTYPE, link="usr/bin", mode=0o777),
    file("./etc/shadow", "root:*:19675:0:99999:7:::\n"),
    file("./etc/shells", "# /etc/shells\n/bin/bash\n/bin/sh\n"),
    file("./usr/share/doc/tool/copyright", "MIT"),
    folder("./var/log"),
    file("./var/lib/dpkg/status", STATUS.format(priority="")),
)
DROPPED = (
    "var/log/dpkg.log", "var/cache/apt/pkgcache.bin", "var/lib/apt/lists/mirror_dists_Packages", "etc/hostname",
    "etc/resolv.conf", "etc/machine-id", "etc/apt/sources.list", "etc/apt/sources.list.d/0000mirror.list",
    "etc/apt/apt.conf.d/99mmdebstrap", "var/lib/dpkg/status-old", "var/lib/dpkg/lock-frontend", "etc/passwd-",
    "debootstrap/debootstrap.log", "usr/share/man/man1/tool.1.gz", "usr/share/doc/tool/changelog.gz",
    "usr/lib/python3/__pycache__/x.pyc", "tmp/left", "dev/null",
)  # fmt: skip


def write_tar(path: Path, members: Sequence[Member]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            header = tarfile.TarInfo(member.name)
            header.type, header.linkname, header.mode = member.type, member.link, member.mode
            header.uid, header.mtime, header.size = member.uid, member.mtime, len(member.content)
            archive.addfile(header, io.BytesIO(member.content))
    return path


def normal(tmp_path: Path, members: Sequence[Member]) -> Path:
    normalise(write_tar(tmp_path / "raw.tar", members), tmp_path / "base.tar", EPOCH)
    return tmp_path / "base.tar"


def test_what_differs_from_run_to_run_gives_the_same_bytes(tmp_path: Path) -> None:
    first = normal(tmp_path, KEPT).read_bytes()
    other = [replace(member, mtime=1_800_000_000, name=member.name.removeprefix("./") or "./") for member in KEPT]
    changed = {
        "etc/shadow": b"root:*:20000:0:99999:7:::\n",
        "etc/shells": b"# /etc/shells\n/bin/sh\n/bin/bash\n",
        "var/lib/dpkg/status": STATUS.format(priority="Priority: required\n").encode(),
    }
    other = [replace(member, content=changed.get(member.name, member.content)) for member in other]
    other += [file(name) for name in DROPPED]
    assert normal(tmp_path, other[::-1]).read_bytes() == first


def test_what_no_image_needs_is_not_in_it(tmp_path: Path) -> None:
    with tarfile.open(normal(tmp_path, [*KEPT, *map(file, DROPPED)])) as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == sorted(member.name.rstrip("/") or "." for member in KEPT)
    assert {member.mtime for member in members} == {EPOCH}


def test_a_hard_link_is_a_file_of_its_own(tmp_path: Path) -> None:
    twin = Member("./usr/bin/twin", type=tarfile.LNKTYPE, link="./usr/bin/tool", mode=0o4755)
    linked = normal(tmp_path, [*KEPT, twin]).read_bytes()
    assert normal(tmp_path, [*KEPT, replace(KEPT[3], name="./usr/bin/twin")]).read_bytes() == linked


@pytest.mark.parametrize(
    "change",
    [
        {"content": b"y"}, {"mode": 0o755}, {"uid": 1}, {"name": "./usr/bin/took"},
        {"type": tarfile.SYMTYPE, "link": "x", "content": b""},
    ],
)  # fmt: skip
def test_a_change_that_counts_changes_the_bytes(tmp_path: Path, change: dict) -> None:
    first = normal(tmp_path, KEPT).read_bytes()
    changed = [replace(member, **change) if member.name == "./usr/bin/tool" else member for member in KEPT]
    assert normal(tmp_path, changed).read_bytes() != first


@pytest.fixture
def base(project: Path, tmp_path: Path) -> Path:
    """A tiny base whose lock is ``project``'s."""
    (project / "docker" / "debian" / "base.lock").write_text("base-files 12.4+deb12u5\nzlib1g 1:1.2.13\n")
    return normal(tmp_path, KEPT)


def test_the_packages_of_a_base_are_those_of_its_dpkg(base: Path, project: Path) -> None:
    assert "\n".join(read_packages(base)) + "\n" == (project / "docker" / "debian" / "base.lock").read_text()


def test_the_pinned_base_is_taken(base: Path, project: Path) -> None:
    check_base(project, base, sha256_file(base))


def test_another_archive_is_named_by_the_packages_that_differ(base: Path, project: Path) -> None:
    lock = project / "docker" / "debian" / "base.lock"
    lock.write_text("base-files 12.4+deb12u4\nmissing 1\nzlib1g 1:1.2.13\n")
    with pytest.raises(UserError) as caught:
        check_base(project, base, "0" * 64)
    assert "lacks base-files 12.4+deb12u4, missing 1 and has base-files 12.4+deb12u5:" in str(caught.value)
    assert "DEBIAN_MIRROR" in str(caught.value)


def test_other_bytes_of_the_same_packages_are_refused(base: Path, project: Path) -> None:
    with pytest.raises(UserError, match=f"has SHA-256 {sha256_file(base)}, and docker/versions.env pins {'0' * 64}"):
        check_base(project, base, "0" * 64)


def test_a_tar_that_is_no_debian_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no Debian root file system"):
        read_packages(write_tar(tmp_path / "x.tar", [file("./etc/os-release")]))


def test_package_names_are_read_without_their_comments(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# all\n\nzlib1g  # why\ntar\n")
    assert package_names(tmp_path / "list.txt") == ["zlib1g", "tar"]


# ---- the tools -------------------------------------------------------------------------------------------------------


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder on the PATH; empty."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


def test_the_mirror_is_the_one_given_or_the_one_that_apt_has(programs: Path) -> None:
    assert find_mirror("http://given/debian/") == "http://given/debian"
    with pytest.raises(UserError, match=r"DEBIAN_MIRROR=http.*BASE=registry"):
        find_mirror("")
    lines = [
        "Translations Debian http://first/debian/", "Packages Google http://second/apt/",
        "Packages Debian http://security.third/debian-security/", "Packages Debian http://fourth/debian/",
    ]  # fmt: skip
    program(programs, "apt-get", "\n".join(f"echo '{line}'" for line in lines))
    assert find_mirror("") == "http://fourth/debian"


def test_without_a_bootstrap_tool_the_way_out_is_named(project: Path, programs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mmdebstrap or debootstrap.*BASE=registry"):
        make_base(project, tmp_path / "base.tar", "http://mirror", EPOCH)


def test_debootstrap_is_for_root(
    project: Path, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(programs, "debootstrap", "exit 0")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(UserError, match="root only"):
        make_base(project, tmp_path / "base.tar", "http://mirror", EPOCH)


def test_a_tool_that_fails_says_why_and_leaves_nothing(project: Path, programs: Path, tmp_path: Path) -> None:
    program(programs, "mmdebstrap", "echo 'I: running'; echo 'E: no such archive' >&2; echo 'I: cleaning up'; exit 25")
    target = tmp_path / "made" / "base.tar"
    with pytest.raises(
        UserError, match=re.escape("mmdebstrap could not make the base image from http://mirror: E: no")
    ):
        make_base(project, target, "http://mirror", EPOCH)
    assert list(target.parent.iterdir()) == []


def test_what_the_tool_makes_is_normalised(project: Path, programs: Path, tmp_path: Path) -> None:
    raw = write_tar(tmp_path / "made.tar", [*KEPT, *map(file, DROPPED)])
    # mmdebstrap's arguments end in: suite, target, source. cp is a program of /bin, which is not on this PATH.
    program(programs, "mmdebstrap", f'while [ "$1" != bookworm ]; do shift; done; /bin/cp "{raw}" "$2"')
    make_base(project, tmp_path / "out.tar", "http://mirror", EPOCH)
    assert (tmp_path / "out.tar").read_bytes() == normal(tmp_path, KEPT).read_bytes()
