"""Verdicts with everything a report shows, for the tests of the reports; pictures are made here, too."""

import io
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from sides import ladder_of, results, write_ladder, write_results

from parity.compare.ladder import Ladder, read_ladder
from parity.judge.goldens import letterbox_gate
from parity.judge.judge import judge, write_verdict
from parity.judge.verdict import Verdict
from parity.results import Results, read_results
from pipeline.contract import Contract
from pipeline.core.files import sha256_bytes, write_json

HOSTILE_LABEL = '"><img src=x onerror=hacked=1>'
HOSTILE_ID = "</script><img src=x onerror=hacked=2>"
HOSTILE_TEXT = (
    "]]> {{ 7*7 }} '\"<script>hacked=3</script> | `*_[x](javascript:hacked=4) \u2028\x1b[31m @team ::error::\n# %0A"
)
HOSTILE = Contract(labels=("water", "fire", HOSTILE_LABEL), answer_rule="exact")
COLOURS = {"water": (20, 90, 210), "fire": (230, 80, 10), HOSTILE_LABEL: (40, 160, 60)}


@dataclass(frozen=True)
class Reported:
    """What a report is made of."""

    verdict: Verdict
    reference: Results
    candidate: Results
    ladder: Ladder | None
    pictures: dict[str, bytes]
    """Key -> PNG."""

    @property
    def image_of(self) -> Callable[[str], bytes | None]:
        return self.pictures.get


def picture(colour: tuple[int, int, int], number: int) -> tuple[bytes, str, str]:
    """(PNG of 256 x 256, SHA-256 of its R, G, B bytes, and of its B, G, R bytes): a flat colour with some noise."""
    rgb = np.full((256, 256, 3), colour, np.uint8)
    rgb[:64, :64] = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue(), sha256_bytes(rgb.tobytes()), sha256_bytes(rgb[..., ::-1].tobytes())


def failing(n: int = 150) -> Reported:
    """A FAIL at ``embeddings``: flips of each kind, hostile ids, labels and texts, a candidate that was fed B, G, R in
    its first image and unknown bytes in its second, previews, and an image without a picture (the last)."""
    contract, labels = HOSTILE, HOSTILE.labels
    truths = [labels[number % 3] for number in range(n)]
    ours: list[str | None] = list(truths)
    theirs: list[str | None] = list(truths)
    for number in range(0, 24, 2):
        theirs[number] = labels[(number + 1) % 3]  # right -> wrong
    theirs[4] = None
    for number in range(25, 31):
        ours[number] = labels[(number + 1) % 3]  # wrong -> right
    ours[40], theirs[40] = labels[(40 + 1) % 3], labels[(40 + 2) % 3]
    made = [picture(COLOURS[truth], number) for number, truth in enumerate(truths)]
    sides = []
    for name, answers in (("hf", ours), ("llamacpp", theirs)):
        side = results(list(zip(truths, answers, strict=True)), name, contract, runtime={"fed": "rgb", "n_threads": 2})
        rows = {}
        generator = random.Random(name)
        for number, row in enumerate(side.rows.values()):
            given = made[number][1]
            if name == "llamacpp" and number == 0:
                given = made[number][2]
            elif name == "llamacpp" and number == 2:
                given = "f" * 64
            logprobs = {label: -3.0 + generator.uniform(-1, 1) for label in labels}
            logprobs[row.label or labels[0]] = -0.3
            changes: dict[str, object] = {"key": made[number][1], "rgb_sha256": given, "label_logprobs": logprobs}
            if number == 6:
                changes |= {"image_id": HOSTILE_ID, "text": HOSTILE_TEXT}
            rows[made[number][1]] = row.model_copy(update=changes)
        sides.append(replace(side, rows=rows))
    reference, candidate = sides
    clean = ladder_of(reference, candidate)
    ladder = Ladder(
        clean.header,
        {
            key: row.model_copy(
                update={"embeddings_error": (row.embeddings_error or 0) * (1 if number % 3 == 0 else 60)}
            )
            for number, (key, row) in enumerate(clean.rows.items())
        },
    )
    verdict = judge(reference, candidate, contract, [letterbox_gate()], ladder)
    return Reported(
        verdict, reference, candidate, ladder, {made[number][1]: made[number][0] for number in range(n - 1)}
    )


def passing(n: int = 600) -> Reported:
    """A PASS without a flip, a ladder or a picture."""
    labels = Contract().labels
    answers = [(labels[number % 5], labels[number % 5]) for number in range(n)]
    reference, candidate = results(answers), results(answers, "llamacpp")
    return Reported(judge(reference, candidate, Contract()), reference, candidate, None, {})


def save(made: Reported, root: Path) -> Path:
    """Write a run's folder as ``parity run`` leaves it; returns it."""
    import json

    parity = root / "parity"
    parity.mkdir(parents=True)
    if made.ladder:
        write_ladder(made.ladder, parity / "ladder.jsonl")
    paths = [parity / f"{side.header.side}.results.jsonl" for side in (made.reference, made.candidate)]
    for side, path in zip((made.reference, made.candidate), paths, strict=True):
        write_results(side, path)
    contract = HOSTILE if made.verdict.labels == HOSTILE.labels else Contract()
    write_json(parity / "contract.json", contract.model_dump(mode="json"))
    ladder = read_ladder(parity / "ladder.jsonl") if made.ladder else None
    write_verdict(judge(*map(read_results, paths), contract, [letterbox_gate()], ladder), parity / "verdict.json")
    images = root / "dataset" / "images"
    images.mkdir(parents=True)
    records = []
    for key, data in made.pictures.items():
        (images / f"{key[:16]}.png").write_bytes(data)
        records.append({"rgb_sha256": key, "image_path": f"images/{key[:16]}.png"})
    (root / "dataset" / "val.json").write_text(json.dumps(records), encoding="utf-8")
    return root


def many(n: int) -> Reported:
    """``n`` images with a ladder and 1 % flips, a fifth of them with pictures, which are not the ones hashed."""
    contract = Contract()
    labels = contract.labels
    truths = [labels[number % 5] for number in range(n)]
    answers = [labels[(number + 1) % 5] if number % 100 == 0 else label for number, label in enumerate(truths)]
    reference = results(list(zip(truths, truths, strict=True)))
    candidate = results(list(zip(truths, answers, strict=True)), "llamacpp")
    ladder = ladder_of(reference, candidate)
    shared = [picture((16 * number, 128, 90), number)[0] for number in range(16)]
    pictures = {key: shared[number % 16] for number, key in enumerate(reference.rows) if number % 5 == 0}
    return Reported(judge(reference, candidate, contract, [], ladder), reference, candidate, ladder, pictures)
