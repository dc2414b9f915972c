"""The table at the end of a session of attacks, and what its tests share."""

import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import tally
from hypothesis.configuration import set_hypothesis_home_dir
from trial import Trials

# Nothing is kept from one session to the next: what was found is a case of the lists, or it is found again.
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")
hypothesis.settings.register_profile("attack", database=None, deadline=None, derandomize=True, print_blob=False)
hypothesis.settings.load_profile("attack")

BEGAN = time.monotonic()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker hands its counts over."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["attacks"] = tally.found()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take a worker's counts; one that died has none, and the test that it died in has failed."""
    tally.add(getattr(node, "workeroutput", {}).get("attacks", {}))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table, once, where the results of all workers are."""
    lines = tally.table(tally.found())
    if lines and not hasattr(config, "workerinput"):
        terminalreporter.section("attacks")
        terminalreporter.write_line("\n".join(lines))
        terminalreporter.write_line(f"in {time.monotonic() - BEGAN:.0f} s")


@pytest.fixture
def trials(tmp_path: Path) -> Iterator[Trials]:
    """Tries cases of a kind, and fails the test at its end where one did not go well."""
    made = Trials(tmp_path)
    yield made
    made.close()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Fail a test whose :func:`trials` did not all go well."""
    result = yield
    trials = pyfuncitem.funcargs.get("trials")
    if isinstance(trials, Trials) and trials.bad:
        pytest.fail(trials.report(), pytrace=False)
    return result
