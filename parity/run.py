"""The main job: build the bundle, run both sides over the validation images, judge.

runs/<recipe>/parity/  hf.results.jsonl  llamacpp.results.jsonl  verdict.json  model.cdx.json
runs/<recipe>/evaluation/  the reference side's scores
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

from parity.goldens import letterbox_gate
from parity.predictors import Predictor
from parity.results import Header, ResultsWriter, Row, read_results
from parity.samples import Sample, load_samples
from parity.verdict import Verdict, judge, write_verdict
from pipeline.build import Build
from pipeline.contract import Contract
from pipeline.evaluation import Answer, evaluate, write_evaluation
from pipeline.export.bundle import MANIFEST, mmproj_name, text_name
from pipeline.export.mlbom import Metric, model_bom
from pipeline.files import sha256_file, write_json
from pipeline.progress import Reporter
from pipeline.provenance import code_digest, machine, versions
from pipeline.stages import Stage

SideName = Literal["hf", "llamacpp"]
_SHARED = (
    "pipeline/contract.py",
    "pipeline/encoding.py",
    "pipeline/prediction.py",
    "pipeline/dataset/records.py",
    "parity/run.py",
    "parity/samples.py",
    "parity/results.py",
)
# Rows that other code made are no part of a run: the digest of these files stands in the results' header, too.
_CODE: dict[SideName, tuple[str, ...]] = {
    "hf": (*_SHARED, "pipeline/inference.py", "parity/predictors/hf.py"),
    "llamacpp": (*_SHARED, "parity/predictors/llamacpp.py"),
}


def results_path(build: Build, side: SideName) -> Path:
    """Where a side's answers are kept."""
    return build.root / "parity" / f"{side}.results.jsonl"


def run_side(build: Build, side: SideName, fed_order: Literal["rgb", "bgr"] | None = None) -> Path:
    """Run one side over the validation images, or go on where a killed run stopped; returns its results file.

    ``fed_order`` overrides the contract's channel order in what is handed to the model, and only there: it plays an app
    that does not keep the contract.
    """
    contract = build.recipe.contract
    order = fed_order or contract.image.channel_order
    made = build.merge if side == "hf" else build.export
    depends = {"model": made, "dataset": build.dataset, "contract": contract.digest, "fed": order} | {
        "versions": versions(),
        "machine": machine(),
    }
    stage = Stage(side, depends, _CODE[side], (f"parity/{side}.results.jsonl",))
    fed = contract.model_copy(update={"image": contract.image.model_copy(update={"channel_order": order})})
    stage.run(build.root, lambda: _answer(build, side, fed), build.reporter.say)
    return results_path(build, side)


def _open_side(build: Build, side: SideName, contract: Contract) -> tuple[AbstractContextManager[Any], dict[str, Any]]:
    """(predictor, what the header says of its files and set-up)."""
    from pipeline.encoding import make_encoder
    from pipeline.model.folder import load_tokenizer, read_geometry

    merged, bundle, recipe = build.merged_folder, build.bundle_folder, build.recipe
    encoder = make_encoder(contract, load_tokenizer(merged), read_geometry(merged))
    if side == "hf":
        import torch

        from parity.predictors.hf import hf_predictor

        device = "cuda" if torch.cuda.is_available() else "cpu"
        files = {path.name: sha256_file(path) for path in sorted(merged.glob("*.safetensors"))}
        runtime: dict[str, Any] = {"dtype": "float32", "device": device, "n_threads": torch.get_num_threads()}
        runtime["fed"] = contract.image.channel_order
        return nullcontext(hf_predictor(merged, encoder, device)), {"model": files, "runtime": runtime}
    from parity.predictors.llamacpp import LlamaCppPredictor

    model, mmproj = bundle / text_name(recipe), bundle / mmproj_name(recipe)
    predictor = LlamaCppPredictor(model, mmproj, encoder)
    runtime = contract.runtime.model_dump(mode="json")
    runtime |= {"n_threads": predictor.n_threads, "fed": contract.image.channel_order}
    return predictor, {"model": {"model": sha256_file(model), "mmproj": sha256_file(mmproj)}, "runtime": runtime}


