"""The reports that programs read: JUnit XML, job summary, annotations, schema; the command that makes them again."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
from markdown_it import MarkdownIt
from reported import HOSTILE, HOSTILE_ID, HOSTILE_LABEL, HOSTILE_TEXT, Reported, failing, passing, save
from sides import FIVE, change_header, pair, reseal, results, right, spoil, write_results
from typer.testing import CliRunner

from parity.cli import app
from parity.judge.judge import judge
from parity.report.files import write_reports
from parity.report.junit import junit_xml
from parity.report.provenance import provenance
from parity.report.saved import read_saved
from parity.report.schema import SCHEMA, verdict_schema
from parity.report.summary import annotations, escape, summary
from pipeline.contract import Contract, Gate
from pipeline.core.errors import UserError
from pipeline.core.files import sha256_file

# What Jenkins' junit-10.xsd and Surefire's surefire-test-report.xsd both allow: attributes, and children in order with
# how many there may be.
GRAMMAR: dict[str, tuple[set[str], set[str], dict[str, int]]] = {
    "testsuites": ({"name"}, {"name", "time", "tests", "failures", "errors", "skipped"}, {"testsuite": 9}),
    "testsuite": (
        {"name", "tests", "failures", "errors", "skipped", "time"},
        {"name", "tests", "failures", "errors", "skipped", "time"},
        {"properties": 1, "testcase": 10**6, "system-out": 1},
    ),
    "properties": (set(), set(), {"property": 10**6}),
    "property": ({"name", "value"}, {"name", "value"}, {}),
    "testcase": (
        {"name", "classname", "time"}, {"name", "classname", "time"}, {"skipped": 1, "failure": 1, "system-out": 1}
    ),
    "skipped": (set(), {"message"}, {}),
    "failure": ({"type"}, {"message", "type"}, {}),
    "system-out": (set(), set(), {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def fail() -> Reported:
    return failing()


@pytest.fixture(scope="module")
def clean() -> Reported:
    return passing()


def check_grammar(element: ElementTree.Element) -> None:
    required, allowed, children = GRAMMAR[element.tag]
    assert required <= element.attrib.keys() <= allowed, element.attrib
    tags = [child.tag for child in element]
    assert tags == sorted(tags, key=list(children).index)
    assert all(count <= children[tag] for tag, count in Counter(tags).items())
    for child in element:
        check_grammar(child)


def read_junit(made: Reported) -> dict[str, ElementTree.Element]:
    root = ElementTree.fromstring(junit_xml(made.verdict, made.reference, made.candidate))
    check_grammar(root)
    suite = root[0]
    cases = suite.findall("testcase")
    counted = {
        "tests": len(cases),
        "failures": len(suite.findall("testcase/failure")),
        "skipped": len(suite.findall("testcase/skipped")),
    }
    for element in (root, suite):
        assert {name: int(element.attrib[name]) for name in counted} == counted
    named = {case.attrib["name"]: case for case in cases}
    assert len(named) == len(cases)
    return named


def test_junit_has_a_case_for_each_gate_and_class(fail: Reported) -> None:
    cases = read_junit(fail)
    gates = [f"{gate.rung} {gate.stage}" if gate.rung else gate.stage for gate in fail.verdict.gates]
    assert list(cases) == gates + [f"recall of {label}" for label in HOSTILE.labels]
    for gate, name in zip(fail.verdict.gates, gates, strict=True):
        failure, skipped = cases[name].find("failure"), cases[name].find("skipped")
        assert (failure is not None) == gate.red
        assert (skipped is not None) == (gate.status in ("undecided", "not measured"))
        if failure is not None:
            assert failure.attrib["message"] == gate.detail
            assert gate.fix in (failure.text or "")
        if skipped is not None:
            assert skipped.attrib["message"] == f"{gate.status}: {gate.detail}"
    assert any(gate.red for gate in fail.verdict.gates)
    assert any(gate.status == "not measured" for gate in fail.verdict.gates)


def test_junit_of_a_pass_has_no_failure(clean: Reported) -> None:
    assert not any(case.find("failure") is not None for case in read_junit(clean).values())


def test_junit_fails_every_class_that_is_surely_worse() -> None:
    """Five labels lose half of their answers each: the gate's detail names three of them, the cases all five."""
    reference = results(right(1000))
    candidate = results(spoil(right(1000), 500), "llamacpp")
    made = Reported(judge(reference, candidate, FIVE), reference, candidate, None, {})
    cases = read_junit(made)
    failed = [label for label in FIVE.labels if cases[f"recall of {label}"].find("failure") is not None]
    assert failed == list(FIVE.labels)


