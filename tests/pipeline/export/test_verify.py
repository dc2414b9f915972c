"""A bundle is checked with nothing but Python, and whatever is wrong with it is found and named."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bundles import MMPROJ, TEXT, flip, read_manifest, write_fake_bundle, write_gguf, write_manifest

from pipeline.contract import Contract, Gate, ImageContract
from pipeline.core.errors import CheckFailed, UserError
from pipeline.core.files import sha256_file, write_json
from pipeline.export import bundle as export_bundle
from pipeline.export import convert, verify
from pipeline.export.verify import gguf_string, verify_bundle

ROOT = Path(__file__).parents[3]
OTHER = Contract(labels=("day", "night"))
SOURCES = ("pipeline/export/verify.py", "pipeline/core/errors.py", "pipeline/core/files.py")


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
    assert verify.KEY_CONTRACT == convert.KEY_CONTRACT
    assert (verify.MANIFEST, verify.CONTRACT) == (export_bundle.MANIFEST, export_bundle.CONTRACT)


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
@pytest.mark.parametrize("fault", ["missing", "renamed", "folder", "dangling link"])
def test_a_file_that_is_not_there_is_found(whole: Path, name: str, fault: str) -> None:
    moved = (whole / name).rename(whole.parent / name)
    if fault == "renamed":
        moved.rename(whole / f"old-{name}")
    elif fault == "folder":
        (whole / name).mkdir()
    elif fault == "dangling link":
        (whole / name).symlink_to("nowhere")
    with pytest.raises(CheckFailed, match=f"bundle/{name} is missing, but manifest.json lists it"):
        verify_bundle(whole)


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "model.sig.bak"])
def test_a_file_too_many_is_found(whole: Path, name: str) -> None:
    (whole / name).write_text("")
    with pytest.raises(CheckFailed, match=f"bundle/{name} is no part of the bundle"):
        verify_bundle(whole)


def test_a_folder_too_many_is_found(whole: Path) -> None:
    (whole / "more").mkdir()
    with pytest.raises(CheckFailed, match="bundle/more is no part of the bundle"):
        verify_bundle(whole)


def test_a_file_outside_the_folder_is_no_part_of_it(whole: Path) -> None:
    (whole.parent / "x.gguf").write_text("x")
    outputs = read_manifest(whole)["outputs"] | {"../x.gguf": sha256_file(whole.parent / "x.gguf")}
    write_manifest(whole, outputs=outputs)
    with pytest.raises(CheckFailed, match=r"bundle/\.\./x\.gguf is missing"):
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
    return head + array + (array + (1).to_bytes(8, "little")) * 100_000


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: b"", "it ends within its metadata"),
        (_truncate, "it ends within its metadata"),
        (_endless_string, "it ends within its metadata"),
        (_unknown_type, "unknown type 13"),
        (_nested_without_end, "recursion"),
        (lambda data: b"GGML" + data[4:], "it does not begin with GGUF"),
        (lambda data: data[:4] + data[7:3:-1] + data[8:], "its version is 50331648"),  # big-endian
    ],
    ids=["empty", "truncated", "endless", "type", "nested", "magic", "version"],
)
def test_a_damaged_gguf_is_found_though_the_hashes_are_right(
    whole: Path, damage: Callable[[bytes], bytes], words: str
) -> None:
    (whole / TEXT).write_bytes(damage((whole / TEXT).read_bytes()))
    write_manifest(whole)
    with pytest.raises(CheckFailed, match=f"bundle/{TEXT} cannot be read as GGUF: .*{words}"):
        verify_bundle(whole)


def test_a_key_is_found_behind_nested_arrays(tmp_path: Path) -> None:
    def text(value: bytes) -> bytes:
        return len(value).to_bytes(8, "little") + value

    four, eight = (lambda n: n.to_bytes(4, "little")), (lambda n: n.to_bytes(8, "little"))
    numbers = four(4) + eight(2) + four(1) + four(2)  # an array's element type, length and elements
    words = four(8) + eight(1) + text(b"wanted")
    nested = text(b"nested") + four(9) + four(9) + eight(2) + numbers + words
    wanted = text(b"wanted") + four(8) + text("ä".encode())
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + four(3) + eight(0) + eight(2) + nested + wanted)
    assert gguf_string(path, "wanted") == "ä"
    assert gguf_string(path, "absent") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds no JSON object"),
        ('{"schema_version": 1, "outputs": NaN}', "is not valid JSON"),
        ('{"schema_version": 1}', "'outputs' is not"),
        ('{"schema_version": 1, "outputs": {"a": 1}}', "'outputs' is not"),
        ('{"schema_version": 1, "outputs": {}}', "'contract_sha256' is not"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_a_damaged_manifest_is_found(whole: Path, text: str, words: str) -> None:
    (whole / "manifest.json").write_text(text)
    with pytest.raises(CheckFailed, match=rf"bundle/manifest\.json is damaged.*{words}"):
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
