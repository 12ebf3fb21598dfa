"""Images in local tar files as webdataset writes them: KEY.jpg, KEY.cls, KEY.txt, KEY.json."""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from falseneg.data.captions import LEAVE_OUT, MOST_BYTES, as_captions
from falseneg.data.image_set import EncodedSet, encode_labels
from falseneg.data.messages import unknown
from falseneg.data.remote import RemoteFile, fetch
from falseneg.data.storage import File, data_files, kept
from falseneg.errors import UserError
from falseneg.foreign import listed
from falseneg.foreign.text import MOST_JSON

_LOG = logging.getLogger("falseneg")
_LABEL_FILE, _CAPTION_FILE, _FIELDS_FILE = "cls", "txt", "json"
_ABSENT = -1
Members = dict[str, tarfile.TarInfo]
"""The members of a sample, by ending."""


@dataclass
class _Found:
    """What is found while files are indexed; one entry a sample in each list."""

    rows: list[tuple[int, str, int, int]] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    texts: list[tuple[int, int]] = field(default_factory=list)
    fields: frozenset[str] = frozenset()
    left_out: int = 0
    repeated: int = 0
    without_end: list[File] = field(default_factory=list)

    def sentences(self, endings: Sequence[str]) -> list[str]:
        said = []
        if self.left_out:
            said.append(f"{self.left_out} samples without an image ({', '.join(endings)}) are left out")
        if self.repeated:
            one = "1 member stands twice in its tar file: the last one is taken"
            more = f"{self.repeated:,} members stand twice in their tar file: the last one of each is taken"
            said.append(one if self.repeated == 1 else more)
        if self.without_end:
            said.append(f"no end is marked in {listed(self.without_end)}: cut short, or not closed by its writer")
        return said


class Shards(EncodedSet):
    """Images in local .tar files in webdataset's form: the members of a sample share their name up to the first dot.

    The files are indexed once, so that any image and caption is read directly; the index is kept, and rebuilt when a
    file changes. A member that stands twice in a file counts as its last one, and is counted in `note`; equal keys in
    several files are several samples.

    Args:
        path: a .tar file, a folder of them, a pattern such as 'train-*.tar' or 'train-{00000..00012}.tar', or a list of
            these; not compressed.
        images: the endings that mark the image of a sample, the preferred ones first.
        label: where labels are: "cls" for the member KEY.cls, otherwise a field of KEY.json; null for no labels. If no
            sample has a KEY.cls, the images are unlabelled.
        caption: where captions are: "txt" for the member KEY.txt, one caption in UTF-8; otherwise a field of KEY.json, a
            text or a list of texts; null for none. If no sample has a KEY.txt, the images are without captions.
        cache: the folder for the index; default: falseneg in the user's cache folder.

    Raises:
        UserError: there are no such files, no images in them, or no field of that name; or a file is damaged. A caption
            that is missing or cannot be read is left to `inspect`.
    """

    def __init__(
        self,
        path: str | list[str],
        images: tuple[str, ...] = ("jpg", "jpeg", "png", "webp"),
        label: str | None = _LABEL_FILE,
        caption: str | None = _CAPTION_FILE,
        cache: str | None = None,
    ) -> None:
        self.files = data_files(path, ".tar", cache)
        self._endings = [ending.lower().lstrip(".") for ending in images]
        self._label, self._captions_in = label, caption if caption in (None, _CAPTION_FILE) else _FIELDS_FILE
        self._field = caption if self._captions_in == _FIELDS_FILE else None
        name = f"shards|{self._endings}|{label}|{caption}.npz"
        index = kept(name, self.files, cache, self._write_index, _read_index)
        self._shard, self._names = index["shard"], index["name"]
        self._offset, self._size = index["offset"], index["size"]
        self._text_offset, self._text_size = index["text_offset"], index["text_size"]
        if not len(self._names):
            raise UserError(f"{self.files[0]} holds no images: none of its members ends in {', '.join(self._endings)}")
        self.labels, self.class_names = encode_labels(json.loads(str(index["label"])))
        if self.labels is None and label not in (None, _LABEL_FILE):
            raise UserError(f"no sample of {self.files[0]} has a label: there is no {label!r} in any KEY.json")
        self.captioned = bool((self._text_size != _ABSENT).any())
        self.note = str(index["note"]) or None

    def _write_index(self, target: Path) -> None:
        found = _Found()
        for number, file in enumerate(self.files):
            _LOG.info("indexing %s, once", file)
            with _opened(file) as (tar, content):
                for members in _samples(tar, content, file, found):
                    image = next((members[ending] for ending in self._endings if ending in members), None)
                    if image is None:
                        found.left_out += 1
                        continue
                    found.rows.append((number, image.name, image.offset_data, image.size))
                    found.labels.append(self._read_label(tar, members, file))
                    found.texts.append(self._text_place(tar, members, found))
        if found.rows and self._field is not None and max(found.texts)[1] == _ABSENT:
            raise unknown(f"in the KEY.json of {self.files[0]} the field", self._field, sorted(found.fields))
        shards, names, offsets, sizes = zip(*found.rows, strict=True) if found.rows else ((), (), (), ())
        texts = np.array(found.texts, dtype=np.int64).reshape(-1, 2)
        with open(target, "wb") as stream:
            np.savez(
                stream,
                shard=np.array(shards, dtype=np.int32),
                name=np.array(names, dtype=np.str_),
                offset=np.array(offsets, dtype=np.int64),
                size=np.array(sizes, dtype=np.int64),
                text_offset=texts[:, 0],
                text_size=texts[:, 1],
                label=np.array(json.dumps(found.labels)),
                note=np.array("; ".join(found.sentences(self._endings))),
            )

    def _read_label(self, tar: tarfile.TarFile, members: Members, file: File) -> Any:
        holder = members.get(_LABEL_FILE if self._label == _LABEL_FILE else _FIELDS_FILE)
        if self._label is None or holder is None:
            return None
        text = _content(tar, holder)
        if self._label == _LABEL_FILE:
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

    def _text_place(self, tar: tarfile.TarFile, members: Members, found: _Found) -> tuple[int, int]:
        """Where the member with the caption stands, and its size; −1 for a sample without one."""
        holder = None if self._captions_in is None else members.get(self._captions_in)
        if holder is None:
            return _ABSENT, _ABSENT
        if self._field is not None and holder.size <= MOST_JSON:
            with contextlib.suppress(UserError):  # what cannot be read is said where it is
                fields = _fields(_content(tar, holder), holder.name)
                found.fields = found.fields or frozenset(fields)
                if fields.get(self._field) is None:
                    return _ABSENT, _ABSENT
        return holder.offset_data, holder.size

    def __len__(self) -> int:
        return len(self._names)

    def _read(self, row: int, offset: int, size: int) -> bytes:
        file = self.files[self._shard[row]]
        if isinstance(file, RemoteFile):
            return file.read(offset, size)
        try:
            with open(file, "rb") as stream:
                stream.seek(offset)
                return stream.read(size)
        except OSError as error:
            raise UserError(
                f"{self.place(row)} cannot be opened ({error.strerror or error}): restore the file"
            ) from error

    def encoded(self, row: int) -> bytes:
        return self._read(row, int(self._offset[row]), int(self._size[row]))

    def fetch(self, rows: Sequence[int]) -> None:
        places = ((self.files[self._shard[row]], int(self._offset[row]), int(self._size[row])) for row in rows)
        fetch((file, offset, size) for file, offset, size in places if isinstance(file, RemoteFile))

    def captions(self, row: int) -> tuple[str, ...]:
        size, place = int(self._text_size[row]), self.place(row)
        if size == _ABSENT:
            return ()
        if size > (most := MOST_BYTES if self._field is None else MOST_JSON):
            raise UserError(f"{place} has a caption of {size:,} bytes: give at most {most:,}, {LEAVE_OUT}")
        data = self._read(row, int(self._text_offset[row]), size)
        return as_captions(data if self._field is None else _fields(data, place).get(self._field), place)

    def encoded_size(self, row: int) -> int:
        return int(self._size[row])

    def describe(self, row: int) -> str:
        return str(self._names[row])

    def place(self, row: int) -> str:
        return f"{self._names[row]} in {self.files[self._shard[row]]}"


