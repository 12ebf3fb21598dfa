"""Pairs that were found beforehand and stored in a file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.detectors.base import Detector
from falseneg.errors import UserError
from falseneg.facts import Facts
from falseneg.foreign.archives import load_array
from falseneg.foreign.parquet import read_numbers
from falseneg.rules import Listed, PairRule
from falseneg.statistics.scan import ranges

MOST_PAIRS = 2**27
"""Pairs in a file, at most. So many take 2 GiB."""


class Neighbours(Detector):
    """Flags pairs of images listed in a file: neighbours under another model, known duplicates, a run's flagged pairs.

    Args:
        path: a NumPy array (rows, k) of int64 data-set rows (.npy; −1 for none), line i holding the neighbours of
            row i; or a Parquet file with the int64 columns "anchor" and "candidate", as a run writes it.

    Raises:
        UserError: the file is missing, damaged or of neither form, or names more than 2^27 pairs; or a Parquet file unpacks
            to more than 256 MiB (2^24 pairs) and to more than 100 times its own size.
    """

    anchors: Tensor
    neighbours: Tensor

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        pairs = _read_pairs(Path(path))
        if len(pairs) and pairs.min() < 0:
            raise UserError(f"Neighbours: {path} holds the row {pairs.min()}; rows of a data set count from 0")
        pairs = np.unique(pairs, axis=0)
        self.path, self.highest = path, int(pairs.max()) if len(pairs) else -1
        # Not in the checkpoint: they belong to the file.
        self.register_buffer("anchors", torch.from_numpy(pairs[:, 0].copy()), persistent=False)
        self.register_buffer("neighbours", torch.from_numpy(pairs[:, 1].copy()), persistent=False)

    def prepare(self, facts: Facts) -> None:
        if self.highest >= facts.rows:
            raise UserError(
                f"Neighbours: {self.path} names row {self.highest}, but the data set has {facts.rows} images; "
                "give the list that was made for this data set"
            )

    @torch.no_grad()
    def flag(self, contrast: Contrast, clock: Clock) -> PairRule:
        anchor, neighbour = self._neighbours_of(contrast.anchors.sample)
        ordered, column = contrast.candidates.sample.sort(stable=True)
        first = torch.searchsorted(ordered, neighbour)
        repeats = torch.searchsorted(ordered, neighbour, right=True) - first
        entry, place = ranges(first, repeats)
        return Listed.from_pairs(anchor[entry], column[place], len(contrast.anchors))

    def _neighbours_of(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        """For every listed neighbour of every anchor: the anchor, and the neighbour's sample."""
        first = torch.searchsorted(self.anchors, sample)
        counts = torch.searchsorted(self.anchors, sample, right=True) - first
        entry, place = ranges(first, counts)
        return entry, self.neighbours[place]


def _read_pairs(path: Path) -> np.ndarray:
    """(pairs, 2) int64: anchor and candidate."""
    if path.suffix not in (".npy", ".parquet"):
        raise UserError(f"Neighbours: {path} ends in {path.suffix!r}; give a .npy or .parquet file")
    if not os.path.isfile(path):
        raise UserError(f"Neighbours: there is no file {path}; give a .npy or .parquet file")
    try:
        return _from_numpy(path) if path.suffix == ".npy" else _from_parquet(path)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file makes its reader raise
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(f"Neighbours: {path} cannot be read ({reason}); give a whole .npy or .parquet file") from error


def _from_numpy(path: Path) -> np.ndarray:
    table = load_array(path)
    if table.ndim != 2 or table.dtype.kind not in "iu":
        raise UserError(f"Neighbours: {path} is {table.dtype} of shape {table.shape}; give integers (rows, k)")
    if not table.size:
        return np.empty((0, 2), dtype=np.int64)
    _check_number(path, table.size)
    anchor = np.repeat(np.arange(len(table)), table.shape[1])
    pairs = np.stack([anchor, table.reshape(-1).astype(np.int64)], axis=1)
    return pairs[pairs[:, 1] != -1]


def _from_parquet(path: Path) -> np.ndarray:
    columns = read_numbers(path, ("anchor", "candidate"), MOST_PAIRS)
    for name in ("anchor", "candidate"):
        if name not in columns:
            raise UserError(f"Neighbours: {path} has no column {name!r}; give one with 'anchor' and 'candidate'")
        if columns[name].dtype.kind not in "iu":
            raise UserError(f"Neighbours: the column {name!r} of {path} holds {columns[name].dtype}; give integers")
    return np.stack([columns[name].astype(np.int64) for name in ("anchor", "candidate")], axis=1)


def _check_number(path: Path, pairs: int) -> None:
    if pairs > MOST_PAIRS:
        raise UserError(f"Neighbours: {path} names {pairs:,} pairs; give at most {MOST_PAIRS:,}")
