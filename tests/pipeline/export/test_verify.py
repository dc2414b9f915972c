"""A bundle is checked with nothing but Python, and whatever is wrong with it is found and named."""

import ast
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import MMPROJ, TEXT, flip, read_manifest, write_fake_bundle, write_gguf, write_manifest

from pipeline.contract import Contract, Gate, ImageContract
from pipeline.core.errors import CheckFailed, UserError
from pipeline.core.files import sha256_file, write_json
from pipeline.core.gguf_types import FILE_TYPES, MATRIX_TYPES
from pipeline.core.toolchain import load_gguf
from pipeline.export import bundle as export_bundle
from pipeline.export import convert, verify
from pipeline.export.verify import TENSOR_TYPES, read_gguf, verify_bundle

ROOT = Path(__file__).parents[3]
OTHER = Contract(labels=("day", "night"))
SOURCES = (
    "pipeline/export/verify.py",
    "pipeline/core/errors.py",
    "pipeline/core/files.py",
    "pipeline/core/gguf_types.py",
)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_fake_bundle(tmp_path / "bundle")


def plain_python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run this Python as if nothing were installed in it."""
    environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-S", "-E", "-s", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)


def test_an_exported_bundle_is_whole(bundle: Path) -> None:
    lines = verify_bundle(bundle)
    names = {path.name for path in bundle.iterdir()}
    assert {line.split(":")[0] for line in lines} == names
    for name in names - {"manifest.json"}:
        assert f"{name}: SHA-256 {sha256_file(bundle / name)}" in lines


def test_names_are_the_exports_own() -> None:
    assert (verify.KEY_CONTRACT, verify.KEY_WEIGHTS) == (convert.KEY_CONTRACT, convert.KEY_WEIGHTS)
    assert set(FILE_TYPES) == set(MATRIX_TYPES)
    assert (verify.MANIFEST, verify.CONTRACT) == (export_bundle.MANIFEST, export_bundle.CONTRACT)


def test_the_types_are_ggmls_own() -> None:
    gguf: Any = load_gguf()
    sizes = {int(kind): (kind.name, *size) for kind, size in gguf.GGML_QUANT_SIZES.items()}
    assert sizes == TENSOR_TYPES


@pytest.mark.parametrize(
    "contract",
    [
        Contract(),
        OTHER,
        Contract(labels=("물고기", "Eisbär"), gate=Gate(margin_points=1e-7)),
        Contract(prompt_template='<__media__> "\\ \t {labels}', gate=Gate(margin_points=0.1 + 0.2)),
        Contract(image=ImageContract(pad_color=(1, 2, 3))),
    ],
)
def test_the_digest_of_the_file_is_the_contracts_own(tmp_path: Path, contract: Contract) -> None:
    folder = write_fake_bundle(tmp_path / "bundle", contract)
    assert any(contract.digest in line for line in verify_bundle(folder) if line.startswith("contract.json"))


def test_a_signature_may_lie_in_a_bundle(whole: Path) -> None:
    (whole / "model.sig").write_text("{}")
    verify_bundle(whole)


# ---- every fault is found --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [TEXT, MMPROJ, "contract.json"])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_a_changed_byte_is_found(whole: Path, name: str, place: float) -> None:
    size = (whole / name).stat().st_size
    flip(whole / name, min(int(size * place), size - 1))
    with pytest.raises(CheckFailed, match=rf"bundle/{name} is not the file that was exported: its SHA-256 is "):
        verify_bundle(whole)


@pytest.mark.parametrize("name", [TEXT, MMPROJ, "contract.json", "contract_sha256"])
def test_a_changed_byte_of_a_hash_in_the_manifest_is_found(whole: Path, name: str) -> None:
    path = whole / "manifest.json"
    path.write_text(path.read_text().replace(f'"{name}": "', f'"{name}": "x'))
    with pytest.raises(CheckFailed, match="contract" if name == "contract_sha256" else name):
        verify_bundle(whole)


@pytest.mark.parametrize("name", [TEXT, MMPROJ, "contract.json"])
@pytest.mark.parametrize("renamed", [False, True])
def test_a_file_that_is_not_there_is_found(whole: Path, name: str, renamed: bool) -> None:
    moved = (whole / name).rename(whole.parent / name)
    if renamed:
        moved.rename(whole / f"old-{name}")
    with pytest.raises(CheckFailed, match=f"bundle/{name} is missing, but manifest.json lists it"):
        verify_bundle(whole)


@pytest.mark.parametrize("name", [TEXT, MMPROJ, "contract.json", "manifest.json", "model.sig"])
@pytest.mark.parametrize("fault", ["folder", "FIFO", "link", "link inside", "dangling link", "link to a folder"])
def test_what_is_not_a_file_is_refused(whole: Path, name: str, fault: str) -> None:
    """Also where the content that it leads to is right: what a link leads to is not the bundle's."""
    (whole / "model.sig").write_text("{}")
    path, moved = whole / name, whole.parent / name
    path.rename(moved)
    if fault == "folder":
        path.mkdir()
    elif fault == "FIFO":
        os.mkfifo(path)
    elif fault == "link":
        path.symlink_to(moved)
    elif fault == "link inside":
        path.symlink_to(TEXT if name != TEXT else MMPROJ)
    elif fault == "dangling link":
        path.symlink_to("nowhere")
    else:
        path.symlink_to(whole.parent)
    kind = "a link" if "link" in fault else f"a {fault}"
    with pytest.raises(CheckFailed, match=rf"bundle/{re.escape(name)} is {kind}, and a bundle holds nothing but files"):
        verify_bundle(whole)


