"""Which classes are flagged for which."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from falseneg.report.chart import Style
from falseneg.report.comparison import ComparisonRecord
from falseneg.report.flags import FLAGGED, Flagged
from falseneg.report.pictures import THUMBNAILS
from falseneg.report.read import RunRecord
from falseneg.report.section import Section, part

MOST_CLASSES, MOST_MISTAKES = 12, 8
"""Rows of the matrix, and of the list of mistakes, at most."""


@dataclass(frozen=True)
class Cell:
    """How many negatives of one class were flagged for anchors of another: as a number, and of all flags of its row."""

    count: int
    share: float
    right: bool


@dataclass(frozen=True)
class Mistake:
    """A class that was flagged for another: how often, and as a share of all flags of the anchor's class."""

    anchor: str
    candidate: str
    count: int
    share: float


@dataclass(frozen=True)
class Classes:
    """The last recorded epoch of one run.

    Attributes:
        title: of the run; empty for the page's only one.
        style: how it is marked.
        epoch: from 1.
        pairs: flags whose two classes are known.
        of: classes in these.
        names: of the rows and columns: those that occur in the most wrong flags, in the order of the classes.
        rows: the matrix, a row for each class of anchors, a column for each class of negatives.
        mistakes: the most frequent ones.
    """

    title: str
    style: Style | None
    epoch: int
    pairs: int
    of: int
    names: list[str]
    rows: list[list[Cell]]
    mistakes: list[Mistake]


def count_classes(flagged: Flagged, known: Sequence[str] | None) -> tuple[list[str], np.ndarray]:
    """The classes of the last recorded epoch, and the (c, c) pairs of each two: anchors down, negatives across.

    Args:
        flagged: with classes.
        known: all classes in their order; None sorts them, numbers as numbers.
    """
    classes = flagged.classes
    assert classes is not None
    there = (flagged.epoch == flagged.epoch.max()) & (classes.anchor >= 0) & (classes.candidate >= 0)
    place = {name: number for number, name in enumerate(known or ())}
    names = sorted(
        {classes.values[code] for codes in (classes.anchor, classes.candidate) for code in np.unique(codes[there])},
        key=lambda name: (
            place.get(name, len(place)),
            [int(n) if n.isdecimal() else 0 for n in re.findall(r"\d{1,15}", name)],
            name,
        ),
    )
    at = {name: number for number, name in enumerate(names)}
    number_of = np.array([at.get(value, -1) for value in classes.values], dtype=np.int64)
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(counts, (number_of[classes.anchor[there]], number_of[classes.candidate[there]]), 1)
    return names, counts


def _classes(run: RunRecord, title: str = "", style: Style | None = None) -> Classes | None:
    flagged, thumbnails = run.get(FLAGGED), run.get(THUMBNAILS)
    if flagged is None or flagged.classes is None or not len(flagged.epoch):
        return None
    names, counts = count_classes(flagged, thumbnails.class_names if thumbnails else None)
    if not counts.any():
        return None
    totals = counts.sum(axis=1)
    wrong = counts - np.diag(np.diag(counts))
    involved = wrong.sum(axis=0) + wrong.sum(axis=1)
    chosen = np.sort(np.argsort(-involved, kind="stable")[:MOST_CLASSES]).tolist()
    rows = [[Cell(int(counts[i, j]), _share(counts[i, j], totals[i]), i == j) for j in chosen] for i in chosen]
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_MISTAKES]
    places = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[i, j]]
    mistakes = [Mistake(names[i], names[j], int(wrong[i, j]), _share(wrong[i, j], totals[i])) for i, j in places]
    epoch, pairs = int(flagged.epoch.max()), int(counts.sum())
    return Classes(title, style, epoch, pairs, len(names), [names[i] for i in chosen], rows, mistakes)


def _share(count: int, total: int) -> float:
    return round(float(count / total), 4) if total else 0.0


def _of_run(run: RunRecord) -> list[Classes] | None:
    found = part(run.notes, "classes of flagged pairs", partial(_classes, run))
    return [found] if found else None


def _of_comparison(record: ComparisonRecord) -> list[Classes] | None:
    found = []
    for name, (seed, run) in record.examples.items():
        if name not in record.oracles:
            make = partial(_classes, run, f"{name}, seed {seed}", record.styles[name])
            found.append(part(record.notes, f"{run.name}: classes of flagged pairs", make))
    return [one for one in found if one] or None


SECTION = Section(
    75, "classes", "Which classes are flagged for which", "Classes", _of_run, _of_comparison, (FLAGGED, THUMBNAILS)
)
