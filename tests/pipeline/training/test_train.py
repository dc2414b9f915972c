"""Training: the loss, what is kept, and that a kill at a bad moment changes nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train_once import GEOMETRY

from pipeline.contract import Contract
from pipeline.core.files import sha256_file
from pipeline.models.smolvlm.embedded import build_model, build_tokenizer
from pipeline.models.smolvlm.encoding import IGNORE, Encoder, make_encoder
from pipeline.training import checkpoints
from pipeline.training.train import _drop_after, answer_loss, collate

SCRIPT = Path(__file__).parent / "train_once.py"


def _train(out: Path, kill: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(out), *([kill] if kill else [])]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])


def _weights(out: Path) -> str:
    return sha256_file(out / "lora_adapter" / "adapter_model.safetensors")


def _log(out: Path) -> list[dict[str, Any]]:
    """The log without what only the clock decides."""
    lines = [json.loads(line) for line in (out / "logs" / "log.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if "runtime" not in key and "per_second" not in key}
        for line in lines
    ]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    result = _train(out)
    assert result.returncode == 0, result.stderr
    return out


# 15 steps, a checkpoint after each 5: killed between two checkpoints, and in the middle of writing the second.
@pytest.mark.parametrize("kill", [pytest.param("step:8", marks=pytest.mark.slow), "save:2"])
def test_a_killed_run_resumes_to_the_same_weights(uninterrupted: Path, tmp_path: Path, kill: str) -> None:
    killed = _train(tmp_path, kill)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "lora_adapter").exists()

    resumed = _train(tmp_path)

    assert resumed.returncode == 0, resumed.stderr
    # Two processes, each with its own order of the sets that PEFT keeps; the folder of the base model is the same.
    config = "lora_adapter/adapter_config.json"
    assert (tmp_path / config).read_bytes() == (uninterrupted / config).read_bytes()
    steps = [int(line.split()[0]) for line in resumed.stdout.splitlines()]
    assert min(steps) > 5, "the first checkpoint was whole: its steps are not to be done again"
    assert _weights(tmp_path) == _weights(uninterrupted)
    train_losses = [[line["loss"] for line in _log(out) if "loss" in line] for out in (tmp_path, uninterrupted)]
    assert train_losses[0] == train_losses[1]


# In the middle of writing lora_adapter, and behind it.
@pytest.mark.parametrize("name", [pytest.param("adapter_config.json", marks=pytest.mark.slow), "summary.json"])
def test_a_training_killed_behind_its_last_step_is_only_finished(
    uninterrupted: Path, tmp_path: Path, name: str
) -> None:
    assert _train(tmp_path, f"write:{name}").returncode == -signal.SIGKILL
    assert (tmp_path / "lora_adapter").exists() == (name == "summary.json")

    resumed = _train(tmp_path)

    assert resumed.returncode == 0, resumed.stderr
    assert {line.split()[0] for line in resumed.stdout.splitlines()} <= {"15"}, "no step is to be done again"
    assert _weights(tmp_path) == _weights(uninterrupted)
    summaries = [json.loads((out / "logs" / "summary.json").read_text()) for out in (tmp_path, uninterrupted)]
    assert summaries[0] == summaries[1]
    losses, steps = ([[line.get(key) for line in _log(out)] for out in (tmp_path, uninterrupted)]
                     for key in ("loss", "step"))  # fmt: skip
    assert losses[0] == losses[1]
    assert steps[0] == steps[1]


def test_the_best_checkpoint_is_the_one_kept(uninterrupted: Path) -> None:
    summary = json.loads((uninterrupted / "logs" / "summary.json").read_text())
    evaluations = {line["step"]: line["eval_accuracy"] for line in _log(uninterrupted) if "eval_accuracy" in line}
    assert list(evaluations) == [5, 10, 15]
    assert summary["accuracy"] == max(evaluations.values()) == evaluations[summary["best_step"]]
    # They stay until the stage's record stands: a kill before it has them to go on from.
    left = {path.name for path in (uninterrupted / "checkpoints").iterdir()}
    assert left == {f"checkpoint-{step}" for step in (15, summary["best_step"])}


def test_evaluation_says_what_each_class_got(uninterrupted: Path) -> None:
    last = [line for line in _log(uninterrupted) if "eval_accuracy" in line][-1]
    recalls = [last[f"eval_recall_{label}"] for label in Contract().labels]
    assert last["eval_accuracy"] == pytest.approx(sum(recalls) / 5)  # two validation canvases for each label


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    labels = ("water", "swimming pool", "fire")  # answers of different lengths, so that a batch is padded
    return make_encoder(Contract(labels=labels), build_tokenizer(), GEOMETRY)


def _batch(encoder: Encoder) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    items = []
    for label in encoder.contract.labels:
        ids, labels = encoder.training_ids(label)
        pixels = encoder.pixel_values(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8))
        items.append({"input_ids": ids, "labels": labels, "pixel_values": pixels})
    return collate(items, pad_id=2)


def test_loss_is_the_models_own_over_the_answer_alone(encoder: Encoder) -> None:
    model = build_model("embedded:tiny", 0)
    batch = _batch(encoder)
    with torch.no_grad():
        ours = answer_loss(model, batch, encoder)
        theirs = model(**batch).loss  # Hugging Face's own forward pass, shift and mask; a mean over the label tokens
    count = (batch["labels"] != IGNORE).sum()
    assert count == 2 + 3 + 2
    # Measured 2e-7: the shortcut (one picture encoded for two slots, logits of the answer alone) changes no arithmetic
    # but the order of some sums.
    assert ours.item() / count.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_padding_has_no_part_in_the_loss(encoder: Encoder) -> None:
    model = build_model("embedded:tiny", 0)
    batch = _batch(encoder)
    other = batch | {"input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 77)}
    assert not torch.equal(other["input_ids"], batch["input_ids"])
    with torch.no_grad():
        assert torch.equal(answer_loss(model, batch, encoder), answer_loss(model, other, encoder))


def test_a_checkpoint_without_marker_or_with_a_changed_file_does_not_count(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_text(str(step))
        if step != 15:
            checkpoints.mark_complete(folder)
    (tmp_path / "checkpoint-10" / "weights").write_text("torn")
    assert checkpoints.last_complete(tmp_path) == tmp_path / "checkpoint-5"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


@pytest.mark.parametrize("marker", [b"[]", b"null", b"7", b"{}", b'"x"', b"\xff", b"[" * 100_000, b'{"weights": []}'])
def test_a_checkpoint_with_a_marker_that_is_none_does_not_count(tmp_path: Path, marker: bytes) -> None:
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    (folder / "weights").write_text("5")
    checkpoints.mark_complete(folder)
    assert checkpoints.last_complete(tmp_path) == folder
    (folder / checkpoints.MARKER).write_bytes(marker)
    assert checkpoints.last_complete(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_whose_best_is_gone_is_not_gone_on_from(tmp_path: Path) -> None:
    """The adapter is taken from the best one in the end."""
    for step, best in ((5, 5), (10, 5), (15, 10)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"best_global_step": best}))
        checkpoints.mark_complete(folder)
    (tmp_path / "checkpoint-x").mkdir()  # none of ours
    (tmp_path / "checkpoint-7").touch()
    (tmp_path / "checkpoint-10" / checkpoints.MARKER).unlink()
    assert checkpoints.last_complete(tmp_path) == tmp_path / "checkpoint-5"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-15", "checkpoint-5", "checkpoint-x"]


@pytest.mark.parametrize("line", [b"[]", b"null", b"7", b'{"step": null}', b"\xff", b"[" * 100_000])
def test_a_line_that_is_none_ends_the_log_that_is_gone_on_with(tmp_path: Path, line: bytes) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    _drop_after(log, 5)
    assert log.read_bytes() == b'{"step": 1}\n'


STEPS = Path(__file__).parent / "train_steps.py"
SAME_STEP = 3e-5
"""Largest difference of a parameter's gradient, two processes from one, over the gradient's norm; measured 3.1e-6."""


def _steps(model: Path, out: Path, batch: int, bf16: str = "off", processes: int = 1) -> list[str]:
    """Run train_steps.py in so many processes, joined by gloo; what each printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    joined = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, str(STEPS), str(model), str(out), str(batch), bf16]
    started = []
    for rank in map(str, range(processes)):
        environment = os.environ | (joined | {"RANK": rank, "LOCAL_RANK": rank} if processes > 1 else {})
        started.append(
            subprocess.Popen(
                command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                cwd=Path(__file__).parents[3],
            )
        )  # fmt: skip
    try:
        said = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, said
    return [out for out, _ in said]


