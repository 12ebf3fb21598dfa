"""The twelve sets of FNC's table 7 (those of SimCLR, section B.8), with their published splits and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from falseneg.data import Cifar10, Cifar100, Folder, Torchvision
from falseneg.data.folder import FileSet
from falseneg.data.image_set import ImageSet, align_classes
from falseneg.errors import UserError
from falseneg.evaluation.few_label import draw_rows
from falseneg.evaluation.label_fractions import draw_share
from falseneg.evaluation.metrics import MAP_11, PER_CLASS, TOP_1
from falseneg.evaluation.parts import Part
from falseneg.evaluation.set_files import AS_PUBLISHED, set_in
from falseneg.evaluation.voc import VOC_CLASSES, fetch_voc, voc_objects

_VALIDATION = 0.2
"""The share of the training images that is held out where no validation set is published."""
_PER_CLASS = 30
"""Training images of each class of Caltech-101."""


IMAGES = ("training images", "validation images", "test images")
"""What the parts of a set are called."""


class Parts(NamedTuple):
    """A set: what to learn from, what to choose settings on, and what to measure on."""

    train: Part
    validation: Part
    test: Part


@dataclass(frozen=True)
class TransferSet:
    """How a set lies on the disk, and what is measured on it.

    Attributes:
        metric: its own.
        files: what is looked for in the root, with "/" between folders.
        open: from the root and the seed to its parts.
        download: asks torchvision to fetch it into the root; None where torchvision cannot.
    """

    metric: str
    files: tuple[str, ...]
    open: Callable[[str, int], Parts]
    download: Callable[[str], Any] | None = None


def open_set(name: str, root: str, download: bool, seed: int) -> Parts:
    """The parts of a set.

    Args:
        name: one of `TRANSFER_SETS`.
        root: the folder that holds it.
        download: fetch it if it is not there.
        seed: of what is drawn, where no split is published.

    Raises:
        UserError: it is not there as it is published; what was looked for, and where, is said.
    """
    kind = TRANSFER_SETS[name]
    with set_in(root, name, kind.files, kind.download, download) as place:
        return _checked(kind.open(place, seed))


def _checked(parts: Parts) -> Parts:
    """Parts that can be measured, as far as can be told before all images are read.

    Raises:
        UserError: a part is empty, its first or last image cannot be read, or test images show classes that no other does.
    """
    for what, part in zip(IMAGES, parts, strict=True):
        if not len(part.targets):
            raise UserError(f"there are no {what}; {AS_PUBLISHED}")
        for row in (0, len(part.targets) - 1):
            part.images.image(row)
    if parts.test.targets.ndim == 1:
        learnt = torch.cat([parts.train.targets, parts.validation.targets])
        foreign = (~torch.isin(parts.test.targets, learnt) | (parts.test.targets < 0)).nonzero().flatten()
        if len(foreign):
            raise UserError(
                f"the training images show {len(learnt.unique())} classes, and {len(foreign)} of {len(parts.test.targets)} test "
                f"images are of others, the first of them {parts.test.images.describe(int(foreign[0]))}; {AS_PUBLISHED}"
            )
    return parts


def _whole(images: ImageSet) -> Part:
    if (labels := images.labels) is None:
        images.image(0)  # if that is what is missing, it is said
        raise UserError(f"the images have no labels; {AS_PUBLISHED}")
    if len(labels) != len(images):
        raise UserError(f"there are {len(images)} images and {len(labels)} labels of them; {AS_PUBLISHED}")
    return Part(images, labels)


def _held_out(train: Part, test: Part, seed: int) -> Parts:
    """A fifth of each class of the training images becomes the validation set, where none is published."""
    kept = draw_share(train.targets, 1 - _VALIDATION, seed)
    rest = _others(kept, len(train.targets))
    if not len(rest):
        raise UserError("there are too few training images to hold a fifth of them out; give at least 2 of some class")
    return Parts(train.rows(kept), train.rows(rest), test)


def _two_splits(name: str, train: str = "train") -> Callable[[str, int], Parts]:
    def opened(root: str, seed: int) -> Parts:
        return _held_out(_whole(Torchvision(name, root, train)), _whole(Torchvision(name, root, "test")), seed)

    return opened


def _three_splits(name: str) -> Callable[[str, int], Parts]:
    def opened(root: str, seed: int) -> Parts:
        return Parts(*(_whole(Torchvision(name, root, split)) for split in ("train", "val", "test")))

    return opened


def _cifar(kind: type[Cifar10 | Cifar100]) -> Callable[[str, int], Parts]:
    def opened(root: str, seed: int) -> Parts:
        return _held_out(_whole(kind(root)), _whole(kind(root, "test")), seed)

    return opened


def _birdsnap(root: str, seed: int) -> Parts:
    train, test = Folder(f"{root}/birdsnap/train"), Folder(f"{root}/birdsnap/test")
    if train.labels is None or test.labels is None:
        raise UserError(f"{root}/birdsnap/train and test have no sub-folders; give one for each species")
    return _held_out(_whole(train), _whole(align_classes(test, train)), seed)


def _sun397(root: str, seed: int) -> Parts:
    folder = Path(root) / "SUN397"
    # Lines such as "/a/abbey" and "/a/abbey/sun_aaa.jpg".
    names = [line.strip() for line in (folder / "ClassName.txt").read_text("utf-8").splitlines() if line.strip()]
    number = {name: index for index, name in enumerate(names)}
    parts = []
    for listing in ("Training_01.txt", "Testing_01.txt"):
        files = [line.strip() for line in (folder / listing).read_text("utf-8").splitlines() if line.strip()]
        classes = [file.rpartition("/")[0] for file in files]
        if unknown := [name for name in classes if name not in number]:
            raise UserError(
                f"{listing} names images of {unknown[0] or 'no class'}, which is not in ClassName.txt; {AS_PUBLISHED}"
            )
        labels = torch.tensor([number[name] for name in classes], dtype=torch.int64)
        parts.append(Part(FileSet(folder, [file.lstrip("/") for file in files]), labels))
    return _held_out(parts[0], parts[1], seed)


def _caltech101(root: str, seed: int) -> Parts:
    images = Folder(f"{root}/caltech101/101_ObjectCategories")
    if images.labels is None:
        raise UserError(
            f"{root}/caltech101/101_ObjectCategories has fewer than two sub-folders; give one for each class"
        )
    part = _whole(images)
    wanted = (torch.bincount(part.targets) - 1).clamp(min=1, max=_PER_CLASS)
    kept = draw_rows(part.targets, wanted, torch.Generator().manual_seed(seed))
    return _held_out(part.rows(kept), part.rows(_others(kept, len(part.targets))), seed)


def _others(rows: Tensor, number: int) -> Tensor:
    left = torch.ones(number, dtype=torch.bool)
    left[rows] = False
    return left.nonzero().flatten()


def _voc2007(root: str, seed: int) -> Parts:
    return Parts(*(_voc_part(root, split) for split in ("train", "val", "test")))


def _voc_part(root: str, split: str) -> Part:
    """Of each image and class: 1 it shows one that is not difficult, 0 difficult ones only, −1 none."""
    from torchvision.datasets import VOCDetection

    voc = VOCDetection(root, "2007", split)
    targets = torch.full((len(voc), len(VOC_CLASSES)), -1, dtype=torch.int8)
    for row, path in enumerate(voc.annotations):
        for name, difficult, _ in voc_objects(Path(path)):
            column = VOC_CLASSES.index(name)
            targets[row, column] = max(int(targets[row, column]), 0 if difficult else 1)
    return Part(FileSet(Path(), [str(path) for path in voc.images]), targets)


def _fetched(name: str) -> Callable[[str], Any]:
    return lambda root: Torchvision(name, root, "test", download=True)


def _fetch_voc(root: str) -> None:
    fetch_voc(root, (("2007", "trainval"), ("2007", "test")))


def _set(
    metric: str, opener: Callable[[str, int], Parts], files: str, download: str | Callable[[str], Any] | None = None
) -> TransferSet:
    """A set whose files are written as "folder: name name ..."; ``download`` may be torchvision's name of it."""
    folder, _, names = files.partition(": ")
    fetch = _fetched(download) if isinstance(download, str) else download
    return TransferSet(metric, tuple(f"{folder}/{name}" for name in names.split()), opener, fetch)


