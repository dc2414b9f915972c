"""Faults of what the two sides are given. Each changes one thing of a :class:`parity.studies.selftest.bench.Bench`."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from parity.compare.samples import Sample
from parity.judge.goldens import GOLDENS, letterbox_gate
from parity.results import Results, Row
from parity.studies.selftest.bench import Bench, Evidence
from parity.studies.selftest.forge import Draft
from pipeline.contract import Contract
from pipeline.core.files import sha256_bytes
from pipeline.letterbox import letterbox

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
OLD_MARKER = "<__image__>"
"""What libmtmd's marker was called before ``<__media__>``."""


def changed(contract: Contract, **changes: dict[str, Any] | Any) -> Contract:
    """A contract with other values, in a part of it where a dict is given. Raises UserError as a recipe does."""
    data = contract.model_dump()
    for key, value in changes.items():
        data[key] = data[key] | value if isinstance(value, dict) else value
    return Contract.model_validate(data)


# --- provenance and runtime: what a side says of itself --------------------------------------------------------------


def stated(bench: Bench, **values: Any) -> Evidence:
    """The candidate's header says something else."""
    candidate = bench.saved.candidate
    return replace(bench.saved, candidate=replace(candidate, header=candidate.header.model_copy(update=values)))


def other_contract(bench: Bench) -> Evidence:
    """The contract before its last change."""
    return stated(
        bench, contract_sha256=changed(bench.contract, max_new_tokens=bench.contract.max_new_tokens + 1).digest
    )


def other_dataset(bench: Bench) -> Evidence:
    """The dataset before its last change."""
    return stated(bench, dataset_sha256=sha256_bytes(b"another dataset"))


def other_weights(bench: Bench) -> Evidence:
    """The files of the training before this one."""
    return stated(bench, weights_sha256=sha256_bytes(b"another training"))


def other_llama(bench: Bench) -> Evidence:
    """A llama.cpp of another week."""
    return stated(bench, versions=bench.saved.candidate.header.versions | {"llama-cpp-python": "0.3.16"})


def with_runtime(
    bench: Bench, contract: Contract, ran: dict[str, Any], samples: Sequence[Sample] | None = None
) -> Evidence:
    """Run with ``ran`` where ``contract`` has something else, and say so in the header; a few samples do."""
    runtime = contract.runtime.model_dump(mode="json")
    said = bench.saved.candidate.header.runtime | runtime | ran
    said["n_threads"] = bench.saved.candidate.header.runtime.get("n_threads")
    seen = bench.run_candidate(contract=changed(contract, runtime=ran), runtime=said, samples=samples or bench.few)
    return bench.compared(seen, contract=contract)


def f16_cache(bench: Bench) -> Contract:
    """The run's contract for an app whose KV cache is F16."""
    return changed(bench.contract, runtime={"type_k": "f16", "type_v": "f16", "flash_attn": True})


def kv_cache(bench: Bench) -> Evidence:
    """KV cache Q4_0 where the contract has F16."""
    return with_runtime(bench, f16_cache(bench), {"type_k": "q4_0", "type_v": "q4_0"})


def f16_cache_kept(bench: Bench) -> Evidence:
    """KV cache F16 where the contract has F16."""
    return with_runtime(bench, f16_cache(bench), {}, bench.samples)


def no_flash_attention(bench: Bench) -> Evidence:
    """Flash attention off where the contract has it on (a quantized cache would not load)."""
    return with_runtime(bench, f16_cache(bench), {"flash_attn": False})


def other_window(bench: Bench) -> Evidence:
    """Twice the app's context window."""
    return with_runtime(bench, bench.contract, {"n_ctx": 2 * bench.contract.runtime.n_ctx})


# --- letterbox, decoded, pixels --------------------------------------------------------------------------------------