def test_junit_tells_a_class_below_its_floor_from_the_others() -> None:
    contract = Contract(gate=Gate(recall_floors={"fire": 0.9}))
    answers = [(truth, "wood" if truth == "fire" else truth) for truth, _ in right(300)]
    sides = results(answers, contract=contract), results(answers, "llamacpp", contract)
    cases = read_junit(Reported(judge(*sides, contract), *sides, None, {}))
    failed = [name for name, case in cases.items() if case.find("failure") is not None]
    assert failed == ["classes", "recall of fire"]


def test_junit_holds_what_xml_cannot(fail: Reported) -> None:
    gate = fail.verdict.gates[0].model_copy(update={"status": "red", "detail": f"{HOSTILE_TEXT}\x00\ud800\uffff"})
    changed = fail.verdict.model_copy(update={"gates": (gate, *fail.verdict.gates[1:])})
    cases = read_junit(Reported(changed, fail.reference, fail.candidate, None, {}))
    failure = cases["provenance"].find("failure")
    assert failure is not None
    assert "<script>hacked=3</script>" in failure.attrib["message"]
    assert "�" in failure.attrib["message"]


def markdown(text: str) -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def test_summary_shows_the_verdict(fail: Reported) -> None:
    html = markdown("").render(summary(fail.verdict))
    assert "<h2>❌ Parity: FAIL</h2>" in html
    assert html.count("<table>") == 3
    assert html.count("❌ red") == sum(gate.red for gate in fail.verdict.gates)
    assert f"{fail.verdict.reference.accuracy:.2%}" in html
    assert "and 9 more" in html  # 19 flips, ten shown


@pytest.mark.parametrize(
    "text", [HOSTILE_ID, HOSTILE_LABEL, HOSTILE_TEXT, "a|b", "~~a~~ **b** $x$ <b>c</b> &amp; www.x.org"]
)
def test_summary_shows_hostile_text_as_it_is(text: str) -> None:
    table = f"| a | b |\n| :-- | :-- |\n| {escape(text)} | end |\n"
    tokens = markdown("").parse(table)
    inline = [token for token in tokens if token.type == "inline"]
    assert len(inline) == 4  # the bar in the text ends no cell
    children = inline[2].children or []
    assert {child.type for child in children} <= {"text", "text_special"}
    shown = "".join(child.content for child in children)
    assert shown == "".join(c if c.isprintable() else " " if c.isspace() else "�" for c in text).strip()


def test_summary_stays_below_githubs_limit(fail: Reported) -> None:
    long = "x" * 300_000
    gates = tuple(gate.model_copy(update={"detail": long}) for gate in fail.verdict.gates)
    text = summary(fail.verdict.model_copy(update={"gates": gates, "notes": (long,) * 50, "headline": long}))
    assert len(text.encode()) < 1 << 20


