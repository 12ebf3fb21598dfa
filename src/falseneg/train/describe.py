"""What a person is told of a run: before its first step what it will take, and at its end what came of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from falseneg.batch import Batch
from falseneg.data import ViewSet, collate
from falseneg.errors import UserError
from falseneg.evaluation import evaluations_of
from falseneg.models import Encoder
from falseneg.train.estimate import estimate
from falseneg.train.folder import ENCODER
from falseneg.train.plan import views_of
from falseneg.train.progress import duration
from falseneg.train.session import Session

TRIED = 2**20
"""About as many numbers (channels of pixels of views) does the estimate try; at least 4 images."""


def describe(session: Session) -> None:
    """What is about to happen, what it will take, before the first epoch."""
    run, plan, say = session.run, session.plan, session.progress.message
    method, clock, device = session.learner.method, session.clock, session.fabric.device
    labels, parameters = plan.train.labels, sum(p.numel() for p in method.parameters() if p.requires_grad)
    known = "without labels" if labels is None else f"{len(labels[labels >= 0].unique())} classes, for measuring only"
    tested = "" if plan.test is None else f", {len(plan.test):,} to measure accuracy on"
    say(f"{len(plan.train):,} images ({known}){tested}")
    stem = ", with the small stem (3 x 3, no pooling)" if getattr(method.encoder, "small_stem", False) else ""
    crops = "".join(
        f", {group.number} crop{'s' * (group.number > 1)} of {group.size}" for group in run.multi_crop or ()
    )
    name = getattr(method.encoder, "name", "encoder")
    say(f"{name}{stem}: {parameters:,} parameters with the head, views of {plan.size} pixels{crops}")
    if caution := method.caution():
        say(caution)
    pieces = f" in {run.accumulate} pieces" if run.accumulate > 1 else ""
    epochs = f"{clock.epochs} epoch{'s' * (clock.epochs > 1)}"
    say(f"{epochs} of {clock.steps_per_epoch} steps, {plan.batch_size} images each{pieces}, on {device}")

    of_rank = plan.batch_size // session.fabric.world_size
    batch, loading = _try_loading(views_of(run, plan), of_rank)
    with session.fabric.autocast():
        needed = estimate(method, batch.to(device), of_rank, run.accumulate)
    each = max(needed.seconds_per_image, loading / plan.workers) if plan.workers else needed.seconds_per_image + loading
    epoch = each * of_rank * clock.steps_per_epoch
    say(
        f"estimate: {duration(epoch)} an epoch, {duration(epoch * clock.epochs)} in all, "
        f"{needed.memory / 2**20:,.0f} MiB of memory beside the program itself"
    )


def _try_loading(view_set: ViewSet, most: int) -> tuple[Batch, float]:
    """The views of a few images, fewer if they are large, and the seconds that each image took."""
    first = view_set[0, 0]  # loads what loading needs
    values = sum(stream.numel() for stream in first.streams.values())
    images = min(max(4, TRIED // values), 64, most)
    started = time.perf_counter()
    batch = collate([view_set[0, row] for row in range(images)])
    assert not isinstance(batch, UserError)
    return batch, (time.perf_counter() - started) / images


def farewell(session: Session, figures: Mapping[str, Any]) -> None:
    """What came of the run, and how to use it."""
    run, say, encoder = session.run, session.progress.message, session.learner.method.towers["image"]
    named = [(each.title, figures.get(each.key)) for each in evaluations_of(run.few_labels, run.few_label_draws)]
    measured = [f"{title} {accuracy:.1%}" for title, accuracy in named if accuracy is not None]
    spent = f"done in {duration(session.seconds)} of training"
    say(f"{spent}; accuracy: {', '.join(measured)}" if measured else spent)
    if isinstance(encoder, Encoder):
        say("\nfrom falseneg import Encoder")
        say(f'encoder = Encoder.load("{session.folder / ENCODER}").eval()')
        say(
            f"features = encoder(images)  # uint8 (B, 3, {session.plan.size}, {session.plan.size}) -> (B, {encoder.feature_dim})"
        )
