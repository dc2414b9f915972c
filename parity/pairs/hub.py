"""A pair of GGUFs by a repository on the hub, chosen as llama.cpp's ``-hf owner/name:Q8_0`` chooses it.

Which file is taken follows ``common/download.cpp`` of the pinned llama.cpp: ``find_best_model`` (the tag given, else
Q4_K_M, Q8_0, the first there is) and ``find_best_sibling`` (the mmproj that lies nearest and whose bits are nearest).
"""

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.core.errors import UserError

_SIDECARS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


def fetch_pair(spec: str) -> tuple[Path, Path]:
    """(text half, mmproj) of ``owner/name`` or ``owner/name:tag``, fetched once into the hub's own cache.

    Raises UserError: no such repository, no network, no file of the tag, no mmproj, a model in several parts.
    """
    from huggingface_hub import hf_hub_download, list_repo_files
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    repo, _, tag = spec.partition(":")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UserError(f"--hf {spec}: give owner/name, or owner/name:Q8_0")
    try:
        files = sorted(list_repo_files(repo))
        names = choose(files, tag)
        text, mmproj = (Path(hf_hub_download(repo, name)) for name in names)
    except RepositoryNotFoundError:
        raise UserError(f"--hf {spec}: the hub has no repository {repo}, or it is not yours to read") from None
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--hf {spec}: cannot be had from the hub ({reason}): give the two files in its place"
        ) from None
    return text, mmproj


def choose(files: Sequence[str], tag: str = "") -> tuple[str, str]:
    """(text half, mmproj) among a repository's files. Raises UserError."""
    models = [name for name in files if name.endswith(".gguf") and not _is_sidecar(name)]
    for wanted in [tag] if tag else ["Q4_K_M", "Q8_0"]:
        found = [name for name in models if re.search(re.escape(wanted) + "[.-]", name, re.IGNORECASE)]
        if found:
            break
    else:
        found = [] if tag else models
    if not found:
        there = ", ".join(models) or "no GGUF"
        raise UserError(f"there is no GGUF of {tag or 'any type'} in the repository; it has {there}")
    if part := _PART.search(found[0]):
        raise UserError(
            f"{found[0]} is one of {int(part[1])} parts: merge them with llama-gguf-split, and give the file itself"
        )
    text = found[0]
    near = [name for name in files if name.endswith(".gguf") and "mmproj" in name and _shares(name, text) is not None]
    if not near:
        raise UserError(f"the repository has no mmproj for {text}: give both files by their paths")
    return text, min(near, key=lambda name: (-(_shares(name, text) or 0), abs(_bits(name) - _bits(text))))


def _is_sidecar(name: str) -> bool:
    return any(word in name.rpartition("/")[2] for word in _SIDECARS)


def _shares(name: str, text: str) -> int | None:
    """How deep the folder of a file lies, where the model lies in it or below; else None."""
    own, other = name.split("/")[:-1], text.split("/")[:-1]
    return len(own) if other[: len(own)] == own else None


def _bits(name: str) -> int:
    """Q4_0 -> 4, F16 -> 16; 0 where the name has no type."""
    tag = re.search(r"[-.]([A-Za-z0-9_]+)(?:-\d{5}-of-\d{5})?\.gguf$", name)
    number = re.search(r"\d+", tag[1]) if tag else None
    return int(number[0]) if number else 0
