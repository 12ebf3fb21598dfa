"""Data sets of Hugging Face's `datasets` library: of its Hub, saved on disk, or a folder that it knows how to read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from falseneg.data.captions import LEAVE_OUT, as_captions
from falseneg.data.image_set import EncodedSet, ImageSet, encode_labels
from falseneg.data.messages import check_choice, unknown
from falseneg.data.storage import expanded
from falseneg.errors import UserError

_TRAIN, _TESTS = "train", ("test", "validation", "valid", "val")
_USUAL_LABEL, _USUAL_CAPTION = "label", "caption"
_TEXTS = ("string", "large_string", "binary", "large_binary")
_SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves


class HuggingFace(EncodedSet):
    """Images of a data set that Hugging Face's `datasets` can load; the library is an extra: falseneg[hugging-face].

    Rows are read from its memory-mapped files; images are decoded here, as everywhere.

    Args:
        path: a folder that `save_to_disk` wrote, a folder of Parquet or image files, or a name on the Hub, such as
            "uoft-cs/cifar10".
        split: such as "train"; None for "train" if there is one, otherwise for the only one.
        image: the column of the images; None for the only one there is.
        label: the column of the labels, whole numbers from 0 or names; null for no labels. Where no column has the default
            name, the only column of classes is taken, and without one the images are unlabelled.
        caption: the column of the captions, texts or lists of texts; null for none. Where no column has the default name,
            the images are without captions.
        configuration: the configuration of the set, for sets of the Hub that have several.
        download: download a set of the Hub if it is not in the library's cache; otherwise nothing is downloaded.

    Raises:
        UserError: the library is missing, the set cannot be loaded, or it has no such split or columns.
    """

    def __init__(
        self,
        path: str,
        split: str | None = None,
        image: str | None = None,
        label: str | None = _USUAL_LABEL,
        caption: str | None = _USUAL_CAPTION,
        configuration: str | None = None,
        download: bool = False,
    ) -> None:
        self.path = path
        self._arguments = {"image": image, "label": label, "caption": caption, "configuration": configuration}
        self._splits = _loaded(path, configuration, download)
        self.split = _chosen_split(path, split, list(self._splits))
        dataset = self._splits[self.split]
        self._column = _image_column(path, dataset.features, image)
        label_column = _label_column(path, dataset.features, label)
        if label_column is not None:
            self.labels, self.class_names = _labels(dataset, label_column)
        self._rows = _undecoded(dataset, self._column)
        self._caption = _caption_column(path, dataset.features, caption)
        self.captioned = self._caption is not None
        self._texts = dataset.with_format(None).select_columns([self._caption]) if self.captioned else None

    def __len__(self) -> int:
        return len(self._rows)

    def _stored(self, row: int) -> tuple[bytes | None, str | None]:
        """The bytes and the file of an image, as far as they are there."""
        value = self._rows[row][self._column]
        if isinstance(value, Mapping):
            return value.get("bytes"), value.get("path")
        return value, None

    def encoded(self, row: int) -> bytes:
        data, file = self._stored(row)
        if data is not None:
            return data
        if file is None:
            raise UserError(f"{self.place(row)} holds no image: fill it in or remove the row")
        try:
            return Path(file).read_bytes()
        except OSError as error:
            raise UserError(f"{file} cannot be opened ({error.strerror or error}): restore it") from error

    def captions(self, row: int) -> tuple[str, ...]:
        if self._texts is None:
            return ()
        try:
            value = self._texts[row][self._caption]
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.place(row)} has a caption that is not UTF-8 text: convert it, {LEAVE_OUT}"
            ) from error
        return as_captions(value, self.place(row))

    def describe(self, row: int) -> str:
        _, file = self._stored(row)
        return f"{self.split} image {row}" + (f" ({os.path.basename(file)})" if file else "")

    def place(self, row: int) -> str:
        return f"{self.describe(row)} of {self.path}"

    def test_set(self) -> ImageSet | None:
        """The split "test" of a "train", or for a set that has none, its "validation"."""
        for split in _TESTS if self.split == _TRAIN else ():
            if split in self._splits:
                return HuggingFace(self.path, split, **self._arguments)  # type: ignore[arg-type]
        return None


def _loaded(path: str, configuration: str | None, download: bool) -> Mapping[str, Any]:
    """All splits by name.

    Raises:
        UserError: the library is missing, or cannot load the set.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "HuggingFace needs the package datasets, which is not installed: pip install 'falseneg[hugging-face]'"
        ) from error
    folder = expanded(path)
    local = folder.is_dir()
    if folder.is_file():
        raise UserError(f"{path} is a file: give its folder, or read a Parquet file with Parquet")
    if not local and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise UserError(f"the folder {path} does not exist: give a folder, or a name on the Hub such as owner/name")
    try:
        if local and any((folder / name).is_file() for name in _SAVED):
            found: Any = datasets.load_from_disk(str(folder))
        else:
            with contextlib.nullcontext() if download else _nothing_downloaded():
                found = datasets.load_dataset(str(folder) if local else path, configuration)
    except Exception as error:  # whatever its builders raise, and it is the data's or the network's fault
        reason = " ".join(str(error.__cause__ or error).split()).rstrip(".") or type(error).__name__
        hint = "give a whole data set" if local else "check the name and the network"
        if not local and not download:
            hint = "give the folder that holds it, or download it from the Hub with --data.download true"
        raise UserError(f"datasets cannot load {path} ({reason}): {hint}") from error
    return found if isinstance(found, Mapping) else {str(found.split or _TRAIN): found}