def test_a_folder_of_links_is_refused(whole: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in whole.iterdir():
        (linked / path.name).symlink_to(path)
    with pytest.raises(CheckFailed, match=r"linked/manifest.json is a link.*`cp -rL`"):
        verify_bundle(linked)


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "model.sig.bak", "two\nlines", os.fsdecode(b"\xff\xfe")])
def test_a_file_too_many_is_found(whole: Path, name: str) -> None:
    (whole / name).write_text("")
    with pytest.raises(CheckFailed, match=r"is no part of the bundle") as error:
        verify_bundle(whole)
    assert str(error.value).isprintable()
    assert name in str(error.value) or repr(name)[1:-1] in str(error.value)


def test_a_folder_too_many_is_found(whole: Path) -> None:
    (whole / "more").mkdir()
    with pytest.raises(CheckFailed, match="bundle/more is no part of the bundle"):
        verify_bundle(whole)


@pytest.mark.parametrize("name", ["../x.gguf", "/etc/passwd", "a/b", "..", ".", "", "x\ny", "manifest.json"])
def test_a_name_that_is_no_file_of_a_bundle_is_refused(whole: Path, name: str) -> None:
    (whole.parent / "x.gguf").write_text("x")
    outputs = read_manifest(whole)["outputs"] | {name: sha256_file(whole.parent / "x.gguf")}
    write_manifest(whole, outputs=outputs)
    with pytest.raises(CheckFailed, match=r"manifest\.json does not list a bundle") as error:
        verify_bundle(whole)
    assert str(error.value).isprintable()


def test_a_recipe_cannot_lead_out_of_the_bundle(whole: Path) -> None:
    """The names that the recipe's export gives its files are the ones that are read."""
    recipe = read_manifest(whole)["recipe"]
    for export in (
        {"name": "../x", "text_type": "Q8_0", "mmproj_type": "Q8_0"},
        {"name": "Tiny", "text_type": "Q9_9", "mmproj_type": "Q8_0"},
    ):
        write_manifest(whole, recipe=recipe | {"export": export})
        with pytest.raises(CheckFailed, match=r"'recipe\.export' is not what an export is made by"):
            verify_bundle(whole)
    for broken in ({}, [], None, {"export": {"name": 1}}, {"export": None}):
        write_manifest(whole, recipe=broken)
        with pytest.raises(CheckFailed, match=r"'recipe\.export' does not name the pair"):
            verify_bundle(whole)


