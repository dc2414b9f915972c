"""Android's own zip loader (AOSP's libziparchive, as Debian packages it), as an oracle."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HEADER = Path("/usr/include/android/ziparchive/zip_archive.h")
LIBRARIES = Path("/usr/lib/x86_64-linux-gnu/android")
SOURCE = Path(__file__).parent / "android_zip.cc"
COMMAND = ["g++", "-std=c++20", "-I/usr/include/android", str(SOURCE), f"-L{LIBRARIES}", f"-Wl,-rpath,{LIBRARIES}"]


@dataclass(frozen=True)
class AndroidZip:
    """The loader, compiled."""

    program: Path

    def read(self, paths: Sequence[Path]) -> list[dict[str, tuple[int, int]] | None]:
        """Of each file: name -> (size, CRC-32), or None where the loader refuses it."""
        found: list[dict[str, tuple[int, int]] | None] = []
        for start in range(0, len(paths), 500):
            words = [str(path) for path in paths[start : start + 500]]
            done = subprocess.run([self.program, *words], capture_output=True, text=True, check=True)
            found += map(_answer, done.stdout.split("\n.\n")[:-1])
        return found


def _answer(text: str) -> dict[str, tuple[int, int]] | None:
    head, *lines = text.splitlines()
    if head.startswith("NO"):
        return None
    found = {}
    for line in lines:
        name, size, crc = line.split(" ")
        found[bytes.fromhex(name).decode(errors="surrogateescape")] = (int(size), int(crc))
    return found
