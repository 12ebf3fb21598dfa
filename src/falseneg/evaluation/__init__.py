"""How good an encoder's features are, and how well false negatives are detected.

Functions of features take all four tensors on one device, whichever that is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from falseneg.errors import UserError
from falseneg.evaluation.checks import check_split
from falseneg.evaluation.false_negatives import DetectionCounts
from falseneg.evaluation.features import evaluation_mode, extract_features
from falseneg.evaluation.few_label import FewLabel, few_label_accuracy
from falseneg.evaluation.groups import group_figures
from falseneg.evaluation.knn import knn_accuracy
from falseneg.evaluation.linear import linear_accuracy

if TYPE_CHECKING:
    from falseneg.data.image_set import ImageSet

__all__ = [
    "DetectionCounts",
    "FewLabel",
    "check_split",
    "evaluate",
    "evaluate_features",
    "evaluation_mode",
    "extract_features",
    "few_label_accuracy",
    "group_figures",
    "knn_accuracy",
    "linear_accuracy",
]


def evaluate(
    encoder: nn.Module,
    train_set: ImageSet,
    test_set: ImageSet,
    size: int,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    workers: int = 0,
    seed: int = 0,
    few_labels: int = 5,
    few_label_draws: int = 10,
) -> dict[str, float | None]:
    """All figures of an encoder on frozen features; the encoder as it is, no epoch is chosen.

    Images without a label are left out. Labels of ``test_set`` are used to count, never to choose anything.

    Args:
        encoder: (B, 3, size, size) uint8 images to (B, F) features; it lies on ``device`` already.
        train_set: labelled images to learn classifiers from.
        test_set: labelled images to measure on.
        size: side of the square that each image becomes, in pixels.
        batch_size: images at a time.
        device: where the encoder lies.
        progress: called with the images done and the images in all, over both sets.
        workers: processes that read images; 0 reads in this one.
        seed: of the few-label draws.
        few_labels: labelled images of each class for few-label accuracy.
        few_label_draws: how many times they are drawn.

    Returns:
        See `evaluate_features`.

    Raises:
        UserError: a data set has no labels, or the features cannot be measured (`check_split`).
    """
    parts = [_labelled("train", train_set), _labelled("test", test_set)]
    total = sum(len(part) for part, _ in parts)
    split: list[Tensor] = []
    before = 0
    for part, labels in parts:

        def shifted(done: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, total)

        split += [extract_features(encoder, part, size, batch_size, device, shifted, workers), labels]
        before += len(part)
    train, train_labels, test, test_labels = split
    return evaluate_features(train, train_labels, test, test_labels, seed, few_labels, few_label_draws)


def _labelled(name: str, image_set: ImageSet) -> tuple[ImageSet, Tensor]:
    """The images that have a label, and their labels."""
    from falseneg.data.image_set import Subset

    if image_set.labels is None or not bool((image_set.labels >= 0).any()):
        raise UserError(f"{name}: the images have no labels, so accuracy cannot be measured; give labelled images")
    part = Subset(image_set, (image_set.labels >= 0).nonzero().flatten())
    return part, image_set.labels[part.rows]


def evaluate_features(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    seed: int = 0,
    few_labels: int = 5,
    few_label_draws: int = 10,
) -> dict[str, float | None]:
    """All figures of features, each by the protocol and the fixed settings of its own function.

    Args:
        train: (n, F) features to learn from.
        train_labels: (n,) integers of at least 0.
        test: (m, F) features to measure on.
        test_labels: (m,) integers of at least 0.
        seed: of the few-label draws.
        few_labels: labelled images of each class for few-label accuracy.
        few_label_draws: how many times they are drawn.

    Returns:
        "knn" (20 neighbours), "linear", and "few_label" with "few_label_sd" over the draws; shares in [0, 1]. The last two are
        None where a class has fewer than ``few_labels`` training images.

    Raises:
        UserError: the features cannot be measured (`check_split`).
    """
    split = (train, train_labels, test, test_labels)
    figures: dict[str, float | None] = {"knn": knn_accuracy(*split), "linear": linear_accuracy(*split)}
    enough = int(torch.unique(train_labels, return_counts=True)[1].min()) >= few_labels
    if not enough:
        return figures | {"few_label": None, "few_label_sd": None}
    few = few_label_accuracy(*split, few_labels, few_label_draws, seed)
    return figures | {"few_label": few.mean, "few_label_sd": few.sd}
