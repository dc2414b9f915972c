"""The command line's own part: where a run may be, what it clears, and where the letterbox writes."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from places import unprivileged

from pipeline.cli import letterbox, open_build
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_folder

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "configs" / "tiny.yaml"
PHOTO = ROOT / "android_fixtures" / "goldens" / "files" / "rgb.png"


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """How threads wait is chosen once a process, for all that it runs afterwards."""
    monkeypatch.setattr("pipeline.core.openmp.settle", lambda say: None)


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        ("file", "a part of its path is not a folder"),
        ("fifo", "a part of its path is not a folder"),
        ("/proc/nowhere", "No such file or directory"),
        ("/dev/null", "a part of its path is not a folder"),
        ("x" * 300, "File name too long"),
        ("link", "a part of its path is not a folder"),
    ],
)
@pytest.mark.parametrize("wait", [False, True])
def test_a_place_that_runs_cannot_be_in_is_one_sentence(tmp_path: Path, runs: str, reason: str, wait: bool) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("nowhere")
    place = tmp_path / runs
    with pytest.raises(UserError) as error:
        open_build(RECIPE, None, place, quiet=True, wait=wait)
    assert str(error.value) == f"{place}/tiny cannot be written ({reason}): choose another place"


def test_a_place_that_may_not_be_written_is_one_sentence() -> None:
    with unprivileged() as folder:
        folder.chmod(0o555)
        with pytest.raises(UserError, match=r"runs/tiny cannot be written \(Permission denied\)"):
            open_build(RECIPE, None, folder / "runs", quiet=True)
        folder.chmod(0o755)


def test_without_any_folder_for_temporary_files_a_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(UserError, match=r"no folder for temporary files can be written, .* set TMPDIR to one"):
        open_build(RECIPE, None, tmp_path, quiet=True)


def test_a_run_clears_what_killed_ones_left_and_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "tiny"
    left = [
        *(root / "stages" / ".train.json.ab12_xyz.tmp", root / "logs" / ".summary.json.abcdefgh.tmp"),
        *(root / "parity" / "shards" / ".x.jsonl.abcdefgh.tmp", root / ".bundle.abcdefgh.tmp" / "half.gguf"),
    ]
    kept = [root / "stages" / "train.json", root / ".notes.tmp", root / "a.abcdefgh.tmp", tmp_path / ".b.abcdefgh.tmp"]
    for path in (*left, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    (root / ".dataset.abcdefgh.old" / "old").mkdir(parents=True)  # killed between two renames
    with atomic_folder(root / "parity" / "worst") as working:  # by a shard, which has a lock of its own
        (working / "kept").touch()
        held = open_build(RECIPE, None, tmp_path, quiet=True).held
    assert held
    held.close()
    found = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {*kept, root / ".lock", root / "parity" / "worst" / "kept"}
    assert [path for path in root.glob(".*") if path.is_dir()] == []
    assert (root / "dataset").is_dir()


def null(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes devices")
    os.mknod(path, 0o20666, os.makedev(1, 3))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (null, "a device"),
        (os.mkfifo, "a FIFO"),
        (os.mkdir, "a folder"),
        (lambda path: path.symlink_to("/dev/null"), "a link, which is neither followed nor replaced"),
    ],
)
def test_the_letterbox_replaces_files_only(tmp_path: Path, make: Callable[[Path], None], kind: str) -> None:
    out = tmp_path / "out.png"
    make(out)
    before = os.lstat(out)
    with pytest.raises(UserError, match=f"{out} is {kind}, and a file is to be written there: give another path"):
        letterbox(PHOTO, out)
    assert os.lstat(out) == before


def test_the_letterbox_writes_where_the_name_is_odd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    letterbox(PHOTO, tmp_path / "two\nlines \udcff.png")
    assert len(list(tmp_path.iterdir())) == 1
    assert capsys.readouterr().out == f"{tmp_path}/two\\nlines \\udcff.png: 200x150 -> 256x256\n"
