"""Recipes, contracts, results, ladders, verdicts, baselines: every reader of a text file, on what no program wrote.

A reader returns a value or says in a sentence what is wrong. What it returns must be of use: it is written back, hashed
or judged here as the program would do next.
"""

import json
import random
import shutil
import string
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import CONTRACT, Run, make_dataset, write_files
from malformed import (
    DEPTHS,
    SEED,
    VALUES,
    byte_cases,
    inside,
    json_cases,
    of_bytes,
    paths_of,
    place_cases,
    some,
    with_raw,
)
from trial import Case, Outcome, Room, Trials, clear
from typer.testing import CliRunner

from parity.cli import app
from parity.compare.ladder import LadderWriter, Measured, read_ladder
from parity.judge.baseline import read_baseline
from parity.judge.judge import judge
from parity.report.saved import read_saved, read_verdict
from parity.results import ResultsWriter, Row, read_results
from pipeline.contract import load_contract
from pipeline.core.files import canonical_json
from pipeline.dataset.records import Record, read_dataset
from pipeline.recipe import load_recipe

PIPE_SECONDS = 45
"""Longest that a reader may take: results may come through a pipe, which is given half a minute to begin."""
MOST = 3500
"""Cases of one file: a verdict has more than twice as many, and each is judged again, which takes 25 ms."""
SMALL = 8
"""Images of the files that are damaged."""

RECIPE = """name: tiny
seed: 0
contract:
  labels: [water, fire]
  image: {size: 64, pad_color: [0, 0, 0]}
  tiling: {plan: grid, grid: 1}
  runtime: {n_ctx: 512, n_threads: 2}
  gate: {margin_points: 3.0, noise_factor: 1.0, recall_floors: {water: 0.5}}
dataset: {source: embedded, n_per_class: 30, val_fraction: 0.2, test_fraction: 0.2}
base: {model: 'embedded:tiny'}
train:
  epochs: 7
  learning_rate: 2.0e-3
  batch_size: 16
  bf16: 'off'
  lora: {r: 4, alpha: 8, dropout: 0.1, targets: [q_proj]}
  vision: full
export: {name: Tiny-Element, text_type: Q8_0, mmproj_type: Q8_0}
"""

