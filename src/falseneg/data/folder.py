"""Image files in a folder, or named in a list."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from falseneg.data.image_set import EncodedSet, encode_labels
from falseneg.data.listing import Listing
from falseneg.data.remote import fetch, is_remote
from falseneg.data.remote_folder import RemoteFolder
from falseneg.data.storage import expanded
from falseneg.errors import UserError

EXTENSIONS = tuple(
    ".avif .bmp .gif .heic .heif .hif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()  # noqa: SIM905
)
_SPLIT_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation"}
_HEADERS = {"path", "file", "filename", "file_name", "filepath", "image", "img"}
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


class FileSet(EncodedSet):
    """Images that are files. Open: the constructor calls this one.

    Args:
        root: the folder that the names start at, or an address.
        names: the name of each file, relative to the folder or absolute.
        remote: the files, row by row, where they lie on remote storage.
    """

    def __init__(self, root: Path | str, names: Sequence[str], remote: RemoteFolder | None = None) -> None:
        self.root = root
        self.names = names
        self._remote = remote
        if remote is not None:
            self.note = remote.note

    def __len__(self) -> int:
        return len(self.names)

    def describe(self, row: int) -> str:
        return self.names[row]

    def place(self, row: int) -> str:
        return os.path.join(self.root, self.names[row])

    def encoded(self, row: int) -> bytes:
        if self._remote is not None:
            return self._remote[row].read()
        try:
            with open(self.place(row), "rb") as file:
                return file.read()
        except OSError as error:
            raise _gone(self.place(row), error) from error

    def fetch(self, rows: Sequence[int]) -> None:
        if self._remote is not None:
            there = [row for row in rows if self._remote.has(row)]
            fetch((self._remote[row], 0, self._remote.size(row)) for row in there)

    def encoded_size(self, row: int) -> int:
        if self._remote is not None:
            return self._remote.size(row)
        try:
            return os.stat(self.place(row)).st_size
        except OSError as error:
            raise _gone(self.place(row), error) from error


def _gone(place: str, error: OSError) -> UserError:
    return UserError(f"{place} cannot be opened ({error.strerror or error}): restore it or leave it out")


class Folder(FileSet):
    """The image files below a folder, however deep; links are followed, hidden files and other files are ignored.

    The folder may lie on remote storage that fsspec reaches: it is listed once, and images are copied here as they are read.

    If all images lie in sub-folders, and those are at least two, each sub-folder directly below the root is a class,
    in sorted order. Otherwise the images are unlabelled.

    Args:
        root: the folder. Images are files that end in avif, bmp, gif, heic, heif, hif, jfif, jpe, jpeg, jpg, pbm, pgm,
            png, pnm, ppm, tif, tiff or webp. HEIC, the format of many phones, needs the package pillow-heif, which is an
            extra: falseneg[heic]. Or an address, such as s3://bucket/photos.
        cache: of a remote folder, where its listing and the copies of images go; default: falseneg in the user's cache
            folder.

    Raises:
        UserError: there is no such folder, it holds no images, or it cannot be read.
    """

    def __init__(self, root: str, cache: str | None = None) -> None:
        if is_remote(root):
            remote = RemoteFolder(root, EXTENSIONS, cache)
            super().__init__(root, remote.names, remote)
            self._label_by_folder(root)
            if self.note != remote.note:
                self.note = f"{self.note}; {remote.note}"
            return
        folder = expanded(root)
        if folder.is_file():
            raise UserError(
                f"{root} is a file, not a folder: give the folder that holds the images, or use FileList for a list"
            )
        if not folder.is_dir():
            raise UserError(f"the folder {root} does not exist: give the folder that holds the images")
        names = _images_below(folder)
        if not names:
            raise UserError(f"{root} holds no images: they must end in {', '.join(EXTENSIONS)}")
        super().__init__(folder, names)
        self._label_by_folder(root)

    def _label_by_folder(self, root: str) -> None:
        at_top = sum("/" not in name for name in self.names)
        if at_top == len(self.names):
            return
        folders = sorted({name.split("/", 1)[0] for name in self.names if "/" in name})
        if at_top:
            self.note = (
                f"{root} holds {at_top} images beside its sub-folders ({_some(folders)}): sub-folders are not taken as "
                f"classes, the images are unlabelled"
            )
            return
        if len(folders) == 1:
            self.note = f"all images of {root} lie in its one sub-folder {folders[0]}: they are unlabelled"
            return
        if all(name.lower() in _SPLIT_NAMES for name in folders):
            raise UserError(
                f"the sub-folders of {root} are splits ({_some(folders)}), not classes: give one of them, such as "
                f"{root}/{folders[-1]}"
            )
        number = {name: index for index, name in enumerate(folders)}
        self.labels = torch.tensor([number[name.split("/", 1)[0]] for name in self.names])
        self.class_names = tuple(folders)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _images_below(root: Path) -> list[str]:
    """The names of all image files, relative to the root, with "/", sorted so that rows are the same everywhere."""
    found: list[str] = []
    pending: list[tuple[str, str, frozenset[tuple[int, int]]]] = [(str(root), "", frozenset())]
    while pending:
        folder, prefix, above = pending.pop()
        try:
            identity = os.stat(folder)
            with os.scandir(folder) as entries:
                listed = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            raise UserError(
                f"the folder {folder} cannot be read ({error.strerror}): allow reading it or move it away"
            ) from error
        key = (identity.st_dev, identity.st_ino)
        if key in above:  # a link to a folder that it lies in
            continue
        for entry in listed:
            if entry.is_dir():
                pending.append((entry.path, f"{prefix}{entry.name}/", above | {key}))
            elif entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
                found.append(prefix + entry.name)
    return sorted(found)


class FileList(FileSet):
    """Image files that are named in a text, CSV or TSV file, one per line, with or without a label after it.

    Paths are relative to the folder of the list or to its root, absolute, or begin with an address that is its root. In a .csv or .tsv file the first column is the path and the second, or
    the one whose heading is "label", the label: a whole number from 0, or the name of a class. A first line of headings
    is recognised by its first word (path, file, filename, image, ...). In any other file a line is a path, or a path
    and a label with a tab, a comma or a space between.

    The list, and the images, may lie on remote storage that fsspec reaches. What there is below the root is listed once.

    Args:
        path: the list, or its address.
        root: the folder that the paths start at, or an address; default: the folder of the list.
        cache: where copies of remote files and the listing go; default: falseneg in the user's cache folder.

    Raises:
        UserError: the list cannot be read, names no images, or one that is not there.
    """

    def __init__(self, path: str, root: str | None = None, cache: str | None = None) -> None:
        listing = Listing(path, root, cache)
        lines = _read_lines(listing)
        headings = [cell.strip().lower() for cell in lines[0]] if lines else []
        has_headings = bool(headings) and headings[0] in _HEADERS and not listing.holds(lines[0][0])
        rows = lines[1:] if has_headings else lines
        if not rows:
            raise UserError(f"{path} names no images: write one path per line")
        names = [row[0].strip() for row in rows]
        for name in names:
            if not listing.holds(name):
                when = "" if listing.remote is None else f" ({listing.remote.note})"
                raise UserError(
                    f"{path} names {name!r}, but there is no file {listing.place(name)}{when}: correct the list, or "
                    "give its root"
                )
        remote = None if listing.remote is None else listing.remote.chosen(names)
        super().__init__(listing.root, names if remote is None else remote.names, remote)
        column = headings.index("label") if has_headings and "label" in headings else 1
        self.labels, self.class_names = encode_labels([row[column] if len(row) > column else None for row in rows])


def _read_lines(listing: Listing) -> list[list[str]]:
    """The cells of each line that is not blank."""
    if listing.file.exists() and not listing.file.is_file():  # a device may have no end
        raise UserError(f"{listing} is not a file: give a text, CSV or TSV file of image paths")
    try:
        text = listing.file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(
            f"the list {listing} cannot be read ({reason}): give a text, CSV or TSV file of image paths"
        ) from error
    delimiter = _DELIMITERS.get(listing.ending)
    lines = text.splitlines()
    cells = (
        [_path_and_label(line.strip(), listing) for line in lines]
        if delimiter is None
        else list(csv.reader(lines, delimiter=delimiter))
    )
    return [row for row in cells if row and row[0].strip()]


def _path_and_label(line: str, listing: Listing) -> list[str]:
    """The line as a path if there is such a file, otherwise split before its last word if that leaves one."""
    for separator in "\t, ":
        path, found, label = line.rpartition(separator)
        if found and not listing.holds(line) and listing.holds(path.strip()):
            return [path, label]
    return [line]
