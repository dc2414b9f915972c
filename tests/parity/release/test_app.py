"""An app passes with just what was judged in it; every other app is stopped, and the check says why."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
from building import PACKAGE, Builder, missing
from bundles import MMPROJ, TEXT
from click.testing import Result
from released import write_run
from sides import pair
from typer.testing import CliRunner
from zips import EVIL, MODEL

import parity.release.app
from parity.cli import app
from parity.release.app import check_app
from parity.release.archive import open_archive
from parity.release.checks import AppCheck, Demands, Judged
from parity.release.manifest import read_manifests
from parity.release.signature import Signature
from pipeline.contract import Contract
from pipeline.core.errors import UserError

VISION = MODEL + b"the vision half"
CONTRACT = Contract()
JUDGED = Judged(
    {"model": hashlib.sha256(MODEL).hexdigest(), "mmproj": hashlib.sha256(VISION).hexdigest()}, CONTRACT.digest
)
FILES = {
    "assets/model.gguf": MODEL,
    "assets/mmproj.gguf": VISION,
    "assets/contract.json": CONTRACT.model_dump_json().encode(),
}


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    if why := missing():
        pytest.skip(why)
    return Builder(tmp_path_factory.mktemp("apk"))


@pytest.fixture(scope="module")
def good(builder: Builder) -> Path:
    return builder.apk("good", FILES | {"lib/arm64-v8a/libllama.so": builder.library("libllama.so")})


def checked(*paths: Path, demands: Demands | None = None) -> dict[str, AppCheck]:
    return {check.name: check for check in check_app(paths, JUDGED, demands or Demands())}


def red(*paths: Path, demands: Demands | None = None) -> dict[str, str]:
    return {name: one.detail for name, one in checked(*paths, demands=demands).items() if one.status == "red"}


def test_the_right_app_passes_every_check(good: Path, builder: Builder, tmp_path: Path) -> None:
    listed = tmp_path / "libraries.txt"
    built = hashlib.sha256(builder.library("libllama.so")).hexdigest()
    listed.write_text(f"# what was judged\n{built}  libllama.so\n")
    demands = Demands(PACKAGE, builder.certificate(), listed)
    found = checked(good, demands=demands)
    assert {check.status for check in found.values()} == {"green"}
    assert list(found) == ["archive", "language half", "vision half", "other models", "stored", "contract",
                           "nothing hidden", "manifest", "signature", "libraries"]  # fmt: skip
    assert (
        found["language half"].detail == f"{good}: assets/model.gguf, SHA-256 {JUDGED.halves['model'][:12]}, as judged"
    )
    assert found["manifest"].detail == f"{PACKAGE}, version 7, a release build"


WRONG: dict[str, tuple[dict[str, bytes], str, str]] = {
    # what is wrong: (files in place of the right ones, the check, what it says)
    "another language half": ({"assets/model.gguf": EVIL}, "language half", "is not in the app"),
    "another vision half": ({"assets/mmproj.gguf": EVIL}, "vision half", "is not in the app"),
    "no model": ({"assets/model.gguf": b""}, "language half", "is not in the app"),
    "the halves twice": ({"res/raw/copy.gguf": MODEL}, "language half", "is there 2 times"),
    "a second model": ({"assets/old.gguf": EVIL}, "other models", "1 GGUF that nobody judged"),
    "a second model called a library": ({"lib/arm64-v8a/libx.so": EVIL}, "other models", "libx.so"),
    "a second model behind a picture": ({"res/raw/cat.jpg": b"\xff\xd8" + EVIL}, "other models", "inside"),
    "another contract": (
        {"assets/contract.json": Contract(max_new_tokens=5).model_dump_json().encode()}, "contract", "is contract",
    ),
    "two contracts": (
        {"assets/old.json": Contract(max_new_tokens=5).model_dump_json().encode()}, "contract", "old.json is contract",
    ),
    "a damaged contract": (
        {"assets/contract.json": b'{"labels": 1, "prompt_template": "", "media_marker": ""}'}, "contract",
        "no contract that can be kept",
    ),
    "no contract": ({"assets/contract.json": b"{}"}, "contract", "the app has no contract"),
    "something closed": ({"assets/x.zst": b"\x28\xb5\x2f\xfd" + bytes(2 << 20)}, "nothing hidden", "zstd"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_an_app_with_other_files_is_stopped(builder: Builder, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files, name, words = WRONG[case]
    # A second of Java each, and the signature has tests of its own.
    signed = Signature("apksigner", True, frozenset({"0" * 64}), "")
    monkeypatch.setattr(parity.release.app, "read_signature", lambda path, bundled: signed)
    found = red(builder.apk("wrong", FILES | files, key=None))
    assert words in found.pop(name)
    if case not in ("another language half", "another vision half"):
        assert not found, "nothing else is wrong"
    else:
        assert list(found) == ["other models"]


def test_compressed_models_cannot_be_mapped(builder: Builder) -> None:
    found = red(builder.apk("deflated", FILES, deflated=True))
    assert list(found) == ["stored"]
    assert "assets/model.gguf is deflated" in found["stored"]


def test_an_apk_with_a_bundles_configuration_is_an_apk(builder: Builder) -> None:
    config = builder.aab("configured", FILES, key=None)
    held = zipfile.ZipFile(config).read("BundleConfig.pb")
    found = red(builder.apk("both", FILES | {"BundleConfig.pb": held}, deflated=True))
    assert list(found) == ["stored"]


def test_the_manifest_is_that_of_one_release_build(builder: Builder, good: Path) -> None:
    assert "is debuggable" in red(builder.apk("d", FILES, application='android:debuggable="true"'))["manifest"]
    assert "for tests only" in red(builder.apk("t", FILES, application='android:testOnly="true"'))["manifest"]
    assert red(good, demands=Demands(package="org.example.other"))["manifest"].endswith("not org.example.other")
    (manifest,) = read_manifests(open_archive(good))
    assert (manifest.package, manifest.version_code, manifest.debuggable) == (PACKAGE, "7", False)


@pytest.mark.slow
def test_splits_are_judged_together(builder: Builder) -> None:
    base = builder.apk("base", {"assets/contract.json": FILES["assets/contract.json"]})
    split = builder.apk("split", {key: FILES[key] for key in FILES if key.endswith("gguf")}, root='split="models"')
    assert not red(base, split)
    assert list(red(base)) == ["language half", "vision half"]
    other = builder.apk("other", {"assets/x": b""}, package="org.example.other", root='split="x"')
    assert "several apps" in red(base, split, other)["manifest"]
    newer = builder.apk("newer", {"assets/x": b""}, version=8, root='split="x"')
    assert "several versions: 7, 8" in red(base, split, newer)["manifest"]
    assert "two files are the base" in red(base, split, builder.apk("again", {"assets/x": b""}))["manifest"]
    stranger = builder.apk("stranger", {"assets/x": b""}, root='split="x"', key="stranger")
    assert red(base, split, stranger)["signature"] == "the files are signed by different certificates"


def test_the_signature_is_checked_by_apksigner(builder: Builder, good: Path, tmp_path: Path) -> None:
    assert "is not signed by anybody" in red(builder.apk("unsigned", FILES, key=None))["signature"]
    own = builder.certificate()
    assert not red(good, demands=Demands(certificate=own))
    other = Demands(certificate=builder.certificate("stranger"))
    assert (
        f"not {builder.certificate('stranger').replace(':', '').lower()[:12]}" in red(good, demands=other)["signature"]
    )
    changed = tmp_path / "changed.apk"
    data = bytearray(good.read_bytes())
    # A name in the manifest's time field: the zip's own checks do not cover it, the signature does.
    at = data.index(b"PK\x01\x02")
    data[at + 12] ^= 1
    changed.write_bytes(data)
    assert list(red(changed)) == ["signature"]


@pytest.mark.slow
def test_a_bundle_for_a_store_is_read_as_well(builder: Builder, tmp_path: Path) -> None:
    right = builder.aab("right", FILES)
    assert not red(right, demands=Demands(PACKAGE, builder.certificate()))
    assert checked(right)["language half"].detail.startswith(f"{right}: base/assets/model.gguf")
    assert list(red(builder.aab("packed", FILES, globs=("**.tflite",)))) == ["stored"]
    assert list(red(builder.aab("old", FILES | {"res/raw/x.gguf": EVIL}))) == ["other models"]
    debug = builder.aab("debug", FILES, application='android:debuggable="true"')
    assert red(debug)["manifest"] == f"{debug}: base/manifest/AndroidManifest.xml is debuggable"
    assert list(red(builder.aab("unsigned", FILES, key=None))) == ["signature"]
    assert list(red(right, demands=Demands(certificate=builder.certificate("stranger")))) == ["signature"]
    added = Path(shutil.copy(right, tmp_path / "added.aab"))
    with zipfile.ZipFile(added, "a") as archive:
        archive.writestr("base/assets/added.txt", "nobody signed this")
    assert list(red(added)) == ["signature"]


def test_without_apksigner_a_certificate_cannot_be_demanded(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert checked(good)["signature"].status == "not checked"
    assert "apksigner is not installed" in red(good, demands=Demands(certificate="0" * 64))["signature"]


def test_native_libraries_are_known_by_hash_or_build_id(builder: Builder, good: Path, tmp_path: Path) -> None:
    listed = tmp_path / "libraries.txt"
    (library,) = [one for one in zipfile.ZipFile(good).namelist() if one.endswith(".so")]
    assert library == "lib/arm64-v8a/libllama.so"
    assert checked(good)["libraries"].status == "not checked"
    build_id = read_build_id(builder.folder / "libllama.so")
    for line, words in (
        (f"{build_id} libllama.so", ""),
        (f"{'0' * 64} libllama.so", f"is another build (build id {build_id[:12]})"),
        (f"{build_id} libllama.so\n{'0' * 64} libggml.so", "libggml.so is not in the app"),
    ):
        listed.write_text(line + "\n")
        found = red(good, demands=Demands(libraries=listed))
        assert words in found["libraries"] if words else not found
    for text, words in (("libllama.so", "line 1 is no SHA-256"), ("\n", "names none")):
        listed.write_text(text)
        with pytest.raises(UserError, match=words):
            check_app([good], JUDGED, Demands(libraries=listed))


def read_build_id(path: Path) -> str:
    import subprocess

    said = subprocess.run(["readelf", "-n", path], capture_output=True, text=True, check=True).stdout
    return next(line.split("Build ID: ")[1].strip() for line in said.splitlines() if "Build ID: " in line)


def test_a_certificate_that_is_none_is_refused(good: Path) -> None:
    with pytest.raises(UserError, match="is no SHA-256"):
        check_app([good], JUDGED, Demands(certificate="ab:cd"))


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", pair())


def gate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["gate", *map(str, arguments)], catch_exceptions=False)


def bundled(run: Path) -> dict[str, bytes]:
    names = (TEXT, MMPROJ, "contract.json")
    return {f"assets/{name}": (run / "bundle" / name).read_bytes() for name in names}


def test_the_gate_lets_the_right_app_through_and_no_other(run: Path, builder: Builder, tmp_path: Path) -> None:
    out, junit = tmp_path / "gate.json", tmp_path / "gate.xml"
    right = builder.apk("right", bundled(run))
    done = gate(run, "--app", right, "--out", out, "--junit", junit)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == "RELEASED: the app holds what was judged (not checked: libraries)"
    assert json.loads(out.read_text())["released"] is True
    assert ElementTree.parse(junit).getroot().attrib["failures"] == "0"
    wrong = builder.apk("wrong", bundled(run) | {"res/raw/x.gguf": EVIL})
    done = gate(run, "--app", wrong, "--out", out, "--junit", junit)
    assert done.exit_code == 1
    assert done.output.splitlines()[-1] == "NOT RELEASED: other models"
    assert "may be released" not in done.output
    told = json.loads(out.read_text())
    assert told["released"] is False
    assert [check["name"] for check in told["checks"] if check["status"] == "red"] == ["other models"]
    suite = ElementTree.parse(junit).getroot()
    assert (suite.attrib["failures"], suite.attrib["tests"]) == ("1", "11")
    assert "nobody judged" in suite.find("testcase/failure").attrib["message"]  # type: ignore[union-attr]


def test_an_archive_with_two_readings_is_bad_input(run: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "a.apk", tmp_path / "gate.json"
    path.write_bytes(b"PK\3\4")
    out.write_text('{"released": true}')
    done = CliRunner().invoke(app, ["gate", str(run), "--app", str(path), "--out", str(out)])
    assert not out.exists(), "it is of another app"
    assert isinstance(done.exception, UserError)
    assert "no end record" in str(done.exception)


@pytest.mark.parametrize("option", ["--package", "--certificate", "--libraries"])
def test_what_is_demanded_of_an_app_needs_one(run: Path, option: str) -> None:
    done = gate(run, option, "x")
    assert done.exit_code == 2
    assert "give the app" in done.output


def test_without_a_pass_no_app_is_looked_at(run: Path, builder: Builder) -> None:
    right = builder.apk("right", bundled(run))
    (run / "parity" / "ladder.jsonl").unlink()
    done = CliRunner().invoke(app, ["gate", str(run), "--app", str(right)])
    assert isinstance(done.exception, UserError)
    assert "is stale" in str(done.exception)
