"""The backend that never stores the matrix: each tile is computed, used and dropped, and computed again for the gradient.

Forward and backward visit the same tiles, so that a pair at the very threshold does not change sides between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from falseneg.contrast import Contrast
from falseneg.rules import PairRule
from falseneg.statistics.dense import SOFTPLUS_IS_LINEAR
from falseneg.statistics.pairs import Totals
from falseneg.statistics.tiles import Tile, Tiles
from falseneg.strategy import Strategy

HIGHEST = 60.0
"""The largest exponent of e: a thousand million terms of it do not overflow in float32."""
UNDERFLOWN = 1e-26
"""A row with a smaller sum may have lost terms that count; it is summed again, relative to its largest term."""


class TiledSweep:
    """Tile after tile: O(N + M) memory. Of an in-batch matrix each tile is computed once for its rows and its columns."""

    def __init__(self, contrast: Contrast, tau: Tensor, rule: PairRule, strategy: Strategy) -> None:
        self.rule, self.strategy = rule, strategy
        self.matrix = Tiles(contrast)
        self.denominator = None if contrast.denominator is None else contrast.columns(contrast.denominator)
        self.one_temperature = tau.ndim == 0
        self.tau = tau.to(self.matrix.anchors.dtype).expand(len(contrast.anchors))

    def totals(self, scale: float) -> Totals:
        totals: Totals = _Totals.apply(self.matrix.anchors, self.matrix.candidates, self.tau, self, scale)
        return totals

    def over_flagged(self, log_rest: Tensor) -> Tensor:
        terms: Tensor = _OverFlagged.apply(self.matrix.anchors, self.matrix.candidates, self.tau, log_rest, self)
        return terms

    def masks(self, rows: slice, cols: slice, sim: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """(r, c) the pairs that are pushed away, None for all, and the flagged negatives, None for none."""
        negative = self.matrix.negatives(rows, cols, sim)
        flagged = self.matrix.flagged(self.rule, rows, cols, sim, negative)
        if self.denominator is not None:
            negative = self.matrix.negatives(rows, cols, sim, self.denominator)
        return negative, flagged

    def weigh_(self, terms: Tensor, pushed: Tensor | None, flagged: Tensor | None) -> Tensor:
        """(r, c) terms times the weights of their pairs, in their place.

        Weighed here, before anything is summed: a flagged term is often the largest of its row, and taking it from a
        finished sum would leave nothing but rounding. A weight of 0 leaves exactly 0.
        """
        if pushed is not None:
            terms.mul_(pushed)
        if flagged is not None and self.strategy.negative < 1:
            terms.addcmul_(terms, flagged, value=self.strategy.negative - 1)
        return terms


class _Powers:
    """The mass e^(scale·s/tau − shift) of each pair as a power of 2, which is twice as fast: 2^(steep·s − lift).

    Args:
        sweep: whose temperatures they are.
        tau: (N,) temperatures.
        scale: of the logits.
        shift: (N,) what no logit of weight exceeds; None for a bound that suits all cosines.

    Attributes:
        shift: (N,) what the logits are taken relative to.
        shared: a pair has the same mass in its row as in its column.
    """

    def __init__(self, sweep: TiledSweep, tau: Tensor, scale: float, shift: Tensor | None = None) -> None:
        self.bounded = shift is not None
        self.shared = sweep.one_temperature and not self.bounded
        self.shift = (scale / tau - HIGHEST).clamp(min=0) if shift is None else shift
        self.steep, self.lift = scale / tau / math.log(2), self.shift / math.log(2)
        self.matrix = sweep.matrix

    def directions(self, tile: Tile) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        """Rows, columns, cosines and mass of a tile, in each direction in which it counts."""
        mass = None
        for rows, cols, sim in self.matrix.directions(*tile):
            mass = mass.T if mass is not None and self.shared else self._mass(rows, sim)
            yield rows, cols, sim, mass

    def _mass(self, rows: slice, sim: Tensor) -> Tensor:
        exponents = torch.mul(sim, self.steep[rows, None], out=self.matrix.like("mass", sim))
        exponents.sub_(self.lift[rows, None])
        # Pairs without weight may exceed the bound; what is finite is dropped by a factor of 0.
        return (exponents.clamp_(max=1) if self.bounded else exponents).exp2_()


class _Totals(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchors: Tensor, candidates: Tensor, tau: Tensor, sweep: TiledSweep, scale: float) -> Totals:
        with torch.autocast(anchors.device.type, enabled=False):
            powers = _Powers(sweep, tau, scale)
            total, *numbers = _sums(sweep, powers)
            if _unsafe(total, numbers, sweep.strategy):
                powers = _Powers(sweep, tau, scale, scale * _largest(sweep) / tau)
                total, *numbers = _sums(sweep, powers)
        log_sum = (total.log() + powers.shift).to(anchors.dtype)
        flagged_sim, *counts = numbers[0].to(anchors.dtype), *(number.long() for number in numbers[1:])
        ctx.save_for_backward(anchors, candidates, tau, log_sum)
        ctx.sweep, ctx.scale, ctx.bounded = sweep, scale, powers.bounded
        ctx.mark_non_differentiable(*counts)
        return log_sum, flagged_sim, counts[0], counts[1], counts[2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_log_sum: Tensor, of_flagged_sim: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        _, _, tau, log_sum = ctx.saved_tensors
        sweep, of_tau = ctx.sweep, torch.zeros_like(tau)
        # A row without negatives has no gradient: all its pairs weigh 0.
        log_sum = log_sum.masked_fill(log_sum == -torch.inf, 0)
        powers = _Powers(sweep, tau, ctx.scale, log_sum if ctx.bounded else None)
        of_mass = of_log_sum * (powers.shift - log_sum).exp() * ctx.scale / tau
        attracts = bool(of_flagged_sim.any())

        def of_sim(rows: slice, cols: slice, sim: Tensor, mass: Tensor, out: Tensor) -> None:
            pushed, flagged = sweep.masks(rows, cols, sim)
            # Weighed first: the mass of a pair that counts is at most its row's sum, that of another has no such bound.
            gradient = sweep.weigh_(out.copy_(mass), pushed, flagged).mul_(of_mass[rows, None])
            if ctx.needs_input_grad[2]:
                of_tau[rows] -= torch.mul(gradient, sim, out=sweep.matrix.like("of tau", sim)).sum(dim=1) / tau[rows]
            if flagged is not None and attracts:
                gradient.addcmul_(flagged, of_flagged_sim[rows, None])

        return *_gradients(ctx, powers, of_sim), of_tau, None, None


def _sums(sweep: TiledSweep, powers: _Powers) -> Tensor:
    """(5, N) float64: the sums of mass and of flagged cosines; how many are pushed away, how many flagged, how many both."""
    matrix = sweep.matrix
    sums = torch.zeros(5, len(matrix.anchors), dtype=torch.float64, device=matrix.anchors.device)
    total, flagged_sim, count, flagged_count, flagged_of_count = sums
    for tile in matrix:
        for rows, cols, sim, mass in powers.directions(tile):
            pushed, flagged = sweep.masks(rows, cols, sim)
            room = matrix.like("weighed", sim)
            count[rows] += sim.shape[1] if pushed is None else pushed.sum(dim=1)
            if flagged is not None:
                flagged_sim[rows] += torch.mul(sim, flagged, out=room).sum(dim=1)
                flagged_count[rows] += flagged.sum(dim=1)
                if sweep.denominator is not None:
                    both = flagged if pushed is None else torch.mul(flagged, pushed, out=room)
                    flagged_of_count[rows] += both.sum(dim=1)
            if pushed is not None or flagged is not None:
                mass = sweep.weigh_(room.copy_(mass), pushed, flagged)
            total[rows] += mass.sum(dim=1)
    if sweep.denominator is None:
        flagged_of_count.copy_(flagged_count)
    return sums


def _unsafe(total: Tensor, numbers: list[Tensor], strategy: Strategy) -> bool:
    """Whether some row's sum has overflowed, or may have lost terms to underflow."""
    _, count, _, flagged_of_count = numbers
    weight = count - (1 - strategy.negative) * flagged_of_count
    return bool((~((total >= UNDERFLOWN) & (total < torch.inf)) & (weight > 0)).any())