def test_annotations_are_one_command_each(fail: Reported) -> None:
    """Several gates are red, and one speaks: the others follow from it."""
    assert sum(gate.red for gate in fail.verdict.gates) > 1
    detail = "50% of,\r\n::error::a:b"
    gates = [
        gate.model_copy(update={"detail": detail}) if gate.stage == fail.verdict.first_bad_stage else gate
        for gate in fail.verdict.gates
    ]
    told = {"gates": tuple(gates), "headline": "a", "cause": "b", "fix": ""}
    lines = annotations(fail.verdict.model_copy(update=told)).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["::error"]
    properties, _, message = lines[0].removeprefix("::error ").partition("::")
    assert properties == "title=Parity FAIL%3A S1 pixels"
    # As the runner reads it: actions/runner, ActionCommand.cs.
    for escaped, plain in (("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
        message = message.replace(escaped, plain)
    assert message == f"a\nLikely cause: b\n{detail}"


def test_annotations_of_a_pass_are_a_notice(clean: Reported) -> None:
    assert annotations(clean.verdict).startswith("::notice title=Parity PASS::")


def test_schema_file_is_the_models() -> None:
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == verdict_schema(), "run python -m parity.report.schema"


def test_schema_takes_verdicts_and_nothing_else(fail: Reported, clean: Reported) -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for made in (fail, clean):
        data = json.loads(json.dumps(made.verdict.model_dump(mode="json")))
        validator.validate(data)
        for path, value in (("status", "MAYBE"), ("n", "many"), ("extra", 1), ("schema_version", 1), ("gates", [{}])):
            with pytest.raises(jsonschema.ValidationError):
                validator.validate(data | {path: value})
        with pytest.raises(jsonschema.ValidationError):
            validator.validate({key: value for key, value in data.items() if key != "gates"})
    assert schema["properties"]["n"]
    assert "Tango" in schema["$defs"]["Difference"]["properties"]["low"]["description"]


def test_report_command_makes_all_reports_again(fail: Reported, tmp_path: Path) -> None:
    run = save(fail, tmp_path / "run")
    first = CliRunner().invoke(app, ["report", str(run)], catch_exceptions=False)
    assert first.exit_code == 0
    assert "report.html: FAIL, 150 images" in first.output
    assert "::error" not in first.output
    made = tmp_path / "made"
    made.mkdir()
    shutil.copy2(run / "parity" / "llamacpp.results.jsonl", made)  # its day is told
    write_reports(fail.verdict, fail.reference, fail.candidate, fail.ladder, fail.image_of, made, HOSTILE)
    for name in ("report.html", "junit.xml", "summary.md", "verdict.txt"):
        assert (run / "parity" / name).read_bytes() == (made / name).read_bytes(), name
    (run / "parity" / "report.html").unlink()
    page = tmp_path / "page.html"
    CliRunner().invoke(app, ["report", str(run / "parity"), "--out", str(page)], catch_exceptions=False)
    assert page.read_bytes() == (made / "report.html").read_bytes()
    assert not (run / "parity" / "report.html").exists()


def test_report_command_tells_github(fail: Reported, tmp_path: Path) -> None:
    run = save(fail, tmp_path / "run")
    written = tmp_path / "summary"
    written.write_text("before\n")
    env = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(written)}
    result = CliRunner().invoke(app, ["report", str(run)], env=env, catch_exceptions=False)
    assert annotations(fail.verdict) in result.output
    assert written.read_text(encoding="utf-8") == "before\n" + summary(fail.verdict)


def test_report_without_dataset_or_ladder_has_neither(fail: Reported, tmp_path: Path) -> None:
    run = save(fail, tmp_path / "run")
    (run / "dataset" / "val.json").unlink()
    assert read_saved(run).image_of(next(iter(fail.pictures))) is None
    (run / "parity" / "ladder.jsonl").unlink()
    with pytest.raises(UserError, match=r"verdict\.json is stale: .*notes"):
        read_saved(run)


def test_a_stale_verdict_is_not_reported(clean: Reported, tmp_path: Path) -> None:
    run = save(clean, tmp_path / "run")
    path = run / "parity" / "verdict.json"
    whole = path.read_text(encoding="utf-8")
    read_saved(run)
    for old, new, said in (
        ('"status": "PASS"', '"status": "FAIL"', "it says FAIL, and the files beside it give PASS"),
        ('"points": 0.0', '"points": 1.0', "difference is not what"),
        ('"agreement": 1.0', '"agreement": 0.5', "agreement is not what"),
    ):
        assert old in whole
        path.write_text(whole.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(UserError, match=f"is stale: .*{said}"):
            read_saved(run)
    path.write_text(whole, encoding="utf-8")
    worse = results(spoil([(row.truth, row.label) for row in clean.reference.rows.values()], 60), "llamacpp")
    write_results(worse, run / "parity" / "llamacpp.results.jsonl")
    with pytest.raises(UserError, match="it says PASS, and the files beside it give FAIL"):
        read_saved(run)


NAMES = {"model": "model.gguf", "mmproj": "mmproj-model.gguf"}


def test_a_verdict_of_other_ggufs_is_not_reported(clean: Reported, tmp_path: Path) -> None:
    for name in ("model", "mmproj"):
        (tmp_path / name).write_bytes(name.encode())
    model = {name: sha256_file(tmp_path / name) for name in ("model", "mmproj")}
    made = replace(clean, candidate=change_header(clean.candidate, model=model))
    run = save(made, tmp_path / "run")
    (run / "bundle").mkdir()
    for name in ("model", "mmproj"):
        shutil.copy(tmp_path / name, run / "bundle" / NAMES[name])
    assert read_saved(run).verdict.status == "PASS"
    for name, other in (("model", "mmproj"), ("mmproj", "model")):
        shutil.copy(tmp_path / other, run / "bundle" / NAMES[name])
    with pytest.raises(UserError, match=r"is stale: .* is not a file that was judged"):
        read_saved(run)  # the halves have changed places
    for name in NAMES:
        shutil.copy(tmp_path / name, run / "bundle" / NAMES[name])
    (run / "bundle" / "model.gguf").write_bytes(b"another")
    with pytest.raises(UserError, match=r"is stale: .*model\.gguf is not a file that was judged"):
        read_saved(run)
    (run / "bundle" / "model.gguf").unlink()
    with pytest.raises(UserError, match=r"is stale: .*bundle lacks a file that was judged"):
        read_saved(run)


def test_report_refuses_what_is_not_one_run(fail: Reported, tmp_path: Path) -> None:
    run = save(fail, tmp_path / "run")
    other = run / "parity" / "llamacpp.results.jsonl"
    content = other.read_bytes()
    other.write_bytes(content.replace(b'"n_threads":2', b'"n_threads":4'))
    with pytest.raises(UserError, match="was changed after it was written"):
        read_saved(run)
    reseal(other)
    with pytest.raises(UserError, match="of another run than"):
        read_saved(run)
    for content, words in (
        ("{", "not valid JSON"),
        ('{"schema_version": 2}', "version 2"),
        ('{"schema_version": 6}', "name"),
        ("[" * 100_000, "not valid JSON"),
    ):
        (run / "parity" / "verdict.json").write_text(content)
        with pytest.raises(UserError, match=words):
            read_saved(run)
    with pytest.raises(UserError, match="cannot be read"):
        read_saved(tmp_path)


def test_report_needs_no_model_library() -> None:
    heavy = {"torch", "transformers", "llama_cpp", "ray"}
    code = f"import sys, parity.report, parity.report.saved; print({heavy} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_wheel_has_the_page(request: pytest.FixtureRequest) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed: pip install '.[build]'")
    packed = {
        file.distribution_path for file in wheel.WheelBuilder(str(request.config.rootpath)).recurse_included_files()
    }
    folder = request.config.rootpath / "parity" / "report"
    wanted = {f"parity/report/{file.name}" for file in folder.iterdir() if file.is_file()}
    assert {"parity/report/page.css", "parity/report/page.js", "parity/report/page.html.j2"} <= wanted <= packed


def test_pair_of_equal_sides_has_no_flip_in_its_reports() -> None:
    reference, candidate = pair(200)
    assert "No flips" in summary(judge(reference, candidate, FIVE))


def test_what_one_side_alone_says_is_no_difference() -> None:
    machine = {"cpu": "one", "cores": "2"}
    ours = results(right(200), device=machine | {"torch_blas": "MKL"})
    theirs = results(right(200), "llamacpp", device=machine | {"cpu": "another"})
    groups = dict(provenance(judge(ours, theirs, FIVE)))
    facts = {fact.name: fact for fact in groups["Device"]}
    assert {name for name, fact in facts.items() if fact.differs} == {"cpu", "torch_blas"}
    assert {name for name, fact in facts.items() if fact.differs and not fact.expected} == {"cpu"}
