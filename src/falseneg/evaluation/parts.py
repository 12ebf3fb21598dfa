"""The labelled images of a task, and their features, as protocols want them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from falseneg.data.image_set import ImageSet, Subset
from falseneg.errors import UserError
from falseneg.evaluation.base import Split, Task
from falseneg.evaluation.checks import check_split
from falseneg.evaluation.features import View, extract_features
from falseneg.evaluation.metrics import check_same_classes


class Part(NamedTuple):
    """Labelled images.

    Attributes:
        images: n of them.
        targets: (n,) int64 classes from 0, or (n, C) of −1, 0 and 1 where an image may show several.
    """

    images: ImageSet
    targets: Tensor

    def rows(self, rows: Tensor) -> Part:
        """Some of them, in that order."""
        return Part(Subset(self.images, rows), self.targets[rows])


def labelled(name: str, images: ImageSet) -> Part:
    """The images that have a label, and their labels.

    Args:
        name: "train" or "test", for the message.
        images: the images.

    Raises:
        UserError: there is none.
    """
    if images.labels is None or not bool((images.labels >= 0).any()):
        raise UserError(f"{name}: the images have no labels, so accuracy cannot be measured; give labelled images")
    part = Subset(images, (images.labels >= 0).nonzero().flatten())
    return Part(part, images.labels[part.rows])


def both(task: Task) -> tuple[Part, Part, int]:
    """What a task learns from and what it is measured on, with classes numbered from 0, and how many they are.

    Raises:
        UserError: labels are missing, or the classes are not the same.
    """
    assert task.train is not None and task.test is not None
    train, test = labelled("train", task.train), labelled("test", task.test)
    check_same_classes(train.targets, test.targets)
    classes = train.targets.unique()
    if len(classes) < 2:
        raise UserError("all labelled training images are of one class, so there is nothing to tell apart")
    numbered = [Part(part.images, torch.searchsorted(classes, part.targets)) for part in (train, test)]
    return numbered[0], numbered[1], len(classes)


def features_of_part(name: str, images: ImageSet, task: Task, view: View | None = None) -> Tensor:
    """(n, F) float32 features on the CPU, made once.

    Args:
        name: of the piece.
        images: the images.
        task: encoder, size, pieces.
        view: makes the square of an image, if not `evaluation_view`.
    """

    def progress(done: int, total: int) -> None:
        task.progress(f"features ({name})", done, total)

    def make() -> dict[str, Tensor]:
        found = extract_features(
            task.encoder, images, task.size, device=task.device, progress=progress, workers=task.workers, view=view
        )
        return {"features": found}

    return task.pieces.tensors(f"features-{name}", make)["features"]


def split_of(task: Task) -> tuple[Split, int]:
    """The features and labels of a task, on the CPU, and how many classes there are.

    Raises:
        UserError: labels are missing, the classes are not the same, or the features cannot be measured.
    """
    train, test, classes = both(task)
    split = Split(
        features_of_part("train", train.images, task),
        train.targets,
        features_of_part("test", test.images, task),
        test.targets,
    )
    check_split(*split)
    return split, classes


def scores_of(model: nn.Module, images: ImageSet, task: Task) -> Tensor:
    """(m, C) scores of a classifier of images, without augmentation."""
    return extract_features(model, images, task.size, device=task.device, workers=task.workers)
