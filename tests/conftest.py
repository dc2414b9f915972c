"""What every test obeys (a test that is skipped says why), and the models that many of them share.

A conversion takes 3 to 7 seconds, so the models are made once a session and never changed. What makes them is imported
when a test asks for one: most tests need neither torch nor llama.cpp.
"""

import os
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from models import Pair

# Read when OpenMP is loaded. Waiting threads spin by default, which is faster on idle cores and many times slower where
# something else wants them; the tests must not depend on that.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

NO_REASON = ("", "Skipped", "unconditional skip")  # as pytest words it, after its prefix


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip without a reason into a failure."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and _reason(report.longrepr) in NO_REASON:
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped without a reason: give one"
    return report


def _reason(longrepr: Any) -> str:
    return str(longrepr[2]).removeprefix("Skipped: ").strip() if isinstance(longrepr, tuple) else ""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that is ``embedded:tiny`` but for louder language layers (:func:`models.write_tiny`)."""
    from models import write_tiny

    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def exact_pair(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> "Pair":
    """The GGUF pair of ``tiny`` in F32."""
    from models import export_pair

    return export_pair(tiny, tmp_path_factory.mktemp("exact"), "F32", "F32")


@pytest.fixture(scope="session")
def bundle(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of ``tiny`` under the default contract, both halves in Q8_0."""
    from models import bundle_recipe

    from pipeline.export.bundle import write_bundle

    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    write_bundle(tiny, folder, bundle_recipe(), {"merged": "0" * 64}, threads=2)
    return folder


@pytest.fixture(scope="session")
def phone_pair(bundle: Path) -> "Pair":
    """The GGUF pair of ``bundle``."""
    from models import Pair, bundle_recipe

    from pipeline.export.bundle import mmproj_name, text_name

    recipe = bundle_recipe()
    return Pair(bundle / text_name(recipe), bundle / mmproj_name(recipe))
