"""Two sides' results and ladders for the tests of the judgement: made, broken in one place, judged."""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from parity.compare.ladder import Ladder, LadderHeader, LadderWriter, Measured, NoiseFloor, Spread, header_digest
from parity.compare.measure import follow
from parity.judge.verdict import GateResult, Verdict
from parity.results import Header, Results, ResultsWriter, Row
from pipeline.contract import Contract
from pipeline.core.appending import written_beside
from pipeline.core.files import sha256_bytes
from pipeline.core.jsonl import EndLine, line_of

FIVE = Contract()
TWO = Contract(labels=("day", "night"))
THREE = Contract(labels=("red panda", "Eisbär", "물고기"))
FORTY = Contract(labels=tuple(f"kind {chr(97 + number // 26)}{chr(97 + number % 26)}" for number in range(40)))
CONTRACTS = pytest.mark.parametrize("contract", [TWO, THREE, FIVE, FORTY], ids=["2", "3", "5", "40"])
STAGES = [
    "provenance", "runtime", "decoded", "pixels", "tiles", "tokens", "embeddings", "logits", "generation", "answers",
    "accuracy", "classes",
]  # fmt: skip

ENGINES = {"hf": "transformers"}
WEIGHTS = sha256_bytes(b"weights")

FLOOR = NoiseFloor(
    samples=32,
    embeddings_error=Spread(median=0.005, p95=0.006, largest=0.007),
    logits_kl=Spread(median=5e-6, p95=4e-5, largest=1e-4),
    logits_kl_labels=Spread(median=3e-6, p95=3e-5, largest=8e-5),
    logits_max=Spread(median=0.01, p95=0.02, largest=0.03),
    generated_differ=0,
    labels_differ=0,
)
"""Made up, of a small model's size."""

Answers = Sequence[tuple[str, str | None]]
"""(truth, label) of each image."""


def results(answers: Answers, side: str = "hf", contract: Contract = FIVE, **header: object) -> Results:
    """One side's answers; image i has the same key on every side."""
    rows = {}
    for number, (truth, label) in enumerate(answers):
        key = sha256_bytes(f"image {number}".encode())
        rows[key] = Row(
            key=key,
            image_id=f"image_{number:04d}",
            rgb_sha256=key,
            truth=truth,
            text=" " + (label or "hmm"),
            label=label,
            generated_token_ids=(1,),
            label_logprobs=logprobs(truth, side, number, contract),
            ms={"encode": 10.0, "prefill": 5.0, "generate": 5.0},
            stop_reason="end",
        )
    values: dict[str, object] = {
        "side": side,
        "engine": ENGINES.get(side, "llama.cpp"),
        "images": len(rows),
        "contract_sha256": contract.digest,
        "dataset_sha256": sha256_bytes(b"dataset"),
        "model": {"model": sha256_bytes(side.encode())},
        "weights_sha256": WEIGHTS,
        "versions": {"llama-cpp-python": "0.3.36"},
        "device": {"cpu": "some"},
        "runtime": {"fed": "rgb"},
        "prompt_token_ids": [7, -1, -1, 8, -1, -1, 9],
        "image_slots": [[1, 2], [4, 2]],
    }
    return Results(Header.model_validate(values | header), rows)


def logprobs(truth: str, side: str, number: int, contract: Contract) -> dict[str, float]:
    """The truth is the likeliest label; no two engines agree to the last bit."""
    generator = random.Random(f"{side} {number}")
    rest = 0.5 / len(contract.labels)
    return {name: math.log(0.4 if name == truth else rest) + generator.uniform(-1e-3, 1e-3) for name in contract.labels}


def change_rows(side: Results, change: Callable[[Row], dict[str, object]], count: int | None = None) -> Results:
    """With the first ``count`` rows changed, all by default."""
    rows = dict(side.rows)
    for key in list(rows)[:count]:
        rows[key] = rows[key].model_copy(update=change(rows[key]))
    return replace(side, rows=rows)


def change_header(side: Results, /, **values: object) -> Results:
    return replace(side, header=side.header.model_copy(update=values))


def right(n: int, contract: Contract = FIVE) -> list[tuple[str, str | None]]:
    """n right answers, the labels in turn."""
    labels = contract.labels
    return [(labels[number % len(labels)], labels[number % len(labels)]) for number in range(n)]


def spoil(answers: Answers, count: int, contract: Contract = FIVE, start: int = 0) -> list[tuple[str, str | None]]:
    """With ``count`` answers turned into the next label."""
    labels, spoilt = contract.labels, list(answers)
    for number in range(start, start + count):
        truth = spoilt[number][0]
        spoilt[number] = (truth, labels[(labels.index(truth) + 1) % len(labels)])
    return spoilt


def noisy(n: int, contract: Contract, seed: int) -> list[tuple[str, str | None]]:
    generator = random.Random(seed)
    options = (*contract.labels, None)
    return [
        (truth, label if generator.random() < 0.8 else generator.choice(options)) for truth, label in right(n, contract)
    ]


