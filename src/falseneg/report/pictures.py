"""Small pictures of images, as they are stored and as they are shown."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from falseneg.foreign.archives import load_arrays
from falseneg.report.arrays import are, check
from falseneg.report.flags import FLAGGED
from falseneg.report.read import File
from falseneg.train import names

SIDE = 512
"""Pixels of a thumbnail's side, at most."""


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Small pictures for the gallery.

    Attributes:
        rows: (k,) data-set rows.
        images: (k, H, W, 3) uint8.
        names: file or key of each; or None.
        labels: (k,) classes, −1 where unknown; or None.
        class_names: the name of each class; or None.
        captions: the text of each image; or None.
    """

    rows: np.ndarray
    images: np.ndarray
    names: list[str] | None
    labels: np.ndarray | None
    class_names: list[str] | None
    captions: list[str] | None = None


def read_thumbnails(path: Path) -> Thumbnails:
    """Rows, pictures and what is known of them, from any file that `falseneg.train.thumbnails.thumbnail_arrays` went into."""
    arrays = load_arrays(path)
    rows, images, names, labels, class_names, captions = (
        arrays.get(name) for name in ("rows", "images", "names", "labels", "class_names", "captions")
    )
    if rows is None or images is None:
        raise ValueError("no pictures")
    check(are(rows, "iu") and are(images, "u", len(rows), 4) and images.dtype == np.uint8)
    check(images.shape[3] == 3 and 0 < images.shape[1] <= SIDE and 0 < images.shape[2] <= SIDE)
    check(names is None or are(names, "U", len(rows)))
    check(captions is None or are(captions, "U", len(rows)))
    check(labels is None or are(labels, "iu", len(rows)))
    check(class_names is None or are(class_names, "U"))
    return Thumbnails(
        rows,
        images,
        None if names is None else [str(name) for name in names],
        labels,
        None if class_names is None else [str(name) for name in class_names],
        None if captions is None else [str(caption) for caption in captions],
    )


THUMBNAILS = File(names.THUMBNAILS, lambda path, run: read_thumbnails(path), lambda run: run.get(FLAGGED) is not None)
"""For sections that need `FLAGGED`, too."""


@dataclass(frozen=True)
class Picture:
    """A thumbnail with what is said of it.

    Attributes:
        data: the picture, as a data address.
        name: its file or key.
        caption: its text where it has one, or its class where that is known; else nothing, but of an anchor its name.
        verdict: "right", "wrong" or "unknown"; of an anchor "anchor".
        score: the cosine with its anchor; None for an anchor.
    """

    data: str
    name: str
    caption: str
    verdict: str
    score: float | None = None


def class_name(label: int, class_names: Sequence[str] | None) -> str:
    """What a class is called: its name, or "class 3" where names are unknown."""
    if class_names is not None and 0 <= label < len(class_names):
        return str(class_names[label])
    return f"class {label}"


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
        if self.thumbnails.captions is not None and self.thumbnails.captions[index]:
            return Picture(self.encoded[row], name, self.thumbnails.captions[index], verdict, score)
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
