"""Images in Parquet files: a column of encoded bytes, a column of labels, a column of captions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from falseneg.data.arrow_column import Column, are_texts, arrays, as_bytes, as_texts, reading
from falseneg.data.captions import as_captions
from falseneg.data.image_set import EncodedSet, encode_labels
from falseneg.data.messages import unknown
from falseneg.data.storage import File, check_fits, data_files
from falseneg.errors import UserError
from falseneg.foreign import listed

_DEFAULT_LABEL, _DEFAULT_CAPTION = "label", "caption"


class Parquet(EncodedSet):
    """Images that are stored as encoded bytes (JPEG, PNG, ...) in a column of Parquet files.

    Parquet is compressed by row groups, which makes single rows slow to read. So a column of images or captions of up to 256 MiB is
    held in memory, as Arrow's buffers; a larger one is unpacked once into a file that all processes map, and that takes as
    much disk as the images do. Files that unpack to more than 256 MiB and to more than 100 times their own size are refused,
    before they take more than about 1 GiB of memory.

    Args:
        path: a file, a folder of .parquet files, a pattern such as 'train-*.parquet', or a list of these.
        image: the column of the images: bytes, or a structure with a field "bytes".
        label: the column of the labels: whole numbers from 0, or names; null for no labels. If a file has no column of
            the default name, the images are unlabelled. The names of the classes are taken from the file's metadata.
        caption: the column of the captions: texts, or lists of texts; null for none. If a file has no column of the
            default name, the images are without captions.
        cache: the folder for unpacked columns; default: falseneg in the user's cache folder.

    Raises:
        UserError: there are no such files or columns, a file is damaged, or it unpacks to too much. A caption that is
            missing or cannot be read is left to `inspect`.
    """

    def __init__(
        self,
        path: str | list[str],
        image: str = "image",
        label: str | None = _DEFAULT_LABEL,
        caption: str | None = _DEFAULT_CAPTION,
        cache: str | None = None,
    ) -> None:
        import pyarrow.parquet as pq

        self.files = data_files(path, ".parquet", cache)
        check_fits(self.files)
        with reading(self.files):
            image_column = _image_column(self.files, image)
            label_column = _label_column(self.files, label)
            caption_column = _caption_column(self.files, caption)
            self._images = Column(self.files, image_column, cache, as_bytes)
            if label_column is not None:
                values = [value for array in arrays(self.files, label_column) for value in array.to_pylist()]
                self.labels, self.class_names = encode_labels(values)
                self.class_names = self.class_names or _class_names(pq.read_schema(self.files[0]), label_column)
            self._texts = None if caption_column is None else Column(self.files, caption_column, cache, as_texts)
        if not len(self):
            raise UserError(f"{listed(self.files)} has no rows: give files with images")
        if self._texts is not None and len(self._texts) != len(self):
            raise UserError(f"{listed(self.files)} is damaged (its columns differ in length): give whole Parquet files")
        self.captioned = self._texts is not None

    def __len__(self) -> int:
        return len(self._images)

    def _stored(self, row: int) -> Any:
        value = self._images[row]
        if not value.is_valid:
            raise UserError(
                f"{self.describe(row)} of {listed(self.files)} holds no image: fill it in or remove the row"
            )
        return value

    def captions(self, row: int) -> tuple[str, ...]:
        return () if self._texts is None else as_captions(self._texts[row].as_py(), self.place(row))

    def encoded(self, row: int) -> bytes:
        data: bytes = self._stored(row).as_py()
        return data

    def encoded_size(self, row: int) -> int:
        return int(self._stored(row).as_buffer().size)

    def describe(self, row: int) -> str:
        return f"row {row}"

    def place(self, row: int) -> str:
        return f"row {row} of {listed(self.files)}"


def _image_column(files: Sequence[File], image: str) -> str:
    """The column to read, with the field for a structure."""
    import pyarrow as pa

    column = image
    for file in files:
        kind = _kind(file, image)
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            column = f"{image}.bytes"
            kind = kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise UserError(
                f"the column {image!r} of {file} holds {kind}, not the bytes of images: name another one with image"
            )
    return column


def _label_column(files: Sequence[File], label: str | None) -> str | None:
    import pyarrow as pa

    if label is None:
        return None
    for file in files:
        kind = _kind(file, label, absent_is_fine=label == _DEFAULT_LABEL)
        if kind is None:
            return None
        if pa.types.is_nested(kind):
            raise UserError(
                f"the column {label!r} of {file} holds {kind}, not labels: choose one of numbers or names with label, or "
                f"none with null"
            )
    return label


def _caption_column(files: Sequence[File], caption: str | None) -> str | None:
    if caption is None:
        return None
    for file in files:
        kind = _kind(file, caption, absent_is_fine=caption == _DEFAULT_CAPTION)
        if kind is None:
            return None
        if not are_texts(kind):
            raise UserError(
                f"the column {caption!r} of {file} holds {kind}, not texts: choose one of texts or of lists of texts with "
                "caption, or none with null"
            )
    return caption


def _kind(file: File, column: str, absent_is_fine: bool = False) -> Any:
    """The type of a column; None if it may be absent, and is."""
    import pyarrow.parquet as pq

    schema = pq.read_schema(file)
    if column in schema.names:
        return schema.field(column).type
    if absent_is_fine:
        return None
    raise unknown(f"in {file} the column", column, schema.names)


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """The class names in the metadata: a JSON list under "class_names", or as Hugging Face's `datasets` writes them."""
    metadata = schema.metadata or {}
    try:
        if b"class_names" in metadata:
            return tuple(map(str, json.loads(metadata[b"class_names"])))
        if b"huggingface" in metadata:
            return tuple(map(str, json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"]))
    except (ValueError, KeyError, TypeError):
        pass  # metadata of another kind: the classes stay unnamed
    return None
