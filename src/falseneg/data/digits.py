"""The handwritten digits that ship inside scikit-learn: real images, nothing to download."""

from __future__ import annotations

from typing import Literal

import numpy as np

from falseneg.data.image_set import ImageSet, PixelSet
from falseneg.data.messages import check_choice

_SPLITS = ("train", "test")
_EVERY = 5
_LARGEST = 16  # the pixels of the set count 0..16


class Digits(PixelSet):
    """1,797 handwritten digits of 8 × 8 pixels, grey, ten classes (Alpaydin and Kaynak, 1998); part of scikit-learn.

    Args:
        split: "train" (1,437 images) or "test" (360 images). The set has no published split; this one is fixed and
            takes every fifth image of each class for testing.
    """

    def __init__(self, split: Literal["train", "test"] = "train") -> None:
        check_choice("the split", split, _SPLITS)
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.argsort(digits.target, kind="stable")
        test = np.zeros(len(order), dtype=bool)
        test[order[::_EVERY]] = True
        self.split = split
        self.rows = np.flatnonzero(test if split == "test" else ~test)
        grey = np.rint(digits.images[self.rows] * (255 / _LARGEST)).astype(np.uint8)
        pixels = np.repeat(grey[:, :, :, None], 3, axis=3)
        super().__init__(pixels, digits.target[self.rows], [str(name) for name in digits.target_names])

    def describe(self, row: int) -> str:
        return f"digit {self.rows[row]}"

    def test_set(self) -> ImageSet | None:
        return Digits("test") if self.split == "train" else None
