"""The content digest: every change that a program inside could notice turns it, nothing else does.

The streams are made with ``tarfile`` and, where it is there, GNU tar; the engine's own are in tests/docker.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from tools.images.digest import Tree, content_digest, differences, image_tree, read_tree

CAPABILITY = "SCHILY.xattr.security.capability"
NET_RAW = bytes.fromhex("0100000200200000000000000000000000000000")  # what `setcap cap_net_raw+ep` writes


@dataclass(frozen=True)
class Member:
    """One member of a tar."""

    name: str
    type: bytes = tarfile.REGTYPE
    content: bytes = b""
    link: str = ""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    device: tuple[int, int] = (0, 0)
    capability: bytes = b""


def tar(*members: Member, form: int = tarfile.PAX_FORMAT) -> bytes:
    """The members as a tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as archive:
        for member in members:
            header = tarfile.TarInfo(member.name)
            header.type, header.linkname, header.mode = member.type, member.link, member.mode
            header.uid, header.gid, header.mtime = member.uid, member.gid, member.mtime
            header.devmajor, header.devminor = member.device
            header.size = len(member.content)
            if member.capability:
                header.pax_headers = {CAPABILITY: member.capability.decode("utf-8", "surrogateescape")}
            archive.addfile(header, io.BytesIO(member.content))
    return buffer.getvalue()


def tree(*members: Member, keep: Callable[[str], bool] = lambda path: False, form: int = tarfile.PAX_FORMAT) -> Tree:
    return read_tree(io.BytesIO(tar(*members, form=form)), keep)


BIN = Member("bin/", tarfile.DIRTYPE, mode=0o755)
TOOL = Member("bin/tool", content=b"#!/bin/sh\n", mode=0o755)
LINK = Member("bin/link", tarfile.SYMTYPE, link="tool")
NODE = Member("bin/node", tarfile.CHRTYPE, device=(1, 3))
IMAGE = (BIN, TOOL, LINK, NODE)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (TOOL, replace(TOOL, mode=0o644), "bin/tool: mode 0755 and 0644"),
        (TOOL, replace(TOOL, mode=0o4755), "bin/tool: mode 0755 and 4755"),
        (BIN, replace(BIN, mode=0o1755), "bin: mode 0755 and 1755"),
        (TOOL, replace(TOOL, uid=1000), "bin/tool: owner 0:0 and 1000:0"),
        (BIN, replace(BIN, gid=50), "bin: owner 0:0 and 0:50"),
        (TOOL, replace(TOOL, content=b"#!/bin/sH\n"), "bin/tool: content, 10 bytes in both"),
        (TOOL, replace(TOOL, content=b"#!/bin/sh"), "bin/tool: content, 10 and 9 bytes"),
        (LINK, replace(LINK, link="/bin/tool"), "bin/link: target tool and /bin/tool"),
        (LINK, replace(LINK, uid=7), "bin/link: owner 0:0 and 7:0"),
        (NODE, replace(NODE, device=(1, 5)), "bin/node: 1:3 and 1:5"),
        (
            NODE,
            replace(NODE, type=tarfile.BLKTYPE),
            "bin/node: a character device in the first, a block device in the second",
        ),
        (NODE, replace(NODE, type=tarfile.FIFOTYPE), "bin/node: a character device in the first, a pipe in the second"),
        (LINK, Member("bin/link/", tarfile.DIRTYPE), "bin/link: a link in the first, a folder in the second"),
        (LINK, Member("bin/link", content=b"tool"), "bin/link: a link in the first, a file in the second"),
        (TOOL, replace(TOOL, capability=NET_RAW), f"bin/tool: capabilities none and {NET_RAW.hex()}"),
        (TOOL, replace(TOOL, content=b"", mode=0o600), "bin/tool: mode 0755 and 0600; content, 10 and 0 bytes"),
        (TOOL, None, "bin/tool: only in the first"),
    ],
)
def test_each_kind_of_difference_turns_the_digest_and_is_named(old: Member, new: Member | None, words: str) -> None:
    changed = [new if member is old else member for member in IMAGE]
    first, second = tree(*IMAGE), tree(*[member for member in changed if member])
    assert differences(first, second) == [words]
    assert content_digest(first) != content_digest(second)


