"""What the ladder costs beside a plain run of both sides, and how much memory long runs need.

Time: the same images through both sides without and with the ladder, in turns, from the decoded canvas. Memory: the
greatest resident size of a process that walks many images with both models loaded, one process for each number.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console

from bench.report import table
from parity.compare.measure import measure
from parity.compare.runner import batches, observe, walk
from parity.compare.samples import spread
from parity.run import open_run
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes
from pipeline.core.memory import memory as peak
from pipeline.core.progress import Reporter
from pipeline.dataset.split import Split
from pipeline.recipe import Recipe
from pipeline.workflow.build import Build

IMAGES = 96
TURNS = 5
COUNTS = (100, 1000, 10_000)


@dataclass(frozen=True)
class Made:
    """A sample made up on the spot: a canvas of the dataset with its number written into the first pixels."""

    folder: Path
    number: int
    split: Split
    canvas: npt.NDArray[np.uint8]
    truth: str

    @property
    def rgb(self) -> npt.NDArray[np.uint8]:
        """The canvas of this number."""
        made = self.canvas.copy()
        made[0, :2].reshape(-1)[:4] = np.frombuffer(self.number.to_bytes(4, "little"), np.uint8)
        return made

    @property
    def key(self) -> str:
        """SHA-256 of it."""
        return sha256_bytes(self.rgb.tobytes())

    @property
    def image_id(self) -> str:
        """Its number."""
        return f"made-{self.number}"

    @property
    def path(self) -> Path:
        """The file that libmtmd decodes, written when it is asked for."""
        path = self.folder / "canvas.bmp"
        Image.fromarray(self.rgb).save(path)
        return path


def cost(build: Build) -> dict[str, float]:
    """Median milliseconds an image: ``plain`` and ``ladder``; and their ``ratio``."""
    build.ensure_export()
    plain, ladder = [], []
    with open_run(build) as run:
        samples = spread(run.samples, IMAGES)
        canvases = {sample.key: sample.rgb for sample in samples}
        held = [SimpleNamespace(rgb=canvases[s.key], key=s.key, image_id=s.image_id, truth=s.truth) for s in samples]
        ours, theirs = run.sides.reference().predictor, run.sides.candidate().predictor
        for _ in range(TURNS + 1):
            start = time.perf_counter()
            for side in (ours, theirs):
                for _ in side.predict(sample.rgb for sample in held):
                    pass
            middle = time.perf_counter()
            for batch in batches(held, ours.batch_size):  # type: ignore[arg-type]
                for a, b in zip(*(observe(side, batch, run.contract) for side in (ours, theirs)), strict=True):
                    measure(a, b, None)
            plain.append((middle - start) * 1e3 / len(held))
            ladder.append((time.perf_counter() - middle) * 1e3 / len(held))
    found = {"plain": statistics.median(plain[1:]), "ladder": statistics.median(ladder[1:])}
    return found | {"ratio": found["ladder"] / found["plain"]}


def memory(build: Build, counts: tuple[int, ...] = COUNTS) -> list[dict[str, float]]:
    """For each number of images: ``images``, ``mb`` (greatest resident size), ``images_per_second``.

    Raises UserError with what the process said that could not measure it.
    """
    rows = []
    for count in counts:
        start = time.perf_counter()
        command = [sys.executable, "-m", "bench.ladder", str(count), str(build.root), build.recipe.model_dump_json()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["it left no message"]
            raise UserError(f"the ladder over {count} images ended with exit code {done.returncode}: {said[-1]}")
        seconds = time.perf_counter() - start
        rows.append({"images": count, "mb": float(done.stdout.split()[-1]), "images_per_second": count / seconds})
    return rows


def text(spent: dict[str, float], held: list[dict[str, float]]) -> str:
    """Both as tables."""
    costs = [[name, f"{spent[name]:.2f}"] for name in ("plain", "ladder")] + [["ratio", f"{spent['ratio']:.2f}x"]]
    sizes = [[f"{row['images']:,}", f"{row['mb']:.0f}", f"{row['images_per_second']:.0f}"] for row in held]
    return (
        table(("both sides", "ms/image"), costs)
        + "\n\n"
        + table(("ladder over", "peak MB", "images/s, loading and all"), sizes)
    )


def _walk(count: int, root: Path, recipe: Recipe) -> float:
    """MB that a process needs for a ladder of ``count`` images; whoever started it has the run's folder locked."""
    reporter = Reporter(Console(stderr=True), quiet=True)
    build = Build(recipe, root, reporter, threads=1)
    with tempfile.TemporaryDirectory() as name, open_run(build) as run:
        canvases = [(sample.rgb, sample.truth) for sample in spread(run.samples, 50)]
        made = [
            Made(Path(name), number, run.samples[0].split, *canvases[number % len(canvases)]) for number in range(count)
        ]
        ours, theirs = run.sides.reference(), run.sides.candidate()
        walk(ours, theirs, made, run.contract, run.compared(), Path(name), reporter)  # type: ignore[arg-type]
    return peak("VmHWM") / 1e6


if __name__ == "__main__":
    print(f"{_walk(int(sys.argv[1]), Path(sys.argv[2]), Recipe.model_validate_json(sys.argv[3])):.1f}")
