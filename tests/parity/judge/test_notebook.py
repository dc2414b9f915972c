"""A verdict in a notebook, in a real kernel."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient
from sides import pair, write_results

CELLS = (
    "from parity import judge, read_results",
    "judge('hf.jsonl', 'phone.jsonl')",
    "len(read_results('hf.jsonl').rows)",
)


def test_a_verdict_shows_itself(tmp_path: Path) -> None:
    ours, theirs = pair()
    write_results(ours, tmp_path / "hf.jsonl")
    write_results(theirs, tmp_path / "phone.jsonl")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    settings = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=settings).execute()
    shown, count = (cell.outputs[-1]["data"] for cell in notebook.cells[1:])
    assert "OK to ship" in shown["text/html"]
    assert "<script" not in shown["text/html"]
    assert count["text/plain"] == "200"
