"""What a person is told of a run: before its first step what it will take, and at its end what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from falseneg.evaluation import evaluations_of
from falseneg.models import Encoder
from falseneg.train.forecast import forecast
from falseneg.train.names import ENCODER, START
from falseneg.train.progress import duration
from falseneg.train.session import Session


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
    say(_settings(session))
    if caution := method.caution():
        say(caution)
    pieces = f" in {run.accumulate} pieces" if run.accumulate > 1 else ""
    epochs = f"{clock.epochs} epoch{'s' * (clock.epochs > 1)}"
    say(f"{epochs} of {clock.steps_per_epoch} steps, {plan.batch_size} images each{pieces}, on {device}")

    left_out = len(plan.train) % plan.batch_size if len(plan.train) > plan.batch_size else 0
    if left_out and not run.keep_last:
        say(
            f"each epoch leaves out {left_out} of the images, different ones each time, because they do not fill a batch (--keep-last true "
            "trains on them)"
        )

    if run.fsdp:
        say("no estimate of time and memory with fsdp")
        return
    with session.fabric.autocast():
        epoch, memory = forecast(run, plan, device, session.fabric.world_size)
    say(
        f"estimate: {duration(epoch)} an epoch, {duration(epoch * clock.epochs)} in all, "
        f"{memory / 2**20:,.0f} MiB of memory beside the program itself"
    )


def _settings(session: Session) -> str:
    """What is taken where nobody says, and matters: views, temperature and optimiser."""
    run, rate = session.run, session.plan.peak_rate
    augmentation, optimiser = run.augmentation, run.optimiser
    least, most = augmentation.crop_scale
    views = f"{least:.0%} to {most:.0%} of an image, {augmentation.flip:.0%} flipped, {augmentation.jitter:.0%} in other colours"
    tau = run.temperature.of_all()
    temperature = type(run.temperature).__name__ + ("" if tau is None else f" {tau:.3g}")
    rates = f"{type(optimiser).__name__}, learning rate up to {rate:.3g}, weight decay {optimiser.weight_decay:g}"
    return f"views show {views}; {temperature}; {rates}"


def farewell(session: Session, figures: Mapping[str, Any]) -> None:
    """What came of the run, whether training was worth it, and how to use the encoder."""
    run, say, encoder = session.run, session.progress.message, session.learner.method.towers["image"]
    if run.evaluate == "later":
        say(f"done in {duration(session.seconds)} of training; falseneg evaluate {session.folder} measures the encoder")
        return
    evaluations = evaluations_of(run.few_labels, run.few_label_draws)
    measured, level = [], []
    for each in evaluations:
        after, before = figures.get(each.key), figures.get(f"{START}{each.key}")
        if after is not None:
            measured.append(
                f"{each.title} {after:.1%}" + ("" if before is None else f" (before training {before:.1%})")
            )
        if after is not None and before is not None and not clearly_above(after, before, figures["test_images"]):
            level.append(each.title)
    spent = f"done in {duration(session.seconds)} of training"
    say(f"{spent}; accuracy: {', '.join(measured)}" if measured else spent)
    if level:
        say(
            f"warning: by {' and '.join(level)} training has not clearly beaten the encoder that it started from; train "
            "longer, on more images, or start from pretrained weights (--method.encoder.weights)"
        )
    fewest = _rarest(session)
    if fewest is not None and fewest < run.few_labels:
        say(
            f"no few-label accuracy: a class has {fewest} labelled images to learn from; lower --few-labels (now {run.few_labels})"
        )
    if isinstance(encoder, Encoder):
        side = session.plan.size
        say("\nfrom falseneg import Encoder")
        say("from falseneg.data import evaluation_view")
        say(f'encoder = Encoder.load("{session.folder / ENCODER}").eval()')
        dimensions = encoder.feature_dim
        say(f"features = encoder(evaluation_view(image, {side})[None])  # uint8 (3, H, W) -> (1, {dimensions})")


def clearly_above(after: float, before: float, images: int) -> bool:
    """Whether an accuracy is above another by more than two standard errors of their difference.

    Args:
        after: a share in [0, 1].
        before: likewise, on the same images.
        images: how many these are; as if both were drawn again, which is on the safe side.
    """
    variance = (after * (1 - after) + before * (1 - before)) / max(images, 1)
    return after - before > 2 * variance**0.5


def _rarest(session: Session) -> int | None:
    """Labelled training images of the rarest class; None where nothing is measured."""
    labels = session.labels
    if session.plan.test is None or labels is None:
        return None
    return int(labels[labels >= 0].unique(return_counts=True)[1].min())
