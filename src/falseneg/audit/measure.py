"""What several detectors flag in the same batches: how much, how well, and what they agree on.

Letters: R detectors; B images of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from falseneg.audit.sample import DIRECTION, Sample
from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.detectors import Detector
from falseneg.evaluation import DetectionCounts
from falseneg.facts import Facts
from falseneg.rules import PairRule, SameGroup
from falseneg.statistics.scan import labels_of, row_blocks

NOW = Clock(step=0, steps_per_epoch=1, epochs=1)
MOST_PAIRS = 100_000
"""Flagged pairs that are kept, at most: the most similar."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Flagged pairs of images.

    Attributes:
        anchor: (k,) int64 rows of the data set.
        candidate: (k,) int64 rows of the data set.
        score: (k,) float32 cosines.
        flags: (k, R) bool, by which detectors.
    """

    anchor: Tensor
    candidate: Tensor
    score: Tensor
    flags: Tensor

    def of(self, chosen: Tensor) -> Pairs:
        """Some of them, in that order."""
        return Pairs(self.anchor[chosen], self.candidate[chosen], self.score[chosen], self.flags[chosen])

    def best(self, most: int) -> Pairs:
        """The most similar of them, in falling order."""
        return self.of(self.score.argsort(descending=True, stable=True)[:most])


@dataclass(frozen=True, eq=False)
class Measured:
    """What detectors flagged in some batches, counted over all ordered pairs (anchor, negative).

    Attributes:
        names: R of them.
        together: (R + 2, R + 2) int64, pairs that both flag. The last two stand for the labels: pairs of one class, and
            pairs whose classes are both known.
        votes: (3, R + 1) int64, pairs by how many detectors flag them: all pairs, those whose classes are both known, and
            those of one class.
        negatives: pairs in all.
        anchors: images in all.
        pairs: at most `MOST_PAIRS` of those that any detector flagged.
        figures: what detectors say about themselves.
    """

    names: tuple[str, ...]
    together: Tensor
    votes: Tensor
    negatives: int
    anchors: int
    pairs: Pairs
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def labelled(self) -> bool:
        return bool(self.together[-1, -1] > 0)

    def share(self, detector: int) -> float:
        """The share of the negatives that a detector flags."""
        return int(self.together[detector, detector]) / max(self.negatives, 1)

    def counts(self, detector: int) -> DetectionCounts:
        """A detector against the labels, over the pairs whose classes are known; or what it flags, without any."""
        if not self.labelled:
            return DetectionCounts(int(self.together[detector, detector]), self.negatives)
        same, known = len(self.names), len(self.names) + 1
        places = (detector, known), (known, known), (detector, same), (same, same)
        return DetectionCounts(*(int(self.together[place]) for place in places))

    @property
    def majority(self) -> int:
        """How many detectors are most of them."""
        return len(self.names) // 2 + 1

    def agreed(self, least: int) -> tuple[float, float | None]:
        """The share of the negatives that at least so many detectors flag, and how much of it is right; None without labels."""
        pairs, known, same = self.votes[:, least:].sum(dim=1).tolist()
        return pairs / max(self.negatives, 1), same / known if known else None

    def also(self, one: int, other: int) -> float | None:
        """Of what one detector flags, the share that the other flags, too; None if it flags nothing."""
        flagged = int(self.together[one, one])
        return int(self.together[one, other]) / flagged if flagged else None

    def kappa(self, one: int, other: int) -> float | None:
        """Cohen's kappa: how much more two detectors agree than by chance; None where both flag nothing or all."""
        first, second = self.share(one), self.share(other)
        both = int(self.together[one, other]) / max(self.negatives, 1)
        observed, expected = 1 - first - second + 2 * both, first * second + (1 - first) * (1 - second)
        return (observed - expected) / (1 - expected) if expected < 1 else None


def measure(
    sample: Sample,
    batches: Sequence[Tensor],
    detectors: Mapping[str, Detector],
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Let detectors flag in batches of a sample, and count.

    O(R · B²) for each batch, a block of rows at a time, beside what the detectors themselves take.

    Args:
        sample: the images.
        batches: (B,) int64 each, which of them.
        detectors: by name; new ones, for they are prepared here.
        seed: of what detectors draw.
        progress: called with the batches done and the batches in all.

    Raises:
        UserError: a detector cannot work with so few images.
    """
    largest = max(map(len, batches))
    facts = Facts(len(sample), largest - 1, contrasts=(DIRECTION,), seed=seed, caption_groups=sample.caption_groups)
    for detector in detectors.values():
        detector.prepare(facts)
        detector.eval()
        detector.start_epoch(sample, NOW)
    total = torch.zeros(len(detectors) + 2, len(detectors) + 2, dtype=torch.float64)
    votes = torch.zeros(3, len(detectors) + 1, dtype=torch.int64)
    kept, negatives = [_nothing(len(detectors))], 0
    for done, chosen in enumerate(batches, start=1):
        contrast = sample.contrast(chosen)
        rules = [_one(detector.flag(contrast, NOW)) for detector in detectors.values()]
        rules += _label_rules(contrast, sample.labels)
        negatives += len(chosen) * (len(chosen) - 1)
        for rows, cols, sim, negative in row_blocks(contrast):
            flags = torch.stack([rule.tile(rows, cols, sim) & negative for rule in rules])
            numbers = flags.flatten(1).float()
            total += (numbers @ numbers.T).double()  # at most 2^24 pairs in a block, which float32 counts exactly
            voted = flags[: len(detectors)].sum(dim=0)
            for count, among in zip(votes, (negative, flags[-1], flags[-2]), strict=True):
                count += voted[among].bincount(minlength=len(detectors) + 1)
            anchor, column = flags[: len(detectors)].any(dim=0).nonzero().unbind(1)
            found = sample.rows[chosen[anchor + rows.start]], sample.rows[chosen[column]], sim[anchor, column]
            kept.append(Pairs(*found, flags[: len(detectors), anchor, column].T))
        if sum(len(each.score) for each in kept) > 2 * MOST_PAIRS:
            kept = [_joined(kept).best(MOST_PAIRS)]
        if progress is not None:
            progress(done, len(batches))
    figures = {name: value for detector in detectors.values() for name, value in detector.figures().items()}
    pairs = _joined(kept).best(MOST_PAIRS)
    return Measured(tuple(detectors), total.long(), votes, negatives, sum(map(len, batches)), pairs, figures)


def _one(rules: PairRule | tuple[PairRule, ...]) -> PairRule:
    assert isinstance(rules, PairRule)  # the detectors of an audit have one level
    return rules


def _label_rules(contrast: Contrast, labels: Tensor | None) -> list[PairRule]:
    """One class, and both classes known."""
    sample = contrast.anchors.sample
    group = torch.full_like(sample, -1) if labels is None else labels_of(sample, labels)
    known = torch.where(group < 0, -1, 0)
    return [SameGroup(each[:, None], each[:, None]) for each in (group, known)]


def _nothing(detectors: int) -> Pairs:
    none = torch.empty(0, dtype=torch.int64)
    return Pairs(none, none, torch.empty(0), torch.empty(0, detectors, dtype=torch.bool))


def _joined(kept: Sequence[Pairs]) -> Pairs:
    names = ("anchor", "candidate", "score", "flags")
    return Pairs(*(torch.cat([getattr(each, name) for each in kept]) for name in names))
