"""Anchors with the negatives that were flagged for them, early and late in training, and the pairs as a table."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from falseneg.report.chart import Style, spread
from falseneg.report.comparison import ComparisonRecord
from falseneg.report.flags import FLAGGED, Flagged
from falseneg.report.pictures import THUMBNAILS, Picture, PictureMaker, Thumbnails
from falseneg.report.read import RunRecord
from falseneg.report.section import Section, part
from falseneg.train.pairs import as_csv

ANCHORS_OF_RUN, ANCHORS_OF_VARIANT = 12, 5
"""Anchors of a run, and of each variant of a comparison."""
PER_ANCHOR = 8
"""Flagged negatives shown of an anchor at one epoch, at most; and wrong ones."""
DOWNLOADED = 5000
"""Pairs in the page's own table, at most: 100 bytes each."""
VERDICTS = {1: "right", 0: "wrong", -1: "unknown"}


@dataclass(frozen=True)
class Strip:
    """What was flagged for one anchor at one epoch, the most similar first.

    Attributes:
        epoch: from 1.
        pictures: at most `PER_ANCHOR` of them.
        further: wrong ones that are not among them, shown where only the wrong are: in all at most `PER_ANCHOR` wrong.
        flags: how many images were flagged in all.
        right: how many of all were truly false negatives; None without labels.
    """

    epoch: int
    pictures: list[Picture]
    further: list[Picture]
    flags: int
    right: int | None


@dataclass(frozen=True)
class Shown:
    """An anchor of the gallery and its strips."""

    anchor: Picture
    strips: list[Strip]


@dataclass(frozen=True)
class Gallery:
    """The gallery of one run.

    Attributes:
        epochs: the recorded epochs that are shown, the first and the last.
        shares: for each, the share of all recorded pairs that are truly false negatives; None without labels or pairs.
        pairs: for each, how many pairs were recorded.
        anchors: what is shown.
    """

    epochs: list[int]
    shares: list[float | None]
    pairs: list[int]
    anchors: list[Shown] = field(default_factory=list)


def build_gallery(flagged: Flagged, thumbnails: Thumbnails | None, most: int) -> Gallery | None:
    """Choose anchors and their flagged negatives; None if nothing was recorded.

    Anchors are not chosen by how well detection went: those with all their pictures come first, of these the ones with
    flags at both epochs, evenly spread over the data set.
    """
    recorded = sorted({int(epoch) for epoch in np.unique(flagged.epoch)})
    if not recorded:
        return None
    epochs = recorded if len(recorded) < 2 else [recorded[0], recorded[-1]]
    counts, shares = [], []
    for epoch in epochs:
        chosen = flagged.epoch == epoch
        counts.append(int(chosen.sum()))
        known = np.empty(0) if flagged.correct is None else flagged.correct[chosen & (flagged.correct >= 0)]
        shares.append(float(known.mean()) if len(known) else None)
    gallery = Gallery(epochs, shares, counts)
    if thumbnails is not None:
        maker = PictureMaker(thumbnails)
        for anchor in _choose(flagged, epochs, thumbnails, most):
            strips = [_strip(flagged, anchor, epoch, maker) for epoch in epochs]
            gallery.anchors.append(Shown(maker.picture(anchor, "anchor"), strips))
    return gallery


def _choose(flagged: Flagged, epochs: Sequence[int], thumbnails: Thumbnails, most: int) -> list[int]:
    """Anchors with pictures of all that would be shown come before those of which some are missing."""
    ranks: dict[tuple[int, int], list[int]] = {}
    for anchor in np.intersect1d(flagged.anchor, thumbnails.rows).tolist():
        shown = [flagged.candidate[_best(flagged, anchor, epoch)[:PER_ANCHOR]] for epoch in epochs]
        pictured = [np.isin(candidates, thumbnails.rows) for candidates in shown]
        if any(has.any() for has in pictured):
            flagged_at = sum(len(candidates) > 0 for candidates in shown)
            missing = int(sum((~has).sum() for has in pictured) > 0)
            ranks.setdefault((missing, -flagged_at), []).append(anchor)
    chosen: list[int] = []
    for rank in sorted(ranks):
        chosen += spread(sorted(ranks[rank]), most - len(chosen))
    return chosen


def _best(flagged: Flagged, anchor: int, epoch: int) -> np.ndarray:
    """Where an anchor's flags of an epoch are, the most similar first; each image once, though several views were."""
    places = np.flatnonzero((flagged.anchor == anchor) & (flagged.epoch == epoch))
    places = places[np.argsort(-flagged.score[places], kind="stable")]
    return places[np.sort(np.unique(flagged.candidate[places], return_index=True)[1])]


def _strip(flagged: Flagged, anchor: int, epoch: int, maker: PictureMaker) -> Strip:
    places = _best(flagged, anchor, epoch)
    pictures, further, wrong = list[Picture](), list[Picture](), 0
    for place in places:
        candidate, verdict = int(flagged.candidate[place]), "unknown"
        if flagged.correct is not None:
            verdict = VERDICTS[int(flagged.correct[place])]
        if not maker.has(candidate):
            continue
        if len(pictures) < PER_ANCHOR:
            pictures.append(maker.picture(candidate, verdict, float(flagged.score[place])))
        elif verdict == "wrong" and wrong < PER_ANCHOR:
            further.append(maker.picture(candidate, verdict, float(flagged.score[place])))
        wrong += verdict == "wrong"
    right = None if flagged.correct is None else int((flagged.correct[places] == 1).sum())
    return Strip(epoch, pictures, further, len(places), right)


@dataclass(frozen=True)
class Pictured:
    """The gallery of one run: its title (empty for the page's only run) and how it is marked."""

    title: str
    style: Style | None
    gallery: Gallery


@dataclass(frozen=True)
class Download:
    """Pairs of the last recorded epoch as CSV, inside the page: the address, the pairs in it, and those of the epoch."""

    address: str
    pairs: int
    of: int


@dataclass(frozen=True)
class Galleries:
    """The galleries, and of a single run its pairs."""

    galleries: list[Pictured]
    download: Download | None = None


def _of_run(run: RunRecord) -> Galleries | None:
    gallery, flagged = _built(run, ANCHORS_OF_RUN), run.get(FLAGGED)
    if gallery is None or flagged is None:
        return None
    download = part(run.notes, "the table of pairs", lambda: _download(flagged))
    return Galleries([Pictured("", None, gallery)], download)


def _of_comparison(record: ComparisonRecord) -> Galleries | None:
    found = []
    for name, (seed, run) in record.examples.items():
        # An oracle's flags are right by definition.
        if name not in record.oracles and (gallery := _built(run, ANCHORS_OF_VARIANT)):
            found.append(Pictured(f"{name}, seed {seed}", record.styles[name], gallery))
    return Galleries(found) if found else None


def _built(run: RunRecord, most: int) -> Gallery | None:
    flagged = run.get(FLAGGED)
    if flagged is None:
        return None
    build = partial(build_gallery, flagged, run.get(THUMBNAILS), most)
    return part(run.notes, f"{run.name}: what was flagged", build)


def _download(flagged: Flagged) -> Download:
    chosen, of = flagged.best(DOWNLOADED)
    return Download(f"data:text/csv;base64,{base64.b64encode(as_csv(chosen)).decode()}", len(chosen), of)


SECTION = Section(70, "gallery", "What was flagged", "Flagged", _of_run, _of_comparison, (FLAGGED, THUMBNAILS))