def test_another_contract_is_found_though_the_hashes_are_right(whole: Path) -> None:
    write_json(whole / "contract.json", OTHER.model_dump(mode="json"))
    write_manifest(whole)
    with pytest.raises(CheckFailed, match=f"contract.json belongs to another contract.*{OTHER.digest}"):
        verify_bundle(whole)


@pytest.mark.parametrize("name", [TEXT, MMPROJ])
@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({convert.KEY_CONTRACT: OTHER.digest}, f"belongs to another contract: .* is {OTHER.digest}"),
        ({convert.KEY_CONTRACT: 7}, "belongs to another contract: .* is missing"),
        ({}, "belongs to another contract: .* is missing"),
    ],
    ids=["other", "number", "none"],
)
def test_a_gguf_of_another_contract_is_found(whole: Path, name: str, keys: dict[str, str | int], words: str) -> None:
    write_gguf(whole / name, keys)
    write_manifest(whole)
    with pytest.raises(CheckFailed, match=f"bundle/{name} {words}"):
        verify_bundle(whole)


def _truncate(data: bytes) -> bytes:
    return data[:300]


def _endless_string(data: bytes) -> bytes:
    return data[:24] + b"\xff" * 8 + data[32:]  # the length of the first key


def _unknown_type(data: bytes) -> bytes:
    key = data.index(b"general.architecture") + len(b"general.architecture")
    return data[:key] + (13).to_bytes(4, "little") + data[key + 4 :]


def _nested_without_end(data: bytes) -> bytes:
    head = b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little") + bytes(8)
    array = (9).to_bytes(4, "little")
    return head[:-8] + (1).to_bytes(8, "little") + b"k" + array + (array + (1).to_bytes(8, "little")) * 100_000


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: b"", "it ends within its metadata"),
        (_truncate, "it ends within its metadata"),
        (_endless_string, "it ends within its metadata"),
        (_unknown_type, "unknown type 13"),
        (_nested_without_end, "array of the unknown type 9"),
        (lambda data: b"GGML" + data[4:], "it does not begin with GGUF"),
        (lambda data: data[:4] + b"\x02" + data[5:], "its version is 2, and this program reads 3"),
        (lambda data: data[:4] + data[7:3:-1] + data[8:], "it is big-endian"),
        (lambda data: data[:-100], "it is cut: its tensors need [0-9]+ bytes more than it has"),
        (lambda data: data[:8] + bytes([data[8] + 1]) + data[9:], "."),  # one tensor more than there are
    ],
    ids=["empty", "truncated", "endless", "type", "nested", "magic", "version", "big-endian", "cut", "count"],
)
def test_a_damaged_gguf_is_found_though_the_hashes_are_right(
    whole: Path, damage: Callable[[bytes], bytes], words: str
) -> None:
    (whole / TEXT).write_bytes(damage((whole / TEXT).read_bytes()))
    write_manifest(whole)
    with pytest.raises(CheckFailed, match=f"bundle/{TEXT} cannot be read as GGUF: .*{words}"):
        verify_bundle(whole)


# ---- what the GGUFs are, with every hash right -----------------------------------------------------------------------


