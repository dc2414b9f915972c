"""The command ``parity``: run both sides, judge saved results. Thin: parses, calls, prints."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from parity import commands
from parity.commands import DIVIDING, ContractFile, LadderFile, Shard, Shards, Verbose, tell_github
from parity.examples import EXAMPLES
from pipeline.cli import RUNS, Assignments, Quiet, RecipePath, Runs, open_build, run_app
from pipeline.core.help_pages import Command, Commands, examples, version_flag

if TYPE_CHECKING:
    from parity.judge.verdict import GateResult, Verdict
    from parity.results import Results
    from pipeline.contract import ChannelOrder
    from pipeline.workflow.build import Build

app = typer.Typer(
    help="Prove that the GGUF under llama.cpp answers as the Hugging Face model does.",
    epilog="Exit codes: 0 PASS, 1 FAIL, 2 bad input, 3 INCONCLUSIVE, 4 REFUSED, 70 a bug of this program,"
    " 130 interrupted (run again to resume).",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
RUN, JUDGE, DIAGNOSE, RELEASE = "Run", "Judge", "Diagnose", "Release"


@app.callback()
def _program(version: Annotated[bool, version_flag("parity")] = False) -> None:
    pass


def _command(name: str, group: str, text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command under a heading of the help page; it is ``text``, and its examples."""
    return app.command(name, cls=Command, rich_help_panel=group, help=text, epilog=examples(*EXAMPLES[name]))


FedOrder = Annotated[
    str | None,
    typer.Option(
        "--feed",
        help="Feed llama.cpp rgb or bgr, whatever the contract says. bgr imitates an app whose bridge swaps red and"
        " blue; the results go to parity-bgr, beside those of the real run.",
    ),
]


def _order(value: str | None) -> "ChannelOrder | None":
    if value not in (None, "rgb", "bgr"):
        raise typer.BadParameter(f"{value!r} is neither rgb nor bgr", param_hint="--feed")
    return value  # type: ignore[return-value]


@_command(
    "run",
    RUN,
    "Go from a recipe to the verdict, redoing only what is out of date. Builds the bundle, runs both sides over the"
    " test images, judges them and writes the report.",
)
def run(
    recipe: RecipePath,
    assignments: Assignments = None,
    runs: Runs = RUNS,
    quiet: Quiet = False,
    feed: FedOrder = None,
    ladder: Annotated[
        bool, typer.Option(help="Measure every stage of every image. Without it, only one model is in memory.")
    ] = True,
    baseline: Annotated[Path | None, typer.Option(help="Fail if this run is worse than this baseline.")] = None,
    shards: Shards = None,
    shard: Shard = None,
    ray: Annotated[
        int | None,
        typer.Option(min=1, help="Run the shards on Ray, with N workers at a time.", rich_help_panel=DIVIDING),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="A running Ray cluster: auto, or host:port. By default Ray is started on this machine.",
            rich_help_panel=DIVIDING,
        ),
    ] = None,
    ray_cpus: Annotated[
        int,
        typer.Option(min=1, help="Cores per Ray worker, and threads of each side there.", rich_help_panel=DIVIDING),
    ] = 1,
    ray_gpus: Annotated[
        float,
        typer.Option(min=0, help="GPUs per Ray worker; 0.5 lets two workers share one.", rich_help_panel=DIVIDING),
    ] = 0,
    verbose: Verbose = False,
) -> None:
    from parity.judge.baseline import read_baseline
    from parity.run import Division, results_folder
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
    _end(build, verdict, results_folder(build, _order(feed)), verbose, str(recipe))


def _end(build: "Build", verdict: "Verdict", folder: Path, verbose: bool = False, recipe: str = "") -> NoReturn:
    """Show the verdict that a run wrote into ``folder``, and end with its exit code."""
    from rich.console import Console

    from parity.report.brief import next_steps
    from parity.report.screen import print_verdict

    then = [] if build.reporter.quiet else next_steps(verdict, folder / "report.html", verbose, recipe)
    print_verdict(verdict, Console(soft_wrap=False), verbose, then)
    tell_github(verdict)
    sys.exit(verdict.exit_code)


