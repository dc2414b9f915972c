"""Results on disk: a killed run resumes, and a file that is not whole or not ours is told so."""

import json
from pathlib import Path

import pytest

from parity.results import Header, ResultsWriter, Row, read_results
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes


def header(**changes: object) -> Header:
    values: dict[str, object] = {
        "side": "llamacpp",
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
    with ResultsWriter(path, header()) as writer:
        for one in rows:
            writer.append(one)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    rows = [row(1), row(2, label=None, stop_reason="length", text="")]
    write(path, *rows)
    results = read_results(path)
    assert results.header == header()
    assert list(results.rows.values()) == rows
    assert path.read_bytes().count(b"\n") == 3


def test_a_number_that_is_not_finite_becomes_null(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write(path, row(1, label_logprobs={"fire": float("nan"), "water": 0.0}, top_logits=[[1, float("inf")]]))
    assert json.loads(path.read_bytes().split(b"\n")[1])["label_logprobs"] == {"fire": None, "water": 0.0}
    (read,) = read_results(path).rows.values()
    assert read.label_logprobs == {"fire": None, "water": 0.0}
    assert read.top_logits == ((1, None),)


@pytest.mark.parametrize("kept", [0, 1, 40, -1])
def test_a_torn_last_line_is_dropped_and_its_image_run_again(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "results.jsonl"
    write(path, row(1), row(2))
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    path.write_bytes(whole[:start] + whole[start:][:kept])
    assert list(read_results(path).rows) == [row(1).key]
    with ResultsWriter(path, header()) as writer:
        assert writer.keys == {row(1).key}
        writer.append(row(2))
    assert path.read_bytes() == whole


def test_a_row_is_on_disk_before_the_writer_closes(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with ResultsWriter(path, header()) as writer:
        writer.append(row(1))
        assert list(read_results(path).rows) == [row(1).key]
        with pytest.raises(ValueError, match=r"image_1 .* has a row already"):
            writer.append(row(1))


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
        assert writer.keys == set()
    assert read_results(path).rows == {}
    assert read_results(path).header == header(**change)


def test_a_file_that_cannot_be_read_or_is_of_another_version_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for spoil in (lambda text: text + "{}\n", lambda text: text.replace('"schema_version":2', '"schema_version":1')):
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
    head, first, second, _ = path.read_text().split("\n")  # not splitlines: a text may hold U+2028

    def message(*lines: str) -> str:
        path.write_text("".join(line + "\n" for line in lines))
        with pytest.raises(UserError) as caught:
            read_results(path)
        return str(caught.value)

    assert "line 3 is not a row: Invalid JSON" in message(head, first, "{torn")
    assert "line 2 is not a row: label: Field required" in message(head, first.replace('"label":"fire",', ""))
    assert "line 2 is not a row: extra" in message(head, first[:-1] + ',"extra":1}')
    assert "line 2 is not a row: ms.encode" in message(head, first.replace("3.5", '"3.5"'))
    assert "line 2 is not a row: key" in message(head, first.replace(row(1).key, "abc"))
    assert "line 4: image image_1 has a row already" in message(head, first, second, first)
    assert "line 1 is not a header: image_slots" in message(head.replace("[[1,2]]", "[[1]]"))
    assert "schema version 1" in message(head.replace('"schema_version":2', '"schema_version":1'))
