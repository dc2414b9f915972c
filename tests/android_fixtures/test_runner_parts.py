"""The runner's arithmetic and text, held to Python's: SHA-256, case folding, the answer rule, sums of probabilities."""

import hashlib
import math
import random
import shutil
import struct
import subprocess
import unicodedata
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from session import Once

from pipeline.contract import AnswerRule, read_label
from pipeline.models.prediction import top_logits

RUNNER = Path(__file__).parents[2] / "android_fixtures" / "runner"
PARTS = ("answer.cpp", "numbers.cpp", "sha256.cpp")
VECTORS = {
    b"": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    b"abc": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq": (
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
    ),
    b"a" * 1_000_000: "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
}
"""NIST's examples of FIPS 180-4."""
WORDS = ("straße", "İstanbul", "ΜΆΪΟΣ", "ﬁre", "Ǆ", "ꭰ", "𐐀", "plain", "")


@pytest.fixture(scope="module")
def probe(once: Once) -> Path:
    """The parts, compiled with what finds undefined behaviour."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if not compiler:
        pytest.skip("no C++ compiler is on the PATH, and the parts are compiled here: install g++")

    def build(folder: Path) -> None:
        command = [compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
        command += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{RUNNER}"]
        sources = [str(Path(__file__).with_name("probe.cpp")), *(str(RUNNER / name) for name in PARTS)]
        subprocess.run([*command, *sources, "-o", str(folder / "probe")], check=True)

    return once("runner_probe", build) / "probe"


def ask(probe: Path, given: bytes, *words: str) -> bytes:
    done = subprocess.run([probe, *words], input=given, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.parametrize("given", VECTORS, ids=len)
def test_sha256_gives_nists_digests(probe: Path, given: bytes) -> None:
    assert ask(probe, given, "sha256").decode().split() == [VECTORS[given]] * 2


def test_sha256_of_every_length(probe: Path) -> None:
    for length in [*range(50, 70), 119, 120, 127, 128, 129, 1000]:
        given = random.Random(length).randbytes(length)
        assert ask(probe, given, "sha256").decode().split() == [hashlib.sha256(given).hexdigest()] * 2, length


def casefold_table() -> ModuleType:
    """``casefold.py``, which is a script and no part of a package."""
    spec = spec_from_file_location("casefold", RUNNER / "casefold.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(unicodedata.unidata_version != "14.0.0", reason="the table is of Python 3.11's Unicode")
def test_the_table_is_pythons(probe: Path) -> None:
    assert (RUNNER / "casefold.inc").read_text(encoding="ascii") == casefold_table().text()
    everything = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    assert ask(probe, everything.encode(), "fold").decode() == everything.casefold()


@pytest.mark.parametrize("text", WORDS)
def test_text_is_folded_and_stripped_as_python_does(probe: Path, text: str) -> None:
    around = f"\u3000\n {text} {text}\u2028\x1f"
    assert ask(probe, around.encode(), "fold").decode() == around.casefold()
    assert ask(probe, around.encode(), "strip").decode() == around.strip()


@pytest.mark.parametrize("given", [b"\xff", b"\xe2\x82", b"a\xf0\x9f\x98", b"\xc3(", b"\xfe\x80\x80", b"\xf8\x88\x80"])
def test_bytes_that_are_no_text_do_no_harm(probe: Path, given: bytes) -> None:
    ask(probe, given, "fold")
    ask(probe, given, "strip")


@pytest.mark.parametrize("rule", ["contains", "exact"])
@pytest.mark.parametrize(
    ("text", "labels"),
    [
        (" Fire", ("water", "fire")),
        ("fire and WATER", ("water", "fire")),
        ("\n fire\u00a0", ("water", "fire")),
        ("nothing", ("water", "fire")),
        ("", ("water", "fire")),
        ("STRASSE", ("straße", "weg")),
        ("d\u0131\u015far\u0131 \u0130ZM\u0130R", ("izmir", "i\u0307zmi\u0307r")),
        ("camp fire.", ("camp fire", "fir")),
    ],
)
def test_the_answer_rule_is_the_contracts(probe: Path, text: str, labels: Sequence[str], rule: AnswerRule) -> None:
    found = ask(probe, text.encode(), "label", rule, *labels).decode()
    wanted = read_label(text, labels, rule)
    assert found == ("none" if wanted is None else f"label {wanted}")


def libm_log_sum(values: "np.ndarray[tuple[int], np.dtype[np.float32]]") -> float:
    """numpy's order of summation over the C library's powers; numpy's own powers differ in the last bit of 1 in 20."""
    shifted = values.astype(np.float64) - values.max()
    return math.log(np.array([math.exp(value) for value in shifted]).sum())


@pytest.mark.parametrize("n", [1, 7, 8, 9, 127, 128, 129, 255, 1000, 49280])
def test_probabilities_are_summed_in_numpys_order(probe: Path, n: int) -> None:
    for seed in range(3):
        values = (np.random.default_rng(seed).standard_normal(n) * 4).astype(np.float32)
        first, *greatest, sums = ask(probe, values.tobytes(), "numbers").decode().splitlines()
        assert int(first) == values.argmax()
        found = tuple((int(index), float.fromhex(value)) for index, value in map(str.split, greatest))
        assert found == top_logits(values)
        top, log_sum = map(float.fromhex, sums.split())
        assert (top, log_sum) == (float(values.max()), libm_log_sum(values))


@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_ordered_as_numpy_does(probe: Path, special: float) -> None:
    values = np.array([1, 3, special, 3, 2, special, 0, -1, 5, 5], np.float32)
    first, *greatest, _ = ask(probe, values.tobytes(), "numbers").decode().splitlines()
    assert int(first) == values.argmax()
    found = [(int(index), float.fromhex(value)) for index, value in map(str.split, greatest)]
    assert [struct.pack("<if", *one) for one in found] == [struct.pack("<if", *one) for one in top_logits(values)]
