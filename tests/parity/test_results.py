"""Results on disk: a killed run resumes, and a file that is not whole or not ours is told so."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sides import cut, reseal

from parity.results import Header, ResultsWriter, Row, read_results
from pipeline.core.appending import written_beside
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes
from pipeline.core.jsonl import read_lines


def header(**changes: object) -> Header:
    values: dict[str, object] = {
        "side": "llamacpp",
        "engine": "llama.cpp",
        "contract_sha256": sha256_bytes(b"contract"),
        "dataset_sha256": sha256_bytes(b"dataset"),
        "model": {"model": sha256_bytes(b"model"), "mmproj": sha256_bytes(b"mmproj")},
        "versions": {"llama-cpp-python": "0.3.36"},
        "device": {"cpu": "some"},
        "runtime": {"n_ctx": 1024, "flash_attn": True, "type_k": "q4_0", "seed": None, "scale": 0.5},
        "prompt_token_ids": [49152, -1, -1, 198],
        "image_slots": [[1, 2]],
    }
    return Header.model_validate(values | changes)


def row(number: int, **changes: object) -> Row:
    key = sha256_bytes(str(number).encode())
    values: dict[str, object] = {
        "key": key,
        "image_id": f"image_{number}",
        "rgb_sha256": key,
        "truth": "fire",
        "text": " fire\u2028\n물",
        "label": "fire",
        "generated_token_ids": [2892],
        "label_logprobs": {"fire": -0.1, "water": -3.0},
        "top_logits": [[2892, 11.5], [913, 8.25]],
        "ms": {"encode": 3.5, "prefill": 12.0, "generate": 4.25},
        "stop_reason": "end",
    }
    return Row.model_validate(values | changes)


def write(path: Path, *rows: Row) -> None:
    with ResultsWriter(path, header(), [one.key for one in rows]) as writer:
        for one in rows:
            writer.append(one)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    rows = [row(1), row(2, label=None, stop_reason="length", text="")]
    write(path, *rows)
    results = read_results(path)
    assert results.header == header(images=2)
    assert list(results.rows.values()) == rows
    *before, end = path.read_bytes().splitlines(keepends=True)
    assert len(before) == 3
    assert json.loads(end) == {"kind": "end", "rows": 2, "sha256": sha256_bytes(b"".join(before))}
    assert results.sha256 == sha256_bytes(b"".join(before))
    assert [one.name for one in tmp_path.iterdir()] == ["results.jsonl"]


def test_a_number_that_is_not_finite_becomes_null(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write(path, row(1, label_logprobs={"fire": float("nan"), "water": 0.0}, top_logits=[[1, float("inf")]]))
    assert json.loads(path.read_bytes().split(b"\n")[1])["label_logprobs"] == {"fire": None, "water": 0.0}
    (read,) = read_results(path).rows.values()
    assert read.label_logprobs == {"fire": None, "water": 0.0}
    assert read.top_logits == ((1, None),)


@pytest.mark.parametrize("torn", [0, 1, 40, -1])
def test_a_torn_last_line_is_dropped_and_its_image_run_again(tmp_path: Path, torn: int) -> None:
    path = tmp_path / "results.jsonl"
    write(path, row(1), row(2))
    whole = path.read_bytes()
    cut(path, 1, torn)
    with pytest.raises(UserError, match=r"results\.jsonl is not finished: it has 1 of 2 images and no closing line"):
        read_results(path)
    assert list(read_lines(path, Header, Row, unfinished=True).rows) == [row(1).key]
    with ResultsWriter(path, header(), [row(1).key, row(2).key]) as writer:
        assert (writer.keys, writer.changed) == ({row(1).key}, "")
        writer.append(row(2))
    assert path.read_bytes() == whole
    assert not written_beside(path).exists()


def test_a_row_is_on_disk_before_the_writer_closes(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with ResultsWriter(path, header(), [row(1).key]) as writer:
        writer.append(row(1))
        assert list(read_lines(path, Header, Row, unfinished=True).rows) == [row(1).key]
        with pytest.raises(ValueError, match=r"image_1 .* has a row already"):
            writer.append(row(1))


def test_a_run_that_fails_or_has_images_left_writes_no_closing_line(tmp_path: Path) -> None:
    path, keys = tmp_path / "results.jsonl", [row(1).key, row(2).key]
    with ResultsWriter(path, header(), keys) as writer:
        writer.append(row(1))
    assert b'"end"}' not in path.read_bytes().splitlines()[-1][:20]
    with pytest.raises(UserError, match="1 of 2 images"):
        read_results(path)
    writer = ResultsWriter(path, header(), keys)
    writer.append(row(2))
    writer.__exit__(KeyboardInterrupt)
    with pytest.raises(UserError, match="2 of 2 images and no closing line"):
        read_results(path)
    with ResultsWriter(path, header(), keys) as writer:
        assert writer.keys == set(keys)
    assert list(read_results(path).rows) == keys


def damage(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"truth":"fire"', b'"truth":"wood"'), (b'"encode":3.5', b'"encode":9.5'), (b"image_1", b"image_7")],
)
def test_a_whole_file_that_was_edited_is_refused_and_answered_again(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = tmp_path / "results.jsonl"
    write(path, row(1), row(2))
    damage(path, old, new)
    with pytest.raises(UserError, match=r"was changed after it was written: its closing line is of 2 rows"):
        read_results(path)
    with ResultsWriter(path, header(), [row(1).key, row(2).key]) as writer:
        assert writer.keys == set()
        assert writer.changed == "it was changed after it was written"


def test_rows_removed_added_or_behind_the_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write(path, row(1), row(2), row(3))
    head, one, two, three, end = path.read_bytes().splitlines(keepends=True)
    for lines, said in (
        ([head, one, three, end], "is of 3 rows .* and it has 2 rows"),
        ([head, one, three, two, end], "and it has other content"),
        ([head, one, two, three], "3 of 3 images and no closing line"),
        ([head, one, two, three, end, end], "line 6 stands behind the closing line"),
        ([head, one, two, three, end, b"{}"], "line 6 stands behind the closing line"),
    ):
        path.write_bytes(b"".join(lines))
        with pytest.raises(UserError, match=said):
            read_results(path)
    path.write_bytes(b"".join([head, one, two]))
    reseal(path)
    assert len(read_results(path).rows) == 2, "who makes the closing line anew is not seen here"
    damage(path, b'"images":2', b'"images":3')
    with pytest.raises(UserError, match="was changed after it was written"):
        read_results(path)


def test_an_unfinished_file_that_was_edited_is_answered_again(tmp_path: Path) -> None:
    path, rows = tmp_path / "results.jsonl", [row(number) for number in range(6)]
    keys = [one.key for one in rows]
    for count, changed in ((4, 2), (4, 0), (5, 4)):
        write(path, *rows)
        cut(path, count)
        damage(path, f'"image_{changed}"'.encode(), b'"image_9"')
        with ResultsWriter(path, header(), keys) as writer:
            assert (writer.keys, writer.changed) == (set(), "it was changed after it was written")
        path.unlink()
    write(path, *rows)
    cut(path, 4)
    written_beside(path).unlink()
    with ResultsWriter(path, header(), keys) as writer:
        assert writer.changed, "rows that nobody vouches for"


def test_a_row_that_is_found_wrong_is_answered_again(tmp_path: Path) -> None:
    path, keys = tmp_path / "results.jsonl", [row(1).key, row(2).key]
    write(path, row(1), row(2))
    for check, changed in ((lambda one: None, ""), (lambda one: "no" if one.image_id == "image_2" else None, "no")):
        with ResultsWriter(path, header(), keys, check) as writer:
            assert (writer.keys, writer.changed) == (set() if changed else set(keys), changed)


def test_a_finished_file_grows_by_more_images(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write(path, row(1), row(2))
    with ResultsWriter(path, header(), [row(2).key, row(3).key]) as writer:
        assert (writer.keys, writer.changed) == ({row(1).key, row(2).key}, "")
        writer.append(row(3))
    read = read_results(path)
    assert (list(read.rows), read.header.images) == ([row(1).key, row(2).key, row(3).key], 3)
    with ResultsWriter(path, header(), [row(1).key]) as writer:  # fewer: nothing is lost
        assert len(writer.keys) == 3
    assert read_results(path) == read


@pytest.mark.parametrize("at", range(12))
def test_killed_at_any_write_it_goes_on_and_at_most_one_row_is_repeated(tmp_path: Path, at: int) -> None:
    """SIGKILL before the ``at``-th system call that changes a file."""
    path, keys = tmp_path / "results.jsonl", [row(number).key for number in range(3)]
    code = f"""
