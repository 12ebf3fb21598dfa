"""The statistics of each anchor's negatives: all that an objective needs to know of the anchors × candidates matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

from torch import Tensor

from falseneg.contrast import Contrast
from falseneg.errors import UserError
from falseneg.rules import PairRule
from falseneg.statistics import fused
from falseneg.statistics.dense import DenseSweep
from falseneg.statistics.pairs import Totals
from falseneg.statistics.tiled import TiledSweep
from falseneg.strategy import Strategy

Backend = Literal["auto", "dense", "tiled", "fused"]
DENSE_PAIRS = 2**16
"""Up to this many pairs the dense backend is the faster one."""
AUTO_MAY_FUSE = False
"""A setting: whether "auto", which training uses, takes the fused backend on a GPU; False until it has been measured on one.

To try it: ``falseneg.statistics.negatives.AUTO_MAY_FUSE = True`` before training (docs/speed.md).
"""


class Sweep(Protocol):
    """One way of visiting all pairs (anchor, candidate); a backend."""

    def totals(self, rules: Sequence[PairRule], scale: float, cosines: bool) -> Totals:
        """(L, N) totals of L rules, with log_sum at scale · s/tau; it and flagged_sim with gradient.

        Without ``cosines`` flagged_sim may be left at 0.
        """
        ...

    def over_flagged(self, rule: PairRule, log_rest: Tensor) -> Tensor:
        """(N,) sum of softplus(log_rest − s/tau) over the flagged negatives, with gradient."""
        ...


@dataclass(frozen=True, eq=False)
class NegativeStats:
    """What an objective needs of each row of the anchors × candidates matrix, each (N,).

    Attributes:
        log_sum: log of the sum over the negatives of w · exp(s/tau), where w is ``strategy.negative`` on flagged pairs
            and 1 elsewhere; with gradient; −inf where nothing has weight. *Not* renormalised, so that parts of a row
            merge by logaddexp.
        count: int64, negatives of the denominator, before flagging.
        flagged: int64, flagged negatives.
        weight: the sum of w over the denominator: count − (1 − strategy.negative) · flagged, unless pairs outside the
            denominator are flagged.
    """

    log_sum: Tensor
    count: Tensor
    flagged: Tensor
    weight: Tensor
    sweep: Sweep
    rule: PairRule
    summed: Tensor | None

    @cached_property
    def flagged_sim(self) -> Tensor:
        """(N,) the sum of the cosines of the flagged negatives; with gradient. One more sweep if none are attracted."""
        return self.sweep.totals([self.rule], 1.0, True)[1][0] if self.summed is None else self.summed

    def log_sum_at(self, scale: float) -> Tensor:
        """(N,) `log_sum` with scale · s/tau instead of s/tau; one more sweep. For reweighting of hard negatives."""
        return self.sweep.totals([self.rule], scale, False)[0][0]

    def over_flagged(self, log_rest: Tensor) -> Tensor:
        """(N,) sum over the flagged negatives of softplus(log_rest − s/tau); one more sweep. With gradient.

        For attraction in which every positive has its own denominator.
        """
        return self.sweep.over_flagged(self.rule, log_rest)


def negative_stats(
    contrast: Contrast,
    tau: Tensor,
    rule: PairRule,
    strategy: Strategy,
    backend: Backend = "auto",
) -> NegativeStats:
    """Visit all pairs of a contrast once and keep what the objectives need.

    Embeddings in less than float32 are multiplied as given and accumulated in float32; float64 stays float64.

    Args:
        contrast: N anchors against M candidates of D dimensions.
        tau: () or (N,) temperature, positive.
        rule: which negatives are flagged.
        strategy: what happens to them.
        backend: "dense" stores the N × M matrix (the reference, fastest up to some 200 rows); "tiled" computes it
            tile by tile, forward and backward: O(N + M) memory, O(N · M · D) time; "auto" chooses between them by size.
            "fused" does as "tiled" in Triton kernels on an NVIDIA GPU, for float32 and bfloat16 and the rules `NoPairs`,
            `AboveThreshold` without a space and `SameGroup`; it leaves all others, and `over_flagged`, to "tiled". It
            has been checked in Triton's interpreter and compiled ahead of time for such GPUs, but has not yet run on one.

    Raises:
        UserError: the backend is unknown, or the fused one does not run on the device of the embeddings.
    """
    return stats_of_levels(contrast, tau, [rule], strategy, backend)[0]


def stats_of_levels(
    contrast: Contrast, tau: Tensor, rules: Sequence[PairRule], strategy: Strategy, backend: Backend = "auto"
) -> list[NegativeStats]:
    """`negative_stats` of several rules, which share the visit of each pair: far cheaper than one after another.

    Takes what `negative_stats` takes, and refuses the same, but any number of rules; gives the statistics of each.
    """
    sweep = sweep_of(contrast, tau, rules, strategy, backend)
    found, attracts = [], strategy.positive > 0
    for rule, totals in zip(rules, zip(*sweep.totals(rules, 1.0, attracts), strict=True), strict=True):
        log_sum, flagged_sim, count, flagged, flagged_of_count = totals
        weight = count - (1 - strategy.negative) * flagged_of_count.to(log_sum.dtype)
        summed = flagged_sim if attracts else None
        found.append(NegativeStats(log_sum, count, flagged, weight, sweep, rule, summed))
    return found


def sweep_of(
    contrast: Contrast, tau: Tensor, rules: Sequence[PairRule], strategy: Strategy, backend: Backend = "auto"
) -> Sweep:
    """What visits the pairs, for objectives that ask for something else than `NegativeStats`; takes what they take."""
    return _form(contrast, rules, backend)(contrast, tau, strategy)


def _form(
    contrast: Contrast, rules: Sequence[PairRule], backend: str
) -> type[DenseSweep] | type[TiledSweep] | type[fused.FusedSweep]:
    """The backend of that name; "auto" and "fused" look at the contrast, and "fused" at the rules."""
    if backend not in ("auto", "dense", "tiled", "fused"):
        raise UserError(f"backend is {backend!r}; choose 'auto', 'dense' or 'tiled', or 'fused' on a GPU")
    small = len(contrast.anchors) * len(contrast.candidates) <= DENSE_PAIRS
    if backend == "dense" or (backend == "auto" and small):
        return DenseSweep
    device = contrast.anchors.z.device
    if backend == "fused" and not fused.runs_on(device):
        raise UserError(
            f"backend is 'fused' for embeddings on {device}; it needs Triton and an NVIDIA GPU of compute capability "
            "8.0 or more, elsewhere choose 'auto'"
        )
    wanted = backend == "fused" or (backend == "auto" and AUTO_MAY_FUSE and fused.runs_on(device))
    return fused.FusedSweep if wanted and all(fused.knows(contrast, rule) for rule in rules) else TiledSweep
