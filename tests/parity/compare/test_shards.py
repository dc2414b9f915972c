"""Shards: every image in exactly one, and what they wrote put together again exactly, or not at all."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from sides import cut, reseal

from parity.compare.ladder import LadderHeader, LadderWriter, Measured, header_digest, read_ladder
from parity.compare.runner import CANDIDATE, LADDER, REFERENCE
from parity.compare.samples import Sample
from parity.compare.shards import (
    FILES,
    Expected,
    merge_results,
    merge_shards,
    run_shard,
    select,
    shard_folder,
    shard_keys,
)
from parity.judge.judge import judge
from parity.results import Header, ResultsWriter, Row, read_results
from pipeline.contract import Contract
from pipeline.core.errors import UserError
from pipeline.core.files import lock, sha256_bytes
from pipeline.dataset.records import Record

CONTRACT = Contract()
SIDES = {REFERENCE: "hf", CANDIDATE: "llamacpp"}


def samples(count: int, seed: int = 0) -> list[Sample]:
    """Samples with random keys; there is no picture behind them."""
    chance = random.Random(seed)
    return [
        Sample(
            Path("dataset"),
            Record(
                image_id=f"image_{number:04d}",
                image_path=f"images/{number}.png",
                element=chance.choice(CONTRACT.labels),
                rgb_sha256=chance.randbytes(32).hex(),
            ),
        )
        for number in range(count)
    ]


def header(side: str, **changes: object) -> Header:
    values: dict[str, object] = {
        "side": side,
        "engine": "transformers" if side == "hf" else "llama.cpp",
        "contract_sha256": CONTRACT.digest,
        "dataset_sha256": sha256_bytes(b"dataset"),
        "model": {"model": sha256_bytes(side.encode())},
        "versions": {"torch": "2.13.0"},
        "device": {"cpu": "some", "cores": "2"},
        "runtime": {"n_threads": 2, "fed": "rgb"},
        "prompt_token_ids": [1, -1, -1, 2],
        "image_slots": [[1, 2]],
    }
    return Header.model_validate(values | changes)


def ladder_header(reference: Header, candidate: Header, **floor: object) -> LadderHeader:
    spread = {"median": 0.1, "p95": 0.2, "largest": 0.3}
    measured: dict[str, object] = {"samples": 8, "generated_differ": 1, "labels_differ": 0}
    measured |= dict.fromkeys(("embeddings_error", "logits_kl", "logits_kl_labels", "logits_max"), spread)
    return LadderHeader(
        reference_sha256=header_digest(reference),
        candidate_sha256=header_digest(candidate),
        contract_sha256=CONTRACT.digest,
        dataset_sha256=reference.dataset_sha256,
        text_type="Q8_0",
        mmproj_type="Q8_0",
        kv_type="q4_0/q4_0",
        floor=measured | floor,  # type: ignore[arg-type]  (pydantic makes it one)
    )


def row(sample: Sample, side: str, ms: float = 1.0) -> Row:
    """Follows from the key and the side alone, but for the time."""
    chance = random.Random(sample.key + side)
    label = sample.truth if chance.random() < 0.8 else chance.choice([*CONTRACT.labels, None])
    return Row(
        key=sample.key,
        image_id=sample.image_id,
        rgb_sha256=sample.key,
        truth=sample.truth,
        text=f" {label}\u2028",
        label=label,
        generated_token_ids=(chance.randrange(49152),),
        label_logprobs={name: -chance.expovariate(0.1) for name in CONTRACT.labels} | {"fire": float("nan")},
        top_logits=tuple((chance.randrange(49152), chance.gauss(0, 9)) for _ in range(8)),
        ms={"encode": ms, "prefill": chance.random()},
        stop_reason="end",
    )


def measured(sample: Sample) -> Measured:
    chance = random.Random(sample.key)
    equal = chance.random() < 0.5
    return Measured(
        key=sample.key,
        image_id=sample.image_id,
        decoded_equal=None,
        pixels_equal=True,
        tiles=(2, 2),
        tiles_bytes=chance.randrange(3),
        tiles_bytes_share=chance.random(),
        tiles_floats=chance.random(),
        tokens_equal=True,
        tokens_first=None,
        embeddings_error=chance.random(),
        embeddings_cosine=chance.random(),
        logits_kl=chance.expovariate(1e6),
        logits_kl_labels=float("inf"),
        logits_top1_equal=equal,
        logits_max=chance.random(),
        generated_equal=equal,
        label_equal=equal,
    )


def write(
    todo: Sequence[Sample],
    folder: Path,
    ms: float = 1.0,
    floor: dict[str, object] | None = None,
    **changes: object,
) -> None:
    """Answer like a run: append to the three files, going on from what they hold."""
    headers = {name: header(side, **changes) for name, side in SIDES.items()}
    for name, side in SIDES.items():
        with ResultsWriter(folder / name, headers[name], [sample.key for sample in todo]) as writer:
            for sample in todo:
                if sample.key not in writer.keys:
                    writer.append(row(sample, side, ms))
    top = ladder_header(headers[REFERENCE], headers[CANDIDATE], **(floor or {}))
    with LadderWriter(folder / LADDER, top, [sample.key for sample in todo]) as ladder:
        for sample in todo:
            if sample.key not in ladder.keys:
                ladder.append(measured(sample))


def expected(**changes: object) -> Expected:
    """What the run that merges says of itself."""
    about = {"contract_sha256": CONTRACT.digest, "dataset_sha256": sha256_bytes(b"dataset"), "split": None}
    sides = [about | {"model": {"model": sha256_bytes(side.encode())}} for side in SIDES.values()]
    return Expected(sides[0], sides[1] | changes, {"contract_sha256": CONTRACT.digest, "text_type": "Q8_0"})


def whole(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def write_shards(folder: Path, todo: Sequence[Sample], shards: int) -> None:
    """All shards of a run, last one first."""
    for shard in range(shards, 0, -1):
        run_shard(write, todo, folder, shards, shard)


@pytest.mark.parametrize("seed", range(20))
def test_every_image_is_in_one_shard_whatever_the_order_and_shards_are_even(seed: int) -> None:
    chance = random.Random(seed)
    todo = samples(chance.randrange(1, 200), seed)
    shards = chance.choice([1, 2, 3, 7, 16, len(todo) + 5])
    parts = [select(todo, shards, shard) for shard in range(1, shards + 1)]
    assert sorted(sample.key for part in parts for sample in part) == sorted(sample.key for sample in todo)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    shuffled = chance.sample(todo, len(todo))
    assert [select(shuffled, shards, shard) for shard in range(1, shards + 1)] == parts


def test_the_division_is_part_of_the_interface() -> None:
    # Shards of one run may be started by different versions of the code; written by hand from the rule.
    assert [shard_keys(["d", "a", "c", "b", "e"], 2, shard) for shard in (1, 2)] == [["a", "c", "e"], ["b", "d"]]
    assert shard_keys(["b", "a"], 3, 3) == []


@pytest.mark.parametrize(("shards", "shard"), [(3, 0), (3, 4), (0, 0), (-1, 1)])
def test_a_shard_that_does_not_exist_is_refused(shards: int, shard: int) -> None:
    with pytest.raises(UserError, match=f"no shard {shard} of {shards}: shards are numbered 1 to"):
        select(samples(3), shards, shard)


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 45])
def test_merged_is_what_one_process_writes(tmp_path: Path, shards: int) -> None:
    todo = samples(40, seed=shards)
    write(todo, tmp_path / "plain")
    write_shards(tmp_path / "parts", todo, shards)
    merge_shards(tmp_path / "parts", shards, todo, expected())
    assert whole(tmp_path / "parts") == whole(tmp_path / "plain")
    again, keys = tmp_path / "again.jsonl", [sample.key for sample in todo]
    merge_results(
        [shard_folder(tmp_path / "parts", shards, i) / CANDIDATE for i in range(1, shards + 1)],
        again,
        keys,
    )
    assert again.read_bytes() == (tmp_path / "plain" / CANDIDATE).read_bytes()


def test_rows_and_verdict_are_the_same_but_for_the_time(tmp_path: Path) -> None:
    todo = samples(100)
    write(todo, tmp_path / "plain", ms=1.0)
    for shard in (1, 2, 3):
        write(select(todo, 3, shard), shard_folder(tmp_path, 3, shard), ms=10.0 * shard)
    merge_shards(tmp_path, 3, todo, expected())
    verdicts = []
    for folder in (tmp_path / "plain", tmp_path):
        reference, candidate = (read_results(folder / name) for name in SIDES)
        verdict = judge(reference, candidate, CONTRACT).model_dump(exclude={"evidence"})
        for side in ("reference", "candidate"):
            for timing in ("seconds", "images_per_second", "ms_median"):
                del verdict[side][timing]
        verdicts.append((verdict, [one.model_dump(exclude={"ms"}) for one in candidate.rows.values()]))
    assert verdicts[0] == verdicts[1]
    assert verdicts[0][0]["n"] == 100


def test_a_shard_goes_on_where_it_was_killed_and_the_merge_says_what_is_missing(tmp_path: Path) -> None:
    todo = samples(40)
    write(todo, tmp_path / "plain")
    write_shards(tmp_path, todo, 3)
    path = shard_folder(tmp_path, 3, 2) / CANDIDATE
    cut(path, 8, torn=50)
    for name in FILES:
        (shard_folder(tmp_path, 3, 3) / name).unlink()
    with pytest.raises(UserError) as caught:
        merge_shards(tmp_path, 3, todo, expected())
    assert "shard 3 of 3 is missing 13 of 13 images (in hf.results.jsonl): run --shards 3 --shard 3 again" in str(
        caught.value
    )
    assert not any((tmp_path / name).exists() for name in FILES)
    run_shard(write, todo, tmp_path, 3, 3)
    with pytest.raises(UserError, match=r"shard 2 of 3 is missing 5 of 13 images \(in llamacpp\.results\.jsonl\): run"):
        merge_shards(tmp_path, 3, todo, expected())
    run_shard(write, todo, tmp_path, 3, 2)
    merge_shards(tmp_path, 3, todo, expected())
    assert whole(tmp_path) == whole(tmp_path / "plain")


def test_a_shard_without_images_may_be_missing(tmp_path: Path) -> None:
    todo = samples(2)
    for shard in (1, 2):
        run_shard(write, todo, tmp_path, 4, shard)
    merge_shards(tmp_path, 4, todo, expected())
    assert list(read_results(tmp_path / REFERENCE).rows) == [sample.key for sample in todo]


def test_many_missing_shards_are_counted(tmp_path: Path) -> None:
    todo = samples(60)
    with pytest.raises(UserError, match=r"shard 20 of 30 is missing 2 of 2 images, and 10 more shards are not whole"):
        merge_shards(tmp_path, 30, todo, expected())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"side": "device"}, "side is 'hf' in the first and 'device' in the second"),
        ({"contract_sha256": "0" * 64}, "contract_sha256 is '"),
        ({"dataset_sha256": "0" * 64}, "dataset_sha256 is '"),
        ({"model": {"model": "0" * 64}}, "model.model is '"),
        (
            {"versions": {"torch": "2.13.0", "numpy": "2"}},
            "versions.numpy is absent in the first and '2' in the second",
        ),
        ({"runtime": {"n_threads": 2, "fed": "bgr"}}, "runtime.fed is 'rgb' in the first and 'bgr' in the second"),
        ({"prompt_token_ids": [1, -1, -1, 3]}, "prompt_token_ids.3 is 2 in the first and 3 in the second"),
        ({"prompt_token_ids": [1]}, "prompt_token_ids is a list of 4 in the first and a list of 1 in the second"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_shards_of_different_runs_are_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    todo = samples(4)
    paths = [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    for shard, changes in ((1, {}), (2, change)):
        with ResultsWriter(
            paths[shard - 1], header(**{"side": "hf", **changes}), [one.key for one in select(todo, 2, shard)]
        ) as writer:
            for sample in select(todo, 2, shard):
                writer.append(row(sample, "hf"))
    with pytest.raises(UserError) as caught:
        merge_results(paths, tmp_path / "out.jsonl", [sample.key for sample in todo])
    assert str(caught.value).startswith(f"{paths[0]} and {paths[1]} cannot be merged: {said}")
    assert not (tmp_path / "out.jsonl").exists()


def test_several_machines_stand_in_the_header_and_the_noise_floor_is_the_greatest(tmp_path: Path) -> None:
    todo = samples(9)
    spread = {"median": 0.05, "p95": 0.25, "largest": 0.5}
    machines: list[tuple[dict[str, str], dict[str, object]]] = [
        ({"cpu": "Xeon", "cores": "8", "system": "Linux"}, {}),
        ({"cpu": "EPYC", "cores": "2", "system": "Linux"}, {"logits_kl": spread, "labels_differ": 2}),
        ({"cpu": "Xeon", "cores": "8", "system": "Linux"}, {}),
    ]
    for shard, (device, floor) in enumerate(machines, start=1):
        runtime = {"n_threads": 4 if device["cores"] == "8" else 2, "fed": "rgb"}
        write(select(todo, 3, shard), shard_folder(tmp_path, 3, shard), floor=floor, device=device, runtime=runtime)
    merge_shards(tmp_path, 3, todo, expected())
    merged = read_results(tmp_path / CANDIDATE).header
    about = {"device": {"cores": "2 | 8", "cpu": "EPYC | Xeon", "system": "Linux"}}
    assert merged == header("llamacpp", **about, runtime={"n_threads": "2 | 4", "fed": "rgb"}, images=9)
    top = read_ladder(tmp_path / LADDER).header
    assert top.candidate_sha256 == header_digest(merged)
    assert top.floor.logits_kl.model_dump() == {"median": 0.1, "p95": 0.25, "largest": 0.5}
    assert (top.floor.labels_differ, top.floor.generated_differ) == (2, 1)
    run_shard(lambda mine, where: write(mine, where, floor={"samples": 9}), todo, tmp_path, 3, 1)
    with pytest.raises(UserError, match=r"floor\.samples is 9 in the first and 8 in the second"):
        merge_shards(tmp_path, 3, todo, expected())


def _copy(a: Path, b: Path, change: Callable[[bytes], bytes]) -> None:
    """Append the first row of a's results to b's, which is made whole again."""
    with open(b, "ab") as file:
        file.write(change(a.read_bytes().splitlines(keepends=True)[1]))
    reseal(b)


def test_an_image_in_two_shards_is_taken_once_where_the_rows_are_one_and_refused_where_not(tmp_path: Path) -> None:
    todo = samples(10)
    write_shards(tmp_path, todo, 2)
    one, two = (shard_folder(tmp_path, 2, shard) / CANDIDATE for shard in (1, 2))
    before = two.read_bytes()
    _copy(one, two, lambda line: line)
    merge_shards(tmp_path, 2, todo, expected())
    assert list(read_results(tmp_path / CANDIDATE).rows) == [sample.key for sample in todo]
    two.write_bytes(before)
    _copy(one, two, lambda line: line.replace(b'"encode":1.0', b'"encode":1.5'))
    with pytest.raises(UserError, match=rf"image image_\d+ .* has one row in {one} and another in {two}: delete"):
        merge_shards(tmp_path, 2, todo, expected())
    two.write_bytes(before)
    _copy(one, two, lambda line: line.replace(line[8:16], b"0" * 8))
    with pytest.raises(UserError, match=rf"{two} has image image_\d+ \(key 00000000.*which the dataset has not"):
        merge_shards(tmp_path, 2, todo, expected())


def test_a_ladder_of_other_results_is_refused(tmp_path: Path) -> None:
    todo = samples(10)
    write_shards(tmp_path, todo, 2)
    folder = shard_folder(tmp_path, 2, 2)
    ladder = (folder / LADDER).read_bytes()
    for name in FILES:
        (folder / name).unlink()
    write(select(todo, 2, 2), folder, device={"cpu": "another"})
    (folder / LADDER).write_bytes(ladder)
    with pytest.raises(UserError, match=rf"{folder / LADDER} compares other results than those in hf.results.jsonl"):
        merge_shards(tmp_path, 2, todo, expected())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"model": "0" * 64}}, "model.model is"),
        ({"dataset_sha256": "0" * 64}, "dataset_sha256 is"),
        ({"runtime": {"fed": "bgr"}}, "runtime.fed is 'rgb' there and 'bgr' here"),
        ({"split": "test"}, "split is None there and 'test' here"),
    ],
)
def test_shards_of_an_older_bundle_dataset_or_feed_are_not_merged(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    todo = samples(10)
    write_shards(tmp_path, todo, 2)
    with pytest.raises(UserError) as caught:
        merge_shards(tmp_path, 2, todo, expected(**change))
    assert f"1-of-2/{CANDIDATE} is of another run than this one: {said}" in str(caught.value)
    assert not any((tmp_path / name).exists() for name in FILES)
    merge_shards(tmp_path, 2, todo, expected())


def test_rows_that_the_dataset_contradicts_are_not_merged(tmp_path: Path) -> None:
    todo = samples(10)
    write_shards(tmp_path, todo, 2)
    path = shard_folder(tmp_path, 2, 2) / CANDIDATE
    before = path.read_bytes()
    key = shard_keys([sample.key for sample in todo], 2, 2)[0]
    truth = next(sample.truth for sample in todo if sample.key == key)
    other = "metal" if truth != "metal" else "wood"
    for old, new, said in (
        (f'"truth":"{truth}"', f'"truth":"{other}"', f"with ground truth '{other}'"),
        (f'"rgb_sha256":"{key}"', f'"rgb_sha256":"{"0" * 64}"', "is not of the dataset's picture as RGB"),
    ):
        lines = before.split(b"\n")
        place = next(number for number, line in enumerate(lines) if key.encode() in line)
        lines[place] = lines[place].replace(old.encode(), new.encode())
        path.write_bytes(b"\n".join(lines))
        with pytest.raises(UserError, match="was changed after it was written"):
            merge_shards(tmp_path, 2, todo, expected())
        reseal(path)
        with pytest.raises(UserError, match=said):
            merge_shards(tmp_path, 2, todo, expected())
    path.write_bytes(before)
    merge_shards(tmp_path, 2, todo, expected())


def test_two_processes_do_not_write_one_shard(tmp_path: Path) -> None:
    where = shard_folder(tmp_path, 2, 1)
    with lock(where), pytest.raises(UserError, match="is in use by another run"):
        run_shard(write, samples(4), tmp_path, 2, 1)
    run_shard(write, samples(4), tmp_path, 2, 1)
