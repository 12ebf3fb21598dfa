"""Tile after tile of the matrix of cosines, in buffers that are used again.

Masks are numbers, 0 or 1, of the cosines' own type: on a CPU a comparison that writes numbers is four times as fast as
one that writes bools, and a product with them thirty times as fast as a masked fill. They multiply finite numbers only.
"""

from __future__ import annotations

from collections.abc import Iterator
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad

from falseneg.contrast import NOBODY, Contrast
from falseneg.rules import NoPairs, PairRule, at_least_float32

TILE = 512
"""Rows and columns of a tile: large enough for fast products, small enough (1 MiB in float32) to stay in the cache."""
DEVICE_TILE = 4096
"""The same on other devices than the CPU, where starting an operation costs more than a small tile takes."""

Tile = tuple[slice, slice, Tensor]
"""Rows, columns and cosines."""
_KEPT: WeakKeyDictionary[Contrast, dict[tuple[int, int], Tiles]] = WeakKeyDictionary()
"""By the first and the last of the columns."""


def tiles_of(contrast: Contrast, columns: slice) -> Tiles:
    """The tiles of these columns, the same ones as long as the contrast lives: what counts and the loss share them."""
    of_contrast = _KEPT.setdefault(contrast, {})
    key = columns.start, columns.stop
    if key not in of_contrast:
        of_contrast[key] = Tiles(contrast, columns)
    return of_contrast[key]