@contextlib.contextmanager
def _opened(file: File) -> Iterator[tuple[tarfile.TarFile, mmap.mmap]]:
    """A tar file and its content, with one sentence for whatever is wrong with it."""
    try:
        # Mapped, because a header that claims more than the file holds then gets what there is, and no more memory.
        with (
            open(file, "rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
            tarfile.open(str(file), "r:", fileobj=content) as tar,  # type: ignore[call-overload]
        ):
            yield tar, content
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged header makes the reader raise
        empty = isinstance(error, ValueError) and "empty file" in str(error)  # as mmap says it
        reason = "it is empty" if empty else " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{file} cannot be read as a tar file ({reason}): give whole, uncompressed .tar files, for images are "
            f"read in random order"
        ) from error


def _samples(tar: tarfile.TarFile, content: mmap.mmap, file: File, found: _Found) -> Iterable[Members]:
    """The members of each sample, in the order of their first ones."""
    samples: dict[str, Members] = {}
    for member in tar:
        _check_member(member, len(content))
        folder, _, base = member.name.rpartition("/")
        key, _, ending = base.partition(".")
        if member.isreg() and key:
            members = samples.setdefault(f"{folder}/{key}", {})
            found.repeated += ending.lower() in members
            members[ending.lower()] = member
    # The reader takes anything but a header for the end.
    behind = content[tar.offset : tar.offset + tarfile.BLOCKSIZE]
    if not behind:
        found.without_end.append(file)
    elif len(behind) < tarfile.BLOCKSIZE or any(behind):
        raise tarfile.TarError(f"there is no member at byte {tar.offset:,}")
    return samples.values()


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    return stream.read() if stream else b""


def _fields(text: bytes, place: str) -> dict[str, Any]:
    """The fields of a KEY.json.

    Raises:
        UserError: it is not JSON, or has no fields.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"the KEY.json of {place} is not JSON ({reason}): fix it, {LEAVE_OUT}") from error
    if not isinstance(fields, dict):
        raise UserError(
            f"the KEY.json of {place} is a {type(fields).__name__}: give an object with fields, {LEAVE_OUT}"
        )
    return fields


def _check_member(member: tarfile.TarInfo, length: int) -> None:
    """Refuse a member that does not stand in the file as it is: one with holes unpacks to any size.

    Raises:
        tarfile.TarError: it does not.
    """
    if member.issparse() or not 0 <= member.offset_data <= member.offset_data + member.size <= length:
        raise tarfile.TarError(f"{member.name} claims {member.size:,} bytes and is not stored whole")


def _read_index(file: File) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as index:
        return {
            name: index[name]
            for name in ("shard", "name", "offset", "size", "label", "note", "text_offset", "text_size")
        }
