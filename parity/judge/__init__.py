"""Judging of saved results. The package is a function, too: ``from parity import judge`` gives what can be called.

verdict = judge("hf.results.jsonl", "phone.results.jsonl")
"""

import importlib
import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """This package, which ``from parity import judge`` gives whether a function of that name exists or not."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """See :func:`parity.judge.call.judge_files`."""
        return importlib.import_module(".call", __name__).judge_files(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
