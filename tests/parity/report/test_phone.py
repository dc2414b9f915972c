"""What the reports say of a phone that was judged by its plan, and the staircase of its losses."""

import io
import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
from markdown_it import MarkdownIt
from phones import both, judged, phone, plan_of, right_places
from reported import HOSTILE_ID, Reported, save
from rich.console import Console
from sides import FIVE, change_rows, write_results
from typer.testing import CliRunner

from parity.cli import app
from parity.judge.goldens import checks_of
from parity.judge.judge import write_verdict
from parity.judge.phone import judge_phone
from parity.judge.plan import write_plan
from parity.judge.verdict import Audit, PassRow, Verdict
from parity.report.files import write_reports
from parity.report.junit import junit_xml
from parity.report.page import render_page
from parity.report.planned import print_plan
from parity.report.saved import read_saved
from parity.report.schema import SCHEMA
from parity.report.screen import render_text
from parity.report.staircase import pass_line, staircase, stop_words
from parity.report.summary import annotations, summary
from parity.results import read_results
from pipeline.core.errors import UserError


def by_plan(losses: int = 1, rows: int = 1, silent: bool = False, hostile: bool = False, upto: int | None = None,
            budget: int | None = None) -> Reported:  # fmt: skip
    """A phone that lost ``losses`` pictures, up to the row ``rows`` of its plan."""
    sides = both()
    plan = plan_of(sides, budget=budget)
    places = right_places(sides[1], plan, 60)[: 9 * losses : 9]
    upto = plan.rows[rows].pictures if upto is None else upto
    device = phone(sides[1], plan, upto, **{"silent" if silent else "lost": places})  # type: ignore[arg-type]
    if hostile:
        device = change_rows(device, lambda _: {"image_id": HOSTILE_ID})
    return Reported(judged(sides, device, plan), *sides, None, {})


@pytest.fixture(scope="module")
def made() -> Reported:
    return by_plan()


def audit_of(verdict: Verdict) -> Audit:
    assert verdict.audit is not None
    return verdict.audit


def test_the_screen_names_claim_stop_and_losses(made: Reported) -> None:
    audit = audit_of(made.verdict)
    for width in (80, 100):
        text = render_text(made.verdict, width)
        assert max(len(line) for line in text.splitlines()) <= width
        joined = " ".join(text.split())
        assert "device, by its plan" in joined
        assert "on photos like these, the device is less than 3 points worse than Hugging Face" in joined
        assert f"PASS after {audit.counted} pictures, 1 lost" in joined
        assert f"picture {audit.lost[0].picture}: {audit.lost[0].image_id}, {audit.lost[0].truth} as" in joined
        assert "0 lost of 25 in 5 classes" in joined
    assert "as no answer" in " ".join(render_text(by_plan(silent=True).verdict).split())


def test_the_other_stops_in_words() -> None:
    open_yet = by_plan(upto=90).verdict
    assert stop_words(audit_of(open_yet)).startswith("none so far: 90 of at most ")
    futile = by_plan(4, budget=240, upto=240).verdict
    assert futile.status == "INCONCLUSIVE"
    assert stop_words(audit_of(futile)).startswith("no PASS is possible any more after ")
    failed = audit_of(open_yet).model_copy(update={"stop": "FAIL"})
    assert stop_words(failed) == "FAIL after 90 pictures, 1 lost"


def test_the_pass_line_in_words() -> None:
    rows = tuple(PassRow(losses=row, right=n, pictures=n) for row, n in enumerate((134, 217, 303, 390, 1470)))
    assert pass_line(rows[:1]) == "134 pictures without a loss"
    assert pass_line(rows, 3) == "134 pictures without a loss, 217 with one, 303 with two, ..."
    assert pass_line(rows, 5) == (
        "134 pictures without a loss, 217 with one, 303 with two, 390 with three, 1,470 with four"
    )
    assert pass_line(()) == "no number of pictures would do"


def places(path: str) -> list[tuple[str, float]]:
    return [(command, float(value)) for command, value in re.findall(r"([HV])([\d.-]+)", path)]


def test_the_staircase_is_drawn_where_it_is() -> None:
    audit = audit_of(by_plan(2, 2).verdict)
    drawn = staircase(audit)
    assert drawn is not None
    across, up = drawn.pictures, drawn.losses
    steps = places(drawn.steps)
    assert [value for command, value in steps if command == "H"] == pytest.approx(
        [10 * across.at(lost.picture) for lost in audit.lost] + [10 * across.at(audit.counted)], abs=0.1
    )
    assert [value for command, value in steps if command == "V"] == pytest.approx(
        [1000 - 10 * up.at(1), 1000 - 10 * up.at(2)], abs=0.1
    )
    # The PASS line rises at its rows, and the staircase ends on it.
    rises = [float(re.match(r"M([\d.]+)", drawn.line)[1]), *(v for c, v in places(drawn.line) if c == "H")]  # type: ignore[index]
    assert rises[:-1] == pytest.approx([10 * across.at(row.pictures) for row in audit.rows[: len(rises) - 1]], abs=0.1)
    assert drawn.end[0] == pytest.approx(rises[2] / 10, abs=0.1)
    assert drawn.end[1] == pytest.approx(100 - up.at(2))
    assert across.high > audit.counted
    assert all(tick <= across.high for tick in across.ticks)
    assert drawn.limit is None or 0 <= drawn.limit <= 100
    assert staircase(audit.model_copy(update={"rows": ()})) is None