import os, signal, sys
sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:3]]!r}
from test_results import ResultsWriter, header, row
from pathlib import Path
left = {at}
def killing(real):
    def call(*arguments, **named):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)
    return call
for name in ("pwrite", "truncate", "replace", "unlink", "fsync"):
    setattr(os, name, killing(getattr(os, name)))
with ResultsWriter(Path({str(path)!r}), header(), {keys!r}) as writer:
    writer._file.flush = killing(writer._file.flush)
    for number in range(3):
        if row(number).key not in writer.keys:
            writer.append(row(number))
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False)
    assert ended.returncode in (0, -signal.SIGKILL)
    rows = path.read_bytes().count(b'"image_id"') if path.exists() else 0
    with ResultsWriter(path, header(), keys) as writer:
        assert writer.changed == ""
        assert rows - len(writer.keys) <= (1 if ended.returncode else 0)
        for number in range(3):
            if row(number).key not in writer.keys:
                writer.append(row(number))
    assert list(read_results(path).rows) == keys
    assert not written_beside(path).exists()


def test_a_pipe_is_read(tmp_path: Path) -> None:
    path, pipe = tmp_path / "results.jsonl", tmp_path / "pipe"
    write(path, row(1), row(2))
    os.mkfifo(pipe)
    with subprocess.Popen(["cp", "/dev/stdin", pipe], stdin=subprocess.PIPE) as other:
        assert other.stdin is not None
        other.stdin.write(path.read_bytes())
        other.stdin.close()
        assert read_results(pipe) == read_results(path)
    for place in (Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match=f"{place}"):
            read_results(place)


