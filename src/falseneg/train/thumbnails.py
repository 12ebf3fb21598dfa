"""Small pictures of the images that the report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from falseneg.errors import UserError
from falseneg.files import replacing
from falseneg.foreign.parquet import read_numbers

if TYPE_CHECKING:
    from falseneg.data import ImageSet

FLAGGED = "flagged.parquet"
MOST_FLAGGED, MOST_EPOCHS = 2**21, 3
"""Pairs of all epochs that flagged.parquet holds at most, and these epochs."""
_KINDS = {"anchor": "i", "candidate": "i", "score": "f", "epoch": "i"}
ANCHORS, PER_ANCHOR, SIDE = 16, 8, 64
"""The gallery: anchors, candidates of each at each recorded epoch, and pixels of a thumbnail's side."""


def write_thumbnails(folder: Path, images: ImageSet) -> None:
    """Small pictures of the anchors that were flagged for at most recorded epochs, and of their best-scored candidates."""
    flagged = read_flagged(folder)
    rows = [row for row in gallery_rows(flagged) if 0 <= row < len(images)] if flagged else []
    with replacing(folder / "thumbnails.npz") as file:
        np.savez_compressed(file, **thumbnail_arrays(images, rows))


def thumbnail_arrays(images: ImageSet, rows: Sequence[int]) -> dict[str, Any]:
    """Small pictures of these rows, with what is known of them: rows, names, images and, where there are any, labels."""
    arrays: dict[str, Any] = {
        "rows": np.array(rows, dtype=np.int64),
        "names": np.array([images.describe(row) for row in rows], dtype=str),
    }
    pictures = [thumbnail(images.image(row)).permute(1, 2, 0).numpy() for row in rows]
    arrays["images"] = np.stack(pictures) if pictures else np.empty((0, SIDE, SIDE, 3), dtype=np.uint8)
    if images.labels is not None:
        arrays["labels"] = images.labels[rows].numpy()
        if images.class_names is not None:
            arrays["class_names"] = np.array(list(images.class_names), dtype=str)
    return arrays


def gallery_rows(flagged: Mapping[str, Any]) -> list[int]:
    """The data-set rows that the gallery shows, from the columns of flagged.parquet."""
    anchor, candidate, score, epoch = (np.asarray(flagged[name]) for name in _KINDS)
    visits = np.unique(np.stack([anchor, epoch], axis=1), axis=0)
    anchors, epochs = np.unique(visits[:, 0], return_counts=True)
    chosen: list[int] = []
    for number in sorted(set(epochs.tolist()), reverse=True):
        group = anchors[epochs == number]
        room = min(ANCHORS - len(chosen), len(group))
        # Spread over the data set: the first rows of a folder are all of one class.
        chosen += [int(group[place * len(group) // room]) for place in range(room)]
    rows = set(chosen)
    for one, at in visits[np.isin(visits[:, 0], chosen)]:
        here = np.flatnonzero((anchor == one) & (epoch == at))
        best = here[np.lexsort((candidate[here], -score[here]))[:PER_ANCHOR]]
        rows.update(candidate[best].tolist())
    return sorted(rows)


def read_flagged(folder: Path) -> dict[str, np.ndarray]:
    """The columns of flagged.parquet, which may come from anybody; empty if there is none.

    Raises:
        UserError: it is damaged.
    """
    path = folder / FLAGGED
    if not path.is_file():
        return {}
    try:
        columns = read_numbers(path, (*_KINDS, "correct"), MOST_FLAGGED)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file makes Arrow raise
        raise damaged(path, type(error).__name__) from error
    for name, kind in _KINDS.items():
        if name not in columns or columns[name].dtype.kind != kind:
            raise damaged(path, f"the column {name!r}")
    if len(np.unique(columns["epoch"])) > MOST_EPOCHS:
        raise damaged(path, f"more than {MOST_EPOCHS} epochs")
    return columns


def damaged(path: Path, what: str) -> UserError:
    """The sentence for a file of a run that has been changed since it was written."""
    return UserError(f"{path} is damaged ({what}); put a whole copy in its place, or remove it")


def thumbnail(image: Tensor) -> Tensor:
    """(3, 64, 64) uint8: the middle square of a (3, H, W) uint8 image."""
    side = min(image.shape[-2:])
    top, left = (image.shape[-2] - side) // 2, (image.shape[-1] - side) // 2
    square = image[None, :, top : top + side, left : left + side].float()
    # Tiny images are shown as the pixels that they are.
    form: dict[str, Any] = {"mode": "bilinear", "antialias": True} if side > SIDE // 2 else {"mode": "nearest"}
    return interpolate(square, (SIDE, SIDE), **form)[0].round().clamp(0, 255).to(torch.uint8)