def goldens(bench: Bench) -> Evidence:
    """One of Android's own pictures, decoded otherwise than when Android was asked."""
    folder = bench.scratch / "goldens"
    shutil.copytree(GOLDENS, folder, dirs_exist_ok=True)
    for path in sorted((folder / "files").glob("*.jpg"))[:1]:
        with Image.open(path) as image:
            image.load()
        image.save(path, quality=60)
    return replace(bench.saved, checks=(letterbox_gate(folder),))


def jpeg(bench: Bench) -> Evidence:
    """The candidate decodes JPEG copies of the dataset's pictures."""
    folder = bench.scratch / "jpeg"
    folder.mkdir(exist_ok=True)
    files, canvases = [], []
    for number, sample in enumerate(bench.few):
        files.append(folder / f"{number}.jpg")
        Image.fromarray(sample.rgb).save(files[-1], quality=90)
        with Image.open(files[-1]) as image:
            canvases.append(np.asarray(image.convert("RGB")))
    return bench.compared(bench.run_candidate(samples=bench.few, files=files, canvases=canvases))


def letterboxed(bench: Bench, key: str, values: tuple[str, str]) -> Evidence:
    """Letterbox photos with ``contract.image.<key>`` the first of ``values`` that the contract does not have."""
    photos, samples, reference = bench.make_photos()
    wrong = next(value for value in values if value != getattr(bench.contract.image, key))
    contract = changed(bench.contract, image={key: wrong})
    canvases = [np.asarray(letterbox(photo, contract)) for photo in photos]
    return bench.compared(bench.run_candidate(samples=samples, canvases=canvases), reference)


def right_letterbox(bench: Bench) -> Evidence:
    """The same photos, letterboxed as the contract has it."""
    _, samples, reference = bench.make_photos()
    return bench.compared(bench.run_candidate(samples=samples), reference)


def swapped_channels(bench: Bench) -> Evidence:
    """Red and blue exchanged in what the model is handed."""
    canvases = [sample.rgb[..., ::-1] for sample in bench.few]
    return bench.compared(bench.run_candidate(samples=bench.few, canvases=canvases))


# --- tiles and tokens ------------------------------------------------------------------------------------------------


def normalization(bench: Bench, key: str, values: tuple[float, ...]) -> Evidence:
    """The mean or the standard deviation that CLIP has."""
    return bench.with_vision(lambda draft: draft.set(f"clip.vision.{key}", *values), samples=bench.few)


def tile_plan(bench: Bench) -> Evidence:
    """A preproc_image_size of 2x2 tiles, or of 1x1 where the contract has more."""
    size = bench.read_vision().value("clip.vision.image_size") * (2 if bench.contract.tiling.grid == 1 else 1)
    return bench.with_vision(lambda draft: draft.set("clip.vision.preproc_image_size", size), samples=bench.few)


def no_overview(bench: Bench) -> Evidence:
    """The reference is run as HF's own processor has it: one picture where libmtmd makes tile and overview."""
    one = changed(bench.contract, tiling={"plan": "overview", "grid": 1})
    return bench.compared(bench.run_candidate(samples=bench.few), bench.run_reference(one, bench.few))


def prompt(bench: Bench, change: Callable[[Contract], dict[str, Any]]) -> Evidence:
    """The app has another prompt than its contract."""
    wrong = changed(bench.contract, **change(bench.contract))
    return bench.compared(bench.run_candidate(contract=wrong, samples=bench.few))


def _newline(contract: Contract) -> dict[str, Any]:
    return {"prompt_template": contract.prompt_template + "\n"}


def _reworded(contract: Contract) -> dict[str, Any]:
    before, after = contract.prompt_template.split(contract.media_marker)
    return {"prompt_template": f"{before}{contract.media_marker}\nWhat is this? {{labels}}.{after[-9:]}"}


def _marker(contract: Contract) -> dict[str, Any]:
    template = contract.prompt_template.replace(contract.media_marker, OLD_MARKER + contract.media_marker)
    return {"prompt_template": template, "media_marker": OLD_MARKER}


