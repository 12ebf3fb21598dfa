"""Pairs that were found beforehand and stored in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.detectors.base import Detector
from falseneg.errors import UserError
from falseneg.facts import Facts
from falseneg.rules import Listed, PairRule
from falseneg.statistics.scan import ranges


class Neighbours(Detector):
    """Flags pairs of images listed in a file: neighbours under another model, known duplicates, a run's flagged pairs.

    Args:
        path: a NumPy array (rows, k) of int64 data-set rows (.npy; −1 for none), line i holding the neighbours of
            row i; or a Parquet file with the int64 columns "anchor" and "candidate", as a run writes it.

    Raises:
        UserError: the file is missing, or of neither form.
    """

    offsets: Tensor
    neighbours: Tensor

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        pairs = _read_pairs(Path(path))
        if len(pairs) and pairs.min() < 0:
            raise UserError(f"Neighbours: {path} holds the row {pairs.min()}; rows of a data set count from 0")
        pairs = np.unique(pairs, axis=0)
        lines = int(pairs[:, 0].max()) + 1 if len(pairs) else 0
        counts = np.bincount(pairs[:, 0], minlength=lines)
        self.path, self.highest = path, int(pairs.max()) if len(pairs) else -1
        # Not in the checkpoint: they belong to the file.
        self.register_buffer("offsets", torch.from_numpy(np.concatenate([[0], counts.cumsum()])), persistent=False)
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
        anchor, columns = anchor[entry], column[place]
        order = (anchor * len(column) + columns).argsort()
        ends = torch.zeros(len(contrast.anchors) + 1, dtype=torch.int64, device=anchor.device)
        ends.index_add_(0, anchor + 1, torch.ones_like(anchor))
        return Listed(ends.cumsum(0), columns[order])

    def _neighbours_of(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        """For every listed neighbour of every anchor: the anchor, and the neighbour's sample."""
        lines = len(self.offsets) - 1
        line = sample.clamp(0, lines)
        counts = self.offsets[(line + 1).clamp(max=lines)] - self.offsets[line]
        entry, place = ranges(self.offsets[line], counts.masked_fill(sample < 0, 0))
        return entry, self.neighbours[place]


def _read_pairs(path: Path) -> np.ndarray:
    """(pairs, 2) int64: anchor and candidate."""
    if not path.is_file():
        raise UserError(f"Neighbours: there is no file {path}; give a .npy or .parquet file")
    if path.suffix == ".npy":
        table = np.load(path, allow_pickle=False)
        if table.ndim != 2 or table.dtype.kind != "i":
            raise UserError(f"Neighbours: {path} is {table.dtype} of shape {table.shape}; give integers (rows, k)")
        anchor = np.repeat(np.arange(len(table)), table.shape[1])
        pairs = np.stack([anchor, table.reshape(-1).astype(np.int64)], axis=1)
        return pairs[pairs[:, 1] != -1]
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        names = pq.read_schema(path).names
        if not {"anchor", "candidate"} <= set(names):
            raise UserError(f"Neighbours: {path} has the columns {', '.join(names)}; it needs 'anchor' and 'candidate'")
        columns = pq.read_table(path, columns=["anchor", "candidate"])
        return np.stack([columns[name].to_numpy().astype(np.int64) for name in ("anchor", "candidate")], axis=1)
    raise UserError(f"Neighbours: {path} ends in {path.suffix!r}; give a .npy or .parquet file")
