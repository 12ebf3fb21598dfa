"""What happens between the options and the first step: data, sizes, devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from falseneg.data import (
    ImageSet,
    ViewLoader,
    ViewSet,
    align_classes,
    as_image_set,
    caption_groups,
    inspect,
    split_holdout,
    view_loader,
)
from falseneg.data.inspection import without_advice
from falseneg.data.loader import Captions, EpochSampler
from falseneg.data.views import Crops
from falseneg.detectors import IdenticalCaptions
from falseneg.errors import UserError
from falseneg.facts import Facts
from falseneg.losses import Criterion
from falseneg.statistics.gather import apart, world_size
from falseneg.train.checkpoint import fingerprint, settings_of
from falseneg.train.defaults import (
    USUAL_EVALUATE_EVERY,
    Circumstances,
    available_cores,
    typical_side,
    usual_batch_size,
    usual_epochs,
    usual_image_size,
    usual_rate,
    usual_workers,
)
from falseneg.train.guards import outlast_signals
from falseneg.train.run import INCIDENTAL, Run

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LOOKED_AT = 20_000
"""Images that are opened before training, at most, to find unreadable and converted ones."""
TOLD_BY_THE_DATA = ("test", "holdout", "skip_unreadable")
"""Options of a run that decide which images there are to learn from, and nothing else about the weights."""
MEASURING = (
    *("accelerator", "evaluate", "evaluate_every", "evaluate_linear", "few_labels", "few_label_draws", "prompts"),
    "check_duplicates",
)
"""Options of a run on which no weight depends, but what is measured does, or where it is computed."""
LARGE_SHARE = 0.25
"""A batch of more than this share of the data is warned of."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A run with nothing left open.

    Attributes:
        train: the images to learn from.
        test: labelled images to measure on while training, or None.
        size: side of the views, in pixels.
        epochs: passes over the data.
        batch_size: images in a step, over all processes.
        peak_rate: the learning rate after warm-up.
        workers: loading processes.
        evaluate_every: duration after which accuracy is measured; None where it cannot be.
        test_pairs: captioned images to measure on, or None.
        unreadable: a sentence for each image that was left out.
    """

    train: ImageSet
    test: ImageSet | None
    size: int
    epochs: int
    batch_size: int
    peak_rate: float
    workers: int
    evaluate_every: str | None
    unreadable: Sequence[str] = ()
    test_pairs: ImageSet | None = None


def make_plan(run: Run, gpu: bool, resumed: bool, say: Callable[[str], None]) -> Plan:
    """Open the data, look at it, and settle what the run left open.

    Args:
        run: what was asked for.
        gpu: whether training runs on an accelerator.
        resumed: the run is continued: its data were reported before.
        say: takes the findings, a sentence each.

    Raises:
        UserError: the data cannot be used so.
    """
    images = as_image_set(run.data)
    weights = getattr(run.method.encoder, "from_weights", False)
    facts = Circumstances(len(images), typical_side(images), gpu, available_cores(), weights)
    workers = usual_workers(facts) if run.workers is None else run.workers
    if images.note:
        say(images.note)
    wished = run.augmentation.size or getattr(run.method.encoder, "image_size", None)
    size = wished or usual_image_size(facts)
    for crops in run.multi_crop or ():
        _check_crops(crops, size, facts.side)
        _try_size(run.method.encoder, crops.size)
    if run.method.texts and not images.captioned:
        raise UserError(
            f"{type(run.method).__name__} learns from images and their captions, and these images have none; give a "
            "captioned data set, such as Shards with KEY.txt, or another method"
        )
    images, unreadable = _inspected(run, images, workers, resumed, say)
    train, test, test_pairs = _split(run, images, resumed, say)
    if run.evaluate == "later":
        test = test_pairs = None
    batch_size = run.batch_size or usual_batch_size(facts)
    _check_batch(run, batch_size, len(train), say)
    epochs = run.epochs or usual_epochs(facts)
    rate = run.optimiser.learning_rate or usual_rate(run.optimiser, batch_size, weights)
    measured = test is not None or test_pairs is not None
    evaluate_every = (run.evaluate_every or USUAL_EVALUATE_EVERY) if measured else None
    return Plan(train, test, size, epochs, batch_size, rate, workers, evaluate_every, unreadable, test_pairs)


def _inspected(
    run: Run, images: ImageSet, workers: int, resumed: bool, say: Callable[[str], None]
) -> tuple[ImageSet, list[str]]:
    """The readable images, and a sentence for each other; what was found is said once."""
    # Where unreadable images are left out, the same ones must be left out again by a resumed run.
    limit = (None if run.skip_unreadable else 0) if resumed else None if run.skip_unreadable else LOOKED_AT
    found = inspect(
        images,
        limit=limit,
        check_duplicates=run.check_duplicates and not resumed,
        check_captions=bool(run.method.texts) and (not resumed or run.skip_unreadable),
        workers=workers,
    )
    if found.unreadable and not run.skip_unreadable:
        more = f" (and {len(found.unreadable) - 1} more)" if len(found.unreadable) > 1 else ""
        how = "--skip-unreadable true leaves such images out and counts them"
        raise UserError(f"{without_advice(found.unreadable[0])}{more}; {how}")
    for sentence in [] if resumed else found.sentences():
        say(sentence)
    return found.readable(images), found.unreadable


def _split(
    run: Run, images: ImageSet, resumed: bool, say: Callable[[str], None]
) -> tuple[ImageSet, ImageSet | None, ImageSet | None]:
    """What to learn from; what to measure accuracy on; and, for two towers, captioned images to measure retrieval on."""
    test = as_image_set(run.test) if run.test is not None else images.test_set()
    train = images
    labelled = images.labels is not None and bool((images.labels >= 0).any())
    if test is None and run.holdout and (labelled or run.method.texts):
        train, test = split_holdout(images, run.holdout, run.seed)
        if not resumed:
            kind = "labelled images" if labelled else "images"
            say(f"{len(test):,} {kind} are set aside to measure accuracy on (--holdout {run.holdout:g})")
    pairs = test if run.method.texts and test is not None and test.captioned else None
    if test is not None:
        test = _of_the_same_classes(test, train)
        if test.labels is None or train.labels is None or not bool((test.labels >= 0).any()):
            test = None
    if run.evaluate_every is not None and test is None and pairs is None:
        raise UserError("evaluate_every needs labelled images to train and to test on; give labels, or leave it out")
    return train, test, pairs


def _of_the_same_classes(test: ImageSet, train: ImageSet) -> ImageSet:
    """The test set with its classes numbered as the training set does.

    Raises:
        UserError: it shows classes by name that the training set does not have, which would be left out of every figure.
    """
    aligned = align_classes(test, train)
    if train.labels is not None and test.labels is not None and aligned.labels is not None and test.class_names:
        foreign = ((test.labels >= 0) & (aligned.labels < 0)).nonzero().flatten()
        if len(foreign):
            name = test.class_names[int(test.labels[foreign[0]])]
            raise UserError(
                f"{len(foreign):,} of the {len(test):,} images to measure on are of classes that the images to learn from do not "
                f"have, such as {name}; give data of the same classes"
            )
    return aligned


def _check_crops(crops: Crops, size: int, side: int) -> None:
    """Crops are there to be small: details of what the main views show."""
    for limit, what in ((size, "the main views have"), (side, "the images have (the median of their shorter side)")):
        if crops.size > limit:
            raise UserError(
                f"multi_crop: crops of {crops.size} pixels are larger than the {limit} that {what}; give at most "
                f"{min(size, side)}"
            )


def _try_size(encoder: nn.Module, size: int) -> None:
    """Let the encoder see an image of a crop's size: many see one size only, or none that is so small."""
    training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad():
            encoder(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"multi_crop: the encoder cannot see crops of {size} pixels ({reason}); give another size or encoder, or a "
            "vision transformer --method.encoder.arguments '{dynamic_img_size: true}'"
        ) from error
    finally:
        encoder.train(training)