@pytest.mark.parametrize(
    "change",
    [
        {"contract_sha256": sha256_bytes(b"other")},
        {"model": {"model": sha256_bytes(b"other")}},
        {"runtime": {"n_ctx": 2048}},
        {"image_slots": [[1, 1], [2, 1]]},
    ],
)
def test_another_header_starts_anew(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "results.jsonl"
    write(path, row(1))
    with ResultsWriter(path, header(**change)) as writer:
        assert (writer.keys, writer.changed) == (set(), "")
    assert read_results(path).rows == {}
    assert read_results(path).header == header(**change)


def test_a_file_that_cannot_be_read_or_is_of_another_version_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for spoil in (lambda text: text + "{}\n", lambda text: text.replace('"schema_version":4', '"schema_version":2')):
        write(path, row(1))
        path.write_text(spoil(path.read_text()))
        write(path, row(2))
        assert list(read_results(path).rows) == [row(2).key]


@pytest.mark.parametrize("content", ["my notes\n", "[1, 2]\n", '{"labels": []}\n', '{"side":"hf","schema_version":2}'])
def test_a_file_of_another_kind_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"labels\.json is not a results file"):
        ResultsWriter(path, header())
    with pytest.raises(UserError, match="not a results file"):
        read_results(path)
    assert path.read_text() == content


def test_bad_files_are_named_with_line_and_key(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with pytest.raises(UserError, match=r"results\.jsonl cannot be read: No such file.*run that side first"):
        read_results(path)
    write(path, row(1), row(2))
    head, first, second, end, _ = path.read_text().split("\n")  # not splitlines: a text may hold U+2028

    def message(*lines: str) -> str:
        path.write_text("".join(line + "\n" for line in lines))
        with pytest.raises(UserError) as caught:
            read_results(path)
        return str(caught.value)

    assert "line 3 is not a row: Invalid JSON" in message(head, first, "{torn")
    assert "line 2 is not a row: label: this key is missing" in message(head, first.replace('"label":"fire",', ""))
    assert "line 2 is not a row: extra" in message(head, first[:-1] + ',"extra":1}')
    assert "line 2 is not a row: ms.encode" in message(head, first.replace("3.5", '"3.5"'))
    for wrong in ("-1", "NaN", "1e999", "Infinity"):
        assert "line 2 is not a row: ms.encode" in message(head, first.replace("3.5", wrong))
    assert "line 1 is not a header: runtime.scale" in message(head.replace('"scale":0.5', '"scale":NaN'))
    assert "logarithm of a probability is 0 at most" in message(head, first.replace("-0.1", "0.1"))
    assert "Invalid JSON" in message(head, "[" * 100_000)
    assert "line 4 is not a closing line" in message(head, first, second, end.replace('"rows":2', '"rows":-2'))
    assert "line 2 is not a row: key" in message(head, first.replace(row(1).key, "abc"))
    assert "line 4: image image_1 has a row already" in message(head, first, second, first)
    assert "line 1 is not a header: image_slots" in message(head.replace("[[1,2]]", "[[1]]"))
    assert "schema version 2" in message(head.replace('"schema_version":4', '"schema_version":2'))
