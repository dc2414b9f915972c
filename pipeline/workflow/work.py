"""The work of each stage: plain functions, from what they read to what they write. Each returns a few words.

A stage's code is what these functions can execute (:mod:`pipeline.core.closure`), so each imports what it needs itself.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.core.progress import Reporter
    from pipeline.evaluation import Evaluation
    from pipeline.recipe import BaseSettings, Recipe


def make_dataset(recipe: "Recipe", folder: Path, reporter: "Reporter") -> str:
    """Draw or import the labelled pictures."""
    from pipeline.dataset.embedded import make_embedded
    from pipeline.dataset.photos import import_photos

    settings, contract = recipe.dataset, recipe.contract
    with reporter.progress("dataset", "images") as advance:
        if settings.source == "embedded":
            dataset = make_embedded(
                folder, contract, settings.n_per_class, recipe.seed, settings.val_fraction, settings.test_fraction,
                progress=lambda done, total: advance(done, total, ""),
            )  # fmt: skip
        else:
            dataset = import_photos(
                Path(settings.path or ""), folder, contract, settings.val_fraction, recipe.seed,
                max_per_class=settings.limit_per_class, test_fraction=settings.test_fraction,
                test_photos=Path(settings.test_path) if settings.test_path else None,
                progress=lambda done, total: advance(done, total, ""),
            )  # fmt: skip
    for note in dataset.notes:
        reporter.say("dataset", f"note: {note}")
    tested = f", {len(dataset.test)} to test with" if dataset.test else ""
    return f"{len(dataset.train)} images to train on, {len(dataset.val)} to validate with{tested}"


def make_base_model(settings: "BaseSettings", folder: Path, seed: int) -> str:
    """Make an embedded model, or check a folder."""
    from pipeline.models.base import make_base

    return make_base(settings, folder, seed)


def train_adapter(recipe: "Recipe", base: Path, root: Path, owner: str, reporter: "Reporter") -> str:
    """Fine-tune the model in ``base``, or go on where a killed training stopped; ``owner`` names what is trained."""
    from pipeline.dataset.records import Record, load_rgb, read_dataset
    from pipeline.models.smolvlm.encoding import make_encoder
    from pipeline.models.smolvlm.folder import load_model, load_tokenizer, read_geometry
    from pipeline.training.checkpoints import last_complete, step_of
    from pipeline.training.train import Example, train

    checkpoints = root / "checkpoints"
    _drop_stale_checkpoints(checkpoints, owner)
    left = last_complete(checkpoints)
    if left:
        reporter.say("train", f"going on from step {step_of(left)}")
    dataset = read_dataset(root / "dataset", recipe.contract)
    tokenizer = load_tokenizer(base)
    encoder = make_encoder(recipe.contract, tokenizer, read_geometry(base))

    def example(record: Record) -> Example:
        return Example(lambda: load_rgb(dataset.folder, record), record.element)

    with reporter.progress("train", "steps") as advance:
        result = train(
            load_model(base),
            tokenizer,
            encoder,
            [example(record) for record in dataset.train],
            [example(record) for record in dataset.val],
            recipe.train,
            recipe.seed,
            root,
            advance,
        )
    return f"validation accuracy {result['accuracy']:.1%} at step {result['best_step']} of {result['steps']}"


def _drop_stale_checkpoints(folder: Path, wanted: str) -> None:
    """Remove the checkpoints of a killed run that was not this one's: other data, settings, code or versions."""
    from pipeline.core.files import remove, write_text

    if not _owned(folder, wanted):
        remove(folder)
        write_text(folder / "owner", wanted)


def _owned(folder: Path, owner: str) -> bool:
    try:
        return (folder / "owner").read_bytes() == owner.encode()
    except OSError:
        return False


def drop_checkpoints(folder: Path, owner: str) -> None:
    """Remove the checkpoints of a training that is done and on record; another's, which was killed, stay."""
    from pipeline.core.files import remove

    if _owned(folder, owner):
        remove(folder)


def merge_adapter(recipe: "Recipe", base: Path, root: Path) -> str:
    """Merge the adapter into the base model, and prove that nothing was lost."""
    from pipeline.core.files import atomic_folder
    from pipeline.models.smolvlm.folder import read_geometry
    from pipeline.models.smolvlm.lora import merge

    with atomic_folder(root / "merged") as out:
        report = merge(base, root / "lora_adapter", out, recipe.contract.tiling, read_geometry(base))
    return (
        f"logits {report.merged_vs_adapter:.1e} sd from adapter-on-base,"
        f" {report.merged_vs_base:.1g} sd from the base model"
    )


def export_bundle(
    recipe: "Recipe", root: Path, inputs: dict[str, Any], threads: int, image: dict[str, str] | None
) -> str:
    """Write the GGUF pair, checked, with the contract and a manifest that names ``inputs``."""
    from pipeline.export.bundle import mmproj_name, text_name, write_bundle

    bundle = root / "bundle"
    write_bundle(root / "merged", bundle, recipe, inputs, threads, image)
    sizes = [(bundle / name(recipe)).stat().st_size / 1e6 for name in (text_name, mmproj_name)]
    return f"{text_name(recipe)} {sizes[0]:.1f} MB + mmproj {sizes[1]:.1f} MB, re-opened and checked"


def evaluate_merged(recipe: "Recipe", root: Path, reporter: "Reporter") -> "Evaluation":
    """Score the merged model on the images that it is judged on; written into ``evaluation/``."""
    from pipeline.dataset.records import load_rgb, read_dataset
    from pipeline.evaluation import Answer, evaluate, write_evaluation
    from pipeline.models.smolvlm.encoding import make_encoder
    from pipeline.models.smolvlm.folder import load_model, load_tokenizer, read_geometry
    from pipeline.models.smolvlm.inference import HfPredictor

    contract, merged = recipe.contract, root / "merged"
    dataset = read_dataset(root / "dataset", contract)
    tokenizer = load_tokenizer(merged)
    encoder = make_encoder(contract, tokenizer, read_geometry(merged))
    predictor = HfPredictor(load_model(merged), tokenizer, encoder)
    answers = []
    split, records = dataset.judged
    with reporter.progress("evaluate", "images") as advance:
        predictions = predictor.predict(load_rgb(dataset.folder, record) for record in records)
        for record, prediction in zip(records, predictions, strict=True):
            label = contract.parse_answer(prediction.text)
            answers.append(
                Answer(image_id=record.image_id, image_path=record.image_path, truth=record.element, label=label,
                       text=prediction.text)
            )  # fmt: skip
            advance(len(answers), len(records), "")
    evaluation = evaluate(answers, contract.labels, split)
    write_evaluation(evaluation, root / "evaluation")
    return evaluation
