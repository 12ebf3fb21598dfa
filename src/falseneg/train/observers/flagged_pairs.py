"""Flagged pairs of some images and similarities of all, in an early, a middle and the last epoch, for the report."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from falseneg.contrast import Contrast
from falseneg.data import ImageSet
from falseneg.files import write_bytes
from falseneg.flagged import Judged
from falseneg.foreign.text import read_json
from falseneg.rules import AboveThreshold, PairRule, SameGroup
from falseneg.statistics import flagged_pairs, similarity_histogram
from falseneg.train.names import FLAGGED, SIMILARITIES
from falseneg.train.observers.base import Figures, Observer
from falseneg.train.pairs import damaged, pair_table, read_pairs, write_table
from falseneg.train.session import Session, Stepped
from falseneg.train.thumbnails import write_thumbnails

WATCHED = 256
"""Images whose flagged pairs are recorded: the same at every recorded epoch."""
MOST_PAIRS = 100_000
"""Recorded pairs of one epoch at most."""
MOST_HISTOGRAMS = 100
"""Steps of one epoch that the histogram of similarities is made of, at most, evenly spread."""
BINS = 100

_COLLECTED = ("steps", "pairs", "scores", "histogram", "thresholds")


def recorded_epochs(epochs: int) -> list[int]:
    """An early epoch (just after the first tenth, when detectors that start late have started), the middle, the last."""
    return sorted({min(epochs // 10 + 1, epochs), (epochs + 1) // 2, epochs})


class FlaggedPairs(Observer):
    """Collects during the recorded epochs; writes flagged.parquet and similarities.json at the end of each, and
    pictures and flagged.csv at the end of the run.

    Args:
        folder: of the run.
        labels: (rows,) int64 on the device, or None.
        images: the data set.
        steps_per_epoch: over which the recorded pairs are spread.
        seed: of the choice of images whose pairs are recorded.
    """

    def __init__(self, folder: Path, labels: Tensor | None, images: ImageSet, steps_per_epoch: int, seed: int) -> None:
        self.folder, self.labels, self.images, self.steps_per_epoch = folder, labels, images, steps_per_epoch
        rows = len(images)
        chosen = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[:WATCHED]
        self.watched = torch.zeros(rows, dtype=torch.bool)
        self.watched[chosen] = True
        self.written: Any = None
        self.entries: list[dict[str, Any]] = []
        self.clear()

    def after_step(self, session: Session, stepped: Stepped) -> None:
        if session.metrics is not None and stepped.clock.epoch + 1 in recorded_epochs(stepped.clock.epochs):
            self.add(stepped.judged)

    def end_epoch(self, session: Session, epoch: int) -> Figures:
        if session.metrics is not None and epoch in recorded_epochs(session.clock.epochs):
            self.write(epoch)
        return {}

    def finish(self, session: Session) -> Figures:
        write_thumbnails(session.folder, session.plan.train)
        return {}

    def state(self, session: Session) -> dict[str, Any]:
        return {name: copy.copy(getattr(self, name)) for name in _COLLECTED}

    def load_state(self, session: Session, state: Mapping[str, Any]) -> None:
        """Go on from there, and from what was written before.

        Raises:
            UserError: a file that was written before is damaged.
        """
        for name in _COLLECTED:
            setattr(self, name, copy.copy(state[name]))
        self.read_written()

    def read_written(self) -> None:
        """Read what was written in earlier epochs.

        Raises:
            UserError: it is damaged.
        """
        self.written = read_pairs(self.folder / FLAGGED) if (self.folder / FLAGGED).is_file() else None
        self.entries = _read_similarities(self.folder)

    def clear(self) -> None:
        self.steps = 0
        self.pairs: list[Tensor] = []
        self.scores: list[Tensor] = []
        self.histogram: dict[str, Tensor] = {}
        self.thresholds: list[float] = []

    @torch.no_grad()
    def add(self, judged: Sequence[Judged]) -> None:
        """Collect from one step of a recorded epoch."""
        self.watched = self.watched.to(judged[0][0].anchors.sample.device)
        histogram_due = self.steps % -(-self.steps_per_epoch // MOST_HISTOGRAMS) == 0
        self.steps += 1
        for contrast, rule, _ in judged:
            counts = similarity_histogram(contrast, rule, self.labels, BINS) if histogram_due else {}
            for kind, count in counts.items():
                self.histogram[kind] = self.histogram.get(kind, 0) + count.cpu()
            self._list_pairs(contrast, rule)
            if isinstance(rule, AboveThreshold) and rule.space is None:
                finite = rule.threshold[rule.threshold.isfinite()]
                self.thresholds += [float(finite.mean())] if len(finite.flatten()) else []

    def _list_pairs(self, contrast: Contrast, rule: PairRule) -> None:
        """The flagged pairs of the watched images; no sweep of the matrix where the batch shows none of them."""
        group = self.watched[contrast.anchors.sample.clamp(min=0)].long()[:, None] - 1
        if not bool((group >= 0).any()):
            return
        anyone = torch.zeros(len(contrast.candidates), 1, dtype=torch.int64, device=group.device)
        limit = max(1, MOST_PAIRS // self.steps_per_epoch)
        anchor, column, score = flagged_pairs(contrast, rule & SameGroup(group, anyone), limit)
        pairs = torch.stack([contrast.anchors.sample[anchor], contrast.candidates.sample[column]], dim=1)
        known = (pairs >= 0).all(dim=1)  # a bank that keeps own keys does not say whose they are
        pairs, score = _highest(pairs[known].cpu(), score[known].float().cpu())
        self.pairs.append(pairs)
        self.scores.append(score)

    def write(self, epoch: int) -> None:
        """Write what was collected in this epoch (from 1), and start again. A repeated epoch replaces itself."""
        self._write_pairs(epoch)
        edges = torch.linspace(-1, 1, BINS + 1, dtype=torch.float64).tolist()
        threshold = sum(self.thresholds) / len(self.thresholds) if self.thresholds else None
        entry = {"epoch": epoch, "edges": edges, **{kind: count.tolist() for kind, count in self.histogram.items()}}
        self.entries = [old for old in self.entries if old["epoch"] < epoch] + [{**entry, "threshold": threshold}]
        write_bytes(self.folder / SIMILARITIES, json.dumps(self.entries).encode())
        self.clear()

    def _write_pairs(self, epoch: int) -> None:
        import pyarrow as pa

        pairs = torch.cat([torch.empty(0, 2, dtype=torch.int64), *self.pairs]).numpy()
        scores = torch.cat([torch.empty(0, dtype=torch.float32), *self.scores]).numpy()
        table = pair_table(self.images, pairs, scores, epoch)
        if self.written is not None:
            earlier = self.written.filter(self.written["epoch"].to_numpy() < epoch)
            table = pa.concat_tables([earlier, table], promote_options="default")
        write_table(table, self.folder / FLAGGED)
        self.written = table


def _read_similarities(folder: Path) -> list[dict[str, Any]]:
    """The entries of similarities.json; empty if there is none.

    Raises:
        UserError: it is damaged.
    """
    path = folder / SIMILARITIES
    if not path.is_file():
        return []
    try:
        entries = list(read_json(path))
        if not all(isinstance(entry, dict) and isinstance(entry.get("epoch"), int) for entry in entries):
            raise ValueError("an entry without an epoch")
    except (OSError, ValueError, TypeError) as error:
        raise damaged(path, str(error)) from error
    return entries


def _highest(pairs: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of images with the highest score that any two of their views have."""
    distinct, inverse = pairs.unique(dim=0, return_inverse=True)
    best = scores.new_full((len(distinct),), -torch.inf).scatter_reduce(0, inverse, scores, "amax")
    return distinct, best
