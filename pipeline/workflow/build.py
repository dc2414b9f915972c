"""The way from photos to bundle, stage by stage, each skipped when nothing it depends on changed.

runs/<recipe>/  dataset/  base/  lora_adapter/ + logs/  merged/  bundle/  stages/

Stages are found by what they depend on: what another run in ``runs/`` has made of just the same is taken from there.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.core.closure import code_digest
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_file
from pipeline.core.once import once
from pipeline.core.progress import Reporter
from pipeline.core.provenance import digest, folder_hashes, versions
from pipeline.recipe import Recipe
from pipeline.workflow.stage import Stage
from pipeline.workflow.work import (
    drop_checkpoints,
    evaluate_merged,
    export_bundle,
    make_base_model,
    make_dataset,
    merge_adapter,
    train_adapter,
)

if TYPE_CHECKING:
    from pipeline.evaluation import Evaluation

STAGES = ("dataset", "base", "train", "merge", "export")
"""In the order in which they are run."""


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # a folder that may be entered and not listed: nothing is taken from other runs
        return []


@dataclass(frozen=True)
class Build:
    """A recipe's run in ``root``. Each ``ensure_`` method sees that one stage is done and returns the digest of what it
    made; the stages before it are ensured first, and do nothing where nothing changed.
    """

    recipe: Recipe
    root: Path
    reporter: Reporter
    threads: int
    held: IO[str] | None = None
    """The open file that keeps other runs out of ``root``."""
    image: dict[str, str] | None = None
    """The container image that this runs in; recorded, and nothing depends on it."""
    done: dict[str, Any] = field(default_factory=dict, init=False)
    """Stages that were ensured: looking at one again would hash its inputs again."""

    def counting(self, stages: Sequence[str]) -> "Build":
        """The same run, whose lines tell which of these stages they are of."""
        made = replace(self, reporter=self.reporter.counting(stages))
        made.done.update(self.done)
        return made

    @property
    def dataset_folder(self) -> Path:
        """The records and their images."""
        return self.root / "dataset"

    @property
    def merged_folder(self) -> Path:
        """The fine-tuned model, as Hugging Face loads it."""
        return self.root / "merged"

    @property
    def bundle_folder(self) -> Path:
        """The GGUF pair, the contract and the manifest."""
        return self.root / "bundle"

    def run(self, stage: Stage) -> str:
        """See that a stage is done, here or in another run beside this one; the digest of what it made."""
        others = (one for one in _folders_in(self.root.parent) if one != self.root and os.path.isdir(one / "stages"))
        return stage.run(self.root, self.reporter.say, others)

    def find_base(self) -> Path:
        """The folder of the model to start from; a hub id is fetched here."""
        from pipeline.models.base import base_folder

        return base_folder(self.recipe.base, self.root / "base")

    @once
    def ensure_dataset(self) -> str:
        """Make or import the labelled pictures."""
        settings = self.recipe.dataset
        depends: dict[str, Any] = {
            "settings": settings.model_dump(mode="json"),
            "image": self.recipe.contract.image.model_dump(mode="json", exclude={"channel_order"}),
            "labels": self.recipe.contract.labels,
            "seed": self.recipe.seed,
            "pillow": versions().get("pillow"),
        }
        for key in ("path", "test_path"):
            given = getattr(settings, key)
            if given:
                if not os.path.isdir(given):
                    raise UserError(f"dataset.{key} {given!r} is not a folder: give the folder of labelled photos")
                # A link is what it says: where it leads out of the folder, the import refuses it.
                depends[f"photos in {key}"] = digest(folder_hashes(Path(given), follow_links=False))
        work = partial(make_dataset, self.recipe, self.dataset_folder, self.reporter)
        return self.run(Stage("dataset", depends, work, ("dataset",)))

    @once
    def ensure_base(self) -> str:
        """Make, find or fetch the base model."""
        from pipeline.models.smolvlm.embedded import SHAPES

        settings, folder = self.recipe.base, self.find_base()
        embedded = settings.model in SHAPES
        depends: dict[str, Any] = {"settings": settings.model_dump(mode="json"), "versions": versions()}
        depends |= {"seed": self.recipe.seed} if embedded else {"files": folder_hashes(folder)}
        work = partial(make_base_model, settings, folder, self.recipe.seed)
        # A folder of the user's is depended on, not made; the stage then makes only its record.
        stage = Stage("base", depends, work, ("base",) if embedded else ())
        return digest([self.run(stage), depends])

    @once
    def ensure_train(self) -> str:
        """Fine-tune the base model."""
        contract = self.recipe.contract
        self.ensure_dataset()
        depends = {
            # Not the test images, nor where the photos lie: another test is no reason to train again.
            "dataset": [sha256_file(self.dataset_folder / name) for name in ("train.json", "val.json")],
            "base": self.ensure_base(),
            "settings": self.recipe.train.model_dump(mode="json"),
            "contract": contract.model_dump(mode="json", exclude={"runtime", "gate", "name"}),
            "seed": self.recipe.seed,
            "versions": versions(),
        }
        owner = digest([depends, code_digest(train_adapter)])
        work = partial(train_adapter, self.recipe, self.find_base(), self.root, owner, self.reporter)
        clean = partial(drop_checkpoints, self.root / "checkpoints", owner)
        return self.run(Stage("train", depends, work, ("lora_adapter", "logs"), clean))

    @once
    def ensure_merge(self) -> str:
        """Merge the adapter into the base model and prove that nothing was lost."""
        depends = {
            "adapter": self.ensure_train(),
            "base": self.ensure_base(),
            "tiling": self.recipe.contract.tiling.model_dump(mode="json"),
            "versions": versions(),
        }
        work = partial(merge_adapter, self.recipe, self.find_base(), self.root)
        return self.run(Stage("merge", depends, work, ("merged",)))

    @once
    def ensure_export(self) -> str:
        """Write the bundle: the GGUF pair, checked, with the contract and a manifest."""
        from pipeline.export.bundle import bundle_names

        inputs = {
            "merged": self.ensure_merge(),
            "adapter": self.ensure_train(),
            "base": self.ensure_base(),
            "dataset": self.ensure_dataset(),
        }
        depends = inputs | {
            "settings": self.recipe.export.model_dump(mode="json"),
            "recipe": self.recipe.name,
            "contract": self.recipe.contract.digest,
            "versions": versions(),
        }
        work = partial(export_bundle, self.recipe, self.root, inputs, self.threads, self.image)
        # File by file: a signature that is added to the bundle is no reason to make it again.
        outputs = tuple(f"bundle/{name}" for name in bundle_names(self.recipe))
        return self.run(Stage("export", depends, work, outputs))

    def evaluate(self) -> "Evaluation":
        """Score the merged model on the images that it is judged on; written into ``evaluation/``."""
        self.ensure_merge()
        return evaluate_merged(self.recipe, self.root, self.reporter)
