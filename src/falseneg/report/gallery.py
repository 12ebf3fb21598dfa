"""Anchors with the negatives that were flagged for them, early and late in training."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from falseneg.report.embedding_map import class_name
from falseneg.report.read import Flagged, Thumbnails

PER_ANCHOR = 8
"""Flagged negatives shown of an anchor at one epoch, at most."""


@dataclass(frozen=True)
class Picture:
    """A thumbnail with what is said of it.

    Attributes:
        data: the picture, as a data address.
        name: its file or key.
        caption: its class where that is known; else nothing, but of an anchor its name.
        verdict: "right", "wrong" or "unknown"; of an anchor "anchor".
        score: the cosine with its anchor; None for an anchor.
    """

    data: str
    name: str
    caption: str
    verdict: str
    score: float | None = None


@dataclass(frozen=True)
class Strip:
    """What was flagged for one anchor at one epoch, the most similar first.

    Attributes:
        epoch: from 1.
        pictures: at most `PER_ANCHOR` of them.
        flags: how many images were flagged in all.
        right: how many of all were truly false negatives; None without labels.
    """

    epoch: int
    pictures: list[Picture]
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
        shares.append(None if flagged.correct is None else float(flagged.correct[chosen].mean()))
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
        chosen += _spread(sorted(ranks[rank]), most - len(chosen))
    return chosen


def _best(flagged: Flagged, anchor: int, epoch: int) -> np.ndarray:
    """Where an anchor's flags of an epoch are, the most similar first; each image once, though several views were."""
    places = np.flatnonzero((flagged.anchor == anchor) & (flagged.epoch == epoch))
    places = places[np.argsort(-flagged.score[places], kind="stable")]
    return places[np.sort(np.unique(flagged.candidate[places], return_index=True)[1])]


def _spread(rows: list[int], most: int) -> list[int]:
    if len(rows) <= most:
        return rows
    return [rows[round(index * (len(rows) - 1) / max(1, most - 1))] for index in range(most)]


def _strip(flagged: Flagged, anchor: int, epoch: int, maker: PictureMaker) -> Strip:
    places = _best(flagged, anchor, epoch)
    pictures: list[Picture] = []
    for place in places:
        candidate = int(flagged.candidate[place])
        if maker.has(candidate) and len(pictures) < PER_ANCHOR:
            verdict = "unknown" if flagged.correct is None else "right" if flagged.correct[place] else "wrong"
            pictures.append(maker.picture(candidate, verdict, float(flagged.score[place])))
    right = None if flagged.correct is None else int(flagged.correct[places].sum())
    return Strip(epoch, pictures, len(places), right)


class PictureMaker:
    """Makes pictures of rows; each is encoded once."""

    def __init__(self, thumbnails: Thumbnails) -> None:
        self.thumbnails = thumbnails
        self.place = {int(row): index for index, row in enumerate(thumbnails.rows)}
        self.encoded: dict[int, str] = {}

    def has(self, row: int) -> bool:
        return row in self.place

    def picture(self, row: int, verdict: str, score: float | None = None) -> Picture:
        index = self.place[row]
        if row not in self.encoded:
            self.encoded[row] = data_address(self.thumbnails.images[index])
        name = self.thumbnails.names[index] if self.thumbnails.names is not None else f"image {row}"
        label = -1 if self.thumbnails.labels is None else int(self.thumbnails.labels[index])
        caption = class_name(label, self.thumbnails.class_names) if label >= 0 else name if verdict == "anchor" else ""
        return Picture(self.encoded[row], name, caption, verdict, score)


def data_address(image: np.ndarray) -> str:
    """A (H, W, 3) uint8 picture inside the page: PNG, which keeps drawn pixels, or JPEG where that is smaller."""
    from PIL import Image

    written = []
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, kind, **options)
        written.append((len(buffer.getvalue()), kind, buffer.getvalue()))
    # Photographs are three times smaller as JPEG; of drawings the exact pixels are kept unless that costs much.
    png, jpeg = written
    _, kind, content = jpeg if png[0] > 1.5 * jpeg[0] else png
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
