"""A zip has one reading or none. Android's own zip loader and Python's zipfile are the oracles."""

import io
import random
import re
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from android import AndroidZip
from zips import BASE, LIES, SOUND, signing_block

from parity.release.archive import open_archive
from pipeline.core.errors import UserError

Read = dict[str, tuple[int, int]]
"""Name -> (size, CRC-32)."""


def read(path: Path) -> Read:
    archive = open_archive(path)
    found = {}
    for entry in archive.entries:
        crc = size = 0
        for part in archive.chunks(entry):
            crc, size = zlib.crc32(part, crc), size + len(part)
        found[entry.name] = (size, crc)
    return found


def read_by_python(data: bytes) -> Read:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {one.filename: (one.file_size, zlib.crc32(archive.read(one))) for one in archive.infolist()}


@pytest.mark.parametrize("case", SOUND)
def test_a_sound_archive_is_read_as_others_read_it(case: str, tmp_path: Path, android: AndroidZip) -> None:
    path = tmp_path / "a.apk"
    path.write_bytes(SOUND[case].made())
    assert read(path) == read_by_python(path.read_bytes())
    if case != "no files":  # Android calls that invalid
        assert android.read([path]) == [read(path)]


@pytest.mark.parametrize("case", LIES)
def test_a_lie_is_refused(case: str, tmp_path: Path) -> None:
    make, words = LIES[case]
    path = tmp_path / "a.apk"
    path.write_bytes(make())
    with pytest.raises(UserError) as caught:
        read(path)
    said = str(caught.value)
    assert re.search(words, said), said
    assert said.startswith(str(path))
    assert "\n" not in said


def test_what_is_read_is_what_android_reads(tmp_path: Path, android: AndroidZip) -> None:
    """Archives with a few bytes changed: one that is still accepted has the same files for Android, or none."""
    generator = random.Random(8)
    seeds = [zip_.made() for zip_ in SOUND.values()] * 6 + [make() for make, _ in LIES.values()]
    accepted: list[tuple[Path, Read]] = []
    tried = 4000
    for number in range(tried):
        data = bytearray(generator.choice([one for one in seeds if one]))
        # Headers are at the end and in front of each file; there most of a lie is told.
        marks = [at.start() for at in re.finditer(rb"PK\x03\x04|PK\x01\x02|PK\x05\x06|PK\x07\x08", data)] or [0]
        for _ in range(generator.choice([1, 1, 2, 4])):
            at = min(generator.choice(marks) + generator.randrange(50), len(data) - 1)
            data[at] = generator.choice([0, 1, 255, data[at] ^ 1 << generator.randrange(8), generator.randrange(256)])
        path = tmp_path / f"{number}.apk"
        path.write_bytes(data)
        try:
            accepted.append((path, read(path)))
        except UserError:
            path.unlink()
    assert 100 < len(accepted) < tried, "some bytes, such as a time, change nothing"
    for (path, ours), theirs in zip(accepted, android.read([path for path, _ in accepted]), strict=True):
        assert theirs in (ours, None), path


def test_a_signing_block_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.apk"
    block = signing_block((0x7109871A, b"v2"))
    path.write_bytes(replace(BASE, before_directory=block).made())
    archive = open_archive(path)
    assert archive.signing
    start, end = archive.signing
    assert path.read_bytes()[start:end] == block
    path.write_bytes(BASE.made())
    assert open_archive(path).signing is None


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "no.apk", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=words):
            open_archive(path)
