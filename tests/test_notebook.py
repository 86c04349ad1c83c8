"""The notebook runs as a newcomer would run it, on the shipped weights, and is small."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from docs._scripts.outside import shown

ROOT = Path(__file__).parent.parent
TOUR = ROOT / "examples" / "tour.ipynb"
PICTURES, LARGEST = 7, 400_000  # at least; bytes


@pytest.fixture
def tour() -> NotebookNode:
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    return notebook


def pictures(notebook: NotebookNode) -> list[Any]:
    """What the cells have shown that is a picture, one entry for each."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output for output in outputs if any(kind.startswith("image/") for kind in output.get("data", ()))]


@pytest.mark.slow
def test_the_tour_runs_and_shows_pictures(tour, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # its history is not the user's
    folder = tmp_path / "folder"
    folder.mkdir()
    for cell in tour.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(tour, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    assert len(pictures(tour)) >= PICTURES
    said = "".join(output.text for cell in tour.cells for output in cell.get("outputs", ()) if output.get("name") == "stderr")
    assert "Warning" not in said
    assert list(folder.iterdir()) == []  # it leaves no files behind


def test_the_tour_is_kept_with_its_pictures_and_small(tour):
    assert len(pictures(tour)) >= PICTURES
    assert TOUR.stat().st_size <= LARGEST


def test_the_tour_links_to_files_that_there_are(tour):
    text = "\n".join(cell.source for cell in tour.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert len(links) >= 5
    assert [link for link in links if not (TOUR.parent / link).is_file()] == []


def test_the_site_shows_the_text_and_the_pictures_of_the_tour(tour):
    page = shown("examples/tour.ipynb")
    assert all(cell.source in page for cell in tour.cells)
    assert page.count("](data:image/") == len(pictures(tour))
