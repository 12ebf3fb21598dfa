"""What every data set is: images by row, labels apart from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from falseneg.data.decoding import Decoded, Reduction, decode
from falseneg.errors import UserError

UNLABELLED = -1
_MOST_CLASSES = 100_000
_MOST_DIGITS = 100  # a text of more digits is a name; Python refuses to read a very long one as a number


class ImageSet(Dataset[tuple[Tensor, int, int]]):
    """Images by row. A row is always the same image: per-image state is kept by row.

    Open: give `__len__` and `image`. Labels never reach the training images: they serve the oracle, and measuring.

    Attributes:
        labels: (n,) int64, −1 where an image has none; or None.
        class_names: the name of each label, or None.
        captioned: whether `captions` has texts; an image may still lack them.
        note: one sentence on how the data were understood, for the log; or None.
    """

    labels: Tensor | None = None
    class_names: Sequence[str] | None = None
    captioned: bool = False
    note: str | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def image(self, row: int) -> Tensor:
        """The image: uint8 (3, H, W), RGB.

        Raises:
            UserError: it cannot be read; the message names it.
        """
        raise NotImplementedError

    def reduced(self, row: int, reduction: Reduction) -> Tensor:
        """The image, with its sides divided by up to `reduction(height, width)` where that takes less time."""
        return self.image(row)

    def fetch(self, rows: Sequence[int]) -> None:
        """Told which images are read next, so that what lies far away can be brought here, all at once; raises nothing."""

    def load(self, row: int) -> Decoded:
        """The image, and what had to be converted."""
        return Decoded(self.image(row), ())

    def describe(self, row: int) -> str:
        """What to call the image in messages and reports: its file or key."""
        return f"image {row}"

    def place(self, row: int) -> str:
        """Where the image can be found, for errors: may be longer than `describe`."""
        return self.describe(row)

    def captions(self, row: int) -> tuple[str, ...]:
        """The texts that describe the image, in the order in which they are stored; () if it has none.

        Raises:
            UserError: they cannot be read; the message names the image.
        """
        return ()

    def encoded(self, row: int) -> bytes | None:
        """The bytes that are stored for the image, to search for exact duplicates; None if none are stored."""
        return None

    def encoded_size(self, row: int) -> int | None:
        """How many bytes are stored, found cheaply; None if none are stored."""
        data = self.encoded(row)
        return None if data is None else len(data)

    def test_set(self) -> ImageSet | None:
        """The published test split, where there is one."""
        return None

    def __getitem__(self, row: int) -> tuple[Tensor, int, int]:
        """The image, its row, and its label or −1."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        label = UNLABELLED if self.labels is None else int(self.labels[row])
        return self.image(row), row, label

    def __iter__(self) -> Iterator[tuple[Tensor, int, int]]:
        return (self[row] for row in range(len(self)))


class EncodedSet(ImageSet):
    """Images that are stored as files or as the bytes of files. Open: give `__len__`, `encoded` and `describe`."""

    def encoded(self, row: int) -> bytes:
        raise NotImplementedError

    def load(self, row: int) -> Decoded:
        return decode(self.encoded(row), self.place(row))

    def image(self, row: int) -> Tensor:
        return self.load(row).image

    def reduced(self, row: int, reduction: Reduction) -> Tensor:
        if (type(self).load, type(self).image) != (EncodedSet.load, EncodedSet.image):
            return self.image(row)  # a user's own set that does something else with its images
        return decode(self.encoded(row), self.place(row), reduction).image


class PixelSet(ImageSet):
    """Images of one size that are kept in memory. Open: the constructor calls this one.

    Args:
        pixels: (n, H, W, 3) uint8.
        labels: (n,) class of each image.
        class_names: the name of each class.
    """

    def __init__(self, pixels: np.ndarray, labels: Sequence[int] | np.ndarray, class_names: Sequence[str]) -> None:
        self.pixels = np.ascontiguousarray(pixels)
        self.labels = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        return len(self.pixels)

    def image(self, row: int) -> Tensor:
        return torch.from_numpy(self.pixels[row]).permute(2, 0, 1)

    def encoded(self, row: int) -> bytes:
        return self.pixels[row].tobytes()

    def encoded_size(self, row: int) -> int:
        return int(self.pixels[row].nbytes)


