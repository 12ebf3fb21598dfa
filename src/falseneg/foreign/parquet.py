"""Parquet files whose footer need not tell the truth."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from falseneg.errors import UserError
from falseneg.foreign import check_unpacked


def read_numbers(path: Path, columns: Collection[str], most: int) -> dict[str, np.ndarray]:
    """Columns of numbers or truth values, each (rows,); those that the file lacks are left out.

    Args:
        path: the file.
        columns: their names.
        most: rows, at most.

    Raises:
        UserError: it has or claims more rows, unpacks to more than `most_unpacked`, or a column holds something else.
        pyarrow.ArrowException: it is damaged.
        OSError: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    schema = metadata.schema.to_arrow_schema()
    names = [name for name in schema.names if name in columns]
    for name in names:
        kind = schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise UserError(f"the column {name!r} of {path} holds {kind}; give numbers")
    if (rows := most_rows(metadata)) > most:
        raise UserError(f"{path} has {rows:,} rows; give at most {most:,}")
    stored = sum(sum(unpacked_sizes(path, metadata, name)) for name in names)
    check_unpacked([path], max(stored, 8 * len(names) * rows))
    table = pq.read_table(path, columns=names)
    for name in names:
        if table[name].null_count:
            raise UserError(f"rows of {path} are empty ({name}); fill them in or remove them")
    return {name: table[name].to_numpy() for name in names}


def unpacked_sizes(path: os.PathLike[str], metadata: Any, column: str) -> list[int]:
    """The bytes of each piece of a column, unpacked: as the footer says or, if that is more, as the pages themselves do.

    A repeated value may stand there once.

    Args:
        path: the file.
        metadata: its footer.
        column: its name, with the field for a structure.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    with open(path, "rb") as file:
        return [
            max(chunk.total_uncompressed_size, _of_pages(file, chunk))
            for chunk in chunks
            if chunk.path_in_schema == column
        ]


def most_rows(metadata: Any) -> int:
    """The most rows that the footer claims anywhere: two claims of a damaged one need not agree."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    values = [[group.column(number).num_values for number in range(group.num_columns)] for group in groups]
    return max(metadata.num_rows, sum(group.num_rows for group in groups), sum(map(max, values)))


def _of_pages(file: BinaryIO, chunk: Any) -> int:
    """The bytes that the pages of a piece unpack to, by their own headers: what Arrow believes, as far as Arrow reads.

    Raises:
        UserError: a header is damaged.
    """
    place = min(chunk.dictionary_page_offset or chunk.data_page_offset, chunk.data_page_offset)
    end, size, values = place + chunk.total_compressed_size, 0, 0
    try:
        while place < end and values < chunk.num_values:
            file.seek(place)
            header = _structure(file)
            size += header[_UNPACKED]
            values += max(header.get(kind, {}).get(_VALUES, 0) for kind in _DATA_PAGES)
            place = file.tell() + header[_PACKED]
            if header[_UNPACKED] < 0 or header[_PACKED] < 0:
                raise ValueError("a size below 0")
    except (EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise UserError(f"{file.name} is damaged (the header of a page); give a whole Parquet file") from error
    return size


_UNPACKED, _PACKED, _DATA_PAGES, _VALUES = 2, 3, (5, 8), 1
"""Fields of a page's header: its sizes, the two forms of data, and how many values these have."""


def _structure(file: BinaryIO) -> dict[int, Any]:
    """The whole numbers and structures in one of Thrift's compact form, by the number of the field; others are passed over."""
    found: dict[int, Any] = {}
    field = 0
    while (head := _byte(file)) != 0:
        field = field + (head >> 4) if head >> 4 else _number(file)
        if head & 15 not in (1, 2):  # true and false have nothing that follows
            found[field] = _value(file, head & 15)
    return found


def _value(file: BinaryIO, kind: int) -> Any:
    """Read one value; None unless it is a whole number or a structure."""
    if kind in (1, 2, 3):
        return _byte(file)
    if kind in (4, 5, 6):
        return _number(file)
    if kind == 7:
        file.seek(8, 1)
    elif kind == 8:
        file.seek(_varint(file), 1)
    elif kind in (9, 10):
        head = _byte(file)
        _pass_over(file, _varint(file) if head >> 4 == 15 else head >> 4, [head & 15])
    elif kind == 11:
        if (pairs := _varint(file)) > 0:
            head = _byte(file)
            _pass_over(file, pairs, [head >> 4, head & 15])
    elif kind == 12:
        return _structure(file)
    else:
        raise ValueError("no kind of value")
    return None


def _pass_over(file: BinaryIO, number: int, kinds: list[int]) -> None:
    for _ in range(number):
        for kind in kinds:
            _value(file, kind)
        file.seek(-1, 1)
        _byte(file)  # whose end is noticed only by reading


def _number(file: BinaryIO) -> int:
    value = _varint(file)
    return (value >> 1) ^ -(value & 1)


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = _byte(file)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("a number without an end")


def _byte(file: BinaryIO) -> int:
    if not (byte := file.read(1)):
        raise EOFError
    return byte[0]
