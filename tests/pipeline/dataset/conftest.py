"""A small contract, so that a test takes milliseconds."""

import pytest

from pipeline.contract import Contract, ImageContract


@pytest.fixture
def contract() -> Contract:
    """Three labels, 32 pixels."""
    return Contract(labels=("water", "land", "fire"), image=ImageContract(size=32))
