"""The page docs/release-lies.md: each lie in a zip, and what the gate, zipfile, Android and apksigner say of it.

PYTHONPATH=tests:tests/parity/release .venv/bin/python -m lies
"""

import io
import subprocess
import tempfile
import zipfile
from pathlib import Path

from android import COMMAND, AndroidZip
from building import Builder
from zips import LIES

from parity.release.archive import open_archive
from pipeline.core.errors import UserError

PAGE = Path(__file__).resolve().parents[3] / "docs" / "release-lies.md"
HEAD = """# Zips that lie, and who notices

An APK is a zip, and a zip can be made so that two programs read two different things in it. The release gate refuses
every archive with more than one reading. Each row is one way to lie, in a small archive with a model in it, as
`tests/parity/release/zips.py` makes it. `tests/parity/release/lies.py` writes this page, and a test keeps it true.

- **gate**: what `parity gate` says of it.
- **zipfile**: whether Python's standard library reads every file without an error.
- **Android**: whether Android's own loader (AOSP's libziparchive) does.
- **apksigner**: whether it signs the archive, which it writes anew, and then verifies what it wrote.

| lie | gate | zipfile | Android | apksigner |
| --- | --- | --- | --- | --- |
"""


def said_by_gate(path: Path) -> str:
    try:
        archive = open_archive(path)
        for entry in archive.entries:
            for _ in archive.chunks(entry):
                pass
    except UserError as error:
        said = (
            str(error).removeprefix(f"{path} is no archive that every reader reads alike: ").removeprefix(f"{path}: ")
        )
        return said.removeprefix(f"{path} ").removesuffix("; build it again").replace("|", "\\|")
    return "reads it"


def read_by_python(data: bytes) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return "yes" if archive.testzip() is None else "no"
    except Exception:
        return "no"


def signed(builder: Builder, path: Path) -> str:
    out = builder.folder / "signed.apk"
    words = ["apksigner", "sign", "--ks", builder.key(), "--ks-pass", "pass:123456", "--min-sdk-version", "26",
             "--v4-signing-enabled", "false", "--out", out, path]  # fmt: skip
    if subprocess.run(words, capture_output=True).returncode:
        return "no"
    verified = subprocess.run(["apksigner", "verify", "--min-sdk-version", "26", out], capture_output=True).returncode
    return "no" if verified else "yes"


def page() -> str:
    """The whole page."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "android_zip"
        subprocess.run([*COMMAND, "-o", program, "-lziparchive", "-lz"], check=True, capture_output=True)
        android, builder = AndroidZip(program), Builder(Path(folder))
        lines = []
        for name, (make, _) in LIES.items():
            path = Path(folder) / "a.apk"
            path.write_bytes(make())
            (theirs,) = android.read([path])
            row = (name, said_by_gate(path), read_by_python(path.read_bytes()),
                   "no" if theirs is None else "yes", signed(builder, path))  # fmt: skip
            lines.append("| " + " | ".join(row) + " |\n")
    return HEAD + "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