@pytest.fixture(scope="module")
def alone(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process left behind, with 2 examples a batch."""
    out = tmp_path_factory.mktemp("alone")
    _steps(tiny, out, batch=2)
    return dict(torch.load(out / "0.pt"))


@pytest.mark.slow
def test_two_processes_take_the_step_that_one_takes(tiny: Path, tmp_path: Path, alone: dict[str, Any]) -> None:
    main, other = _steps(tiny, tmp_path, batch=1, processes=2)

    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")["gradients"]
        assert found.keys() == alone["gradients"].keys()
        assert any("vision_model" in name for name in found)
        for name, gradient in alone["gradients"].items():
            assert (found[name] - gradient).norm() <= SAME_STEP * gradient.norm(), name
    # One log, one row of checkpoints, written when every process has put its random state in.
    logged = _log(tmp_path)
    assert [line["step"] for line in logged if "loss" in line] == [1, 2]
    assert [line["step"] for line in logged if "eval_accuracy" in line] == [2]
    assert "checkpoint-2 rng_state_0.pth rng_state_1.pth" in main.splitlines()
    assert other == ""
    assert (tmp_path / "lora_adapter" / "adapter_model.safetensors").exists()


def test_bf16_holds_for_the_vision_half_and_not_for_the_evaluation(
    tiny: Path, tmp_path: Path, alone: dict[str, Any]
) -> None:
    _steps(tiny, tmp_path, batch=2, bf16="on")
    found = torch.load(tmp_path / "0.pt")
    assert (found["training"], found["evaluation"]) == ({"torch.bfloat16"}, {"torch.float32"})
    assert (alone["training"], alone["evaluation"]) == ({"torch.float32"}, {"torch.float32"})


def test_a_log_that_another_run_has_too_is_not_written_into(tmp_path: Path) -> None:
    """Runs share what is equal (pipeline/workflow/stage.py); training again begins a log of its own."""
    log, shared = tmp_path / "log.jsonl", tmp_path / "shared.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    shared.hardlink_to(log)
    before = shared.read_text()
    _drop_after(log, 1)
    assert log.read_text() == '{"step": 1}\n'
    assert shared.read_text() == before
