"""The command ``parity``: run both sides, judge saved results. Thin: parses, calls, prints."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.cli import RUNS, Assignments, Quiet, RecipePath, Runs, open_build, run_app

app = typer.Typer(
    help="Prove that the GGUF under llama.cpp answers as the Hugging Face model does.",
    epilog="Exit codes: 0 PASS, 1 FAIL, 2 bad input, 130 interrupted (run again to resume).",
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


def _order(value: str | None) -> Literal["rgb", "bgr"] | None:
    if value not in (None, "rgb", "bgr"):
        raise typer.BadParameter(f"{value!r} is neither rgb nor bgr", param_hint="--feed")
    return value  # type: ignore[return-value]


@app.command(help="The main job: from a recipe to the verdict, doing only what is out of date.")
def run(
    recipe: RecipePath, assignments: Assignments = None, runs: Runs = RUNS, quiet: Quiet = False, feed: FedOrder = None
) -> None:
    from rich.console import Console

    from parity.run import run as run_job
    from parity.screen import print_verdict

    build = open_build(recipe, assignments, runs, quiet)
    verdict = run_job(build, _order(feed))
    print_verdict(verdict, Console(soft_wrap=False))
    build.reporter.say("verdict", f"{build.root / 'parity' / 'verdict.json'}")
    sys.exit(verdict.exit_code)


@app.command(help="Run the Hugging Face side alone over the validation images.")
def hf(recipe: RecipePath, assignments: Assignments = None, runs: Runs = RUNS, quiet: Quiet = False) -> None:
    from parity.run import run_side

    typer.echo(run_side(open_build(recipe, assignments, runs, quiet), "hf"))


@app.command(help="Run the llama.cpp side alone over the validation images.")
def llamacpp(
    recipe: RecipePath, assignments: Assignments = None, runs: Runs = RUNS, quiet: Quiet = False, feed: FedOrder = None
) -> None:
    from parity.run import run_side

    typer.echo(run_side(open_build(recipe, assignments, runs, quiet), "llamacpp", _order(feed)))


@app.command(help="Judge two saved results files; no model is loaded.")
def judge(
    reference: Annotated[Path, typer.Argument(help="Results of the side that is right by definition (hf).")],
    candidate: Annotated[Path, typer.Argument(help="Results of the side to judge.")],
    contract: Annotated[
        Path | None, typer.Option(help="Contract file, as in a bundle; the phone's by default.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write verdict.json here, too.")] = None,
) -> None:
    from rich.console import Console

    from parity.goldens import letterbox_gate
    from parity.results import read_results
    from parity.screen import print_verdict
    from parity.verdict import judge as judge_results
    from parity.verdict import write_verdict
    from pipeline.contract import DEFAULT_CONTRACT, load_contract

    verdict = judge_results(
        read_results(reference),
        read_results(candidate),
        load_contract(contract or DEFAULT_CONTRACT),
        [letterbox_gate()],
    )
    if out:
        write_verdict(verdict, out)
    print_verdict(verdict, Console())
    sys.exit(verdict.exit_code)


def main() -> None:
    """Entry point of ``parity``."""
    run_app(app)


if __name__ == "__main__":
    main()