YAML_VALUES = VALUES | {
    "a date": "2026-11-27",
    "a time": "2026-11-27 10:00:00",
    "!!int abc": "!!int abc",
    "!!float abc": "!!float abc",
    "!!bool 7": "!!bool 7",
    "!!timestamp x": "!!timestamp x",
    "!!binary": "!!binary 'x'",
    "!!set": "!!set {a, b}",
    "!!omap": "!!omap [a: 1]",
    "!!pairs": "!!pairs [a: 1]",
    "!!python/object": "!!python/object/apply:os.system ['true']",
    ".inf": ".inf",
    "-.inf": "-.inf",
    ".nan": ".nan",
    "a hexadecimal number": "0x" + "f" * 4000,
    "an octal number": "0" + "7" * 6000,
    "sixty seconds": "1" + ":59" * 2000,
    "an anchor of itself": "&a [*a]",
    "an object of itself": "&a {a: *a}",
    "no such anchor": "*nowhere",
    "a merge of a text": "{<<: x}",
    "a merge of itself": "&a {<<: *a}",
    "a list as key": "{[1, 2]: 3}",
    "an object as key": "{{a: 1}: 3}",
    "null as key": "{null: 1}",
    "a number as key": "{7: 1}",
    "an open list": "[a, b",
    "an open text": '"abc',
    "a tab": "\t- x",
    "a bell": "\x07",
    "no": "no",
    "laughs": "{a: &a [x,x,x,x,x,x,x,x], b: &b [*a,*a,*a,*a,*a,*a,*a,*a], c: &c [*b,*b,*b,*b,*b,*b,*b,*b],"
    " d: &d [*c,*c,*c,*c,*c,*c,*c,*c], e: &e [*d,*d,*d,*d,*d,*d,*d,*d], f: &f [*e,*e,*e,*e,*e,*e,*e,*e],"
    " g: &g [*f,*f,*f,*f,*f,*f,*f,*f], h: [*g,*g,*g,*g,*g,*g,*g,*g]}",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of a few images without a bundle, with verdict and baseline."""
    run = Run(tmp_path_factory.mktemp("small"))
    make_dataset(run.dataset, SMALL)
    read = read_dataset(run.dataset, CONTRACT)
    write_files(run.parity, read.test, read.digest, None, 1)
    sides = [str(path) for path in run.sides]
    CliRunner().invoke(app, ["judge", *sides, "--out", str(run.verdict)])
    CliRunner().invoke(app, ["baseline", *sides, "--out", str(run.root / "baseline.json")])
    return run


@pytest.fixture
def mine(small: Run, tmp_path: Path) -> Run:
    """A copy of it."""
    return Run(Path(shutil.copytree(small.root, tmp_path / "run")))


# --- the readers, each with what the program does next ---------------------------------------------------------------


def read_recipe(path: Path) -> None:
    recipe = load_recipe(path)
    canonical_json(recipe.model_dump(mode="json"))
    assert len(recipe.contract.digest) == 64
    assert recipe.contract.prompt_parts


def read_contract(path: Path) -> None:
    contract = load_contract(path)
    assert len(contract.digest) == 64
    assert contract.prompt_parts
    assert contract.runtime.threads(4) > 0
    assert load_contract_again(contract.model_dump_json(), path.parent / "again.json") == contract


def load_contract_again(text: str, path: Path) -> object:
    path.write_text(text, encoding="utf-8")
    return load_contract(path)


def judge_candidate(run: Run, path: Path) -> None:
    """As `parity judge` does with a candidate's file."""
    judge(read_results(run.hf), read_results(path), CONTRACT, [], read_ladder(run.ladder))


def judge_ladder(run: Run, path: Path) -> None:
    judge(*(read_results(side) for side in run.sides), CONTRACT, [], read_ladder(path))


def judge_baseline(run: Run, path: Path) -> None:
    sides = [read_results(side) for side in run.sides]
    judge(*sides, CONTRACT, [], read_ladder(run.ladder), baseline=read_baseline(path))


def show_verdict(run: Run, path: Path) -> None:
    """As `parity report` does."""
    from parity.report.page import render_page

    read_verdict(path)
    saved = read_saved(run.root)
    render_page(saved.verdict, saved.reference, saved.candidate, saved.ladder, saved.image_of)


def go_on_with_results(run: Run, path: Path) -> None:
    header = read_results(run.hf).header
    with ResultsWriter(path, header) as writer:
        for row in read_results(run.hf).rows.values():
            if row.key not in writer.keys:
                writer.append(row)


def go_on_with_ladder(run: Run, path: Path) -> None:
    known = read_ladder(run.root / "whole-ladder.jsonl")
    with LadderWriter(path, known.header) as writer:
        for row in known.rows.values():
            if row.key not in writer.keys:
                writer.append(row)


# --- their files -----------------------------------------------------------------------------------------------------


def line_cases(data: bytes) -> list[Case]:
    """A file of lines with its first, its second or its last line damaged as a JSON document."""
    lines = data.splitlines()
    found = []
    for number in (0, 1, len(lines) - 1):
        before, after = lines[:number], lines[number + 1 :]

        def wrap(line: bytes, before: list[bytes] = before, after: list[bytes] = after) -> bytes:
            return b"\n".join([*before, line, *after]) + b"\n"

        found += [Case(f"line {number + 1}, {case.name}", case.put) for case in json_cases(lines[number], wrap)]
    found += byte_cases(data)
    for name, changed in {
        "the first line twice": [lines[0], *lines],
        "without the second line": [lines[0], *lines[2:]],
        "the second line twice": [*lines[:2], lines[1], *lines[2:]],
        "lines in another order": lines[::-1],
        "empty lines between": [line for one in lines for line in (one, b"")],
        "the first line alone": lines[:1],
        "the last line alone": lines[-1:],
        "a line of 1 MB of spaces": [*lines[:2], b" " * (1 << 20), *lines[2:]],
    }.items():
        found.append(of_bytes(name, bytes, b"\n".join(changed) + b"\n"))
    return found + place_cases()


def document_cases(data: bytes) -> list[Case]:
    return json_cases(data) + byte_cases(data) + place_cases()


def yaml_cases(text: str) -> list[Case]:
    value = yaml.safe_load(text)
    found = []
    for path in paths_of(value):
        place = ".".join(map(str, path)) or "all"
        for name, raw in YAML_VALUES.items():
            if len(raw) > 10_000 and path not in ((), ("name",)):
                continue  # PyYAML takes seconds for each, whatever the place
            found.append(of_bytes(f"{place}: {name}", with_raw, value, path, raw))
    for path in paths_of(value):
        if isinstance(inside(value, path), dict):
            for key in ("7", "null", "[a]", "2026-11-27", "<<", "? [a, b]\n", "&a", "*a", "!!int x", "'\\ud800'"):
                more = f"{{{key}: 1}}"
                found.append(of_bytes(f"{'.'.join(map(str, path)) or 'all'} is {more!r}", with_raw, value, path, more))
    deep = {
        "deep blocks": "\n".join(" " * n + "a:" for n in range(2000)),
        "deep flows": "a: " + "[" * 3000,
        "deep keys": "? " * 3000 + "a",
        "many documents": "---\na: 1\n" * 2000,
        "a directive": "%YAML 9.9\n---\nname: x\n",
        "a tag directive": "%TAG ! tag:x,2000:\n---\n!x name: 1\n",
        "only a comment": "# nothing\n",
    }
    found += [of_bytes(name, str.encode, document) for name, document in deep.items()]
    return found + byte_cases(text.encode()) + place_cases()


READERS: dict[str, tuple[str, str, Callable[[Run, Path], object], Callable[[bytes], list[Case]]]] = {
    # test -> (kind, file, reader, cases)
    "recipe": ("recipe", "recipe.yaml", lambda run, path: read_recipe(path), lambda data: yaml_cases(data.decode())),
    "contract": ("contract", "contract.json", lambda run, path: read_contract(path), document_cases),
    "results": ("results", "parity/llamacpp.results.jsonl", judge_candidate, line_cases),
    "results to go on with": ("results", "going-on.jsonl", go_on_with_results, line_cases),
    "ladder": ("ladder", "parity/ladder.jsonl", judge_ladder, line_cases),
    "ladder to go on with": ("ladder", "going-on-ladder.jsonl", go_on_with_ladder, line_cases),
    "verdict": ("verdict", "parity/verdict.json", show_verdict, document_cases),
    "baseline": ("baseline", "baseline.json", judge_baseline, document_cases),
}


@DEPTHS
@pytest.mark.parametrize("reader", READERS)
def test_a_reader_says_what_is_wrong(reader: str, depth: str, mine: Run, trials: Trials) -> None:
    kind, file, read, cases = READERS[reader]
    prepare(mine)
    target = mine.root / file
    room = trials.room(partial(read, mine), seconds=PIPE_SECONDS)
    room.must_read(target)
    found = cases(target.read_bytes())
    trials.run(kind, room, target, some(found, "quick", 60 if depth == "quick" else MOST))


def prepare(run: Run) -> None:
    """The files that only these tests read."""
    (run.root / "recipe.yaml").write_text(RECIPE)
    (run.root / "contract.json").write_text(CONTRACT.model_dump_json(indent=1))
    shutil.copyfile(run.hf, run.root / "going-on.jsonl")
    shutil.copyfile(run.ladder, run.root / "going-on-ladder.jsonl")
    shutil.copyfile(run.ladder, run.root / "whole-ladder.jsonl")


ASSIGNMENTS = [
    "contract.labels=[a, b",
    "train.epochs=2026-11-27",
    "train.epochs=!!int abc",
    "seed=" + "9" * 5000,
    "name=&a [*a]",
    "contract.gate.noise_factor=.inf",
    "contract.gate.noise_factor=.nan",
    "train.learning_rate=.inf",
    "seed=" + "[" * 5000,
    "=1",
    "name",
    "name=",
    ".=1",
    "..=1",
    "name.a=1",
    "contract.labels.0=x",
    "contract=null contract.name=x",
    "a=*b",
    "name=" + "n" * 300,
    "name=../x",
    "name=\x00",
    "name=\ud800",
    "train.lora.targets=[q_proj, 7]",
    "contract.labels={a: 1}",
    "dataset.path=\x00",
    "base.model=[]",
    "name='",
    'name="',
    "name=[[[",
    "contract.labels=[\"a\", 'b c' d=1]",
    "x=1\ny=2",
    "contract.runtime.n_ctx=1e999",
    "contract.image.size=1e3",
    "contract.labels=[a, !!python/name:os.system b]",
    "name={",
    "contract.image.pad_color=[999999999999999999999, 0, 0]",
    "seed=0x" + "f" * 5000,
    "seed=1" + ":59" * 3000,
]


@DEPTHS
def test_assignments_are_set_or_refused(depth: str, tmp_path: Path, trials: Trials) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)

    def read(path: Path) -> None:
        loaded = load_recipe(recipe, (path.read_bytes().decode("utf-8", "surrogatepass"),))
        canonical_json(loaded.model_dump(mode="json"))

    keys = [".".join(map(str, path)) for path in paths_of(yaml.safe_load(RECIPE)) if path]
    chance = random.Random(SEED)
    texts = ASSIGNMENTS + [f"{key}={value}" for key in keys for value in YAML_VALUES.values() if len(value) < 100_000]
    texts += [
        "".join(chance.choice("abc.=[]{}'\"\\ \t\n:#&*!|>%@`-?,019") for _ in range(chance.randrange(40)))
        for _ in range(500)
    ]
    cases = [of_bytes(repr(text[:60]), str.encode, text, "utf-8", "surrogatepass") for text in texts]
    trials.run("recipe", trials.room(read), tmp_path / "assignment", some(cases, depth))


