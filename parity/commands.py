"""Commands of ``parity`` that need no recipe: any pair, a phone's plan, the families. Thin: parse, call, print.

:mod:`parity.cli` registers them.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import RUNS, Quiet

if TYPE_CHECKING:
    from parity.judge.verdict import Verdict

Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show everything that was measured, not one line per check.")
]
ContractFile = Annotated[
    Path | None,
    typer.Option("--contract", help="Contract file; by default the one beside REFERENCE, if REFERENCE ran under it."),
]
LadderFile = Annotated[
    Path | None,
    typer.Option("--ladder", help="Ladder of the two; by default ladder.jsonl beside REFERENCE, if it is theirs."),
]

MODEL_FILES, PICTURES, LLAMA_CPP = "Model and app", "Pictures and answers", "llama.cpp"
VERDICT, DIVIDING = "Verdict", "Dividing a large run"
"""Headings of the options."""
Shards = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Divide the images into N shards. Without --shard: merge the finished shards and judge.",
        rich_help_panel=DIVIDING,
    ),
]
Shard = Annotated[
    int | None,
    typer.Option(min=1, help="Run only this shard, 1 to N. Needs --shards.", rich_help_panel=DIVIDING),
]


def check(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hugging Face model: a folder, or a hub id.", show_default=False)
    ],
    places: Annotated[
        list[Path],
        typer.Argument(
            metavar="TEXT MMPROJ PHOTOS",
            help="The GGUF of the language half, the GGUF of the vision half (leave both out with --hf), and the"
            " pictures: a folder, a folder with one sub-folder per class, or a table (labels.json, CSV, JSON lines).",
            show_default=False,
        ),
    ],
    hf: Annotated[
        str | None,
        typer.Option(
            "--hf", "-hf", help="Take both GGUFs from the hub, as in owner/name:Q8_0.", rich_help_panel=MODEL_FILES
        ),
    ] = None,
    labels: Annotated[
        str,
        typer.Option(
            help="Classes, separated by commas. Without them, the answers are open.", rich_help_panel=PICTURES
        ),
    ] = "",
    answers: Annotated[
        str | None, typer.Option(help="Column of the table with the expected answers.", rich_help_panel=PICTURES)
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="How answers are scored: exact_match, or module:function.", rich_help_panel=PICTURES),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="The question. {column} in it stands for the picture's own value.", rich_help_panel=PICTURES),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option(
            help="Send the prompt without a chat template; <__media__> is the picture.",
            rich_help_panel=PICTURES,
            show_default=False,
        ),
    ] = False,
    contract: Annotated[
        Path | None,
        typer.Option(help="An app's contract: its letterbox, prompt, labels and runtime.", rich_help_panel=MODEL_FILES),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="LoRA adapter that is not merged into MODEL.", rich_help_panel=MODEL_FILES)
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", "-n", min=1, help="Longest answer, in tokens.", rich_help_panel=PICTURES),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Use at most N pictures, spread evenly over all.", rich_help_panel=PICTURES),
    ] = None,
    ctx: Annotated[
        int | None,
        typer.Option(
            "--ctx-size",
            "-c",
            min=0,
            help="Context size, in tokens; by default, what is needed.",
            rich_help_panel=LLAMA_CPP,
        ),
    ] = None,
    cache_type_k: Annotated[
        str | None,
        typer.Option(
            "--cache-type-k", "-ctk", help="Type of the cache's keys: f16, q8_0, q4_0, ...", rich_help_panel=LLAMA_CPP
        ),
    ] = None,
    cache_type_v: Annotated[
        str | None,
        typer.Option(
            "--cache-type-v",
            "-ctv",
            help="Type of the cache's values: f16, q8_0, q4_0, ...",
            rich_help_panel=LLAMA_CPP,
        ),
    ] = None,
    flash_attn: Annotated[
        str | None,
        typer.Option("--flash-attn", "-fa", help="Flash attention: auto, on or off.", rich_help_panel=LLAMA_CPP),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", "-t", min=1, help="Threads of llama.cpp.", rich_help_panel=LLAMA_CPP)
    ] = None,
    image_min_tokens: Annotated[
        int | None, typer.Option(min=1, help="Fewest tokens per picture.", rich_help_panel=LLAMA_CPP)
    ] = None,
    image_max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens per picture.", rich_help_panel=LLAMA_CPP)
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            help="Percentage points that accuracies or scores may differ by; by default 3.", rich_help_panel=VERDICT
        ),
    ] = None,
    noise_factor: Annotated[
        float | None, typer.Option(help="Factor on the measured limits; by default 1.", rich_help_panel=VERDICT)
    ] = None,
    agreement: Annotated[
        float | None,
        typer.Option(help="Share of the answers' tokens that must agree; by default 0.95.", rich_help_panel=VERDICT),
    ] = None,
    layers: Annotated[
        bool,
        typer.Option(
            help="Where a half differs, compare its layers to find the first that does.",
            rich_help_panel=VERDICT,
            show_default=False,
        ),
    ] = False,
    baseline: Annotated[
        Path | None, typer.Option(help="Fail if this check is worse than this baseline.", rich_help_panel=VERDICT)
    ] = None,
    shards: Shards = None,
    shard: Shard = None,
    low_memory: Annotated[
        bool, typer.Option(help="Keep only one model in memory at a time; slower.", show_default=False)
    ] = False,
    gpu: Annotated[bool, typer.Option(help="Run both sides on the GPU.", show_default=False)] = False,
    out: Annotated[Path | None, typer.Option(help="Folder to write into; by default runs/check-MODEL.")] = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    from rich.console import Console

    from parity.pairs.check import check_job
    from parity.pairs.hub import fetch_pair
    from parity.report.brief import next_steps
    from parity.report.screen import print_verdict

    wanted = ["PHOTOS"] if hf else ["TEXT", "MMPROJ", "PHOTOS"]
    if len(places) != len(wanted):
        raise typer.BadParameter(f"behind MODEL come {', '.join(wanted)}", param_hint="TEXT MMPROJ PHOTOS")
    text, mmproj, photos = places if hf is None else (*fetch_pair(hf), places[0])
    names = tuple(name.strip() for name in labels.split(",")) if labels else ()
    folder = out or RUNS / f"check-{Path(model).name}"
    verdict = check_job(
        model, text, mmproj, photos, labels=names, answers=answers, metric=metric, prompt=prompt, raw=raw,
        contract=contract, adapter=adapter, max_new_tokens=max_new_tokens, limit=limit, out=folder, layers=layers,
        baseline=baseline, shards=shards, shard=shard, low_memory=low_memory, gpu=gpu, quiet=quiet, margin=margin,
        noise_factor=noise_factor, agreement=agreement, ctx=ctx, type_k=cache_type_k, type_v=cache_type_v,
        flash_attn=flash_attn, threads=threads, image_min_tokens=image_min_tokens, image_max_tokens=image_max_tokens,
    )  # fmt: skip
    if verdict is None:
        return
    then = [] if quiet else next_steps(verdict, folder / "report.html", verbose)
    print_verdict(verdict, Console(soft_wrap=False), verbose, then)
    tell_github(verdict)
    sys.exit(verdict.exit_code)


def plan(
    reference: Annotated[Path, typer.Argument(help="Results of the reference side (Hugging Face).")],
    host: Annotated[Path, typer.Argument(help="Results of llama.cpp on this machine, for all images.")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write; by default plan.json beside HOST.", show_default=False)
    ] = None,
    contract: ContractFile = None,
    ladder: LadderFile = None,
    margin: Annotated[
        float | None, typer.Option(help="Percentage points, in place of the contract's gate.margin_points.")
    ] = None,
    census: Annotated[int, typer.Option(help="Always include the N images with the host's smallest margins.")] = 0,
    class_checks: Annotated[
        int, typer.Option(help="Always include N images of each class; they can only fail the phone.")
    ] = 5,
    block: Annotated[int, typer.Option(help="Begin with N images of all kinds, so that a FAIL can show early.")] = 30,
    budget: Annotated[
        int | None, typer.Option(help="Let the phone answer at most N images; by default all that can count.")
    ] = None,
    seed: Annotated[
        str | None, typer.Option(help="64 hex digits that make the same plan again; the verdict then says so.")
    ] = None,
) -> None:
    from rich.console import Console

    from parity.judge.beside import find_app_contract, find_ladder
    from parity.judge.goldens import checks_of
    from parity.judge.phone import draw_plan
    from parity.judge.plan import PLAN, Wishes, write_plan
    from parity.report.planned import print_plan
    from parity.results import read_results
    from pipeline.core.settings import validate

    path = out or host.parent / PLAN
    ours, theirs = read_results(reference), read_results(host)
    meant = find_app_contract(contract, reference, ours)
    asked = {"census": census, "class_checks": class_checks, "block": block, "budget": budget}
    asked["margin_points"] = meant.gate.margin_points if margin is None else margin  # type: ignore[assignment]
    wishes = validate(Wishes, asked, "the plan asked for")
    walked = find_ladder(ladder, reference, ours, [theirs])
    places = [path.parent, host.parent]
    made = draw_plan(ours, theirs, meant, wishes, places, checks_of(meant), walked, seed)
    write_plan(made, path)
    print_plan(made, path, Console())


def families(
    names: Annotated[list[str] | None, typer.Argument(help="Families to check; by default all.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write into; by default runs/families.", show_default=False)
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Make what is found the expectation, in docs/.")] = False,
    quiet: Quiet = False,
) -> None:
    from rich.console import Console

    from parity.studies.families.suite import run_families
    from parity.studies.families.table import compare, exit_code, print_families, read_families, write_expected
    from pipeline.core.progress import Reporter
    from pipeline.core.toolchain import ROOT, other_llama_cpp

    other = other_llama_cpp()
    folder = out or RUNS / ("families-other" if other else "families")
    reporter = Reporter(Console(stderr=True), quiet)
    if other:
        reporter.say("llama.cpp", other)
    docs = ROOT / "docs"
    expected = None if write else read_families(docs / "families.json")
    found = run_families(names or (), folder, reporter)
    if write:
        write_expected(docs, found)
    changes = compare(expected or found, found)
    print_families(found, changes, Console())
    sys.exit(exit_code(changes))


def tell_github(verdict: "Verdict") -> None:
    """Inside a GitHub workflow: print the verdict's annotations and append to the job's summary."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    from parity.report.summary import annotations, summary

    typer.echo(annotations(verdict), nl=False)
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(summary(verdict))
        except OSError as error:  # the verdict stands all the same
            typer.echo(f"note: GITHUB_STEP_SUMMARY {path} cannot be written: {error.strerror}", err=True)
