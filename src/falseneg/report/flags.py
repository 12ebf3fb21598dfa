"""The flagged pairs on record; `falseneg.train.pairs` says what the columns are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from falseneg.errors import UserError
from falseneg.files import write_bytes
from falseneg.report.arrays import check
from falseneg.report.read import File, RunRecord, is_run
from falseneg.train import names
from falseneg.train.pairs import LONGEST, NUMBERS, as_csv, read_pairs

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, eq=False)
class Texts:
    """Names of anchors and candidates: distinct values, and the places of each pair's two among them, −1 for none."""

    values: list[str]
    anchor: np.ndarray
    candidate: np.ndarray


@dataclass(frozen=True, eq=False)
class Flagged:
    """The columns of flagged.parquet, each (k,).

    Attributes:
        anchor: data-set rows.
        candidate: data-set rows.
        score: cosines.
        epoch: from 1.
        correct: int8: 1 where the two share a label, 0 where they do not, −1 where it is not known; None without labels.
        names: files or keys; None in runs of earlier versions.
        classes: None without labels, and in runs of earlier versions.
        table: the same as it was read.
    """

    anchor: np.ndarray
    candidate: np.ndarray
    score: np.ndarray
    epoch: np.ndarray
    correct: np.ndarray | None
    names: Texts | None = None
    classes: Texts | None = None
    table: pa.Table | None = None

    def best(self, most: int) -> tuple[pa.Table, int]:
        """The most similar pairs of the last recorded epoch, and how many that epoch has."""
        assert self.table is not None
        last = self.table.filter(self.epoch == self.epoch.max())
        return last.sort_by([("score", "descending")]).slice(0, most), len(last)


def write_pairs(folder: Path, out: Path | None = None) -> Path:
    """Write the flagged pairs of a run as CSV, see `falseneg.train.pairs.as_csv`.

    Args:
        folder: of the run.
        out: the file to write; None writes flagged.csv into the folder.

    Returns:
        The file that was written.

    Raises:
        UserError: the folder is not that of a run, or its pairs are missing or damaged, or the file cannot be written.
    """
    path, out = folder / names.FLAGGED, folder / names.PAIRS if out is None else out
    if not is_run(folder):
        raise UserError(
            f"{folder} holds no run, so it has no pairs; give the folder that 'falseneg pretrain --out' wrote"
        )
    if not path.is_file():
        raise UserError(
            f"{path} is missing: pairs are recorded at the end of the first recorded epoch, if any are flagged"
        )
    if out.is_dir():
        raise UserError(f"{out} is a folder; give the name of the CSV file to write")
    write_bytes(out, as_csv(read_pairs(path), folder))
    return out


def _read(path: Path, _: RunRecord) -> Flagged:
    table = read_pairs(path)
    anchor, candidate, score, epoch = (table[name].to_numpy() for name in NUMBERS)
    correct = None
    if "correct" in table.column_names:
        correct = table["correct"].cast("int8").fill_null(-1).to_numpy()
    texts = {
        kind: _texts(table, f"anchor_{kind}", f"candidate_{kind}")
        for kind in ("name", "class")
        if f"anchor_{kind}" in table.column_names and f"candidate_{kind}" in table.column_names
    }
    return Flagged(anchor, candidate, score, epoch, correct, texts.get("name"), texts.get("class"), table)


def _texts(table: pa.Table, anchor: str, candidate: str) -> Texts:
    import pyarrow as pa

    both = pa.chunked_array([*table[anchor].chunks, *table[candidate].chunks], table[anchor].type)
    encoded = both.unify_dictionaries().combine_chunks()
    encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
    values = [] if encoded is None else encoded.dictionary.to_pylist()
    check(all(value is not None and len(value) <= LONGEST for value in values))
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return Texts(values, codes[: len(table)], codes[len(table) :])


FLAGGED = File(names.FLAGGED, _read, lambda run: run.finished and any(line.get("share_flagged") for line in run.epochs))
