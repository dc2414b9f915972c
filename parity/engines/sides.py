"""Both sides of a pair, each loaded when it is first asked for, and only once."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from parity.engines import OpenSide, SideName
from pipeline.contract import ChannelOrder, Contract


@dataclass
class Sides:
    """A merged model's folder and the GGUF pair made of it. Use as a context manager: it frees what it loaded."""

    merged: Path
    model: Path
    mmproj: Path
    contract: Contract
    dataset_sha256: str
    fed_order: ChannelOrder | None = None
    """Overrides the contract's channel order in what llama.cpp is handed, and only there."""
    threads: int | None = None
    """Of each side; by default llama.cpp has the contract's and torch its own choice."""
    made: frozenset[str] = frozenset()
    """SHA-256 of files that this run made; a pair that is not of them is tried in a process of its own first."""
    _opened: dict[SideName, OpenSide] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def reference(self) -> OpenSide:
        """Hugging Face in float32."""
        from parity.engines.hf import open_hf

        if "hf" not in self._opened:
            self._opened["hf"] = open_hf(self.merged, self.contract, self.dataset_sha256, threads=self.threads)
        return self._opened["hf"]

    def candidate(self) -> OpenSide:
        """llama.cpp, with what its encoder is given to be read."""
        from parity.engines.pair import open_llamacpp

        if "llamacpp" not in self._opened:
            self._opened["llamacpp"] = self._stack.enter_context(
                open_llamacpp(
                    self.merged, self.model, self.mmproj, self.contract, self.dataset_sha256, self.fed_order,
                    threads=self.threads, made=self.made,
                )
            )  # fmt: skip
        return self._opened["llamacpp"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.clear()
        self._stack.close()
