"""Learned thresholds against the quantiles of the whole data set: the honest test of "global"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from falseneg.batch import Embeddings
from falseneg.contrast import Contrast, Embedded, Space
from falseneg.data import view_loader
from falseneg.rules import at_least_float32
from falseneg.statistics import count_above, gather
from falseneg.statistics.gather import gather_rows
from falseneg.statistics.spread import Spread
from falseneg.train.gradient_cache import frozen_statistics, random_state, same_draws
from falseneg.train.guards import end_workers, outlast_signals
from falseneg.train.plan import views_of
from falseneg.train.session import Session

ANCHORS = 256
"""Images whose thresholds are checked: those whose flagged pairs are recorded, too."""


@dataclass(frozen=True, eq=False)
class Threshold:
    """A threshold for each image, and what it estimates.

    Attributes:
        contrast: the name of the contrast that it belongs to.
        values: (rows,) cosines, NaN where there is none yet.
        alpha: the share of the negatives that should score above it.
        space: where it is compared; None for the contrast's own cosines.
    """

    contrast: str
    values: Tensor
    alpha: float
    space: str | None = None


@dataclass(frozen=True, eq=False)
class Checked:
    """What a threshold is, and what it should be; each (A,) on the CPU.

    Attributes:
        rows: int64, the anchors' data-set rows.
        true: the (1 − alpha) quantile of the similarities with a view of every other image, of all views of the anchor.
        learned: the threshold, NaN where there is none yet.
        share: of these similarities, the share above the threshold; NaN where there is none yet.
        alpha: what the share should be.
    """

    rows: Tensor
    true: Tensor
    learned: Tensor
    share: Tensor
    alpha: float

    def figures(self) -> dict[str, float | None]:
        """Mean absolute difference, correlation (None where undefined) and mean share, over the anchors with a threshold."""
        known = self.learned.isfinite() & self.true.isfinite()
        true, learned = self.true[known].double(), self.learned[known].double()
        varied = len(true) > 2 and bool(true.max() > true.min()) and bool(learned.max() > learned.min())
        return {
            "true error": float((learned - true).abs().mean()) if len(true) else None,
            "true correlation": float(torch.corrcoef(torch.stack([learned, true]))[0, 1]) if varied else None,
            "true share": float(self.share[known].double().mean()) if len(true) else None,
            "alpha": self.alpha,
        }


def check_thresholds(session: Session, thresholds: Mapping[str, Threshold], epoch: int) -> dict[str, Checked]:
    """Compare the thresholds of some images with the quantiles that they estimate; every rank has to ask.

    The quantiles are those under the present encoder, of similarities with the views that all images will have in the
    next epoch: embedded in batches of about the training's size and normalised by their statistics, as in training, but
    without gradient. Nothing of the training changes: neither BatchNorm's running statistics nor any generator.

    Cost: a forward pass over the data set, and O(`ANCHORS` · views of all images).

    Args:
        session: where training stands.
        thresholds: by name.
        epoch: the epoch that has just ended, from 1: the number of the next one from 0.
    """
    learner, method, device = session.learner, session.learner.method, session.fabric.device
    rows = len(session.plan.train)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(session.run.seed))
    anchors = order[:ANCHORS].sort().values.to(device)
    checks = {name: _Check(threshold, anchors) for name, threshold in thresholds.items()}
    rank, world = session.fabric.global_rank, session.fabric.world_size
    batches = order.tensor_split(max(1, rows // session.plan.batch_size))
    keys = [[(epoch, row) for row in batch[rank::world].tolist()] for batch in batches]
    loader = view_loader(views_of(session.run, session.plan), keys, session.plan.workers, device)
    loader.worker_init_fn = outlast_signals
    try:
        with torch.no_grad(), frozen_statistics(method), same_draws(random_state(device), device):
            for batch in loader:
                pieces = batch.to(device, non_blocking=True).pieces(session.run.accumulate)
                embeddings = Embeddings.cat([learner.encode(piece) for piece in pieces])
                for contrast in method.contrasts(embeddings):
                    for check in checks.values():
                        if check.threshold.contrast == contrast.name:
                            check.add(contrast)
    finally:
        end_workers(loader)
    return {name: check.result() for name, check in checks.items()}


@dataclass(eq=False)
class _Check:
    """Collects the similarities of the anchors with one piece of the data set after the other.

    The anchors are in the first batches: what comes before the last of them has to wait.
    """

    threshold: Threshold
    anchors: Tensor
    z: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)
    place: list[Tensor] = field(default_factory=list)
    waiting: list[Contrast] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spread = Spread(len(self.anchors), self.anchors.device)
        self.above = torch.zeros_like(self.anchors)
        self.learned = self.threshold.values.to(self.anchors.device)[self.anchors]
        self.found = 0

    def add(self, contrast: Contrast) -> None:
        """See the candidates of a batch, and the anchors that are in it."""
        if self.found < len(self.anchors):
            self._find(contrast)
        self.waiting.append(self._fresh(contrast))
        if self.found == len(self.anchors):
            for piece in self.waiting:
                self._count(piece)
            self.waiting.clear()

    def _find(self, contrast: Contrast) -> None:
        """Keep the rows of the anchors, of all ranks."""
        rows, space = gather(contrast.anchors), contrast.space(self.threshold.space)
        place = torch.searchsorted(self.anchors, rows.sample).clamp(max=len(self.anchors) - 1)
        chosen = self.anchors[place] == rows.sample
        self.z.append(rows.z[chosen])
        self.place.append(place[chosen])
        self.found += len(place[chosen].unique())
        if space is not None:
            self.queries.append(gather_rows(space.queries[space.query_of])[chosen])

    def _fresh(self, contrast: Contrast) -> Contrast:
        """The candidates that the batch brought; not what a memory bank holds of earlier ones."""
        cols = contrast.columns("batch" if "batch" in contrast.parts else None)
        space = contrast.space(self.threshold.space)
        spaces = {"": Space(space.queries, space.query_of, space.candidates[cols])} if space is not None else {}
        candidates = Embedded(contrast.candidates.z[cols], contrast.candidates.sample[cols])
        return Contrast(contrast.name, contrast.anchors, candidates, contrast.positives, spaces)

    def _count(self, piece: Contrast) -> None:
        place, space = torch.cat(self.place), piece.spaces.get("")
        if space is not None:
            every = torch.arange(len(place), device=place.device)
            space = Space(torch.cat(self.queries), every, space.candidates)
        z = at_least_float32(torch.cat(self.z))
        contrast = Contrast(piece.name, Embedded(z, self.anchors[place]), piece.candidates, z[:, :0])
        self.spread.add(contrast, place, space)
        self.above.index_add_(0, place, count_above(contrast, self.learned[place].to(z.dtype), space)[0])

    def result(self) -> Checked:
        share = (self.above.double() / self.spread.seen).masked_fill(self.learned.isnan(), torch.nan)
        true = self.spread.quantile(self.threshold.alpha)
        return Checked(self.anchors.cpu(), true.cpu(), self.learned.cpu(), share.cpu(), self.threshold.alpha)
