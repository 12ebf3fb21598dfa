"""Images in local tar files as webdataset writes them: KEY.jpg, KEY.cls, KEY.json."""

from __future__ import annotations

import json
import logging
import mmap
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from falseneg.data.image_set import EncodedSet, encode_labels
from falseneg.data.messages import unknown
from falseneg.data.storage import kept, local_files
from falseneg.errors import UserError

_LOG = logging.getLogger("falseneg")


class Shards(EncodedSet):
    """Images in local .tar files in webdataset's form: the members of a sample share their name up to the first dot.

    The files are indexed once, so that any image is read directly; the index is kept, and rebuilt when a file
    changes.

    Args:
        path: a .tar file, a folder of them, a pattern such as 'train-*.tar' or 'train-{00000..00012}.tar', or a list of
            these; not compressed.
        images: the endings that mark the image of a sample, the preferred ones first.
        label: where labels are: "cls" for the member KEY.cls, otherwise a field of KEY.json; null for no labels. If no
            sample has a KEY.cls, the images are unlabelled.
        cache: the folder for the index; default: falseneg in the user's cache folder.
    """

    def __init__(
        self,
        path: str | list[str],
        images: tuple[str, ...] = ("jpg", "jpeg", "png", "webp"),
        label: str | None = "cls",
        cache: str | None = None,
    ) -> None:
        self.files = local_files(path, ".tar")
        self._endings = [ending.lower().lstrip(".") for ending in images]
        self._label = label
        name = f"shards|{self._endings}|{label}.npz"
        index = kept(name, self.files, cache, self._write_index, _read_index)
        self._shard, self._offset, self._size = index["shard"], index["offset"], index["size"]
        self._names = index["name"]
        if not len(self._names):
            raise UserError(f"{self.files[0]} holds no images: none of its members ends in {', '.join(self._endings)}")
        self.labels, self.class_names = encode_labels(json.loads(str(index["label"])))
        if self.labels is None and label not in (None, "cls"):
            raise UserError(f"no sample of {self.files[0]} has a label: there is no {label!r} in any KEY.json")
        left_out = int(index["left_out"])
        if left_out:
            self.note = f"{left_out} samples without an image ({', '.join(self._endings)}) are left out"

    def _write_index(self, target: Path) -> None:
        rows: list[tuple[int, str, int, int]] = []
        labels: list[Any] = []
        left_out = 0
        for number, file in enumerate(self.files):
            _LOG.info("indexing %s, once", file)
            for members, label in self._samples(file):
                image = next((members[ending] for ending in self._endings if ending in members), None)
                if image is None:
                    left_out += 1
                    continue
                rows.append((number, image.name, image.offset_data, image.size))
                labels.append(label)
        shards, names, offsets, sizes = zip(*rows, strict=True) if rows else ((), (), (), ())
        with open(target, "wb") as stream:
            np.savez(
                stream,
                shard=np.array(shards, dtype=np.int32),
                name=np.array(names, dtype=np.str_),
                offset=np.array(offsets, dtype=np.int64),
                size=np.array(sizes, dtype=np.int64),
                label=np.array(json.dumps(labels)),
                left_out=np.array(left_out),
            )

    def _samples(self, file: Path) -> Iterator[tuple[dict[str, tarfile.TarInfo], Any]]:
        """The members of each sample by ending, and its label."""
        samples: dict[str, dict[str, tarfile.TarInfo]] = {}
        try:
            # Mapped, because a header that claims more than the file holds then gets what there is, and no more memory.
            with (
                open(file, "rb") as stream,
                mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
                tarfile.open(os.fspath(file), "r:", fileobj=content) as tar,  # type: ignore[call-overload]
            ):
                for member in tar:
                    _check_member(member, len(content))
                    folder, _, base = member.name.rpartition("/")
                    key, _, ending = base.partition(".")
                    if member.isreg() and key:
                        samples.setdefault(f"{folder}/{key}", {})[ending.lower()] = member
                for members in samples.values():
                    yield members, self._read_label(tar, members, file)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # whatever a damaged header makes the reader raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{file} cannot be read as a tar file ({reason}): give whole, uncompressed .tar files, for images are "
                f"read in random order"
            ) from error

    def _read_label(self, tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], file: Path) -> Any:
        holder = members.get("cls" if self._label == "cls" else "json")
        if self._label is None or holder is None:
            return None
        stream = tar.extractfile(holder)
        text = stream.read() if stream else b""
        if self._label == "cls":
            return text.decode("utf-8", "replace")
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise UserError(f"{holder.name} in {file} is not JSON ({error}): fix it, or choose label cls") from error
        if not isinstance(fields, dict) or self._label not in fields:
            raise unknown(
                f"in {holder.name} of {file} the field", self._label, fields if isinstance(fields, dict) else []
            )
        value = fields[self._label]
        if not isinstance(value, (str, int, float, type(None))):
            raise UserError(
                f"the field {self._label!r} of {holder.name} in {file} is a {type(value).__name__}: choose one that "
                f"holds a name or a number"
            )
        return value

    def __len__(self) -> int:
        return len(self._names)

    def encoded(self, row: int) -> bytes:
        try:
            with open(self.files[self._shard[row]], "rb") as stream:
                stream.seek(int(self._offset[row]))
                data = stream.read(int(self._size[row]))
        except OSError as error:
            raise UserError(
                f"{self.place(row)} cannot be opened ({error.strerror or error}): restore the file"
            ) from error
        return data

    def encoded_size(self, row: int) -> int:
        return int(self._size[row])

    def describe(self, row: int) -> str:
        return str(self._names[row])

    def place(self, row: int) -> str:
        return f"{self._names[row]} in {os.fspath(self.files[self._shard[row]])}"


def _check_member(member: tarfile.TarInfo, length: int) -> None:
    """Refuse a member that does not stand in the file as it is: one with holes unpacks to any size.

    Raises:
        tarfile.TarError: it does not.
    """
    if member.issparse() or not 0 <= member.offset_data <= member.offset_data + member.size <= length:
        raise tarfile.TarError(f"{member.name} claims {member.size:,} bytes and is not stored whole")


def _read_index(file: Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as index:
        return {name: index[name] for name in ("shard", "name", "offset", "size", "label", "left_out")}
