"""The command ``pipeline``: photos -> bundle, the whole way or one stage alone. Thin: parses, calls, prints."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.core.errors import UserError
from pipeline.core.help_pages import Command, Commands, examples, version_flag

if TYPE_CHECKING:
    from pipeline.workflow.build import Build

app = typer.Typer(
    help="Make a GGUF bundle from labelled photos: dataset, base model, fine-tuning, merge, export.",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
MAKE, LOOK, RELEASE = "Make a bundle", "Look at a result", "Release"

EXAMPLES = {
    "dataset": (
        "pipeline dataset configs/tiny.yaml",
        "pipeline dataset configs/photos.yaml --set dataset.path=photos",
    ),
    "base": ("pipeline base configs/tiny.yaml",),
    "train": ("pipeline train configs/tiny.yaml --set train.epochs=1",),
    "merge": ("pipeline merge configs/tiny.yaml",),
    "export": (
        "pipeline export configs/tiny.yaml",
        "pipeline export configs/tiny.yaml --set export.text_type=Q4_K_M",
    ),
    "evaluate": ("pipeline evaluate configs/tiny.yaml",),
    "letterbox": ("pipeline letterbox photo.jpg canvas.png",),
    "verify": (
        "pipeline verify runs/tiny/bundle",
        "pipeline verify runs/tiny/bundle --public-key key.pub",
    ),
    "sign": ("pipeline sign runs/tiny/bundle --key key.pem",),
}


@app.callback()
def _program(version: Annotated[bool, version_flag("pipeline")] = False) -> None:
    pass


def _command(name: str, group: str, text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command under a heading of the help page; it is ``text``, and its examples."""
    return app.command(name, cls=Command, rich_help_panel=group, help=text, epilog=examples(*EXAMPLES[name]))


RecipePath = Annotated[Path, typer.Argument(help="A recipe, such as configs/tiny.yaml.", show_default=False)]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change keys of the recipe, as in --set 'train.epochs=1 contract.labels=[a, b c]'. Repeatable.",
    ),
]
Runs = Annotated[Path, typer.Option(help="Folder with one folder per recipe.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress, only the result and errors.")]
RUNS = Path("runs")


def container_image() -> dict[str, str] | None:
    """The container image that this runs in, as what started the container says in PARITY_IMAGE; None elsewhere."""
    stated = os.environ.get("PARITY_IMAGE")
    if not stated:
        return None
    try:
        image = json.loads(stated)
    except ValueError:
        image = None
    if (
        not isinstance(image, dict)
        or image.keys() != {"content_digest", "id", "name"}
        or not all(isinstance(value, str) for value in image.values())
    ):
        raise UserError(
            f"the environment variable PARITY_IMAGE is {stated!r}, not a JSON object with the texts content_digest, id"
            " and name: unset it, or start the container with the project's own runner"
        )
    return image


WAIT_SECONDS = 2.0
"""Between two looks at a folder that another process has."""


def open_build(recipe: Path, assignments: list[str] | None, runs: Path, quiet: bool, wait: bool = False) -> "Build":
    """The run of a recipe file, ready to start. ``wait``: where another process has its folder, until that is done."""
    import tempfile

    from rich.console import Console

    from pipeline.core.files import FolderInUse, clear_left, lock
    from pipeline.core.openmp import settle
    from pipeline.core.progress import Reporter
    from pipeline.recipe import load_recipe
    from pipeline.workflow.build import Build

    try:
        tempfile.gettempdir()
    except FileNotFoundError:  # torch would not even load
        raise UserError(
            "no folder for temporary files can be written, neither $TMPDIR nor /tmp nor /var/tmp: set TMPDIR to one"
        ) from None
    image = container_image()
    loaded = load_recipe(recipe, tuple(assignments or ()))
    root = runs / loaded.name
    threads = loaded.contract.runtime.threads(os.cpu_count() or 1)
    reporter = Reporter(Console(stderr=True), quiet)
    while True:
        try:
            held = lock(root)
            break
        except FolderInUse as error:
            if not wait:
                raise
            reporter.say("wait", str(error).partition(":")[0])
            time.sleep(WAIT_SECONDS)
    clear_left(root)
    settle(reporter.say)
    return Build(loaded, root, reporter, threads, held, image)


