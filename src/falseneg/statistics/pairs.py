"""Which pairs of a tile are negatives, and which of these are flagged: shared by every sweep."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from falseneg.contrast import NOBODY, Contrast
from falseneg.errors import UserError
from falseneg.rules import PairRule
from falseneg.strategy import Strategy

Totals = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Of each anchor, (N,), or of each of L rules and each anchor, (L, N).

log_sum and flagged_sim of `NegativeStats`; how many negatives belong to the denominator, how many are flagged, and how
many do both.
"""


def stacked(alone: Sequence[Totals]) -> Totals:
    """(L, N) totals from those of each of L rules alone, (N,) or (1, N)."""
    totals = (torch.cat([torch.atleast_2d(number) for number in numbers]) for numbers in zip(*alone, strict=True))
    log_sum, flagged_sim, count, flagged, flagged_of_count = totals
    return log_sum, flagged_sim, count, flagged, flagged_of_count


def negatives_of(contrast: Contrast, rows: slice, cols: slice) -> Tensor:
    """(r, c) bool: the pairs of a tile that show two different samples."""
    anchor = contrast.anchors.sample[rows, None]
    return (anchor != contrast.candidates.sample[cols]) | (anchor == NOBODY)


def masks(contrast: Contrast, rule: PairRule, rows: slice, cols: slice, sim: Tensor) -> tuple[Tensor, Tensor]:
    """The negatives of a tile and the flagged ones among them, each (r, c) bool."""
    negative = negatives_of(contrast, rows, cols)
    return negative, rule.tile(rows, cols, sim.detach()) & negative


def pushed_away(contrast: Contrast, cols: slice, negative: Tensor) -> Tensor:
    """(r, c) bool: the negatives of a tile that belong to the contrast's denominator."""
    part = contrast.columns(contrast.denominator)
    if part.start <= cols.start and cols.stop <= part.stop:
        return negative
    column = torch.arange(cols.start, cols.stop, device=negative.device)
    return negative & (column >= part.start) & (column < part.stop)


def weighted_logits(logits: Tensor, negative: Tensor, flagged: Tensor, strategy: Strategy) -> Tensor:
    """The logits with the log of each pair's weight added: −inf where a pair has none.

    Masked here, before anything is summed: a flagged term is often the largest of its row, and taking it from a
    finished sum would leave nothing but rounding.
    """
    kept = negative & ~flagged if strategy.negative == 0 else negative
    if 0 < strategy.negative < 1:
        logits = torch.where(flagged, logits + math.log(strategy.negative), logits)
    return torch.where(kept, logits, -torch.inf)


def first_derivative_only(backward: Callable[..., tuple[Tensor | None, ...]]) -> Callable[..., Any]:
    """For the backward pass of a `torch.autograd.Function` that is made of numbers alone.

    torch's own `once_differentiable` refuses a second derivative only where the incoming gradient depends on the inputs,
    too: of a plain sum of log-sums it would leave the second derivative out without a word.

    Raises:
        UserError: the backward pass runs with ``create_graph=True``.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise UserError(
                "second derivatives (create_graph=True) need the matrix of all pairs, which this backend does not store; "
                "choose backend='dense', or at most 65,536 pairs (anchors x candidates), for which 'auto' does so"
            )
        return backward(ctx, *grad_outputs)

    return checked
