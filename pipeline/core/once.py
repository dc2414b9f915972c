"""Work that an object does at most once: a verb that keeps what it made."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, TypeVar


class Keeps(Protocol):
    """What keeps results."""

    @property
    def done(self) -> dict[str, Any]:
        """Method -> what it gave."""
        ...


Keeper = TypeVar("Keeper", bound=Keeps)
Result = TypeVar("Result")


def once(method: Callable[[Keeper], Result]) -> Callable[[Keeper], Result]:
    """The method, run the first time that it is called on an object; later calls give what it gave then."""

    @wraps(method)
    def known(keeper: Keeper) -> Result:
        if method.__name__ not in keeper.done:
            keeper.done[method.__name__] = method(keeper)
        result: Result = keeper.done[method.__name__]
        return result

    return known
