"""Changed copies of a GGUF: a value, a text or a tensor is overwritten in place, and nothing else changes.

Written out anew a file of 49,280 tokens would take seconds; a fault that changes no length needs a copy and some bytes.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.toolchain import load_gguf


class Draft:
    """A copy in memory of a GGUF's bytes. What the methods give can be written to."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self.data: npt.NDArray[np.uint8] = np.array(reader.data, np.uint8)

    def _view(self, part: npt.NDArray[Any]) -> npt.NDArray[Any]:
        start = part.__array_interface__["data"][0] - self._reader.data.__array_interface__["data"][0]
        return self.data[start : start + part.nbytes].view(part.dtype).reshape(part.shape)

    def values(self, key: str) -> list[npt.NDArray[Any]]:
        """A key's value, or its array's: each an array of one number, or the UTF-8 bytes of a text."""
        field = self._reader.fields[key]
        return [self._view(field.parts[index]) for index in field.data]

    def set(self, key: str, *numbers: float) -> None:
        """Overwrite a key's number, or an array's numbers."""
        for view, number in zip(self.values(key), numbers, strict=True):
            view[:] = number

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """A tensor's data as the ``gguf`` package shows it: rows of floats, or of quantized bytes."""
        return next(self._view(tensor.data) for tensor in self._reader.tensors if tensor.name == name)

    def swap(self, a: str, b: str) -> None:
        """Exchange the tensors whose names begin with ``a`` and ``b``, where both have one type and shape."""
        tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        for name, one in tensors.items():
            other = tensors.get(b + name.removeprefix(a)) if name.startswith(a) else None
            if other is not None and (one.tensor_type, one.data.shape) == (other.tensor_type, other.data.shape):
                x, y = self._view(one.data), self._view(other.data)
                x[:], y[:] = y.copy(), x.copy()


class Gguf:
    """A GGUF of which changed copies are made; read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader: Any = load_gguf().GGUFReader(path)
        self._values: dict[str, Any] = {}

    def value(self, key: str) -> Any:
        """A key's value."""
        if key not in self._values:
            self._values[key] = self._reader.fields[key].contents()
        return self._values[key]

    def names(self) -> Iterator[str]:
        """The tensors' names."""
        return (tensor.name for tensor in self._reader.tensors)

    def forged(self, target: Path, change: Callable[[Draft], None]) -> Path:
        """Write a copy that ``change`` was made to."""
        draft = Draft(self._reader)
        change(draft)
        draft.data.tofile(target)
        return target
