"""The statistics of each anchor's negatives: all that an objective needs to know of the anchors × candidates matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from falseneg.contrast import Contrast
from falseneg.errors import UserError
from falseneg.rules import PairRule, Tier, Tiers, weighed_less
from falseneg.statistics import fused
from falseneg.statistics.both_ways import both_ways
from falseneg.statistics.dense import DenseSweep
from falseneg.statistics.pairs import Totals
from falseneg.statistics.tiled import TiledSweep
from falseneg.strategy import ELIMINATE, Strategy

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

    With `Tiers` each pair weighs as the strategy of its tier says, so an objective asks here and not the strategy.

    Attributes:
        log_sum: log of the sum over the negatives of w · exp(s/tau), where w is a flagged pair's weight among the negatives
            and 1 elsewhere; with gradient; −inf where nothing has weight. *Not* renormalised, so that parts of a row
            merge by logaddexp.
        count: int64, negatives of the denominator, before flagging.
        flagged: int64, flagged negatives.
        weight: the sum of w over the denominator: count − (1 − strategy.negative) · flagged, unless pairs outside the
            denominator are flagged.
        full: the weight that the mass is rescaled to: ``weight`` with what strategies that renormalise have taken from it.
        attracted: the sum of the flagged negatives' weights among the positives.
        attracted_sim: the sum of their cosines by these weights; with gradient.
    """

    log_sum: Tensor
    count: Tensor
    flagged: Tensor
    weight: Tensor
    full: Tensor
    attracted: Tensor
    attracted_sim: Tensor
    sweep: Sweep
    rule: PairRule
    tiers: tuple[Tier, ...]

    @property
    def attracts(self) -> bool:
        """Whether flagged negatives have a weight among the positives."""
        return any(strategy.positive > 0 for _, strategy in self.tiers)

    @property
    def filters(self) -> bool:
        """Whether flagged negatives have less weight among the negatives than others."""
        return any(strategy.negative < 1 for _, strategy in self.tiers)

    def log_sum_at(self, scale: float) -> Tensor:
        """(N,) `log_sum` with scale · s/tau instead of s/tau; one more sweep. For reweighting of hard negatives."""
        if isinstance(self.rule, Tiers):
            return _weighed(self.sweep, self.tiers, scale, False)[0]
        return self.sweep.totals([self.rule], scale, False)[0][0]

    def over_attracted(self, log_rest: Tensor) -> Tensor:
        """(N,) sum over the flagged negatives of softplus(log_rest − s/tau), by their weights among the positives.

        For attraction in which every positive has its own denominator. One more sweep for each tier that attracts.
        With gradient.
        """
        attracting = [(rule, strategy.positive) for rule, strategy in self.tiers if strategy.positive > 0]
        terms = (weight * self.sweep.over_flagged(rule, log_rest) for rule, weight in attracting)
        return sum(terms, torch.zeros_like(log_rest))


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
        rule: which negatives are flagged; `Tiers` say for each of theirs what happens to it.
        strategy: what happens to them.
        backend: "dense" stores the N × M matrix (the reference, fastest up to some 200 rows); "tiled" computes it
            tile by tile, forward and backward: O(N + M) memory, O(N · M · D) time; "auto" chooses between them by size.
            "fused" does as "tiled" in Triton kernels on an NVIDIA GPU, for float32 and bfloat16 and the rules `NoPairs`,
            `AboveThreshold` without a space and `SameGroup`; it leaves all others, `Tiers` among them, and `over_attracted`, to "tiled". It
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
    return _stats_of(lambda rule, own: sweep_of(contrast, tau, rule, own, backend), rules, strategy)


def sweep_of(
    contrast: Contrast, tau: Tensor, rules: Sequence[PairRule], strategy: Strategy, backend: Backend = "auto"
) -> Sweep:
    """What visits the pairs, for objectives that ask for something else than `NegativeStats`; takes what they take."""
    return _form(contrast, rules, backend)(contrast, tau, strategy)


def stats_of_contrasts(
    contrasts: Sequence[Contrast],
    tau: Sequence[Tensor],
    rules: Sequence[Sequence[PairRule]],
    strategy: Strategy,
    backend: Backend = "auto",
) -> list[list[NegativeStats]]:
    """`stats_of_levels` of several contrasts; the two directions of one large matrix share its tiles, on any device.

    Args:
        contrasts: of one step.
        tau: () or (N,) for each contrast.
        rules: the levels of each contrast.
        strategy: what happens to flagged negatives.
        backend: as in `negative_stats`; tiles are shared by "auto" and "tiled".
    """
    joined = both_ways(contrasts, tau, rules) if backend in ("auto", "tiled") else None
    small = len(contrasts[0].anchors) * len(contrasts[0].candidates) <= DENSE_PAIRS
    if joined is None or (backend == "auto" and small):
        each = zip(contrasts, tau, rules, strict=True)
        return [stats_of_levels(*one, strategy, backend) for one in each]
    both = _stats_of(lambda _, own: joined.sweep(own), joined.rules, strategy)
    cut, found, start = [len(contrast.anchors) for contrast in contrasts], [], 0
    for contrast, own_tau, own_rules, rows in zip(contrasts, tau, rules, cut, strict=True):
        found.append(
            [
                _own_part(stats, slice(start, start + rows), contrast, own_tau, rule, strategy)
                for stats, rule in zip(both, own_rules, strict=True)
            ]
        )
        start += rows
    return found


