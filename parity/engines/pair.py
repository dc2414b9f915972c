"""The candidate's side: a GGUF pair under llama.cpp, and what its files say of themselves."""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from parity.engines import OpenSide
from parity.engines.header import encoder_of, header_of
from parity.engines.llamacpp import LlamaCppPredictor
from parity.engines.probe import probe_pair
from pipeline.contract import ChannelOrder, Contract
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_file
from pipeline.core.provenance import digest
from pipeline.core.toolchain import load_gguf
from pipeline.export.convert import KEY_RECIPE, KEY_WEIGHTS
from pipeline.export.verify import TENSOR_TYPES, read_gguf


@contextmanager
def open_llamacpp(
    merged: Path,
    model: Path,
    mmproj: Path,
    contract: Contract,
    dataset_sha256: str,
    fed_order: ChannelOrder | None = None,
    tapped: bool = True,
    sequences: int | None = None,
    threads: int | None = None,
    made: Collection[str] | None = (),
) -> Iterator[OpenSide]:
    """llama.cpp's side of a GGUF pair; ``merged`` gives the tokenizer that the answers' ids are taken from.

    ``fed_order`` overrides the contract's channel order in what is handed to the model, and only there. ``threads``
    takes the place of the contract's, for a machine that is shared out; the answers do not depend on it. ``made``:
    SHA-256 of files that this run made; a pair that is not of them is first tried in a process of its own, where
    llama.cpp may die of it (None: this process is one already). Raises UserError, then and when the pair is opened.
    """
    hashes = {"model": half_sha256(model), "mmproj": half_sha256(mmproj)}
    order = fed_order or contract.image.channel_order
    fed = contract.model_copy(update={"image": contract.image.model_copy(update={"channel_order": order})})
    encoder = encoder_of(merged, fed)
    if made is not None and not {*hashes.values()} <= {*made}:
        probe_pair(model, mmproj, encoder, threads=threads, sequences=sequences, tapped=tapped)
    with LlamaCppPredictor(model, mmproj, encoder, threads=threads, sequences=sequences, tapped=tapped) as predictor:
        header = header_of(
            "llamacpp", "llama.cpp", open_llamacpp, contract, dataset_sha256, predictor,
            model=hashes,
            weights_sha256=weights_of(model, mmproj),
            runtime=contract.runtime.model_dump(mode="json")
            | {"n_threads": predictor.n_threads, "fed": order}
            | {"text_types": tensor_types(model), "mmproj_types": tensor_types(mmproj)}
            | {"files": f"{model.name} + {mmproj.name}"}
            | recipe_of(model),
        )  # fmt: skip
        yield OpenSide(predictor, header)


def tensor_types(path: Path) -> str:
    """The types of a half's matrices, as they are and not as a key states them: ``Q8_0``, ``Q5_0+Q8_0``."""
    # The patch and position tables of the vision half stay as they are in every export (pipeline/export/check.py).
    kept = ("v.patch_embd", "v.position_embd")
    kinds = {kind for name, kind in read_gguf(path).matrices.items() if not name.startswith(kept)}
    return "+".join(sorted(TENSOR_TYPES[kind][0] for kind in kinds))


def file_type(path: Path) -> str:
    """The type that a half was exported in, as llama.cpp names it (``general.file_type``): ``Q8_0``, ``Q4_K_M``."""
    try:
        kind = load_gguf().LlamaFileType(read_gguf(path).keys.get("general.file_type"))
    except ValueError:
        return tensor_types(path)
    return str(kind.name).removeprefix("MOSTLY_").removeprefix("ALL_")


def recipe_of(model: Path) -> dict[str, str]:
    """``recipe``: the recipe that a half says it was exported by; empty where it names none that could be."""
    found = read_gguf(model).text(KEY_RECIPE) or ""
    return {"recipe": found} if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{,99}", found) else {}


def half_sha256(path: Path) -> str:
    """SHA-256 of a half. Raises UserError where it is no file."""
    if not path.is_file():  # a FIFO would be read for ever
        raise UserError(f"{path} is not a file: give a GGUF pair, as `pipeline export` writes it")
    try:
        return sha256_file(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def weights_of(model: Path, mmproj: Path) -> str | None:
    """The weights that a pair says it was made from; two halves of different weights give what equals neither."""
    found = [read_gguf(path).text(KEY_WEIGHTS) for path in (model, mmproj)]
    known = found[0] == found[1] and (found[0] is None or re.fullmatch(r"[0-9a-f]{64}", found[0]))
    return found[0] if known else digest(found)
