"""The backend that never stores the matrix: each tile is computed, used and dropped, and computed again for the gradient.

Forward and backward visit the same tiles, so that a pair at the very threshold does not change sides between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from falseneg.contrast import Contrast
from falseneg.rules import PairRule, at_least_float32
from falseneg.statistics.dense import SOFTPLUS_IS_LINEAR
from falseneg.statistics.pairs import Totals, first_derivative_only, stacked
from falseneg.statistics.tiles import Tile, Tiles, tiles_of
from falseneg.strategy import Strategy

HIGHEST = 60.0
"""The largest exponent of e: a billion such terms do not overflow in float32."""
UNDERFLOWN = 1e-26
"""A row with a smaller sum may have lost terms that count; it is summed again, relative to its largest term."""


class TiledSweep:
    """Tile after tile: O(N + M) memory. Of an in-batch matrix each tile is computed once for its rows and its columns.

    Several rules share the products of a tile and the powers of its pairs.

    Args:
        contrast: N anchors against M candidates.
        tau: () or (N,).
        strategy: the weights of flagged pairs.
        both_ways: the candidates are anchors as well, with the anchors as their candidates: all that has N rows then has
            N + M, and rules number rows and columns as `Tiles` does.
    """

    def __init__(self, contrast: Contrast, tau: Tensor, strategy: Strategy, both_ways: bool = False) -> None:
        self.strategy = strategy
        columns = contrast.columns(None)
        self.matrix = Tiles(contrast, columns, both_ways) if both_ways else tiles_of(contrast, columns)
        self.anchors = at_least_float32(contrast.anchors.z)
        self.candidates = self.anchors if self.matrix.symmetric else at_least_float32(contrast.candidates.z)
        self.denominator = None if contrast.denominator is None else contrast.columns(contrast.denominator)
        self.one_temperature = tau.ndim == 0
        self.tau = tau.to(self.anchors.dtype).expand(self.matrix.lines)

    def totals(self, rules: Sequence[PairRule], scale: float, cosines: bool) -> Totals:
        powers = _Powers(self, scale)
        sums = _sums(self, rules, powers, cosines)
        if not _unsafe(sums, self.strategy):
            return self._totals(rules, powers, sums)
        alone = []
        for rule in rules:  # each relative to the largest terms of its own
            powers = _Powers(self, scale, scale * _largest(self, rule) / self.tau.detach())
            alone.append(self._totals([rule], powers, _sums(self, [rule], powers, cosines)))
        return stacked(alone)

    def _totals(self, rules: Sequence[PairRule], powers: _Powers, sums: Tensor) -> Totals:
        total, flagged_sim, *counts = sums
        arguments = self.anchors, self.candidates, self.tau, total, flagged_sim, self, rules, powers
        log_sum, flagged_sim = _Totals.apply(*arguments)
        count, flagged, flagged_of_count = (number.long() for number in counts)
        return log_sum, flagged_sim, count, flagged, flagged_of_count

    def over_flagged(self, rule: PairRule, log_rest: Tensor) -> Tensor:
        terms: Tensor = _OverFlagged.apply(self.anchors, self.candidates, self.tau, log_rest, self, rule)
        return terms

    def pushed(self, rows: slice, cols: slice, sim: Tensor, negative: Tensor | None) -> Tensor | None:
        """(r, c) 1 for the negatives of a tile that belong to the denominator, 0 elsewhere; None where all are 1."""
        return negative if self.denominator is None else self.matrix.negatives(rows, cols, sim, self.denominator)

    def weighed(self, terms: Tensor, flagged: Tensor | None, out: Tensor) -> Tensor:
        """Terms, (r, c) or (r, 1), times the strategy's weights of their pairs: written into ``out``, or themselves if all weigh 1.

        Weighed here, before anything is summed: a flagged term is often the largest of its row, and taking it from a
        finished sum would leave nothing but rounding. A weight of 0 leaves exactly 0.
        """
        if flagged is None or self.strategy.negative == 1:
            return terms
        less = self.strategy.negative - 1
        if terms.shape == flagged.shape:
            return torch.addcmul(terms, terms, flagged, value=less, out=out)
        return torch.mul(flagged, less * terms, out=out).add_(terms)


class _Powers:
    """The mass e^(scale·s/tau − shift) of each pair as a power of 2, which is twice as fast: 2^(steep·s − lift).

    Args:
        sweep: whose temperatures they are.
        scale: of the logits.
        shift: (N,) what no logit of weight exceeds; None for a bound that suits all cosines.

    Attributes:
        shift: (N,) what the logits are taken relative to.
        shared: a pair has the same mass in its row as in its column.
    """

    def __init__(self, sweep: TiledSweep, scale: float, shift: Tensor | None = None) -> None:
        tau = sweep.tau.detach()
        self.scale, self.bounded = scale, shift is not None
        self.shared = sweep.one_temperature and not self.bounded
        self.shift = (scale / tau - HIGHEST).clamp(min=0) if shift is None else shift
        self.steep, self.lift = (scale / tau / math.log(2))[:, None], (self.shift / math.log(2))[:, None]
        self.matrix = sweep.matrix

    def directions(self, tile: Tile) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        """Rows, columns, cosines and mass of a tile, in each direction in which it counts."""
        mass = None
        for rows, cols, sim in self.matrix.directions(*tile):
            mass = mass.T if mass is not None and self.shared else self._mass(rows, sim)
            yield rows, cols, sim, mass

    def _mass(self, rows: slice, sim: Tensor) -> Tensor:
        # (addcmul with two columns that are spread over a tile is three times as slow as these two)
        exponents = torch.mul(sim, self.steep[rows], out=self.matrix.like("mass", sim))
        exponents.sub_(self.lift[rows])
        # Pairs without weight may exceed the bound; what is finite is dropped by a factor of 0.
        return (exponents.clamp_(max=1) if self.bounded else exponents).exp2_()


class _Totals(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        anchors, candidates, tau, total, flagged_sim, ctx.sweep, ctx.rules, ctx.powers = arguments
        ctx.save_for_backward(anchors, candidates, tau, total)
        ctx.set_materialize_grads(False)
        return (total.log() + ctx.powers.shift).to(anchors.dtype), flagged_sim.to(anchors.dtype)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad_log_sum: Tensor | None, grad_flagged_sim: Tensor | None) -> tuple[Tensor | None, ...]:
        _, _, tau, total = ctx.saved_tensors
        sweep, powers, matrix, grad_tau = ctx.sweep, ctx.powers, ctx.sweep.matrix, torch.zeros_like(tau)
        # A row without negatives has no gradient: all its pairs weigh 0.
        grad_log_sum = torch.zeros_like(total) if grad_log_sum is None else grad_log_sum
        grad_mass = (grad_log_sum / total.masked_fill(total == 0, torch.inf) * powers.scale / tau).to(tau.dtype)

        def add_grad_sim(rows: slice, cols: slice, sim: Tensor, mass: Tensor, out: Tensor) -> None:
            negative = matrix.negatives(rows, cols, sim)
            pushed = sweep.pushed(rows, cols, sim, negative)
            # Weighed first: the mass of a pair that counts is at most its row's sum, that of another has no such bound.
            weight: Tensor | None = None
            for level, rule in enumerate(ctx.rules):
                flagged = matrix.flagged(rule, rows, cols, sim, negative)
                room = matrix.like("weight" if weight is None else "weight of a level", sim)
                of_level = sweep.weighed(grad_mass[level, rows, None], flagged, room)
                if weight is None:
                    weight = of_level
                elif of_level.shape == sim.shape:
                    weight = torch.add(weight, of_level, out=matrix.like("weight", sim))
                else:  # (r, 1): nothing is weighed less
                    weight = weight + of_level
                if flagged is not None and grad_flagged_sim is not None:
                    out.addcmul_(flagged, grad_flagged_sim[level, rows, None])
            assert weight is not None
            if pushed is not None:
                weight = torch.mul(weight, pushed, out=matrix.like("weight", sim))
            if ctx.needs_input_grad[2]:
                terms = torch.mul(mass, weight, out=matrix.like("grad tau", sim)).mul_(sim)
                grad_tau[rows] -= terms.sum(dim=1) / tau[rows]
            out.addcmul_(mass, weight)

        return *_gradients(ctx, powers, add_grad_sim), grad_tau, None, None, None, None, None


@torch.no_grad()
def _sums(sweep: TiledSweep, rules: Sequence[PairRule], powers: _Powers, cosines: bool) -> Tensor:
    """(5, L, N) float64, for each of L rules: the sums of mass and (if asked for) of flagged cosines, and three counts.

    How many are pushed away, how many flagged, and how many both.
    """
    matrix = sweep.matrix
    size = 5, len(rules), matrix.lines
    sums = torch.zeros(size, dtype=torch.float64, device=matrix.anchors.device)
    total, flagged_sim, count, flagged_count, flagged_of_count = sums
    for tile in matrix:
        for rows, cols, sim, mass in powers.directions(tile):
            negative = matrix.negatives(rows, cols, sim)
            pushed = sweep.pushed(rows, cols, sim, negative)
            room = matrix.like("room", sim)
            count[:, rows].add_(sim.shape[1] if pushed is None else pushed.sum(dim=1))
            for level, rule in enumerate(rules):
                flagged = matrix.flagged(rule, rows, cols, sim, negative)
                if flagged is not None:
                    flagged_count[level, rows].add_(flagged.sum(dim=1))
                    if cosines:
                        flagged_sim[level, rows].add_(torch.mul(sim, flagged, out=room).sum(dim=1))
                    if sweep.denominator is not None:
                        both = flagged if pushed is None else torch.mul(flagged, pushed, out=room)
                        flagged_of_count[level, rows].add_(both.sum(dim=1))
                weighed = sweep.weighed(mass, flagged, room)
                if pushed is not None:
                    weighed = torch.mul(weighed, pushed, out=room)
                total[level, rows].add_(weighed.sum(dim=1))
    if sweep.denominator is None:
        flagged_of_count.copy_(flagged_count)
    return sums


def _unsafe(sums: Tensor, strategy: Strategy) -> bool:
    """Whether some row's sum has overflowed, or may have lost terms to underflow."""
    total, _, count, _, flagged_of_count = sums
    weight = count - (1 - strategy.negative) * flagged_of_count
    return bool((~((total >= UNDERFLOWN) & (total < torch.inf)) & (weight > 0)).any())