def _own_part(
    stats: NegativeStats, rows: slice, contrast: Contrast, tau: Tensor, rule: PairRule, strategy: Strategy
) -> NegativeStats:
    """What one contrast's rows are told of the statistics of both; further sweeps are of that contrast alone."""
    tiers = rule.apart(strategy) if isinstance(rule, Tiers) else ((rule, strategy),)
    own = ELIMINATE if isinstance(rule, Tiers) else strategy
    sweep = _Later(lambda: sweep_of(contrast, tau, [rule], own))
    names = ("log_sum", "count", "flagged", "weight", "full", "attracted", "attracted_sim")
    numbers: dict[str, Any] = {name: getattr(stats, name)[rows] for name in names}
    return replace(stats, **numbers, sweep=sweep, rule=rule, tiers=tiers)


class _Later:
    """A sweep that is made when something is asked of it: most objectives ask for no more than the statistics."""

    def __init__(self, make: Callable[[], Sweep]) -> None:
        self._make = make

    @cached_property
    def _sweep(self) -> Sweep:
        return self._make()

    def totals(self, rules: Sequence[PairRule], scale: float, cosines: bool) -> Totals:
        return self._sweep.totals(rules, scale, cosines)

    def over_flagged(self, rule: PairRule, log_rest: Tensor) -> Tensor:
        return self._sweep.over_flagged(rule, log_rest)


_Make = Callable[[Sequence[PairRule], Strategy], Sweep]
"""Makes the sweep of some rules, with the weights of a strategy."""


def _stats_of(make: _Make, rules: Sequence[PairRule], strategy: Strategy) -> list[NegativeStats]:
    """The statistics of each rule, of whatever the sweep visits."""
    if any(isinstance(rule, Tiers) for rule in rules):
        return [
            _stats_of_tiers(make, rule, strategy) if isinstance(rule, Tiers) else _stats_of(make, [rule], strategy)[0]
            for rule in rules
        ]
    sweep, found = make(rules, strategy), []
    for rule, totals in zip(rules, zip(*sweep.totals(rules, 1.0, strategy.positive > 0), strict=True), strict=True):
        found.append(_stats(totals[0], [totals[1:]], sweep, rule, ((rule, strategy),)))
    return found


_OfTier = tuple[Tensor, Tensor, Tensor, Tensor]
"""The further `Totals` of one tier, (N,) each."""


def _stats(
    log_sum: Tensor, of_tiers: Sequence[_OfTier], sweep: Sweep, rule: PairRule, tiers: tuple[Tier, ...]
) -> NegativeStats:
    count = of_tiers[0][1]
    flagged, attracted, attracted_sim = torch.zeros_like(count), torch.zeros_like(log_sum), torch.zeros_like(log_sum)
    weight = full = count.to(log_sum.dtype)
    for (flagged_sim, _, flagged_here, of_count), (_, strategy) in zip(of_tiers, tiers, strict=True):
        flagged = flagged + flagged_here
        taken = (1 - strategy.negative) * of_count.to(log_sum.dtype)
        weight = weight - taken
        full = full if strategy.renormalise else full - taken
        if strategy.positive > 0:
            attracted = attracted + strategy.positive * flagged_here.to(log_sum.dtype)
            attracted_sim = attracted_sim + strategy.positive * flagged_sim
    return NegativeStats(log_sum, count, flagged, weight, full, attracted, attracted_sim, sweep, rule, tiers)


def _stats_of_tiers(make: _Make, rule: Tiers, strategy: Strategy) -> NegativeStats:
    """The statistics of tiers, whose weights differ from pair to pair."""
    tiers = rule.apart(strategy)
    sweep = make([rule], ELIMINATE)
    log_sum, of_tiers = _weighed(sweep, tiers, 1.0, any(each.positive > 0 for _, each in tiers))
    return _stats(log_sum, of_tiers, sweep, rule, tiers)


def _weighed(sweep: Sweep, tiers: Sequence[Tier], scale: float, cosines: bool) -> tuple[Tensor, list[_OfTier]]:
    """(N,) log of the weighed sum, and the sums of each tier.

    The pairs of one weight are summed by themselves, in one visit, and these sums put together: only ever added, as
    merging parts of a row, so that any backend that leaves out flagged pairs will do, and nothing is lost by cancelling.

    Args:
        sweep: a backend that gives flagged pairs no weight.
        tiers: no pair is in two of them.
        scale: of the logits.
        cosines: whether the sums of flagged cosines are needed.
    """
    lighter, whole = weighed_less(tiers)
    rules = {id(rule): rule for rule in [*(rule for rule, _ in tiers), whole]}
    partly = [(~rule, weight) for rule, weight in lighter if weight > 0]
    every = [*rules.values(), *(others for others, _ in partly)]
    totals = list(zip(*sweep.totals(every, scale, cosines), strict=True))
    of_rule = dict(zip(rules, totals, strict=False))
    parts = [of_rule[id(whole)][0]]
    parts += [total[0] + math.log(weight) for total, (_, weight) in zip(totals[len(rules) :], partly, strict=True)]
    return _merged(parts), [of_rule[id(rule)][1:] for rule, _ in tiers]


def _merged(parts: Sequence[Tensor]) -> Tensor:
    """(N,) the log of the sum of what these are the logs of; −inf, and without gradient, where there is nothing."""
    if len(parts) == 1:
        return parts[0]
    stacked = torch.stack(list(parts))
    empty = (stacked == -torch.inf).all(dim=0)
    return stacked.masked_fill(empty, 0).logsumexp(dim=0).masked_fill(empty, -torch.inf)


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