@_command("hf", RUN, "Run only the Hugging Face side over the test images.")
def hf(recipe: RecipePath, assignments: Assignments = None, runs: Runs = RUNS, quiet: Quiet = False) -> None:
    from parity.run import open_run

    with open_run(open_build(recipe, assignments, runs, quiet)) as job:
        typer.echo(job.answer("hf"))


@_command("llamacpp", RUN, "Run only the llama.cpp side over the test images.")
def llamacpp(
    recipe: RecipePath, assignments: Assignments = None, runs: Runs = RUNS, quiet: Quiet = False, feed: FedOrder = None
) -> None:
    from parity.run import open_run

    with open_run(open_build(recipe, assignments, runs, quiet), _order(feed)) as job:
        typer.echo(job.answer("llamacpp"))


@_command(
    "judge",
    JUDGE,
    "Judge saved results without loading a model. Several candidate files are several runs of one side.",
)
def judge(
    reference: Annotated[Path, typer.Argument(help="Results of the reference side (Hugging Face).")],
    candidates: Annotated[
        list[Path],
        typer.Argument(help="Results of the side to be judged, one file per run. With --plan: HOST, then DEVICE."),
    ],
    contract: ContractFile = None,
    ladder: LadderFile = None,
    plan: Annotated[
        Path | None, typer.Option(help="Judge a phone that answered only some of the images, by this plan.")
    ] = None,
    margin: Annotated[
        float | None, typer.Option(help="Percentage points, in place of the contract's gate.margin_points.")
    ] = None,
    noise_factor: Annotated[
        float | None, typer.Option(help="Factor on the measured limits, in place of gate.noise_factor.")
    ] = None,
    baseline: Annotated[Path | None, typer.Option(help="Fail if the candidate is worse than this baseline.")] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Refuse a candidate that did not run the GGUFs of this bundle.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Also write the HTML page here.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write verdict.json here.")] = None,
    verbose: Verbose = False,
) -> None:
    from rich.console import Console

    from parity.judge.baseline import read_baseline
    from parity.judge.beside import belongs, find_app_contract, find_contract, find_ladder
    from parity.judge.bundle import bundle_gate
    from parity.judge.goldens import checks_of
    from parity.judge.judge import as_judged, judge_runs, write_verdict
    from parity.judge.mistakes import prove_pixels
    from parity.judge.phone import judge_phone
    from parity.judge.plan import read_plan_for
    from parity.report.brief import next_steps
    from parity.report.files import write_page
    from parity.report.saved import canvases, dataset_images
    from parity.report.screen import print_verdict
    from parity.results import read_results
    from pipeline.contract import Contract, Gate
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

    def checks(results: "Results") -> "list[GateResult]":
        return checks_of(meant, results.header) + ([bundle_gate(results.header, bundle)] if bundle else [])

    if planned:
        (_, host), (_, device) = theirs
        app = find_app_contract(contract, reference, ours)
        causes = prove_pixels(ours, device, app, canvas_of)
        verdict = judge_phone(ours, host, device, planned, app, checks(device), walked, limits, past, causes)
    else:
        prove = partial(prove_pixels, contract=meant, canvas_of=canvas_of) if isinstance(meant, Contract) else None
        verdict = judge_runs(ours, theirs, meant, (), walked, limits, past, checks, prove)
    if out:
        write_verdict(verdict, out)
    if report:
        # Of several runs the one that the verdict is of.
        told = next(results for _, results in theirs if results.sha256 == verdict.evidence["candidate"])
        own = walked if walked and belongs(walked, ours, told) else None
        shown = as_judged(ours, told, meant)
        write_page(report, verdict, *shown, own, image_of, reference.parent, meant)
    print_verdict(verdict, Console(), verbose, next_steps(verdict, report, verbose))
    tell_github(verdict)
    sys.exit(verdict.exit_code)


