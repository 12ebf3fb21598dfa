"""Image files and their captions, named in a table: CSV, TSV or Parquet."""

from __future__ import annotations

import csv
import itertools
import os
from array import array
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np

from falseneg.data.arrow_column import are_texts, arrays, as_texts, reading
from falseneg.data.captions import as_captions
from falseneg.data.folder import FileSet
from falseneg.data.image_set import encode_labels
from falseneg.data.listing import Listing
from falseneg.data.messages import unknown
from falseneg.errors import UserError

_MOST_LINE = 2**22  # bytes of a line: a stranger's file may have no end of one
_AT_A_TIME = 4096  # texts that are held as objects of Python, which take several times as much as their bytes

Line = tuple[str, str | None, list[bytes], Any]
"""What to call it, and its path, captions and label."""


class Table(FileSet):
    """Image files with their captions, from a table with a line a caption: CSV, TSV, or Parquet whose images are paths.

    Lines that name the same path are one image with several captions, in the order of the lines; images count in the order
    of their first lines. Text is UTF-8, with a byte order mark or without; its first line names the columns. A Parquet file
    may hold lists of captions, too. Images that are missing are left to `inspect`, as are captions that cannot be used.

    The table, and the images, may lie on remote storage that fsspec reaches. What there is below the root is listed once.

    A table as open_clip reads it by default: ``Table("train.csv", image="filepath", caption="title")``.

    Args:
        path: the table, or its address.
        image: the column of the paths.
        caption: the column of the captions.
        label: the column of the labels: whole numbers from 0, or names; null for none.
        root: the folder that the paths start at, or an address; default: the folder of the table.
        separator: the character between columns; default: a tab if the first line has one, otherwise a comma.
        cache: where copies of remote files and the listing go; default: falseneg in the user's cache folder.

    Raises:
        UserError: the table cannot be read or has no such column, a line has too many cells or names no image, the labels of
            an image differ, or none of its images is there.
    """

    def __init__(
        self,
        path: str,
        image: str = "image",
        caption: str = "caption",
        label: str | None = None,
        root: str | None = None,
        separator: str | None = None,
        cache: str | None = None,
    ) -> None:
        table = Listing(path, root, cache)
        if not table.file.is_file():  # a device may have no end
            what = "is not a file" if table.file.exists() else "does not exist"
            raise UserError(f"{path} {what}: give a CSV, TSV or Parquet file with a line an image or caption")
        if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
            raise UserError(
                f"the separator {separator!r} is not one character that can stand between columns: give ; or |"
            )
        columns = [image, caption, *([] if label is None else [label])]
        is_parquet = table.ending == ".parquet"
        names, labels, self._texts = _gathered(
            _lines_of_parquet(table, columns) if is_parquet else _lines_of_text(table, columns, separator)
        )
        if not names:
            raise UserError(f"{path} names no images: write a line an image or caption below the names of the columns")
        remote = None if table.remote is None else table.remote.chosen(names)
        super().__init__(table.root, names if remote is None else remote.names, remote)
        self.captioned = bool(len(self._texts.values))
        if label is not None:
            self.labels, self.class_names = encode_labels(labels)
        if not any(map(table.holds, names)):
            raise UserError(
                f"none of the {len(self):,} images that {path} names is there, such as {self.place(0)}: correct the table, "
                "or give its root"
            )

    def captions(self, row: int) -> tuple[str, ...]:
        return as_captions(self._texts[row].as_py(), self.place(row))

    def encoded(self, row: int) -> bytes:
        self._check(row)
        return super().encoded(row)

    def encoded_size(self, row: int) -> int:
        self._check(row)
        return super().encoded_size(row)

    def _check(self, row: int) -> None:
        if self._remote is None and not os.path.isfile(
            self.place(row)
        ):  # nor is it a device, which a stranger's table may name
            raise UserError(f"there is no file {self.place(row)}: restore it, or leave its lines out of the table")


def _gathered(lines: Iterable[Line]) -> tuple[list[str], list[Any], Any]:
    """The lines of an image brought together.

    Returns:
        the paths, (n,); their labels; and their captions as Arrow's lists of bytes.
    """
    import pyarrow as pa

    rows: dict[str, int] = {}
    labels: list[Any] = []
    owners, texts, chunks = array("q"), list[bytes](), []
    for place, path, captions, label in lines:
        name = (path or "").strip()
        if not name:
            raise UserError(f"{place} names no image: write its path, or remove the line")
        row = rows.setdefault(name, len(rows))
        if row == len(labels):
            labels.append(label)
        elif labels[row] is None:
            labels[row] = label
        elif label is not None and label != labels[row]:
            raise UserError(
                f"{place} gives {name!r} the label {label!r}, and a line before it {labels[row]!r}: give an image one label"
            )
        owners.extend([row] * len(captions))
        texts += captions
        if len(texts) >= _AT_A_TIME:
            chunks.append(pa.array(texts, pa.large_binary()))
            texts = []
    chunks.append(pa.array(texts, pa.large_binary()))
    of_rows = np.frombuffer(owners, dtype=np.int64)
    order = np.argsort(of_rows, kind="stable")
    starts = np.searchsorted(of_rows[order], np.arange(len(rows) + 1))
    values = pa.concat_arrays(chunks).take(pa.array(order))
    return list(rows), labels, pa.LargeListArray.from_arrays(pa.array(starts, pa.int64()), values)


