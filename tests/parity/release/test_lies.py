"""The page on zips that lie is true."""

import shutil

import pytest
from android import HEADER
from building import missing
from lies import PAGE, page


@pytest.mark.slow
def test_the_page_is_true() -> None:
    if why := missing():
        pytest.skip(why)
    if not HEADER.exists() or not shutil.which("g++"):
        pytest.skip("Android's zip loader is not installed (Debian: android-libziparchive-dev android-libbase-dev)")
    assert page() == PAGE.read_text(encoding="utf-8"), "write it again: see tests/parity/release/lies.py"
