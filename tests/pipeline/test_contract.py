"""The contract: the phone's values, what it refuses and in which words, and the digest."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.contract import DEFAULT_CONTRACT, Contract, Runtime, load_contract
from pipeline.core.errors import UserError
from pipeline.core.settings import validate

FIVE = ("water", "land", "fire", "wood", "metal")
FORTY = tuple(f"kind number {number:02d}" for number in range(40))

# The phone's behaviour as the app's source shows it, one line a setting.
PHONE: dict[str, Any] = {
    "name": "elements",
    "labels": list(FIVE),
    "prompt_template": "<__media__>\nClassify this image into one of these elements: {labels}.\n\nElement:",
    "media_marker": "<__media__>",
    "add_bos": False,
    "answer_prefix": " ",
    "answer_rule": "contains",
    "max_new_tokens": 32,
    "sampling": "greedy",
    "context": "never",
    "image.size": 256,
    "image.pad_color": [0, 0, 0],
    "image.geometry": "float32",
    "image.resample": "android_bilinear",
    "image.offset": "round_half_up",
    "image.channel_order": "rgb",
    "image.exif": "ignore",
    "image.alpha": "black",
    "image.colour_space": "android",
    "tiling.plan": "grid",
    "tiling.grid": 1,
    "runtime.n_ctx": 1024,
    "runtime.n_batch": 512,
    "runtime.type_k": "q4_0",
    "runtime.type_v": "q4_0",
    "runtime.flash_attn": True,
    "runtime.n_threads": None,
    "gate.margin_points": 3.0,
    "gate.noise_factor": 1.0,
    "gate.class_margin_points": 10.0,
    "gate.recall_floors": {},
    "gate.baseline_factor": 1.5,
}

# Another legal value for each of them.
OTHER: dict[str, Any] = {
    "name": "weather",
    "labels": ["sun", "rain"],
    "prompt_template": "<__media__> What is it?",
    "media_marker": "<image_here>",
    "add_bos": True,
    "answer_prefix": "",
    "answer_rule": "exact",
    "max_new_tokens": 8,
    "image.size": 384,
    "image.pad_color": [0, 0, 1],
    "image.geometry": "float64",
    "image.resample": "lanczos",
    "image.offset": "floor",
    "image.channel_order": "bgr",
    "image.exif": "transpose",
    "image.alpha": "drop",
    "image.colour_space": "ignore",
    "tiling.plan": "overview",
    "tiling.grid": 2,
    "runtime.n_ctx": 2048,
    "runtime.n_batch": 256,
    "runtime.type_k": "f16",
    "runtime.type_v": "f16",
    "runtime.flash_attn": False,
    "runtime.n_threads": 4,
    "gate.margin_points": 1.0,
    "gate.noise_factor": 2.0,
    "gate.class_margin_points": 5.0,
    "gate.recall_floors": {"fire": 0.5},
    "gate.baseline_factor": 2.0,
}
ALONG: dict[str, dict[str, Any]] = {  # what else must be set for a value of OTHER to be legal
    "media_marker": {"prompt_template": "<image_here> What is it?"},
    "runtime.flash_attn": {"runtime.type_v": "f16"},
}
ONE_VALUE = {"sampling", "context"}


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return found


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in settings.items():
        group, _, last = key.rpartition(".")
        (data.setdefault(group, {}) if group else data)[last] = value
    return data


def make(settings: dict[str, Any]) -> Contract:
    return validate(Contract, nested(settings), "contract")


def refused(settings: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        make(settings)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_the_file_the_code_and_the_phone_say_the_same() -> None:
    written = json.loads(DEFAULT_CONTRACT.read_text())
    assert written == Contract().model_dump(mode="json")
    assert flat(written) == PHONE | {"schema_version": 1}
    assert load_contract().digest == Contract().digest


def test_the_prompt_is_the_apps_to_the_byte() -> None:
    assert Contract().prompt == (
        "<__media__>\nClassify this image into one of these elements: water, land, fire, wood, metal.\n\nElement:"
    )


def test_every_setting_changes_the_digest() -> None:
    assert set(OTHER) | ONE_VALUE == set(PHONE)
    digests = {make({key: value, **ALONG.get(key, {})}).digest for key, value in OTHER.items()}
    assert len(digests | {Contract().digest}) == len(OTHER) + 1


def test_the_digest_is_of_the_meaning_not_of_the_wording(tmp_path: Path) -> None:
    path = tmp_path / "contract.json"
    path.write_text('{"runtime": {"n_threads": null, "n_ctx": 1024}, "labels": ' + json.dumps(FIVE) + "}")
    assert load_contract(path).digest == Contract().digest
    assert len(Contract().digest) == 64


@pytest.mark.parametrize("key", sorted(OTHER))
def test_a_contract_written_out_is_read_back(key: str, tmp_path: Path) -> None:
    contract = make({key: OTHER[key], **ALONG.get(key, {})})
    path = tmp_path / "contract.json"
    path.write_text(json.dumps(contract.model_dump(mode="json")))
    assert load_contract(path) == contract
    assert load_contract(path).digest == contract.digest


def test_a_changed_copy_has_a_digest_of_its_own() -> None:
    contract = Contract()
    assert contract.model_copy(update={"add_bos": True}).digest == make({"add_bos": True}).digest != contract.digest


def test_a_contract_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Contract().add_bos = True  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"colour": "red"}, ["colour", "unknown key"]),
        ({"runtime.ctx": 1}, ["runtime.ctx", "unknown key"]),
        ({"labels": ["one"]}, ["labels", "at least two"]),
        ({"labels": ["fire", "Fire"]}, ["'fire'", "more than once"]),
        ({"labels": ["fire", "fire"]}, ["'fire'", "more than once"]),
        ({"labels": ["fire", ""]}, ["''", "empty"]),
        ({"labels": ["fire", " wood"]}, ["' wood'", "white space"]),
        ({"labels": ["fire", "red\nwood"]}, ["line break"]),
        ({"labels": ["fire", "red\x1b[1mwood"]}, [r"'red\x1b[1mwood'", "control character"]),
        ({"labels": ["fire", "red\u2028wood"]}, ["control character"]),
        ({"labels": ["fire", "\ud800wood"]}, [r"labels.1: '\ud800wood' has half a character"]),
        ({"name": "x" * 300}, ["name", "at most 100 characters"]),
        ({"gate.noise_factor": float("inf")}, ["gate.noise_factor: inf is not a finite number"]),
        ({"gate.margin_points": float("nan")}, ["gate.margin_points: nan is not a finite number"]),
        ({"gate.recall_floors": {"fire": float("-inf")}}, ["gate.recall_floors.fire: -inf is not a finite number"]),
        ({"gate.recall_floors": {7: 0.5}}, ["gate.recall_floors: the key 7 is not a text"]),
        ({"runtime.n_ctx": 2**40}, ["runtime.n_ctx", "must be at most 1048576"]),
        ({"runtime.n_ctx": 10**5000}, ["runtime.n_ctx: the number is too large"]),
        ({"runtime.n_threads": 2**20}, ["runtime.n_threads", "must be at most 1024"]),
        ({"labels": ["x"] * 100_000}, ["more than 100,000 values"]),
        ({"labels": list(range(50))}, ["labels.9", "and 40 more"]),
        ({"labels": ["iron", "environment"]}, ["'iron'", "'environment'", "answer_rule 'exact'"]),
        ({"labels": ["IRON", "environment"]}, ["'IRON'", "contained in"]),
        ({"labels": ["fire", "a <__media__> b"]}, ["label", "<__media__>"]),
        ({"prompt_template": "no picture"}, ["0 of media_marker", "exactly one"]),
        ({"prompt_template": "<__media__> and <__media__>"}, ["2 of media_marker", "exactly one"]),
        ({"media_marker": ""}, ["media_marker"]),
        ({"media_marker": "<pic>"}, ["0 of media_marker '<pic>'"]),
        ({"runtime.flash_attn": False}, ["type_v q4_0", "flash_attn"]),
        ({"runtime.flash_attn": False, "runtime.type_v": "q8_0"}, ["type_v q8_0", "flash_attn"]),
        ({"runtime.type_k": "q3"}, ["runtime.type_k"]),
        ({"runtime.n_ctx": "1024"}, ["runtime.n_ctx"]),
        ({"runtime.n_ctx": 0}, ["runtime.n_ctx"]),
        ({"runtime.n_threads": 0}, ["runtime.n_threads"]),
        ({"max_new_tokens": 0}, ["max_new_tokens"]),
        ({"sampling": "beam"}, ["sampling"]),
        ({"image.pad_color": [0, 0, 256]}, ["image.pad_color", "0 to 255"]),
        ({"image.pad_color": [0, 0]}, ["image.pad_color"]),
        ({"image.resample": "bicubic"}, ["image.resample"]),
        ({"image.channel_order": "gbr"}, ["image.channel_order"]),
        ({"tiling.plan": "overview", "tiling.grid": 2}, ["overview", "no grid"]),
        ({"tiling.grid": 0}, ["tiling.grid"]),
        ({"tiling.grid": 7}, ["tiling.grid"]),
        ({"gate.margin_points": 0.0}, ["gate.margin_points"]),
        ({"gate.noise_factor": 0.0}, ["gate.noise_factor"]),
        ({"gate.baseline_factor": 0.9}, ["gate.baseline_factor"]),
        ({"gate.recall_floors": {"fire": 1.5}}, ["'fire'", "at most 1"]),
        ({"gate.recall_floors": {"ice": 0.5}}, ["gate.recall_floors", "'ice'", "none of the labels"]),
        ({"name": "../elsewhere"}, ["name"]),
        ({"schema_version": 2}, ["schema_version"]),
    ],
)
def test_what_is_refused(settings: dict[str, Any], words: list[str]) -> None:
    message = refused(settings)
    assert all(word in message for word in words), message


def test_all_faults_are_told_at_once() -> None:
    message = refused({"colour": "red", "runtime.n_ctx": 1, "labels": ["one"]})
    assert all(word in message for word in ("colour", "runtime.n_ctx", "labels"))


def test_labels_that_contain_one_another_can_be_told_apart_exactly() -> None:
    contract = make({"labels": ["iron", "environment"], "answer_rule": "exact"})
    assert contract.parse_answer(" Environment\n") == "environment"
    assert contract.parse_answer("iron.") is None


@pytest.mark.parametrize("labels", [("day", "night"), ("no rain", "light rain", "a real storm"), FORTY])
def test_any_labels_are_the_users(labels: tuple[str, ...]) -> None:
    contract = make({"labels": list(labels)})
    assert ", ".join(labels) in contract.prompt
    assert [contract.parse_answer(contract.answer_text(label)) for label in labels] == list(labels)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (" fire", "fire"),
        (" FIRE!", "fire"),
        ("wood and fire", "fire"),  # in the order of the labels, not of the text
        ("metal water", "water"),
        ("wildfires", "fire"),
        (" stone", None),
        ("", None),
    ],
)
def test_the_apps_answer_rule(text: str, label: str | None) -> None:
    assert Contract().parse_answer(text) == label


@pytest.mark.parametrize(("cores", "threads"), [(1, 2), (2, 2), (4, 2), (6, 3), (8, 4), (9, 4), (12, 6), (64, 6)])
def test_the_apps_thread_rule(cores: int, threads: int) -> None:
    assert Runtime().threads(cores) == threads
    assert Runtime(n_threads=5).threads(cores) == 5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", ["not valid JSON"]),
        (b'{"labels": ["a"] "b"}', ["not valid JSON"]),
        (b"\xff\xfe\x00", ["not valid JSON"]),
        (b"[]", ["contract"]),
        (b'{"tiling": {"grids": 2}}', ["tiling.grids", "unknown key"]),
        (b'{"a":' * 100_000, ["not valid JSON"]),
        (b"[" * 60 + b"]" * 60, ["nested more than 50 levels deep"]),
        (b'{"runtime": {"n_ctx": ' + b"9" * 5000 + b"}}", ["not valid JSON", "4300 digits"]),
        (b'{"gate": {"noise_factor": Infinity}}', ["gate.noise_factor: inf is not a finite number"]),
        (b'{"gate": {"noise_factor": 1e999}}', ["gate.noise_factor: inf is not a finite number"]),
        (b'{"labels": ["a", "\\ud800"]}', ["labels.1", "half a character"]),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, words: list[str]) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_contract(path)
    assert all(word in str(error.value) for word in [*words, str(path)])


def test_a_file_that_never_ends_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises(UserError, match=f"contract {path} cannot be read: it is not a regular file"):
            load_contract(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.json cannot be read: No such file"):
        load_contract(tmp_path / "nowhere.json")
