"""The runner (android_fixtures/runner), from its command line to its results file: every number is that of the host's
own engine to the last bit, and what it is given may be damaged in any way."""

import json
import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from models import bundle_recipe, canvases, encoder_for, pair_in, rewrite, write_tiny
from PIL import Image
from session import Once
from typer.testing import CliRunner

from parity.cli import app
from parity.compare.pictures import write_pictures
from parity.compare.samples import Sample
from parity.engines import decoding, llamacpp
from parity.engines.llamacpp import LlamaCppPredictor
from parity.judge.verdict import Verdict
from parity.results import Header, Results, ResultsWriter, Row, read_results
from pipeline.contract import Contract, ImageContract, Runtime, Tiling
from pipeline.core.errors import EXIT_FAIL, EXIT_INTERRUPTED, EXIT_USAGE, UserError
from pipeline.core.files import sha256_bytes, sha256_file
from pipeline.core.pinned import LLAMA_CPP_COMMIT, runner
from pipeline.dataset.records import Record
from pipeline.export.bundle import write_bundle

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DATASET = "da" * 32
CASES = {
    "app": (Contract(), {}),
    "words": (
        Contract(
            labels=("fire", "light rain", "물고기"),
            answer_rule="exact",
            max_new_tokens=16,
            image=ImageContract(channel_order="bgr"),
            tiling=Tiling(grid=2),
            runtime=Runtime(type_k="q8_0", type_v="f16", n_ctx=512, n_batch=48),
        ),
        {},
    ),
    "exact": (
        Contract(max_new_tokens=4, runtime=Runtime(type_k="f32", type_v="f32", flash_attn=False, n_threads=1)),
        {"text_type": "F32", "mmproj_type": "F32"},
    ),
}
"""Contract and export: the app's; labels of several tokens, tiles that differ, batches that a picture does not fit in,
swapped channels; floats, where the order of sums counts."""


ARM_APART = 0.3
"""Largest difference of log-probabilities between Armv8.2 and x86-64, nats. Measured: 0.114 with this untrained model,
0.047 over 100 pictures of the trained one, whose answers were all the same."""


@dataclass(frozen=True)
class Given:
    """What the runner is given, and what it was made from."""

    model: Path
    bundle: Path
    contract: Contract
    pictures: Path
    canvases: list[npt.NDArray[np.uint8]]


@pytest.fixture(scope="module")
def program() -> Path:
    try:
        return runner(ROOT)
    except UserError as error:
        pytest.skip(str(error))


def samples_in(folder: Path, pictures: list[npt.NDArray[np.uint8]], labels: tuple[str, ...]) -> list[Sample]:
    """A dataset's test images, stored as the pipeline stores them."""
    made = []
    for number, canvas in enumerate(pictures):
        path = folder / f"{number} of these.png"
        Image.fromarray(canvas).save(path)
        record = Record(
            image_id=f"picture {number}", image_path=path.name, element=labels[number % len(labels)],
            sha256=sha256_file(path), rgb_sha256=sha256_bytes(canvas.tobytes()),
        )  # fmt: skip
        made.append(Sample(folder, record, "test"))
    return made


def make_given(once: Once, tiny: Path, name: str, n: int) -> Given:
    contract, export = CASES[name]
    pictures = canvases(n)

    def make(folder: Path) -> None:
        model = tiny
        if contract.tiling.grid != 1:
            model = write_tiny(folder / "model", contract.tiling)
        recipe = bundle_recipe(**export).model_copy(update={"contract": contract})
        write_bundle(model, folder / "bundle", recipe, {"merged": "0" * 64}, threads=1)
        (folder / "images").mkdir()
        write_pictures(samples_in(folder / "images", pictures, contract.labels), DATASET, folder / "the pictures")

    place = once(f"runner_{name}", make)
    own = place / "model"
    return Given(
        own if own.exists() else tiny, place / "bundle", contract, place / "the pictures/pictures.jsonl", pictures
    )


