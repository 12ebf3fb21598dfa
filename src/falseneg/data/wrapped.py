"""A user's own data set as an image set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from falseneg.data.captions import as_captions
from falseneg.data.decoding import Decoded, from_any
from falseneg.data.image_set import UNLABELLED, ImageSet
from falseneg.data.messages import MEND
from falseneg.errors import UserError

_IMAGE_KEYS, _LABEL_KEYS, _CAPTION_KEYS = ("image", "img"), ("label", "target"), ("caption", "captions", "text")
_LABEL_ATTRIBUTES = ("targets", "labels", "_labels", "y", "_samples", "samples", "imgs")


class DatasetBacked(ImageSet):
    """Images of a data set in torch's sense. Open: the constructor calls this one.

    Args:
        dataset: has a length, and yields by index an image; or a tuple whose first element is one and whose second is the
            label, if it is a whole number, or the captions, if it is a text or a list of texts; or a mapping that holds
            these as "image" (or "img"), "label" (or "target") and "caption" (or "captions", "text").
        name: what to call it in messages.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        if isinstance(dataset, IterableDataset) or not (
            hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        ):
            raise UserError(
                f"{name} cannot be read by row: a data set needs __getitem__ and __len__, so that an image keeps its "
                f"row"
            )
        if not len(dataset):
            raise UserError(f"{name} is empty: give a data set with images")
        self.dataset = dataset
        self.name = name
        self._labels: Tensor | None = None
        self._labels_known = False
        self._captioned: bool | None = None
        classes = getattr(dataset, "classes", None)
        is_names = isinstance(classes, Sequence) and not isinstance(classes, str)
        self.class_names = tuple(map(_class_name, classes)) if is_names else None  # type: ignore[arg-type]

    @property
    def labels(self) -> Tensor | None:  # type: ignore[override]
        """(n,) int64, or None: taken from `targets` or an attribute like it, or else every item is read once."""
        if not self._labels_known:
            self._labels = self._find_labels()
            self._labels_known = True
        return self._labels

    def _find_labels(self) -> Tensor | None:
        ends = {row: label for row in (0, len(self) - 1) if (label := self._own_label(row)) is not None}
        for attribute in _LABEL_ATTRIBUTES if ends else ():
            labels = _as_labels(getattr(self.dataset, attribute, None), len(self))
            if labels is not None and all(labels[row] == label for row, label in ends.items()):
                return labels if (labels >= 0).any() else None
        if not ends:
            return None
        found = [self._own_label(row) for row in range(len(self))]
        return torch.tensor([UNLABELLED if label is None else label for label in found], dtype=torch.int64)

    def _own_label(self, row: int) -> int | None:
        """The label that the item itself carries; None if it carries none or cannot be read."""
        try:
            return _label_of(self._item(row), self.describe(row))
        except UserError:
            return None

    @property
    def captioned(self) -> bool:  # type: ignore[override]
        """Whether the first item that can be read has captions; the last one is tried after the first."""
        if self._captioned is None:
            self._captioned = any(self._has_captions(row) for row in (0, len(self) - 1))
        return self._captioned

    def _has_captions(self, row: int) -> bool:
        try:
            return _captions_of(self._item(row)) is not None
        except UserError:
            return False

    def captions(self, row: int) -> tuple[str, ...]:
        """The texts of the item, which is read whole, with its image."""
        return as_captions(_captions_of(self._item(row)), self.describe(row))

    def __len__(self) -> int:
        return len(self.dataset)

    def load(self, row: int) -> Decoded:
        return self._convert(self._item(row), row)

    def image(self, row: int) -> Tensor:
        return self.load(row).image

    def __getitem__(self, row: int) -> tuple[Tensor, int, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        item = self._item(row)
        label = _label_of(item, self.describe(row))
        return self._convert(item, row).image, row, UNLABELLED if label is None else label

    def describe(self, row: int) -> str:
        return f"image {row} of {self.name}"

    def _convert(self, item: Any, row: int) -> Decoded:
        image, _ = _parts(item, self.describe(row))
        return from_any(image, self.describe(row))

    def _item(self, row: int) -> Any:
        try:
            return self.dataset[row]
        except (OSError, SyntaxError) as error:  # what a picture that cannot be decoded raises
            raise UserError(f"{self.describe(row)} cannot be read as an image ({error}): {MEND}") from error


class Wrapped(DatasetBacked):
    """Your own data set: (image, label), (image, caption), {"image": ..., "label": ...} or image by index.

    Images may be PIL pictures, or tensors or arrays (H, W), (C, H, W) or (H, W, C) as uint8, or as floats within 0..1.
    They should come without random transforms: the views make those. Labels are whole numbers; they are taken from an
    attribute `targets` or `labels` if there is one, otherwise every item is read once when they are first asked for. A
    caption is a text or a list of texts; to read it is to read the item.

    Args:
        dataset: the data set.
    """

    def __init__(self, dataset: Any) -> None:
        super().__init__(dataset, type(dataset).__name__)


def as_image_set(dataset: Any) -> ImageSet:
    """The data set itself if it is an `ImageSet`, otherwise wrapped as one.

    Raises:
        UserError: it cannot be read by row, or is empty.
    """
    return dataset if isinstance(dataset, ImageSet) else Wrapped(dataset)


def _parts(item: Any, name: str) -> tuple[Any, Any]:
    """The image of an item and what may be its label, or None.

    Raises:
        UserError: it is a mapping without an image.
    """
    if isinstance(item, Mapping):
        image = next((key for key in _IMAGE_KEYS if key in item), None)
        if image is None:
            given = ", ".join(map(repr, item)) or "nothing"
            raise UserError(f"{name} is a mapping that holds {given}: an item needs 'image', and may have 'label'")
        return item[image], next((item[key] for key in _LABEL_KEYS if key in item), None)
    if isinstance(item, (tuple, list)) and item:
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _captions_of(item: Any) -> Any:
    """The captions of an item: what stands under their key, or the second element if it is a text or a list of texts."""
    if isinstance(item, Mapping):
        return next((item[key] for key in _CAPTION_KEYS if key in item), None)
    return next(filter(_are_texts, item[1:2]), None) if isinstance(item, (tuple, list)) else None


def _are_texts(value: Any) -> bool:
    values = value if isinstance(value, (tuple, list)) and value else [value]
    return all(isinstance(each, (str, bytes)) for each in values)


def _label_of(item: Any, name: str) -> int | None:
    """The label of an item if it is a whole number."""
    _, value = _parts(item, name)
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        if value.ndim or not np.issubdtype(np.asarray(value).dtype, np.integer):
            return None
        return int(value)
    return value if isinstance(value, int) else None


def _as_labels(values: Any, length: int) -> Tensor | None:
    """Labels from an attribute: whole numbers, or pairs that end in one; None if it holds anything else."""
    if not isinstance(values, (Sequence, Tensor, np.ndarray)) or len(values) != length:
        return None
    if isinstance(values[0], (tuple, list)):
        values = [pair[-1] for pair in values]
    try:
        labels = np.asarray(values)
    except ValueError:
        return None
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        return None
    return torch.as_tensor(labels.astype(np.int64))


def _class_name(value: Any) -> str:
    """Some data sets name a class in several ways, as a tuple: the first is taken."""
    return str(value[0]) if isinstance(value, (tuple, list)) and value else str(value)