def _stage(name: str, text: str) -> None:
    def command(recipe: RecipePath, assignments: Assignments = None, runs: Runs = RUNS, quiet: Quiet = False) -> None:
        from pipeline.workflow.build import STAGES

        stages = STAGES[: STAGES.index(name) + 1]
        getattr(open_build(recipe, assignments, runs, quiet).counting(stages), f"ensure_{name}")()

    _command(name, MAKE, text + " Earlier stages are run where they are out of date.")(command)


_stage("dataset", "Generate or import the labelled pictures, letterboxed exactly as on the phone.")
_stage("base", "Make, check or fetch the model to start from.")
_stage("train", "Fine-tune with LoRA. If it was interrupted, run it again to resume.")
_stage("merge", "Merge the adapter into the base model and check that nothing was lost.")
_stage("export", "Write the bundle: both GGUFs, re-opened and checked, the contract and a manifest.")


@_command("evaluate", LOOK, "Evaluate the fine-tuned model on the test images: accuracy, confusion matrix, errors.")
def evaluate(recipe: RecipePath, assignments: Assignments = None, runs: Runs = RUNS, quiet: Quiet = False) -> None:
    from pipeline.evaluation import evaluation_text

    build = open_build(recipe, assignments, runs, quiet)
    typer.echo(evaluation_text(build.evaluate()), nl=False)


Bundle = Annotated[Path, typer.Argument(help="A bundle's folder, such as runs/tiny/bundle.", show_default=False)]


@_command("verify", RELEASE, "Check a bundle: its files against the manifest, its contract, and its signature.")
def verify(
    bundle: Bundle,
    public_key: Annotated[Path | None, typer.Option(help="PEM file; the bundle must be signed with its key.")] = None,
) -> None:
    from pipeline.export.verify import SIGNATURE, report, verify_bundle

    lines = verify_bundle(bundle)
    if public_key:
        from pipeline.export.signing import verify_signature

        lines.append(verify_signature(bundle, public_key))
    typer.echo(report(bundle, lines))
    if not public_key and (bundle / SIGNATURE).exists():
        typer.echo(f"{SIGNATURE} was not checked: --public-key does that", err=True)


@_command("sign", RELEASE, "Check a bundle and sign it. Writes model.sig into it.")
def sign(
    bundle: Bundle,
    key: Annotated[Path, typer.Option(help="PEM file with an elliptic-curve private key.", show_default=False)],
) -> None:
    from pipeline.export.signing import sign_bundle

    sign_bundle(bundle, key)
    typer.echo(f"{bundle / 'model.sig'}: signs every other file of the bundle")


@_command("letterbox", LOOK, "Letterbox one photo exactly as the phone does, and save it as PNG.")
def letterbox(
    photo: Annotated[Path, typer.Argument(help="Any picture that Android can decode.")],
    out: Annotated[Path, typer.Argument(help="The PNG to write.")],
    contract: Annotated[Path | None, typer.Option(help="Contract file; by default the phone's own.")] = None,
) -> None:
    import io

    from pipeline.contract import DEFAULT_CONTRACT, load_contract
    from pipeline.core.files import shown, write_bytes
    from pipeline.letterbox import letterbox_file

    result = letterbox_file(photo, load_contract(contract or DEFAULT_CONTRACT))
    data = io.BytesIO()
    result.image.save(data, "PNG")
    write_bytes(out, data.getvalue())
    flags = f"; not exact on the phone: {', '.join(result.flags)}" if result.flags else ""
    width, height = result.source_size
    typer.echo(f"{shown(out)}: {width}x{height} -> {result.image.width}x{result.image.height}{flags}")


def quieten() -> None:
    """Keep Hugging Face's libraries from drawing through what this program prints; before they are imported."""
    import warnings

    # Notes of transformers to its own developers, printed in the middle of a user's screen.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def run_app(command: typer.Typer) -> None:
    """Run a command line and end the process with its exit code (:mod:`pipeline.core.commandline`)."""
    from pipeline.core.commandline import run

    quieten()
    run(command)


def main() -> None:
    """Entry point of ``pipeline``."""
    run_app(app)


if __name__ == "__main__":
    main()