def _largest(sweep: TiledSweep) -> Tensor:
    """(N,) the largest cosine of each row whose pair has a weight; 0 where there is none."""
    matrix = sweep.matrix
    largest = torch.full_like(matrix.anchors[:, 0], -torch.inf)
    for tile in matrix:
        for rows, cols, sim in matrix.directions(*tile):
            weight = sweep.weigh_(matrix.like("weighed", sim).fill_(1), *sweep.masks(rows, cols, sim))
            largest[rows] = torch.maximum(largest[rows], torch.where(weight > 0, sim, -torch.inf).amax(dim=1))
    return largest.masked_fill(largest == -torch.inf, 0)


class _OverFlagged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, candidates: Tensor, tau: Tensor, log_rest: Tensor, sweep: TiledSweep
    ) -> Tensor:
        total = torch.zeros(len(anchors), dtype=torch.float64, device=anchors.device)
        with torch.autocast(anchors.device.type, enabled=False):
            for tile in sweep.matrix:
                for rows, cols, sim in sweep.matrix.directions(*tile):
                    flagged = sweep.masks(rows, cols, sim)[1]
                    if flagged is not None:
                        terms = softplus(log_rest[rows, None] - sim / tau[rows, None], threshold=SOFTPLUS_IS_LINEAR)
                        total[rows] += torch.where(flagged > 0, terms, 0).sum(dim=1)
        ctx.save_for_backward(anchors, candidates, tau, log_rest)
        ctx.sweep = sweep
        return total.to(anchors.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_total: Tensor) -> tuple[Tensor | None, ...]:
        _, _, tau, log_rest = ctx.saved_tensors
        of_tau, of_log_rest = torch.zeros_like(tau), torch.zeros_like(log_rest)

        def of_sim(rows: slice, cols: slice, sim: Tensor, _: Tensor, out: Tensor) -> None:
            flagged = ctx.sweep.masks(rows, cols, sim)[1]
            if flagged is None:
                out.zero_()
                return
            share = torch.sigmoid(log_rest[rows, None] - sim / tau[rows, None]) * of_total[rows, None] * flagged
            of_log_rest[rows] += share.sum(dim=1)
            of_tau[rows] += (share * sim).sum(dim=1) / tau[rows] ** 2
            torch.div(share, -tau[rows, None], out=out)

        return *_gradients(ctx, None, of_sim), of_tau, of_log_rest, None


