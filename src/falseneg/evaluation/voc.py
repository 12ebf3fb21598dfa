"""The trees of the PASCAL VOC challenges of 2007 and 2012: which objects an image shows, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from falseneg.data.folder import FileSet
from falseneg.data.image_set import ImageSet
from falseneg.errors import UserError
from falseneg.evaluation.set_files import AS_PUBLISHED, set_in

VOC_CLASSES = tuple(
    """
    aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep sofa
    train tvmonitor
    """.split()  # noqa: SIM905
)
_LEARNT, _MEASURED = (("2007", "trainval"), ("2012", "trainval")), (("2007", "test"),)
_FILES = tuple(
    f"VOCdevkit/VOC{year}/{part}"
    for year, splits in (("2007", ("trainval", "test")), ("2012", ("trainval",)))
    for part in ("JPEGImages", "Annotations", *(f"ImageSets/Main/{split}.txt" for split in splits))
)


class VocObject(NamedTuple):
    """An object in an image.

    Attributes:
        name: its class.
        difficult: whether it counts neither when it is found nor when it is not.
        box: (x, y, x, y) of its upper left and lower right corner in pixels from the image's corner: the tree numbers pixels
            from 1 and names the last one inside, so that a whole image of W × H is (0, 0, W, H) here.
    """

    name: str
    difficult: bool
    box: tuple[float, ...]


def voc_objects(path: Path) -> list[VocObject]:
    """The objects of an annotation file, in its order.

    Raises:
        UserError: an object is of none of the twenty classes, or its box is empty.
    """
    from xml.etree import ElementTree

    from torchvision.datasets import VOCDetection

    described = VOCDetection.parse_voc_xml(ElementTree.fromstring(path.read_bytes()))["annotation"]
    found = []
    for each in described["object"]:
        left, top, right, bottom = (float(each["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax"))
        if each["name"] not in VOC_CLASSES:
            raise UserError(f"{path} shows a {each['name']}, which is none of the twenty classes of VOC; correct it")
        if not (right > left - 1 and bottom > top - 1):
            raise UserError(
                f"{path} holds an object whose box is empty ({left}, {top} to {right}, {bottom}); correct it"
            )
        found.append(VocObject(each["name"], each.get("difficult", "0") == "1", (left - 1, top - 1, right, bottom)))
    return found


@dataclass(frozen=True, eq=False)
class Scenes:
    """Images and the objects in them, k in each.

    Attributes:
        images: n of them.
        boxes: for each image (k, 4) float32, see `VocObject`.
        classes: for each image (k,) int64, 1 to 20; 0 stays free for the background.
        difficult: for each image (k,) bool.
    """

    images: ImageSet
    boxes: Sequence[Tensor]
    classes: Sequence[Tensor]
    difficult: Sequence[Tensor]


def open_voc(root: str, download: bool) -> tuple[Scenes, Scenes]:
    """The trainval images of 2007 and 2012 to learn from, and the test images of 2007 to measure on.

    Args:
        root: the folder that holds VOCdevkit/VOC2007 and VOCdevkit/VOC2012.
        download: let torchvision fetch both if they are not there (2.8 GB).

    Raises:
        UserError: they are not there as they are published.
    """
    with set_in(root, "VOC 2007 and 2012", _FILES, _fetch, download) as place:
        return _scenes(place, _LEARNT), _scenes(place, _MEASURED)


def _scenes(root: str, splits: Sequence[tuple[str, str]]) -> Scenes:
    from torchvision.datasets import VOCDetection

    sets = [VOCDetection(root, year, split) for year, split in splits]
    pictures = [path for each in sets for path in each.images]
    if absent := [path for path in pictures if not Path(path).is_file()]:
        raise UserError(f"there is no {absent[0]}, which the lists of VOC name; {AS_PUBLISHED}")
    if not pictures:
        raise UserError(
            f"the lists {' and '.join(f'of VOC{year} for {split}' for year, split in splits)} are empty; {AS_PUBLISHED}"
        )
    listed = [voc_objects(Path(path)) for each in sets for path in each.annotations]
    return Scenes(
        FileSet(Path(), pictures),
        [torch.tensor([each.box for each in objects]).reshape(-1, 4) for objects in listed],
        [torch.tensor([VOC_CLASSES.index(each.name) + 1 for each in objects]).long() for objects in listed],
        [torch.tensor([each.difficult for each in objects]).bool() for objects in listed],
    )


def _fetch(root: str) -> None:
    fetch_voc(root, (*_LEARNT, *_MEASURED))


def fetch_voc(root: str, splits: Sequence[tuple[str, str]]) -> None:
    """Let torchvision download these pairs of a year and a split."""
    from torchvision.datasets import VOCDetection

    for year, split in splits:
        VOCDetection(root, year, split, download=True)
