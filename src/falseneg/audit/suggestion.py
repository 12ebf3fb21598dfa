"""Which share of the negatives to flag, and why.

There is one number behind the settings of most detectors: how many kinds of image there are. For each of several such
numbers K two detectors that look at different things flag a share of 1/K: clusters of the whole data set, and the nearest in
the batch. Where the number suits the data they agree; Cohen's kappa takes away what they would agree on by chance.

It does not say how fine a class is: images of CIFAR-100 have nearly the same kappas for 20 of its classes as for all 100. So
without labels, and without a number that the user expects, there is a range, and no suggestion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from falseneg.audit.measure import Measured, measure
from falseneg.audit.sample import Sample
from falseneg.detectors import (
    BatchQuantile,
    Detector,
    IdenticalCaptions,
    IncrementalClusters,
    NeighbourGraph,
    RelativeToPositive,
    SupportSet,
)

KINDS = (2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Numbers of kinds that are tried."""
IMAGES_OF_A_KIND = 4
"""Of the images that are looked at, at least, on average."""
NEARLY = 2 / 3
"""Of the highest kappa: what numbers of kinds have that may suit the data, too (benchmarks/results/2026-11-27-audit.md)."""
MARGIN = 0.05
"""Of `RelativeToPositive`: what NV-Retriever finds best."""
NEIGHBOURS = 20
SUPPORT, CLUSTERS = "support set", "clusters"


@dataclass(frozen=True)
class Tried:
    """What came of one number of kinds.

    Attributes:
        kinds: K.
        kappa: of the clusters and the support set; None where both flag nothing or all.
        precision: of the support set, with labels.
        recall: of the support set, with labels.
        f1: of the support set, with labels.
    """

    kinds: int
    kappa: float | None
    precision: float | None
    recall: float | None
    f1: float | None

    @property
    def alpha(self) -> float:
        """The share of the negatives that is flagged."""
        return 1 / self.kinds


@dataclass(frozen=True)
class Suggestion:
    """What to set detectors to.

    Attributes:
        tried: all numbers of kinds that were tried, in rising order.
        chosen: the one that detectors are set to.
        by: "labels", where the support set's F1 is highest; "asked"; or "agreement", where the kappa is, which is too little to
            suggest it.
        batch: B, images of a batch.
    """

    tried: tuple[Tried, ...]
    chosen: Tried
    by: str
    batch: int

    @property
    def top_k(self) -> int:
        """What `SupportSet` counts: the views of the images to flag, where each image of the batch has two."""
        return max(1, round(self.chosen.alpha * 2 * self.batch))

    @property
    def known(self) -> bool:
        """Whether labels or the user say how many kinds there are."""
        return self.by != "agreement"

    @property
    def by_agreement(self) -> Tried:
        """Where the kappa is highest."""
        return max(self.tried, key=_kappa)

    @property
    def fitting(self) -> tuple[Tried, Tried]:
        """The fewest and the most kinds that have nearly the highest kappa: `NEARLY` of it."""
        fit = [each for each in self.tried if _kappa(each) >= NEARLY * _kappa(self.by_agreement)]
        return (fit[0], fit[-1]) if fit else (self.by_agreement, self.by_agreement)


def _kappa(tried: Tried) -> float:
    return -1.0 if tried.kappa is None else tried.kappa


def suggest(
    sample: Sample,
    batches: Sequence[Tensor],
    asked: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Suggestion:
    """Try numbers of kinds, and choose one.

    Args:
        sample: the images.
        batches: (B,) int64 each, which of them.
        asked: the number of kinds that the user expects; it is chosen.
        seed: of what detectors draw.
        progress: called with the numbers done and the numbers in all.

    Raises:
        UserError: the features cannot be clustered.
    """
    size = max(map(len, batches))
    # Of each anchor at least one negative is flagged: more kinds than images in a batch would not be told apart.
    most = max(2, min(len(sample) // IMAGES_OF_A_KIND, size))
    numbers = {kinds for kinds in KINDS if kinds <= most} | ({asked} if asked else set())
    tried = []
    for kinds in sorted(numbers):
        detectors = {SUPPORT: _support_set(kinds), CLUSTERS: _clusters(kinds)}
        tried.append(_tried(kinds, measure(sample, batches, detectors, seed)))
        if progress is not None:
            progress(len(tried), len(numbers))
    suggestion = Suggestion(tuple(tried), tried[0], "agreement", size)
    chosen, by = suggestion.by_agreement, "agreement"
    if any(each.f1 is not None for each in tried):
        chosen, by = max(tried, key=lambda each: each.f1 or 0.0), "labels"
    if asked:
        chosen, by = next(each for each in tried if each.kinds == asked), "asked"
    return Suggestion(suggestion.tried, chosen, by, size)


def detectors_of(kinds: int, images: int, captioned: bool = False) -> dict[str, Detector]:
    """The detectors that need no training, by what a reader calls them.

    Args:
        kinds: K, the number of kinds of image that they are set for.
        images: m, how many they are tried on; at least K + 2.
        captioned: the images have captions.
    """
    neighbours = min(NEIGHBOURS, images - 1)
    found: dict[str, Detector] = {
        SUPPORT: _support_set(kinds),
        "batch quantile": BatchQuantile(1 / kinds),
        "relative margin": RelativeToPositive(relative_margin=MARGIN),
        CLUSTERS: _clusters(kinds),
        "neighbour graph": NeighbourGraph(neighbours, kinds, 1 / kinds, attract=0.0, refresh=["0 epochs"]),
    }
    return found | ({"same captions": IdenticalCaptions()} if captioned else {})


def _support_set(kinds: int) -> SupportSet:
    return SupportSet(share=1 / kinds)


def _clusters(kinds: int) -> IncrementalClusters:
    return IncrementalClusters([kinds], warmup="0 epochs", acceptance=1.0)


def _tried(kinds: int, measured: Measured) -> Tried:
    counts = measured.counts(0)
    return Tried(kinds, measured.kappa(0, 1), counts.precision, counts.recall, counts.f1)
