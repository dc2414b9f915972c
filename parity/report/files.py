"""All reports of a verdict, in files."""

from datetime import UTC, datetime
from pathlib import Path

from parity.compare.ladder import Ladder
from parity.judge.verdict import Verdict
from parity.report.attached import find_attached
from parity.report.junit import junit_xml
from parity.report.page import render_page
from parity.report.pictures import ImageOf
from parity.report.screen import render_text
from parity.report.summary import summary
from parity.results import Results
from parity.terms import Terms
from pipeline.core.files import write_bytes, write_text


def written_at(path: Path) -> datetime | None:
    """When a file was last written, in UTC; None where it is not there."""
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError:
        return None


def write_page(
    path: Path,
    verdict: Verdict,
    reference: Results,
    candidate: Results,
    ladder: Ladder | None,
    image_of: ImageOf,
    folder: Path,
    terms: Terms,
) -> None:
    """Write the HTML page alone, of results in ``folder``. Arguments as for :func:`write_reports`."""
    written = written_at(folder / f"{candidate.header.side}.results.jsonl")
    attached = find_attached(folder, terms, path)
    page = render_page(verdict, reference, candidate, ladder, image_of, written=written, attached=attached)
    write_text(path, page)


def write_reports(
    verdict: Verdict,
    reference: Results,
    candidate: Results,
    ladder: Ladder | None,
    image_of: ImageOf,
    folder: Path,
    terms: Terms,
) -> None:
    """Write ``report.html``, ``junit.xml``, ``summary.md`` and ``verdict.txt`` into ``folder``, each atomically.

    ``image_of``: key -> the canvas's file as the dataset has it (PNG), or None where there is none. ``terms``: what the
    sides ran under.
    """
    write_page(folder / "report.html", verdict, reference, candidate, ladder, image_of, folder, terms)
    write_bytes(folder / "junit.xml", junit_xml(verdict, reference, candidate))
    write_text(folder / "summary.md", summary(verdict))
    write_text(folder / "verdict.txt", render_text(verdict))