@torch.no_grad()
def _largest(sweep: TiledSweep, rule: PairRule) -> Tensor:
    """(N,) the largest cosine of each row whose pair has a weight; 0 where there is none."""
    matrix = sweep.matrix
    largest = matrix.anchors.new_full((matrix.lines,), -torch.inf)
    for tile in matrix:
        for rows, cols, sim in matrix.directions(*tile):
            negative = matrix.negatives(rows, cols, sim)
            pushed = sweep.pushed(rows, cols, sim, negative)
            flagged = matrix.flagged(rule, rows, cols, sim, negative)
            weight = sweep.weighed(sim.new_ones(()), flagged, matrix.like("room", sim))
            weight = weight if pushed is None else weight * pushed
            largest[rows] = torch.maximum(largest[rows], torch.where(weight > 0, sim, -torch.inf).amax(dim=1))
    return largest.masked_fill(largest == -torch.inf, 0)


class _OverFlagged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        anchors, candidates, tau, log_rest, ctx.sweep, ctx.rule = arguments
        matrix = ctx.sweep.matrix
        total = torch.zeros(matrix.lines, dtype=torch.float64, device=anchors.device)
        for tile in matrix:
            for rows, cols, sim in matrix.directions(*tile):
                flagged = matrix.flagged(ctx.rule, rows, cols, sim, matrix.negatives(rows, cols, sim))
                if flagged is not None:
                    terms = softplus(log_rest[rows, None] - sim / tau[rows, None], threshold=SOFTPLUS_IS_LINEAR)
                    total[rows] += torch.where(flagged > 0, terms, 0).sum(dim=1)
        ctx.save_for_backward(anchors, candidates, tau, log_rest)
        return total.to(anchors.dtype)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        _, _, tau, log_rest = ctx.saved_tensors
        matrix = ctx.sweep.matrix
        grad_tau, grad_log_rest = torch.zeros_like(tau), torch.zeros_like(log_rest)

        def add_grad_sim(rows: slice, cols: slice, sim: Tensor, _: Tensor, out: Tensor) -> None:
            flagged = matrix.flagged(ctx.rule, rows, cols, sim, matrix.negatives(rows, cols, sim))
            if flagged is None:
                return
            share = torch.sigmoid(log_rest[rows, None] - sim / tau[rows, None]) * grad_total[rows, None] * flagged
            grad_log_rest[rows] += share.sum(dim=1)
            grad_tau[rows] += (share * sim).sum(dim=1) / tau[rows] ** 2
            out.addcdiv_(share, tau[rows, None], value=-1)

        return *_gradients(ctx, None, add_grad_sim), grad_tau, grad_log_rest, None, None