def _check_batch(run: Run, batch_size: int, images: int, say: Callable[[str], None]) -> None:
    if images < 2:
        number = "one image" if images else "no image"
        raise UserError(f"there is {number} to learn from, which needs others to compare with; give at least 2 images")
    if batch_size > images:
        raise UserError(
            f"batch_size is {batch_size}, but there are {images} images to learn from; give at most {images}"
        )
    EpochSampler(images, batch_size, keep_last=run.keep_last)  # refuses a last batch without negatives
    if batch_size > LARGE_SHARE * images:
        say(
            f"warning: a batch of {batch_size} is {batch_size / images:.0%} of the {images:,} images: few steps an epoch, and "
            "every image is compared with a large part of its own class; a smaller batch size may do better"
        )


def prepare_criterion(run: Run, plan: Plan) -> Criterion:
    """Detector, strategy, objective and temperature, told about the data.

    Raises:
        UserError: one of them cannot work with these data.
    """
    negatives = _negatives(run, plan)
    names = run.method.contrast_names
    asked = plan.train.captioned and any(isinstance(part, IdenticalCaptions) for part in run.detector.modules())
    groups = caption_groups(plan.train) if asked else None
    facts = Facts(
        len(plan.train),
        negatives,
        plan.train.labels,
        run.expected_classes,
        names,
        run.seed,
        groups,
        tuple(run.method.towers),
    )
    criterion = Criterion(run.detector, run.strategy, run.objective, run.temperature)
    criterion.prepare(facts)
    return criterion