# --- what nobody thought of ------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["1e999", "../x", "\ud800", "\x00", "hf", "llamacpp", "0" * 64, "water", "Q8_0", ""]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(string.printable, max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@st.composite
def edited(draw: st.DrawFn, document: Any) -> bytes:
    """A JSON document with one to four values replaced, removed or moved to another place."""
    changed = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(list(paths_of(changed))))
        if not path:
            continue
        owner = inside(changed, path[:-1])
        other = draw(st.sampled_from(list(paths_of(changed))))
        what = draw(st.sampled_from(["replace", "remove", "move"]))
        if what == "remove":
            del owner[path[-1]]
        elif what == "move":
            owner[path[-1]] = json.loads(json.dumps(inside(changed, other)))
        else:
            owner[path[-1]] = draw(JSON)
        if not isinstance(changed, (dict, list)) or not changed:
            break
    return json.dumps(changed).encode()


def explore(
    trials: Trials, kind: str, room: Room, target: Path, strategy: st.SearchStrategy[bytes], examples: int
) -> None:
    """Let hypothesis look for a file that does not go well, and keep the smallest that it finds."""
    worst: list[Outcome] = []

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def search(data: bytes) -> None:
        clear(target)
        target.write_bytes(data)
        outcome = room.attempt(target)
        if not outcome.count and not worst:
            trials.note(kind, "found", outcome)
        if outcome.count:
            worst[:] = [outcome]
            raise AssertionError(outcome.text)

    try:
        search()
    except AssertionError:
        trials.note(kind, "found by hypothesis (the smallest)", worst[0], target)


