"""The page is a list of sections: each a file and a template, and a new one needs no line anywhere else."""

import re
import shutil
from pathlib import Path

import pytest

import falseneg.report
from falseneg.report import sections, write_report
from falseneg.report.sections import all_sections

REPORT = Path(falseneg.report.__file__).parent


def test_each_section_is_a_file_and_a_template():
    files = {path.stem for path in (REPORT / "sections").glob("[a-z]*.py")}
    assert {section.anchor for section in all_sections()} == files
    assert all((REPORT / "templates" / f"{name}.html").is_file() for name in files)
    places = [section.place for section in all_sections()]
    assert places == sorted(set(places))


def test_a_new_section_needs_no_line_anywhere_else(run_folder, compare_folder, tmp_path, monkeypatch):
    """A file in the folder of sections and one among the templates, as somebody would add them."""
    for folder in ("sections", "templates"):
        shutil.copytree(REPORT / folder, tmp_path / folder)
    (tmp_path / "sections" / "mine.py").write_text(
        "from falseneg.report.read import File\n"
        "from falseneg.report.section import Section\n"
        "MINE = File('mine.txt', lambda path, run: path.read_text())\n"
        "SECTION = Section(85, 'mine', 'My <title>', 'Mine', lambda run: run.get(MINE),\n"
        "                  lambda record: None, (MINE,))\n"
    )
    (tmp_path / "templates" / "mine.html").write_text("<p>it says {{ it }}</p>")
    monkeypatch.setattr(sections, "__path__", [str(tmp_path / "sections")])
    monkeypatch.setattr("falseneg.report.page.TEMPLATES", tmp_path / "templates")
    run = shutil.copytree(run_folder, tmp_path / "run")
    (run / "mine.txt").write_text("a < b")
    html = write_report(run).read_text()
    assert re.findall(r'<section id="(\w+)"', html)[-3:-1] == ["mine", "map"]
    assert "My &lt;title&gt;</h2>" in html and "it says a &lt; b" in html and 'href="#mine">Mine</a>' in html
    (run / "mine.txt").write_bytes(b"\xff")
    html = write_report(run).read_text()
    assert "mine.txt cannot be read" in html and 'id="mine"' not in html and 'id="map"' in html


@pytest.mark.parametrize("section", all_sections(), ids=lambda section: section.anchor)
def test_a_section_reads_no_file_that_it_does_not_name(section, run_folder):
    """What it needs is loaded for it; anything else it does not get."""
    from falseneg.report.read import read_run

    run = read_run(run_folder)
    run.load(section.needs)
    alone = section.of_run(run)
    run.load([file for other in all_sections() for file in other.needs])
    assert alone == section.of_run(run)
