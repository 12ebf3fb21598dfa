"""The backend for GPUs: Triton kernels that keep a tile of the matrix in registers from its products to its gradient.

They know the common rules: none, a threshold on the contrast's own cosines, and groups. Checked in Triton's interpreter
and compiled ahead of time; not yet run on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from falseneg.contrast import Contrast
from falseneg.rules import AboveThreshold, NoPairs, PairRule, SameGroup, at_least_float32
from falseneg.statistics.pairs import Totals, first_derivative_only, stacked
from falseneg.statistics.tiled import TiledSweep
from falseneg.strategy import Strategy

PROGRAMS = 512
"""Few rows are compared with several parts of the columns at once, until about so many programs fill a GPU."""


def runs_on(device: torch.device) -> bool:
    """Whether the kernels run there: an NVIDIA GPU of compute capability 8.0 or more, or anything in Triton's interpreter."""
    if find_spec("triton") is None:
        return False
    from triton import knobs  # type: ignore

    if knobs.runtime.interpret:
        return True
    nvidia = device.type == "cuda" and torch.version.hip is None
    return nvidia and torch.cuda.get_device_capability(device) >= (8, 0)


def knows(contrast: Contrast, rule: PairRule) -> bool:
    """Whether the kernels know the rule and the embeddings' type; if not, `TiledSweep` does."""
    known_rule = type(rule) in (NoPairs, SameGroup) or (type(rule) is AboveThreshold and rule.space is None)
    double = torch.float64 in (contrast.anchors.z.dtype, contrast.candidates.z.dtype)
    return known_rule and not double and len(contrast.anchors) * len(contrast.candidates) > 0


class FusedSweep:
    """One kernel for the totals and one for the gradients; O(N + M) memory. The same run gives the same bits.

    bfloat16 embeddings are multiplied as they are, float32 ones without rounding to less (no TF32); sums are in float32.
    In the backward pass of bfloat16 each pair's gradient is rounded to bfloat16, as in flash attention, before it meets
    the embeddings. Forward and backward compute a cosine alike, and a pair at the very threshold stays on its side.
    """

    def __init__(self, contrast: Contrast, tau: Tensor, strategy: Strategy) -> None:
        self.contrast, self.strategy = contrast, strategy
        anchors, candidates = contrast.anchors.z, contrast.candidates.z
        if not anchors.dtype == candidates.dtype == torch.bfloat16:
            anchors, candidates = at_least_float32(anchors), at_least_float32(candidates)
        self.symmetric = contrast.candidates is contrast.anchors
        self.anchors = anchors.contiguous()
        self.candidates = self.anchors if self.symmetric else candidates.contiguous()
        self.tau = tau.float().expand(len(anchors))

    def totals(self, rules: Sequence[PairRule], scale: float, cosines: bool) -> Totals:
        own = self.anchors, self.candidates, self.tau, self
        return stacked([_Totals.apply(*own, *self._pairs(rule), scale) for rule in rules])

    def _pairs(self, rule: PairRule) -> tuple[tuple[Any, ...], int]:
        """What the kernels need to know of the pairs, and the number of groupings."""
        anchors, candidates = self.contrast.anchors, self.contrast.candidates
        samples = anchors.sample.contiguous(), candidates.sample.contiguous()
        part = self.contrast.columns(self.contrast.denominator)
        limits = len(anchors), len(candidates), part.start, part.stop
        groupings = rule.anchor.shape[1] if isinstance(rule, SameGroup) else 0
        return (*samples, *_data_of(rule, self.anchors), *limits), groupings

    def over_flagged(self, rule: PairRule, log_rest: Tensor) -> Tensor:
        """Left to the tiled backend, whose cosines may differ in the last bit: a pair at the very threshold, too."""
        return TiledSweep(self.contrast, self.tau, self.strategy).over_flagged(rule, log_rest)


