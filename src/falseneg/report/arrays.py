"""Arrays from files that may be damaged, or made to harm: checked before anything is drawn from them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

UNPACKED = 2**29
"""Bytes that the arrays of one file may unpack to: far more than a run writes."""


def check(right: bool) -> None:
    """Refuse a file of another form; the page then says that it was left out."""
    if not right:
        raise ValueError("another form")


def are(values: np.ndarray, kinds: str, length: int | None = None, dimensions: int = 1) -> bool:
    """Whether an array is of these kinds of numbers (as NumPy abbreviates them) and this shape."""
    return values.dtype.kind in kinds and values.ndim == dimensions and length in (None, len(values))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file. Objects are never unpickled, and little is unpacked of what would unpack to too much."""
    with zipfile.ZipFile(path) as archive:
        check(sum(member.file_size for member in archive.infolist()) <= UNPACKED)
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