_AddGradSim = Callable[[slice, slice, Tensor, Tensor, Tensor], None]
"""Adds the gradient of a tile's cosines, in one direction, to the last argument: rows, columns, cosines, mass, out."""


def _gradients(ctx: Any, powers: _Powers | None, add_grad_sim: _AddGradSim) -> tuple[Tensor, Tensor | None]:
    """The gradients of anchors and candidates from that of each tile's cosines."""
    anchors, candidates = ctx.saved_tensors[:2]
    matrix = ctx.sweep.matrix
    grad_anchors = torch.zeros_like(anchors)
    grad_candidates = grad_anchors if matrix.symmetric else torch.zeros_like(candidates)
    for tile in matrix:
        rows, cols, sim = tile
        gradient = matrix.buffer("gradient", (sim.shape[0], sim.shape[1])).zero_()
        outs = gradient, gradient.T  # of the tile, and of its mirror image in a symmetric matrix
        sides: Iterator[tuple[slice, slice, Tensor, Tensor]] = (
            powers.directions(tile) if powers else ((*way, way[2]) for way in matrix.directions(*tile))
        )
        for way, out in zip(sides, outs, strict=False):
            add_grad_sim(*way, out)
        if matrix.symmetric and rows == cols:  # of a tile on the diagonal one product is enough
            # (copied first: a sum of two layouts is several times as slow)
            grad_anchors[rows].addmm_(matrix.like("both", sim).copy_(gradient.T).add_(gradient), anchors[rows])
            continue
        of_cols = matrix.of_candidates(cols)
        grad_anchors[rows].addmm_(gradient, candidates[of_cols])
        if matrix.symmetric or ctx.needs_input_grad[1]:
            grad_candidates[of_cols].addmm_(gradient.T, anchors[rows])
    return grad_anchors, None if matrix.symmetric else grad_candidates
