"""Reports of a verdict, for people and for other programs: HTML, JUnit XML, a job summary, plain text, a JSON Schema.

report.html   one self-contained page (:mod:`parity.report.page`)
junit.xml     one case a gate and a class (:mod:`parity.report.junit`)
summary.md    a GitHub job summary (:mod:`parity.report.summary`)
verdict.txt   what the terminal shows, without colours

Everything is made from saved results; no model library is needed. The schema of ``verdict.json`` is
``verdict.schema.json`` beside this file.
"""

from pathlib import Path

from parity.judgement import Verdict
from parity.report.junit import junit_xml
from parity.report.page import render_page
from parity.report.pictures import ImageOf
from parity.report.summary import annotations, summary
from parity.results import Results
from parity.screen import render_text
from parity.stages import Ladder
from pipeline.files import write_bytes, write_text

__all__ = ["annotations", "render_page", "summary", "write_reports"]


def write_reports(
    verdict: Verdict,
    reference: Results,
    candidate: Results,
    ladder: Ladder | None,
    image_of: ImageOf,
    folder: Path,
) -> None:
    """Write ``report.html``, ``junit.xml``, ``summary.md`` and ``verdict.txt`` into ``folder``, each atomically.

    ``image_of``: key -> the canvas's file as the dataset has it (PNG), or None where there is none.
    """
    write_text(folder / "report.html", render_page(verdict, reference, candidate, ladder, image_of))
    write_bytes(folder / "junit.xml", junit_xml(verdict, reference, candidate))
    write_text(folder / "summary.md", summary(verdict))
    write_text(folder / "verdict.txt", render_text(verdict))