@pytest.fixture(scope="module")
def given(once: Once, tiny: Path) -> Given:
    return make_given(once, tiny, "app", 24)


def run(program: Path, given: Given, out: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [program, *options, given.bundle, given.pictures, out]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def answered(program: Path, given: Given, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runner's file for ``given``; nobody changes it."""
    out = tmp_path_factory.mktemp("answered") / "device.results.jsonl"
    done = run(program, given, out)
    assert done.returncode == 0, done.stderr
    return out


def with_libm(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """``log_softmax`` with the C library's exp and log in place of numpy's, which differ in the last bit: of exp in 1
    value in 20, of these log-probabilities in 11 of 1500 (by 8.9e-16 at most)."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    powers = np.frompyfunc(math.exp, 1, 1)(shifted).astype(np.float64)
    return np.asarray(shifted - np.frompyfunc(math.log, 1, 1)(powers.sum(axis=-1, keepdims=True)).astype(np.float64))


def rows_of(results: Results) -> list[dict[str, Any]]:
    return [row.model_dump(exclude={"ms"}) for row in results.rows.values()]


@pytest.mark.parametrize("name", CASES)
def test_every_number_is_the_hosts_own_to_the_last_bit(
    program: Path, once: Once, tiny: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_given(once, tiny, name, {"app": 24}.get(name, 6))
    out = tmp_path / "device.results.jsonl"
    done = run(program, case, out)
    assert done.returncode == 0, done.stderr
    found = read_results(out)
    for module in (llamacpp, decoding):
        monkeypatch.setattr(module, "log_softmax", with_libm)
    pair = pair_in(
        case.bundle,
        *(bundle_recipe(**CASES[name][1]).export.model_dump()[f"{half}_type"] for half in ("text", "mmproj")),
    )
    with LlamaCppPredictor(pair.text, pair.mmproj, encoder_for(case.model, case.contract)) as predictor:
        wanted = list(predictor.predict(case.canvases))
        assert list(found.header.prompt_token_ids) == predictor.prompt_ids
        assert list(found.header.image_slots) == predictor.image_slots
    assert len(found.rows) == len(wanted)
    for number, (row, own) in enumerate(zip(found.rows.values(), wanted, strict=True)):
        assert row.image_id == f"picture {number}"
        assert row.key == sha256_bytes(case.canvases[number].tobytes())
        assert row.rgb_sha256 == own.rgb_sha256
        assert (row.text, row.generated_token_ids, row.stop_reason) == (own.text, own.generated_ids, own.stop_reason)
        assert row.label == case.contract.parse_answer(own.text)
        assert row.label_logprobs == own.label_logprobs
        assert row.top_logits == own.top_logits
        assert {*row.ms} == {"decode", "encode", "prefill", "generate"}


def test_the_header_says_what_ran(given: Given, answered: Path) -> None:
    header = read_results(answered).header
    manifest = json.loads((given.bundle / "manifest.json").read_text())
    assert (header.side, header.engine, header.split, header.images) == ("device", "llama.cpp", "test", 24)
    assert header.contract_sha256 == given.contract.digest == manifest["contract_sha256"]
    assert header.dataset_sha256 == DATASET
    assert sorted(header.model.values()) == sorted(
        value for name, value in manifest["outputs"].items() if name.endswith(".gguf")
    )
    assert header.versions["llama_commit"] in LLAMA_CPP_COMMIT.values()
    profile = given.contract.runtime.model_dump(mode="json")
    assert (
        header.runtime.items() >= (profile | {"n_threads": given.contract.runtime.threads(os.cpu_count() or 1)}).items()
    )
    assert header.runtime.items() >= {"fed": "rgb", "text_types": "Q8_0", "mmproj_types": "Q8_0"}.items()
    assert header.device.keys() >= {"cpu", "cores", "system", "cpu_features", "compiled_for"}


def test_a_phones_program_gives_the_same_file_but_for_its_arithmetic(
    given: Given, answered: Path, tmp_path: Path
) -> None:
    """Static, for aarch64, under an emulator; on a phone it is the same program."""
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if not emulator:
        pytest.skip("no emulator is here: `apt-get install qemu-user-static`")
    try:
        program = runner(ROOT, phone=True)
    except UserError as error:
        pytest.skip(str(error))
    out = tmp_path / "out.jsonl"
    command = [emulator, "-cpu", "max,sve=off,sme=off", program, "--limit", "3", "--threads", "1"]
    done = subprocess.run([*command, given.bundle, given.pictures, out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, host = read_results(out), read_results(answered)
    assert found.header.prompt_token_ids == host.header.prompt_token_ids
    assert {"asimddp", "i8mm"} <= {*found.header.device["cpu_features"].split()}
    assert found.header.device["system"] == "Linux aarch64"
    for row in found.rows.values():
        own = host.rows[row.key]
        assert row.rgb_sha256 == own.rgb_sha256
        apart = [abs(row.label_logprobs[label] - own.label_logprobs[label]) for label in given.contract.labels]  # type: ignore[operator]
        assert max(apart) < ARM_APART
    old = [emulator, "-cpu", "cortex-a72", program]
    refused(
        subprocess.run([*old, given.bundle, given.pictures, out], capture_output=True, text=True, check=False),
        "this CPU has no asimddp, which this program was compiled for",
    )


def test_the_cache_is_of_the_types_that_llama_cpp_allocated(program: Path, given: Given, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert run(program, given, out, "--kv-type", "q8_0", "--limit=1", "--threads", "1").returncode == 0
    runtime = read_results(out).header.runtime
    assert (runtime["type_k"], runtime["type_v"], runtime["n_threads"]) == ("q8_0", "q8_0", 1)


# ---- killed, torn, of another run ------------------------------------------------------------------------------------


def finished(program: Path, given: Given, out: Path, answered: Path) -> None:
    """Running again completes ``out``, which is then the file of a run that nobody stopped."""
    done = run(program, given, out)
    assert done.returncode == 0, done.stderr
    found, whole = read_results(out), read_results(answered)
    assert found.header == whole.header
    assert rows_of(found) == rows_of(whole)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_goes_on(
    program: Path, given: Given, answered: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out.jsonl"
    process = subprocess.Popen([program, given.bundle, given.pictures, out], stderr=subprocess.PIPE, text=True)
    while not out.exists() or out.read_bytes().count(b"\n") < 4:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(number)
    said = process.communicate()[1]
    if number != signal.SIGKILL:
        assert process.returncode == EXIT_INTERRUPTED
        assert "interrupted: run the same command again" in said
    before = read_results(out, unfinished=True)
    assert 3 <= len(before.rows) < 24
    finished(program, given, out, answered)
    assert list(read_results(out).rows.values())[: len(before.rows)] == list(before.rows.values())


@pytest.mark.parametrize("cut", [1, 50, 90, 700, 5000])
def test_a_torn_file_is_made_whole(program: Path, given: Given, answered: Path, tmp_path: Path, cut: int) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(answered.read_bytes()[:-cut])
    finished(program, given, out, answered)


@pytest.mark.parametrize("length", [0, 1, 100])
def test_a_torn_header_is_begun_again(program: Path, given: Given, answered: Path, tmp_path: Path, length: int) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(answered.read_bytes()[:length])
    finished(program, given, out, answered)


def test_a_finished_file_is_left_as_it_is(program: Path, given: Given, answered: Path) -> None:
    before = answered.read_bytes()
    assert run(program, given, answered).returncode == 0
    assert answered.read_bytes() == before


def refused(done: "subprocess.CompletedProcess[str]", *words: str) -> None:
    assert done.returncode == EXIT_USAGE, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--threads", "3"), "its header's runtime is not"),
        (("--limit", "5"), "its header's images is not"),
        (("--channel-order", "bgr"), "its header's runtime is not"),
    ],
)
def test_another_runs_file_is_refused(
    program: Path, given: Given, answered: Path, options: tuple[str, ...], words: str
) -> None:
    before = answered.read_bytes()
    refused(run(program, given, answered, *options), "device.results.jsonl holds rows of another run", words)
    assert answered.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda lines: [*lines[:3], lines[2], *lines[3:-1]],
            "line 4 is of a picture that is not in the list, or has a",
        ),
        (lambda lines: [lines[0], b"[]\n", *lines[2:-1]], "line 2 is not a row"),
        (lambda lines: [lines[0], lines[1].replace(b"picture", b"Picture"), *lines[2:]], "was changed after it was"),
        (lambda lines: [*lines, lines[1]], "line 27 stands behind the closing line"),
        (lambda lines: [b"a letter\n"], "is not a results file"),
        (lambda lines: [b"a letter"], "is not a results file"),
    ],
)
def test_a_file_that_something_else_changed_is_refused(
    program: Path,
    given: Given,
    answered: Path,
    tmp_path: Path,
    change: Callable[[list[bytes]], list[bytes]],
    words: str,
) -> None:
    out = tmp_path / "out.jsonl"
    content = b"".join(change(answered.read_bytes().splitlines(keepends=True)))
    out.write_bytes(content)
    refused(run(program, given, out), "out.jsonl", words)
    assert out.read_bytes() == content


def test_a_place_that_is_no_file_is_refused(program: Path, given: Given, tmp_path: Path) -> None:
    refused(run(program, given, tmp_path), "cannot be written: Is a directory")
    os.mkfifo(tmp_path / "pipe")
    refused(run(program, given, tmp_path / "pipe"), "is not a regular file")
    refused(run(program, given, tmp_path / "no" / "folder"), "No such file or directory")


# ---- what it is given may be damaged ---------------------------------------------------------------------------------


Lines = list[dict[str, Any]]


def changed(**values: Any) -> Callable[[Lines], None]:
    return lambda lines: lines[1].update(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed(file="gone.png"), "gone.png cannot be read: No such file or directory"),
        (changed(file="text.png"), "text.png is not a PNG file"),
        (changed(file="cut.png"), "cut.png is a damaged PNG file"),
        (changed(file="huge.png"), "huge.png is a PNG of 2147483647x2147483647 pixels of 8 bits"),
        (changed(file="."), "is not a file"),
        (changed(file=""), "line 2: file must be the path of a PNG file"),
        (changed(file="a\0b"), "line 2: file must be the path of a PNG file"),
        (changed(key="00" * 32), "does not hold the pixels that its key in the list is of"),
        (changed(key="AB" * 32), "line 2: key must be a SHA-256"),
        (changed(key=None), "line 2: key must be a text"),
        (changed(truth=7), "line 2: truth must be a text"),
        (changed(more=1), 'line 2: unknown key "more"'),
        (lambda lines: lines.append(lines[1]), "line 26: this picture stands there twice"),
        (lambda lines: lines.pop(), "has 23 pictures, and its header says 24"),
        (lambda lines: lines[0].update(images=10**18), "line 1: images must be a whole number from 1 to 1000000"),
        (lambda lines: lines[0].update(images=-1), "line 1: images must be a whole number"),
        (lambda lines: lines[0].update(images=10**6), "has 24 pictures, and its header says 1000000"),
        (lambda lines: lines[0].update(images=23), "has more pictures, and its header says 23"),
        (lambda lines: lines[0].update(schema_version=2), "line 1: schema_version must be a whole number from 1 to 1"),
        (lambda lines: lines[0].update(dataset_sha256="x"), "line 1: dataset_sha256 must be a SHA-256"),
        (lambda lines: lines.clear(), "is empty"),
    ],
)
def test_a_hostile_list_is_told_in_one_sentence(
    program: Path, given: Given, tmp_path: Path, change: Callable[[Lines], object], words: str
) -> None:
    folder = Path(shutil.copytree(given.pictures.parent, tmp_path / "list"))
    path = folder / given.pictures.name
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    picture = (folder / lines[1]["file"]).read_bytes()
    (folder / "text.png").write_text("no picture " * 9)
    (folder / "cut.png").write_bytes(picture[: len(picture) // 2])
    (folder / "huge.png").write_bytes(picture[:16] + b"\x7f\xff\xff\xff" * 2 + picture[24:])
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = subprocess.run(
        [program, given.bundle, path, tmp_path / "out.jsonl"], capture_output=True, text=True, check=False
    )
    refused(done, words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "line 1 is not valid JSON"),
        (b'{"kind": "\xff"}\n', "line 1 is not valid JSON"),
        (b"[" * 60000 + b"\n", "line 1 is nested too deeply"),
        (b"x" * 70000, "line 1 is too long"),
        (b"[]\n", "line 1 is not a JSON object"),
    ],
)
def test_a_list_that_is_none_is_refused(
    program: Path, given: Given, tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "list.jsonl"
    path.write_bytes(content + (b"\n" if content == b"{" else b""))
    done = subprocess.run(
        [program, given.bundle, path, tmp_path / "out.jsonl"], capture_output=True, text=True, check=False
    )
    refused(done, words)


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json cannot be read: No such file"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json: schema_version must be"),
        (lambda folder: (folder / "contract.json").write_text("[]"), "contract.json is not a JSON object"),
        (lambda folder: replaced(folder / "contract.json", '"fire"', '"rain"'), "is not the contract that"),
        (lambda folder: replaced(folder / "contract.json", '"q4_0"', '"q4_k"'), "type_k must be one of f32, f16"),
        (
            lambda folder: replaced(folder / "contract.json", ": 1024", ": 99999999999999999999"),
            "n_ctx must be a whole",
        ),
        (lambda folder: flipped(folder / "Tiny-Element-Q8_0.gguf"), "is not the file that manifest.json lists"),
        (lambda folder: flipped(folder / "mmproj-Tiny-Element-Q8_0.gguf"), "is not the file that manifest.json lists"),
        (lambda folder: replaced(folder / "manifest.json", '"Tiny-Element-', '"../Tiny-'), "must be file names with"),
        (lambda folder: replaced(folder / "manifest.json", '"mmproj-Tiny', '"other-Tiny'), "of one language half and"),
    ],
)
def test_a_damaged_bundle_is_told_in_one_sentence(
    program: Path, given: Given, tmp_path: Path, change: Callable[[Path], object], words: str
) -> None:
    folder = Path(shutil.copytree(given.bundle, tmp_path / "bundle"))
    change(folder)
    done = subprocess.run(
        [program, folder, given.pictures, tmp_path / "out.jsonl"], capture_output=True, text=True, check=False
    )
    refused(done, words)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("half", "key", "value"),
    [
        ("text", "llama.block_count", 0),
        ("text", "llama.attention.layer_norm_rms_epsilon", -1.0),
        ("mmproj", "clip.vision.image_size", 100),
        ("mmproj", "clip.vision.patch_size", 7),
        ("mmproj", "clip.vision.attention.head_count", 0),
        ("mmproj", "clip.vision.projector.scale_factor", 3),
    ],
)
def test_a_gguf_that_llama_cpp_dies_of_is_one_sentence(
    program: Path, given: Given, tmp_path: Path, half: str, key: str, value: object
) -> None:
    folder = Path(shutil.copytree(given.bundle, tmp_path / "bundle"))
    path = folder / ("Tiny-Element-Q8_0.gguf" if half == "text" else "mmproj-Tiny-Element-Q8_0.gguf")
    before = sha256_file(path)
    rewrite(given.bundle / path.name, path, {key: value})
    replaced(folder / "manifest.json", before, sha256_file(path))
    done = subprocess.run(
        [program, folder, given.pictures, tmp_path / "out.jsonl"], capture_output=True, text=True, check=False
    )
    refused(done, "llama.cpp")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--threads", "0"), "--threads 0 is not a whole number from 1 to 1024"),
        (("--threads", "2x"), "--threads 2x is not a whole number"),
        (("--limit", "-3"), "--limit -3 is not a whole number"),
        (("--shift", "3"), "--shift 3 is not two numbers"),
        (("--shift", "3,99999999999"), "--shift 99999999999 is not a whole number"),
        (("--kv-type", "q9"), "--kv-type q9 is unknown: give one of f32"),
        (("--channel-order", "grb"), "--channel-order grb is unknown"),
        (("--resample", "cubic"), "--resample cubic is unknown"),
        (("--what", "x"), "unknown option --what"),
        (("again",), "give a bundle's folder, a list of pictures and a results file"),
    ],
)
def test_a_wrong_command_is_told_in_one_sentence(
    program: Path, given: Given, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    refused(run(program, given, tmp_path / "out.jsonl", *options), words)


# ---- faults that are planted -----------------------------------------------------------------------------------------


def fed_of(canvas: npt.NDArray[np.uint8], option: str, value: str) -> npt.NDArray[np.uint8]:
    """What the model is handed under a planted fault, by numpy."""
    if option == "--channel-order":
        return canvas[..., ::-1]
    if option == "--shift":
        x, y = map(int, value.split(","))
        moved = np.zeros_like(canvas)
        moved[max(0, y) : 256 + min(0, y), max(0, x) : 256 + min(0, x)] = canvas[
            max(0, -y) : max(0, 256 - max(0, y)), max(0, -x) : max(0, 256 - max(0, x))
        ]
        return moved
    return canvas[1::2, 1::2].repeat(2, 0).repeat(2, 1)  # nearest


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--channel-order", "bgr"), ("--shift", "3,0"), ("--shift", "-2,5"), ("--shift", "300,0"),
        ("--resample", "nearest"),
    ],
)  # fmt: skip
def test_a_planted_fault_changes_the_bytes_as_it_says(
    program: Path, given: Given, tmp_path: Path, option: str, value: str
) -> None:
    out = tmp_path / "out.jsonl"
    assert run(program, given, out, option, value, "--limit", "3").returncode == 0
    rows = list(read_results(out).rows.values())
    assert len(rows) == 3
    for row, canvas in zip(rows, given.canvases, strict=False):
        assert row.key == sha256_bytes(canvas.tobytes())
        assert row.rgb_sha256 == sha256_bytes(fed_of(canvas, option, value).tobytes())


def write_reference(path: Path, device: Results) -> None:
    """Hugging Face's side, as if it answered as the device did."""
    header = device.header.model_copy(
        update={"side": "hf", "engine": "transformers", "model": {"merged": "0" * 64}, "runtime": {"fed": "rgb"}}
    )
    with ResultsWriter(path, Header.model_validate(header.model_dump()), [*device.rows]) as writer:
        for row in device.rows.values():
            writer.append(Row.model_validate(row.model_dump()))


@pytest.mark.parametrize(
    ("options", "stage"),
    [
        (("--channel-order", "bgr"), "pixels"),
        (("--shift", "1,0"), "pixels"),
        (("--resample", "bilinear"), "pixels"),
        (("--kv-type", "f16"), "runtime"),
    ],
)
def test_the_judge_finds_what_was_planted(
    program: Path, given: Given, answered: Path, tmp_path: Path, options: tuple[str, ...], stage: str
) -> None:
    device, hf = tmp_path / "device.results.jsonl", tmp_path / "hf.results.jsonl"
    assert run(program, given, device, *options).returncode == 0
    write_reference(hf, read_results(answered))
    contract = given.bundle / "contract.json"
    words = ["judge", hf, device, "--contract", contract, "--out", tmp_path / "verdict.json"]
    judged = CliRunner().invoke(app, [*map(str, words)])
    assert judged.exit_code == EXIT_FAIL, judged.output
    verdict = Verdict.model_validate_json((tmp_path / "verdict.json").read_text())
    assert verdict.first_bad_stage == stage
    states = {gate.stage: gate.status for gate in verdict.gates}
    assert states["provenance"] == "green"
