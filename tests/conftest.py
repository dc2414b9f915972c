"""What every test obeys (a test that is skipped says why), how the tests are spread over processes, and the models that
many of them share.

A conversion takes 3 to 7 seconds, so the models are made once a session, by the process that asks first, and never
changed. What makes them is imported when a test asks for one: most tests need neither torch nor llama.cpp.
"""

import os
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from session import BEGIN_WITH, Once, make_once

if TYPE_CHECKING:
    from models import Pair

# Read when OpenMP is loaded. Waiting threads spin by default, which is faster on idle cores and many times slower where
# something else wants them; the tests must not depend on that.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a core for each worker; what its tests start inherits it

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes longest first."""

    def place(item: pytest.Item) -> int:
        return next((n for n, begin in enumerate(BEGIN_WITH) if item.nodeid.startswith(begin)), len(BEGIN_WITH))

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """As many workers as cores that one may use."""
    return len(os.sched_getaffinity(0))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each file goes to one worker, which makes the file's fixtures once; but the tests of the main job and of kills,
    which share theirs with other workers, go one by one to whichever is free."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            shared = nodeid.startswith(("tests/test_main_job.py", "tests/attack/kills/test_kills.py"))
            return nodeid if shared else nodeid.partition("::")[0]

    config.option.loadscopereorder = False  # the order is that of BEGIN_WITH
    return ByFile(config, log)


@pytest.fixture(scope="session")
def once(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Makes a folder once for all workers: ``once(name, make)``."""
    own = tmp_path_factory.getbasetemp()
    return partial(make_once, (own.parent if hasattr(pytestconfig, "workerinput") else own) / "once")


@pytest.fixture(scope="session")
def tiny(once: Once) -> Path:
    """The folder of a model that is ``embedded:tiny`` but for louder language layers (:func:`models.write_tiny`)."""
    from models import write_tiny

    return once("tiny", write_tiny)


@pytest.fixture(scope="session")
def exact_pair(tiny: Path, once: Once) -> "Pair":
    """The GGUF pair of ``tiny`` in F32."""
    from models import export_pair, pair_in

    return pair_in(once("exact", lambda folder: export_pair(tiny, folder, "F32", "F32")), "F32", "F32")


@pytest.fixture(scope="session")
def bundle(tiny: Path, once: Once) -> Path:
    """The bundle of ``tiny`` under the default contract, both halves in Q8_0."""
    from models import bundle_recipe

    from pipeline.export.bundle import write_bundle

    def make(folder: Path) -> None:
        write_bundle(tiny, folder / "bundle", bundle_recipe(), {"merged": "0" * 64}, threads=2)

    return once("bundle", make) / "bundle"


@pytest.fixture(scope="session")
def phone_pair(bundle: Path) -> "Pair":
    """The GGUF pair of ``bundle``."""
    from models import Pair, bundle_recipe

    from pipeline.export.bundle import mmproj_name, text_name

    recipe = bundle_recipe()
    return Pair(bundle / text_name(recipe), bundle / mmproj_name(recipe))
