"""The detector that knows the labels: the upper bound, and how much worse a detector may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.detectors.base import Detector
from falseneg.errors import UserError
from falseneg.facts import Facts
from falseneg.rules import PairRule, SameGroup
from falseneg.statistics.gather import sum_over_ranks
from falseneg.statistics.scan import labels_of, row_blocks

BINS = 2**14
"""Between the cosines −1 and 1, when the most similar pairs are looked for."""
DRAWS = 2**53
"""Numbers that the draw of a pair can be, each as likely as the others."""


class Oracle(Detector):
    """Flags exactly the negatives with the anchor's label. With attraction this is SupCon (Khosla et al. 2020).

    With a precision and a recall it is an instrument: what is a detector of this quality worth? Of all pairs of images with
    equal labels the share ``recall`` is flagged, and of those with different labels as many as make the precision, in
    expectation over the pairs of the data set. Pairs are drawn once, by the seed of the run, and a pair is flagged in both
    directions; which kind of errors a detector makes matters as much as how many.

    Args:
        labels: (rows,) int64 by data-set row, −1 where unknown; None takes the data set's own when training starts.
        precision: the share of the flagged pairs that have equal labels, above 0 and at most 1.
        recall: the share of the pairs with equal labels that is flagged, above 0 and at most 1.
        errors: "random" flags random pairs, right and wrong ones; "similar" those that the encoder takes for the most
            similar in each step, as real detectors do (one sweep of the matrix more).

    Raises:
        UserError: a share is outside its range, or there are not enough different pairs for so low a precision.
    """

    labels: Tensor | None

    def __init__(
        self,
        labels: Tensor | None = None,
        precision: float = 1.0,
        recall: float = 1.0,
        errors: Literal["random", "similar"] = "random",
    ) -> None:
        super().__init__()
        for name, share in (("precision", precision), ("recall", recall)):
            if not 0 < share <= 1:
                raise UserError(
                    f"Oracle: {name} is {share}; it is a share of pairs, so give a number above 0 and at most 1"
                )
        if errors not in ("random", "similar"):
            raise UserError(f"Oracle: errors is {errors!r}; give 'random' or 'similar'")
        self.precision, self.recall, self.errors, self.seed = precision, recall, errors, 0
        # Not in the checkpoint: labels belong to the data set.
        self.register_buffer("labels", labels, persistent=False)
        self.wrong = 0.0 if labels is None else self._share_of_wrong(labels)

    def prepare(self, facts: Facts) -> None:
        if self.labels is None:
            if facts.labels is None:
                raise UserError(
                    "Oracle: the data set has no labels; choose another detector, or give a labelled data set"
                )
            self.labels = facts.labels
            self.wrong = self._share_of_wrong(facts.labels)
        self.seed = facts.seed

    def _share_of_wrong(self, labels: Tensor) -> float:
        """The share of the pairs with different labels that is flagged.

        Raises:
            UserError: it would be more than all.
        """
        sizes = labels[labels >= 0].bincount().double()
        pairs, right = float(sizes.sum() * (sizes.sum() - 1)), float((sizes * (sizes - 1)).sum())
        needed, others = self.recall * right * (1 / self.precision - 1), pairs - right
        if needed > others:
            least = self.recall * right / (self.recall * right + others)
            raise UserError(
                f"Oracle: a precision of {self.precision} at a recall of {self.recall} takes more pairs with different labels "
                f"than there are; give a precision of at least {least:.3g}, or a lower recall"
            )
        return needed / others if needed else 0.0

    @torch.no_grad()
    def flag(self, contrast: Contrast, clock: Clock) -> PairRule:
        if self.labels is None:
            raise UserError("Oracle: give labels, one for each row of the data set")
        of_anchor = labels_of(contrast.anchors.sample, self.labels)
        of_candidate = labels_of(contrast.candidates.sample, self.labels)
        truth = SameGroup(of_anchor[:, None], of_candidate[:, None])
        if self.precision == self.recall == 1:
            return truth
        samples = contrast.anchors.sample, contrast.candidates.sample
        known = SameGroup(*(torch.where(side < 0, -1, 0)[:, None] for side in (of_anchor, of_candidate)))
        if self.errors == "random":
            limits = torch.tensor([[0.0, self.wrong], [0.0, self.recall]], dtype=torch.float64)
        else:
            limits = _limits(contrast, truth, known, torch.tensor([self.wrong, self.recall], dtype=torch.float64))
        return _Drawn(truth, known, *samples, limits.to(samples[0].device), self.errors == "similar", self.seed)


@dataclass(frozen=True, eq=False)
class _Drawn(PairRule):
    """Flags pairs by their draw, or above a bin of cosines and by their draw within it.

    Args:
        truth: equal labels.
        known: both labels are known.
        anchor_sample, candidate_sample: (N,) and (M,) int64.
        limits: (2, 2) float64, of pairs with different and with equal labels: the bin, and the share that is flagged in it.
        ranked: look at the cosines; otherwise all pairs are in one bin.
        seed: of the draws.
    """

    truth: SameGroup
    known: SameGroup
    anchor_sample: Tensor
    candidate_sample: Tensor
    limits: Tensor
    ranked: bool
    seed: int

    def tile(self, rows: slice, cols: slice, sim: Tensor) -> Tensor:
        truth = self.truth.tile(rows, cols, sim)
        limit, share = self.limits[truth.long()].unbind(-1)
        drawn = _draws(self.anchor_sample[rows, None], self.candidate_sample[cols], self.seed) < share * DRAWS
        if self.ranked:
            bins = _bins(sim)
            drawn = (bins > limit) | ((bins == limit) & drawn)
        return drawn & self.known.tile(rows, cols, sim)


def _draws(one: Tensor, other: Tensor, seed: int) -> Tensor:
    """A number from 0 to below `DRAWS` for each pair of samples, in either order: the finaliser of splitmix64."""
    start = seed * 0x9E3779B97F4A7C15 % 2**64 - 2**63  # as a number of 64 bits with a sign
    x = (torch.minimum(one, other) << 32) + torch.maximum(one, other) + start
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return ((x ^ ((x >> 31) & ((1 << 33) - 1))) >> 11) & (DRAWS - 1)


def _bins(sim: Tensor) -> Tensor:
    return ((sim + 1) / 2 * BINS).long().clamp(0, BINS - 1)


def _limits(contrast: Contrast, truth: SameGroup, known: SameGroup, shares: Tensor) -> Tensor:
    """(2, 2) the limits of `_Drawn`: as many of each kind as ``shares`` says are above, in expectation, over all ranks."""
    counts = torch.zeros(2, BINS, dtype=torch.int64, device=contrast.anchors.z.device)
    for rows, cols, sim, negative in row_blocks(contrast):
        same, bins = truth.tile(rows, cols, sim), _bins(sim)
        negative &= known.tile(rows, cols, sim)
        for kind, chosen in enumerate((negative & ~same, negative & same)):
            counts[kind] += bins[chosen].bincount(minlength=BINS)
    from_above = sum_over_ranks(counts).flip(1).cumsum(1).double()
    wanted = shares.to(from_above.device)[:, None] * from_above[:, -1:]
    place = (from_above < wanted).sum(dim=1, keepdim=True).clamp(max=BINS - 1)
    above = torch.where(place > 0, from_above.gather(1, (place - 1).clamp(min=0)), 0)
    inside = from_above.gather(1, place) - above
    return torch.cat([BINS - 1 - place, (wanted - above) / inside.clamp(min=1)], dim=1).double()
