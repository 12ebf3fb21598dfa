"""Images in Parquet files: a column of encoded bytes, a column of labels."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from falseneg.data.image_set import EncodedSet, encode_labels
from falseneg.data.messages import unknown
from falseneg.data.storage import kept, local_files
from falseneg.errors import UserError
from falseneg.foreign import check_unpacked, listed
from falseneg.foreign.parquet import unpacked_sizes

_LOG = logging.getLogger("falseneg")
IN_MEMORY = 256 * 2**20
"""Up to so many bytes the image column is held in memory; a larger one is unpacked into a file and mapped."""
_ROWS_AT_A_TIME = 256
_AT_A_TIME = 256 * 2**20  # bytes that are unpacked at once, unless one image alone has more
_OVERHEAD = 64  # bytes that a row takes beside its value, so that any number of empty rows is not free
_DEFAULT_LABEL = "label"


class Parquet(EncodedSet):
    """Images that are stored as encoded bytes (JPEG, PNG, ...) in a column of Parquet files.

    Parquet is compressed by row groups, which makes single rows slow to read. So an image column of up to 256 MiB is held in
    memory, as Arrow's buffers; a larger one is unpacked once into a file that all processes map, and that takes as much
    disk as the images do. Files that unpack to more than 256 MiB and to more than 100 times their own size are refused,
    before they take more than about 1 GiB of memory.

    Args:
        path: a file, a folder of .parquet files, a pattern such as 'train-*.parquet', or a list of these.
        image: the column of the images: bytes, or a structure with a field "bytes".
        label: the column of the labels: whole numbers from 0, or names; null for no labels. If a file has no column of
            the default name, the images are unlabelled. The names of the classes are taken from the file's metadata.
        cache: the folder for unpacked columns; default: falseneg in the user's cache folder.
    """

    def __init__(
        self, path: str | list[str], image: str = "image", label: str | None = _DEFAULT_LABEL, cache: str | None = None
    ) -> None:
        import pyarrow.parquet as pq

        self.files = local_files(path, ".parquet")
        self.cache = cache
        self._chunks: list[Any] | None = None
        with _reading(self.files):
            self._image_column, size = _image_column(self.files, image)
            label_column = _label_column(self.files, label)
            self._in_memory = size <= IN_MEMORY
            self._open()
            if label_column is not None:
                values = [value for array in _arrays(self.files, label_column) for value in array.to_pylist()]
                self.labels, self.class_names = encode_labels(values)
                self.class_names = self.class_names or _class_names(pq.read_schema(self.files[0]), label_column)
        if not len(self):
            raise UserError(f"{listed(self.files)} has no rows: give files with images")

    def _open(self) -> list[Any]:
        """The arrays of encoded images, one after the other. Each process opens its own."""
        if self._chunks is None:
            if self._in_memory:
                self._chunks = self._held()
            if self._chunks is None:
                name = f"parquet|{self._image_column}.arrow"
                self._chunks = kept(name, self.files, self.cache, self._unpack, _mapped)
            self._starts = np.cumsum([0] + [len(chunk) for chunk in self._chunks])
        return self._chunks

    def _held(self) -> list[Any] | None:
        """All images, in memory; None if they turn out to be too many: a file tells its size without its repetitions."""
        chunks, size = [], 0
        for chunk in _arrays(self.files, self._image_column):
            size += chunk.nbytes
            if size > IN_MEMORY:
                self._in_memory = False
                return None
            chunks.append(chunk)
        return chunks

    def _unpack(self, target: Path) -> None:
        import pyarrow as pa

        _LOG.info("unpacking the images of %s, once", listed(self.files))
        schema = pa.schema([("image", pa.large_binary())])
        with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for chunk in _arrays(self.files, self._image_column):
                writer.write_batch(pa.record_batch([chunk.cast(pa.large_binary())], schema=schema))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_chunks": None}

    def __len__(self) -> int:
        self._open()
        return int(self._starts[-1])

    def _stored(self, row: int) -> Any:
        chunks = self._open()
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        value = chunks[chunk][row - int(self._starts[chunk])]
        if not value.is_valid:
            raise UserError(
                f"{self.describe(row)} of {listed(self.files)} holds no image: fill it in or remove the row"
            )
        return value

    def encoded(self, row: int) -> bytes:
        data: bytes = self._stored(row).as_py()
        return data

    def encoded_size(self, row: int) -> int:
        return int(self._stored(row).as_buffer().size)

    def describe(self, row: int) -> str:
        return f"row {row}"

    def place(self, row: int) -> str:
        return f"row {row} of {listed(self.files)}"


def _image_column(files: Sequence[Path], image: str) -> tuple[str, int]:
    """The column to read, with the field for a structure, and how many bytes it has in all, uncompressed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = 0
    column = image
    for file in files:
        metadata = pq.read_metadata(file)
        schema = metadata.schema.to_arrow_schema()
        if image not in schema.names:
            raise unknown(f"in {file} the column", image, schema.names)
        kind = schema.field(image).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            column = f"{image}.bytes"
            kind = kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise UserError(
                f"the column {image!r} of {file} holds {kind}, not the bytes of images: name another one with image"
            )
        for group in range(metadata.num_row_groups):
            chunks = [metadata.row_group(group).column(index) for index in range(metadata.num_columns)]
            size += sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column)
    return column, size


def _label_column(files: Sequence[Path], label: str | None) -> str | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if label is None:
        return None
    for file in files:
        schema = pq.read_schema(file)
        if label not in schema.names:
            if label == _DEFAULT_LABEL:
                return None
            raise unknown(f"in {file} the column", label, schema.names)
        if pa.types.is_nested(kind := schema.field(label).type):
            raise UserError(
                f"the column {label!r} of {file} holds {kind}, not labels: choose one of numbers or names with label, or "
                f"none with null"
            )
    return label


def _arrays(files: Sequence[Path], column: str) -> Iterator[Any]:
    """The values of a column in arrays of a few hundred, so that never a whole file is held.

    Raises:
        UserError: there are more bytes of them than `most_unpacked` allows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    part, size = f"the column {column!r} of ", 0
    for file in files:
        with _reading([file]), pq.ParquetFile(file) as reader:
            largest = max(unpacked_sizes(file, reader.metadata, column), default=0)  # no single value has more
            check_unpacked(files, largest, part)
            rows = min(max(_AT_A_TIME // max(largest, 1), 1), _ROWS_AT_A_TIME)
            collected: list[Any] = []
            for batch in reader.iter_batches(rows, columns=[column]):
                array = batch.column(0)
                array = array.field("bytes") if pa.types.is_struct(array.type) else array
                size += array.nbytes + _OVERHEAD * len(array)
                check_unpacked(files, size, part)
                collected.append(array)
                if len(collected) * rows >= _ROWS_AT_A_TIME:
                    yield pa.concat_arrays(collected)
                    collected = []
            if collected:
                yield pa.concat_arrays(collected)


@contextlib.contextmanager
def _reading(files: Sequence[Path]) -> Iterator[None]:
    """Says in one sentence that files are not Parquet, or are damaged."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{listed(files)} cannot be read as Parquet ({reason}): give whole Parquet files") from error


def _mapped(file: Path) -> list[Any]:
    import pyarrow as pa

    chunks: list[Any] = pa.ipc.open_file(pa.memory_map(str(file))).read_all().column(0).chunks
    return chunks


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