def _lines_of_text(table: Listing, columns: list[str], separator: str | None) -> Iterator[Line]:
    with open(table.file, "rb") as stream:
        text = _decoded(stream, table)
        first = next(text, "")
        delimiter = separator or ("\t" if "\t" in first else ",")
        lines = csv.reader(itertools.chain([first], text), delimiter=delimiter, strict=True, skipinitialspace=True)
        headings: list[str] = []
        begins = 1
        try:
            for cells in lines:
                place, begins = f"line {begins:,} of {table}", lines.line_num + 1
                if not headings:
                    headings = [cell.strip() for cell in cells]
                    wanted = [_index(table, name, headings) for name in columns]
                elif any(cell.strip() for cell in cells):
                    if any(cells[len(headings) :]):
                        raise UserError(
                            f"{place} has {len(cells)} cells, and the first line {len(headings)}: put a text that holds "
                            f"{delimiter!r} in double quotes"
                        )
                    path, caption, *label = (cells[index] if index < len(cells) else None for index in wanted)
                    yield (
                        place,
                        path,
                        [] if caption is None else [caption.encode()],
                        (label[0] or None) if label else None,
                    )
        except csv.Error as error:
            quotes = "put a text that holds quotes or ends of lines in double quotes, and write its own quotes twice"
            shorter = f", or shorten a text of more than {csv.field_size_limit():,} characters"
            # Of a text that is too long, too: a quote left open can be the reason.
            how = quotes + (shorter if "larger than field limit" in str(error) else "")
            raise UserError(f"line {begins:,} of {table} cannot be read ({error}): {how}") from error


def _index(table: Listing, name: str, headings: list[str]) -> int:
    if name in headings:
        return headings.index(name)
    raise unknown(f"in the first line of {table}, which names the columns, the column", name, headings)


def _decoded(stream: BinaryIO, table: Listing) -> Iterator[str]:
    """The lines of a file, as texts.

    Raises:
        UserError: one is not UTF-8, or has more than 4 MiB.
    """
    for number, line in enumerate(iter(lambda: stream.readline(_MOST_LINE + 1), b""), 1):
        if len(line) > _MOST_LINE:
            raise UserError(
                f"line {number:,} of {table} has more than {_MOST_LINE:,} bytes: give a table of paths and texts"
            )
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"line {number:,} of {table} is not UTF-8 text (byte {error.start} of the line): convert the table to UTF-8"
            ) from error
        yield text.removeprefix("\ufeff") if number == 1 else text


def _lines_of_parquet(table: Listing, columns: list[str]) -> Iterator[Line]:
    import pyarrow.parquet as pq

    with reading([table.file]):
        schema = pq.read_schema(table.file)
        for name in columns:
            if name not in schema.names:
                raise unknown(f"in {table} the column", name, schema.names)
        _check_kinds(table, columns, [schema.field(name).type for name in columns])
        paths, captions, *labels = (arrays([table.file], name) for name in columns)
        values = zip(
            _values(map(as_texts, paths)),
            _values(map(as_texts, captions)),
            _values(labels[0]) if labels else itertools.repeat(None),
            strict=False,  # the columns of a whole file are equally long
        )
        for row, ((path,), texts, label) in enumerate(values):
            place = f"row {row:,} of {table}"
            yield place, _path(path, place), [text for text in texts or () if text is not None], label


def _path(value: bytes | None, place: str) -> str:
    try:
        return (value or b"").decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{place} names an image in another encoding than UTF-8: convert the table to UTF-8") from error


def _check_kinds(table: Listing, columns: list[str], kinds: list[Any]) -> None:
    """Refuse columns that hold no paths, captions or labels."""
    import pyarrow as pa

    def is_path(kind: Any) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return pa.types.is_string(kind) or pa.types.is_large_string(kind)

    tests = (
        (
            is_path,
            "paths of images: name another one with image, or read images that lie in the file itself with Parquet",
        ),
        (are_texts, "texts: choose one of texts or of lists of texts with caption"),
        (lambda kind: not pa.types.is_nested(kind), "labels: choose one of numbers or names with label"),
    )
    for name, kind, (fits, what) in zip(columns, kinds, tests, strict=False):
        if not fits(kind):
            raise UserError(f"the column {name!r} of {table} holds {kind}, not {what}")


def _values(chunks: Iterable[Any]) -> Iterator[Any]:
    return (value for chunk in chunks for value in chunk.to_pylist())
