"""The backend that never stores the matrix: each tile is computed, used and dropped, and computed again for the gradient.

Forward and backward visit the same tiles, so that a pair at the very threshold does not change sides between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from falseneg.contrast import Contrast
from falseneg.rules import PairRule, at_least_float32
from falseneg.statistics.dense import SOFTPLUS_IS_LINEAR
from falseneg.statistics.pairs import Totals, masks, pushed_away, weighted_logits
from falseneg.strategy import Strategy

TILE = 1024
"""Rows and columns of a tile: large enough for fast products, small enough (4 MiB in float32) to stay near the cache."""


class TiledSweep:
    """Tile after tile: O(N + M) memory."""

    def __init__(self, contrast: Contrast, tau: Tensor, rule: PairRule, strategy: Strategy) -> None:
        self.contrast, self.rule, self.strategy = contrast, rule, strategy
        self.anchors = at_least_float32(contrast.anchors.z)
        symmetric = contrast.candidates is contrast.anchors
        self.candidates = self.anchors if symmetric else at_least_float32(contrast.candidates.z)
        self.tau = tau.to(self.anchors.dtype).expand(len(self.anchors))

    def totals(self, scale: float) -> Totals:
        totals: Totals = _Totals.apply(self.anchors, self.candidates, self.tau, self, scale)
        return totals

    def over_flagged(self, log_rest: Tensor) -> Tensor:
        terms: Tensor = _OverFlagged.apply(self.anchors, self.candidates, self.tau, log_rest, self)
        return terms

    def tiles(self, anchors: Tensor, candidates: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
        """Rows, columns, cosines, negatives and flagged negatives of one tile after the other."""
        for top in range(0, len(anchors), TILE):
            rows = slice(top, min(top + TILE, len(anchors)))
            for left in range(0, len(candidates), TILE):
                cols = slice(left, min(left + TILE, len(candidates)))
                sim = anchors[rows] @ candidates[cols].T
                yield rows, cols, sim, *masks(self.contrast, self.rule, rows, cols, sim)


TileGradient = Callable[[slice, slice, Tensor, Tensor, Tensor], Tensor]


def _gradients(sweep: TiledSweep, anchors: Tensor, candidates: Tensor, of_sim: TileGradient) -> tuple[Tensor, Tensor]:
    """The gradients of the anchors and candidates from that of each tile's cosines."""
    of_anchors, of_candidates = torch.zeros_like(anchors), torch.zeros_like(candidates)
    for rows, cols, sim, negative, flagged in sweep.tiles(anchors, candidates):
        gradient = of_sim(rows, cols, sim, negative, flagged)
        of_anchors[rows] += gradient @ candidates[cols]
        of_candidates[cols] += gradient.T @ anchors[rows]
    return of_anchors, of_candidates


class _Totals(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchors: Tensor, candidates: Tensor, tau: Tensor, sweep: TiledSweep, scale: float) -> Totals:
        log_sum = anchors.new_full((len(anchors),), -torch.inf)
        flagged_sim = anchors.new_zeros(len(anchors))
        count = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
        flagged_count, flagged_of_count = torch.zeros_like(count), torch.zeros_like(count)
        with torch.autocast(anchors.device.type, enabled=False):
            for rows, cols, sim, negative, flagged in sweep.tiles(anchors, candidates):
                pushed = pushed_away(sweep.contrast, cols, negative)
                logits = weighted_logits(scale * sim / tau[rows, None], pushed, flagged, sweep.strategy)
                log_sum[rows] = torch.logaddexp(log_sum[rows], logits.logsumexp(dim=1))
                flagged_sim[rows] += (sim * flagged).sum(dim=1)
                count[rows] += pushed.sum(dim=1)
                flagged_count[rows] += flagged.sum(dim=1)
                flagged_of_count[rows] += (pushed & flagged).sum(dim=1)
        ctx.save_for_backward(anchors, candidates, tau, log_sum)
        ctx.sweep, ctx.scale = sweep, scale
        ctx.mark_non_differentiable(count, flagged_count, flagged_of_count)
        return log_sum, flagged_sim, count, flagged_count, flagged_of_count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_log_sum: Tensor, of_flagged_sim: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        anchors, candidates, tau, log_sum = ctx.saved_tensors
        # A row without negatives has no gradient: its logits are all -inf, and exp(-inf - 0) is 0, never NaN.
        log_sum = log_sum.masked_fill(log_sum == -torch.inf, 0)
        of_tau = torch.zeros_like(tau)

        def of_sim(rows: slice, cols: slice, sim: Tensor, negative: Tensor, flagged: Tensor) -> Tensor:
            pushed = pushed_away(ctx.sweep.contrast, cols, negative)
            logits = weighted_logits(ctx.scale * sim / tau[rows, None], pushed, flagged, ctx.sweep.strategy)
            of_logits = (logits - log_sum[rows, None]).exp_() * of_log_sum[rows, None]
            of_tau[rows] -= (of_logits * sim).sum(dim=1) * ctx.scale / tau[rows] ** 2
            return of_logits * (ctx.scale / tau[rows, None]) + flagged * of_flagged_sim[rows, None]

        with torch.autocast(anchors.device.type, enabled=False):
            of_anchors, of_candidates = _gradients(ctx.sweep, anchors, candidates, of_sim)
        return of_anchors, of_candidates, of_tau, None, None


class _OverFlagged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, candidates: Tensor, tau: Tensor, log_rest: Tensor, sweep: TiledSweep
    ) -> Tensor:
        total = anchors.new_zeros(len(anchors))
        with torch.autocast(anchors.device.type, enabled=False):
            for rows, _, sim, _, flagged in sweep.tiles(anchors, candidates):
                terms = softplus(log_rest[rows, None] - sim / tau[rows, None], threshold=SOFTPLUS_IS_LINEAR)
                total[rows] += torch.where(flagged, terms, 0).sum(dim=1)
        ctx.save_for_backward(anchors, candidates, tau, log_rest)
        ctx.sweep = sweep
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_total: Tensor) -> tuple[Tensor | None, ...]:
        anchors, candidates, tau, log_rest = ctx.saved_tensors
        of_tau, of_log_rest = torch.zeros_like(tau), torch.zeros_like(log_rest)

        def of_sim(rows: slice, cols: slice, sim: Tensor, negative: Tensor, flagged: Tensor) -> Tensor:
            share = torch.sigmoid(log_rest[rows, None] - sim / tau[rows, None]) * of_total[rows, None] * flagged
            of_log_rest[rows] += share.sum(dim=1)
            of_tau[rows] += (share * sim).sum(dim=1) / tau[rows] ** 2
            return -share / tau[rows, None]

        with torch.autocast(anchors.device.type, enabled=False):
            of_anchors, of_candidates = _gradients(ctx.sweep, anchors, candidates, of_sim)
        return of_anchors, of_candidates, of_tau, of_log_rest, None
