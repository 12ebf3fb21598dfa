"""Columns of Parquet files by row: held in memory, or unpacked once into a file that all processes map."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from falseneg.data.storage import File, kept
from falseneg.errors import UserError
from falseneg.foreign import check_unpacked, listed
from falseneg.foreign.parquet import unpacked_sizes

_LOG = logging.getLogger("falseneg")
IN_MEMORY = 256 * 2**20
"""Up to so many bytes the image column is held in memory; a larger one is unpacked into a file and mapped."""
_ROWS_AT_A_TIME = 256
_AT_A_TIME = 256 * 2**20  # bytes that are unpacked at once, unless one image alone has more
_OVERHEAD = 64  # bytes that a row takes beside its value, so that any number of empty rows is not free


class Column:
    """One column, by row.

    Args:
        files: the files, one after the other.
        name: of the column, with the field for a structure.
        cache: the folder for what is unpacked; None for falseneg in the user's cache folder.
        convert: brings an array of the values into the form in which it is kept; one of this module's functions.

    Raises:
        UserError: a file is not Parquet, is damaged, or unpacks to too much.
    """

    def __init__(self, files: Sequence[File], name: str, cache: str | None, convert: Callable[[Any], Any]) -> None:
        self._files, self._name, self._cache, self._convert = files, name, cache, convert
        self._chunks: list[Any] | None = None
        self._in_memory = stored_size(files, name) <= IN_MEMORY
        self._open()

    def _open(self) -> list[Any]:
        """The arrays of the values, one after the other. Each process opens its own."""
        if self._chunks is None:
            if self._in_memory:
                self._chunks = self._held()
            if self._chunks is None:
                name = f"parquet|{self._name}|{self._convert.__name__}.arrow"
                self._chunks = kept(name, self._files, self._cache, self._unpack, _mapped)
            self._starts = np.cumsum([0] + [len(chunk) for chunk in self._chunks])
        return self._chunks

    def _converted(self) -> Iterator[Any]:
        return map(self._convert, arrays(self._files, self._name))

    def _held(self) -> list[Any] | None:
        """All values, in memory; None if they turn out to be too many: a file tells its size without its repetitions."""
        chunks, size = [], 0
        for chunk in self._converted():
            size += chunk.nbytes
            if size > IN_MEMORY:
                self._in_memory = False
                return None
            chunks.append(chunk)
        return chunks

    def _unpack(self, target: Path) -> None:
        import pyarrow as pa

        _LOG.info("unpacking the column %s of %s, once", self._name, listed(self._files))
        with contextlib.ExitStack() as open_files:
            sink, writer = open_files.enter_context(pa.OSFile(str(target), "wb")), None
            for chunk in self._converted():
                batch = pa.record_batch([chunk], names=["values"])
                writer = writer or open_files.enter_context(pa.ipc.new_file(sink, batch.schema))
                writer.write_batch(batch)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_chunks": None}

    def __len__(self) -> int:
        self._open()
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> Any:
        """The value, as Arrow has it."""
        chunks = self._open()
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        return chunks[chunk][row - int(self._starts[chunk])]


def as_bytes(array: Any) -> Any:
    """Values that may be long, of an array of bytes."""
    import pyarrow as pa

    return array.cast(pa.large_binary())


def as_texts(array: Any) -> Any:
    """Lists of bytes, of an array of texts or of lists of texts: nothing is decoded, for a text may be in any encoding."""
    import pyarrow as pa

    if not pa.types.is_nested(array.type):
        places = pa.array(np.arange(len(array) + 1), pa.int64())
        return pa.LargeListArray.from_arrays(places, array.cast(pa.large_binary()))
    return array.cast(pa.large_list(pa.large_binary()))


def are_texts(kind: Any) -> bool:
    """Whether `as_texts` takes a column of that type."""
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    known = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(each(kind) for each in known)


def stored_size(files: Sequence[File], name: str) -> int:
    """How many bytes a column has in all files, uncompressed, as these tell it."""
    import pyarrow.parquet as pq

    size = 0
    for file in files:
        metadata = pq.read_metadata(file)
        leaf = _leaf(metadata, name)
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(metadata.num_columns)]
        size += sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == leaf)
    return size


def _leaf(metadata: Any, name: str) -> str:
    """How the file itself calls the values of a column: those of a list stand a few levels below it."""
    paths = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    return name if name in paths else next((path for path in paths if path.startswith(f"{name}.")), name)


def arrays(files: Sequence[File], column: str) -> Iterator[Any]:
    """The values of a column in arrays of a few hundred, so that never a whole file is held.

    Raises:
        UserError: there are more bytes of them than `most_unpacked` allows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    part, size = f"the column {column!r} of ", 0
    for file in files:
        with reading([file]), pq.ParquetFile(file) as reader:
            leaf = _leaf(reader.metadata, column)
            largest = max(unpacked_sizes(file, reader.metadata, leaf), default=0)  # no single value has more
            check_unpacked(files, largest, part)
            rows = min(max(_AT_A_TIME // max(largest, 1), 1), _ROWS_AT_A_TIME)
            collected: list[Any] = []
            for batch in reader.iter_batches(rows, columns=[leaf]):
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
def reading(files: Sequence[File]) -> Iterator[None]:
    """Says in one sentence that files are not Parquet, or are damaged."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"{listed(files)} cannot be read as Parquet ({reason}): give whole Parquet files") from error


def _mapped(file: File) -> list[Any]:
    import pyarrow as pa

    chunks: list[Any] = pa.ipc.open_file(pa.memory_map(str(file))).read_all().column(0).chunks
    return chunks
