"""Flagged pairs as files, for people and for other programs: whose they are, how similar, and whether they are right.

``flagged.parquet`` has a line for each recorded pair, with the columns

- ``anchor``, ``candidate``: int64, rows of the data set; ``anchor_name``, ``candidate_name``: their files or keys;
- ``score``: float32, the highest cosine that any two of their views had; ``epoch``: int32, from 1;
- with captions also ``anchor_caption``, ``candidate_caption``: the first of each, cut to 200 letters;
- with labels also ``correct``: whether they have the same one, null where either has none; ``anchor_class``,
  ``candidate_class``: names of their classes, null where they have none.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from falseneg.errors import UserError
from falseneg.files import replacing
from falseneg.foreign import check_unpacked
from falseneg.foreign.parquet import most_rows, unpacked_sizes
from falseneg.train.names import PICTURES

if TYPE_CHECKING:
    import pyarrow as pa

    from falseneg.data import ImageSet

NAMED = ("anchor_name", "candidate_name", "anchor_caption", "candidate_caption", "anchor_class", "candidate_class")
"""The columns of text, as far as they are there."""
NUMBERS = ("anchor", "candidate", "score", "epoch")
MOST_PAIRS, LONGEST = 2**20, 4096
"""Pairs that the file may hold, far more than a run writes, and letters of a name."""
MOST_LETTERS = 200
"""Of a caption that is shown."""
IN_CSV = (
    *("anchor_name", "candidate_name", "anchor_caption", "candidate_caption", "score", "epoch", "correct"),
    *("anchor_class", "candidate_class"),
    *("anchor", "candidate", "anchor_thumbnail", "candidate_thumbnail"),
)
"""The columns of the CSV; those that are not known are left out."""


def caption_of(images: ImageSet, row: int) -> str:
    """The first caption of an image, cut to what a table or a page has room for; empty if it has none."""
    return _text(next(iter(images.captions(row)), "")[:MOST_LETTERS])


def pair_table(images: ImageSet, pairs: np.ndarray, scores: np.ndarray, epoch: int) -> pa.Table:
    """The columns of ``flagged.parquet`` for some pairs; texts are dictionary-encoded.

    Args:
        images: the data set.
        pairs: (k, 2) int64, rows of anchors and candidates.
        scores: (k,) float32 cosines.
        epoch: from 1.
    """
    import pyarrow as pa

    rows, places = np.unique(pairs, return_inverse=True)
    anchor, candidate = places.reshape(pairs.shape).T
    columns: dict[str, Any] = {"anchor": pairs[:, 0], "candidate": pairs[:, 1]}
    names = pa.array([_text(images.describe(row)) for row in rows.tolist()], pa.string())
    columns |= {"anchor_name": names.take(pa.array(anchor)), "candidate_name": names.take(pa.array(candidate))}
    if images.captioned:
        captions = pa.array([caption_of(images, row) for row in rows.tolist()], pa.string())
        columns |= {"anchor_caption": captions.take(pa.array(anchor))}
        columns |= {"candidate_caption": captions.take(pa.array(candidate))}
    columns |= {"score": scores, "epoch": np.full(len(pairs), epoch, dtype=np.int32)}
    if images.labels is not None:
        labels = images.labels[rows].numpy()
        known = (labels[anchor] >= 0) & (labels[candidate] >= 0)
        columns["correct"] = pa.array(labels[anchor] == labels[candidate], mask=~known)
        classes = pa.array([_class(label, images.class_names) for label in labels.tolist()], pa.string())
        columns["anchor_class"] = classes.take(pa.array(anchor))
        columns["candidate_class"] = classes.take(pa.array(candidate))
    return pa.table({name: each.dictionary_encode() if name in NAMED else each for name, each in columns.items()})


def read_pairs(path: Path) -> pa.Table:
    """The columns of ``flagged.parquet`` that are known, which may come from anybody; texts are dictionary-encoded.

    Raises:
        UserError: the file is damaged, or has more than 2^20 pairs, or unpacks to more than `check_unpacked` allows.
    """
    try:
        return _read(path)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file makes Arrow raise
        raise damaged(path, type(error).__name__) from error


def damaged(path: Path, what: str) -> UserError:
    """The sentence for a file of a run that has been changed since it was written."""
    return UserError(f"{path} is damaged ({what}); restore an undamaged copy, or remove it")


def _read(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    named = [name for name in metadata.schema.to_arrow_schema().names if name in (*NUMBERS, "correct", *NAMED)]
    if (rows := most_rows(metadata)) > MOST_PAIRS:
        raise UserError(f"{path} has {rows:,} rows; give at most {MOST_PAIRS:,}")
    check_unpacked([path], sum(sum(unpacked_sizes(path, metadata, name)) for name in named))
    table = pq.read_table(path, columns=named, read_dictionary=[name for name in named if name in NAMED])
    kinds = {name: table.schema.field(name).type for name in named}
    right = [set(NUMBERS) <= set(named), len(set(named)) == len(named), pa.types.is_floating(kinds["score"])]
    right += [pa.types.is_integer(kinds[name]) for name in ("anchor", "candidate", "epoch")]
    right += ["correct" not in kinds or pa.types.is_boolean(kinds["correct"])]
    for name in set(named) & {*NAMED}:
        right.append(pa.types.is_dictionary(kinds[name]) and pa.types.is_string(kinds[name].value_type))
    right += [table[name].null_count == 0 for name in NUMBERS]
    if not all(right) or not bool(np.isfinite(table["score"].to_numpy()).all()):
        raise ValueError("another form")
    return table


def _class(label: int, names: Sequence[str] | None) -> str | None:
    """What a label is called; None for no label."""
    return None if label < 0 else str(label) if names is None or label >= len(names) else _text(names[label])


def _text(name: object) -> str:
    """A name that can be written: bytes of a file's name that are not text are written as their numbers."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def write_pictures(folder: Path, rows: Sequence[int], pictures: Sequence[np.ndarray]) -> None:
    """Small pictures of these rows, (H, W, 3) uint8 each, as PNG files of the run's folder."""
    from PIL import Image

    for row, picture in zip(rows, pictures, strict=True):
        with replacing(folder / _picture(row)) as file:
            Image.fromarray(picture).save(file, "png")


