"""The features of every image of a data set."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from falseneg.data.workers import IDLE, at_row, batches_of, handed_over, worker_options
from falseneg.errors import UserError

if TYPE_CHECKING:
    from falseneg.data.image_set import ImageSet

View = Callable[[Tensor, int], Tensor]
"""From a uint8 (3, H, W) image and a side to a uint8 (3, side, side) one."""


def extract_features(
    encoder: nn.Module,
    image_set: ImageSet,
    size: int,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    workers: int = 0,
    view: View | None = None,
) -> Tensor:
    """Features of every image, in the order of the data set, without augmentation and without gradient.

    The encoder is in evaluation mode meanwhile, and every part of it is put back into the mode it had. No global random
    state is touched, so measuring in the middle of a training does not change the training.

    Args:
        encoder: (B, 3, size, size) uint8 images to (B, F) features; it lies on ``device`` already.
        image_set: the images.
        size: side of the square that each image becomes, in pixels (`evaluation_view`).
        batch_size: images at a time.
        device: where the encoder lies and the images go.
        progress: called with the images done and the images in all, after each batch.
        workers: processes that read images; 0 reads in this one.
        view: makes the square of an image, if not `evaluation_view`.

    Returns:
        (n, F) float32 on the CPU.

    Raises:
        UserError: the data set is empty, or an image cannot be read, or a worker was killed.
    """
    total, done = len(image_set), 0
    features: Tensor | None = None
    with closing(feature_batches(encoder, image_set, size, batch_size, device, workers, view=view)) as batches:
        for batch in batches:
            if features is None:
                features = torch.empty(total, batch.shape[1])
            features[done : done + len(batch)] = batch
            done += len(batch)
            if progress is not None:
                progress(done, total)
    assert features is not None
    return features


def feature_batches(
    encoder: nn.Module,
    image_set: ImageSet,
    size: int,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    workers: int = 0,
    worker_starts: Callable[[int], None] | None = None,
    view: View | None = None,
) -> Generator[Tensor]:
    """The same as `extract_features`, a batch at a time, for those who cannot or need not hold all features.

    Close the iterator (`contextlib.closing`): that puts the encoder back into its modes, and ends the workers.

    Args:
        encoder: images to features.
        image_set: the images.
        size: side of the square that each image becomes, in pixels.
        batch_size: images at a time.
        device: where the encoder lies and the images go.
        workers: processes that read images; 0 reads in this one.
        worker_starts: called in each worker when it starts, with its number.
        view: makes the square of an image, if not `evaluation_view`.

    Yields:
        (b, F) float32 on the CPU.

    Raises:
        UserError: the data set is empty, or an image cannot be read, or a worker was killed.
    """
    if len(image_set) == 0:
        raise UserError("the data set to extract features of is empty; give at least one image")
    views = _EvaluationViews(image_set, size, view)
    options = worker_options(views, workers)
    loader = DataLoader(views, batch_size, collate_fn=_collate, worker_init_fn=worker_starts, **options)
    with evaluation_mode(encoder):
        for images in batches_of(loader):
            with torch.no_grad():
                batch: Tensor = encoder(images.to(device)).float().cpu()
            yield batch


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every submodule has the mode it had (a frozen one stays frozen)."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


class _EvaluationViews(Dataset[Tensor]):
    def __init__(self, image_set: ImageSet, size: int, view: View | None) -> None:
        from falseneg.data.views import evaluation_view

        self.image_set, self.size, self.view = image_set, size, view or evaluation_view

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, row: int) -> Tensor:
        at_row(row)
        return self.view(self.image_set.image(row), self.size)

    def __getitems__(self, rows: list[int]) -> list[Tensor] | UserError:
        self.image_set.fetch(rows)
        try:
            return [self[row] for row in rows]
        except UserError as error:
            return UserError(*error.args)
        finally:
            at_row(IDLE)


def _collate(images: list[Tensor] | UserError) -> Tensor | UserError:
    if isinstance(images, UserError):
        return images
    batch = torch.stack(images)
    return handed_over(batch, batch)