def _data_of(rule: PairRule, anchors: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(N,) thresholds, (N, R) groups of the anchors and (M, R) of the candidates; None where the rule has none."""
    if isinstance(rule, SameGroup):
        return None, rule.anchor.contiguous(), rule.candidate.contiguous()
    if isinstance(rule, AboveThreshold):
        # As PyTorch compares: a single threshold in the type of the cosines, one for each anchor in its own.
        threshold = rule.threshold.float() if rule.threshold.ndim == 0 else at_least_float32(rule.threshold)
        return threshold.to(anchors.device).expand(len(anchors)).contiguous(), None, None
    return None, None, None


def dims_at_once(dims: int) -> int:
    """How many dimensions of a gradient one program keeps in registers; a power of 2."""
    return min(max(16, 1 << (dims - 1).bit_length()), 512)


def division(dims: int, dtype: torch.dtype) -> dict[str, Any]:
    """How both kernels divide their work: chosen so that neither needs more registers than there are."""
    low = dtype == torch.bfloat16
    return {
        "DIMS": dims,
        "ROWS": 64 if low or dims <= 128 else 32,
        "COLUMNS": 32,
        "CHUNK": min(64, dims_at_once(dims)) if low else 16,
        "num_warps": 8,
        "num_stages": 2,
        "enable_fp_fusion": True,  # a multiplication and an addition in one, as products are summed
    }


def _parts(rows: int, columns: int, division: dict[str, Any]) -> tuple[int, int, int]:
    """How many blocks of rows there are, into how many parts the columns are cut, and how wide each is."""
    blocks = -(-rows // division["ROWS"])
    parts = -(-PROGRAMS // blocks)
    width = -(-columns // (parts * division["COLUMNS"])) * division["COLUMNS"]
    return blocks, -(-columns // width), width


class _Totals(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Totals:
        from falseneg.statistics import fused_kernels

        anchors, candidates, tau, ctx.sweep, ctx.pairs, ctx.groupings, ctx.scale = arguments
        divided = division(anchors.shape[1], anchors.dtype)
        blocks, parts, width = _parts(len(anchors), len(candidates), divided)
        sums = tau.new_empty((3, parts, len(anchors)))
        counts = tau.new_empty((3, parts, len(anchors)), dtype=torch.int32)
        with torch.cuda.device_of(anchors):
            fused_kernels.totals[blocks, parts](
                *(anchors, candidates, ctx.scale / tau / math.log(2), ctx.pairs, sums, counts),
                *(len(anchors), len(candidates), width, float(ctx.sweep.strategy.negative)),
                GROUPS=ctx.groupings,
                **divided,
            )
        log_sums, means, flagged_sim = sums
        log_sum = log_sums.logsumexp(dim=0)
        shares = (log_sums - log_sum.masked_fill(log_sum == -torch.inf, 0)).exp()
        mean = (shares * means).sum(dim=0)
        ctx.save_for_backward(anchors, candidates, tau, log_sum, mean)
        count, flagged, flagged_of_count = counts.sum(dim=1)
        ctx.mark_non_differentiable(count, flagged, flagged_of_count)
        return log_sum, flagged_sim.sum(dim=0), count, flagged, flagged_of_count

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad_log_sum: Tensor, grad_flagged_sim: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        anchors, candidates, tau, log_sum, mean = ctx.saved_tensors
        sweep, scale = ctx.sweep, ctx.scale
        # d log_sum / d tau_i = −scale / tau_i² · the mean of s_ij under the mass of each pair
        grad_tau = -scale * grad_log_sum * mean / tau**2
        # d log_sum / d s_ij = scale / tau_i · w_ij · e^(scale · s_ij / tau_i − log_sum_i), here as powers of 2
        steep, lift = scale / tau / math.log(2), log_sum / math.log(2)
        row_terms = steep, lift, grad_log_sum * scale / tau, grad_flagged_sim.contiguous()
        grad_anchors = _gradient(ctx, anchors, candidates, row_terms, True, sweep.symmetric)
        grad_candidates = None
        if ctx.needs_input_grad[1] and not sweep.symmetric:
            grad_candidates = _gradient(ctx, candidates, anchors, row_terms, False, True)
        return grad_anchors, grad_candidates, grad_tau, None, None, None, None


def _gradient(
    ctx: Any, x: Tensor, y: Tensor, row_terms: tuple[Tensor, ...], x_anchors: bool, y_anchors: bool
) -> Tensor:
    """(P, D) gradient of x: the anchors, the candidates, or both in one; y are those that they are compared with.

    Args:
        ctx: what the forward pass has kept.
        x: (P, D).
        y: (Q, D).
        row_terms: of each anchor, the steepness and lift of its powers of 2, and the gradients of its mass and of the
            cosines flagged for it; (N,) each.
        x_anchors: x are anchors and y candidates.
        y_anchors: y are anchors and x candidates.
    """
    from falseneg.statistics import fused_kernels

    divided, out_dims = division(x.shape[1], x.dtype), dims_at_once(x.shape[1])
    blocks, parts, width = _parts(len(x), len(y), divided)
    out = row_terms[0].new_empty((parts, *x.shape))
    with torch.cuda.device_of(x):
        fused_kernels.gradients[blocks, parts, -(-x.shape[1] // out_dims)](
            *(x, y, row_terms, ctx.pairs, out),
            *(len(x), len(y), len(ctx.sweep.anchors), width, float(ctx.sweep.strategy.negative)),
            X_ANCHORS=x_anchors,
            Y_ANCHORS=y_anchors,
            GROUPS=ctx.groupings,
            OUT=out_dims,
            **divided,
        )
    return out.sum(dim=0).to(x.dtype)
