"""``parity check`` and :func:`parity.check`: from what a user gives to a verdict."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from parity.compare.photos import load_photos
from parity.judge.baseline import read_baseline
from parity.judge.verdict import Verdict
from parity.pairs.canvases import applies
from parity.pairs.job import Check
from parity.pairs.opening import AnyPair, Opened
from parity.terms import CheckTerms, ToolRuntime
from pipeline.contract import load_contract
from pipeline.core.errors import UserError
from pipeline.core.files import clear_left, lock
from pipeline.core.progress import Reporter
from pipeline.core.settings import validate

DEFAULT_PROMPT = "Describe this image."


def check(model: str | Path, text: str | Path, mmproj: str | Path, photos: str | Path, **options: Any) -> Verdict:
    """Judge whether a GGUF pair answers as a Hugging Face model does, on any pictures.

    ``model``: a folder or an id on the hub. ``text``, ``mmproj``: GGUF files. ``photos``: a folder, class folders, or a
    table (labels.json, CSV, JSON lines). ``options``: those of :func:`check_job` but for ``shard``.

    Raises UserError for what cannot be compared.
    """
    verdict = check_job(model, text, mmproj, photos, **options)
    if verdict is None:
        raise UserError("one shard alone has no verdict: leave shard out")
    return verdict


def check_job(
    model: str | Path,
    text: str | Path,
    mmproj: str | Path,
    photos: str | Path,
    *,
    labels: Sequence[str] = (),
    answers: str | None = None,
    metric: str | None = None,
    prompt: str | None = None,
    raw: bool = False,
    contract: str | Path | None = None,
    adapter: str | Path | None = None,
    max_new_tokens: int | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    layers: bool = False,
    baseline: str | Path | None = None,
    shards: int | None = None,
    shard: int | None = None,
    low_memory: bool = False,
    gpu: bool = False,
    quiet: bool = False,
    margin: float | None = None,
    noise_factor: float | None = None,
    agreement: float | None = None,
    **runtime: Any,
) -> Verdict | None:
    """What ``parity check`` does; None where ``shard`` asks for one part alone.

    ``labels``: the classes; without, answers are compared with each other, and with those of the column ``answers``,
    scored by ``metric`` (:func:`parity.terms.score_of`). ``prompt``: the question, put into each side's chat template;
    with ``raw`` sent as it is, ``<__media__>`` where the picture goes. ``contract``: an app's, which letterboxes, and
    has the prompt, the labels and the runtime. ``adapter``: LoRA that is not merged. ``limit``: at most so many
    pictures. ``out``: by default ``runs/check-<model>``. ``layers``: where a half differs, say at which layer.
    ``baseline``: a committed one, which must not be undercut. ``shards``: parts that the pictures are divided into.
    ``low_memory``: one model at a time. ``runtime``: fields of :class:`parity.terms.ToolRuntime`.

    Raises UserError for what cannot be compared.
    """
    if shard is not None and shards is None:
        raise UserError("one shard is one of --shards N: say how many there are")
    terms = make_terms(
        labels, answers, metric, prompt, raw, contract, max_new_tokens, margin, noise_factor, agreement, runtime
    )
    folder = Path(out) if out else Path("runs") / f"check-{Path(model).name}"
    reporter = Reporter(Console(stderr=True), quiet)
    pair = AnyPair(str(model), Path(text), Path(mmproj), Path(adapter) if adapter else None)
    for half in (pair.text, pair.mmproj):
        if not half.is_file():
            raise UserError(f"{half} is not a file: give the two GGUFs of the pair, text half first")
    app = load_contract(Path(contract)) if contract else None
    if applies(str(model), app):
        # The contract's own engines run, as the contract says: anything else would be stated and not done.
        asked = {"max_new_tokens": max_new_tokens} | runtime
        if given := [name for name, value in asked.items() if value is not None and name != "threads"]:
            raise UserError(
                f"{contract} says {', '.join(given)} already: leave it out, or change a copy of the contract"
            )
    found, notes = load_photos(Path(photos), terms.prompt, terms.labels, answers, terms.image, limit)
    for note in notes:
        reporter.say("photos", note)
    past = read_baseline(Path(baseline)) if baseline else None
    folder.mkdir(parents=True, exist_ok=True)
    with Opened(pair, found, terms, reporter, gpu, low_memory) as opened:
        job = Check(opened, folder, layers, app)
        if shards is not None and shard is not None:  # each shard has a lock of its own
            reporter.say("shard", str(job.shard(shards, shard)))
            return None
        with lock(folder):
            clear_left(folder)
            return job.run(past) if shards is None else job.merge(shards, past)


def make_terms(
    labels: Sequence[str],
    answers: str | None,
    metric: str | None,
    prompt: str | None,
    raw: bool,
    contract: str | Path | None,
    max_new_tokens: int | None,
    margin: float | None,
    noise_factor: float | None,
    agreement: float | None,
    runtime: dict[str, Any],
) -> CheckTerms:
    """What a check was told, with the defaults of what it was not. Raises UserError."""
    given: dict[str, Any] = {"runtime": {key: value for key, value in runtime.items() if value is not None}}
    gate: dict[str, Any] = {}
    if contract:
        app = load_contract(Path(contract))
        if prompt or labels:
            raise UserError("--contract has the prompt and the labels already: leave --prompt and --labels out")
        own = app.runtime
        given |= {
            "name": app.name,
            "labels": app.labels,
            "prompt": app.prompt,
            "raw": True,
            "answer_rule": app.answer_rule,
            "max_new_tokens": app.max_new_tokens,
            "image": app.image.model_dump(),
        }
        if app.image.channel_order != "rgb":
            raise UserError("--contract has channel_order bgr, which only `parity run` can feed: set it to rgb")
        given["runtime"] = {
            "ctx": own.n_ctx,
            "batch": own.n_batch,
            "ubatch": own.n_batch,
            "type_k": own.type_k,
            "type_v": own.type_v,
            "flash_attn": "on" if own.flash_attn else "off",
            "threads": own.n_threads,
        } | given["runtime"]
        gate = app.gate.model_dump()
    else:
        given |= {"labels": tuple(labels), "prompt": prompt or _default_prompt(labels), "raw": raw}
        given["max_new_tokens"] = 32 if labels else 64
    if answers:
        given["metric"] = metric or "exact_match"
    elif metric:
        raise UserError("--metric scores the answers of a column: name it with --answers")
    if max_new_tokens is not None:
        given["max_new_tokens"] = max_new_tokens
    gate |= {"margin_points": margin} if margin is not None else {}
    gate |= {"noise_factor": noise_factor} if noise_factor is not None else {}
    given["gate"] = gate
    if agreement is not None:
        given["open_gate"] = {"agreement": agreement}
    given["runtime"] = validate(ToolRuntime, given["runtime"], "the runtime given").model_dump()
    return validate(CheckTerms, given, "what was given")


def _default_prompt(labels: Sequence[str]) -> str:
    if not labels:
        return DEFAULT_PROMPT
    return f"Classify this image as one of: {', '.join(labels)}. Answer with one word."
