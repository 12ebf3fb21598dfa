import numpy as np
import pytest

from falseneg.report.flags import Flagged
from falseneg.report.pictures import Thumbnails, data_address
from falseneg.report.sections.gallery import PER_ANCHOR, build_gallery


def thumbnails(rows=30, labels=True):
    images = np.random.default_rng(0).integers(0, 256, (rows, 8, 8, 3)).astype("uint8")
    names = [f"file{row}.png" for row in range(rows)]
    return Thumbnails(
        np.arange(rows), images, names, np.arange(rows) % 3 if labels else None, ["a", "b", "c"] if labels else None
    )


def flagged(pairs, labels=True):
    """(anchor, candidate, score, epoch) of each pair; classes are rows modulo 3."""
    anchor, candidate, score, epoch = (np.array(column) for column in zip(*pairs, strict=True))
    return Flagged(anchor, candidate, score, epoch, anchor % 3 == candidate % 3 if labels else None)


def test_flags_are_judged_counted_and_ordered_by_similarity():
    pairs = [(0, 3, 0.5, 1), (0, 4, 0.9, 1), (0, 5, 0.7, 1), (0, 6, 0.6, 9), (0, 9, 0.8, 9), (0, 7, 0.1, 5)]
    gallery = build_gallery(flagged(pairs), thumbnails(), 10)
    assert gallery.epochs == [1, 9] and gallery.pairs == [3, 2]
    assert gallery.shares == [pytest.approx(1 / 3), 1.0]
    (shown,) = gallery.anchors
    early, late = shown.strips
    assert shown.anchor.caption == "a" and shown.anchor.score is None
    assert [(p.name, p.caption, p.verdict) for p in early.pictures] == [
        ("file4.png", "b", "wrong"),
        ("file5.png", "c", "wrong"),
        ("file3.png", "a", "right"),
    ]
    assert (early.flags, early.right, late.flags, late.right) == (3, 1, 2, 2)
    assert [p.score for p in late.pictures] == [0.8, 0.6]


def test_a_pair_seen_in_several_views_is_shown_once_with_its_best_score():
    (shown,) = build_gallery(flagged([(0, 3, 0.5, 1), (0, 3, 0.9, 1), (0, 4, 0.7, 1)]), thumbnails(), 10).anchors
    assert [(p.name, p.score) for p in shown.strips[0].pictures] == [("file3.png", 0.9), ("file4.png", 0.7)]
    assert shown.strips[0].flags == 2


def test_anchors_flagged_at_both_epochs_come_first_and_are_spread():
    pairs = [(row, (row + 3) % 30, 0.5, epoch) for row in range(0, 20) for epoch in ((1, 2) if row >= 10 else (1,))]
    names = [shown.anchor.name for shown in build_gallery(flagged(pairs), thumbnails(), 4).anchors]
    assert names == ["file10.png", "file13.png", "file16.png", "file19.png"]
    assert len(build_gallery(flagged(pairs), thumbnails(), 15).anchors) == 15


def test_long_strips_are_cut_but_counted():
    pairs = [(0, row, 1 / row, 1) for row in range(1, 25)]
    (shown,) = build_gallery(flagged(pairs), thumbnails(), 10).anchors
    assert len(shown.strips[0].pictures) == PER_ANCHOR and shown.strips[0].flags == 24 and shown.strips[0].right == 8


def test_only_what_has_a_picture_is_shown():
    pairs = [(0, 99, 0.5, 1), (0, 3, 0.4, 1), (4, 5, 0.5, 1)]
    assert [shown.anchor.name for shown in build_gallery(flagged(pairs), thumbnails(), 10).anchors] == [
        "file4.png",
        "file0.png",
    ]
    (shown,) = build_gallery(flagged([(0, 3, 0.5, 1), (0, 99, 0.9, 1), (99, 0, 0.9, 1)]), thumbnails(), 10).anchors
    assert [p.name for p in shown.strips[0].pictures] == ["file3.png"] and shown.strips[0].flags == 2
    without = build_gallery(flagged([(0, 3, 0.5, 1)]), None, 10)
    assert without.anchors == [] and without.pairs == [1]


def test_without_labels_nothing_is_judged():
    gallery = build_gallery(flagged([(0, 3, 0.5, 1)], labels=False), thumbnails(labels=False), 10)
    (picture,) = gallery.anchors[0].strips[0].pictures
    assert (picture.verdict, picture.caption, gallery.anchors[0].strips[0].right) == ("unknown", "", None)
    assert gallery.anchors[0].anchor.caption == "file0.png" and gallery.shares == [None]


def test_nothing_flagged_is_no_gallery():
    empty = np.zeros(0, int)
    assert build_gallery(Flagged(empty, empty, empty, empty, None), thumbnails(), 10) is None


def test_photographs_are_stored_small_and_drawings_exactly():
    across = np.linspace(40, 200, 64)[:, None, None]
    photograph = (across + np.random.default_rng(0).normal(0, 6, (64, 64, 3))).astype("uint8")
    drawing = np.kron(np.eye(8, dtype="uint8") * 255, np.ones((8, 8), "uint8"))[..., None].repeat(3, 2)
    assert data_address(photograph).startswith("data:image/jpeg;base64,")
    assert data_address(drawing).startswith("data:image/png;base64,")
