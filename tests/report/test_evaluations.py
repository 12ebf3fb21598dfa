"""Protocols' figures on a run's page, beside the published ones."""

import copy
import json
import re
import shutil

import pytest

from falseneg.evaluation import PROTOCOLS
from falseneg.evaluation.published import PUBLISHED, SOURCES, published
from falseneg.evaluation.transfer_sets import TRANSFER_SETS
from falseneg.report import write_report
from falseneg.report.read import RunRecord
from falseneg.report.sections.evaluations import SECTION

WRONG = ("text", None, [], {}, [1], {"a": 1}, True, -1, 1e308, 10**400, float("nan"), float("inf"), "\udce9", "<b>")
CONTENT = {
    "protocol": "transfer",
    "figures": [
        {"on": "DTD", "metric": "top-1", "value": 0.5123, "sd": None, "details": {}},
        {"on": "VOC2007", "metric": "11-point mAP", "value": None, "sd": None, "details": {}},
    ],
    "image_size": 224,
    "seed": 3,
    "encoder": {"source": "run", "sha256": "abcdef0123456789"},
}


@pytest.fixture
def run(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    (folder / "evaluations").mkdir()
    return folder


def page(run, content):
    (run / "evaluations" / "transfer.json").write_text(json.dumps(content))
    return write_report(run, run.parent / "page.html").read_text()


def section(html):
    found = re.search(r'<section id="evaluations".*?</section>', html, re.DOTALL)
    return found and found[0]


def test_figures_stand_beside_the_published_ones(run):
    shown = section(page(run, CONTENT))
    row = re.search(r"<tr><th scope=\"row\">DTD</th>(.*?)</tr>", shown)[1]
    assert re.findall("<td>(.*?)</td>", row) == ["top-1", "51.2%", "74.5%", "76.5%", "75.5%", "76.3%"]
    assert re.findall(r'<th scope="col">(.*?)</th>', shown) == [
        "",
        "metric",
        "here",
        "SimCLR v1",
        "SimCLR v2",
        "BYOL",
        "FNC",
    ]
    assert "table 7" in shown and "2011.11765" in shown and "abcdef012345" in shown and "not measurable" in shown


def test_a_run_without_evaluations_has_no_such_section(run):
    assert section(write_report(run).read_text()) is None


def places(value, path=()):
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def changed(path, wrong):
    content = copy.deepcopy(CONTENT)
    place = content
    for key in path[:-1]:
        place = place[key]
    if path:
        place[path[-1]] = wrong
    return content if path else wrong


def test_a_damaged_value_costs_this_section_only(tmp_path):
    """Every value, in the place of every other: it is read as text and figures that a page shows, or it is noted."""
    (tmp_path / "evaluations").mkdir()
    for path in places(CONTENT):
        for wrong in WRONG:
            (tmp_path / "evaluations" / "transfer.json").write_text(json.dumps(changed(path, wrong)))
            run = RunRecord("run", tmp_path)
            run.load(SECTION.needs)
            shown = SECTION.of_run(run)
            assert shown or "cannot be read" in run.notes[-1]
            for each in shown or []:
                assert all(isinstance(cell, str) for row in each.rows for cell in row)
                assert all(len(row) == len(each.columns) for row in each.rows)


def test_a_page_escapes_what_a_file_says(run):
    html = page(run, changed(("figures", 0, "on"), "<b>"))
    assert "&lt;b&gt;" in section(html) and "<b>" not in section(html)
    assert "transfer.json cannot be read" in page(run, {})


def test_published_figures_are_of_protocols_and_complete():
    assert {each.protocol for each in PUBLISHED} == set(SOURCES) <= set(PROTOCOLS)
    assert published("transfer", "Flowers102", "mean per class")["FNC"] == pytest.approx(0.949)
    assert published("fine-tuning", "StanfordCars", "top-1")["SimCLR v2"] == pytest.approx(0.918)
    assert published("linear", "", "top-5") == pytest.approx(
        {"SimCLR v1": 0.89, "SimCLR v2": 0.904, "BYOL": 0.916, "FNC": 0.918}
    )
    assert published("semi-supervised", "1% of the labels", "top-1")["FNC"] == pytest.approx(0.637)
    assert published("voc-detection", "VOC2007 test", "AP50") == pytest.approx(
        {"Supervised": 0.813, "MoCo v2": 0.825, "SwAV": 0.826, "FNC": 0.828}
    )
    assert published("label-fractions", "0.1% of the labels", "top-1")["GloFND"] == pytest.approx(0.3738)
    assert all(len(published("transfer", name, kind.metric)) == 4 for name, kind in TRANSFER_SETS.items())
    assert all(0 < each.value < 1 for each in PUBLISHED)