_OfSim = Callable[[slice, slice, Tensor, Tensor, Tensor], None]
"""Writes the gradient of a tile's cosines, in one direction, into the last argument: rows, columns, cosines, mass, out."""


def _gradients(ctx: Any, powers: _Powers | None, of_sim: _OfSim) -> tuple[Tensor, Tensor | None]:
    """The gradients of anchors and candidates from that of each tile's cosines."""
    anchors, candidates = ctx.saved_tensors[:2]
    matrix = ctx.sweep.matrix
    of_anchors = torch.zeros_like(anchors)
    of_candidates = of_anchors if matrix.symmetric else torch.zeros_like(candidates)
    with torch.autocast(anchors.device.type, enabled=False):
        for tile in matrix:
            gradient = matrix.buffer("gradient", tile[2].shape)
            seen = powers.directions(tile) if powers else ((*way, way[2]) for way in matrix.directions(*tile))
            rows, cols, sim, mass = next(seen)
            of_sim(rows, cols, sim, mass, gradient)
            for rows, cols, sim, mass in seen:  # the mirror image of a tile of a symmetric matrix
                of_mirrored = matrix.like("of mirrored", sim)
                of_sim(rows, cols, sim, mass, of_mirrored)
                gradient.T.add_(of_mirrored)
            rows, cols, sim = tile
            if matrix.symmetric and rows == cols:  # of a tile on the diagonal one product is enough
                # (copied first: a sum of two layouts is several times as slow)
                of_anchors[rows].addmm_(matrix.like("both", sim).copy_(gradient.T).add_(gradient), anchors[rows])
                continue
            of_anchors[rows].addmm_(gradient, candidates[cols])
            if matrix.symmetric or ctx.needs_input_grad[1]:
                of_candidates[cols].addmm_(gradient.T, anchors[rows])
    return of_anchors, None if matrix.symmetric else of_candidates
