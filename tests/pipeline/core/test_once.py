"""A verb works once, and each object for itself."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from pipeline.core.once import once


@dataclass(frozen=True)
class Worker:
    log: list[str]
    name: str = "a"
    done: dict[str, Any] = field(default_factory=dict, init=False)

    @once
    def work(self) -> str | None:
        self.log.append(self.name)
        return None if self.name == "nothing" else f"made by {self.name}"

    @once
    def fail(self) -> str:
        self.log.append("try")
        raise ValueError("no luck")


@pytest.mark.parametrize("name", ["a", "nothing"])
def test_it_is_done_once(name: str) -> None:
    worker = Worker([], name)
    assert worker.work() == worker.work()
    assert worker.log == [name]


def test_a_changed_copy_works_for_itself() -> None:
    worker = Worker([])
    worker.work()
    assert replace(worker, name="b").work() == "made by b"


def test_what_failed_is_tried_again() -> None:
    worker = Worker([])
    for _ in range(2):
        with pytest.raises(ValueError, match="no luck"):
            worker.fail()
    assert worker.log == ["try", "try"]
