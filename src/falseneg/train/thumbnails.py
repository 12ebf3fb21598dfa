"""Small pictures of the images that the report shows."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from falseneg.files import replacing, write_bytes
from falseneg.train.names import FLAGGED, PAIRS, PICTURES, THUMBNAILS
from falseneg.train.pairs import NAMED, as_csv, caption_of, read_pairs, write_pictures

if TYPE_CHECKING:
    from falseneg.data import ImageSet

ANCHORS, PER_ANCHOR, ENLARGED = 16, 8, 96
"""The gallery: anchors; candidates of each at each recorded epoch, and wrong ones; pixels of a picture's side."""
SIDE = 64
"""Pixels of the side of a picture that the report does not enlarge."""


def write_thumbnails(folder: Path, images: ImageSet) -> None:
    """Small pictures of the anchors that were flagged for at most recorded epochs, and of their best-scored candidates.

    They are written as arrays for the report, and as files for readers of the CSV of pairs, which is written, too.
    """
    table = read_pairs(folder / FLAGGED) if (folder / FLAGGED).is_file() else None
    rows: list[int] = []
    if table is not None:
        numbers = table.select([name for name in table.column_names if name not in NAMED]).to_pydict()
        rows = [row for row in gallery_rows(numbers) if 0 <= row < len(images)]
    arrays = thumbnail_arrays(images, rows, ENLARGED)
    with replacing(folder / THUMBNAILS) as file:
        np.savez_compressed(file, **arrays)
    shutil.rmtree(folder / PICTURES, ignore_errors=True)
    write_pictures(folder, rows, arrays["images"])
    if table is not None:
        write_bytes(folder / PAIRS, as_csv(table, folder))


def thumbnail_arrays(images: ImageSet, rows: Sequence[int], side: int = SIDE) -> dict[str, Any]:
    """Small pictures of these rows, with what is known of them: rows, names, images and, where there are any, captions and labels."""
    arrays: dict[str, Any] = {
        "rows": np.array(rows, dtype=np.int64),
        "names": np.array([images.describe(row) for row in rows], dtype=str),
    }
    pictures = [thumbnail(images.image(row), side).permute(1, 2, 0).numpy() for row in rows]
    arrays["images"] = np.stack(pictures) if pictures else np.empty((0, side, side, 3), dtype=np.uint8)
    if images.captioned:
        arrays["captions"] = np.array([caption_of(images, row) for row in rows], dtype=str)
    if images.labels is not None:
        arrays["labels"] = images.labels[rows].numpy()
        if images.class_names is not None:
            arrays["class_names"] = np.array(list(images.class_names), dtype=str)
    return arrays


def gallery_rows(flagged: Mapping[str, Sequence[Any]]) -> list[int]:
    """The data-set rows that the gallery shows, from the columns of flagged.parquet."""
    of_anchor: dict[int, dict[int, list[tuple[float, int, bool | None]]]] = {}
    correct = flagged.get("correct", [None] * len(flagged["anchor"]))
    columns = [*(flagged[key] for key in ("anchor", "candidate", "score", "epoch")), correct]
    for anchor, candidate, score, epoch, right in zip(*columns, strict=True):
        of_anchor.setdefault(anchor, {}).setdefault(epoch, []).append((-score, candidate, right))
    chosen: list[int] = []
    for epochs in sorted({len(seen) for seen in of_anchor.values()}, reverse=True):
        group = sorted(anchor for anchor, seen in of_anchor.items() if len(seen) == epochs)
        room = min(ANCHORS - len(chosen), len(group))
        # Spread over the data set: the first rows of a folder are all of one class.
        chosen += [group[place * len(group) // room] for place in range(room)]
    rows = set(chosen)
    for anchor in chosen:
        for candidates in of_anchor[anchor].values():
            ranked = sorted(candidates, key=lambda one: one[:2])
            rows.update(candidate for _, candidate, _ in ranked[:PER_ANCHOR])
            rows.update([candidate for _, candidate, right in ranked if right is False][:PER_ANCHOR])
    return sorted(rows)


def thumbnail(image: Tensor, side: int = SIDE) -> Tensor:
    """(3, side, side) uint8: the middle square of a (3, H, W) uint8 image."""
    middle = min(image.shape[-2:])
    top, left = (image.shape[-2] - middle) // 2, (image.shape[-1] - middle) // 2
    square = image[None, :, top : top + middle, left : left + middle].float()
    # Tiny images are shown as the pixels that they are.
    form: dict[str, Any] = {"mode": "bilinear", "antialias": True} if middle > side // 2 else {"mode": "nearest"}
    return interpolate(square, (side, side), **form)[0].round().clamp(0, 255).to(torch.uint8)
