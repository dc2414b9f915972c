"""GGUFs and contracts are found by their content, wherever they lie and however they are packed."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path

import pytest
from zips import EVIL, MODEL, File, Zip

from parity.release.archive import open_archive
from parity.release.contents import Contents, look_into
from pipeline.contract import Contract

SEAM = (1 << 20) - 3
"""Where the magic lies in two of the parts that are read."""


def look(tmp_path: Path, *files: File) -> Contents:
    path = tmp_path / "a.apk"
    path.write_bytes(Zip(files).made())
    return look_into(open_archive(path))


def zipped(name: str, data: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), data, method)
    return held.getvalue()


def tarred(data: bytes) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        info = tarfile.TarInfo("model.gguf")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return held.getvalue()


@pytest.mark.parametrize("name", [b"assets/model.gguf", b"res/raw/a.bin", b"lib/arm64-v8a/libmodel.so", b"META-INF/x"])
@pytest.mark.parametrize("method", [0, 8])
def test_a_model_is_found_under_any_name(tmp_path: Path, name: bytes, method: int) -> None:
    (model,) = look(tmp_path, File(b"a", b"x"), File(name, MODEL, method)).models
    assert model.where == f"{tmp_path / 'a.apk'}: {name.decode()}"
    assert (model.sha256, model.size) == (hashlib.sha256(MODEL).hexdigest(), len(MODEL))
    assert model.packed == ("deflated" if method else "")


PACKED = {
    "gzip": gzip.compress(EVIL),
    "gzip in two parts": gzip.compress(EVIL[:5]) + gzip.compress(EVIL[5:]),
    "bz2": bz2.compress(EVIL),
    "xz": lzma.compress(EVIL),
}


@pytest.mark.parametrize("case", PACKED)
@pytest.mark.parametrize("method", [0, 8])
def test_a_model_that_is_packed_once_more_is_found(tmp_path: Path, case: str, method: int) -> None:
    (model,) = look(tmp_path, File(b"assets/data.bin", PACKED[case], method)).models
    assert model.sha256 == hashlib.sha256(EVIL).hexdigest()
    assert model.packed == "compressed once more"


@pytest.mark.parametrize("outer", [0, 8])
@pytest.mark.parametrize("inner", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_model_in_an_archive_in_the_archive_is_found(tmp_path: Path, outer: int, inner: int) -> None:
    nested = zipped("b.zip", zipped("model.gguf", EVIL, inner), inner)
    found = look(tmp_path, File(b"assets/a.zip", nested, outer))
    (model,) = found.models
    assert model.where.endswith("a.apk: assets/a.zip: b.zip: model.gguf")
    assert model.sha256 == hashlib.sha256(EVIL).hexdigest()
    assert not found.closed


@pytest.mark.parametrize("method", [0, 8])
@pytest.mark.parametrize("at", [1, 4096, SEAM, (1 << 20) - 1, 1 << 20])
def test_a_model_behind_other_bytes_is_found(tmp_path: Path, method: int, at: int) -> None:
    found = look(tmp_path, File(b"assets/cat.jpg", bytes(at) + EVIL, method))
    assert not found.models
    assert [where.partition("cat.jpg")[2] for where in found.hidden] == [f", from byte {at:,} on"]


def test_a_model_in_a_tar_in_gzip_is_found(tmp_path: Path) -> None:
    found = look(tmp_path, File(b"assets/a.tgz", gzip.compress(tarred(EVIL))))
    assert len(found.hidden) == 1


def test_the_letters_alone_are_no_model(tmp_path: Path) -> None:
    found = look(tmp_path, File(b"lib/arm64-v8a/libllama.so", b"\x7fELF a GGUF file has the magic GGUF\0" * 9))
    assert (found.models, found.hidden) == ([], [])
    assert [library.name for library in found.libraries] == ["libllama.so"]
    assert found.libraries[0].build_id == ""


def test_what_cannot_be_looked_into_is_said(tmp_path: Path) -> None:
    large = bytes(2 << 20)
    found = look(
        tmp_path,
        File(b"a.zst", b"\x28\xb5\x2f\xfd" + large),
        File(b"b.7z", b"7z\xbc\xaf\x27\x1c" + large, 8),
        File(b"small.zst", b"\x28\xb5\x2f\xfd"),
        File(b"c.gz", b"\x1f\x8b\x08" + large),
        File(b"d.zip", b"PK\3\4" + large),
    )
    said = [one.partition("a.apk: ")[2] for one in found.closed]
    assert said[0] == "a.zst is compressed by zstd"
    assert said[1] == "b.7z is compressed by 7z"
    assert said[2].startswith("c.gz does not unpack")
    assert said[3].startswith("d.zip is no archive that every reader reads alike")
    assert len(said) == 4


def test_an_archive_that_holds_itself_again_and_again_ends(tmp_path: Path) -> None:
    nested = b"x"
    for _ in range(6):
        nested = zipped("a.zip", nested)
    found = look(tmp_path, File(b"a.zip", nested))
    assert found.closed == [
        f"{tmp_path / 'a.apk'}: a.zip: a.zip: a.zip: a.zip is an archive in an archive in an archive"
    ]


def test_contracts_are_found_by_content(tmp_path: Path) -> None:
    contract = Contract(labels=("cat", "dog"))
    whole = contract.model_dump_json().encode()
    found = look(
        tmp_path,
        File(b"assets/x.bin", whole, 8),
        File(b"assets/y.json", json.dumps(json.loads(whole) | {"add_bos": 7}).encode()),
        File(b"assets/other.json", b'{"labels": []}'),
        File(b"assets/deep.json", b'{"a":' * 100_000),
    )
    assert [digest for _, digest in found.contracts] == [contract.digest, ""]
    assert found.files == 4
