import csv
import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from train.test_record import Named

from falseneg.train.pairs import as_csv, pair_table, write_pictures

PAIRS, SCORES = np.array([[0, 3], [2, 1], [1, 2]]), np.array([0.5, 0.25, -0.125], dtype=np.float32)


def lines(table, folder=None):
    return list(csv.DictReader(io.StringIO(as_csv(table, folder).decode(), newline="")))


def test_what_is_known_of_a_pair():
    labels = torch.tensor([1, 0, 0, -1])
    table = pair_table(Named(labels, 4, class_names=["cat", "dog"]), PAIRS, SCORES, 7)
    assert table.to_pylist()[:2] == [
        {"anchor": 0, "candidate": 3, "anchor_name": "photo 0.jpg", "candidate_name": "photo 3.jpg", "score": 0.5}
        | {"epoch": 7, "correct": None, "anchor_class": "dog", "candidate_class": None},
        {"anchor": 2, "candidate": 1, "anchor_name": "photo 2.jpg", "candidate_name": "photo 1.jpg", "score": 0.25}
        | {"epoch": 7, "correct": True, "anchor_class": "cat", "candidate_class": "cat"},
    ]


def test_without_labels_or_names_of_classes():
    assert "correct" not in pair_table(Named(), PAIRS, SCORES, 1).column_names
    table = pair_table(Named(torch.tensor([4, 0, 12, 1]), 4), PAIRS, SCORES, 1)
    assert table["anchor_class"].to_pylist() == ["4", "12", "0"] and table["correct"].to_pylist() == [False] * 3
    assert pair_table(Named(), np.empty((0, 2), np.int64), np.empty(0, np.float32), 1).num_rows == 0


def test_the_csv_has_the_last_epoch_and_the_most_similar_first():
    images = Named(torch.tensor([0, 0, 0, 1]), 4, class_names=["cat", "dog"])
    table = pa.concat_tables([pair_table(images, PAIRS, SCORES, epoch) for epoch in (1, 9)])
    found = lines(table)
    assert [(line["epoch"], float(line["score"])) for line in found] == [
        *(("9", score) for score in SCORES.tolist()),
        *(("1", score) for score in SCORES.tolist()),
    ]
    assert [line["correct"] for line in found[:3]] == ["false", "true", "true"]
    assert found[0]["anchor_name"] == "photo 0.jpg" and found[0]["candidate_class"] == "dog"
    assert "anchor_thumbnail" not in found[0]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_name_is_a_formula_of_a_spreadsheet(start):
    evil, harmless = f'{start}cmd|" /C calc"!A0,\n', "a=b-c@d.jpg"
    images = Named(torch.tensor([0, 1, 1, 1]), 4, [evil, harmless, harmless, harmless], [evil, "fine"])
    table = pair_table(images, PAIRS, SCORES, 1)
    found = lines(table)
    assert found[0]["anchor_name"] == found[0]["anchor_class"] == "'" + evil
    assert found[1]["anchor_name"] == harmless
    assert table["anchor_name"][0].as_py() == evil  # programs get it as it is


def test_names_of_files_that_are_no_text_can_be_written():
    table = pair_table(Named(rows=4, names=["caf\udce9.jpg"] * 4), PAIRS, SCORES, 1)
    assert lines(table)[0]["anchor_name"] == r"caf\udce9.jpg"


def test_thumbnails_are_named_where_there_are_any(tmp_path):
    picture = np.full((5, 5, 3), 200, dtype=np.uint8)
    write_pictures(tmp_path, [0, 1], [picture, picture])
    found = lines(pair_table(Named(), PAIRS, SCORES, 1), tmp_path)
    assert [(line["anchor_thumbnail"], line["candidate_thumbnail"]) for line in found] == [
        ("thumbnails/000000.png", ""),
        ("", "thumbnails/000001.png"),
        ("thumbnails/000001.png", ""),
    ]
    assert np.array_equal(np.asarray(Image.open(tmp_path / found[0]["anchor_thumbnail"])), picture)