def raw(keys: list[bytes], tensors: list[bytes], data: bytes) -> bytes:
    """A GGUF byte by byte."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys + tensors)
    return head + bytes(-len(head) % 32) + data


def named(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def tensor(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    about = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return struct.pack("<Q", len(name)) + name + about


ONE = tensor(b"a", (16,), 0, 0)  # 64 bytes


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    keys = [
        named(b"text", 8, struct.pack("<Q", 2) + "ä".encode()),
        named(b"numbers", 9, struct.pack("<IQ3I", 4, 3, 1, 2, 3)),
        named(b"words", 9, struct.pack("<IQQ", 8, 1, 2) + b"xy"),
        named(b"general.alignment", 4, struct.pack("<I", 64)),
        named(b"half", 6, struct.pack("<f", 0.5)),
    ]
    head = 24 + sum(map(len, keys)) + len(ONE) + len(tensor(b"b", (32, 3), 8, 64))
    path = tmp_path / "x.gguf"
    path.write_bytes(raw(keys, [ONE, tensor(b"b", (32, 3), 8, 64)], b"")[:head] + bytes(-head % 64) + bytes(64 + 102))
    found = read_gguf(path)
    assert found.keys == {"text": "ä", "numbers": None, "words": None, "general.alignment": 64, "half": 0.5}
    assert found.tensors == {"a": (0, (16,)), "b": (8, (32, 3))}
    assert (found.matrices, found.behind) == ({"b": 8}, 0)
    assert (found.text("text"), found.text("half"), found.text("absent")) == ("ä", None, None)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (raw([named(b"k", 7, b"\1")] * 2, [ONE], bytes(64)), "the key 'k' is there twice"),
        (raw([named(b"", 7, b"\1")], [ONE], bytes(64)), "a key has no name"),
        (raw([named(b"\xff", 7, b"\1")], [ONE], bytes(64)), "utf-8"),
        (raw([named(b"general.alignment", 4, struct.pack("<I", 0))], [ONE], bytes(64)), "is not a power of 2"),
        (raw([named(b"general.alignment", 4, struct.pack("<I", 48))], [ONE], bytes(64)), "is not a power of 2"),
        (raw([named(b"general.alignment", 8, bytes(8))], [ONE], bytes(64)), "is not a power of 2|not supported"),
        (raw([named(b"k", 9, struct.pack("<IQ", 8, 1 << 60))], [ONE], bytes(64)), "array of [0-9]+ texts"),
        (raw([named(b"k", 9, struct.pack("<IQ", 0, 1 << 60))], [ONE], bytes(64)), "ends within its metadata"),
        (raw([], [ONE, tensor(b"a", (16,), 0, 64)], bytes(128)), "tensor 'a' is there twice"),
        (raw([], [ONE, tensor(b"b", (16,), 0, 0)], bytes(128)), "begins at byte 0 of the data, .* ends at 64"),
        (raw([], [ONE, tensor(b"b", (16,), 0, 96)], bytes(256)), "begins at byte 96 of the data"),
        (raw([], [tensor(b"a", (16,), 4, 0)], bytes(64)), "unknown type 4"),
        (raw([], [tensor(b"a", (16,), 1000, 0)], bytes(64)), "unknown type 1000"),
        (raw([], [tensor(b"a", (16,), 8, 0)], bytes(64)), "of type Q8_0 has the impossible shape"),
        (raw([], [tensor(b"a", (0,), 0, 0)], bytes(64)), "impossible shape"),
        (raw([], [tensor(b"a", (1 << 40, 1 << 40), 0, 0)], bytes(64)), "impossible shape"),
        (raw([], [tensor(b"a", (1,) * 5, 0, 0)], bytes(64)), "a tensor has 5 dimensions"),
        (raw([], [tensor(b"a", (), 0, 0)], bytes(64)), "a tensor has 0 dimensions"),
        (raw([], [tensor(b"a", (1 << 30,), 0, 0)], bytes(64)), "it is cut: its tensors need 4294967232 bytes more"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 62, 0) + ONE, "ends within its metadata"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 62), "ends within its metadata"),
    ],
)
def test_an_impossible_gguf_is_one_sentence(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckFailed, match=rf"x\.gguf cannot be read as GGUF: .*({words})") as error:
        read_gguf(path)
    assert str(error.value).isprintable()


def found_wrong(folder: Path) -> str:
    """What is said of a bundle whose manifest was made again."""
    write_manifest(folder)
    with pytest.raises(CheckFailed) as error:
        verify_bundle(folder)
    assert str(error.value).isprintable()
    return str(error.value)


def test_swapped_halves_are_found(whole: Path) -> None:
    (whole / TEXT).rename(whole / "x")
    (whole / MMPROJ).rename(whole / TEXT)
    (whole / "x").rename(whole / MMPROJ)
    assert f"{TEXT} is not the language half of this bundle in Q8_0: general.architecture is 'clip'" in (
        found_wrong(whole)
    )


@pytest.mark.parametrize(("kept", "lost"), [(TEXT, MMPROJ), (MMPROJ, TEXT)])
def test_one_half_in_both_places_is_found(whole: Path, kept: str, lost: str) -> None:
    shutil.copy(whole / kept, whole / lost)
    assert f"{lost} is not the" in found_wrong(whole)


def test_bytes_behind_the_tensors_are_found(whole: Path) -> None:
    with open(whole / TEXT, "ab") as file:
        file.write(b"x" * 40)
    assert "40 bytes that are no tensor's follow the last one's data" in found_wrong(whole)


def test_half_a_half_is_found(whole: Path) -> None:
    with open(whole / MMPROJ, "rb+") as file:
        file.truncate((whole / MMPROJ).stat().st_size // 2)
    assert f"{MMPROJ} cannot be read as GGUF" in found_wrong(whole)


MINE = {convert.KEY_CONTRACT: Contract().digest}
ROW = np.zeros((2, 64), np.float32)


@pytest.mark.parametrize(
    ("name", "keys", "tensors", "words"),
    [
        (TEXT, {"general.architecture": "clip"}, None, "general.architecture is 'clip'"),
        (MMPROJ, {"general.architecture": "llama"}, None, "general.architecture is 'llama'"),
        (TEXT, {"llama.block_count": 2}, None, "llama.block_count is 2, and its tensors are of 1 blocks"),
        (TEXT, {"llama.block_count": None}, None, "llama.block_count is None"),
        (MMPROJ, {"clip.vision.block_count": 0}, None, "clip.vision.block_count is 0, and its tensors are of 1"),
        (MMPROJ, {"clip.has_vision_encoder": None}, None, "clip.has_vision_encoder is not true"),
        (TEXT, {}, {"blk.0.x": ROW}, "it has no tensor token_embd.weight"),
        (MMPROJ, {}, {"v.blk.0.x": ROW}, "it has no tensor v.patch_embd.weight"),
        (TEXT, {}, {"token_embd.weight": ROW, "mm.x": ROW}, "tensor 'mm.x' is not one of that half"),
        (MMPROJ, {}, {"v.patch_embd.weight": ROW, "blk.0.x": ROW}, "tensor 'blk.0.x' is not one of that half"),
        (TEXT, {}, {"token_embd.weight": ROW, "blk.0.x": ROW[0]}, "tensor 'token_embd.weight' is F32"),
        (MMPROJ, {}, {"v.patch_embd.weight": ROW, "v.blk.0.x": ROW}, "tensor 'v.blk.0.x' is F32"),
        (TEXT, {"general.file_type": 2}, None, "general.file_type is 2, and of Q8_0 it is 7"),
        (MMPROJ, {"general.file_type": "7"}, None, "general.file_type is '7'"),
    ],
)
def test_a_half_that_is_something_else_is_found(
    whole: Path, name: str, keys: dict[str, Any], tensors: dict[str, Any] | None, words: str
) -> None:
    write_gguf(whole / name, MINE | keys, tensors)
    message = found_wrong(whole)
    assert f"{whole / name} is not the {'vision' if name == MMPROJ else 'language'} half" in message
    assert words in message


def test_halves_of_other_weights_are_found(whole: Path) -> None:
    for name, weights in ((TEXT, "a" * 64), (MMPROJ, "b" * 64)):
        write_gguf(whole / name, MINE | {convert.KEY_WEIGHTS: weights})
    assert f"{MMPROJ} was not made of the weights that {TEXT} was made of" in found_wrong(whole)
    write_gguf(whole / MMPROJ, MINE)
    assert f"{convert.KEY_WEIGHTS} is missing in it" in found_wrong(whole)
    write_gguf(whole / MMPROJ, MINE | {convert.KEY_WEIGHTS: "a" * 64})
    write_manifest(whole)
    verify_bundle(whole)


def test_a_type_that_the_file_does_not_have_is_found(whole: Path) -> None:
    (whole / TEXT).rename(whole / "Tiny-F16.gguf")
    recipe = read_manifest(whole)["recipe"]
    write_manifest(whole, recipe=recipe | {"export": recipe["export"] | {"text_type": "F16"}})
    with pytest.raises(
        CheckFailed, match=r"Tiny-F16\.gguf is not the language half of this bundle in F16: .*file_type"
    ):
        verify_bundle(whole)


@pytest.mark.parametrize("seed", range(2))
def test_damage_anywhere_in_a_gguf_is_one_sentence_or_nothing(whole: Path, seed: int) -> None:
    """A flipped bit may be anything, but never a traceback."""
    generator = random.Random(seed)
    for _ in range(50):
        path = whole / generator.choice([TEXT, MMPROJ])
        before = path.read_bytes()
        place = generator.randrange(min(len(before), 2500))
        path.write_bytes(before[:place] + bytes([generator.randrange(256)]) + before[place + 1 :])
        write_manifest(whole)
        said = ""
        try:
            verify_bundle(whole)
        except CheckFailed as error:
            said = str(error)
        assert "\n" not in said
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds no JSON object"),
        ('{"schema_version": 1, "outputs": NaN}', "is not valid JSON"),
        ('{"schema_version": 1}', "'outputs' is not"),
        ('{"schema_version": 1, "outputs": {"a": 1}}', "what 'outputs' has for a is not"),
        ('{"schema_version": 1, "outputs": {"a": "x"}}', "what 'outputs' has for a is not"),
        ('{"schema_version": 1, "outputs": {}}', "'contract_sha256' is not"),
        ('{"schema_version": 1, "schema_version": 1}', "the key 'schema_version' is there twice"),
        ('{"schema_version": 1, "outputs": {"a": "", "a": ""}}', "the key 'a' is there twice"),
        ('{"schema_version": ' + "9" * 5000 + "}", "an integer of 5000 digits"),
        ('{"x": 1e999}', "is not valid JSON"),
        ('{"x": "\\ud800"}', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"x": ' * 100_000, "is not valid JSON"),
        (" " * (1 << 24) + "{}", "it has 16777218 bytes"),
    ],
    ids=range(15),
)
@pytest.mark.parametrize("name", ["manifest.json", "contract.json"])
def test_a_damaged_manifest_or_contract_is_found(whole: Path, name: str, text: str, words: str) -> None:
    (whole / name).write_text(text)
    if name == "contract.json":
        write_manifest(whole)
        words = words if "not valid" in words or "twice" in words or "digits" in words else "."
    with pytest.raises(
        CheckFailed, match=rf"bundle/{re.escape(name)} (is damaged|belongs to another).*{words}"
    ) as error:
        verify_bundle(whole)
    assert str(error.value).isprintable()


def test_a_manifest_that_is_not_text_is_found(whole: Path) -> None:
    (whole / "manifest.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(CheckFailed, match=r"bundle/manifest\.json is damaged, it is not valid JSON: 'utf-8'"):
        verify_bundle(whole)


@pytest.mark.parametrize("left_out", [(TEXT,), (MMPROJ,), ("contract.json",), (TEXT, MMPROJ, "contract.json")])
def test_a_manifest_that_lists_less_than_a_bundle_is_found(whole: Path, left_out: tuple[str, ...]) -> None:
    for name in left_out:
        (whole / name).unlink()
    write_manifest(whole)
    with pytest.raises(CheckFailed, match="does not list a bundle"):
        verify_bundle(whole)


def test_what_is_not_a_bundle_is_the_users_mistake(whole: Path) -> None:
    for path, words in ((whole / "nowhere", "not a folder"), (whole / TEXT, "not a folder"), (ROOT, "not a bundle")):
        with pytest.raises(UserError, match=words) as error:
            verify_bundle(path)
        assert str(path) in str(error.value)
    write_manifest(whole, schema_version=2)
    with pytest.raises(UserError, match="has schema_version 2, and this program reads 1"):
        verify_bundle(whole)
    for none in (None, True, 1.0, "1", [1]):
        write_manifest(whole, schema_version=none)
        with pytest.raises(UserError, match="has no schema_version"):
            verify_bundle(whole)


# ---- as an app's build runs it ---------------------------------------------------------------------------------------


def test_it_runs_where_nothing_is_installed(whole: Path) -> None:
    result = plain_python("-m", "pipeline.export.verify", whole)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[:-1] == verify_bundle(whole)
    assert lines[-1] == f"{whole} is whole: {len(lines) - 1} checks passed"
    flip(whole / TEXT, 1000)
    result = plain_python("-m", "pipeline.export.verify", whole)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"failed: {whole / TEXT} is not the file that was exported")
    result = plain_python("-m", "pipeline.export.verify", whole / "nowhere")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {whole / 'nowhere'} is not a folder")


def test_it_says_that_a_signature_was_not_checked(whole: Path) -> None:
    (whole / "model.sig").write_text("{}")
    result = plain_python("-m", "pipeline.export.verify", whole)
    assert result.returncode == 0
    assert "model.sig was not checked" in result.stderr


def test_it_imports_only_the_standard_library() -> None:
    code = "import pipeline.export.verify, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    found = set(plain_python("-c", code).stdout.split())
    assert "pipeline" in found
    assert found - sys.stdlib_module_names == {"pipeline", "__main__"}
    assert plain_python("-c", "import numpy").returncode != 0, "the isolation itself must work"


@pytest.mark.parametrize("source", SOURCES)
def test_its_sources_are_python_3_9(source: str) -> None:
    text = (ROOT / source).read_text(encoding="utf-8")
    ast.parse(text, feature_version=(3, 9))
    # 3.10 and later: annotations that are evaluated, and what the standard library did not have.
    if "from __future__ import annotations" not in text:
        annotations = [
            node.annotation for node in ast.walk(ast.parse(text)) if isinstance(node, ast.arg | ast.AnnAssign)
        ]
        annotations += [node.returns for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
        unions = [node for found in annotations if found for node in ast.walk(found) if isinstance(node, ast.BitOr)]
        assert unions == []


def test_make_verify_needs_no_environment(whole: Path, tmp_path: Path) -> None:
    def make(*variables: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "-s", "-f", str(ROOT / "Makefile"), "verify", *variables]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=empty)

    # Nothing but the three sources: no .venv, no bootstrap.
    empty = tmp_path / "app"
    for source in (*SOURCES, "pipeline/__init__.py"):
        (empty / source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / source, empty / source)
    result = make(f"BUNDLE={whole}", f"PYTHON={sys.executable} -S")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1].startswith(f"{whole} is whole")
    result = make()
    assert result.returncode == 2
    assert result.stderr.splitlines()[0] == "error: say which bundle, as in BUNDLE=runs/tiny/bundle"


def test_the_command_line_says_the_same(whole: Path) -> None:
    command = [Path(sys.executable).parent / "pipeline", "verify", str(whole)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, plain_python("-m", "pipeline.export.verify", whole).stdout)
    (whole / "extra").write_text("")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == f"failed: {whole / 'extra'} is no part of the bundle (manifest.json does not list it):" + (
        " remove it\n"
    )


def test_an_unreadable_file_is_named(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(verify, "sha256_file", refuse)  # file modes do not stop root
    with pytest.raises(UserError, match=rf"bundle/{TEXT} cannot be read: Permission denied"):
        verify_bundle(whole)


def test_the_manifest_alone_is_not_proof(whole: Path) -> None:
    """What a signature is for: without one, whoever changes a file can change the manifest with it."""
    flip(whole / TEXT, -1)
    manifest = read_manifest(whole)
    manifest["outputs"][TEXT] = sha256_file(whole / TEXT)
    (whole / "manifest.json").write_text(json.dumps(manifest))
    verify_bundle(whole)