class Tiles:
    """The cosines of a contrast, tile by tile, without gradient.

    Where the candidates are the anchors, the matrix is symmetric: each tile above the diagonal is computed once, and
    seen twice, as it is and transposed. A matrix of a single tile is computed once and kept.

    Where the candidates are anchors of a contrast of their own, with the anchors as their candidates, each tile can be seen
    ``both_ways``. Rows and columns then have the numbers that they would have in the symmetric matrix of both: the
    candidates follow the anchors.

    Args:
        contrast: N anchors against M candidates.
        columns: only these candidates; all of them, to be seen both ways.
        both_ways: see each tile as it is and transposed.

    Attributes:
        lines: how many rows there are, those of the transposed tiles included.
    """

    def __init__(self, contrast: Contrast, columns: slice, both_ways: bool = False) -> None:
        self.anchors = at_least_float32(contrast.anchors.z.detach())
        self.on_cpu = self.anchors.device.type == "cpu"
        self.size = TILE if self.on_cpu else DEVICE_TILE
        self.columns = columns
        self.symmetric = contrast.candidates is contrast.anchors and columns == contrast.columns(None)
        self.candidates = self.anchors if self.symmetric else at_least_float32(contrast.candidates.z.detach())
        self.anchor_codes, self.candidate_codes = _codes(contrast, self.anchors.dtype)
        self.offset = len(self.anchors) if both_ways else 0  # of the numbers of columns
        self.lines = self.offset + (len(self.candidates) if both_ways else len(self.anchors))
        if both_ways:
            self.anchor_codes = self.candidate_codes = torch.cat([self.anchor_codes, self.candidate_codes])
        self._buffers: dict[str, Tensor] = {}
        self._strips: dict[int, list[bool]] = {}  # by the first row of a strip: which of its tiles hold a sample twice
        self._only: Tile | None = None

    def __iter__(self) -> Iterator[Tile]:
        """Rows, columns and cosines; overwritten by the next. Of a symmetric matrix only the tiles from the diagonal on."""
        if self._only is not None:
            yield self._only
            return
        for top in range(0, len(self.anchors), self.size):
            rows = slice(top, min(top + self.size, len(self.anchors)))
            for left in range(top if self.symmetric else self.columns.start, self.columns.stop, self.size):
                of_cols = slice(left, min(left + self.size, self.columns.stop))
                cols = slice(of_cols.start + self.offset, of_cols.stop + self.offset)
                shape = (rows.stop - rows.start, cols.stop - cols.start)
                # Autocast leaves products alone that are written into a buffer.
                room = self.buffer("sim", shape)
                tile = rows, cols, torch.mm(self.anchors[rows], self.candidates[of_cols].T, out=room)
                if shape == (len(self.anchors), self.columns.stop - self.columns.start):
                    self._only = tile  # which nothing overwrites
                yield tile

    def directions(self, rows: slice, cols: slice, sim: Tensor) -> Iterator[Tile]:
        """The tile as its rows see it and, where it stands for its mirror image too, as its columns do."""
        yield rows, cols, sim
        if (self.symmetric and rows != cols) or self.offset:
            yield cols, rows, sim.T

    def of_candidates(self, cols: slice) -> slice:
        """Which candidates the columns of a tile are."""
        return slice(cols.start - self.offset, cols.stop - self.offset)

    def buffer(self, name: str, shape: tuple[int, int]) -> Tensor:
        """(r, c) room for a tile; the same for the same name."""
        if name not in self._buffers:
            largest = min(self.size, len(self.anchors)) * min(self.size, len(self.candidates))
            self._buffers[name] = self.anchors.new_empty(largest)
        return self._buffers[name][: shape[0] * shape[1]].view(shape)

    def like(self, name: str, sim: Tensor) -> Tensor:
        """Room for a tile of the shape and layout of another: a transposed one stays fast only beside its like."""
        shape = (sim.shape[0], sim.shape[1])
        return self.buffer(name, shape) if sim.is_contiguous() else self.buffer(name, (shape[1], shape[0])).T

    def negatives(self, rows: slice, cols: slice, sim: Tensor, part: slice | None = None) -> Tensor | None:
        """(r, c) 1 for negatives in that part of the candidates, 0 elsewhere; None where all are 1."""
        row_codes, col_codes = self.anchor_codes[rows], self.candidate_codes[cols]
        inside = part is None or (part.start <= cols.start and cols.stop <= part.stop)
        if inside and self._all_differ(rows, cols):
            return None
        negative = torch.ne(row_codes[:, None], col_codes, out=self.like(f"negatives {inside}", sim))
        if part is not None and not inside:
            negative[:, : max(0, part.start - cols.start)] = 0
            negative[:, max(0, part.stop - cols.start) :] = 0
        return negative

    def _all_differ(self, rows: slice, cols: slice) -> bool:
        """Whether no row of a tile is known to show the sample of a column."""
        if not self.on_cpu or (self.symmetric and rows == cols):
            return False  # a device would have to be waited for; on the diagonal each row shows its own column's sample
        columns = self.columns
        if self.offset:
            columns = slice(self.offset, self.lines) if rows.start < self.offset else slice(0, self.offset)
        if rows.start not in self._strips:
            self._strips[rows.start] = self._shared_samples(rows, columns)
        return not self._strips[rows.start][(cols.start - columns.start) // self.size]

    def _shared_samples(self, rows: slice, columns: slice) -> list[bool]:
        """For each tile from these rows and any of the columns: whether a row is known to show the sample of a column."""
        row_codes, col_codes = self.anchor_codes[rows], self.candidate_codes[columns]
        shown = torch.zeros(len(self.anchors) + len(self.candidates), dtype=torch.bool)
        shown[row_codes[~row_codes.isnan()].long()] = True
        shared = shown[col_codes.nan_to_num(0).long()] & ~col_codes.isnan()
        return pad(shared, (0, -len(shared) % self.size)).view(-1, self.size).any(dim=1).tolist()

    def flagged(self, rule: PairRule, rows: slice, cols: slice, sim: Tensor, negative: Tensor | None) -> Tensor | None:
        """(r, c) 1 for flagged negatives, 0 elsewhere; None where all are 0."""
        if isinstance(rule, NoPairs):
            return None
        flags = rule.indicator(rows, cols, sim, self.like("flagged", sim))
        return flags if negative is None else flags.mul_(negative)


def _codes(contrast: Contrast, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Samples as small numbers that are compared as floats; nobody is NaN, which differs from everything."""
    anchors, candidates = contrast.anchors.sample, contrast.candidates.sample
    samples = anchors if candidates is anchors else torch.cat([anchors, candidates])
    values, place = samples.unique(return_inverse=True)
    # float32 counts exactly to 2^24.
    codes = place.to(torch.float64 if len(values) >= 2**24 else dtype).masked_fill(samples == NOBODY, torch.nan)
    return codes[: len(anchors)], codes[-len(candidates) :]
