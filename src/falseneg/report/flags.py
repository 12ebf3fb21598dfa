"""The flagged pairs on record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from falseneg.report.arrays import are, check
from falseneg.report.read import File, RunRecord
from falseneg.train import names

PAIRS = 2**24
"""Pairs that the file may hold."""
COLUMNS = ("anchor", "candidate", "score", "epoch", "correct")


@dataclass(frozen=True, eq=False)
class Flagged:
    """The columns of flagged.parquet, each (k,).

    Attributes:
        anchor: data-set rows.
        candidate: data-set rows.
        score: cosines.
        epoch: from 1.
        correct: whether the two share a label; None without labels.
    """

    anchor: np.ndarray
    candidate: np.ndarray
    score: np.ndarray
    epoch: np.ndarray
    correct: np.ndarray | None


def _read(path: Path, _: RunRecord) -> Flagged:
    import pyarrow.parquet as pq

    check(pq.read_metadata(path).num_rows <= PAIRS)
    table = pq.read_table(path, columns=[name for name in pq.read_schema(path).names if name in COLUMNS])
    anchor, candidate, score, epoch = (table[key].to_numpy() for key in ("anchor", "candidate", "score", "epoch"))
    correct = table["correct"].to_numpy() if "correct" in table.column_names else None
    check(all(are(column, "iu") for column in (anchor, candidate, epoch)) and are(score, "f"))
    check(bool(np.isfinite(score).all()) and (correct is None or are(correct, "b")))
    return Flagged(anchor, candidate, score, epoch, correct)


FLAGGED = File(names.FLAGGED, _read, lambda run: run.finished and any(line.get("share_flagged") for line in run.epochs))
