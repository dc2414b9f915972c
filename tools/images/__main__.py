"""The jobs on images, as the Makefile calls them: ``python3 -m tools.images JOB``. Thin: parses, calls."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pipeline.core.errors import EXIT_FAIL, EXIT_INTERRUPTED, EXIT_USAGE, CheckFailed, UserError
from tools.images.build import IMAGES, Options, build, folder, image_name
from tools.images.engine import find_engine
from tools.images.lock import write_locks
from tools.images.running import RunOptions, run_job
from tools.setup.native import Console

ROOT = Path(__file__).resolve().parent.parent.parent


def _options(given: argparse.Namespace) -> Options:
    return Options(given.base, given.torch, given.mirror, given.ca, given.wheels, given.torch_index, given.fresh)


def build_images(given: argparse.Namespace) -> int:
    """``build``: the images named, or all."""
    console = Console(folder(ROOT) / "build.log")
    build(ROOT, find_engine(given.builder), given.stages or IMAGES, _options(given), console)
    return 0


def lock_pins(given: argparse.Namespace) -> int:
    """``lock``: every pin anew."""
    console = Console(folder(ROOT) / "build.log")
    changed = write_locks(ROOT, find_engine(given.builder), _options(given), console)
    console.step(f"changed: {', '.join(changed)}" if changed else "nothing changed")
    return 0


def run_images(given: argparse.Namespace) -> int:
    """``train``, ``parity``, ``shell``: run the command, after building an image that is not there."""
    engine = find_engine(given.builder)
    stage = "train" if given.job == "train" else "parity"
    if not (given.no_build and engine.image_id(image_name(stage, given.torch))):
        build(ROOT, engine, [stage], _options(given), Console(folder(ROOT) / "build.log"))
    options = RunOptions(
        given.recipe, given.photos, given.model, given.set, given.network, given.keys.replace(",", " ").split(),
        given.keys_file, given.torch, given.runs,
    )  # fmt: skip
    return run_job(ROOT, engine, given.job, options)


def copy_artifacts(given: argparse.Namespace) -> int:
    """``artifacts``: binaries and SBOMs into ``dist/``."""
    from tools.images.artifacts import write_artifacts

    write_artifacts(ROOT, find_engine(given.builder), given.torch, Console(folder(ROOT) / "build.log"))
    return 0


def reproduce(given: argparse.Namespace) -> int:
    """``repro``: build and train again and compare."""
    from tools.images.repro import reproduce as work

    console, engine = Console(folder(ROOT) / "build.log"), find_engine(given.builder)
    return work(ROOT, engine, _options(given), console, given.what, given.stages, given.reuse, given.set)


def clean(given: argparse.Namespace) -> int:
    """``clean``: remove the images, the containers that were left, and what was gathered for the build."""
    from tools.images.artifacts import remove_images

    print(remove_images(ROOT, find_engine(given.builder)))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line. Every option has an environment variable of the Makefile's name as its default."""
    environment = os.environ.get
    building = argparse.ArgumentParser(add_help=False)
    building.add_argument("--builder", default=environment("BUILDER", ""), help="buildx, buildkit, legacy or buildah")
    building.add_argument("--base", default=environment("BASE", "") or "auto", help="registry or bootstrap")
    building.add_argument("--torch", default=environment("TORCH_VARIANT", "") or "cpu", help="cpu or cuda")
    building.add_argument("--mirror", default=environment("DEBIAN_MIRROR", ""), help="address of a Debian archive")
    building.add_argument("--ca", default=environment("CA", ""), help="PEM file of a company proxy's certificates")
    building.add_argument("--wheels", default=environment("WHEELS", ""), help="folder of ready wheels")
    building.add_argument("--torch-index", default=environment("TORCH_INDEX_URL", ""), help="PyTorch's own index")
    building.add_argument("--fresh", action="store_true", help="do not use the builder's cache")
    whole = argparse.ArgumentParser(prog="containers", description="Build, run and compare the images.")
    jobs = whole.add_subparsers(dest="job", required=True, metavar="JOB")
    job = jobs.add_parser("build", parents=[building], help="build the images")
    job.add_argument("stages", nargs="*", help="stages of docker/Dockerfile (default: train, parity, artifacts)")
    job.set_defaults(work=build_images)
    job = jobs.add_parser("lock", parents=[building], help="write every pin anew")
    job.set_defaults(work=lock_pins)
    for name, text in (
        ("train", "photos to bundle, in a container"),
        ("parity", "photos to verdict, in a container"),
        ("shell", "a shell in the parity image"),
    ):
        job = jobs.add_parser(name, parents=[building], help=text)
        job.add_argument("--recipe", default=environment("RECIPE", "") or "configs/tiny.yaml", help="the recipe")
        job.add_argument("--photos", default=environment("PHOTOS", ""), help="folder of labelled photos")
        job.add_argument("--model", default=environment("MODEL", ""), help="folder of a base model")
        job.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe")
        job.add_argument("--network", default=environment("NETWORK", ""), help="an engine's network, such as bridge")
        job.add_argument("--keys", default=environment("KEYS", ""), help="variables to hand in, by name")
        job.add_argument("--keys-file", default=environment("KEYS_FILE", ""), help="file of NAME=value lines")
        job.add_argument("--no-build", action="store_true", help="take the image as it is, even if the code changed")
        job.add_argument("--runs", default="runs", help="folder for the results")
        job.set_defaults(work=run_images)
    job = jobs.add_parser("artifacts", parents=[building], help="copy binaries and SBOMs to dist/")
    job.set_defaults(work=copy_artifacts)
    job = jobs.add_parser("repro", parents=[building], help="build and train again and compare")
    job.add_argument("--what", default="all", choices=["all", "images", "training"], help="what to compare")
    job.add_argument("--stages", nargs="*", default=[], help="stages to compare (default: all that matter)")
    job.add_argument("--reuse", action="store_true", help="let the builder's cache be the first of the two builds")
    job.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe")
    job.set_defaults(work=reproduce)
    job = jobs.add_parser("clean", parents=[building], help="remove the images")
    job.set_defaults(work=clean)
    return whole


def main() -> int:
    """Entry point; the exit codes are those of ``pipeline.core.errors``."""
    given = parser().parse_args()
    try:
        code: int = given.work(given)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except CheckFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        return EXIT_FAIL
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return EXIT_INTERRUPTED
    return code


if __name__ == "__main__":
    sys.exit(main())
