"""Manifests, bundles and GGUFs: whole, or refused in a sentence; and no GGUF takes the program along."""

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bundles import MMPROJ, TEXT, write_fake_bundle
from headers import Field, gguf_cases
from hypothesis import strategies as st
from made import CONTRACT, remake_manifest
from malformed import DEPTHS, byte_cases, json_cases, place_cases, some
from test_malformed_texts import edited, explore
from trial import FalsePass, Trials, tried

from pipeline.core.errors import UserError
from pipeline.export import verify

if TYPE_CHECKING:
    from models import Pair


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_fake_bundle(tmp_path / "bundle")


def verified(folder: Path, before: bytes | None, path: Path) -> None:
    """Check a bundle. A file that the manifest lists may not have changed."""
    verify.verify_bundle(folder)
    if before is not None and (path.is_symlink() or not path.is_file() or path.read_bytes() != before):
        raise FalsePass(f"{path.name} was changed, and the bundle is called whole")


@DEPTHS
@pytest.mark.parametrize("name", ["manifest.json", "contract.json", TEXT, MMPROJ])
def test_a_bundle_is_whole_or_refused(name: str, depth: str, whole: Path, trials: Trials) -> None:
    target = whole / name
    data = target.read_bytes()
    room = trials.room(partial(verified, whole, None if name == "manifest.json" else data))
    room.must_read(target)
    cases = byte_cases(data) if name.endswith("gguf") else json_cases(data) + byte_cases(data)
    trials.run("manifest" if name == "manifest.json" else "bundle", room, target, some(cases, depth) + place_cases())


@DEPTHS
def test_hypothesis_finds_no_manifest_that_is_a_traceback(depth: str, whole: Path, trials: Trials) -> None:
    target = whole / "manifest.json"
    strategy = edited(json.loads(target.read_text()))
    room = trials.room(partial(verified, whole, None))
    explore(trials, "manifest", room, target, strategy, 40 if depth == "quick" else 1500)


@pytest.mark.parametrize("name", ["model.sig", "more.txt", ".hidden", "sub", "b\xff.gguf", "a\nb", "x" * 255])
def test_what_lies_beside_the_files_of_a_bundle_is_named(name: str, whole: Path, trials: Trials) -> None:
    for case in place_cases():
        beside = Path(os.fsdecode(os.fsencode(whole) + b"/" + name.encode("latin-1")))
        if case.name == "nothing there" or (case.name == "a socket" and len(name) > 100):
            continue
        case.put(beside)

        def check() -> None:
            verify.verify_bundle(whole)
            raise FalsePass(f"{name!r} is there, and the bundle is called whole")

        trials.note("bundle", f"{case.name} called {name!r}", tried(check))
        if beside.is_dir() and not beside.is_symlink():
            shutil.rmtree(beside)
        else:
            beside.unlink()


@DEPTHS
def test_a_signature_is_checked_or_refused(depth: str, whole: Path, tmp_path: Path, trials: Trials) -> None:
    """Whatever `model.sig` holds, it does not vouch for a bundle that the key's owner has not signed."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from pipeline.export.signing import sign_bundle, verify_signature

    key = ec.generate_private_key(ec.SECP256R1())
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key.pem").write_bytes(key.private_bytes(*plain))
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub").write_bytes(public)
    sign_bundle(whole, tmp_path / "key.pem")
    target = whole / "model.sig"
    data = target.read_bytes()

    def check(path: Path) -> None:
        verify_signature(whole, tmp_path / "key.pub")
        if path.is_symlink() or not path.is_file() or json.loads(path.read_bytes()) != json.loads(data):
            statement = _signed(path)
            if statement != _signed_of(data):
                raise FalsePass("another statement is taken for the signed one")

    room = trials.room(check)
    room.must_read(target)
    trials.run(
        "bundle",
        room,
        target,
        some(json_cases(data) + byte_cases(data, 60, 60), "quick", 10 if depth == "quick" else 300) + place_cases(),
    )
    for what in ("key.pub", "key.pem"):
        pem = (tmp_path / what).read_bytes()

        def use(path: Path, what: str = what) -> None:
            if what == "key.pub":
                verify_signature(whole, path)
            else:
                sign_bundle(whole, path)

        room = trials.room(use)
        # A key may well come through a pipe, and is waited for as long as its owner likes.
        cases = byte_cases(pem, 30, 20) + [case for case in place_cases() if case.name != "a FIFO"]
        trials.run("bundle", room, tmp_path / f"tried-{what}", some(cases, depth, 10))


def _signed(path: Path) -> Any:
    return _signed_of(path.read_bytes())


def _signed_of(data: bytes) -> Any:
    return json.loads(data)["dsseEnvelope"]["payload"]


# --- GGUF ------------------------------------------------------------------------------------------------------------


def read_header(path: Path) -> None:
    """What this project itself reads of a GGUF."""
    verify.read_gguf(path)


@DEPTHS
@pytest.mark.parametrize("name", [TEXT, MMPROJ])
def test_a_gguf_is_read_or_refused(name: str, depth: str, whole: Path, trials: Trials) -> None:
    target = whole / name
    data = target.read_bytes()
    room = trials.room(read_header)
    room.must_read(target)
    trials.run("GGUF", room, target, some(gguf_cases(data) + byte_cases(data), depth))


@DEPTHS
def test_hypothesis_finds_no_gguf_that_is_a_traceback(depth: str, whole: Path, trials: Trials) -> None:
    data = (whole / TEXT).read_bytes()

    @st.composite
    def spliced(draw: st.DrawFn) -> bytes:
        changed = data
        for _ in range(draw(st.integers(1, 3))):
            at = draw(st.integers(0, 1500))
            changed = changed[:at] + draw(st.binary(max_size=9)) + changed[at + draw(st.integers(0, 9)) :]
        return changed

    explore(trials, "GGUF", trials.room(read_header), whole / TEXT, spliced(), 40 if depth == "quick" else 2000)


def checked(half: str, model: Path, path: Path) -> None:
    """What the export checks of a half."""
    from pipeline.export import check

    try:
        if half == "text":
            check.check_text(path, model, "Tiny", CONTRACT, "tiny", "Q8_0")
        else:
            check.check_mmproj(path, model, "Tiny", CONTRACT, "tiny", "Q8_0")
    except MemoryError:
        # gguf-py keeps a kilobyte for each element of an array; on the command line this is a sentence.
        raise UserError("not enough memory") from None


@DEPTHS
@pytest.mark.parametrize("half", ["text", "mmproj"])
def test_the_export_s_check_of_a_gguf_ends_in_a_sentence(
    half: str, depth: str, whole: Path, tiny: Path, trials: Trials
) -> None:
    target = whole / (TEXT if half == "text" else MMPROJ)
    data = target.read_bytes()
    room = trials.room(partial(checked, half, tiny), seconds=20)
    cases = some(gguf_cases(data) + byte_cases(data, 60, 60), "quick", 15 if depth == "quick" else 700)
    trials.run("GGUF", room, target, cases)


# --- llama.cpp -------------------------------------------------------------------------------------------------------


def opened(model: Path, pair: tuple[Path, Path], _: Path) -> None:
    """Open a pair that nobody knows, as the candidate's side does."""
    from parity.engines.pair import open_llamacpp

    os.environ["GGML_NO_BACKTRACE"] = "1"  # no debugger is asked where it died
    with open_llamacpp(model, *pair, CONTRACT, "0" * 64):
        pass


