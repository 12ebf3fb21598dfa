# mypy: ignore-errors
"""Triton kernels: the totals of each row of the anchors × candidates matrix, and the gradients of its two factors.

Indices p, q or i, j are vectors; where i and j are a column and a row, in either order, they broadcast to a tile. Two
arguments are tuples. ``pairs`` is what tells the pairs apart: (N,) samples of the anchors and (M,) of the candidates; (N,)
thresholds, (N, R) groups of the anchors and (M, R) of the candidates, or None; N, M, and the first column of the
denominator and the one after its last. ``row_terms`` are (N,) each: the numbers that `_grad_cosines` names.
Every sum has one fixed order and there are no atomics, so that a run repeats bit for bit. Importing this needs Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _cosines(x, y, p, q, P, Q, DIMS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr):
    """(ROWS, COLUMNS) products of rows p of x and q of y, summed over the dimensions in their order."""
    sim = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, DIMS, CHUNK):
        d = start + tl.arange(0, CHUNK)
        x_chunk = tl.load(x + p[:, None] * DIMS + d, mask=(p[:, None] < P) & (d < DIMS), other=0)
        y_chunk = tl.load(y + q[:, None] * DIMS + d, mask=(q[:, None] < Q) & (d < DIMS), other=0)
        sim = tl.dot(x_chunk, y_chunk.T, sim, input_precision="ieee")
    return sim


@triton.jit
def _masks(sim, i, j, pairs, GROUPS: tl.constexpr):
    """Which pairs of anchors i and candidates j are pushed away, and which are flagged negatives."""
    anchor_sample, candidate_sample, threshold, anchor_group, candidate_group, N, M, first, last = pairs
    who, whom = tl.load(anchor_sample + i, mask=i < N, other=-1), tl.load(candidate_sample + j, mask=j < M, other=-1)
    negative = (i < N) & (j < M) & ((who != whom) | (who == -1))
    flagged = tl.zeros(sim.shape, tl.int1)
    if threshold is not None:
        flagged = sim > tl.load(threshold + i, mask=i < N, other=float("inf"))
    for r in tl.static_range(GROUPS):
        group = tl.load(anchor_group + i * GROUPS + r, mask=i < N, other=-1)
        other = tl.load(candidate_group + j * GROUPS + r, mask=j < M, other=-1)
        flagged |= (group == other) & (group >= 0)
    return negative & (j >= first) & (j < last), negative & flagged


@triton.jit
def totals(
    anchors, candidates, steep, pairs, sums, counts, N, M, width, weight,
    GROUPS: tl.constexpr, DIMS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Of ROWS anchors and ``width`` candidates: the log of the mass 2^(steep·s), the mean s under it, and three counts."""
    i = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    part = tl.program_id(1)
    highest = tl.full((ROWS,), -float("inf"), tl.float32)
    mass, moment, flagged_sim = (tl.zeros((ROWS,), tl.float32),) * 3
    pushed_count, flagged_count, both_count = (tl.zeros((ROWS,), tl.int32),) * 3
    slope = tl.load(steep + i, mask=i < N, other=0)

    for start in range(part * width, tl.minimum((part + 1) * width, M), COLUMNS):
        j = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        sim = _cosines(anchors, candidates, i, j, N, M, DIMS, ROWS, COLUMNS, CHUNK)
        pushed, flagged = _masks(sim, i[:, None], j[None, :], pairs, GROUPS)
        weights = tl.where(pushed, tl.where(flagged, weight, 1.0), 0.0)

        # Relative to the largest exponent so far; what was summed before shrinks when a larger one comes.
        exponents = tl.where(weights > 0, sim * slope[:, None], -float("inf"))
        new = tl.maximum(highest, tl.max(exponents, axis=1))
        shift = tl.where(new == -float("inf"), 0.0, new)
        shrink = tl.exp2(highest - shift)
        terms = weights * tl.exp2(exponents - shift[:, None])
        mass = mass * shrink + tl.sum(terms, axis=1)
        moment = moment * shrink + tl.sum(terms * sim, axis=1)
        highest = new

        flagged_sim += tl.sum(tl.where(flagged, sim, 0.0), axis=1)
        pushed_count += tl.sum(pushed.to(tl.int32), axis=1)
        flagged_count += tl.sum(flagged.to(tl.int32), axis=1)
        both_count += tl.sum((pushed & flagged).to(tl.int32), axis=1)

    place, line, inside = part * N + i, tl.num_programs(1).to(tl.int64) * N, i < N
    tl.store(sums + place, (highest + tl.log2(mass)) * LN_2, mask=inside)
    tl.store(sums + line + place, moment / tl.where(mass > 0, mass, 1.0), mask=inside)
    tl.store(sums + 2 * line + place, flagged_sim, mask=inside)
    tl.store(counts + place, pushed_count, mask=inside)
    tl.store(counts + line + place, flagged_count, mask=inside)
    tl.store(counts + 2 * line + place, both_count, mask=inside)


@triton.jit
def _grad_cosines(sim, i, j, row_terms, pairs, N, weight, GROUPS: tl.constexpr):
    """The gradient of a tile's cosines: grad_mass · w · 2^(steep·s − lift) where pushed, and grad_flagged where flagged."""
    steep, lift, grad_mass, grad_flagged = row_terms
    pushed, flagged = _masks(sim, i, j, pairs, GROUPS)
    weights = tl.where(pushed, tl.where(flagged, weight, 1.0), 0.0)
    exponents = sim * tl.load(steep + i, mask=i < N, other=0) - tl.load(lift + i, mask=i < N, other=0)
    share = weights * tl.exp2(tl.where(weights > 0, exponents, -float("inf")))
    gradient = tl.load(grad_mass + i, mask=i < N, other=0) * share
    return gradient + tl.where(flagged, tl.load(grad_flagged + i, mask=i < N, other=0), 0.0)


@triton.jit
def gradients(
    x, y, row_terms, pairs, out, P, Q, N, width, weight,
    X_ANCHORS: tl.constexpr, Y_ANCHORS: tl.constexpr, GROUPS: tl.constexpr,
    DIMS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """OUT dimensions of the gradient of ROWS rows of x, from ``width`` rows of y: sum over q of (gradient of s_pq) · y_q.

    The anchors' gradient has the anchors as x, the candidates' has them as y. In an in-batch contrast each row of x is
    an anchor of every y and a candidate of it: s_pq = s_qp has two gradients, and they are added before the product.
    """
    p = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    part = tl.program_id(1)
    d = tl.program_id(2) * OUT + tl.arange(0, OUT)
    total = tl.zeros((ROWS, OUT), tl.float32)

    for start in range(part * width, tl.minimum((part + 1) * width, Q), COLUMNS):
        q = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        sim = _cosines(x, y, p, q, P, Q, DIMS, ROWS, COLUMNS, CHUNK)
        grad_sim = tl.zeros((ROWS, COLUMNS), tl.float32)
        if X_ANCHORS:
            grad_sim += _grad_cosines(sim, p[:, None], q[None, :], row_terms, pairs, N, weight, GROUPS)
        if Y_ANCHORS:
            grad_sim += _grad_cosines(sim, q[None, :], p[:, None], row_terms, pairs, N, weight, GROUPS)
        y_chunk = tl.load(y + q[:, None] * DIMS + d, mask=(q[:, None] < Q) & (d < DIMS), other=0)
        total = tl.dot(grad_sim.to(y_chunk.dtype), y_chunk, total, input_precision="ieee")

    place = out + (part * P + p[:, None]) * DIMS + d
    tl.store(place, total, mask=(p[:, None] < P) & (d < DIMS))
