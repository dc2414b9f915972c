"""The way from photos to bundle, stage by stage, each skipped when nothing it depends on changed.

runs/<recipe>/  dataset/  base/  lora_adapter/ + logs/  merged/  bundle/  stages/
"""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.files import write_text
from pipeline.progress import Reporter
from pipeline.provenance import digest, folder_hashes, versions
from pipeline.recipe import Recipe
from pipeline.stages import Stage

if TYPE_CHECKING:
    from pipeline.evaluation import Evaluation

STAGES = ("dataset", "base", "train", "merge", "export")
_COMMON = ("pipeline/contract.py", "pipeline/files.py")
_MODEL = (*_COMMON, "pipeline/encoding.py", "pipeline/inference.py", "pipeline/model")


@dataclass(frozen=True)
class Build:
    """A recipe's run in ``root``; each method runs one stage and returns the digest of what it made.

    A stage runs the ones before it, which do nothing where nothing changed.
    """

    recipe: Recipe
    root: Path
    reporter: Reporter
    threads: int
    held: IO[str] | None = None
    """The open file that keeps other runs out of ``root``."""
    image: dict[str, str] | None = None
    """The container image that this runs in; recorded, and nothing depends on it."""

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

    @cached_property
    def base_folder(self) -> Path:
        """The model to start from; a hub id is fetched here."""
        from pipeline.model.base import base_folder

        return base_folder(self.recipe.base, self.root / "base")

    @cached_property
    def dataset(self) -> str:
        """Make or import the labelled pictures."""
        settings = self.recipe.dataset
        depends: dict[str, Any] = {
            "settings": settings.model_dump(mode="json"),
            "image": self.recipe.contract.image.model_dump(mode="json", exclude={"channel_order"}),
            "labels": self.recipe.contract.labels,
            "seed": self.recipe.seed,
            "pillow": versions().get("pillow"),
        }
        if settings.path:
            if not Path(settings.path).is_dir():
                raise UserError(f"dataset.path {settings.path!r} is not a folder: give the folder of labelled photos")
            depends["photos"] = digest(folder_hashes(Path(settings.path)))
        stage = Stage("dataset", depends, (*_COMMON, "pipeline/dataset", "pipeline/letterbox.py"), ("dataset",))
        return stage.run(self.root, self._make_dataset, self.reporter.say)

    def _make_dataset(self) -> str:
        from pipeline.dataset.embedded import make_embedded
        from pipeline.dataset.photos import import_photos

        settings, contract = self.recipe.dataset, self.recipe.contract
        with self.reporter.progress("dataset", "images") as advance:
            if settings.source == "embedded":
                dataset = make_embedded(
                    self.dataset_folder, contract, settings.n_per_class, self.recipe.seed, settings.val_fraction,
                    progress=lambda done, total: advance(done, total, ""),
                )  # fmt: skip
            else:
                dataset = import_photos(
                    Path(settings.path or ""), self.dataset_folder, contract, settings.val_fraction, self.recipe.seed,
                    max_per_class=settings.limit_per_class, progress=lambda done, total: advance(done, total, ""),
                )  # fmt: skip
        for note in dataset.notes:
            self.reporter.say("dataset", f"note: {note}")
        return f"{len(dataset.train)} images to train on, {len(dataset.val)} to validate with"

    @cached_property
    def base(self) -> str:
        """Make, find or fetch the base model."""
        from pipeline.model.base import make_base
        from pipeline.model.embedded import SHAPES

        settings, folder = self.recipe.base, self.base_folder
        embedded = settings.model in SHAPES
        depends: dict[str, Any] = {"settings": settings.model_dump(mode="json"), "versions": versions()}
        depends |= {"seed": self.recipe.seed} if embedded else {"files": folder_hashes(folder)}
        code = (*_COMMON, "pipeline/model/embedded.py", "pipeline/model/base.py", "pipeline/model/folder.py")
        # A folder of the user's is depended on, not made; the stage then makes only its record.
        stage = Stage("base", depends, code, ("base",) if embedded else ())
        made = stage.run(self.root, lambda: make_base(settings, folder, self.recipe.seed), self.reporter.say)
        return digest([made, depends])

    @cached_property
    def train(self) -> str:
        """Fine-tune the base model."""
        contract = self.recipe.contract
        depends = {
            "dataset": self.dataset,
            "base": self.base,
            "settings": self.recipe.train.model_dump(mode="json"),
            "contract": contract.model_dump(mode="json", exclude={"runtime", "gate", "name"}),
            "seed": self.recipe.seed,
            "versions": versions(),
        }
        stage = Stage("train", depends, (*_MODEL, "pipeline/training"), ("lora_adapter", "logs"))
        return stage.run(self.root, lambda: self._train(digest(depends)), self.reporter.say)

    def _drop_stale_checkpoints(self, wanted: str) -> None:
        """Remove the checkpoints of a killed run that was not this one's: other data, settings or versions."""
        owner = self.root / "checkpoints" / "owner"
        if not owner.exists() or owner.read_text() != wanted:
            shutil.rmtree(owner.parent, ignore_errors=True)
            write_text(owner, wanted)

    def _train(self, wanted: str) -> str:
        from pipeline.dataset.records import Record, load_rgb, read_dataset
        from pipeline.encoding import make_encoder
        from pipeline.model.folder import load_model, load_tokenizer, read_geometry
        from pipeline.training.checkpoints import last_complete
        from pipeline.training.train import Example, train

        self._drop_stale_checkpoints(wanted)
        left = last_complete(self.root / "checkpoints")
        if left:
            self.reporter.say("train", f"going on from step {left.name.removeprefix('checkpoint-')}")
        recipe = self.recipe
        dataset = read_dataset(self.dataset_folder, recipe.contract)
        tokenizer = load_tokenizer(self.base_folder)
        encoder = make_encoder(recipe.contract, tokenizer, read_geometry(self.base_folder))

        def example(record: Record) -> Example:
            return Example(lambda: load_rgb(dataset.folder, record), record.element)

        with self.reporter.progress("train", "steps") as advance:
            result = train(
                load_model(self.base_folder),
                tokenizer,
                encoder,
                [example(record) for record in dataset.train],
                [example(record) for record in dataset.val],
                recipe.train,
                recipe.seed,
                self.root,
                advance,
            )
        return f"validation accuracy {result['accuracy']:.1%} at step {result['best_step']} of {result['steps']}"

    @cached_property
    def merge(self) -> str:
        """Merge the adapter into the base model and prove that nothing was lost."""
        depends = {
            "adapter": self.train,
            "base": self.base,
            "tiling": self.recipe.contract.tiling.model_dump(mode="json"),
            "versions": versions(),
        }
        return Stage("merge", depends, (*_COMMON, "pipeline/model"), ("merged",)).run(
            self.root, self._merge, self.reporter.say
        )

    def _merge(self) -> str:
        from pipeline.files import atomic_folder
        from pipeline.model.folder import read_geometry
        from pipeline.model.lora import merge

        base = self.base_folder
        with atomic_folder(self.merged_folder) as out:
            report = merge(base, self.root / "lora_adapter", out, self.recipe.contract.tiling, read_geometry(base))
        return (
            f"logits {report.merged_vs_adapter:.1e} sd from adapter-on-base,"
            f" {report.merged_vs_base:.1g} sd from the base model"
        )

    @cached_property
    def export(self) -> str:
        """Write the bundle: the GGUF pair, checked, with the contract and a manifest."""
        from pipeline.export.bundle import bundle_names

        inputs = {"merged": self.merge, "adapter": self.train, "base": self.base, "dataset": self.dataset}
        depends = inputs | {
            "settings": self.recipe.export.model_dump(mode="json"),
            "recipe": self.recipe.name,
            "contract": self.recipe.contract.digest,
            "versions": versions(),
        }
        # File by file: a signature that is added to the bundle is no reason to make it again.
        outputs = tuple(f"bundle/{name}" for name in bundle_names(self.recipe))
        return Stage("export", depends, (*_COMMON, "pipeline/export", "pipeline/model/folder.py"), outputs).run(
            self.root, lambda: self._export(inputs), self.reporter.say
        )

    def _export(self, inputs: dict[str, Any]) -> str:
        from pipeline.export.bundle import mmproj_name, text_name, write_bundle

        write_bundle(self.merged_folder, self.bundle_folder, self.recipe, inputs, self.threads, self.image)
        sizes = [(self.bundle_folder / name(self.recipe)).stat().st_size / 1e6 for name in (text_name, mmproj_name)]
        return f"{text_name(self.recipe)} {sizes[0]:.1f} MB + mmproj {sizes[1]:.1f} MB, re-opened and checked"

    def evaluate(self) -> "Evaluation":
        """Score the merged model on the validation images; written into ``evaluation/``."""
        from pipeline.dataset.records import load_rgb, read_dataset
        from pipeline.encoding import make_encoder
        from pipeline.evaluation import Answer, evaluate, write_evaluation
        from pipeline.inference import HfPredictor
        from pipeline.model.folder import load_model, load_tokenizer, read_geometry

        _ = self.merge
        contract = self.recipe.contract
        dataset = read_dataset(self.dataset_folder, contract)
        tokenizer = load_tokenizer(self.merged_folder)
        encoder = make_encoder(contract, tokenizer, read_geometry(self.merged_folder))
        predictor = HfPredictor(load_model(self.merged_folder), tokenizer, encoder)
        answers = []
        with self.reporter.progress("evaluate", "images") as advance:
            predictions = predictor.predict(load_rgb(dataset.folder, record) for record in dataset.val)
            for record, prediction in zip(dataset.val, predictions, strict=True):
                label = contract.parse_answer(prediction.text)
                answers.append(
                    Answer(image_id=record.image_id, image_path=record.image_path, truth=record.element, label=label,
                           text=prediction.text)
                )  # fmt: skip
                advance(len(answers), len(dataset.val), "")
        evaluation = evaluate(answers, contract.labels)
        write_evaluation(evaluation, self.root / "evaluation")
        return evaluation