class Subset(ImageSet):
    """Some rows of a set, renumbered from 0.

    Args:
        image_set: the set.
        rows: its rows that are kept, in the order that they get.
    """

    def __init__(self, image_set: ImageSet, rows: Sequence[int] | Tensor) -> None:
        self.image_set = image_set
        self.rows = torch.as_tensor(rows, dtype=torch.int64)
        self.labels = None if image_set.labels is None else image_set.labels[self.rows]
        self.class_names = image_set.class_names
        self.captioned = image_set.captioned
        self.note = image_set.note

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, row: int) -> Tensor:
        return self.image_set.image(int(self.rows[row]))

    def reduced(self, row: int, reduction: Reduction) -> Tensor:
        return self.image_set.reduced(int(self.rows[row]), reduction)

    def fetch(self, rows: Sequence[int]) -> None:
        self.image_set.fetch([int(self.rows[row]) for row in rows])

    def load(self, row: int) -> Decoded:
        return self.image_set.load(int(self.rows[row]))

    def describe(self, row: int) -> str:
        return self.image_set.describe(int(self.rows[row]))

    def place(self, row: int) -> str:
        return self.image_set.place(int(self.rows[row]))

    def captions(self, row: int) -> tuple[str, ...]:
        return self.image_set.captions(int(self.rows[row]))

    def encoded(self, row: int) -> bytes | None:
        return self.image_set.encoded(int(self.rows[row]))

    def encoded_size(self, row: int) -> int | None:
        return self.image_set.encoded_size(int(self.rows[row]))

    def test_set(self) -> ImageSet | None:
        return self.image_set.test_set()


def split_holdout(image_set: ImageSet, share: float, seed: int) -> tuple[Subset, Subset]:
    """Hold a share of the images out, drawn by row.

    What a label says plays no part: where some images are labelled, the share is drawn among these, for only they can be
    measured on, and all others stay; otherwise it is drawn among all images.

    Args:
        image_set: the set.
        share: the share that is held out, between 0 and 1; at least one image is.
        seed: which images those are.

    Returns:
        the rest, and what is held out; both in the order of the set.

    Raises:
        UserError: the share leaves one side empty.
    """
    if not 0 < share < 1:
        raise UserError(f"a hold-out share of {share:g} is not between 0 and 1: write for example 0.1")
    eligible = torch.ones(len(image_set), dtype=torch.bool)
    if image_set.labels is not None and bool((image_set.labels >= 0).any()):
        eligible = image_set.labels >= 0
    shuffled = torch.randperm(len(image_set), generator=torch.Generator().manual_seed(seed))
    members = shuffled[eligible[shuffled]]
    held = torch.zeros(len(image_set), dtype=torch.bool)
    held[members[: max(1, round(share * len(members)))]] = True
    rest, out = (~held).nonzero().flatten(), held.nonzero().flatten()
    if not len(rest) or not len(out):
        raise UserError(
            f"a hold-out share of {share:g} of {len(image_set)} images leaves one side empty: give more images"
        )
    return Subset(image_set, rest), Subset(image_set, out)


def align_classes(test: ImageSet, train: ImageSet) -> ImageSet:
    """The test set with its classes numbered, by name, as the training set does: a folder may lack a class.

    Test images of classes that the training set does not have become unlabelled.
    """
    if test.labels is None or test.class_names is None or train.class_names is None:
        return test
    number = {name: index for index, name in enumerate(train.class_names)}
    table = torch.tensor([number.get(name, UNLABELLED) for name in test.class_names] + [UNLABELLED])
    aligned = Subset(test, range(len(test)))
    aligned.labels = table[test.labels]  # −1 picks the last entry, which is −1
    aligned.class_names = train.class_names
    return aligned


def encode_labels(values: Sequence[Any]) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Labels as they stand in a file, as numbers.

    Whole numbers from 0 up are kept; anything else is taken as names, numbered in sorted order. None, empty text and
    not-a-number mean that the image has no label (−1).

    Returns:
        (n,) int64 or None if there is no label at all; and the names of the classes, or None if labels were numbers.
    """
    cleaned = [_clean(value) for value in values]
    present = {value for value in cleaned if value is not None}
    if not present:
        return None, None
    if all(isinstance(value, int) and UNLABELLED <= value < _MOST_CLASSES for value in present):
        return torch.tensor([UNLABELLED if value is None else value for value in cleaned], dtype=torch.int64), None
    numeric = all(isinstance(value, int) for value in present)
    names = tuple(str(value) for value in (sorted(present) if numeric else sorted(present, key=str)))
    number = {name: index for index, name in enumerate(names)}
    labels = [UNLABELLED if value is None else number[str(value)] for value in cleaned]
    return torch.tensor(labels, dtype=torch.int64), names


def _clean(value: Any) -> int | str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        text = value.strip()
        is_number = text.removeprefix("-").isdecimal() and len(text) <= _MOST_DIGITS
        return (int(text) if is_number else text) if text else None
    if value is None or value != value:
        return None
    try:
        return int(value) if value == int(value) else str(value)
    except (TypeError, ValueError, OverflowError):  # a date, or infinity
        return str(value)
