"""Two optimizer steps over answers of different lengths: ``python train_steps.py MODEL OUT BATCH BF16``, as a process.

Each process (alone, or as RANK and WORLD_SIZE say) leaves ``OUT/<rank>.pt``: the gradients of the first step,
unclipped, and the types that the vision half's and the connector's linear layers gave out, in training and in
evaluation. It prints progress and every checkpoint that it declares whole.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from train_once import COLORS, examples

from pipeline.contract import Contract
from pipeline.models.smolvlm.encoding import make_encoder
from pipeline.models.smolvlm.folder import load_model, load_tokenizer, read_geometry
from pipeline.recipe import LoraSettings, TrainSettings
from pipeline.training import checkpoints, train

LABELS = dict(zip(COLORS, ("water", "swimming pool", "fire", "a pile of wood", "metal"), strict=True))


def main(folder: Path, out: Path, batch: int, bf16: str) -> None:
    found: dict[str, Any] = {"training": set(), "evaluation": set()}

    class Recorder(train._Keeper):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step == 0:
                parameters = model.named_parameters()
                found["gradients"] = {name: p.grad.clone() for name, p in parameters if p.grad is not None}

    def note(module: torch.nn.Module, given: Any, output: torch.Tensor) -> None:
        found["training" if torch.is_grad_enabled() else "evaluation"].add(str(output.dtype))

    def mark(folder: Path) -> None:
        mark_complete(folder)
        print(folder.name, *sorted(path.name for path in folder.glob("rng_state*")), flush=True)

    mark_complete, checkpoints.mark_complete, train._Keeper = checkpoints.mark_complete, mark, Recorder  # type: ignore[misc]
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    for half in (model.model.vision_model, model.model.connector):
        for module in half.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(note)
    made = [train.Example(example.load, LABELS[example.label]) for example in examples(8, 0)]
    settings = TrainSettings(
        epochs=1, batch_size=batch, gradient_accumulation=2, gradient_checkpointing=False, evals_per_epoch=1,
        max_grad_norm=1e6, bf16=bf16, vision="lora", connector="full",
        lora=LoraSettings(dropout=0),  # its masks follow from how a batch is dealt out
    )  # fmt: skip
    encoder = make_encoder(Contract(labels=tuple(LABELS.values())), tokenizer, read_geometry(folder))
    train.train(
        model, tokenizer, encoder, made, made[:2], settings, 0, out, lambda done, total, said: print(done, total)
    )
    torch.save(found, out / f"{os.environ.get('RANK', '0')}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
