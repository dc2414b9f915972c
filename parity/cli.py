"""The command ``parity``: run both sides, judge saved results. Thin: parses, calls, prints."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from parity import commands
from parity.commands import ContractFile, LadderFile, Verbose, tell_github
from pipeline.cli import RUNS, Assignments, Quiet, RecipePath, Runs, open_build, run_app

if TYPE_CHECKING:
    from parity.judge.verdict import Verdict
    from pipeline.contract import ChannelOrder
    from pipeline.workflow.build import Build

app = typer.Typer(
    help="Prove that the GGUF under llama.cpp answers as the Hugging Face model does.",
    epilog="Exit codes: 0 PASS, 1 FAIL, 2 bad input, 3 INCONCLUSIVE, 4 REFUSED, 70 a bug of this program,"
    " 130 interrupted (run again to resume).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

FedOrder = Annotated[
    str | None,
    typer.Option(
        "--feed",
        help="rgb or bgr: the channel order llama.cpp is really fed, whatever the contract says;"
        " bgr plays an app whose bridge swaps red and blue.",
    ),
]


def _order(value: str | None) -> "ChannelOrder | None":
    if value not in (None, "rgb", "bgr"):
        raise typer.BadParameter(f"{value!r} is neither rgb nor bgr", param_hint="--feed")
    return value  # type: ignore[return-value]


@app.command(help="The main job: from a recipe to the verdict, doing only what is out of date.")
def run(
    recipe: RecipePath,
    assignments: Assignments = None,
    runs: Runs = RUNS,
    quiet: Quiet = False,
    feed: FedOrder = None,
    ladder: Annotated[
        bool, typer.Option(help="Measure every stage of every image; without, one model at a time is in memory.")
    ] = True,
    baseline: Annotated[Path | None, typer.Option(help="Fail where this run is worse than this baseline.")] = None,
    shards: Annotated[
        int | None, typer.Option(min=1, help="Divide the images; alone, put the shards together and judge.")
    ] = None,
    shard: Annotated[int | None, typer.Option(min=1, help="With --shards: do this one alone, 1 to N.")] = None,
    ray: Annotated[int | None, typer.Option(min=1, help="Do the shards on Ray, this many workers at a time.")] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="A running Ray cluster (auto, host:port); this machine by default.")
    ] = None,
    ray_cpus: Annotated[int, typer.Option(min=1, help="Cores of a worker on Ray, and threads of each side there.")] = 1,
    ray_gpus: Annotated[float, typer.Option(min=0, help="GPUs of a worker on Ray; 0.5 puts two workers on one.")] = 0,
    verbose: Verbose = False,
) -> None:
    from parity.judge.baseline import read_baseline
    from parity.run import Division
    from parity.run import run as run_job

    if shard is not None and (shards is None or ray is not None):
        raise typer.BadParameter("one shard is one of --shards N, and not on Ray", param_hint="--shard")
    if not ladder and (shards or ray):
        raise typer.BadParameter("a divided run has a ladder", param_hint="--no-ladder")
    # Shards that are started together each make sure that the bundle is there, one after another.
    build = open_build(recipe, assignments, runs, quiet, wait=shard is not None)
    division = Division(shards, shard, ray, ray_address, ray_cpus, ray_gpus) if shards or ray else None
    verdict = run_job(build, _order(feed), ladder, read_baseline(baseline) if baseline else None, division)
    if verdict is None:
        return
    _end(build, verdict, verbose, str(recipe))


def _end(build: "Build", verdict: "Verdict", verbose: bool = False, recipe: str = "") -> NoReturn:
    """Show a run's verdict and end with its exit code."""
    from rich.console import Console

    from parity.report.brief import next_steps
    from parity.report.screen import print_verdict

    then = [] if build.reporter.quiet else next_steps(verdict, build.root / "parity" / "report.html", verbose, recipe)
    print_verdict(verdict, Console(soft_wrap=False), verbose, then)
    tell_github(verdict)
    sys.exit(verdict.exit_code)


@app.command(help="Run the Hugging Face side alone over the test images.")
def hf(recipe: RecipePath, assignments: Assignments = None, runs: Runs = RUNS, quiet: Quiet = False) -> None:
    from parity.run import open_run

    with open_run(open_build(recipe, assignments, runs, quiet)) as job:
        typer.echo(job.answer("hf"))


