"""Two contrasts that compare the same rows, one the other's transpose: each tile is computed once for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from falseneg.contrast import Contrast
from falseneg.rules import NoPairs, PairRule


def transposed(contrasts: Sequence[Contrast]) -> bool:
    """Whether these are the two directions of one matrix, all of whose columns are pushed away."""
    if len(contrasts) != 2:
        return False
    first, second = contrasts
    mirrored = first.anchors is second.candidates and first.candidates is second.anchors
    return mirrored and first.anchors is not first.candidates and first.denominator is second.denominator is None


def common_temperature(first: Tensor, second: Tensor, anchors: int, candidates: int) -> Tensor:
    """() or (N + M,): of both directions. Of two equal ones the first, which alone then has a gradient.

    Equal ones are told on a CPU only: another device would have to be waited for.
    """
    if first is second or (first.ndim == second.ndim == 0 and first.device.type == "cpu" and bool(first == second)):
        return first
    return torch.cat([first.expand(anchors), second.expand(candidates)])


def both_rules(first: PairRule, second: PairRule, anchors: int) -> PairRule:
    """The rule of a sweep that sees each tile both ways."""
    return first if isinstance(first, NoPairs) and isinstance(second, NoPairs) else _BothWays(first, second, anchors)


@dataclass(frozen=True, eq=False)
class _BothWays(PairRule):
    """One rule for the tiles as they are, another for the transposed ones, whose rows begin with number ``anchors``."""

    first: PairRule
    second: PairRule
    anchors: int

    def tile(self, rows: slice, cols: slice, sim: Tensor) -> Tensor:
        rule, rows, cols = self._of(rows, cols)
        return rule.tile(rows, cols, sim)

    def indicator(self, rows: slice, cols: slice, sim: Tensor, out: Tensor) -> Tensor:
        rule, rows, cols = self._of(rows, cols)
        return rule.indicator(rows, cols, sim, out)

    def _of(self, rows: slice, cols: slice) -> tuple[PairRule, slice, slice]:
        less = self.anchors
        if rows.start < less:
            return self.first, rows, slice(cols.start - less, cols.stop - less)
        return self.second, slice(rows.start - less, rows.stop - less), cols
