"""One half of a GGUF pair, converted and checked: the one way in which anything here is exported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.contract import Contract
from pipeline.core.provenance import weights_digest
from pipeline.export.check import check_mmproj, check_text
from pipeline.export.convert import (
    KEY_ADD_BOS,
    KEY_CONTRACT,
    KEY_RECIPE,
    KEY_WEIGHTS,
    Metadata,
    convert_mmproj,
    convert_text,
)

Half = Literal["text", "mmproj"]


@dataclass(frozen=True)
class Exporter:
    """A merged model and what its files are to say of themselves."""

    merged: Path
    name: str
    """``general.name``."""
    contract: Contract
    recipe: str
    threads: int

    def file_name(self, half: Half, kind: str) -> str:
        """``<name>-<type>.gguf``, with ``mmproj-`` in front for the vision half."""
        return f"{'mmproj-' if half == 'mmproj' else ''}{self.name}-{kind}.gguf"

    def export(self, half: Half, kind: Any, path: Path) -> str:
        """Write one half in the type ``kind``, open it again and check it; returns a few words. Raises CheckFailed."""
        added: Metadata = {
            KEY_CONTRACT: self.contract.digest,
            KEY_RECIPE: self.recipe,
            KEY_WEIGHTS: weights_digest(self.merged),
        }
        about = (path, self.merged, self.name, self.contract, self.recipe, kind)
        if half == "text":
            bos: Metadata = {KEY_ADD_BOS: self.contract.add_bos}
            convert_text(self.merged, path, kind, self.name, added | bos, self.threads)
            check_text(*about)
        else:
            convert_mmproj(self.merged, path, kind, self.name, added)
            check_mmproj(*about)
        return f"{path.name} {path.stat().st_size / 1e6:.1f} MB, re-opened and checked"
