"""Fine-tuning: transformers' Trainer + PEFT LoRA, judged by the label that the model really generates.

    checkpoints/   whole checkpoints, best and last; whoever called removes them once it has the result on record
    lora_adapter/  the best checkpoint's adapter, as PEFT writes it
    logs/          log.jsonl: one line for each logged step and each evaluation

Invariants: same recipe, dataset and machine give the same adapter, whether or not the run was killed and resumed on the
way; the prompt has no part in the loss; logits are computed at the answer's positions only; a step is one call of the
module that Trainer wraps (autocast and DDP see nothing else); where several processes train, one of them writes.
"""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from pipeline.core.files import atomic_folder, read_regular, write_bytes, write_json
from pipeline.models.smolvlm.encoding import IGNORE, Encoder, fed_bytes
from pipeline.models.smolvlm.inference import HfPredictor, embed, encode
from pipeline.models.smolvlm.lora import attach
from pipeline.recipe import TrainSettings
from pipeline.training import checkpoints

Progress = Callable[[int, int, str], None]
"""(optimizer steps done, steps in all, what was last measured)"""


@dataclass(frozen=True)
class Example:
    """A canvas, uint8 [size, size, 3] RGB, loaded when asked for, and its label."""

    load: Callable[[], npt.NDArray[np.uint8]]
    label: str


class _Examples(torch.utils.data.Dataset[dict[str, Any]]):
    def __init__(self, examples: Sequence[Example], encoder: Encoder) -> None:
        self._examples, self._encoder = examples, encoder

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example, encoder = self._examples[index], self._encoder
        ids, labels = encoder.training_ids(example.label)
        fed = fed_bytes(example.load(), encoder.contract)
        return {"input_ids": ids, "labels": labels, "pixel_values": encoder.pixel_values(fed)}


