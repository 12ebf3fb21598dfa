"""The embeddings of another model, which guide a detector: a file with one for each row, of its image or of its text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from falseneg.errors import UserError
from falseneg.foreign.archives import load_array

TABLES = (".npy", ".safetensors")
"""The endings of files of embeddings."""


def is_table(path: Path) -> bool:
    """Whether a file that is there holds embeddings: an .npy file, or a .safetensors file of one tensor only."""
    if path.suffix != ".safetensors":
        return path.suffix in TABLES
    try:
        with safe_open(path, "pt") as file:
            return len(file.keys()) == 1
    except (SafetensorError, OSError):
        return False


def read_embeddings(path: Path, owner: str) -> Tensor:
    """(rows, E) embeddings of a file that is there, as they stand in it.

    Args:
        path: a .npy file, or a .safetensors file of one tensor.
        owner: the detector's name.

    Raises:
        UserError: it holds no embeddings.
    """
    table = _stored(path, owner)
    kind = str(table.dtype).removeprefix("torch.")
    if table.ndim != 2 or not table.is_floating_point() or 0 in table.shape:
        raise UserError(f"{owner}: {path} is {kind} of shape {tuple(table.shape)}; give floats (rows, E)")
    if not bool(table.isfinite().all()):
        raise UserError(f"{owner}: {path} holds numbers that are not finite; embed the images or texts again")
    return table


def _stored(path: Path, owner: str) -> Tensor:
    """The one array of a file.

    Raises:
        UserError: the file is damaged, or holds something else.
    """
    if path.suffix != ".safetensors":
        try:
            return torch.from_numpy(np.array(load_array(path)))
        except (OSError, ValueError, TypeError) as error:  # the last for kinds of values that torch has not
            raise UserError(f"{owner}: {path} is not an array of numbers; give a .npy file of embeddings") from error
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            if len(names) == 1:
                stored: Tensor = file.get_tensor(names[0])
                return stored
    except (SafetensorError, OSError) as error:
        raise UserError(f"{owner}: {path} is damaged or not a safetensors file; write the embeddings again") from error
    raise UserError(f"{owner}: {path} holds {len(names)} tensors; give a file with one, the embeddings (rows, E)")


def check_one_for_each(embeddings: Tensor, rows: int, path: str | Path | None, owner: str) -> None:
    """Refuse embeddings that are not one for each row.

    Args:
        embeddings: of a file.
        rows: the number of images to learn from, or of images with their texts.
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