@contextlib.contextmanager
def _nothing_downloaded() -> Iterator[None]:
    """The library's offline mode, which it only reads from the environment when it is imported."""
    import datasets.config

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _chosen_split(path: str, split: str | None, known: list[str]) -> str:
    if split is not None:
        check_choice(f"the split of {path}", split, known)
        return split
    if _TRAIN in known or len(known) == 1:
        return _TRAIN if _TRAIN in known else known[0]
    raise UserError(f"{path} has the splits {', '.join(known)}: choose one with split")


def _image_column(path: str, features: Mapping[str, Any], image: str | None) -> str:
    """The column of the images.

    Raises:
        UserError: there is none of that name, it holds no images, or it is not clear which one is meant.
    """
    kinds = {name: type(kind).__name__ for name, kind in features.items()}
    if image is None:
        images = [name for name, kind in kinds.items() if kind == "Image"]
        if len(images) != 1:
            found = f"the image columns {', '.join(images)}" if images else "no column of images"
            raise UserError(f"{path} has {found} (its columns: {', '.join(kinds)}): choose one with image")
        return images[0]
    if image not in kinds:
        raise unknown(f"in {path} the column", image, kinds)
    kind = features[image]
    if kinds[image] != "Image" and getattr(kind, "dtype", None) not in ("binary", "large_binary"):
        raise UserError(f"the column {image!r} of {path} holds {kind}, not images: choose another one with image")
    return image


def _label_column(path: str, features: Mapping[str, Any], label: str | None) -> str | None:
    if label is None:
        return None
    if label in features:
        kind = type(features[label]).__name__
        if kind not in ("ClassLabel", "Value"):
            raise UserError(
                f"the column {label!r} of {path} holds {kind}, not labels: choose one of numbers or names with label, or "
                "none with null"
            )
        return label
    if label != _USUAL_LABEL:
        raise unknown(f"in {path} the column", label, features)
    classes = [name for name, kind in features.items() if type(kind).__name__ == "ClassLabel"]
    return classes[0] if len(classes) == 1 else None


def _caption_column(path: str, features: Mapping[str, Any], caption: str | None) -> str | None:
    if caption is None or (caption == _USUAL_CAPTION and caption not in features):
        return None
    if caption not in features:
        raise unknown(f"in {path} the column", caption, features)
    kind = features[caption]
    of_lists = kind[0] if isinstance(kind, list) else getattr(kind, "feature", kind)
    if getattr(of_lists, "dtype", None) not in _TEXTS:
        raise UserError(
            f"the column {caption!r} of {path} holds {kind}, not texts: choose one of texts or of lists of texts with "
            "caption, or none with null"
        )
    return caption


def _labels(dataset: Any, column: str) -> tuple[Any, tuple[str, ...] | None]:
    """(n,) labels, and the names of the classes where the data set or the labels themselves have some."""
    table = dataset.with_format(None).select_columns([column])
    labels, names = encode_labels(table[:][column])
    stated = getattr(dataset.features[column], "names", None)
    return labels, tuple(stated) if names is None and stated else names


def _undecoded(dataset: Any, column: str) -> Any:
    """The images as they are stored: bytes, or the file that holds them."""
    import datasets

    rows = dataset.with_format(None).select_columns([column])
    if type(dataset.features[column]).__name__ == "Image":
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows
