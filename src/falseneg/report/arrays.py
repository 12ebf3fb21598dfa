"""Arrays from files that may be damaged, or made to harm: checked before anything is drawn from them."""

from __future__ import annotations

import numpy as np


def check(right: bool) -> None:
    """Refuse a file of another form; the page then says that it was left out."""
    if not right:
        raise ValueError("another form")


def are(values: np.ndarray, kinds: str, length: int | None = None, dimensions: int = 1) -> bool:
    """Whether an array is of these kinds of numbers (as NumPy abbreviates them) and this shape."""
    return values.dtype.kind in kinds and values.ndim == dimensions and length in (None, len(values))