def test_a_line_that_no_loss_may_cross_is_drawn_where_it_is_near() -> None:
    drawn = staircase(audit_of(by_plan(4, budget=240, upto=240).verdict))
    assert drawn is not None
    assert drawn.limit is not None
    assert drawn.end[1] < drawn.limit  # above it


def test_the_page_has_the_staircase(made: Reported) -> None:
    page = render_page(made.verdict, made.reference, made.candidate, None, made.image_of)
    assert 'id="phone"' in page
    assert "Losses against the PASS line" in page
    assert audit_of(made.verdict).claim in page
    assert page.index('id="phone"') < page.index('id="ladder"')
    hostile = by_plan(hostile=True)
    page = render_page(hostile.verdict, hostile.reference, hostile.candidate, None, hostile.image_of)
    assert HOSTILE_ID not in page
    without = made.verdict.model_copy(update={"audit": None})
    plain = render_page(without, made.reference, made.candidate, None, made.image_of)
    assert 'id="phone"' not in plain


def test_junit_summary_annotations_and_schema(made: Reported) -> None:
    audit = audit_of(made.verdict)
    root = ElementTree.fromstring(junit_xml(made.verdict, made.reference, made.candidate))
    named = {one.attrib["name"]: one.attrib["value"] for one in root.iter("property")}
    assert named["plan_stop"] == "PASS"
    assert named["plan_lost"] == str(audit.lost[0].picture)
    assert named["plan_pass_line"].startswith(f"0:{audit.rows[0].pictures} 1:{audit.rows[1].pictures}")
    assert {"audit", "device provenance", "device classes"} <= {one.attrib["name"] for one in root.iter("testcase")}
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(summary(made.verdict))
    assert f"PASS after {audit.counted} pictures, 1 lost" in html
    hostile = summary(by_plan(hostile=True).verdict)
    assert HOSTILE_ID not in hostile
    few = by_plan(upto=90).verdict
    assert "Next run" not in summary(few)
    assert "::warning title=Parity INCONCLUSIVE%3A audit::" in annotations(few)
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(json.loads(made.verdict.model_dump_json()))


def test_the_plan_is_printed_before_the_first_picture() -> None:
    plan = plan_of(both(), census=10)
    written = io.StringIO()
    print_plan(plan, Path("plan.json"), Console(width=80, file=written))
    text = written.getvalue()
    assert max(len(line) for line in text.splitlines()) <= 80
    joined = " ".join(text.split())
    rows = plan.rows
    assert f"PASS after {rows[0].pictures} pictures without a loss, {rows[1].pictures} with one" in joined
    for row in rows[:3]:
        assert f"{row.losses} {row.pictures} {row.pictures / 600:.1%}" in joined
    assert "census the 10 with the host's smallest margins classes 25 of 5 classes" in joined
    assert "skips none" in joined


@pytest.fixture
def run(made: Reported, tmp_path: Path) -> Path:
    """A run's folder in which a phone was judged by its plan."""
    folder = save(made, tmp_path / "run") / "parity"
    sides = tuple(read_results(folder / f"{name}.results.jsonl") for name in ("hf", "llamacpp"))
    plan = plan_of(sides)  # type: ignore[arg-type]
    write_plan(plan, folder / "plan.json")
    device = phone(sides[1], plan, plan.rows[0].pictures)
    write_results(device, folder / "device.results.jsonl")
    device = read_results(folder / "device.results.jsonl")
    write_verdict(judge_phone(*sides, device, plan, FIVE, checks_of(FIVE, device.header)), folder / "verdict.json")
    return folder.parent


def test_saved_files_give_the_same_report_again(run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(run)], catch_exceptions=False)
    assert "report.html: PASS, 600 images" in done.output
    saved = read_saved(run)
    assert audit_of(saved.verdict).stop == "PASS"
    (tmp_path / "made").mkdir()
    shutil.copy2(run / "parity" / "llamacpp.results.jsonl", tmp_path / "made")  # its day is told
    write_reports(saved.verdict, saved.reference, saved.candidate, None, saved.image_of, tmp_path / "made", FIVE)
    for name in ("report.html", "junit.xml", "summary.md", "verdict.txt"):
        assert (run / "parity" / name).read_bytes() == (tmp_path / "made" / name).read_bytes()


def test_a_phone_whose_answers_changed_is_stale(run: Path) -> None:
    path = run / "parity" / "device.results.jsonl"
    device = read_results(path)
    key = list(device.rows)[70]
    device.rows[key] = device.rows[key].model_copy(update={"label": None, "text": ""})
    write_results(device, path)
    with pytest.raises(UserError, match="is stale: it says PASS, and the files beside it give INCONCLUSIVE"):
        read_saved(run)
    path.unlink()
    with pytest.raises(UserError, match=r"device\.results\.jsonl cannot be read"):
        read_saved(run)


def test_a_refused_phone_has_a_report_too(run: Path) -> None:
    folder = run / "parity"
    sides = tuple(read_results(folder / f"{name}.results.jsonl") for name in ("hf", "llamacpp"))
    plan = plan_of(sides)  # type: ignore[arg-type]
    other = phone(sides[1], plan, model={"model": "0" * 64})
    (folder / "device.results.jsonl").unlink()
    write_results(other, folder / "device.results.jsonl")
    device = read_results(folder / "device.results.jsonl")
    verdict = judge_phone(*sides, device, plan, FIVE, checks_of(FIVE, device.header))
    assert verdict.status == "REFUSED"
    write_verdict(verdict, folder / "verdict.json")
    assert read_saved(run).verdict.status == "REFUSED"
    done = CliRunner().invoke(app, ["report", str(run)], catch_exceptions=False)
    assert "REFUSED, 600 images" in done.output
