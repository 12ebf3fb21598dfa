"""Which negatives are suspected to be false: a closed set of small rules that any tile of the matrix evaluates itself.

A rule is frozen data without gradient. It may say True about a pair that is not a negative: the statistics mask those.
Letters: N anchors, M candidates, R clusterings, K listed pairs; a tile has r rows and c columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_

import torch
from torch import Tensor

from falseneg.contrast import Space
from falseneg.errors import UserError
from falseneg.strategy import Strategy


class PairRule:
    """Which pairs (anchor i, candidate j) are flagged. Rules combine with ``&`` and ``|``; ``~`` flags all other pairs."""

    def tile(self, rows: slice, cols: slice, sim: Tensor) -> Tensor:
        """The rule on one tile.

        Args:
            rows: the anchors of the tile, with start and stop.
            cols: the candidates of the tile, with start and stop.
            sim: (r, c) the contrast's own cosines there, without gradient.

        Returns:
            (r, c) bool.
        """
        raise NotImplementedError

    def indicator(self, rows: slice, cols: slice, sim: Tensor, out: Tensor) -> Tensor:
        """The same as numbers, 1 for flagged and 0 elsewhere, written into ``out``, which has the type of ``sim``."""
        return out.copy_(self.tile(rows, cols, sim))

    def __and__(self, other: PairRule) -> PairRule:
        return _Both(self, other)

    def __or__(self, other: PairRule) -> PairRule:
        return _Either(self, other)

    def __invert__(self) -> PairRule:
        return _Not(self)


@dataclass(frozen=True, eq=False)
class NoPairs(PairRule):
    """Flags nothing."""

    def tile(self, rows: slice, cols: slice, sim: Tensor) -> Tensor:
        return torch.zeros_like(sim, dtype=torch.bool)


@dataclass(frozen=True, eq=False)
class AboveThreshold(PairRule):
    """Flags pairs whose similarity is above the anchor's threshold, strictly.

    Args:
        threshold: () or (N,) cosines.
        space: where to compare; None means the contrast's own similarity.
    """

    threshold: Tensor
    space: Space | None = None

    def tile(self, rows: slice, cols: slice, sim: Tensor) -> Tensor:
        return self._score(rows, cols, sim) > self._threshold(rows)

    def indicator(self, rows: slice, cols: slice, sim: Tensor, out: Tensor) -> Tensor:
        return torch.gt(self._score(rows, cols, sim), self._threshold(rows), out=out)

    def _score(self, rows: slice, cols: slice, sim: Tensor) -> Tensor:
        return sim if self.space is None else space_scores(self.space, rows, cols)

    def _threshold(self, rows: slice) -> Tensor:
        return self.threshold if self.threshold.ndim == 0 else self.threshold[rows, None]


@dataclass(frozen=True, eq=False)
class SameGroup(PairRule):
    """Flags pairs that share a group in *any* of R groupings; group −1 is unassigned and shared with nobody.

    Args:
        anchor: (N, R) int64 groups of the anchors.
        candidate: (M, R) int64 groups of the candidates.
    """

    anchor: Tensor
    candidate: Tensor

    def tile(self, rows: slice, cols: slice, sim: Tensor) -> Tensor:
        flagged = torch.zeros_like(sim, dtype=torch.bool)
        for of_anchor, of_candidate in zip(self.anchor[rows].unbind(1), self.candidate[cols].unbind(1), strict=True):
            flagged |= (of_anchor[:, None] == of_candidate) & (of_anchor[:, None] >= 0)
        return flagged

    def indicator(self, rows: slice, cols: slice, sim: Tensor, out: Tensor) -> Tensor:
        if self._floats is None or self.anchor.shape[1] != 1:
            return super().indicator(rows, cols, sim, out)
        anchor, candidate = self._floats
        return torch.eq(anchor[rows], candidate[cols, 0], out=out)

    @cached_property
    def _floats(self) -> tuple[Tensor, Tensor] | None:
        """The groups as floats, NaN for unassigned, which equals nothing; None where float32 would not be exact.

        On a CPU they are compared four times as fast; a GPU would have to be waited for, to see how large they are.
        """
        both = self.anchor, self.candidate
        if self.anchor.device.type != "cpu" or any(len(side) and int(side.max()) >= 2**24 for side in both):
            return None
        anchor, candidate = (side.float().masked_fill(side < 0, torch.nan) for side in both)
        return anchor, candidate


@dataclass(frozen=True, eq=False)
class Listed(PairRule):
    """Flags listed pairs: exact top-k, precomputed neighbours.

    Args:
        offsets: (N + 1,) int64; the pairs of anchor i are ``columns[offsets[i]:offsets[i + 1]]``.
        columns: (K,) int64 candidates, ascending within each anchor.
    """

    offsets: Tensor
    columns: Tensor

    @staticmethod
    def from_pairs(anchor: Tensor, column: Tensor, anchors: int) -> Listed:
        """The rule that flags these pairs, which may come in any order: O(K log K), without waiting for the device.

        Args:
            anchor: (K,) int64, the anchor of each pair.
            column: (K,) int64, its candidate.
            anchors: N, how many anchors the contrast has.
        """
        order = column.argsort(stable=True)
        order = order[anchor[order].argsort(stable=True)]
        offsets = torch.zeros(anchors + 1, dtype=torch.int64, device=anchor.device)
        offsets.index_add_(0, anchor + 1, torch.ones_like(anchor))
        return Listed(offsets.cumsum(0), column[order])

    def tile(self, rows: slice, cols: slice, sim: Tensor) -> Tensor:
        listed = slice(self._bounds[rows.start], self._bounds[rows.stop])
        lines, columns = self._lines[listed] - rows.start, self.columns[listed] - cols.start
        height, width = sim.shape
        inside = (columns >= 0) & (columns < width)
        # One cell more, for the pairs outside: to pick those inside, a GPU would have to be waited for.
        place = torch.where(inside, lines * width + columns, height * width)
        cells = torch.zeros(height * width + 1, dtype=torch.bool, device=sim.device).index_fill_(0, place, True)
        return cells[:-1].view(height, width)

    @cached_property
    def _bounds(self) -> list[int]:
        """The offsets on the host: all that a GPU is waited for."""
        bounds: list[int] = self.offsets.tolist()
        return bounds

    @cached_property
    def _lines(self) -> Tensor:
        """(K,) the anchor of each pair."""
        anchors = torch.arange(len(self.offsets) - 1, device=self.offsets.device)
        return anchors.repeat_interleave(self.offsets.diff(), output_size=len(self.columns))


@dataclass(frozen=True, eq=False)
class _Both(PairRule):
    first: PairRule
    second: PairRule

    def tile(self, rows: slice, cols: slice, sim: Tensor) -> Tensor:
        return self.first.tile(rows, cols, sim) & self.second.tile(rows, cols, sim)


@dataclass(frozen=True, eq=False)
class _Either(PairRule):
    first: PairRule
    second: PairRule

    def tile(self, rows: slice, cols: slice, sim: Tensor) -> Tensor:
        return self.first.tile(rows, cols, sim) | self.second.tile(rows, cols, sim)


@dataclass(frozen=True, eq=False)
class _Not(PairRule):
    rule: PairRule

    def tile(self, rows: slice, cols: slice, sim: Tensor) -> Tensor:
        return ~self.rule.tile(rows, cols, sim)


Tier = tuple[PairRule, Strategy]
"""Flagged pairs, and what happens to them."""


def weighed_less(tiers: Sequence[Tier]) -> tuple[list[tuple[PairRule, float]], PairRule]:
    """The tiers whose pairs weigh less than 1 among the negatives, with that weight, and the rule of all their pairs."""
    lighter = [(rule, strategy.negative) for rule, strategy in tiers if strategy.negative < 1]
    return lighter, reduce(or_, [rule for rule, _ in lighter]) if lighter else NoPairs()


@dataclass(frozen=True, eq=False)
class Tiers(PairRule):
    """Rules with a strategy each: attract the surest pairs, eliminate the next. A pair takes the first tier that flags it.

    As a rule by itself it flags what any of them does.

    Args:
        tiers: at least one rule with its strategy; None stands for the strategy of the run.

    Raises:
        UserError: there is no tier, or one consists of tiers.
    """

    tiers: tuple[tuple[PairRule, Strategy | None], ...]

    def __post_init__(self) -> None:
        if not self.tiers or any(isinstance(rule, Tiers) for rule, _ in self.tiers):
            raise UserError("Tiers: give at least one pair of a rule and a strategy, and no tiers among the rules")

    def tile(self, rows: slice, cols: slice, sim: Tensor) -> Tensor:
        return self._union.tile(rows, cols, sim)

    def apart(self, strategy: Strategy) -> tuple[Tier, ...]:
        """The tiers without the pairs of those before them: a pair is in one at most.

        Args:
            strategy: of the run.
        """
        apart: list[Tier] = []
        before: PairRule | None = None
        for rule, own in self.tiers:
            apart.append((rule if before is None else rule & ~before, own or strategy))
            before = rule if before is None else before | rule
        return tuple(apart)

    @cached_property
    def _union(self) -> PairRule:
        return reduce(or_, (rule for rule, _ in self.tiers))


@torch.no_grad()
def space_scores(space: Space, rows: slice, cols: slice) -> Tensor:
    """(r, c) scores of a tile in another space: the largest cosine over the anchor's S queries.

    Computed once for each image, however many of its views are anchors: O(S · E) for each pair (image, candidate).
    """
    images, of_image = space.query_of[rows].unique(return_inverse=True)
    queries, candidates = at_least_float32(space.queries[images]), at_least_float32(space.candidates[cols])
    with torch.autocast(queries.device.type, enabled=False):
        scores = queries[:, 0] @ candidates.T
        of_view = torch.empty_like(scores)
        for view in range(1, queries.shape[1]):
            torch.maximum(scores, torch.mm(queries[:, view], candidates.T, out=of_view), out=scores)
    return scores[of_image]


def at_least_float32(x: Tensor) -> Tensor:
    """The same numbers in float32, or in float64 if they are: products of them are then accumulated exactly enough."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
