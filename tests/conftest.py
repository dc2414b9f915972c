"""What every test obeys: a test that is skipped says why."""

from collections.abc import Generator
from typing import Any

import pytest

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