def pair(n: int = 200) -> tuple[Results, Results]:
    return results(right(n)), results(right(n), "llamacpp")


def gate(verdict: Verdict, stage: str) -> GateResult:
    return next(gate for gate in verdict.gates if gate.stage == stage)


def assert_stops(verdict: Verdict, status: str, code: int, stage: str, *facts: str) -> None:
    """``status`` at ``stage``, nothing red or open before it, and the facts in its detail."""
    assert (verdict.status, verdict.exit_code, verdict.first_bad_stage) == (status, code, stage), verdict.headline
    stages = [one.stage for one in verdict.gates]
    wanted = "undecided" if status == "INCONCLUSIVE" else "red"
    assert gate(verdict, stage).status == wanted
    assert all(one.status in ("green", "not measured") for one in verdict.gates[: stages.index(stage)])
    for fact in facts:
        assert fact in gate(verdict, stage).detail
    cause = gate(verdict, stage).cause
    assert cause
    # An undecided verdict's headline is its cause.
    assert verdict.cause == ("" if status == "INCONCLUSIVE" else cause)
    assert status != "INCONCLUSIVE" or verdict.headline.startswith(f"Undecided: {cause}")
    assert verdict.fix


def assert_red(verdict: Verdict, stage: str, *facts: str) -> None:
    """FAIL at ``stage``, everything before it green, and the facts in its detail."""
    assert_stops(verdict, "FAIL", 1, stage, *facts)


def ladder_of(reference: Results, candidate: Results, **header: object) -> Ladder:
    """A clean ladder of a Q8_0 pair: what each image measures varies, as it does."""
    generator = random.Random(11)
    spread = generator.lognormvariate
    rows = {}
    for key, row in reference.rows.items():
        rows[key] = Measured(
            key=key,
            image_id=row.image_id,
            decoded_equal=None,
            pixels_equal=True,
            tiles=(2, 2),
            tiles_bytes=0,
            tiles_bytes_share=0.0,
            tiles_floats=1.2e-7,
            tokens_equal=True,
            tokens_first=None,
            embeddings_error=0.009 * spread(0, 0.1),
            embeddings_cosine=0.9999,
            logits_kl=5e-5 * spread(0, 1.0),
            logits_kl_labels=None,
            logits_top1_equal=True,
            logits_max=0.02,
            generated_equal=True,
            label_equal=True,
        )
        rows[key] = follow(rows[key], row, candidate.rows[key])
    values: dict[str, object] = {
        "reference_sha256": header_digest(reference.header),
        "candidate_sha256": header_digest(candidate.header),
        "contract_sha256": reference.header.contract_sha256,
        "dataset_sha256": reference.header.dataset_sha256,
        "text_type": "Q8_0",
        "mmproj_type": "Q8_0",
        "kv_type": "q4_0/q4_0",
        "floor": FLOOR,
    }
    return Ladder(LadderHeader.model_validate(values | header), rows)


def change_ladder(ladder: Ladder, change: Callable[[Measured], dict[str, object]], count: int | None = None) -> Ladder:
    """With the first ``count`` rows changed, all by default."""
    rows = dict(ladder.rows)
    for key in list(rows)[:count]:
        rows[key] = rows[key].model_copy(update=change(rows[key]))
    return replace(ladder, rows=rows)


def write_results(side: Results, path: Path) -> None:
    """The side's whole file."""
    path.unlink(missing_ok=True)
    with ResultsWriter(path, side.header, side.rows) as writer:
        for row in side.rows.values():
            writer.append(row)


def write_ladder(ladder: Ladder, path: Path) -> None:
    """The ladder's whole file."""
    with LadderWriter(path, ladder.header, ladder.rows) as writer:
        for row in ladder.rows.values():
            writer.append(row)


def reseal(path: Path) -> None:
    """Make a changed file of lines vouch for itself again: its header's count and its closing line are made anew."""
    first, *rest = path.read_bytes().splitlines(keepends=True)
    rows = [line for line in rest if b'"kind":"end"' not in line]
    head = json.dumps(json.loads(first) | {"images": len(rows)}, separators=(",", ":"), ensure_ascii=False)
    content = b"".join([head.encode() + b"\n", *rows])
    path.write_bytes(content + line_of(EndLine(rows=len(rows), sha256=sha256_bytes(content))))


def cut(path: Path, rows: int, torn: int = 0) -> None:
    """Leave a whole file as a run does that is killed after ``rows`` rows and ``torn`` bytes of the next one."""
    lines = path.read_bytes().splitlines(keepends=True)
    kept = b"".join(lines[: rows + 1])
    path.write_bytes(kept + lines[rows + 1][:torn])
    written_beside(path).write_text(f"{len(kept)} {sha256_bytes(kept)}\n")
