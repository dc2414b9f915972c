"""Trains a tiny model on made-up canvases: ``python train_once.py OUT [KILL]``, run as a process of its own.

KILL is ``step:N`` (SIGKILL to itself after optimizer step N), ``save:N`` (in the middle of saving checkpoint N) or
``write:NAME`` (before that file is written, at the end).
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from pipeline.contract import Contract
from pipeline.models.smolvlm.embedded import build_model, build_tokenizer
from pipeline.models.smolvlm.encoding import make_encoder
from pipeline.models.smolvlm.folder import VisionGeometry
from pipeline.recipe import TrainSettings
from pipeline.training import train as training
from pipeline.training.train import Example, train

COLORS = {"water": (0, 0, 200), "land": (120, 90, 40), "fire": (240, 80, 0), "wood": (90, 50, 20), "metal": (150,) * 3}
SETTINGS = TrainSettings(
    epochs=3, learning_rate=1e-3, batch_size=4, gradient_accumulation=2, gradient_checkpointing=False, connector="full"
)
GEOMETRY = VisionGeometry(256, 16, 4, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 49190)


def examples(n: int, seed: int) -> list[Example]:
    """Noisy plain colours, one for each label."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(n):
        label = list(COLORS)[index % 5]
        canvas = np.clip(np.array(COLORS[label]) + rng.integers(-20, 21, (256, 256, 3)), 0, 255).astype(np.uint8)
        made.append(Example(lambda canvas=canvas: canvas, label))  # type: ignore[misc]
    return made


def main(out: Path, kill: str = "") -> None:
    moment, _, number = kill.partition(":")
    saves = 0
    save_rng_state = transformers.Trainer._save_rng_state

    def dying_save(self: transformers.Trainer, folder: str) -> None:
        nonlocal saves
        saves += 1
        if moment == "save" and saves == int(number):
            os.kill(os.getpid(), signal.SIGKILL)  # the weights are written, the random state and the marker are not
        save_rng_state(self, folder)

    def progress(done: int, total: int, note: str) -> None:
        print(done, total, note, flush=True)
        if moment == "step" and done == int(number):
            os.kill(os.getpid(), signal.SIGKILL)

    def dying_write(path: Path, value: Any) -> None:
        if moment == "write" and path.name == number:
            os.kill(os.getpid(), signal.SIGKILL)
        write_json(path, value)

    write_json, training.write_json = training.write_json, dying_write
    transformers.Trainer._save_rng_state = dying_save
    tokenizer = build_tokenizer()
    encoder = make_encoder(Contract(), tokenizer, GEOMETRY)
    model = build_model("embedded:tiny", 0)
    train(model, tokenizer, encoder, examples(40, 0), examples(10, 1), SETTINGS, 0, out, progress)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
