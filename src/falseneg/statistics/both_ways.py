"""Two contrasts that compare the same rows, one the other's transpose: each tile is computed once for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from falseneg.contrast import Contrast
from falseneg.rules import NoPairs, PairRule, Tiers
from falseneg.statistics.tiled import TiledSweep
from falseneg.strategy import Strategy


@dataclass(frozen=True, eq=False)
class BothWays:
    """What one sweep needs for two directions: the rows of the second follow those of the first.

    Attributes:
        contrast: the first direction.
        tau: () or (N + M,).
        rules: the levels of both.
    """

    contrast: Contrast
    tau: Tensor
    rules: list[PairRule]

    def sweep(self, strategy: Strategy) -> TiledSweep:
        return TiledSweep(self.contrast, self.tau, strategy, both_ways=True)


def both_ways(
    contrasts: Sequence[Contrast], tau: Sequence[Tensor], rules: Sequence[Sequence[PairRule]]
) -> BothWays | None:
    """The two directions as one; None unless these are the two directions of one matrix, with tiers of one kind.

    Args:
        contrasts: of one step.
        tau: () or (N,) for each.
        rules: the levels of each.
    """
    if not (_transposed(contrasts) and len(rules[0]) == len(rules[1])):
        return None
    first, anchors = contrasts[0], len(contrasts[0].anchors)
    joined = [_joined(one, other, anchors) for one, other in zip(rules[0], rules[1], strict=True)]
    found = [rule for rule in joined if rule is not None]
    if len(found) < len(joined):
        return None
    return BothWays(first, _common(tau[0], tau[1], anchors, len(first.candidates)), found)


def _transposed(contrasts: Sequence[Contrast]) -> bool:
    """Whether these are the two directions of one matrix, all of whose columns are pushed away."""
    if len(contrasts) != 2:
        return False
    first, second = contrasts
    mirrored = first.anchors is second.candidates and first.candidates is second.anchors
    return mirrored and first.anchors is not first.candidates and first.denominator is second.denominator is None


def _common(first: Tensor, second: Tensor, anchors: int, candidates: int) -> Tensor:
    """() or (N + M,): the temperatures of both. Of two equal ones the first, which alone then has a gradient.

    Equal ones are told on a CPU only: another device would have to be waited for.
    """
    if first is second or (first.ndim == second.ndim == 0 and first.device.type == "cpu" and bool(first == second)):
        return first
    return torch.cat([first.expand(anchors), second.expand(candidates)])


def _joined(first: PairRule, second: PairRule, anchors: int) -> PairRule | None:
    """The rule of both directions; None where there is none, because tiers have strategies of different kinds."""
    if isinstance(first, NoPairs) and isinstance(second, NoPairs):
        return first
    if not (isinstance(first, Tiers) or isinstance(second, Tiers)):
        return _BothWays(first, second, anchors)
    if not (isinstance(first, Tiers) and isinstance(second, Tiers)):
        return None
    if [strategy for _, strategy in first.tiers] != [strategy for _, strategy in second.tiers]:
        return None
    pairs = zip(first.tiers, second.tiers, strict=True)
    return Tiers(tuple((_BothWays(one, other, anchors), strategy) for (one, strategy), (other, _) in pairs))


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
