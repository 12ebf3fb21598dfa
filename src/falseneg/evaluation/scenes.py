"""Batches of whole images with the boxes of their objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from falseneg.data.loader import EpochSampler
from falseneg.data.views import view_generator_seed
from falseneg.data.workers import IDLE, at_row, batches_of, handed_over, worker_options
from falseneg.errors import UserError
from falseneg.evaluation.base import Task
from falseneg.evaluation.voc import Scenes

_AS_IT_IS = -1
"""The epoch of an image that is not mirrored."""


class Scene(NamedTuple):
    """An image and its k objects, as `Scenes` holds them.

    Attributes:
        image: (3, H, W) uint8.
        boxes: (k, 4).
        classes: (k,).
    """

    image: Tensor
    boxes: Tensor
    classes: Tensor


class SceneBatches:
    """Batches to learn from: every second image is mirrored, at random.

    Args:
        scenes: the images.
        batch_size: images in a batch.
        task: seed, device and workers.

    Raises:
        UserError: there are fewer than two images, or a batch would hold fewer.
    """

    def __init__(self, scenes: Scenes, batch_size: int, task: Task) -> None:
        if min(batch_size, len(scenes.images)) < 2:
            raise UserError(
                f"a batch of {batch_size} of {len(scenes.images)} images is too small to detect objects; give 2 or more of both"
            )
        self.sampler = EpochSampler(len(scenes.images), batch_size, task.seed)
        self.per_epoch = self.sampler.batches_per_epoch
        self.loader, self.device = _loader(_SceneSet(scenes, task.seed), self.sampler, task.workers), task.device

    def epoch(self, number: int, start: int) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
        """Images in [0, 1] and what torchvision's detectors learn from, from that batch on."""
        self.sampler.set_epoch(number, start)
        for batch in batches_of(self.loader):
            yield (
                [_in_unit_range(each.image, self.device) for each in batch],
                [{"boxes": each.boxes.to(self.device), "labels": each.classes.to(self.device)} for each in batch],
            )


def images_of(scenes: Scenes, rows: range, task: Task) -> Iterator[Tensor]:
    """Images in [0, 1], one at a time, as they are."""
    singly = [[(_AS_IT_IS, row)] for row in rows]
    for batch in batches_of(_loader(_SceneSet(scenes, task.seed), singly, task.workers)):
        yield _in_unit_range(batch[0].image, task.device)


def _in_unit_range(image: Tensor, device: torch.device) -> Tensor:
    return image.to(device).float() / 255


def _loader(scenes: _SceneSet, batches: Any, workers: int) -> DataLoader[Any]:
    return DataLoader(scenes, batch_sampler=batches, collate_fn=_collate, **worker_options(scenes, workers))


class _SceneSet(Dataset[Scene]):
    def __init__(self, scenes: Scenes, seed: int) -> None:
        self.scenes, self.seed = scenes, seed

    def __getitem__(self, key: tuple[int, int]) -> Scene:
        epoch, row = key
        at_row(row)
        image, boxes = self.scenes.images.image(row), self.scenes.boxes[row]
        if epoch != _AS_IT_IS:
            generator = torch.Generator().manual_seed(view_generator_seed(self.seed, epoch, row, 0))
            if torch.rand((), generator=generator) < 0.5:
                image, boxes = mirrored(image, boxes)
        return Scene(image, boxes, self.scenes.classes[row])

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[Scene] | UserError:
        try:
            return [self[key] for key in keys]
        except UserError as error:
            return UserError(*error.args)
        finally:
            at_row(IDLE)


def mirrored(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """An image and its boxes with left and right exchanged."""
    width = image.shape[2]
    left, top, right, bottom = boxes.unbind(dim=1)
    return image.flip(2), torch.stack([width - right, top, width - left, bottom], dim=1)


def _collate(samples: list[Scene] | UserError) -> Sequence[Scene] | UserError:
    if isinstance(samples, UserError):
        return samples
    return handed_over(samples, *(tensor for each in samples for tensor in each))
