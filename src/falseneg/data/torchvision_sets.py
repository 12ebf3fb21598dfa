"""The data sets that torchvision knows: found in a folder, or downloaded if that is asked for."""

from __future__ import annotations

import inspect
import re
from typing import Any, Literal

from falseneg.data.image_set import ImageSet, PixelSet
from falseneg.data.messages import check_choice, unknown
from falseneg.data.wrapped import DatasetBacked
from falseneg.errors import UserError

CLASSIFICATION_SETS = tuple(
    """
    CIFAR10 CIFAR100 Caltech101 Caltech256 Country211 DTD EMNIST EuroSAT FER2013 FGVCAircraft FakeData FashionMNIST
    Flowers102 Food101 GTSRB INaturalist ImageNet Imagenette KMNIST LFWPeople MNIST Omniglot OxfordIIITPet PCAM
    Places365 QMNIST RenderedSST2 SEMEION STL10 SUN397 SVHN StanfordCars USPS
    """.split()  # noqa: SIM905
)
_SPLITS = ("train", "test")
_NOT_ARGUMENTS = ("root", "train", "download", "loader", "transform", "target_transform", "transforms", "is_valid_file")
_VALID = re.compile(r"Unknown value '(.*)' for argument split\. Valid values are \{(.*)\}")


class RefusedArguments(UserError):
    """The set has no such split, or refuses another argument."""


class _Cifar(PixelSet):
    """Shared by CIFAR-10 and CIFAR-100, which differ in their labels only."""

    def __init__(self, name: str, root: str, split: str, download: bool) -> None:
        check_choice("the split", split, _SPLITS)
        dataset = _build(name, root, {"train": split == "train"}, download)
        super().__init__(dataset.data, dataset.targets, dataset.classes)
        self.root, self.split, self.download = root, split, download

    def describe(self, row: int) -> str:
        return f"{self.split} image {row}"

    def test_set(self) -> ImageSet | None:
        build: Any = type(self)
        return build(self.root, "test", self.download) if self.split == "train" else None


class Cifar10(_Cifar):
    """CIFAR-10: 50,000 training and 10,000 test images of 32 × 32 pixels in ten classes (Krizhevsky, 2009).

    Args:
        root: the folder that holds `cifar-10-batches-py`, or will hold it.
        split: "train" or "test".
        download: download the set (170 MB) from its home page if it is not there; otherwise nothing is downloaded.
    """

    def __init__(self, root: str = "data", split: Literal["train", "test"] = "train", download: bool = False) -> None:
        super().__init__("CIFAR10", root, split, download)


class Cifar100(_Cifar):
    """CIFAR-100: 50,000 training and 10,000 test images of 32 × 32 pixels in 100 classes (Krizhevsky, 2009).

    Args:
        root: the folder that holds `cifar-100-python`, or will hold it.
        split: "train" or "test".
        download: download the set (169 MB) from its home page if it is not there; otherwise nothing is downloaded.
    """

    def __init__(self, root: str = "data", split: Literal["train", "test"] = "train", download: bool = False) -> None:
        super().__init__("CIFAR100", root, split, download)


class Torchvision(DatasetBacked):
    """Any other classification set of torchvision.

    Args:
        name: its name there, such as "STL10", "Flowers102", "Food101", "SVHN" or "ImageNet".
        root: the folder that holds it, or will hold it.
        split: "train", "test", or another one that the set has. Sets without splits ignore it.
        download: download the set if it is not there; otherwise nothing is downloaded.
        arguments: further arguments of the set's own constructor, such as {"split": "letters"} for EMNIST.
    """

    def __init__(
        self,
        name: str,
        root: str = "data",
        split: str = "train",
        download: bool = False,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        check_choice("the torchvision set", name, CLASSIFICATION_SETS)
        self.root, self.split, self.download, self.arguments = root, split, download, dict(arguments or {})
        parameters = _parameters(name)
        for given in self.arguments:
            check_choice(f"the argument of {name}", given, [each for each in parameters if each not in _NOT_ARGUMENTS])
        super().__init__(_build(name, root, _split_argument(name, split, parameters) | self.arguments, download), name)

    def describe(self, row: int) -> str:
        return f"{self.split} image {row} of {self.name}"

    def test_set(self) -> ImageSet | None:
        """The split "test", or for a set that has none, "val"."""
        if not self.split.startswith("train"):  # "trainval", "train-standard", ...
            return None
        for split in ("test", "val"):
            try:
                if _split_argument(self.name, split, _parameters(self.name)):
                    return Torchvision(self.name, self.root, split, self.download, self.arguments)
            except RefusedArguments:
                continue
        return None


def _parameters(name: str) -> list[str]:
    """What the constructor of the set takes; one that passes the rest on to its parent takes what that takes."""
    import torchvision.datasets

    names: list[str] = []
    for parent in inspect.getmro(getattr(torchvision.datasets, name)):
        parameters = inspect.signature(parent).parameters.values()
        names += [each.name for each in parameters if each.kind is not each.VAR_KEYWORD and each.name not in names]
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            break
    return names


def _split_argument(name: str, split: str, parameters: list[str]) -> dict[str, Any]:
    """How that set is told its split."""
    if "train" in parameters:  # first, for EMNIST calls something else its split
        if split not in _SPLITS:
            raise RefusedArguments(str(unknown(f"the split of {name}", split, _SPLITS)))
        return {"train": split == "train"}
    return {"split": split} if "split" in parameters else {}


def _build(name: str, root: str, arguments: dict[str, Any], download: bool) -> Any:
    """Construct torchvision's data set, with one sentence for whatever goes wrong.

    Raises:
        UserError: the set is not there, cannot be downloaded, or has no such split.
    """
    import torchvision.datasets

    parameters = _parameters(name)
    can_download = "download" in parameters
    if download and not can_download:
        raise UserError(f"torchvision cannot download {name}: download it yourself into {root} and leave download out")
    arguments = (
        arguments | ({"root": root} if "root" in parameters else {}) | ({"download": download} if can_download else {})
    )
    try:
        return getattr(torchvision.datasets, name)(**arguments)
    except ImportError as error:
        raise UserError(f"{name} needs a package that is missing ({error}): install it") from error
    except ValueError as error:
        if match := _VALID.search(str(error)):
            raise RefusedArguments(
                str(unknown(f"the split of {name}", match[1], match[2].replace("'", "").split(", ")))
            ) from error
        raise RefusedArguments(f"{name} refuses its arguments ({_sentence(error)}): change them") from error
    except (RuntimeError, OSError, EOFError) as error:
        if download:
            raise UserError(
                f"{name} cannot be downloaded into {root} ({_sentence(error)}): check the network and the disk, or "
                f"download it yourself"
            ) from error
        if not can_download:
            raise UserError(
                f"{name} is not in {root} ({_sentence(error)}): download it yourself, for torchvision cannot"
            ) from error
        raise UserError(
            f"{name} is not in {root}, or is incomplete: name its folder with --data.root, or download it with "
            f"--data.download true"
        ) from error


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
