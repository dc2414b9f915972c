"""README and ``docs/`` are true: their commands are run or held against the real command lines, their links lead
somewhere, their examples are valid, what is generated is up to date, and the site builds without network."""

import ast
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jsonschema
import pytest
import yaml
from documents import DOCS, MAKEFILE, PAGES, ROOT, anchors, blocks, commands, fault, links, span_fault, spans, text_of
from phones import phone
from PIL import Image
from sides import results, right, spoil, write_results

from parity.judge import evidence
from parity.judge.goldens import letterbox_gate
from parity.judge.judge import judge, write_verdict
from parity.judge.plan import read_plan
from parity.report.schema import RESULTS_SCHEMA
from parity.results import Header, Results, Row, read_results
from pipeline.contract import Contract
from pipeline.core.files import sha256_bytes, write_json
from pipeline.core.jsonl import EndLine
from pipeline.core.settings import validate
from pipeline.dataset.records import Record
from pipeline.export import verify
from pipeline.recipe import Recipe
from tools.front_page import front_page, without_outside

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
WORKFLOW = DOCS / "parity-workflow.yml"


@each_page
def test_every_command_exists_with_its_options(page: Path) -> None:
    told = [words for block in blocks(page, "sh") for words in commands(block)]
    assert [(words, why) for words in told if (why := fault(words))] == []
    assert [(span, why) for span in spans(page) if span != "--gpus all" and (why := span_fault(span))] == []


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("make nothing", "make has no target nothing"),
        ("make parity NOTHING=1", "the Makefile does not use NOTHING"),
        ("make parity SET=train.epoch=1", "unknown key"),
        ("make parity RECIPE=configs/none.yaml", "cannot be read"),
        (".venv/bin/parity nothing", "parity has no command nothing"),
        (".venv/bin/parity judge a b --nothing", "--nothing"),
        (".venv/bin/parity judge a", "CANDIDATES"),
        (".venv/bin/parity run configs/tiny.yaml --set train.epoch=1", "unknown key"),
        ("python3 -m pipeline.nothing", "no module"),
        (".cache/parity-runner/parity-runner a b c --nothing", "--nothing"),
        ("curl somewhere", "no program of the project"),
    ],
)
def test_a_command_that_does_not_exist_would_be_found(command: str, why: str) -> None:
    ((words),) = commands(command)
    assert why.lower() in (fault(words) or "").lower()


def test_sub_commands_listed_behind_help_are_all_there_are() -> None:
    from documents import GROUPS

    text = text_of(DOCS / "get-started.md")
    for name, group in GROUPS.items():
        listed = re.search(rf"bin/{name} --help +# (.*)", text)
        assert listed
        assert sorted(listed[1].split(", ")) == sorted(group.commands)


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_page_is_short_and_every_file_that_it_names_exists(page: Path) -> None:
    named = [span for span in spans(page) if re.fullmatch(r"[\w./-]+/[\w.-]+\.(py|md|json|yaml|yml)", span)]
    ours = [name for name in named if not name.startswith(("runs/", "dist/", ".github/", "images/"))]
    # Files of llama.cpp are named by their paths in its own tree.
    theirs = page.name == "llama-cpp-faults.md"
    assert [name for name in ours if not theirs and not (ROOT / name).is_file()] == []
    assert len(text_of(page).splitlines()) <= 120


def test_every_file_of_the_map_exists() -> None:
    (tree,) = (text for text in blocks(DOCS / "design.md", "") if text.startswith("Makefile "))
    folder, mapped = "", []
    for line in tree.splitlines():
        indent, names = re.match(r"( *)((?:[\w./]+ )*[\w./]+)  ", line + "  ").groups()  # type: ignore[union-attr]
        if not indent:
            folder = names if names.endswith("/") else ""
        mapped += [(folder if indent else "") + name for name in names.split()]
    assert len(mapped) > 25
    assert [name for name in mapped if not (ROOT / name).exists()] == []


@each_page
def test_python_in_it_uses_what_there_is(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, name.name) for name in node.names)


def test_the_recipe_and_the_labels_in_it_are_valid() -> None:
    page = DOCS / "your-photos.md"
    (text,) = blocks(page, "yaml")
    recipe = validate(Recipe, yaml.safe_load(text), page.name)
    assert recipe.contract.labels == ("glass", "paper", "tin can")
    (labels,) = blocks(page, "json")
    assert [Record.model_validate(one).element for one in json.loads(labels)] == ["fire"]


