"""Altered GGUFs that llama.cpp dies of are one sentence, and the program that opens them lives on."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from models import Pair, canvases, encoder_for, opened, rewrite

from parity.engines import pair as pairs
from parity.engines.pair import open_llamacpp
from parity.engines.probe import files_made, probe_pair
from pipeline.contract import Contract
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_file
from pipeline.core.provenance import digest
from pipeline.core.toolchain import load_gguf
from pipeline.export.convert import KEY_WEIGHTS
from pipeline.models.smolvlm.encoding import Encoder

CONTRACT = Contract(labels=("fire", "light rain"), max_new_tokens=3)
DATASET = "0" * 64
DEADLY = {
    "text": [("llama.block_count", 0), ("llama.attention.layer_norm_rms_epsilon", -1.0)],
    "mmproj": [
        ("clip.vision.image_size", 100),
        ("clip.vision.patch_size", 7),
        ("clip.vision.attention.head_count", 0),
        ("clip.vision.projector.scale_factor", 3),
    ],
}
"""Half -> (key, value) that this llama.cpp does not survive."""
KNOWN = [(half, key, value) for half, found in DEADLY.items() for key, value in found]


def altered(pair: Pair, half: str, key: str, value: Any, folder: Path) -> Pair:
    """The pair with one key of one half changed."""
    made = rewrite(getattr(pair, half), folder / f"altered-{half}.gguf", {key: value})
    return Pair(made, pair.mmproj) if half == "text" else Pair(pair.text, made)


DIRECTLY = """
import pickle, sys
from parity.engines.llamacpp import LlamaCppPredictor
model, mmproj, encoder, canvas = pickle.load(sys.stdin.buffer)
list(LlamaCppPredictor(model, mmproj, encoder).predict([canvas]))
"""


def directly(pair: Pair, encoder: Encoder) -> int:
    """The exit code of a program that opens a pair without trying it first."""
    job = pickle.dumps((pair.text, pair.mmproj, encoder, canvases(1)[0]))
    return subprocess.run([sys.executable, "-c", DIRECTLY], input=job, capture_output=True, check=False).returncode


@pytest.fixture(scope="module")
def encoder(tiny: Path) -> Encoder:
    return encoder_for(tiny, CONTRACT)


def refused(pair: Pair, encoder: Encoder, **given: Any) -> str:
    with pytest.raises(UserError) as error:
        probe_pair(pair.text, pair.mmproj, encoder, **given)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("half", "key", "value"), KNOWN)
def test_what_llama_cpp_dies_of_is_one_sentence(
    tiny: Path, encoder: Encoder, phone_pair: Pair, tmp_path: Path, half: str, key: str, value: Any
) -> None:
    pair = altered(phone_pair, half, key, value, tmp_path)
    assert directly(pair, encoder) < 0, "it no longer dies of this: look for what it dies of now"
    with (
        pytest.raises(UserError, match=r"llama\.cpp cannot run .* with .*: it dies by SIG[A-Z]+ \(.*\); ") as error,
        open_llamacpp(tiny, pair.text, pair.mmproj, CONTRACT, DATASET),
    ):
        pass
    message = str(error.value)
    assert "\n" not in message
    assert str(pair.text) in message
    assert str(pair.mmproj) in message
    assert "GGML_ASSERT(" in message


def test_a_sound_pair_passes_under_every_argument(phone_pair: Pair, encoder: Encoder) -> None:
    probe_pair(phone_pair.text, phone_pair.mmproj, encoder, threads=1, sequences=2, tapped=True)


def test_what_llama_cpp_itself_refuses_is_said_as_ever(phone_pair: Pair, encoder: Encoder, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(phone_pair.text.read_bytes()[:100_000])
    assert refused(Pair(cut, phone_pair.mmproj), encoder).startswith(f"llama.cpp cannot load {cut}: ")


def test_a_pair_that_takes_too_long_is_ended(phone_pair: Pair, encoder: Encoder, tmp_path: Path) -> None:
    pair = altered(phone_pair, "mmproj", "clip.vision.image_size", 8192, tmp_path)
    assert "one picture takes it more than 5 s" in refused(pair, encoder, seconds=5)


def test_a_picture_that_the_vision_half_cannot_take_is_said(phone_pair: Pair, encoder: Encoder, tmp_path: Path) -> None:
    pair = altered(phone_pair, "mmproj", "clip.vision.preproc_image_size", 2**31 - 1, tmp_path)
    message = refused(pair, encoder)
    assert message.startswith(f"llama.cpp cannot run {pair.text} with {pair.mmproj}: libmtmd cannot tokenize")
    assert "the vision half's sizes do not suit the picture" in message


def test_junk_in_place_of_a_digest_is_no_traceback(tiny: Path, phone_pair: Pair, tmp_path: Path) -> None:
    text, mmproj = (
        rewrite(half, tmp_path / half.name, {KEY_WEIGHTS: "junk"}) for half in (phone_pair.text, phone_pair.mmproj)
    )
    with open_llamacpp(tiny, text, mmproj, CONTRACT, DATASET) as side:
        assert side.header.weights_sha256 == digest(["junk", "junk"])


def test_only_a_pair_that_the_run_did_not_make_is_tried(
    tiny: Path, phone_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    monkeypatch.setattr(pairs, "probe_pair", lambda model, mmproj, *_, **__: tried.append((model, mmproj)))
    hashes = [sha256_file(phone_pair.text), sha256_file(phone_pair.mmproj)]
    for made, expected in ((hashes, 0), ({*hashes, "0" * 64}, 0), (hashes[:1], 1), (hashes[1:], 1), ((), 1)):
        tried.clear()
        with open_llamacpp(tiny, phone_pair.text, phone_pair.mmproj, CONTRACT, DATASET, made=made):
            assert tried == [(phone_pair.text, phone_pair.mmproj)] * expected


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", '{"made": []}', '{"made": {"a": 1}}', "[" * 100_000, "\udcff"]
)
def test_a_broken_record_vouches_for_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "export.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert files_made(path) == frozenset()
    assert files_made(tmp_path / "nowhere") == frozenset()
    path.write_text(json.dumps({"made": {"bundle/a": "x", "bundle/b": "y"}}))
    assert files_made(path) == {"x", "y"}


def test_what_is_not_a_file_is_refused(tiny: Path, phone_pair: Pair, tmp_path: Path) -> None:
    for pair in (Pair(tmp_path, phone_pair.mmproj), Pair(phone_pair.text, tmp_path / "nowhere.gguf")):
        with (
            pytest.raises(UserError, match="is not a file: give a GGUF pair"),
            open_llamacpp(tiny, pair.text, pair.mmproj, CONTRACT, DATASET),
        ):
            pass


# ---- every key of both halves ----------------------------------------------------------------------------------------


def other_values(field: Any) -> list[Any]:
    """What a key's value is altered to: 0, 1, -1 and a huge number, or texts that mean nothing; arrays are filled."""
    kinds = load_gguf().GGUFValueType  # type: ignore[attr-defined]
    numbers = {kinds.UINT32: [0, 1, 2**32 - 1, 2**31 - 1], kinds.INT32: [0, 1, -1, 2**31 - 1]}
    values = numbers | {kinds.FLOAT32: [0.0, 1.0, -1.0, 1e30], kinds.STRING: ["", "junk"], kinds.BOOL: [False, True]}
    if field.types[0] != kinds.ARRAY:
        return [value for value in values[field.types[0]] if value != field.contents()]
    return [[value] * len(field.contents()) for value in values[field.types[-1]]]


