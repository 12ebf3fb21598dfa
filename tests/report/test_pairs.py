"""Which classes are flagged for which, and the table that `falseneg report --pairs` writes."""

import csv
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from falseneg.cli import main
from falseneg.report import write_report
from falseneg.report.flags import FLAGGED
from falseneg.report.read import read_run
from falseneg.report.sections.classes import count_classes


def flags(folder):
    run = read_run(folder)
    run.load([FLAGGED])
    return run.get(FLAGGED)


def test_classes_are_counted_at_the_last_epoch(run_folder):
    names, counts = count_classes(flags(run_folder), None)
    table = [pair for pair in pq.read_table(run_folder / "flagged.parquet").to_pylist() if pair["epoch"] == 8]
    assert names == sorted(names) and counts.sum() == len(table)
    for i, anchor in enumerate(names):
        for j, other in enumerate(names):
            assert counts[i, j] == sum((p["anchor_class"], p["candidate_class"]) == (anchor, other) for p in table)
    assert np.trace(counts) == sum(pair["correct"] for pair in table)


def test_classes_keep_the_order_of_the_data(run_folder, fake):
    names, _ = count_classes(flags(run_folder), fake.class_names)
    assert names == list(fake.class_names)


def test_many_classes_show_those_with_the_most_wrong_flags(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    anchors = [n for n in range(40) for _ in range(n)]
    columns = {"anchor": anchors, "candidate": [0] * len(anchors), "score": np.ones(len(anchors), np.float32)}
    columns |= {"epoch": [1] * len(anchors), "correct": [False] * len(anchors)}
    classes = [f"class {n}" for n in anchors]
    columns |= {"anchor_class": classes, "candidate_class": ["class 99"] * len(anchors)}
    pq.write_table(pa.table(columns), folder / "flagged.parquet")
    html = write_report(folder).read_text()
    matrix = html[html.index('<table class="matrix long">') : html.index('<table class="mistakes">')]
    assert matrix.count('<th scope="row">') == 12 and "12 of 40 classes" in matrix
    assert '<th scope="row">class 39</th>' in matrix and '<th scope="row">class 3</th>' not in matrix
    first = html[html.index('<table class="mistakes">') :].split("</tr>")[1]
    assert "class 39" in first and "<td>39</td><td>100%</td>" in first


def test_runs_of_earlier_versions_are_shown_without_classes(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    table = pq.read_table(folder / "flagged.parquet")
    old = table.select(["anchor", "candidate", "score", "epoch", "correct"])
    pq.write_table(old, folder / "flagged.parquet")
    arrays = dict(np.load(folder / "embedding.npz"))
    np.savez(folder / "embedding.npz", **{name: arrays[name] for name in ("features", "rows", "labels")})
    html = write_report(folder).read_text()
    assert 'id="classes"' not in html and 'id="gallery"' in html and 'id="map"' in html
    assert "Not everything could be shown" not in html
    assert main(["report", str(folder), "--pairs"]) == 0
    assert (folder / "flagged.csv").read_text().splitlines()[0] == '"score","epoch","correct","anchor","candidate"'


def test_pairs_of_which_nobody_knows_whether_they_are_right(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    table = pq.read_table(folder / "flagged.parquet")
    unknown = pa.array([None] * len(table), pa.bool_())
    place = table.column_names.index("correct")
    pq.write_table(table.set_column(place, "correct", unknown), folder / "flagged.parquet")
    html = write_report(folder).read_text()
    gallery = html[html.index('<section id="gallery"') : html.index('<section id="classes"')]
    assert "thumb unknown" in gallery and "thumb right" not in gallery and "thumb wrong" not in gallery
    assert "nan" not in gallery


@pytest.mark.parametrize("named", [False, True])
def test_pairs_are_written(run_folder, tmp_path, capsys, named):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    out = tmp_path / "new" / "mine.csv" if named else folder / "flagged.csv"
    assert main(["report", str(folder), "--pairs", *([str(out)] if named else [])]) == 0
    assert str(out) in capsys.readouterr().out and not (folder / "report.html").exists()
    with open(out, newline="") as file:
        lines = list(csv.DictReader(file))
    table = pq.read_table(folder / "flagged.parquet")
    assert len(lines) == len(table)
    assert {line["anchor_name"] for line in lines} == set(table["anchor_name"].to_pylist())


def refused(arguments, capsys):
    assert main(["report", *map(str, arguments)]) != 0
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and "Traceback" not in said
    return said


def test_what_cannot_be_written_is_said_in_one_sentence(run_folder, compare_folder, tmp_path, capsys):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    assert "holds no run" in refused([compare_folder, "--pairs"], capsys)
    assert "is a folder" in refused([folder, "--pairs", tmp_path], capsys)
    assert "leave one out" in refused([folder, "--pairs", "--out", tmp_path / "x.html"], capsys)
    (folder / "flagged.parquet").write_bytes(b"PAR1 no such thing PAR1")
    assert "is damaged" in refused([folder, "--pairs"], capsys)
    pq.write_table(pa.table({"anchor": ["x"]}), folder / "flagged.parquet")
    assert "is damaged" in refused([folder, "--pairs"], capsys)
    (folder / "flagged.parquet").unlink()
    assert "is missing" in refused([folder, "--pairs"], capsys)


def test_names_that_unpack_to_too_much_are_left_out(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    table = pq.read_table(folder / "flagged.parquet")
    long = pa.array(["x" * 5000] * len(table))
    pq.write_table(table.set_column(2, "anchor_name", long), folder / "flagged.parquet")
    assert "flagged.parquet cannot be read" in write_report(folder).read_text()
