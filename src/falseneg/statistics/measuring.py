"""What a rule flags, counted against the labels, listed, and spread over the cosines; without gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from falseneg.contrast import Contrast, Embedded
from falseneg.rules import NoPairs, PairRule, SameGroup
from falseneg.statistics.pairs import masks
from falseneg.statistics.scan import labels_of, row_blocks, same_sample
from falseneg.statistics.tiles import tiles_of


@dataclass(frozen=True, eq=False)
class Confusion:
    """Flagged negatives against true labels, summed over all pairs; each () int64.

    Attributes:
        true_positives: flagged negatives that are false negatives.
        flagged: flagged negatives.
        false_negatives: negatives with the anchor's label.
        negatives: negatives whose anchor and candidate both have a label.
    """

    true_positives: Tensor
    flagged: Tensor
    false_negatives: Tensor
    negatives: Tensor


@torch.no_grad()
def confusion(contrast: Contrast, rule: PairRule, labels: Tensor) -> Confusion:
    """Count how a rule agrees with the labels, over the pairs whose two labels are known.

    One sweep of the matrix, of half of it where it is symmetric; none for `NoPairs`, for what does not depend on the rule is
    counted by who the rows show.

    Args:
        contrast: N anchors against M candidates.
        rule: the rule to measure.
        labels: (rows,) int64 by sample; −1 where unknown.
    """
    truth, known_anchor, known_candidate = _truth(contrast, labels)
    flagged, agreeing = _flagged(contrast, rule, truth, known_anchor, known_candidate)
    _, _, own = same_sample(contrast, contrast.columns(None))  # which has the anchor's label: known, if that is
    own = (own * known_anchor).sum()
    negatives = known_anchor.sum() * known_candidate.sum() - own
    # By label, as samples are: those whose labels are unknown are nobody.
    of_one_label = replace(
        contrast,
        anchors=_shown(contrast.anchors, truth.anchor),
        candidates=_shown(contrast.candidates, truth.candidate),
    )
    _, _, alike = same_sample(of_one_label, contrast.columns(None))
    return Confusion(agreeing, flagged, alike.sum() - own, negatives)


def _shown(side: Embedded, group: Tensor) -> Embedded:
    """The same rows, each showing its (N, 1) group instead of its sample."""
    return Embedded(side.z, group[:, 0])


def _flagged(
    contrast: Contrast, rule: PairRule, truth: SameGroup, known_anchor: Tensor, known_candidate: Tensor
) -> tuple[Tensor, Tensor]:
    """The flagged negatives whose labels are known, and those of them whose labels are equal; () int64 each."""
    matrix = tiles_of(contrast, contrast.columns(None))
    totals = torch.zeros(2, dtype=torch.float64, device=known_anchor.device)
    if isinstance(rule, NoPairs):
        return totals[0].long(), totals[1].long()
    labelled_rows, labelled_cols = (known.to(matrix.anchors.dtype) for known in (known_anchor, known_candidate))
    for tile in matrix:
        for rows, cols, sim in matrix.directions(*tile):
            flagged = matrix.flagged(rule, rows, cols, sim, matrix.negatives(rows, cols, sim))
            if flagged is not None:
                alike = truth.indicator(rows, cols, sim, matrix.like("alike", sim)).mul_(flagged)
                known = flagged.mul_(labelled_cols[cols]).sum(dim=1).mul_(labelled_rows[rows])
                # A tile holds at most 2^24 pairs, which float32 counts exactly.
                totals += torch.stack([known.sum(), alike.sum()])
    flagged_in_all, agreeing = totals.long()
    return flagged_in_all, agreeing


@torch.no_grad()
def flagged_pairs(contrast: Contrast, rule: PairRule, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """The flagged negatives, anchor by anchor, at most ``limit``: anchors, columns (int64) and their own cosines."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    total = 0
    for rows, cols, sim, _ in row_blocks(contrast):
        _, flagged = masks(contrast, rule, rows, cols, sim)
        anchor, column = flagged.nonzero()[: limit - total].unbind(1)
        found.append((anchor + rows.start, column, sim[anchor, column]))
        total += len(anchor)
        if total >= limit:
            break
    anchors, columns, scores = zip(*found, strict=True)
    return torch.cat(anchors), torch.cat(columns), torch.cat(scores)


@torch.no_grad()
def most_similar_flagged(contrast: Contrast, rule: PairRule, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """The flagged negatives with the highest cosines, highest first, at most ``number``: anchors, columns and cosines.

    One sweep of the matrix, and memory for so many pairs.
    """
    z, width = contrast.anchors.z, len(contrast.candidates)
    best, place = z.new_empty(0), torch.empty(0, dtype=torch.int64, device=z.device)
    for rows, cols, sim, _ in row_blocks(contrast):
        _, flagged = masks(contrast, rule, rows, cols, sim)
        score, inside = sim.masked_fill(~flagged, -torch.inf).flatten().topk(min(number, sim.numel()))
        best, place = torch.cat([best, score]), torch.cat([place, inside + rows.start * width])
        best, order = best.topk(min(number, len(best)))
        place = place[order]
    listed = best > -torch.inf
    best, place = best[listed], place[listed]
    return place // width, place % width, best


@torch.no_grad()
def similarity_histogram(
    contrast: Contrast, rule: PairRule, labels: Tensor | None, bins: int = 100
) -> dict[str, Tensor]:
    """How the negatives' cosines are spread over [−1, 1], by kind; each (bins,) int64.

    With labels the kinds are "true_negative", "false_negative", "flagged_true_negative" and "flagged_false_negative"
    (pairs with an unknown label are left out); without, "negative" and "flagged".
    """
    kinds = {"negative": None} if labels is None else {"true_negative": False, "false_negative": True}
    counts = {
        name: torch.zeros(bins, dtype=torch.int64, device=contrast.anchors.z.device)
        for kind in kinds
        for name in (kind, "flagged" if kind == "negative" else f"flagged_{kind}")
    }
    by_label = None if labels is None else _truth(contrast, labels)
    for rows, cols, sim, _ in row_blocks(contrast):
        negative, flagged = masks(contrast, rule, rows, cols, sim)
        place = ((sim + 1) / 2 * bins).long().clamp(0, bins - 1)
        for kind, wanted in kinds.items():
            chosen = negative
            if by_label is not None:
                truth, known_anchor, known_candidate = by_label
                same = truth.tile(rows, cols, sim)
                chosen = negative & (same == wanted) & known_anchor[rows, None] & known_candidate[cols]
            counts[kind] += place[chosen].bincount(minlength=bins)
            name = "flagged" if kind == "negative" else f"flagged_{kind}"
            counts[name] += place[chosen & flagged].bincount(minlength=bins)
    return counts


def _truth(contrast: Contrast, labels: Tensor) -> tuple[SameGroup, Tensor, Tensor]:
    """The rule of the true labels, and which anchors and candidates have one."""
    anchor, candidate = labels_of(contrast.anchors.sample, labels), labels_of(contrast.candidates.sample, labels)
    return SameGroup(anchor[:, None], candidate[:, None]), anchor >= 0, candidate >= 0
