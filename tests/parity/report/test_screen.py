"""The verdict as a person reads it: the facts are there, at every width, on any terminal."""

import io

import pytest
from rich.console import Console
from sides import (
    CONTRACTS,
    FIVE,
    FORTY,
    change_header,
    change_ladder,
    change_rows,
    ladder_of,
    noisy,
    pair,
    results,
    right,
    spoil,
)

from parity.judge.judge import judge
from parity.report.screen import print_verdict, render_text
from pipeline.contract import Contract, Gate

MARKS = {"green": "✓ ok", "red": "✗ RED", "undecided": "? open", "not measured": "·"}


@CONTRACTS
@pytest.mark.parametrize("width", [80, 100])
def test_the_screen_has_the_facts(contract: Contract, width: int) -> None:
    ours = results(noisy(120, contract, seed=6), contract=contract)
    theirs = results(noisy(120, contract, seed=7), "llamacpp", contract)
    verdict = judge(ours, theirs, contract)
    text = render_text(verdict, width)
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    joined = " ".join(text.split())
    d, flips = verdict.difference, verdict.flips
    for fact in (
        f"{verdict.status} ",
        "120 images",
        "Hugging Face llama.cpp",
        f"accuracy {verdict.reference.accuracy:.2%} {verdict.candidate.accuracy:.2%}",
        f"macro F1 {verdict.reference.macro_f1:.4f} {verdict.candidate.macro_f1:.4f}",
        "images/s 50.00 50.00",
        "seconds 2.4 2.4",
        f"{d.points:+.2f} points, 95 % interval {d.low:+.2f} to {d.high:+.2f} (Tango), margin 3",
        f"{verdict.agreement:.2%}",
        f"{flips.right_to_wrong.count} right → wrong, {flips.wrong_to_right.count} wrong → right,",
        flips.right_to_wrong.examples[0].image_id,
        *(" ".join(f"{MARKS[one.status]} {one.rung or ''} {one.stage}".split()) for one in verdict.gates),
    ):
        assert fact in joined, fact
    assert ("Confusion" in text) == (contract is not FORTY)
    assert ("Commonest confusions" in text) == (contract is FORTY)


def test_the_screen_tells_what_to_do_on_fail_alone() -> None:
    ours, theirs = pair()
    failed = judge(ours, change_header(theirs, prompt_token_ids=(7, -1, -1, 8), image_slots=((1, 2),)), FIVE)
    text = " ".join(render_text(failed).split())
    text = " ".join(text.replace("│", " ").split())
    assert "FAIL" in text
    assert "Do not ship: llama.cpp gets a different prompt (accuracy unchanged, 100.0 %)" in text
    assert f"cause {failed.cause} do {failed.fix}" in text
    passed = render_text(judge(ours, theirs, FIVE))
    assert "OK to ship: llama.cpp is at most 1.9 points worse (3 allowed), 200 images" in passed
    assert " do " not in passed


def test_every_status_is_told_in_words() -> None:
    ours, theirs = pair()
    refused = " ".join(render_text(judge(ours, theirs, Contract(max_new_tokens=9))).replace("│", " ").split())
    assert "─ REFUSED ─" in refused
    assert "Nothing was judged: Hugging Face ran under contract" in refused
    assert " do run Hugging Face again under this contract" in refused
    # Nothing was judged, so no number tempts to be read as if it had been.
    assert "accuracy" not in refused
    few = " ".join(render_text(judge(*pair(50), FIVE)).replace("│", " ").split())
    assert "─ INCONCLUSIVE ─" in few
    assert "Undecided: 50 images are too few to rule out" in few
    assert "plan the next run on 125 images or more" in few
    assert "? open S7 accuracy" in few
    assert " do plan a run on 125 images or more and judge it once" in few


@pytest.mark.parametrize("width", [80, 100])
def test_the_ladder_shows_values_limits_floors_and_where_a_flip_parted(width: int) -> None:
    ours, theirs = results(right(200)), results(spoil(right(200), 2), "llamacpp")
    ladder = change_ladder(ladder_of(ours, theirs), lambda row: {"embeddings_error": 0.5}, 1)
    text = render_text(judge(ours, theirs, FIVE, (), ladder, Gate(noise_factor=2.0)), width)
    assert max(len(line) for line in text.splitlines()) <= width
    joined = " ".join(text.split())
    assert "✓ ok S4 embeddings median 0.009" in joined
    assert "(limit 0.03, floor 0.005)" in joined
    assert "image_0000 water water land S4 embeddings" in joined
    assert "· S0 decoded not measured: " in joined


def test_matrices_stand_side_by_side_where_they_fit() -> None:
    verdict = judge(*pair(), FIVE)
    side_by_side = [line for line in render_text(verdict, 80).splitlines() if line.count("1 water") == 2]
    assert len(side_by_side) == 1
    narrow = render_text(verdict, 60).splitlines()
    assert sum("1 water" in line for line in narrow) == 2


def test_printing_survives_any_terminal() -> None:
    hostile = "\x1b[31m[bold]x[/bold] :smile: \r\n"
    ours, theirs = (change_rows(side, lambda _: {"image_id": hostile}, 1) for side in pair())
    theirs = change_rows(theirs, lambda _: {"label": "metal", "text": "metal"}, 1)
    verdict = judge(ours, theirs, FIVE)
    assert "?[31m[bold]x[/bold] :smile: ??" in render_text(verdict)
    for encoding in ("ascii", "latin-1", "utf-8"):
        raw = io.BytesIO()
        file = io.TextIOWrapper(raw, encoding=encoding)
        print_verdict(verdict, Console(file=file, width=80))
        file.flush()
        text = raw.getvalue().decode(encoding)
        assert "PASS" in text
        assert "provenance the same on both sides" in " ".join(text.split())
        assert "\x1b" not in text
    terminal = io.StringIO()
    print_verdict(verdict, Console(file=terminal, width=80, force_terminal=True, color_system="standard"))
    assert "\x1b[" in terminal.getvalue()