@app.command(help="Run the llama.cpp side alone over the test images.")
def llamacpp(
    recipe: RecipePath, assignments: Assignments = None, runs: Runs = RUNS, quiet: Quiet = False, feed: FedOrder = None
) -> None:
    from parity.run import open_run

    with open_run(open_build(recipe, assignments, runs, quiet), _order(feed)) as job:
        typer.echo(job.answer("llamacpp"))


@app.command(help="Judge saved results files; no model is loaded. Several candidates are several runs of one.")
def judge(
    reference: Annotated[Path, typer.Argument(help="Results of the side that is right by definition (hf).")],
    candidates: Annotated[
        list[Path], typer.Argument(help="Results of the side to judge, one file a run; with --plan HOST and DEVICE.")
    ],
    contract: ContractFile = None,
    ladder: LadderFile = None,
    plan: Annotated[
        Path | None, typer.Option(help="Judge a phone's answers to some of the images by this plan.")
    ] = None,
    margin: Annotated[
        float | None, typer.Option(help="Percentage points in place of the contract's gate.margin_points.")
    ] = None,
    noise_factor: Annotated[
        float | None, typer.Option(help="Factor on the measured limits in place of gate.noise_factor.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Committed baseline: to be worse than it is a failure of its own.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="The candidate must have run the GGUFs of this bundle, by their hashes.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the page (HTML) here, too.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write verdict.json here, too.")] = None,
    verbose: Verbose = False,
) -> None:
    from rich.console import Console

    from parity.judge.baseline import read_baseline
    from parity.judge.beside import find_app_contract, find_contract, find_ladder
    from parity.judge.bundle import bundle_gate
    from parity.judge.canvases import prove_pixels
    from parity.judge.goldens import checks_of
    from parity.judge.judge import as_judged, judge_runs, write_verdict
    from parity.judge.phone import judge_phone
    from parity.judge.plan import read_plan_for
    from parity.report.brief import next_steps
    from parity.report.page import render_page
    from parity.report.saved import canvases, dataset_images
    from parity.report.screen import print_verdict
    from parity.results import read_results
    from pipeline.contract import Contract, Gate
    from pipeline.core.files import write_text
    from pipeline.core.settings import validate

    planned = read_plan_for(plan, len(candidates), margin) if plan else None
    ours = read_results(reference)
    meant = find_contract(contract, reference, ours)
    tried = {"margin_points": margin, "noise_factor": noise_factor}
    changed = {key: value for key, value in tried.items() if value is not None}
    limits = validate(Gate, meant.gate.model_dump() | changed, "the limits given")
    # A phone stops where the plan says so, and needs no closing line.
    theirs = [(str(path), read_results(path, bool(plan) and path == candidates[-1])) for path in candidates]
    walked = find_ladder(ladder, reference, ours, [results for _, results in theirs])
    past = read_baseline(baseline) if baseline else None
    image_of = dataset_images(reference.absolute().parent.parent / "dataset")
    canvas_of = canvases(image_of)
    checks = checks_of(meant, theirs[-1][1].header)
    if bundle:
        checks.append(bundle_gate(theirs[-1][1].header, bundle))
    if planned:
        (_, host), (_, device) = theirs
        app = find_app_contract(contract, reference, ours)
        causes = prove_pixels(ours, device, app, canvas_of)
        verdict = judge_phone(ours, host, device, planned, app, checks, walked, limits, past, causes)
    else:
        prove = partial(prove_pixels, contract=meant, canvas_of=canvas_of) if isinstance(meant, Contract) else None
        verdict = judge_runs(ours, theirs, meant, checks, walked, limits, past, prove)
    if out:
        write_verdict(verdict, out)
    if report:
        shown = as_judged(ours, theirs[-1 if not planned else 0][1], meant)
        write_text(report, render_page(verdict, *shown, walked, image_of))
    print_verdict(verdict, Console(), verbose, next_steps(verdict, report, verbose))
    tell_github(verdict)
    sys.exit(verdict.exit_code)


@app.command(help="Compare two results files of any sides or runs. Exit code 1 where an answer differs.")
def diff(
    a: Annotated[Path, typer.Argument(help="Results, for example of the last release.")],
    b: Annotated[Path, typer.Argument(help="Results, for example of this one.")],
    out: Annotated[Path | None, typer.Option(help="Write the comparison here as JSON, too.")] = None,
) -> None:
    from rich.console import Console

    from parity.results import read_results
    from parity.studies.diff import compare, print_comparison
    from pipeline.core.files import write_json

    found = compare(read_results(a), read_results(b), (str(a), str(b)))
    if out:
        write_json(out, found.model_dump(mode="json"))
    print_comparison(found, Console())
    sys.exit(found.exit_code)


@app.command(help="Write a small baseline file to commit: `judge --baseline` then fails what got worse.")
def baseline(
    reference: Annotated[Path, typer.Argument(help="Results of the side that is right by definition (hf).")],
    candidate: Annotated[Path, typer.Argument(help="Results of the side whose level is to be kept.")],
    out: Annotated[Path, typer.Option(help="The file to write, for example baselines/tiny.json.")],
    contract: ContractFile = None,
    ladder: LadderFile = None,
) -> None:
    from parity.judge.baseline import make_baseline, write_baseline
    from parity.judge.beside import find_contract, find_ladder
    from parity.judge.goldens import checks_of
    from parity.judge.judge import as_judged
    from parity.judge.judge import judge as judge_results
    from parity.results import read_results

    ours, theirs = read_results(reference), read_results(candidate)
    walked = find_ladder(ladder, reference, ours, [theirs])
    meant = find_contract(contract, reference, ours)
    verdict = judge_results(ours, theirs, meant, checks_of(meant), walked)
    write_baseline(make_baseline(verdict, as_judged(ours, theirs, meant)[1]), out)
    typer.echo(
        f"{out}: {theirs.header.side}, {verdict.candidate.accuracy:.2%} right of {verdict.n} images, {verdict.status}"
    )


@app.command(help="Put one side's pixels, embeddings, types and settings into the other: which part makes which error.")
def swap(
    recipe: RecipePath,
    assignments: Assignments = None,
    runs: Runs = RUNS,
    quiet: Quiet = False,
    samples: Annotated[int, typer.Option(min=1, help="Images to try, taken evenly over all.")] = 64,
    out: Annotated[Path | None, typer.Option(help="Folder to write into; by default swap in the run's.")] = None,
) -> None:
    from rich.console import Console

    from parity.studies.swap.job import swap as make_matrix
    from parity.studies.swap.tables import print_matrix

    print_matrix(make_matrix(open_build(recipe, assignments, runs, quiet), samples, out), Console())


@app.command(help="Make the reports of a run again from its saved files; no model is loaded.")
def report(
    folder: Annotated[
        Path, typer.Argument(help="A run's folder, such as runs/tiny, or the parity folder in it.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="Write the page alone, here, and leave the folder as it is.")] = None,
) -> None:
    from parity.report.files import write_reports, written_at
    from parity.report.page import render_page
    from parity.report.saved import read_saved
    from pipeline.core.files import write_text

    saved = read_saved(folder)
    parts = (saved.verdict, saved.reference, saved.candidate, saved.ladder, saved.image_of)
    if out:
        written = written_at(saved.folder / f"{saved.candidate.header.side}.results.jsonl")
        write_text(out, render_page(*parts, written=written))
    else:
        write_reports(*parts, saved.folder)
    typer.echo(f"{out or saved.folder / 'report.html'}: {saved.verdict.status}, {saved.verdict.n} images")
    tell_github(saved.verdict)


@app.command(help="Sign a run's results, ladder and verdict, as they are: writes parity.sig beside them.")
def sign(
    folder: Annotated[Path, typer.Argument(help="A run's folder, such as runs/tiny.", show_default=False)],
    key: Annotated[Path, typer.Option(help="PEM file with an elliptic-curve private key.", show_default=False)],
) -> None:
    from parity.judge.evidence import sign_evidence

    typer.echo(f"{sign_evidence(folder, key)}: signs the results, the ladder and the verdict")


@app.command(help="Let a run through for release: judged again from its files, PASS under the contract's own limits.")
def gate(
    folder: Annotated[Path, typer.Argument(help="A run's folder, such as runs/tiny.", show_default=False)],
    public_key: Annotated[
        Path | None, typer.Option(help="PEM file; bundle, results and verdict must be signed by its owner.")
    ] = None,
) -> None:
    from parity.release import require_release

    typer.echo("\n".join(require_release(folder, public_key)))


@app.command(
    help="Plant faults one at a time on a recipe's run: each must be caught at its own stage, else exit code 1."
)
def selftest(
    recipe: RecipePath,
    assignments: Assignments = None,
    runs: Runs = RUNS,
    quiet: Quiet = False,
    samples: Annotated[int, typer.Option(min=1, help="Images that each fault is run on.")] = 96,
    only: Annotated[
        list[str] | None, typer.Option(help="Plant this fault alone, and write no files. May be repeated.")
    ] = None,
) -> None:
    from rich.console import Console

    from parity.studies.selftest.plant import print_self_test
    from parity.studies.selftest.plant import run as run_self_test
    from pipeline.core.errors import EXIT_FAIL, EXIT_PASS

    done = run_self_test(open_build(recipe, assignments, runs, quiet), samples, only or ())
    print_self_test(done, Console())
    sys.exit(EXIT_PASS if done.passed else EXIT_FAIL)


@app.command(help="Measure and judge every pair of quantizations; names the smallest that passes.")
def sweep(
    recipe: RecipePath,
    assignments: Assignments = None,
    runs: Runs = RUNS,
    quiet: Quiet = False,
    text: Annotated[
        str, typer.Option(help="Types of the language half, commas between them.")
    ] = "Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q4_0,F16",
    mmproj: Annotated[str, typer.Option(help="Types of the vision half, commas between them.")] = "F16,Q8_0",
    samples: Annotated[int | None, typer.Option(help="Images to use, evenly over all; by default all.")] = None,
) -> None:
    from rich.console import Console

    from parity.studies.sweep.job import parse_types, sweep_build
    from parity.studies.sweep.table import print_sweep
    from pipeline.core.gguf_types import MmprojType, TextType

    texts, mmprojs = parse_types(text, TextType, "--text"), parse_types(mmproj, MmprojType, "--mmproj")
    build = open_build(recipe, assignments, runs, quiet)
    found = sweep_build(build, texts, mmprojs, samples)
    print_sweep(found, Console())
    build.reporter.say("sweep", f"{build.root / 'sweep' / 'sweep.png'}")
    sys.exit(found.exit_code)


@app.command(help="Export and judge the pair that a sweep found: the bundle to ship, in a run of its own.")
def ship(
    recipe: RecipePath,
    assignments: Assignments = None,
    runs: Runs = RUNS,
    quiet: Quiet = False,
    pair: Annotated[str | None, typer.Option(help="Ship these types, as in Q4_0+Q8_0, whatever a sweep says.")] = None,
) -> None:
    from parity.run import run as run_job
    from parity.studies.ship import parse_pair, swept_pair, variant_name

    build = open_build(recipe, assignments, runs, quiet)
    build.ensure_merge()
    types = parse_pair(pair) if pair else swept_pair(build)
    changes = [f"name={variant_name(build.recipe.name, types)}"]
    changes += [f"export.{half}_type={kind}" for half, kind in zip(("text", "mmproj"), types, strict=True)]
    variant = open_build(recipe, [*(assignments or []), *changes], runs, quiet)
    verdict = run_job(variant)
    assert verdict is not None
    variant.reporter.say("ship", f"{variant.bundle_folder}")
    _end(variant, verdict)


app.command(help="Any pair: judge two GGUFs by their Hugging Face model, on any pictures. Needs no recipe.")(
    commands.check
)
app.command(
    help="Plan how few images a phone has to answer, before its first: writes plan.json, prints the PASS line."
)(commands.plan)
app.command(help="Tiny models of many families, made, converted, checked: is each as docs/families.json expects?")(
    commands.families
)


def main() -> None:
    """Entry point of ``parity``."""
    run_app(app)


if __name__ == "__main__":
    main()