TRANSFER_SETS = {
    "Food101": _set(TOP_1, _two_splits("Food101"), "food-101: images meta/train.json meta/test.json", "Food101"),
    "CIFAR10": _set(
        TOP_1,
        _cifar(Cifar10),
        "cifar-10-batches-py: data_batch_1 data_batch_2 data_batch_3 data_batch_4 data_batch_5 test_batch batches.meta",
        "CIFAR10",
    ),
    "CIFAR100": _set(TOP_1, _cifar(Cifar100), "cifar-100-python: train test meta", "CIFAR100"),
    "Birdsnap": _set(TOP_1, _birdsnap, "birdsnap: train test"),
    "SUN397": _set(TOP_1, _sun397, "SUN397: ClassName.txt Training_01.txt Testing_01.txt", "SUN397"),
    "StanfordCars": _set(
        TOP_1,
        _two_splits("StanfordCars"),
        "stanford_cars: cars_train cars_test devkit/cars_meta.mat devkit/cars_train_annos.mat "
        "cars_test_annos_withlabels.mat",
    ),
    "FGVCAircraft": _set(
        PER_CLASS,
        _three_splits("FGVCAircraft"),
        "fgvc-aircraft-2013b/data: images variants.txt images_variant_train.txt images_variant_val.txt "
        "images_variant_test.txt",
        "FGVCAircraft",
    ),
    "VOC2007": _set(
        MAP_11,
        _voc2007,
        "VOCdevkit/VOC2007: JPEGImages Annotations ImageSets/Main/train.txt ImageSets/Main/val.txt "
        "ImageSets/Main/test.txt",
        _fetch_voc,
    ),
    "DTD": _set(
        TOP_1, _three_splits("DTD"), "dtd/dtd: images labels/train1.txt labels/val1.txt labels/test1.txt", "DTD"
    ),
    "OxfordIIITPet": _set(
        PER_CLASS,
        _two_splits("OxfordIIITPet", "trainval"),
        "oxford-iiit-pet: images annotations/trainval.txt annotations/test.txt",
        "OxfordIIITPet",
    ),
    "Caltech101": _set(PER_CLASS, _caltech101, "caltech101: 101_ObjectCategories", "Caltech101"),
    "Flowers102": _set(
        PER_CLASS, _three_splits("Flowers102"), "flowers-102: jpg imagelabels.mat setid.mat", "Flowers102"
    ),
}
"""By the names that torchvision has for them, in the order of the paper's table (Birdsnap and VOC2007 have others there)."""
