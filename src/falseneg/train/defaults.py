"""Settings that suit the data: what a setting becomes that was left open.

n images, typical side s = median of the shorter side, in pixels.

=============== ======================================================================================================
setting         becomes
=============== ======================================================================================================
image size      s up to 64: the largest multiple of 4 up to s, at least 8 (up to 32 the encoder takes its small stem);
                larger: the largest multiple of 32 up to s, but at most 224 on a GPU and 96 on a CPU;
                for a model of open_clip its own
backbone        resnet18; from random weights on a CPU with half its channels, which is a quarter of the work
batch size      the largest power of two up to n / 8, but at least 16 and at most 256 (512 on a GPU where s is up to 64);
                never more than n / 2
epochs          as many as show 200,000 images on a CPU, from 20 to 400; 10,000,000 on a GPU, from 100 to 1,000; from
                given weights a tenth of that
learning rate   what the optimiser takes for that batch size (`falseneg.train.optimisers`); from given weights a tenth of it
loader workers  0 where s is up to 16; else a process for each core but one, at most 8
evaluate every  10% of the training, where there are labels and a test set
blur            of no view where the image size is up to 64: it would wipe out what there is to see; else of half
=============== ======================================================================================================

These are starting points for small data from common practice, not tuned on anybody's test images, and they are written
down with the run: a resolved configuration depends on nothing that is not in it.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from falseneg.errors import UserError
from falseneg.models.encoder import SMALL_IMAGE
from falseneg.models.text import open_clip

if TYPE_CHECKING:
    from falseneg.data import ImageSet
    from falseneg.train.optimisers import Optimiser

LOOKS = 64
"""How many images are opened to see how large they are."""

USUAL_EVALUATE_EVERY = "10%"

ENCODER = "method.init_args.encoder"

_SIDES: WeakKeyDictionary[ImageSet, int] = WeakKeyDictionary()  # the command line asks, and then the run


@dataclass(frozen=True)
class Circumstances:
    """What the defaults depend on.

    Attributes:
        images: in the data set.
        side: median of the shorter side of the images, in pixels.
        gpu: whether training runs on an accelerator.
        cores: processor cores for this run.
        weights: the encoder starts from given weights, which large steps and many epochs spoil.
    """

    images: int
    side: int
    gpu: bool
    cores: int
    weights: bool = False


def typical_side(images: ImageSet) -> int:
    """The median of the shorter side, in pixels, over at most `LOOKS` images spread evenly over the data set.

    Raises:
        UserError: the data set is empty, or none of these images can be read.
    """
    if images in _SIDES:
        return _SIDES[images]
    sides, problem = [], UserError("the data set holds no images; check the path it was given")
    for row in range(0, len(images), max(1, len(images) // LOOKS)):
        try:
            sides.append(min(images.image(row).shape[-2:]))
        except UserError as error:  # one bad image is for the inspection to report
            problem = error
    if not sides:
        raise problem
    _SIDES[images] = sorted(sides)[len(sides) // 2]
    return _SIDES[images]


def complete(configuration: Mapping[str, Any], circumstances: Circumstances) -> dict[str, Any]:
    """The configuration with every open setting filled in, except the learning rate, which the optimiser knows.

    Args:
        configuration: of a `Run`, as in a YAML file; settings left open are None. Not changed.
        circumstances: what the choice depends on.
    """
    result = copy.deepcopy(dict(configuration))
    size = option(result, f"{ENCODER}.image_size") or option(result, "augmentation.size")
    size = size or _size_of_model(result) or usual_image_size(circumstances)
    _fill(result, f"{ENCODER}.image_size", size)
    plain = option(result, f"{ENCODER}.name") == "resnet18" and option(result, f"{ENCODER}.weights") is None
    if plain and not circumstances.gpu:
        _fill(result, f"{ENCODER}.arguments", {"channels": [32, 64, 128, 256]})
    for augmentation in ("augmentation", "support_augmentation"):
        _fill(result, f"{augmentation}.size", size)
        _fill(result, f"{augmentation}.blur", 0.0 if size <= SMALL_IMAGE else 0.5)
    _fill(result, "batch_size", usual_batch_size(circumstances))
    _fill(result, "epochs", usual_epochs(circumstances))
    _fill(result, "workers", usual_workers(circumstances))
    return result


def _size_of_model(configuration: Mapping[str, Any]) -> int | None:
    """Side of the images that a model of open_clip wants, in pixels; None for other methods."""
    if str(option(configuration, "method.class_path")).rsplit(".", 1)[-1] != "OpenCLIP":
        return None
    method = option(configuration, "method.init_args") or {}
    if (asked := method.get("image_size")) is not None:
        return int(asked)
    known = open_clip().get_model_config(method.get("model", "")) or {}
    side = known.get("vision_cfg", {}).get("image_size")
    return max(side) if isinstance(side, list | tuple) else side


def usual_image_size(circumstances: Circumstances) -> int:
    """Side of the views and of what the encoder sees, in pixels."""
    if circumstances.side <= SMALL_IMAGE:
        return max(8, circumstances.side // 4 * 4)
    return min(circumstances.side // 32 * 32, 224 if circumstances.gpu else 96)


def usual_batch_size(circumstances: Circumstances) -> int:
    """Images in an optimiser step."""
    most = 512 if circumstances.gpu and circumstances.side <= SMALL_IMAGE else 256
    power = 2 ** max(0, (circumstances.images // 8).bit_length() - 1)
    return max(2, min(max(16, power), most, circumstances.images // 2))


def usual_epochs(circumstances: Circumstances) -> int:
    """Passes over the data set."""
    shown, fewest, most = (10_000_000, 100, 1000) if circumstances.gpu else (200_000, 20, 400)
    epochs = max(fewest, min(round(shown / circumstances.images), most))
    return max(1, round(epochs / 10)) if circumstances.weights else epochs


def usual_rate(optimiser: Optimiser, batch_size: int, weights: bool) -> float:
    """The peak learning rate, where the optimiser leaves it open."""
    return optimiser.usual_rate(batch_size) / (10 if weights else 1)


def usual_workers(circumstances: Circumstances) -> int:
    """Processes that load images."""
    return 0 if circumstances.side <= 16 else max(0, min(circumstances.cores - 1, 8))


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def option(configuration: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or None where there is no such path."""
    value: Any = configuration
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _fill(configuration: dict[str, Any], path: str, value: Any) -> None:
    """Set what is there and open (None); a path that a user's own class does not have is left alone."""
    parent, _, key = path.rpartition(".")
    holder = option(configuration, parent) if parent else configuration
    if isinstance(holder, dict) and key in holder and holder[key] is None:
        holder[key] = value