def test_a_path_of_the_second_alone_is_named() -> None:
    first, second = tree(*IMAGE), tree(*IMAGE, Member("bin/more"))
    assert differences(first, second) == ["bin/more: only in the second"]
    assert content_digest(first) != content_digest(second)


def test_differences_are_sorted_by_path() -> None:
    first = tree(Member("b"), Member("a"), Member("d"))
    second = tree(Member("c"), Member("d", mode=0o600))
    assert [line.partition(":")[0] for line in differences(first, second)] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "same",
    [
        pytest.param([replace(member, mtime=1_800_000_000) for member in IMAGE], id="clocks"),
        pytest.param([replace(member, name="./" + member.name) for member in IMAGE], id="leading dot"),
        pytest.param([replace(member, name="/" + member.name) for member in IMAGE], id="leading slash"),
        pytest.param([NODE, LINK, TOOL, BIN], id="order"),
        pytest.param([replace(TOOL, content=b"older"), *IMAGE], id="a member that a later one replaces"),
        pytest.param([Member("./", tarfile.DIRTYPE, mode=0o700), *IMAGE], id="root folder"),
        pytest.param([BIN, TOOL, replace(LINK, mode=0o644), NODE], id="mode of a link"),
    ],
)
def test_what_no_program_inside_can_tell_is_no_difference(same: list[Member]) -> None:
    first, second = tree(*IMAGE), tree(*same)
    assert differences(first, second) == []
    assert content_digest(first) == content_digest(second)


def test_a_hard_link_counts_as_the_file_it_names() -> None:
    name = Member("bin/name", tarfile.LNKTYPE, link="bin/tool", mode=0)
    dotted = replace(name, link="./bin/tool")
    copy = replace(TOOL, name="bin/name")
    assert differences(tree(*IMAGE, copy), tree(*IMAGE, name)) == []
    assert differences(tree(*IMAGE, copy), tree(*IMAGE, dotted)) == []
    other = tree(*[replace(member, content=b"!!/bin/sh\n") if member is TOOL else member for member in IMAGE], name)
    assert differences(tree(*IMAGE, copy), other) == [
        "bin/name: content, 10 bytes in both",
        "bin/tool: content, 10 bytes in both",
    ]


def test_a_hard_link_to_nothing_is_an_error() -> None:
    with pytest.raises(UserError, match=r"bin/name .*hard link to nothing"):
        tree(Member("bin/name", tarfile.LNKTYPE, link="bin/tool"), TOOL)


def test_what_the_engine_puts_into_a_container_is_left_out() -> None:
    added = [
        Member(".dockerenv", mode=0o755),
        Member("dev/", tarfile.DIRTYPE, mode=0o755),
        Member("etc/", tarfile.DIRTYPE, mode=0o755),
        Member("dev/console", tarfile.CHRTYPE, device=(5, 1)),
        Member("etc/hostname", content=b"8d35f0394380\n"),
        Member("etc/hosts", content=b"127.0.0.1 localhost\n"),
        Member("etc/mtab", tarfile.SYMTYPE, link="/proc/mounts"),
        Member("etc/resolv.conf", content=b"nameserver 192.0.2.1\n"),
        Member("proc/", tarfile.DIRTYPE),
        Member("run/.containerenv", content=b'engine="podman"\n'),
        Member("sys/", tarfile.DIRTYPE),
    ]
    assert differences(tree(*IMAGE), tree(*IMAGE, *added)) == []


def test_an_etc_with_something_of_the_image_in_it_counts() -> None:
    etc, passwd = Member("etc/", tarfile.DIRTYPE, mode=0o755), Member("etc/passwd")
    first, second = tree(*IMAGE, etc, passwd), tree(*IMAGE, replace(etc, mode=0o700), passwd)
    assert differences(first, second) == ["etc: mode 0755 and 0700"]


@pytest.mark.parametrize("name", ["device", "etc/hosts.allow", "opt/dev/null", "opt/.dockerenv", "etc/mtab.d"])
def test_what_only_looks_like_the_engines_counts(name: str) -> None:
    assert differences(tree(*IMAGE), tree(*IMAGE, Member(name))) == [f"{name}: only in the second"]


def test_a_hard_link_to_what_is_left_out_still_counts() -> None:
    hosts = Member("etc/hosts", content=b"127.0.0.1 localhost\n")
    linked = tree(*IMAGE, hosts, Member("etc/names", tarfile.LNKTYPE, link="etc/hosts"))
    assert differences(linked, tree(*IMAGE, replace(hosts, name="etc/names"))) == []


