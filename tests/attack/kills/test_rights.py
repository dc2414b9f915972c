"""What a user may not read or write is one sentence and exit code 2, and nothing is lost by having tried."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from accounts import account, differences
from forking import ROOT, Forks
from states import INCONCLUSIVE, States
from tally import tally

NOBODY = 65534
USAGE = 2


@pytest.fixture
def place(states: States) -> Iterator[Path]:
    """A finished run, made by root, in a folder that everybody can reach."""
    if os.getuid() != 0:
        pytest.skip("only root can run a program as another user")
    if not all(folder.stat().st_mode & 0o005 == 0o005 for folder in (ROOT, *ROOT.parents)):
        pytest.skip(f"another user could not read the code in {ROOT}")
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    try:
        where = base / "work"
        shutil.copytree(states.end("parity"), where)
        for path in (where, *where.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield where
    finally:
        for path in base.rglob("*"):
            if not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(base)


def give(folder: Path) -> None:
    """Make nobody the owner of all in a folder."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)


def state(folder: Path) -> dict[str, str]:
    """Path -> a digest of what is there, locks left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


RUN = ("parity", "run", "small.yaml")
BOTH = ("runs/small/parity/hf.results.jsonl", "runs/small/parity/llamacpp.results.jsonl")
PHOTOS = ("pipeline", "dataset", "small.yaml", "--set", "dataset={source: photos, path: photos}", "--set", "name=mine")
CASES: dict[str, tuple[tuple[str, ...], str, int]] = {
    # what is tried: (command, what nobody gets no right to, the mode that it gets)
    "a run that root made": (RUN, "", 0),
    "runs cannot be written": (("pipeline", "dataset", "small.yaml", "--set", "name=new"), "runs", 0o555),
    "runs cannot be read": (RUN, "runs", 0o000),
    "the run cannot be written": ((*RUN, "--feed", "bgr"), "runs/small", 0o555),
    "the lock cannot be written": (RUN, "runs/small/.lock", 0o000),
    "the recipe cannot be read": (RUN, "small.yaml", 0o000),
    "the records cannot be read": (RUN, "runs/small/dataset/test.json", 0o000),
    "an image cannot be read": (RUN, "runs/small/dataset/images/01_water_0001.png", 0o000),
    "the images cannot be read": (RUN, "runs/small/dataset/images", 0o000),
    "the dataset cannot be read": (RUN, "runs/small/dataset", 0o000),
    "the base model cannot be read": (RUN, "runs/small/base/model.safetensors", 0o000),
    "the adapter cannot be read": (RUN, "runs/small/lora_adapter/adapter_model.safetensors", 0o000),
    "the merged model cannot be read": (RUN, "runs/small/merged/model.safetensors", 0o000),
    "a half of the bundle cannot be read": (RUN, "runs/small/bundle/Small-Q8_0.gguf", 0o000),
    "the bundle cannot be read": (RUN, "runs/small/bundle", 0o000),
    "the manifest cannot be read": (RUN, "runs/small/bundle/manifest.json", 0o000),
    "results cannot be read": (RUN, BOTH[0], 0o000),
    "results cannot be written": (RUN, "runs/small/parity", 0o555),
    "the ladder cannot be read": (RUN, "runs/small/parity/ladder.jsonl", 0o000),
    "a stage's record cannot be read": (RUN, "runs/small/stages/export.json", 0o000),
    "the records of stages cannot be read": (RUN, "runs/small/stages", 0o000),
    "worst cannot be written": ((*RUN, "--feed", "bgr"), "runs/small/parity-bgr/worst", 0o000),
    "judge: results cannot be read": (("parity", "judge", *BOTH), BOTH[1], 0o000),
    "judge: the folder cannot be read": (("parity", "judge", *BOTH), "runs/small/parity", 0o000),
    "judge: the contract cannot be read": (("parity", "judge", *BOTH), "runs/small/bundle/contract.json", 0o000),
    "judge: the ladder cannot be read": (("parity", "judge", *BOTH), "runs/small/parity/ladder.jsonl", 0o000),
    "judge: no place for --out": (("parity", "judge", *BOTH, "--out", "runs/verdict.json"), "runs", 0o555),
    "judge: no baseline": (("parity", "judge", *BOTH, "--baseline", "small.yaml"), "small.yaml", 0o000),
    "diff: results cannot be read": (("parity", "diff", *BOTH), BOTH[1], 0o000),
    "diff: no place for --out": (("parity", "diff", *BOTH, "--out", "runs/diff.json"), "runs", 0o555),
    "report: the verdict cannot be read": (("parity", "report", "runs/small"), "runs/small/parity/verdict.json", 0o000),
    "report: the folder cannot be written": (("parity", "report", "runs/small"), "runs/small/parity", 0o555),
    "report: no place for --out": (("parity", "report", "runs/small", "--out", "runs/page.html"), "runs", 0o555),
    "verify: the bundle cannot be read": (("pipeline", "verify", "runs/small/bundle"), "runs/small/bundle", 0o000),
    "verify: a half cannot be read": (
        ("pipeline", "verify", "runs/small/bundle"), "runs/small/bundle/Small-Q8_0.gguf", 0o000,
    ),
    "letterbox: the photo cannot be read": (("pipeline", "letterbox", "photos/a/1.png", "x.png"), "photos/a/1.png", 0),
    "letterbox: no place for the picture": (("pipeline", "letterbox", "photos/a/1.png", "runs/x.png"), "runs", 0o555),
    "photos cannot be read": (PHOTOS, "photos", 0o000),
    "photos of a label cannot be read": (PHOTOS, "photos/a", 0o000),
    "one photo cannot be read": (PHOTOS, "photos/a/1.png", 0o000),
}  # fmt: skip


@pytest.mark.attack
@pytest.mark.parametrize("case", CASES)
def test_no_permission_is_a_sentence(forks: Forks, states: States, place: Path, case: str) -> None:
    words, locked, mode = CASES[case]
    images = sorted((place / "runs/small/dataset/images").glob("*.png"))
    for number, image in enumerate(images[:20]):
        target = place / "photos" / "abcde"[number % 5] / f"{number // 5 + 1}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, target)
    if words == PHOTOS:
        words = (*words, "--set", "contract.labels=[a, b, c, d, e]")
    if case != "a run that root made":
        give(place)
        if not (place / locked).exists():
            (place / locked).mkdir(parents=True)
            os.chown((place / locked).parent, NOBODY, NOBODY)
        os.chown(place / locked, 0, 0)
        (place / locked).chmod(mode)
    kept = state(place)
    ended = forks.run(*words, cwd=place, user=NOBODY)
    left = state(place)
    said = [line for line in ended.err.splitlines() if line.lower().startswith(("error:", "failed:"))]
    made_again = words == RUN and ended.code == INCONCLUSIVE  # what a stage has made may be made again
    # A folder that was put aside with files in it that nobody may not even list, and so not remove.
    unremovable = "left over: .dataset." if locked == "runs/small/dataset/images" else "never"
    found = {
        "hangs": ended.hung,
        "tracebacks": ended.traceback,
        "wrong_codes": not ended.traceback and not made_again and (ended.code != USAGE or len(said) != 1),
        "lost": [
            line
            for line in differences(account(place / "runs" / "small"), states.wanted("parity"))
            if not line.startswith(unremovable)
        ]
        if made_again
        else [path for path, digest in kept.items() if left.get(path) != digest],
    }
    tally("no permission", tried=1, **{count: 1 for count, is_so in found.items() if is_so})
    assert not any(found.values()), (found, ended.brief)


@pytest.mark.attack
def test_a_record_that_cannot_be_written_does_not_change_a_verdict(forks: Forks, place: Path) -> None:
    """GitHub's summary is extra."""
    environment = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(place / "no" / "summary.md")}
    ended = forks.run("parity", "judge", *BOTH, cwd=place, user=NOBODY, environment=environment)
    bad = ended.code != INCONCLUSIVE
    tally("no permission", tried=1, tracebacks=ended.traceback, wrong_codes=bad)
    assert (ended.code, ended.traceback) == (INCONCLUSIVE, False), ended.brief


@pytest.mark.attack
@pytest.mark.parametrize("job", ["judge", "report", "verify"])
def test_what_only_reads_needs_no_right_to_write(forks: Forks, place: Path, job: str) -> None:
    words, code = {
        "judge": (("parity", "judge", *BOTH), INCONCLUSIVE),
        "report": (("parity", "report", "runs/small", "--out", str(place.parent / "free" / "page.html")), 0),
        "verify": (("pipeline", "verify", "runs/small/bundle"), 0),
    }[job]
    (place.parent / "free").mkdir()
    os.chown(place.parent / "free", NOBODY, NOBODY)
    ended = forks.run(*words, cwd=place, user=NOBODY)
    tally("no permission", tried=1, tracebacks=ended.traceback, wrong_codes=ended.code != code)
    assert ended.code == code, ended.brief