@_command("diff", JUDGE, "Compare two results files, of any sides or runs. Exits with 1 if any answer differs.")
def diff(
    a: Annotated[Path, typer.Argument(help="Results, for example of the last release.")],
    b: Annotated[Path, typer.Argument(help="Results, for example of this release.")],
    out: Annotated[Path | None, typer.Option(help="Also write the comparison here, as JSON.")] = None,
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


@_command(
    "baseline",
    JUDGE,
    "Write a small baseline file to commit. `parity judge --baseline` then fails whatever got worse.",
)
def baseline(
    reference: Annotated[Path, typer.Argument(help="Results of the reference side (Hugging Face).")],
    candidate: Annotated[Path, typer.Argument(help="Results of the side that must not get worse.")],
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


@_command(
    "swap",
    DIAGNOSE,
    "Find which part causes which error, by swapping parts between the sides. The parts are pixels, embeddings,"
    " types and settings.",
)
def swap(
    recipe: RecipePath,
    assignments: Assignments = None,
    runs: Runs = RUNS,
    quiet: Quiet = False,
    samples: Annotated[int, typer.Option(min=1, help="Number of images, spread evenly over all.")] = 64,
    out: Annotated[Path | None, typer.Option(help="Folder to write into; by default the run's swap/.")] = None,
) -> None:
    from rich.console import Console

    from parity.studies.swap.job import swap as make_matrix
    from parity.studies.swap.tables import print_matrix

    print_matrix(make_matrix(open_build(recipe, assignments, runs, quiet), samples, out), Console())


@_command("report", JUDGE, "Rewrite a run's reports from its saved files. No model is loaded.")
def report(
    folder: Annotated[
        Path, typer.Argument(help="A run's folder, such as runs/tiny, or its parity/ folder.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="Write only the HTML page, here; the folder stays as it is.")] = None,
) -> None:
    from contextlib import ExitStack

    from pipeline.core.files import lock

    run = folder if (folder / "verdict.json").exists() else folder / "parity"
    with ExitStack() as stack:
        # Where the reports are replaced, no run may write its own meanwhile.
        for place in (run, run.parent) if out is None else ():
            if (place / ".lock").exists():
                stack.enter_context(lock(place))
        _report(folder, out)


def _report(folder: Path, out: Path | None) -> None:
    from parity.report.files import write_page, write_reports
    from parity.report.saved import read_saved

    saved = read_saved(folder)
    parts = (saved.verdict, saved.reference, saved.candidate, saved.ladder, saved.image_of)
    if out:
        write_page(out, *parts, saved.folder, saved.contract)
    else:
        write_reports(*parts, saved.folder, saved.contract)
    typer.echo(f"{out or saved.folder / 'report.html'}: {saved.verdict.status}, {saved.verdict.n} images")
    tell_github(saved.verdict)


@_command("sign", RELEASE, "Sign a run's results, ladder and verdict as they are. Writes parity.sig beside them.")
def sign(
    folder: Annotated[Path, typer.Argument(help="A run's folder, such as runs/tiny.", show_default=False)],
    key: Annotated[Path, typer.Option(help="PEM file with an elliptic-curve private key.", show_default=False)],
) -> None:
    from parity.judge.evidence import sign_evidence

    typer.echo(f"{sign_evidence(folder, key)}: signs the results, the ladder and the verdict")


@_command(
    "gate",
    RELEASE,
    "Release a run only if its files, judged again, PASS, and an app only if it holds just what was judged. The limits"
    " are the contract's own.",
)
def gate(
    folder: Annotated[Path, typer.Argument(help="A run's folder, such as runs/tiny.", show_default=False)],
    public_key: Annotated[
        Path | None, typer.Option(help="PEM file. Bundle, results and verdict must be signed with its private key.")
    ] = None,
    app: Annotated[
        list[Path] | None, typer.Option(help="The APK or AAB to release. Give each APK of a split app.")
    ] = None,
    package: Annotated[str | None, typer.Option(help="The app's package must be this one.")] = None,
    certificate: Annotated[
        str | None, typer.Option(help="SHA-256 of the certificate that must have signed the app.")
    ] = None,
    libraries: Annotated[
        Path | None,
        typer.Option(
            help="A list of native libraries, a SHA-256 or build id and a name a line, that the app must have."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write what was found here, as JSON.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Also write what was found here, as JUnit XML.")] = None,
) -> None:
    from parity.release.checks import Demands
    from parity.release.gate import gate as gate_release
    from parity.release.gate import shown, write_gate, write_gate_junit
    from pipeline.core.errors import EXIT_FAIL, EXIT_PASS

    demands = Demands(package, certificate, libraries)
    if not app and demands != Demands():
        raise typer.BadParameter("give the app that these are demanded of", param_hint="--app")
    for path in (out, junit):  # of another app, perhaps one that was released
        if path and path.is_file() and not path.is_symlink():
            path.unlink()
    found = gate_release(folder, app or (), demands, public_key)
    for path, write in ((out, write_gate), (junit, write_gate_junit)):
        if path:
            write(found, path)
    typer.echo("\n".join(shown(found)))
    sys.exit(EXIT_PASS if found.released else EXIT_FAIL)


@_command(
    "selftest",
    DIAGNOSE,
    "Plant faults and check that each is caught at its own stage. Exits with 1 if one is not.",
)
def selftest(
    recipe: RecipePath,
    assignments: Assignments = None,
    runs: Runs = RUNS,
    quiet: Quiet = False,
    samples: Annotated[int, typer.Option(min=1, help="Number of images that each fault is tried on.")] = 96,
    only: Annotated[
        list[str] | None, typer.Option(help="Plant only this fault, and write no files. Repeatable.")
    ] = None,
) -> None:
    from rich.console import Console

    from parity.studies.selftest.plant import print_self_test
    from parity.studies.selftest.plant import run as run_self_test
    from pipeline.core.errors import EXIT_FAIL, EXIT_PASS

    done = run_self_test(open_build(recipe, assignments, runs, quiet), samples, only or ())
    print_self_test(done, Console())
    sys.exit(EXIT_PASS if done.passed else EXIT_FAIL)


@_command("sweep", RUN, "Measure and judge every pair of quantizations, and name the smallest that passes.")
def sweep(
    recipe: RecipePath,
    assignments: Assignments = None,
    runs: Runs = RUNS,
    quiet: Quiet = False,
    text: Annotated[
        str, typer.Option(help="Types of the language half, separated by commas.")
    ] = "Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q4_0,F16",
    mmproj: Annotated[str, typer.Option(help="Types of the vision half, separated by commas.")] = "F16,Q8_0",
    samples: Annotated[int | None, typer.Option(help="Number of images, spread evenly; by default all.")] = None,
) -> None:
    from rich.console import Console

    from parity.studies.ship import ship_commands
    from parity.studies.sweep.job import parse_types, sweep_build
    from parity.studies.sweep.table import print_sweep
    from pipeline.core.gguf_types import MmprojType, TextType

    texts, mmprojs = parse_types(text, TextType, "--text"), parse_types(mmproj, MmprojType, "--mmproj")
    build = open_build(recipe, assignments, runs, quiet)
    found = sweep_build(build, texts, mmprojs, samples)
    print_sweep(found, Console(), ship_commands(recipe, assignments or (), None if runs == RUNS else runs))
    build.reporter.say("sweep", f"{build.root / 'sweep' / 'sweep.png'}")
    sys.exit(found.exit_code)


@_command("ship", RUN, "Export and judge the pair that the sweep found, in a run of its own.")
def ship(
    recipe: RecipePath,
    assignments: Assignments = None,
    runs: Runs = RUNS,
    quiet: Quiet = False,
    pair: Annotated[str | None, typer.Option(help="Ship this pair of types, such as Q4_0+Q8_0, instead.")] = None,
) -> None:
    from parity.run import results_folder
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
    _end(variant, verdict, results_folder(variant))


_command("check", RUN, "Judge any two GGUFs against their Hugging Face model, on any pictures. Needs no recipe.")(
    commands.check
)
_command(
    "plan",
    JUDGE,
    "Plan how few images a phone has to answer, before it answers any. Writes plan.json and prints the PASS line.",
)(commands.plan)
_command("families", DIAGNOSE, "Check tiny models of many families against what docs/families.json expects.")(
    commands.families
)


def main() -> None:
    """Entry point of ``parity``."""
    run_app(app)


if __name__ == "__main__":
    main()