LONG = "a" * 90 + "/" + "b" * 90 + "/" + "c" * 120


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("name", [LONG, "Főtanúsítvány/名前/🙂", "not-utf-8-\udcff", "new\nline", "a b"])
def test_names_of_every_length_and_script(name: str, form: int) -> None:
    read = tree(Member(name, content=b"x"), Member("to", tarfile.SYMTYPE, link=name), form=form)
    assert set(read.entries) == {name, "to"}
    assert read.entries["to"].value == name
    assert read.entries[name].value == hashlib.sha256(b"x").hexdigest()
    lines = "\n".join(differences(read, tree())).encode().decode()  # no line that a terminal cannot take
    assert len(lines.splitlines()) == 2
    other = name[:-1] + "z"
    assert content_digest(read) != content_digest(
        tree(Member(other, content=b"x"), Member("to", tarfile.SYMTYPE, link=name))
    )


def test_the_digest_is_the_one_that_the_documentation_describes() -> None:
    read = tree(
        Member("a/é", content=b"x", uid=1, gid=2, mode=0o4755, capability=NET_RAW),
        Member("a/", tarfile.DIRTYPE, mode=0o755),
        Member("b", tarfile.SYMTYPE, link="🙂"),
        Member("c\udcff", tarfile.BLKTYPE, device=(8, 1)),
    )
    text = (
        '{"a":["folder","0755",0,0,0,"",""],'
        '"a/\\u00e9":["file","4755",1,2,1,"2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",'
        '"0100000200200000000000000000000000000000"],'
        '"b":["link","0777",0,0,0,"\\ud83d\\ude42",""],'
        '"c\\udcff":["block device","0644",0,0,0,"8:1",""]}'
    )
    assert content_digest(read) == "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def test_only_the_files_asked_for_are_kept() -> None:
    read = tree(*IMAGE, Member("etc/hosts", content=b"x"), keep=lambda path: path.endswith(("tool", "link", "hosts")))
    assert read.kept == {"bin/tool": b"#!/bin/sh\n"}


def test_a_kept_file_that_a_later_member_replaces_is_not_kept() -> None:
    assert tree(TOOL, replace(LINK, name="bin/tool"), keep=lambda path: True).kept == {}


def test_a_kept_file_may_be_a_hard_link_to_a_kept_one() -> None:
    read = tree(*IMAGE, Member("tool", tarfile.LNKTYPE, link="bin/tool"), keep=lambda path: path.endswith("tool"))
    assert read.kept == {"bin/tool": b"#!/bin/sh\n", "tool": b"#!/bin/sh\n"}


def test_a_kept_file_whose_bytes_are_gone_is_an_error() -> None:
    with pytest.raises(UserError, match=r"^tool in the image is a hard link to bin/tool"):
        tree(*IMAGE, Member("tool", tarfile.LNKTYPE, link="bin/tool"), keep=lambda path: path == "tool")


def test_a_stream_cut_short_anywhere_is_an_error() -> None:
    members = [
        *IMAGE,
        Member(LONG, content=bytes(3000)),
        replace(TOOL, name="caps", capability=NET_RAW),
        Member("last"),
    ]
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        whole = tar(*members, form=form)
        end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # where the zero blocks that end a tar begin
        for length in range(0, end + 512, 13):
            with pytest.raises(UserError, match="cut short or damaged"):
                read_tree(io.BytesIO(whole[:length]))
        assert len(read_tree(io.BytesIO(whole[: end + 512])).entries) == len(members)


def test_garbage_between_members_is_an_error() -> None:
    whole = bytearray(tar(Member("a"), Member("b"), Member("c")))
    whole[512:1024] = b"x" * 512
    with pytest.raises(UserError, match="cut short or damaged after 1 paths"):
        read_tree(io.BytesIO(bytes(whole)))


@pytest.mark.parametrize("data", [b"", b"no tar", b"x" * 4096])
def test_what_is_no_tar_is_an_error(data: bytes) -> None:
    with pytest.raises(UserError, match="cut short or damaged after 0 paths"):
        read_tree(io.BytesIO(data))


