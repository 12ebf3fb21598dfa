"""What features and labels must be before a figure can be made of them."""

from __future__ import annotations

import torch
from torch import Tensor

from falseneg.errors import UserError


def check_features(name: str, features: Tensor, labels: Tensor) -> None:
    """Refuse features and labels that cannot be measured.

    Args:
        name: "train" or "test", for the message.
        features: (n, F) floating.
        labels: (n,) integers of at least 0.

    Raises:
        UserError: wrong shapes, no images, features that are not finite, or images without a label.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise UserError(
            f"{name}: features of shape {tuple(features.shape)} and labels of shape {tuple(labels.shape)} do not match; "
            "give (n, F) features and (n,) labels"
        )
    if len(labels) == 0:
        raise UserError(f"{name}: there are no labelled images; give at least one")
    if bool((labels < 0).any()):
        raise UserError(
            f"{name}: {int((labels < 0).sum())} of {len(labels)} images have no label (a label below 0); leave these out"
        )
    broken = int((~features.isfinite()).any(dim=1).sum())
    if broken:
        raise UserError(
            f"{name}: the features of {broken} of {len(labels)} images hold NaN or infinity, so nothing can be measured; "
            "the encoder has diverged (lower the learning rate) or its file is damaged"
        )


def check_split(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> None:
    """Refuse a split that cannot be measured: see `check_features`; also one class only, or different widths.

    Args:
        train: (n, F) features that a classifier may learn from.
        train_labels: (n,) integers of at least 0.
        test: (m, F) features that it is measured on.
        test_labels: (m,) integers of at least 0.

    Raises:
        UserError: the split cannot be measured.
    """
    check_features("train", train, train_labels)
    check_features("test", test, test_labels)
    if train.shape[1] != test.shape[1]:
        raise UserError(
            f"train features have {train.shape[1]} dimensions and test features {test.shape[1]}; "
            "extract both with the same encoder"
        )
    if len(torch.unique(train_labels)) < 2:
        raise UserError(
            f"all {len(train_labels)} labelled training images are of one class, so there is nothing to tell apart; "
            "accuracy needs at least two classes"
        )


def class_numbers(train_labels: Tensor, test_labels: Tensor) -> tuple[Tensor, Tensor, int]:
    """Number the classes of the training part from 0.

    Returns:
        (n,) and (m,) int64 class numbers and how many classes there are. A test label that training never shows
        becomes −1: whatever is predicted for it is wrong.
    """
    classes, train_numbers = torch.unique(train_labels, return_inverse=True)
    place = torch.searchsorted(classes, test_labels.contiguous()).clamp(max=len(classes) - 1)
    return train_numbers, torch.where(classes[place] == test_labels, place, -1), len(classes)