@pytest.mark.slow
@pytest.mark.parametrize("half", ["text", "mmproj"])
def test_no_altered_key_takes_the_program_along(phone_pair: Pair, encoder: Encoder, tmp_path: Path, half: str) -> None:
    """Each is answered, or is one sentence; ``-s`` shows the table."""
    table: dict[str, int] = {
        "tried": 0,
        "answered": 0,
        "refused while loading": 0,
        "died": 0,
        "too slow": 0,
        "other": 0,
    }
    for field in opened(getattr(phone_pair, half)).fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        for value in other_values(field):
            table["tried"] += 1
            pair = altered(phone_pair, half, field.name, value, tmp_path)
            try:
                probe_pair(pair.text, pair.mmproj, encoder, tapped=True, seconds=20)
                said = ""
            except UserError as error:
                said = str(error)
            assert "\n" not in said
            kinds = {"": "answered", "cannot load": "refused while loading", "dies by": "died", "more than": "too slow"}
            table[next((name for words, name in kinds.items() if (words in said if words else not said)), "other")] += 1
            print(f"{half}\t{field.name}\t{str(value)[:24]}\t{said or 'answered'}")
    print(half, table)
    assert table["tried"] > 50
    assert table["died"] > 0, "then nothing needs to be tried in a process of its own"
