"""The statistics of each anchor's negatives: all that an objective needs to know of the anchors × candidates matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from falseneg.contrast import Contrast
from falseneg.errors import UserError
from falseneg.rules import PairRule
from falseneg.statistics.dense import DenseSweep
from falseneg.statistics.pairs import Totals
from falseneg.statistics.tiled import TiledSweep
from falseneg.strategy import Strategy

DENSE_PAIRS = 2**16
"""Up to this many pairs the dense backend is the faster one."""


class Sweep(Protocol):
    """One way of visiting all pairs (anchor, candidate); a backend."""

    def totals(self, scale: float) -> Totals:
        """The totals with log_sum at scale · s/tau; it and flagged_sim with gradient."""
        ...

    def over_flagged(self, log_rest: Tensor) -> Tensor:
        """(N,) sum of softplus(log_rest − s/tau) over the flagged negatives, with gradient."""
        ...


@dataclass(frozen=True, eq=False)
class NegativeStats:
    """What an objective needs of each row of the anchors × candidates matrix, each (N,).

    Attributes:
        log_sum: log of the sum over the negatives of w · exp(s/tau), where w is ``strategy.negative`` on flagged pairs
            and 1 elsewhere; with gradient; −inf where nothing has weight. *Not* renormalised, so that parts of a row
            merge by logaddexp.
        flagged_sim: the sum of the cosines of the flagged negatives; with gradient.
        count: int64, negatives of the denominator, before flagging.
        flagged: int64, flagged negatives.
        weight: the sum of w over the denominator: count − (1 − strategy.negative) · flagged, unless pairs outside the
            denominator are flagged.
    """

    log_sum: Tensor
    flagged_sim: Tensor
    count: Tensor
    flagged: Tensor
    weight: Tensor
    sweep: Sweep

    def log_sum_at(self, scale: float) -> Tensor:
        """(N,) `log_sum` with scale · s/tau in the place of s/tau; one more sweep. For reweighting of hard negatives."""
        return self.sweep.totals(scale)[0]

    def over_flagged(self, log_rest: Tensor) -> Tensor:
        """(N,) sum over the flagged negatives of softplus(log_rest − s/tau); one more sweep. With gradient.

        For attraction in which every positive has a denominator of its own.
        """
        return self.sweep.over_flagged(log_rest)


def negative_stats(
    contrast: Contrast,
    tau: Tensor,
    rule: PairRule,
    strategy: Strategy,
    backend: Literal["auto", "dense", "tiled"] = "auto",
) -> NegativeStats:
    """Visit all pairs of a contrast once and keep what the objectives need.

    Embeddings in less than float32 are multiplied as given and accumulated in float32; float64 stays float64.

    Args:
        contrast: N anchors against M candidates of D dimensions.
        tau: () or (N,) temperature, positive.
        rule: which negatives are flagged.
        strategy: what happens to them.
        backend: "dense" stores the N × M matrix (the reference, fastest up to some 200 rows); "tiled" computes it
            tile by tile, forward and backward: O(N + M) memory, O(N · M · D) time; "auto" chooses by size.

    Raises:
        UserError: the backend is unknown.
    """
    if backend not in ("auto", "dense", "tiled"):
        raise UserError(f"backend is {backend!r}; choose 'auto', 'dense' or 'tiled'")
    small = len(contrast.anchors) * len(contrast.candidates) <= DENSE_PAIRS
    form = DenseSweep if backend == "dense" or (backend == "auto" and small) else TiledSweep
    sweep = form(contrast, tau, rule, strategy)
    log_sum, flagged_sim, count, flagged, flagged_of_count = sweep.totals(1.0)
    weight = count - (1 - strategy.negative) * flagged_of_count.to(log_sum.dtype)
    return NegativeStats(log_sum, flagged_sim, count, flagged, weight, sweep)
