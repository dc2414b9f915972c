"""Which pair of types a sweep says to ship; the command ``parity ship`` exports and judges it as a run of its own."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from parity.studies.sweep.table import Sweep
from pipeline.core.errors import UserError
from pipeline.core.gguf_types import MmprojType, TextType, canonical
from pipeline.core.provenance import weights_digest
from pipeline.workflow.build import Build

SWEEP = "sweep/sweep.json"


def parse_pair(text: str) -> tuple[str, str]:
    """``Q4_0+Q8_0`` -> (type of the language half, type of the vision half), in any case. Raises UserError."""
    language, plus, vision = (part.strip() for part in text.partition("+"))
    language, vision = canonical(language, TextType), canonical(vision, MmprojType)
    if not plus or language not in get_args(TextType) or vision not in get_args(MmprojType):
        raise UserError(
            f"--pair {text!r} is not two types as in Q4_0+Q8_0: {', '.join(get_args(TextType))} for the language half,"
            f" {', '.join(get_args(MmprojType))} for the vision half"
        )
    return language, vision


def swept_pair(build: Build) -> tuple[str, str]:
    """The types of the smallest pair that passed in the sweep of a recipe's model.

    Raises UserError: no sweep, one of another model or contract, or none of its pairs passed.
    """
    path = build.root / SWEEP
    try:
        found = Sweep.model_validate_json(path.read_bytes())
    except OSError:
        raise UserError(
            f"there is no sweep in {path}: run `parity sweep` first, or name the types with --pair"
        ) from None
    except ValidationError:
        raise UserError(f"{path} is not a sweep of this version: run `parity sweep` again") from None
    for what, stated, own in (
        ("trained weights", found.weights_sha256, weights_digest(build.merged_folder)),
        ("contract", found.contract_sha256, build.recipe.contract.digest),
    ):
        if stated != own:
            raise UserError(f"the sweep in {path} is of other {what} than the recipe has now: run `parity sweep` again")
    if found.smallest is None:
        raise UserError(f"the sweep in {path} has nothing to ship: {found.sentence}")
    pair = next(pair for pair in found.pairs if pair.name == found.smallest)
    return pair.text_type, pair.mmproj_type


def ship_commands(recipe: Path, assignments: Sequence[str], runs: Path | None) -> list[str]:
    """What to type to ship the pair that a sweep of this recipe found; ``runs``: where that is not the default.

    The second is the program's own, the first, where there is one, make's.
    """
    settings = [word for one in assignments for word in ("--set", one)]
    typed = shlex.join(["parity", "ship", str(recipe), *settings, *(["--runs", str(runs)] if runs else [])])
    if runs:
        return [typed]
    given = [f"RECIPE={recipe}", *([f"SET={' '.join(assignments)}"] if assignments else [])]
    return [shlex.join(["make", "parity-ship", *(one.replace("$", "$$") for one in given)]), typed]


def variant_name(recipe: str, pair: tuple[str, str]) -> str:
    """Name of the run that ships a pair: its folder in ``runs/``."""
    return "-".join((recipe, *pair))