def _negatives(run: Run, plan: Plan) -> int:
    """Of each anchor, in the smallest step.

    Raises:
        UserError: a process would compare a single image with nothing.
    """
    images, number = smallest_batch(run, plan), world_size()
    if run.gather_across_devices or images < number:  # which the sampler refuses
        return run.method.negatives(images)
    with apart():
        negatives = run.method.negatives(images // number)
    if not negatives:
        last = images < plan.batch_size
        what = f"the last batch of an epoch has {images}" if last else f"a batch has {images}"
        how = "leave keep_last out" if last else f"give a batch_size of at least {2 * number}"
        raise UserError(
            f"{what} images, which leaves one of {number} processes with a single one and no negatives of its own; {how}, or leave "
            "gather_across_devices true"
        )
    return negatives


def smallest_batch(run: Run, plan: Plan) -> int:
    """Images in the smallest step, over all processes: the last of an epoch where it is kept."""
    return (run.keep_last and len(plan.train) % plan.batch_size) or plan.batch_size


def views_of(run: Run, plan: Plan) -> ViewSet:
    """The random views of the training images."""
    main = run.augmentation.for_size(plan.size)
    further = (run.support_augmentation or run.augmentation).for_size(plan.size)
    made = {name: [main if name == "image" else further] * number for name, number in run.method.streams.items()}
    if run.multi_crop:
        made["support"] = [maker for crops in run.multi_crop for maker in [further.for_crops(crops)] * crops.number]
    captions = Captions(run.method.tokenize, run.method.texts) if run.method.tokenize is not None else None
    return ViewSet(plan.train, made, run.seed, captions)


def loader_of(run: Run, plan: Plan, fabric: Fabric) -> tuple[ViewLoader, EpochSampler]:
    """The batches of this process, and the sampler that chooses the epoch.

    Raises:
        UserError: the batches are too small for the processes, or for the pieces of the gradient cache.
    """
    rank, world = fabric.global_rank, fabric.world_size
    sampler = EpochSampler(len(plan.train), plan.batch_size, run.seed, rank, world, run.keep_last)
    seen = smallest_batch(run, plan) // world
    if run.accumulate > seen:
        raise UserError(
            f"accumulate is {run.accumulate}, but a process sees {seen} images in a step; give at most that many pieces"
        )
    loader = view_loader(views_of(run, plan), sampler, plan.workers, fabric.device)
    loader.worker_init_fn = outlast_signals
    return loader, sampler


def settings(run: Run, plan: Plan) -> dict[str, str]:
    """Everything that the weights at the end depend on: a checkpoint of other settings is refused.

    That is every field of the run but those that are `INCIDENTAL`, and those that the plan tells more exactly; and how many
    processes there are, where the negatives of an anchor depend on it.
    """
    settled: dict[str, Any] = {"epochs": plan.epochs, "batch_size": plan.batch_size}
    settled |= {"size": plan.size, "images": len(plan.train), "data": fingerprint(plan.train)}
    described = {name: str(value) for name, value in settled.items()}
    told_otherwise = {
        *settled,
        *TOLD_BY_THE_DATA,
        *INCIDENTAL,
        *MEASURING,
        "init_from",
        "method",
        "gather_across_devices",
    }
    for field in dataclasses.fields(run):
        name = field.name
        if name not in told_otherwise:
            described |= settings_of(getattr(run, name), name)
    described |= settings_of(run.method, "method", deep=False)
    for name, tower in run.method.towers.items():
        described |= settings_of(tower, "encoder" if name == "image" else name, deep=False)
    if not run.gather_across_devices:
        described |= {"gather_across_devices": "False", "processes": str(world_size())}
    return described


def labels_on(device: torch.device, images: ImageSet) -> Tensor | None:
    """The labels, where detection is measured."""
    return None if images.labels is None else images.labels.to(device)