def _picture(row: int) -> str:
    return f"{PICTURES}/{row:06d}.png"


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table of pairs as Parquet, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    import pyarrow.parquet as pq

    with replacing(path) as file:
        pq.write_table(table, file, compression="zstd", store_schema=False)  # type: ignore[attr-defined]


def as_csv(table: pa.Table, folder: Path | None = None, further: Sequence[str] = ()) -> bytes:
    """Pairs as CSV, the last epoch and the most similar first.

    A spreadsheet takes a text that begins with =, +, -, @, a tab or a line's end for a formula, so such a name or class
    gets an apostrophe before it; Parquet has it as it is. Paths of thumbnails are relative to the run's folder.

    Args:
        table: columns of `pair_table`; those of names and classes may be missing.
        folder: of the run, where thumbnails are looked for; None names none.
        further: other columns that are wanted, after these.
    """
    import pyarrow as pa
    from pyarrow import csv

    pc: Any = import_module("pyarrow.compute")  # which makes its functions when it is imported
    order = [name for name in ("epoch", "score") if name in table.column_names]
    table = table.sort_by([(name, "descending") for name in order])
    columns = {name: table[name] for name in table.column_names}
    for name in NAMED:
        if name in columns:
            columns[name] = pc.replace_substring_regex(columns[name].cast(pa.string()), r"\A([=+\-@\t\r\n])", r"'\1")
    for side in ("anchor", "candidate"):
        rows = pc.unique(table[side].cast(pa.int64()))
        pictures = [_picture(row) for row in rows.to_pylist()] if folder is not None else []
        paths = [path if folder is not None and (folder / path).is_file() else None for path in pictures]
        if any(paths):
            columns[f"{side}_thumbnail"] = pa.array(paths, pa.string()).take(pc.index_in(table[side], rows))
    sink = io.BytesIO()
    csv.write_csv(pa.table({name: columns[name] for name in (*IN_CSV, *further) if name in columns}), sink)
    return sink.getvalue()