@DEPTHS
@pytest.mark.parametrize("reader", [name for name in READERS if name != "recipe"])
def test_hypothesis_finds_no_traceback(reader: str, depth: str, mine: Run, trials: Trials) -> None:
    kind, file, read, _ = READERS[reader]
    prepare(mine)
    target = mine.root / file
    data = target.read_bytes()
    if file.endswith(".jsonl"):
        lines = data.splitlines()
        strategy = st.integers(0, len(lines) - 1).flatmap(
            lambda n: edited(json.loads(lines[n])).map(
                lambda line: b"\n".join([*lines[:n], line, *lines[n + 1 :], b""])
            )
        )
    else:
        strategy = edited(json.loads(data))
    explore(trials, kind, trials.room(partial(read, mine)), target, strategy, 40 if depth == "quick" else 1000)


@DEPTHS
def test_hypothesis_finds_no_recipe_that_is_a_traceback(depth: str, tmp_path: Path, trials: Trials) -> None:
    value = yaml.safe_load(RECIPE)
    raw = st.text("abc019.:-+_eE!&*[]{}'\"\\ \n\t#|>%@`?,~<=xo", max_size=40)
    strategy = st.sampled_from(list(paths_of(value))).flatmap(
        lambda path: raw.map(lambda text: with_raw(value, path, text))
    )
    room = trials.room(read_recipe)
    explore(trials, "recipe", room, tmp_path / "recipe.yaml", strategy, 40 if depth == "quick" else 2000)


def test_rows_and_measures_are_written_as_they_are_read(small: Run) -> None:
    """The readers above are given what the writers write, so a refusal is the damage's doing."""
    assert all(isinstance(row, Row) for row in read_results(small.hf).rows.values())
    assert all(isinstance(row, Measured) for row in read_ladder(small.ladder).rows.values())
    assert isinstance(
        Record.model_validate_json(json.dumps(json.loads((small.dataset / "test.json").read_text())[0])), Record
    )