def test_the_stream_is_read_to_its_end_so_that_its_writer_can_finish() -> None:
    stream = io.BytesIO(tar(*IMAGE) + bytes(1 << 20))
    read_tree(stream)
    assert stream.read() == b""


def test_gnu_tar_of_a_folder_reads_as_the_folder_is(tmp_path: Path) -> None:
    if shutil.which("tar") is None:
        pytest.skip("there is no tar program")
    folder = tmp_path / "root"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/tool").write_bytes(b"content")
    (folder / "bin/tool").chmod(0o751)
    os.link(folder / "bin/tool", folder / "bin/name")
    (folder / "link").symlink_to("bin/tool")
    (folder / ("n" * 200)).write_bytes(bytes(100_000))
    with open(folder / "sparse", "wb") as sparse:
        sparse.truncate(1_000_000)
        sparse.seek(500_000)
        sparse.write(b"middle")
    packed = subprocess.run(["tar", "-c", "--sparse", "-C", folder, "."], stdout=subprocess.PIPE, check=True).stdout
    read = read_tree(io.BytesIO(packed))
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {name: entry.value for name, entry in read.entries.items() if entry.kind == "file"} == {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
    assert {name: entry.size for name, entry in read.entries.items() if entry.kind == "file"} == {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in files
    }
    assert read.entries["bin/name"].mode == 0o751
    assert (read.entries["link"].kind, read.entries["link"].value) == ("link", "bin/tool")
    assert read.entries["bin"].uid == folder.stat().st_uid


# A stand-in for the engine: it keeps its one container in a file and says what it is asked in another.
ENGINE = """#!/bin/sh
cd "$(dirname "$0")"
echo "$*" >> asked
case $1 in
create) [ ! -e no-create ] || { echo "Error: no such image" >&2; exit 125; }
    touch container; echo 0123456789abcdef ;;
export) [ -e container ] || exit 1
    cat export.tar
    [ ! -e no-export ] || { echo "Error: the disk is gone" >&2; exit 1; } ;;
rm) rm -f container ;;
esac
"""


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """The folder of a stand-in engine whose image is IMAGE."""
    (tmp_path / "export.tar").write_bytes(tar(*IMAGE))
    (tmp_path / "engine").write_text(ENGINE)
    (tmp_path / "engine").chmod(0o755)
    return tmp_path


def test_an_image_is_read_through_a_container_that_is_removed(engine: Path) -> None:
    read = image_tree([str(engine / "engine")], "some:image", lambda path: path == "bin/tool")
    assert differences(read, tree(*IMAGE)) == []
    assert read.kept == {"bin/tool": TOOL.content}
    assert not (engine / "container").exists()
    asked = (engine / "asked").read_text().splitlines()
    assert [line.split()[0] for line in asked] == ["create", "export", "rm"]  # nothing is run
    assert "--pull=never" in asked[0].split()
    assert "--volumes" in asked[2].split()  # `create` made one for every VOLUME of the image


@pytest.mark.parametrize(("broken", "words"), [("no-create", "no such image"), ("no-export", "the disk is gone")])
def test_the_engines_words_are_passed_on_and_nothing_is_left(engine: Path, broken: str, words: str) -> None:
    (engine / broken).touch()
    (engine / "export.tar").write_bytes(tar(*IMAGE)[:1000])
    with pytest.raises(UserError, match=words):
        image_tree([str(engine / "engine")], "some:image")
    assert not (engine / "container").exists()


def test_a_failed_export_is_an_error_even_after_a_whole_tree(engine: Path) -> None:
    (engine / "no-export").touch()
    with pytest.raises(UserError, match="the disk is gone"):
        image_tree([str(engine / "engine")], "some:image")


def test_an_export_that_ends_early_without_a_word_is_an_error(engine: Path) -> None:
    (engine / "export.tar").write_bytes(tar(*IMAGE)[:1024])
    with pytest.raises(UserError, match="cut short"):
        image_tree([str(engine / "engine")], "some:image")
    assert not (engine / "container").exists()


def test_an_interrupted_reading_leaves_no_container(engine: Path) -> None:
    def interrupt(path: str) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        image_tree([str(engine / "engine")], "some:image", interrupt)
    assert not (engine / "container").exists()


def test_a_missing_engine_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be run: No such file"):
        image_tree([str(tmp_path / "engine")], "some:image")