def _labels(contract: Contract) -> dict[str, Any]:
    return {"labels": contract.labels[::-1]}


def bos(bench: Bench) -> Evidence:
    """A GGUF that wants a BOS, and an app that lets llama.cpp add what the GGUF wants."""
    wanted = not bench.contract.add_bos
    return bench.with_text(
        lambda draft: draft.set("tokenizer.ggml.add_bos_token", wanted),
        contract=changed(bench.contract, add_bos=wanted),
        samples=bench.few,
    )


def _word(bench: Bench) -> tuple[int, str]:
    """(id, text) of the longest token of the prompt's text."""
    words = bench.read_text().value("tokenizer.ggml.tokens")
    ids = [token for token in bench.saved.reference.header.prompt_token_ids if token >= 0]
    plain = [token for token in ids if not words[token].startswith("<")]
    longest = max(plain, key=lambda token: len(words[token]))
    return longest, words[longest]


def vocabulary(bench: Bench) -> Evidence:
    """Two tokens have changed places, as in the vocabulary of another revision."""
    token, text = _word(bench)
    words = bench.read_text().value("tokenizer.ggml.tokens")
    used = set(bench.saved.reference.header.prompt_token_ids)
    same_length = (i for i, word in enumerate(words) if len(word.encode()) == len(text.encode()) and i not in used)
    other = next(same_length)

    def change(draft: Draft) -> None:
        texts = draft.values("tokenizer.ggml.tokens")
        texts[token][:], texts[other][:] = texts[other].copy(), texts[token].copy()

    return bench.with_text(change, samples=bench.few)


def merges(bench: Bench) -> Evidence:
    """The merge that makes one of the prompt's words is missing."""
    _, text = _word(bench)
    pairs = bench.read_text().value("tokenizer.ggml.merges")
    making = [i for i, pair in enumerate(pairs) if pair.replace(" ", "") == text]
    filler = next(pair for pair in pairs if len(pair.encode()) == len(pairs[making[0]].encode()) and pair != text)

    def change(draft: Draft) -> None:
        texts = draft.values("tokenizer.ggml.merges")
        for index in making:
            texts[index][:] = np.frombuffer(filler.encode(), np.uint8)

    return bench.with_text(change, samples=bench.few)


# --- rows ------------------------------------------------------------------------------------------------------------


def with_rows(bench: Bench, rows: dict[str, Row]) -> Evidence:
    """The candidate's results file has other rows; no ladder was walked, as with a phone's."""
    return replace(bench.saved, candidate=Results(bench.saved.candidate.header, rows), ladder=None)


def shuffled(bench: Bench, hidden: bool) -> Evidence:
    """Each image has the row of the next but its key, name and truth; ``hidden``: its hash, too."""
    rows = list(bench.saved.candidate.rows.values())
    kept = ("key", "image_id", "truth", *(["rgb_sha256"] if hidden else []))
    return with_rows(
        bench,
        {
            row.key: other.model_copy(update={name: getattr(row, name) for name in kept})
            for row, other in zip(rows, rows[1:] + rows[:1], strict=True)
        },
    )


def mislabelled(bench: Bench) -> Evidence:
    """The candidate's list of truths has one label changed."""
    rows = dict(bench.saved.candidate.rows)
    key, row = next(iter(rows.items()))
    wrong = next(label for label in bench.contract.labels if label != row.truth)
    return with_rows(bench, rows | {key: row.model_copy(update={"truth": wrong})})


def truncated(bench: Bench) -> Evidence:
    """A download that ended early."""
    path: Path = bench.scratch / f"truncated-{bench.model.name}"
    with open(bench.model, "rb") as file:
        path.write_bytes(file.read(bench.model.stat().st_size // 2))
    return bench.compared(bench.run_candidate(model=path))


extra_newline = partial(prompt, change=_newline)
reworded_prompt = partial(prompt, change=_reworded)
marker_as_text = partial(prompt, change=_marker)
labels_in_prompt = partial(prompt, change=_labels)