def test_the_letterbox_command_runs(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.jpg")
    run(next(block for block in blocks(DOCS / "your-photos.md", "sh") if "letterbox" in block), tmp_path)
    assert Image.open(tmp_path / "canvas.png").size == (256, 256)


def run(block: str, folder: Path, code: int = 0) -> str:
    """What a shell block prints, run in ``folder`` with the tests' own Python. It must end with ``code``."""
    command = re.sub(r"\.venv/bin/(parity|pipeline)", rf"{sys.executable} -m \1.cli", block)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(["bash", "-ec", command], capture_output=True, text=True, cwd=folder, check=False,
                          env=os.environ | {"PYTHONPATH": paths})  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A folder with the saved files of a run of ``tiny``; the two sides answer alike."""
    folder = tmp_path / "runs" / "tiny" / "parity"
    folder.mkdir(parents=True)
    for name, side in (("hf", "hf"), ("llamacpp", "llamacpp")):
        write_results(results(spoil(right(300), 20), side), folder / f"{name}.results.jsonl")
    for place in (folder, tmp_path / "runs" / "tiny" / "bundle"):
        write_json(place / "contract.json", Contract().model_dump(mode="json"))
    write_verdict(judge(*saved(folder), Contract(), [letterbox_gate()]), folder / "verdict.json")
    return folder


def saved(folder: Path) -> tuple[Results, Results]:
    ours, host = (read_results(folder / f"{name}.results.jsonl") for name in ("hf", "llamacpp"))
    return ours, host


def test_the_commands_for_fewer_photos_run(tmp_path: Path, finished: Path) -> None:
    """One after another, beside the files that a run leaves; after the first the phone answers."""
    plan, judged, report = blocks(DOCS / "fewer-pictures.md", "sh")
    assert "pictures without a loss" in run(plan, tmp_path)
    device = phone(saved(finished)[1], read_plan(finished / "plan.json"), 160)
    write_results(device, finished / "device.results.jsonl")
    assert "photos like these" in run(judged, tmp_path)
    assert "report.html: PASS, 300 images" in run(report, tmp_path)
    assert "Losses against the PASS line" in (finished / "report.html").read_text(encoding="utf-8")


def test_the_commands_for_a_phone_run(tmp_path: Path, finished: Path) -> None:
    judged, plan, *_ = blocks(DOCS / "your-phone.md", "sh")
    ran = {}
    for half, name in (("model", "a.gguf"), ("mmproj", "mmproj-a.gguf")):
        path = tmp_path / "runs" / "tiny" / "bundle" / name
        path.write_text(name)
        ran[half] = sha256_bytes(name.encode())
    device = results(spoil(right(300), 20), "device", device={"cpu": "of a phone"}, model=ran)
    write_results(device, finished / "device.results.jsonl")
    said = run(judged, tmp_path)
    assert "PASS" in said
    assert "device ran a.gguf and mmproj-a.gguf" in said
    assert "<h1" in (tmp_path / "phone.html").read_text(encoding="utf-8")
    (python,) = blocks(DOCS / "your-phone.md", "python")
    assert "PASS OK to ship: the device is at most" in run(f"{sys.executable} - <<'END'\n{python}END", tmp_path)
    assert "without a loss" in run(plan, tmp_path)


def test_the_commands_for_ci_run(tmp_path: Path, finished: Path) -> None:
    baseline, judged, report, diff = blocks(DOCS / "ci.md", "sh")
    make, use = commands(baseline)
    run(" ".join(make), tmp_path)
    made = tmp_path / "runs" / "tiny" / "baseline.json"
    assert use[-2:] == ["--baseline", made.relative_to(tmp_path).as_posix()]
    assert made.is_file()
    said = run(judged, tmp_path)
    assert "PASS" in said
    assert "2" in said
    assert "PASS, 300 images" in run(report, tmp_path)
    assert run(diff, tmp_path)


def test_the_threat_model_names_the_signatures_as_they_are() -> None:
    assert {verify.SIGNATURE, evidence.SIGNATURE} <= set(spans(DOCS / "threat-model.md"))


def test_the_results_file_in_it_is_one_and_its_program_writes_it(tmp_path: Path) -> None:
    (example,) = blocks(DOCS / "results-format.md", "json")
    path = tmp_path / "example.jsonl"
    path.write_text(example, encoding="utf-8")
    read = read_results(path)
    assert (read.header.side, [row.label for row in read.rows.values()]) == ("device", ["fire"])
    (program,) = blocks(DOCS / "results-format.md", "python")
    run(f"{sys.executable} - <<'END'\n{program}END", tmp_path)
    assert (tmp_path / "device.results.jsonl").read_text(encoding="utf-8") == example
    schema = json.loads(RESULTS_SCHEMA.read_text(encoding="utf-8"))
    for line in example.splitlines():
        jsonschema.validate(json.loads(line), schema)


def test_every_field_of_a_results_file_is_explained() -> None:
    text = text_of(DOCS / "results-format.md")
    always = {"schema_version", "images", "kind"}  # have a default for those who make them in Python
    for title, model in (("Header", Header), ("Rows", Row), ("Closing line", EndLine)):
        part = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
        told = dict(re.findall(r"^\| `(\w+)` \| ([\w ]+)", part, re.MULTILINE))
        fields = {name: field.is_required() or name in always for name, field in model.model_fields.items()}
        assert {name: said.strip() == "yes" for name, said in told.items()} == fields


def update() -> ModuleType:
    """``docs/reference/update.py``, which is a script and no part of a package."""
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference" / "update.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date() -> None:
    made = update().pages()
    there = {path.name: text_of(path) for path in (DOCS / "reference").glob("*.md")}
    assert there == made, "run .venv/bin/python docs/reference/update.py"


def test_every_key_of_a_recipe_and_of_a_contract_is_explained() -> None:
    for page in ("recipe.md", "contract.md"):
        rows = re.findall(r"^\| (`[\w.]+`) \| .* \| ([^|]*) \|$", text_of(DOCS / "reference" / page), re.MULTILINE)
        assert len(rows) > 20
        assert [key for key, meaning in rows if not meaning.strip()] == []


def test_the_workflow_runs_commands_that_exist_and_keeps_report_and_exit_code() -> None:
    """Neither actionlint nor the published schema of GitHub's workflows is among the project's packages, so the file is
    only parsed, and held against what is meant: its commands exist, a FAIL keeps its report, its cache and its code."""
    text = text_of(WORKFLOW)
    assert text in blocks(DOCS / "ci.md", "yaml")
    workflow = yaml.safe_load(text)
    assert set(workflow) == {"name", True, "permissions", "concurrency", "jobs"}  # YAML 1.1 reads `on` as true
    (job,) = workflow["jobs"].values()
    steps = job["steps"]
    assert all(len({"run", "uses"} & step.keys()) == 1 for step in steps)
    assert all(step.keys() <= {"id", "name", "if", "uses", "with", "run"} for step in steps)
    assert all(re.fullmatch(r"actions/[\w/-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    told = [words for step in steps for words in commands(step.get("run", ""))]
    known = [[word.replace("$RECIPE", job["env"]["RECIPE"]) for word in words] for words in told]
    assert [(words, why) for words in known if (why := fault(words))] == []
    assert [".venv/bin/parity", "run"] in [words[:2] for words in told]
    assert not any(words[:2] == ["make", "parity"] for words in told)
    (upload,) = (step for step in steps if "upload-artifact" in step.get("uses", ""))
    assert upload["if"] == "always()"
    caches = [step["with"] for step in steps if "actions/cache" in step.get("uses", "")]
    assert [cache["path"].split() for cache in caches] == [[".cache", ".venv"]] * 2
    assert "hashFiles('locks/*.txt'" in caches[0]["key"]


def test_the_front_page_is_the_readme() -> None:
    readme = "[a](docs/a.md#b) [licence](LICENSE) ![c](docs/images/c.png) [d](https://d) [e](#e)"
    front = front_page(readme)
    assert front == "[a](a.md#b) [licence](LICENSE) ![c](images/c.png) [d](https://d) [e](#e)"
    assert without_outside("[a](ci.md) [licence](LICENSE)", "index.md", DOCS) == "[a](ci.md) licence"
    assert without_outside("[r](../README.md#x) [m](../Makefile)", "ci.md", DOCS) == "[r](index.md#x) m"
    assert without_outside("[r](../../README.md)", "reference/parity.md", DOCS) == "[r](../index.md)"


def test_the_site_builds_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    """mkdocs itself checks that every page is in the menu, and every link and anchor."""
    command = [Path(sys.executable).parent / "mkdocs", "build", "--quiet", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False,
                          env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    pages = {path.relative_to(tmp_path / "site").as_posix(): text_of(path) for path in tmp_path.rglob("*.html")}
    assert len(pages) == len(PAGES)  # the README is index.html; there is a 404.html, too
    for name, text in pages.items():
        assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?:https?:)?//[^\"]*", text) == [], name
    assert "The two commands" in pages["index.html"]


def test_no_page_tells_a_registry() -> None:
    hosts = re.compile(r"pypi\.org|pythonhosted|download\.pytorch|ghcr\.io|docker\.io/", re.IGNORECASE)
    assert [page.name for page in [*PAGES, WORKFLOW] if hosts.search(text_of(page))] == []
    assert hosts.search(MAKEFILE) is None
