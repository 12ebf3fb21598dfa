"""How long an epoch will take, and in how much memory, from a few images."""

from __future__ import annotations

import time

import torch

from falseneg.batch import Batch
from falseneg.data import ViewSet, collate
from falseneg.data.loader import EpochSampler
from falseneg.errors import UserError
from falseneg.train.estimate import estimate
from falseneg.train.plan import Plan, views_of
from falseneg.train.run import Run

TRIED = 2**20
"""About as many numbers (channels of pixels of views) are tried; at least 4 images."""


def forecast(run: Run, plan: Plan, device: torch.device, world: int = 1) -> tuple[float, int]:
    """Load, encode and back-propagate a few images; all is left as it was.

    Args:
        run: its method is on the device.
        plan: the data, and the settings that were left open.
        device: to train on.
        world: processes that share the batch.

    Returns:
        Seconds of training in an epoch, without measuring and without the detector, and bytes of memory beside the
        program itself.
    """
    of_rank = plan.batch_size // world
    batch, loading = _try_loading(views_of(run, plan), of_rank)
    needed = estimate(run.method, batch.to(device), of_rank, run.accumulate)
    each = max(needed.seconds_per_image, loading / plan.workers) if plan.workers else needed.seconds_per_image + loading
    return each * of_rank * EpochSampler(
        len(plan.train), plan.batch_size, keep_last=run.keep_last
    ).batches_per_epoch, needed.memory


def _try_loading(view_set: ViewSet, most: int) -> tuple[Batch, float]:
    """The views of a few images, fewer if they are large, and the seconds that each image took."""
    first = view_set[0, 0]  # loads what loading needs
    values = sum(stream.numel() for stream in first.streams.values())
    images = min(max(4, TRIED // values), 64, most)
    started = time.perf_counter()
    batch = collate([view_set[0, row] for row in range(images)])
    assert not isinstance(batch, UserError)
    return batch, (time.perf_counter() - started) / images
