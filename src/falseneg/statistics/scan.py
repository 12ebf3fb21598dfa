"""Passes over the matrix without gradient: for detectors that rank or count.

Each visits blocks of whole rows, so that a row's ranking is exact; a block is small enough to stay in a cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from falseneg.contrast import NOBODY, Contrast, Embedded, Space
from falseneg.rules import AboveThreshold, Listed, SameGroup, at_least_float32, space_scores
from falseneg.statistics.pairs import negatives_of
from falseneg.statistics.tiles import tiles_of

BLOCK = 2**19
"""Scores in a block of rows: 2 MiB in float32."""
ROWS = 128
"""Rows of a block at least: fewer do not make a fast product."""


def row_blocks(
    contrast: Contrast, space: Space | None = None, cols: slice | None = None
) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Rows, columns, scores in the space (the contrast's own cosines for None) and negatives, block after block.

    A block's scores are overwritten by the next.
    """
    cols = cols or slice(0, len(contrast.candidates))
    for rows, scores in _scored(contrast, space, cols):
        yield rows, cols, scores, negatives_of(contrast, rows, cols)


def _scored(contrast: Contrast, space: Space | None, cols: slice) -> Iterator[tuple[slice, Tensor]]:
    """Rows and their (r, c) scores, block after block; overwritten by the next."""
    anchors, candidates = (
        at_least_float32(contrast.anchors.z.detach()),
        at_least_float32(contrast.candidates.z.detach()),
    )
    height = max(ROWS, BLOCK // max(1, cols.stop - cols.start))
    block = anchors.new_empty((min(height, len(anchors)), cols.stop - cols.start))
    for top in range(0, len(anchors), height):
        rows = slice(top, min(top + height, len(anchors)))
        if space is None:  # autocast leaves products alone that are written into a buffer
            scores = torch.mm(anchors[rows], candidates[cols].T, out=block[: rows.stop - top])
        else:
            scores = space_scores(space, rows, cols)
        yield rows, scores


class _Ranking:
    """The scores of each anchor's negatives, to be ranked.

    Args:
        contrast: N anchors against M candidates.
        space: where to score; None for the contrast's own cosines.
        cols: the columns to look at.

    Attributes:
        count: (N,) int64, negatives of each anchor.
    """

    def __init__(self, contrast: Contrast, space: Space | None, cols: slice) -> None:
        self.contrast, self.space, self.cols = contrast, space, cols
        self.columns, self.first, self.equals = same_sample(contrast, cols)
        self.count = len(self.columns) - self.equals

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows and their (r, c) scores, −inf where a pair is not a negative; overwritten by the next."""
        for rows, scores in _scored(self.contrast, self.space, self.cols):
            line, place = ranges(self.first[rows], self.equals[rows])
            scores.index_put_((line, self.columns[place]), scores.new_full((), -torch.inf))
            yield rows, scores


def same_sample(contrast: Contrast, cols: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Where the candidates show the anchors' own samples.

    Args:
        contrast: N anchors against M candidates.
        cols: the m columns to look at.

    Returns:
        (m,) the columns, counted from the first of ``cols``, in the order of their samples; (N,) at which of these each
        anchor's sample begins; and (N,) how many show it, 0 for nobody.
    """
    sample = contrast.anchors.sample
    in_order, columns = contrast.candidates.sample[cols].sort()
    first = torch.searchsorted(in_order, sample)
    equals = torch.searchsorted(in_order, sample, right=True) - first
    return columns, first, equals.masked_fill(sample == NOBODY, 0)


def ranges(first: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers first, first + 1, … of each of some ranges, one range after another.

    Waits for the device, once, to tell how many there are.

    Args:
        first: (R,) int64 where each range begins.
        length: (R,) int64 how many numbers it has.

    Returns:
        Which range each number is of, and the number; both int64, as long as all ranges together.
    """
    total = int(length.sum())
    of = torch.arange(len(length), device=length.device).repeat_interleave(length, output_size=total)
    before = length.cumsum(0) - length
    return of, torch.arange(total, device=length.device) + (first - before)[of]


def _once(contrast: Contrast, space: Space) -> tuple[Contrast, Space, Tensor]:
    """One anchor instead of all that show one sample and share their queries, for these score alike.

    Returns:
        The contrast and the space of these U anchors, and (N,) which of the U each anchor is.
    """
    kinds = torch.stack([space.query_of, contrast.anchors.sample], dim=1)
    found, of_anchor = kinds.unique(dim=0, return_inverse=True)
    one = torch.empty(len(found), dtype=torch.int64, device=kinds.device)
    one[of_anchor] = torch.arange(len(kinds), device=kinds.device)
    anchors = Embedded(contrast.anchors.z[one], contrast.anchors.sample[one])
    return replace(contrast, anchors=anchors), replace(space, query_of=space.query_of[one]), of_anchor


@torch.no_grad()
def top_k(
    contrast: Contrast,
    k: int,
    space: Space | None = None,
    part: str | None = None,
    threshold: float | None = None,
    distinct: bool = False,
) -> Listed:
    """The k best-scored negatives of each anchor, exactly; ties go to the lower column.

    Args:
        contrast: N anchors against M candidates.
        k: how many; an anchor with fewer negatives gets them all.
        space: where to score; None for the contrast's own cosines.
        part: the part of the candidates to look in; None for all.
        threshold: keep only scores above it, strictly.
        distinct: count images, not rows: an image scores as its best row, and all its rows are listed (above the
            threshold if there is one).
    """
    of_anchor = None
    if space is not None:
        contrast, space, of_anchor = _once(contrast, space)
    cols, least = contrast.columns(part), -torch.inf if threshold is None else threshold
    room = min(k, cols.stop - cols.start)
    if distinct:
        samples, image = _in_order_of_appearance(contrast.candidates.sample[cols])
        room = int(image.bincount().topk(min(k, samples)).values.sum())
    # One array for the results, filled block by block: small ones, kept between large ones that come and go, would
    # leave the heap in holes (seen: 1.3 GiB for 0.1 GiB of work).
    columns = torch.empty(len(contrast.anchors) * room, dtype=torch.int64, device=contrast.anchors.z.device)
    length = torch.zeros(len(contrast.anchors), dtype=torch.int64, device=columns.device)
    filled = 0
    for rows, scores in _Ranking(contrast, space, cols):
        if distinct:
            of_images = scores.new_full((len(scores), samples), -torch.inf)
            of_images.scatter_reduce_(1, image.expand_as(scores), scores, "amax")
            chosen = torch.zeros((len(scores), samples + 1), dtype=torch.bool, device=scores.device)
            chosen.scatter_(1, _best(of_images, k, -torch.inf) + 1, True)
            found = (chosen[:, 1:][:, image] & (scores > least)).nonzero()
            line, column = found.unbind(1)
        else:
            best = _best(scores, k, least).sort(dim=1).values
            found = (best >= 0).nonzero()
            line, column = found[:, 0], best[found[:, 0], found[:, 1]]
        length[rows] = line.bincount(minlength=len(scores))
        columns[filled : filled + len(column)] = column + cols.start
        filled += len(column)
    first = length.cumsum(0) - length
    if of_anchor is None:
        return Listed(_offsets(length), columns[:filled].clone())
    return Listed(_offsets(length[of_anchor]), columns[ranges(first[of_anchor], length[of_anchor])[1]])


def _offsets(length: Tensor) -> Tensor:
    """(N + 1,) where each of N lists of these lengths begins, one after another, and where the last ends."""
    return torch.cat([length.new_zeros(1), length.cumsum(0)])


def _best(scores: Tensor, k: int, least: float) -> Tensor:
    """(r, k or fewer) int64: the columns of the k highest scores of each row, of equals the first; −1 for none above least."""
    values, columns = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    # Where the k-th score occurs again, it is open which of the equals have been found.
    again = ((values[:, k - 1 : k] == values[:, k:]) & (values[:, k:] > least)).any(dim=1).nonzero()[:, 0]
    columns[again] = scores[again].sort(dim=1, descending=True, stable=True).indices[:, : columns.shape[1]]
    return columns.masked_fill_(values <= least, -1)[:, :k]


def _in_order_of_appearance(sample: Tensor) -> tuple[int, Tensor]:
    """How many samples there are, and for each column the number of its sample, counted as they first appear."""
    values, inverse = sample.unique(return_inverse=True)
    first = torch.full((len(values),), len(sample), device=sample.device)
    first = first.scatter_reduce(0, inverse, torch.arange(len(sample), device=sample.device), "amin")
    return len(values), first.argsort().argsort()[inverse]


@torch.no_grad()
def count_above(
    contrast: Contrast, threshold: Tensor, space: Space | None = None, part: str | None = None
) -> tuple[Tensor, Tensor]:
    """How many negatives of each anchor score above its threshold (strictly), and how many there are; (N,) int64 each.

    Args:
        contrast: N anchors against M candidates.
        threshold: (N,) or () cosines.
        space: where to score; None for the contrast's own cosines.
        part: the part of the candidates to look in; None for all.
    """
    matrix = tiles_of(contrast, contrast.columns(part))
    rule = AboveThreshold(threshold, space)
    above, counts = torch.zeros(2, len(contrast.anchors), dtype=torch.float64, device=matrix.anchors.device)
    for tile in matrix:
        for rows, cols, sim in matrix.directions(*tile):
            negative = matrix.negatives(rows, cols, sim)
            flagged = matrix.flagged(rule, rows, cols, sim, negative)
            if flagged is not None:
                above[rows].add_(flagged.sum(dim=1))
            counts[rows].add_(sim.shape[1] if negative is None else negative.sum(dim=1))
    return above.long(), counts.long()


@torch.no_grad()
def row_quantile(contrast: Contrast, alpha: float, space: Space | None = None, part: str | None = None) -> Tensor:
    """(N,) the threshold above which the share alpha of an anchor's negatives scores.

    It lies midway between the k-th highest score and the next, k = ceil(alpha · negatives): a threshold at or just
    below the k-th score would depend on its last bit. Without negatives it is +inf, without a next score −inf.
    """
    of_anchor = None
    if space is not None:
        contrast, space, of_anchor = _once(contrast, space)
    ranking = _Ranking(contrast, space, contrast.columns(part))
    k = (alpha * ranking.count.double() - 1e-9).ceil().long()
    most = math.ceil(alpha * len(ranking.columns)) + 1
    thresholds = torch.empty(len(k), dtype=at_least_float32(contrast.anchors.z).dtype, device=k.device)
    for rows, scores in ranking:
        best = scores.topk(min(most, scores.shape[1]), dim=1).values
        best = torch.cat([best, best.new_full((len(best), 1), -torch.inf)], dim=1)
        kth = best.gather(1, (k[rows] - 1).clamp(min=0)[:, None])[:, 0]
        following = best.gather(1, k[rows, None])[:, 0]
        midway = kth + (following - kth) / 2
        # Between two neighbouring floats there is no middle: then the lower of them separates.
        thresholds[rows] = torch.where(midway >= kth, following, midway)
    thresholds.masked_fill_(ranking.count == 0, torch.inf)
    return thresholds if of_anchor is None else thresholds[of_anchor]


def labels_of(sample: Tensor, labels: Tensor) -> Tensor:
    """(N,) int64 labels of samples; −1 for nobody."""
    return torch.where(sample >= 0, labels[sample.clamp(min=0)], -1)


def columns_rule(contrast: Contrast, cols: slice) -> SameGroup:
    """The rule that is true in these columns only; combine it with another by ``&``."""
    group = torch.full((len(contrast.candidates), 1), -1, device=contrast.candidates.z.device)
    group[cols] = 0
    return SameGroup(group.new_zeros((len(contrast.anchors), 1)), group)