def _answer(build: Build, side: SideName, fed: Contract) -> str:
    samples, dataset_sha256 = load_samples(build.dataset_folder, build.recipe.contract)
    opened, about = _open_side(build, side, fed)
    with opened as predictor:
        header = Header(
            side=side,
            contract_sha256=build.recipe.contract.digest,
            dataset_sha256=dataset_sha256,
            versions=versions() | {"code": code_digest(*_CODE[side])},
            device=machine(),
            prompt_token_ids=tuple(predictor.prompt_ids),
            image_slots=tuple(predictor.image_slots),
            **about,
        )
        path = results_path(build, side)
        path.parent.mkdir(parents=True, exist_ok=True)
        with ResultsWriter(path, header) as writer:
            answer_all(predictor, samples, build.recipe.contract, writer, build.reporter)
            rows = [writer.rows[sample.key] for sample in samples]
    right = sum(row.correct for row in rows)
    return f"{right} of {len(rows)} right, {right / len(rows):.1%}"


def answer_all(
    predictor: Predictor, samples: Sequence[Sample], contract: Contract, writer: ResultsWriter, reporter: Reporter
) -> None:
    """Append a row for every sample that ``writer`` has none of yet."""
    waiting = [sample for sample in samples if sample.key not in writer.rows]
    with reporter.progress(predictor.side, "images") as advance:
        done = len(samples) - len(waiting)
        advance(done, len(samples), "")
        predictions = predictor.predict(sample.rgb for sample in waiting)
        for sample, prediction in zip(waiting, predictions, strict=True):
            writer.append(
                Row(
                    key=sample.key,
                    image_id=sample.image_id,
                    rgb_sha256=prediction.rgb_sha256,
                    truth=sample.truth,
                    text=prediction.text,
                    label=contract.parse_answer(prediction.text),
                    generated_token_ids=prediction.generated_ids,
                    label_logprobs=prediction.label_logprobs,
                    top_logits=prediction.top_logits,
                    ms=prediction.ms,
                    stop_reason=prediction.stop_reason,
                )
            )
            done += 1
            advance(done, len(samples), "")


def _validation_records(dataset: Path) -> list[dict[str, str]]:
    """As the file has them; they were checked before the first side ran."""
    records: list[dict[str, str]] = json.loads((dataset / "val.json").read_text(encoding="utf-8"))
    return records


def run(build: Build, fed_order: Literal["rgb", "bgr"] | None = None) -> Verdict:
    """Do the whole job; write ``verdict.json`` and the bill of materials ``model.cdx.json``.

    ``fed_order``: see :func:`run_side`, for the llama.cpp side.
    """
    _ = build.export
    reference = read_results(run_side(build, "hf"))
    candidate = read_results(run_side(build, "llamacpp", fed_order))
    contract = build.recipe.contract
    paths = {record["image_id"]: record["image_path"] for record in _validation_records(build.dataset_folder)}
    answers = [
        Answer(
            image_id=row.image_id,
            image_path=paths[row.image_id],
            truth=row.truth,
            label=row.label,
            text=row.text,
        )
        for row in reference.rows.values()
    ]
    write_evaluation(evaluate(answers, contract.labels), build.root / "evaluation")
    verdict = judge(reference, candidate, contract, [letterbox_gate()])
    write_verdict(verdict, build.root / "parity" / "verdict.json")
    write_json(build.root / "parity" / "model.cdx.json", _bill_of_materials(build, verdict))
    return verdict


def _bill_of_materials(build: Build, verdict: Verdict) -> dict[str, Any]:
    manifest = json.loads((build.bundle_folder / MANIFEST).read_text(encoding="utf-8"))
    config = json.loads((build.merged_folder / "config.json").read_text(encoding="utf-8"))
    return model_bom(
        manifest,
        family=config["model_type"],
        architecture=config["architectures"][0],
        dataset_sha256=verdict.reference_header.dataset_sha256,
        metrics=_metrics(verdict),
        properties={
            "verdict": verdict.status,
            "validation_images": str(verdict.n),
            "margin_points": f"{verdict.difference.margin_points:g}",
            "fed": str(verdict.candidate_header.runtime["fed"]),
        },
    )


def _metrics(verdict: Verdict) -> list[Metric]:
    """Accuracy and recalls of both sides, then their difference as a fraction."""
    found = []
    for side in (verdict.reference, verdict.candidate):
        found.append(Metric("accuracy", side.side, side.accuracy, side.accuracy_low, side.accuracy_high))
        found += [Metric("recall", f"{side.side}, {score.label}", score.recall) for score in side.per_class
                  if score.support]  # fmt: skip
    gap = verdict.difference
    where = f"{verdict.candidate.side} minus {verdict.reference.side}"
    found.append(Metric("accuracy difference", where, gap.points / 100, gap.low / 100, gap.high / 100))
    return found
