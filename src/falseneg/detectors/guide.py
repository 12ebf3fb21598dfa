"""The embeddings of another model, which guide a detector: a file with one for each image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from falseneg.errors import UserError
from falseneg.foreign.archives import load_array


def read_embeddings(path: Path, owner: str) -> Tensor:
    """(rows, E) embeddings of a NumPy file that is there, as they stand in it.

    Args:
        path: a .npy file.
        owner: the detector's name.

    Raises:
        UserError: it holds no embeddings.
    """
    try:
        table = load_array(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{owner}: {path} is not an array of numbers; give a .npy file of embeddings") from error
    if table.ndim != 2 or table.dtype.kind != "f" or 0 in table.shape:
        raise UserError(f"{owner}: {path} is {table.dtype} of shape {table.shape}; give floats (rows, E)")
    if not np.isfinite(table).all():
        raise UserError(f"{owner}: {path} holds numbers that are not finite; embed the images again")
    return torch.from_numpy(np.array(table))


def check_one_for_each(embeddings: Tensor, rows: int, path: str | Path | None, owner: str) -> None:
    """Refuse embeddings that are not one for each image.

    Args:
        embeddings: of a file.
        rows: the number of images to learn from.
        path: the file.
        owner: the detector's name.

    Raises:
        UserError: they are more or fewer.
    """
    if len(embeddings) != rows:
        raise UserError(
            f"{owner}: {path} holds {len(embeddings)} embeddings, but there are {rows} images to learn from; give one for each "
            "of them, in their order"
        )
