"""What the ladder costs beside a plain run of both sides, and how much memory long runs need.

Time: the same images through both sides without and with the ladder, in turns, from the decoded canvas. Memory: the
greatest resident size of a process that walks many images with both models loaded, one process for each number.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bench.report import table
from parity.lockstep import batches, observe, walk
from parity.measure import measure
from parity.run import Run
from parity.samples import load_samples, spread
from parity.stages import NoiseFloor, Spread
from pipeline.build import Build
from pipeline.cli import RUNS, open_build
from pipeline.files import sha256_bytes

IMAGES = 96
TURNS = 5
COUNTS = (100, 1000, 10_000)
NOTHING = Spread(median=0, p95=0, largest=0)
FLOOR = NoiseFloor(
    samples=1, embeddings_error=NOTHING, logits_kl=NOTHING, logits_kl_labels=NOTHING, logits_max=NOTHING,
    generated_differ=0, labels_differ=0,
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A sample made up on the spot: a canvas of the dataset with its number written into the first pixels."""

    folder: Path
    number: int
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
    def record(self) -> Any:
        """With the file that libmtmd decodes, written when it is asked for."""
        path = self.folder / "canvas.bmp"
        Image.fromarray(self.rgb).save(path)
        return SimpleNamespace(image_path=path.name)


def cost(build: Build) -> dict[str, float]:
    """Median milliseconds an image: ``plain`` and ``ladder``; and their ``ratio``."""
    run = Run(build)
    samples, digest = load_samples(build.dataset_folder, run.contract)
    samples = spread(samples, IMAGES)
    canvases = {sample.key: sample.rgb for sample in samples}
    held = [SimpleNamespace(rgb=canvases[s.key], key=s.key, image_id=s.image_id, truth=s.truth) for s in samples]
    plain, ladder = [], []
    with ExitStack() as stack:
        ours, theirs = (run.open(side, stack, digest).predictor for side in ("hf", "llamacpp"))
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


def memory(counts: tuple[int, ...] = COUNTS) -> list[dict[str, float]]:
    """For each number of images: ``images``, ``mb`` (greatest resident size), ``images_per_second``."""
    rows = []
    for count in counts:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "bench.ladder", str(count)], capture_output=True, text=True, check=True
        )
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


def _walk(count: int) -> float:
    """MB that a process needs for a ladder of ``count`` images."""
    run = Run(open_build(Path("configs/tiny.yaml"), None, RUNS, quiet=True))
    samples, digest = load_samples(run.build.dataset_folder, run.contract)
    canvases = [(sample.rgb, sample.truth) for sample in spread(samples, 50)]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        made = [Made(Path(name), number, *canvases[number % len(canvases)]) for number in range(count)]
        ours, theirs = (run.open(side, stack, digest) for side in ("hf", "llamacpp"))
        about = run.about(FLOOR, digest)
        walk(ours, theirs, made, run.contract, about, Path(name), run.build.reporter)  # type: ignore[arg-type]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    print(f"{_walk(int(sys.argv[1])):.1f}")