def collate(items: list[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """Stack examples, shorter answers padded on the right (label :data:`IGNORE`, attention 0)."""
    longest = max(len(item["input_ids"]) for item in items)

    def padded(key: str, value: int) -> torch.Tensor:
        return torch.tensor([item[key] + [value] * (longest - len(item[key])) for item in items])

    attention = [[1] * len(item["input_ids"]) + [0] * (longest - len(item["input_ids"])) for item in items]
    return {
        "input_ids": padded("input_ids", pad_id),
        "labels": padded("labels", IGNORE),
        "attention_mask": torch.tensor(attention),
        "pixel_values": torch.from_numpy(np.stack([item["pixel_values"] for item in items])),
    }


def answer_loss(model: Any, batch: dict[str, torch.Tensor], encoder: Encoder) -> torch.Tensor:
    """Sum of the cross-entropy over the answer's tokens of a collated batch.

    Only the positions from the prompt's last token on get logits: with 49,280 words in the vocabulary, logits for the
    whole prompt would cost more than the rest of a small model.
    """
    features = encode(model, batch["pixel_values"], encoder)
    embeddings = embed(model, batch["input_ids"], features, encoder)
    kept = batch["labels"].shape[1] - len(encoder.prompt_ids) + 1
    logits = model(inputs_embeds=embeddings, attention_mask=batch["attention_mask"], logits_to_keep=kept).logits
    targets = batch["labels"][:, -kept + 1 :]
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )


def answer_loss_forward(peft_model: Any, encoder: Encoder) -> None:
    """Make :func:`answer_loss` of a collated batch what calling ``peft_model`` gives.

    accelerate wraps a model's ``forward`` in autocast, and DDP exchanges gradients for what its ``forward`` computed:
    what is computed beside it, by calling a part of the model, gets neither.
    """

    def forward(self: Any, **batch: torch.Tensor) -> torch.Tensor:
        return answer_loss(self.get_base_model(), batch, encoder)

    peft_model.forward = MethodType(forward, peft_model)


class _AnswerTrainer(Trainer):
    """Trainer with the loss above and an evaluation that generates."""

    def __init__(self, *, encoder: Encoder, tokenizer: Any, validation: Sequence[Example], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._encoder, self._tokenizer, self._validation = encoder, tokenizer, validation
        self.model_accepts_loss_kwargs = True  # the loss is a sum divided by the tokens of the whole accumulated batch

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        # Tokens are counted over all processes, and DDP takes the mean of their gradients, as Trainer's own does it.
        loss: torch.Tensor = model(**inputs) / num_items_in_batch * self.accelerator.num_processes
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        adapted: Any = self.model
        adapted.eval()
        # Below autocast and DDP: in float32, as the merged model is judged. Each process does all of it.
        predictor = HfPredictor(adapted.get_base_model(), self._tokenizer, self._encoder)
        contract = self._encoder.contract
        right: dict[str, list[bool]] = {label: [] for label in contract.labels}
        logprobs = []
        predictions = predictor.predict(example.load() for example in self._validation)
        for example, prediction in zip(self._validation, predictions, strict=True):
            right[example.label].append(contract.parse_answer(prediction.text) == example.label)
            logprobs.append(prediction.label_logprobs[example.label])
        hits = [hit for hits in right.values() for hit in hits]
        metrics = {"eval_accuracy": sum(hits) / len(hits), "eval_loss": -sum(logprobs) / len(logprobs)}
        metrics |= {f"eval_recall_{label}": sum(hits) / len(hits) for label, hits in right.items() if hits}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _Keeper(TrainerCallback):
    """Marks checkpoints whole, removes superseded ones, writes the log and reports progress; in the main process."""

    def __init__(self, folder: Path, log: Path, progress: Progress) -> None:
        self._folder, self._log, self._progress = folder, log, progress
        self._last = ""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        args.distributed_state.wait_for_everyone()  # each process saves its own random state
        if not state.is_world_process_zero:
            return
        checkpoints.mark_complete(self._folder / f"checkpoint-{state.global_step}")
        checkpoints.keep_only(self._folder, {state.global_step, state.best_global_step})

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        logs = logs or {}
        with open(self._log, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
        if "eval_accuracy" in logs:
            self._last = f"validation accuracy {logs['eval_accuracy']:.1%}"
        elif "loss" in logs:
            self._last = f"loss {logs['loss']:.3f}"
        self._progress(state.global_step, state.max_steps, self._last)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self._progress(state.global_step, state.max_steps, self._last)


def _arguments(folder: Path, settings: TrainSettings, n_examples: int, seed: int) -> TrainingArguments:
    cuda = torch.cuda.is_available()
    bf16 = settings.bf16 == "on" or (settings.bf16 == "auto" and cuda and torch.cuda.is_bf16_supported())
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=bf16,
        use_cpu=not cuda,
        seed=seed,
        data_seed=seed,
        eval_strategy="steps",
        save_strategy="steps",
        metric_for_best_model="accuracy",
        greater_is_better=True,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        save_total_limit=None,  # checkpoints.py removes them, after the next one is whole
    )
    batch = settings.batch_size * settings.gradient_accumulation * arguments.world_size
    interval = max(1, math.ceil(n_examples / batch) // settings.evals_per_epoch)
    arguments.eval_steps = arguments.save_steps = interval
    arguments.logging_steps = max(1, interval // 10)
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one GPU a process: DataParallel would split the loss
    return arguments


def train(
    model: Any,
    tokenizer: Any,
    encoder: Encoder,
    training: Sequence[Example],
    validation: Sequence[Example],
    settings: TrainSettings,
    seed: int,
    folder: Path,
    progress: Progress,
) -> dict[str, float]:
    """Train, or go on where a killed run of the same settings stopped; write ``lora_adapter`` and ``logs``.

    A run killed after its last step has only the files to write again. Under torchrun each process has ``batch_size``
    examples a step, and all of them return when the files are there. Returns the best checkpoint's step and validation
    accuracy.
    """
    scratch, logs = folder / "checkpoints", folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    arguments = _arguments(scratch, settings, len(training), seed)
    set_seed(seed)  # the adapter's first values
    # To its device first: PEFT ties the adapters of token table and output by shared memory, which a move would part.
    peft_model = attach(model.to(arguments.device), settings)
    answer_loss_forward(peft_model, encoder)
    log = logs / "log.jsonl"
    with arguments.main_process_first(local=False):  # the others find nothing left to remove
        resume = checkpoints.last_complete(scratch)
        if arguments.process_index == 0:
            _drop_after(log, checkpoints.step_of(resume) if resume else -1)
    trainer = _AnswerTrainer(
        encoder=encoder,
        tokenizer=tokenizer,
        validation=validation,
        model=peft_model,
        args=arguments,
        train_dataset=_Examples(training, encoder),
        eval_dataset=list(validation),
        data_collator=lambda items: collate(items, tokenizer.pad_token_id),
        callbacks=[_Keeper(scratch, log, progress)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    best, accuracy = trainer.state.best_global_step, trainer.state.best_metric
    if best is None or accuracy is None:
        raise RuntimeError("training ended without an evaluation")
    result = {"best_step": best, "steps": trainer.state.global_step, "accuracy": accuracy}
    if arguments.process_index == 0:
        _keep_best(scratch / f"checkpoint-{best}", folder / "lora_adapter")
        write_json(logs / "summary.json", result)
    trainer.accelerator.wait_for_everyone()
    return result


def _keep_best(kept: Path, adapter: Path) -> None:
    """Write the folder ``adapter`` from a checkpoint's."""
    with atomic_folder(adapter) as out:
        shutil.copy(kept / "adapter_model.safetensors", out)
        # PEFT writes a set of names, in another order in each process.
        config = json.loads((kept / "adapter_config.json").read_text(encoding="utf-8"))
        config["target_modules"] = sorted(config["target_modules"])
        write_json(out / "adapter_config.json", config)


def _drop_after(log: Path, step: int) -> None:
    """Remove the log lines of steps that a resumed run will do again, and the line that a training ends with. A new
    file: another run may have the old one."""
    lines = []
    if log.exists():
        for line in read_regular(log).splitlines():
            try:
                value = json.loads(line)
                if value["step"] <= step and "train_runtime" not in value:
                    lines.append(line + b"\n")
            except (ValueError, KeyError, TypeError, RecursionError):
                break  # the line that a kill cut short, or one that was never the log's
    write_bytes(log, b"".join(lines))
