"""A signature covers the whole bundle, and turns red for every other key, file and signature."""

import base64
import errno
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import MMPROJ, TEXT, flip, read_manifest, write_fake_bundle, write_manifest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption
from keys import write_pair, write_private

from pipeline.core import files
from pipeline.core.errors import CheckFailed, UserError
from pipeline.core.files import sha256_file
from pipeline.export.signing import sign_bundle, verify_signature
from pipeline.export.verify import verify_bundle

BIN = Path(sys.executable).parent


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("signing must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_pair(tmp_path, "key")


@pytest.fixture
def signed(tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    folder = write_fake_bundle(tmp_path / "bundle")
    sign_bundle(folder, keys[0])
    return folder


def refused(folder: Path, public_key: Path) -> str:
    """Why the signature is refused, in one line."""
    with pytest.raises(CheckFailed) as error:
        verify_signature(folder, public_key)
    message = str(error.value)
    assert "\n" not in message
    assert str(folder / "model.sig") in message
    return message


def model_signing(*arguments: str | Path) -> int:
    """Exit code of the standard's own command line."""
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False).returncode


def payload(folder: Path) -> dict[str, object]:
    """The statement that was signed."""
    envelope = json.loads((folder / "model.sig").read_text())["dsseEnvelope"]
    statement: dict[str, object] = json.loads(base64.b64decode(envelope["payload"]))
    return statement


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_a_signed_bundle_is_verified_wherever_it_lies(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    private, public = write_pair(tmp_path, "key", curve)
    folder = write_fake_bundle(tmp_path / "bundle")
    sign_bundle(folder, private)
    moved = folder.rename(tmp_path / "another name")
    (tmp_path / "link").symlink_to(moved)
    for place in (moved, tmp_path / "link"):
        verify_bundle(place)
        assert verify_signature(place, public) == f"model.sig: all files are signed by the owner of {public}"


def test_every_file_but_the_signature_is_signed(signed: Path) -> None:
    resources = payload(signed)["predicate"]["resources"]  # type: ignore[index]
    named = {resource["name"]: resource["digest"] for resource in resources}
    assert named == {path.name: sha256_file(path) for path in signed.iterdir() if path.name != "model.sig"}
    assert "manifest.json" in named


def test_signing_again_replaces_the_signature(signed: Path, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    private, public = write_pair(tmp_path, "other")
    sign_bundle(signed, private)
    verify_signature(signed, public)
    assert "made with another key" in refused(signed, keys[1])


def test_the_standards_own_tool_agrees(signed: Path, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    signature = signed / "model.sig"
    check = ("verify", "key", signed, "--signature", signature, "--public_key", keys[1])
    assert model_signing(*check) == 0
    signature.unlink()
    assert model_signing("sign", "key", signed, "--signature", signature, "--private_key", keys[0]) == 0
    verify_signature(signed, keys[1])
    flip(signed / TEXT, 100)
    assert model_signing(*check) != 0


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_another_key_is_refused(signed: Path, tmp_path: Path) -> None:
    assert "made with another key" in refused(signed, write_pair(tmp_path, "other")[1])


def test_another_key_is_refused_though_the_signature_names_it(
    signed: Path, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    """The key's hash beside the signature is not signed: only the arithmetic counts."""
    private, public = write_pair(tmp_path, "other")
    own = json.loads((signed / "model.sig").read_text())
    sign_bundle(signed, private)
    theirs = json.loads((signed / "model.sig").read_text())
    own["verificationMaterial"] = theirs["verificationMaterial"]
    (signed / "model.sig").write_text(json.dumps(own))
    assert "changed or damaged" in refused(signed, public)


@pytest.mark.parametrize("name", [TEXT, MMPROJ, "contract.json", "manifest.json"])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_a_changed_byte_is_refused(signed: Path, keys: tuple[Path, Path], name: str, place: float) -> None:
    size = (signed / name).stat().st_size
    flip(signed / name, min(int(size * place), size - 1))
    assert refused(signed, keys[1]).endswith(f"not as they were signed are {name}")


def test_a_bundle_whose_manifest_was_changed_along_is_refused(signed: Path, keys: tuple[Path, Path]) -> None:
    flip(signed / TEXT, -1)
    outputs = read_manifest(signed)["outputs"] | {TEXT: sha256_file(signed / TEXT)}
    write_manifest(signed, outputs=outputs)
    verify_bundle(signed)  # which is why bundles are signed
    assert refused(signed, keys[1]).endswith(f"not as they were signed are {TEXT}, manifest.json")


@pytest.mark.parametrize("name", ["notes.txt", ".gitignore"])
def test_a_file_too_many_is_refused(signed: Path, keys: tuple[Path, Path], name: str) -> None:
    (signed / name).write_text("*")
    assert refused(signed, keys[1]).endswith(f"not as they were signed are {name}")


def test_a_missing_file_is_refused(signed: Path, keys: tuple[Path, Path]) -> None:
    (signed / MMPROJ).unlink()
    assert refused(signed, keys[1]).endswith(f"not as they were signed are {MMPROJ}")


def test_a_signature_that_leaves_a_file_out_is_refused(signed: Path, keys: tuple[Path, Path]) -> None:
    """Even one made with the right key."""
    signature = signed / "model.sig"
    signature.unlink()
    options = ("--signature", signature, "--private_key", keys[0], "--ignore-paths", signed / "manifest.json")
    assert model_signing("sign", "key", signed, *options) == 0
    assert refused(signed, keys[1]).endswith("not as they were signed are manifest.json")


def test_a_changed_statement_is_refused(signed: Path, keys: tuple[Path, Path]) -> None:
    flip(signed / TEXT, -1)
    outputs = read_manifest(signed)["outputs"] | {TEXT: sha256_file(signed / TEXT)}
    old = sha256_file(signed / "manifest.json")
    write_manifest(signed, outputs=outputs)
    new = sha256_file(signed / "manifest.json")
    signature = json.loads((signed / "model.sig").read_text())
    envelope = signature["dsseEnvelope"]
    statement = base64.b64decode(envelope["payload"]).replace(old.encode(), new.encode())
    envelope["payload"] = base64.b64encode(statement).decode()
    (signed / "model.sig").write_text(json.dumps(signature))
    assert "changed or damaged" in refused(signed, keys[1])


def test_a_changed_signature_is_refused(signed: Path, keys: tuple[Path, Path]) -> None:
    signature = json.loads((signed / "model.sig").read_text())
    numbers = bytearray(base64.b64decode(signature["dsseEnvelope"]["signatures"][0]["sig"]))
    numbers[-1] ^= 1
    signature["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(numbers).decode()
    (signed / "model.sig").write_text(json.dumps(signature))
    assert "changed or damaged" in refused(signed, keys[1])


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "\0", '{"verificationMaterial": {"publicKey": {}}, "dsseEnvelope": {"signatures": []}}'],
)
def test_what_is_not_a_signature_is_refused(signed: Path, keys: tuple[Path, Path], text: str) -> None:
    (signed / "model.sig").write_text(text)
    assert "changed or damaged" in refused(signed, keys[1])


def test_no_signature_is_refused(signed: Path, keys: tuple[Path, Path]) -> None:
    (signed / "model.sig").unlink()
    assert "is missing: nobody has signed this bundle" in refused(signed, keys[1])


def test_a_damaged_bundle_is_not_signed(signed: Path, keys: tuple[Path, Path]) -> None:
    before = (signed / "model.sig").read_bytes()
    flip(signed / TEXT, 100)
    with pytest.raises(CheckFailed, match=f"{TEXT} is not the file that was exported"):
        sign_bundle(signed, keys[0])
    assert (signed / "model.sig").read_bytes() == before


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A bundle where nothing can be written, whoever tries."""
    place = tmp_path / "read-only"
    place.mkdir()
    write_fake_bundle(place / "bundle")
    mounts = (["--bind", place, place], ["-o", "remount,bind,ro", place])
    if any(subprocess.run(["mount", *words], capture_output=True, check=False).returncode for words in mounts):
        pytest.skip("this user may not mount a file system, and file modes do not stop root")
    yield place / "bundle"
    subprocess.run(["umount", place], check=True)


def test_a_read_only_bundle_is_not_signed_and_said_so(read_only: Path, keys: tuple[Path, Path]) -> None:
    result = run("sign", read_only, "--key", keys[0])
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: {read_only / 'model.sig'} cannot be written (Read-only file system): sign a copy of {read_only}"
        " elsewhere\n"
    )


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_signature_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    folder = write_fake_bundle(tmp_path / "bundle")
    monkeypatch.setattr(files, "_beside_name", refuse)
    with pytest.raises(UserError, match=rf"bundle/model\.sig cannot be written \({os.strerror(number)}\): sign a copy"):
        sign_bundle(folder, keys[0])


def test_signing_needs_no_place_for_temporary_files(
    tmp_path: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    folder = write_fake_bundle(tmp_path / "bundle")
    sign_bundle(folder, keys[0])
    verify_signature(folder, keys[1])
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [TEXT, MMPROJ, "contract.json", "manifest.json", "model.sig"]
    )


# ---- keys that are none ----------------------------------------------------------------------------------------------


def test_a_key_with_a_passphrase_is_refused(signed: Path, tmp_path: Path) -> None:
    locked = write_private(
        tmp_path / "locked.pem", ec.generate_private_key(ec.SECP256R1()), BestAvailableEncryption(b"secret")
    )
    with pytest.raises(UserError, match=r"key .*locked\.pem is protected by a passphrase"):
        sign_bundle(signed, locked)


def test_what_is_not_a_key_is_refused(signed: Path, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_bytes(b"\xff\x00 no key")
    others = [
        write_private(tmp_path / "rsa.pem", rsa.generate_private_key(65537, 2048)),
        write_private(tmp_path / "ed25519.pem", ed25519.Ed25519PrivateKey.generate()),
        write_pair(tmp_path, "bitcoin", ec.SECP256K1())[0],
    ]
    for path in (garbage, keys[1], *others):
        with pytest.raises(UserError, match=f"key {path} is not the private half of an elliptic-curve key"):
            sign_bundle(signed, path)
    for path in (garbage, keys[0], *others):
        with pytest.raises(UserError, match=f"key {path} is not the public half of an elliptic-curve key"):
            verify_signature(signed, path)
    for path, words in ((tmp_path / "nowhere.pem", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=f"key {path} cannot be read: {words}"):
            sign_bundle(signed, path)
        with pytest.raises(UserError, match=f"key {path} cannot be read: {words}"):
            verify_signature(signed, path)


def test_a_missing_package_is_said(signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing.verifying", None)
    with pytest.raises(UserError, match="signatures need the extra 'signing'"):
        verify_signature(signed, keys[1])


# ---- the command line ------------------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "pipeline", *map(str, arguments)], capture_output=True, text=True, check=False)


def test_sign_and_verify(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    folder = write_fake_bundle(tmp_path / "bundle")
    assert run("verify", folder).stderr == ""
    unsigned = run("verify", folder, "--public-key", keys[1])
    assert unsigned.returncode == 1
    assert unsigned.stderr.startswith(f"failed: {folder / 'model.sig'} is missing")
    signed = run("sign", folder, "--key", keys[0])
    assert (signed.returncode, signed.stderr) == (0, "")
    assert run("verify", folder).stderr == "model.sig was not checked: --public-key does that\n"
    verified = run("verify", folder, "--public-key", keys[1])
    assert verified.returncode == 0
    assert f"model.sig: all files are signed by the owner of {keys[1]}" in verified.stdout
    assert verified.stdout.splitlines()[-1].startswith(f"{folder} is whole")
    flip(folder / TEXT, 100)
    damaged = run("verify", folder, "--public-key", keys[1])
    assert (damaged.returncode, damaged.stdout) == (1, "")
    assert damaged.stderr.startswith(f"failed: {folder / TEXT} is not the file that was exported")


def test_a_wrong_key_is_one_sentence_and_exit_code_2(signed: Path, keys: tuple[Path, Path]) -> None:
    result = run("verify", signed, "--public-key", keys[0])
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: key {keys[0]} is not the public half")
    assert len(result.stderr.splitlines()) == 1
