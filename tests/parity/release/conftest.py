"""The oracle of these tests."""

import shutil
import subprocess
from pathlib import Path

import pytest
from android import COMMAND, HEADER, AndroidZip


@pytest.fixture(scope="session")
def android(tmp_path_factory: pytest.TempPathFactory) -> AndroidZip:
    if not HEADER.exists() or not shutil.which("g++"):
        pytest.skip("Android's zip loader is not installed (Debian: android-libziparchive-dev android-libbase-dev)")
    program: Path = tmp_path_factory.mktemp("android") / "android_zip"
    subprocess.run([*COMMAND, "-o", str(program), "-lziparchive", "-lz"], check=True, capture_output=True)
    return AndroidZip(program)
