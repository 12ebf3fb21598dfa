"""Small pictures of the images that the report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from falseneg.files import replacing

if TYPE_CHECKING:
    from falseneg.data import ImageSet

ANCHORS, PER_ANCHOR, SIDE = 16, 8, 64
"""The gallery: anchors, candidates of each at each recorded epoch, and pixels of a thumbnail's side."""


def write_thumbnails(folder: Path, images: ImageSet) -> None:
    """Small pictures of the anchors that were flagged for at most recorded epochs, and of their best-scored candidates."""
    import pyarrow.parquet as pq

    path = folder / "flagged.parquet"
    rows = gallery_rows(pq.read_table(path).to_pydict()) if path.is_file() else []
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


def gallery_rows(flagged: Mapping[str, Sequence[Any]]) -> list[int]:
    """The data-set rows that the gallery shows, from the columns of flagged.parquet."""
    of_anchor: dict[int, dict[int, list[tuple[float, int]]]] = {}
    for anchor, candidate, score, epoch in zip(
        *(flagged[k] for k in ("anchor", "candidate", "score", "epoch")), strict=True
    ):
        of_anchor.setdefault(anchor, {}).setdefault(epoch, []).append((-score, candidate))
    chosen: list[int] = []
    for epochs in sorted({len(seen) for seen in of_anchor.values()}, reverse=True):
        group = sorted(anchor for anchor, seen in of_anchor.items() if len(seen) == epochs)
        room = min(ANCHORS - len(chosen), len(group))
        # Spread over the data set: the first rows of a folder are all of one class.
        chosen += [group[place * len(group) // room] for place in range(room)]
    rows = set(chosen)
    for anchor in chosen:
        for candidates in of_anchor[anchor].values():
            rows.update(candidate for _, candidate in sorted(candidates)[:PER_ANCHOR])
    return sorted(rows)


def thumbnail(image: Tensor) -> Tensor:
    """(3, 64, 64) uint8: the middle square of a (3, H, W) uint8 image."""
    side = min(image.shape[-2:])
    top, left = (image.shape[-2] - side) // 2, (image.shape[-1] - side) // 2
    square = image[None, :, top : top + side, left : left + side].float()
    # Tiny images are shown as the pixels that they are.
    form: dict[str, Any] = {"mode": "bilinear", "antialias": True} if side > SIDE // 2 else {"mode": "nearest"}
    return interpolate(square, (SIDE, SIDE), **form)[0].round().clamp(0, 255).to(torch.uint8)