def _numbers(field: Field) -> bool:
    """What llama.cpp computes with: keys of the architecture, and the tensors."""
    own = field.name.startswith(("llama.", "clip.", "general.file_type", "general.alignment"))
    tensor = ".weight" in field.name and not field.name.startswith("tensor ")
    return (own and "type" not in field.name and "length" not in field.name.partition("'s ")[2]) or tensor


@DEPTHS
@pytest.mark.parametrize("half", ["text", "mmproj"])
def test_llama_cpp_does_not_take_the_program_along(
    half: str, depth: str, tiny: Path, phone_pair: "Pair", tmp_path: Path, trials: Trials
) -> None:
    """An altered GGUF is opened, or refused in a sentence: an abort inside llama.cpp ends no process but its own."""
    paths = {"text": tmp_path / "text.gguf", "mmproj": tmp_path / "mmproj-text.gguf"}
    shutil.copyfile(phone_pair.text, paths["text"])
    shutil.copyfile(phone_pair.mmproj, paths["mmproj"])
    data = paths[half].read_bytes()
    room = trials.room(
        partial(opened, tiny, (paths["text"], paths["mmproj"])), seconds=200, memory=16 << 30, fresh=True
    )
    room.must_read(paths[half])
    cases = gguf_cases(data, _numbers) + byte_cases(data, 6, 0)
    known = [case for case in cases if case.name.endswith(("block_count is 7", "epsilon is 0", "_size is 3"))]
    more = some(cases, "quick", 1 if depth == "quick" else 60)
    there = [] if depth == "quick" else place_cases()
    trials.run("GGUF", room, paths[half], (known[:1] if depth == "quick" else known) + more + there)


def test_a_remade_manifest_does_not_make_a_bundle_of_damaged_ggufs(whole: Path, trials: Trials) -> None:
    """With the hashes remade, only what the GGUFs are tells that one is cut or is not the half that it is called."""
    text, mmproj = (whole / TEXT).read_bytes(), (whole / MMPROJ).read_bytes()
    damage = {
        "the language half cut": {TEXT: text[:-100]},
        "the vision half cut": {MMPROJ: mmproj[:-100]},
        "both halves cut in their headers": {TEXT: text[:100], MMPROJ: mmproj[:100]},
        "the halves swapped": {TEXT: mmproj, MMPROJ: text},
        "the language half twice": {MMPROJ: text},
        "the vision half twice": {TEXT: mmproj},
        "an empty half": {TEXT: b""},
        "a text": {TEXT: b"GGUF" + b"x" * 1000},
    }
    for name, files in damage.items():
        for path, data in (({TEXT: text, MMPROJ: mmproj}) | files).items():
            (whole / path).write_bytes(data)
        remake_manifest(whole)

        def check(name: str = name) -> None:
            verify.verify_bundle(whole)
            raise FalsePass(f"{name}, and the bundle is called whole")

        trials.note("bundle", name, tried(check))


def test_verify_raises_what_it_says(tmp_path: Path) -> None:
    """The readers above count as refusals what these are."""
    with pytest.raises(UserError):
        verify.verify_bundle(tmp_path / "nowhere")
