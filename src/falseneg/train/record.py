"""What the report shows of a run: flagged pairs, similarities, thumbnails, and an embedding to draw a map of."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from falseneg.files import replacing, write_bytes
from falseneg.losses import Judged
from falseneg.rules import AboveThreshold, SameGroup
from falseneg.statistics import flagged_pairs, similarity_histogram
from falseneg.train.names import EMBEDDING, FLAGGED, PAIRS, PICTURES, SIMILARITIES, THUMBNAILS
from falseneg.train.pairs import NAMED, as_csv, pair_table, write_pictures

if TYPE_CHECKING:
    from falseneg.data import ImageSet

WATCHED = 256
"""Images whose flagged pairs are recorded: the same at every recorded epoch."""
MOST_PAIRS = 100_000
"""Recorded pairs of one epoch at most."""
MOST_HISTOGRAMS = 100
"""Steps of one epoch that the histogram of similarities is made of, at most, evenly spread."""
BINS = 100
MAPPED, MAP_SIDE = 600, 48
"""The map: images on it at most, and pixels of a side of their pictures."""
ANCHORS, PER_ANCHOR, ENLARGED = 16, 8, 96
"""The gallery: anchors; candidates of each at each recorded epoch, and wrong ones; pixels of a picture's side."""
SIDE = 64
"""Pixels of the side of a picture that the report does not enlarge."""

_COLLECTED = ("steps", "pairs", "scores", "histogram", "thresholds")


def recorded_epochs(epochs: int) -> list[int]:
    """An early epoch (just after the first tenth, when detectors that start late have started), the middle, the last."""
    return sorted({min(epochs // 10 + 1, epochs), (epochs + 1) // 2, epochs})


@dataclass
class Recorder:
    """Collects during the recorded epochs, and writes at the end of each.

    Attributes:
        folder: of the run.
        labels: (rows,) int64 on the device, or None.
        images: the data set.
        steps_per_epoch: over which the recorded pairs are spread.
        watched: (rows,) bool on the device, the anchors whose pairs are recorded.
    """

    folder: Path
    labels: Tensor | None
    images: ImageSet
    steps_per_epoch: int
    seed: int
    device: torch.device

    def __post_init__(self) -> None:
        rows = len(self.images)
        chosen = torch.randperm(rows, generator=torch.Generator().manual_seed(self.seed))[:WATCHED]
        self.watched = torch.zeros(rows, dtype=torch.bool)
        self.watched[chosen] = True
        self.watched = self.watched.to(self.device)
        self.clear()

    def clear(self) -> None:
        self.steps = 0
        self.pairs: list[Tensor] = []
        self.scores: list[Tensor] = []
        self.histogram: dict[str, Tensor] = {}
        self.thresholds: list[float] = []

    @torch.no_grad()
    def add(self, judged: Sequence[Judged]) -> None:
        """Collect from one step of a recorded epoch."""
        histogram_due = self.steps % -(-self.steps_per_epoch // MOST_HISTOGRAMS) == 0
        self.steps += 1
        for contrast, rule, _ in judged:
            counts = similarity_histogram(contrast, rule, self.labels, BINS) if histogram_due else {}
            for kind, count in counts.items():
                self.histogram[kind] = self.histogram.get(kind, 0) + count.cpu()
            group = self.watched[contrast.anchors.sample.clamp(min=0)].long()[:, None] - 1
            anyone = torch.zeros(len(contrast.candidates), 1, dtype=torch.int64, device=group.device)
            limit = max(1, MOST_PAIRS // self.steps_per_epoch)
            anchor, column, score = flagged_pairs(contrast, rule & SameGroup(group, anyone), limit)
            pairs = torch.stack([contrast.anchors.sample[anchor], contrast.candidates.sample[column]], dim=1)
            known = (pairs >= 0).all(dim=1)  # a bank that keeps own keys does not say whose they are
            pairs, score = _highest(pairs[known].cpu(), score[known].float().cpu())
            self.pairs.append(pairs)
            self.scores.append(score)
            if isinstance(rule, AboveThreshold) and rule.space is None:
                finite = rule.threshold[rule.threshold.isfinite()]
                self.thresholds += [float(finite.mean())] if len(finite.flatten()) else []

    def end_epoch(self, epoch: int) -> None:
        """Write what was collected in this epoch (from 1), and begin anew. A repeated epoch replaces itself."""
        self._write_pairs(epoch)
        path = self.folder / SIMILARITIES
        entries = json.loads(path.read_text()) if path.is_file() else []
        edges = torch.linspace(-1, 1, BINS + 1, dtype=torch.float64).tolist()
        threshold = sum(self.thresholds) / len(self.thresholds) if self.thresholds else None
        entry = {"epoch": epoch, "edges": edges, **{kind: count.tolist() for kind, count in self.histogram.items()}}
        entries = [old for old in entries if old["epoch"] < epoch] + [{**entry, "threshold": threshold}]
        write_bytes(path, json.dumps(entries).encode())
        self.clear()

    def state(self) -> dict[str, Any]:
        """What was collected so far, for the checkpoint."""
        return {name: copy.copy(getattr(self, name)) for name in _COLLECTED}

    def load_state(self, state: Mapping[str, Any]) -> None:
        for name in _COLLECTED:
            setattr(self, name, copy.copy(state[name]))

    def _write_pairs(self, epoch: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pairs = torch.cat([torch.empty(0, 2, dtype=torch.int64), *self.pairs]).numpy()
        scores = torch.cat([torch.empty(0, dtype=torch.float32), *self.scores]).numpy()
        table = pair_table(self.images, pairs, scores, epoch)
        path = self.folder / FLAGGED
        if path.is_file():
            before = pq.read_table(path)
            earlier = before.filter(before["epoch"].to_numpy() < epoch)
            table = pa.concat_tables([earlier, table], promote_options="default")
        with replacing(path) as file:
            pq.write_table(table, file, compression="zstd")


def _highest(pairs: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of images with the highest score that any two of their views have."""
    distinct, inverse = pairs.unique(dim=0, return_inverse=True)
    best = scores.new_full((len(distinct),), -torch.inf).scatter_reduce(0, inverse, scores, "amax")
    return distinct, best


def write_embedding(folder: Path, encoder: nn.Module, images: ImageSet, size: int, device: torch.device) -> None:
    """Features and pictures of some images, evenly spread over the data set, for the map."""
    from falseneg.data import Subset
    from falseneg.evaluation import extract_features

    rows = torch.linspace(0, len(images) - 1, min(MAPPED, len(images))).long()
    features = extract_features(encoder, Subset(images, rows), size, device=device)
    arrays: dict[str, Any] = {"features": features.numpy(), "rows": rows.numpy()}
    arrays["names"] = np.array([images.describe(row) for row in rows.tolist()], dtype=str)
    arrays["images"] = np.stack(
        [thumbnail(_small(images, row), MAP_SIDE).permute(1, 2, 0).numpy() for row in rows.tolist()]
    )
    if images.labels is not None:
        arrays["labels"] = images.labels[rows].numpy()
    with replacing(folder / EMBEDDING) as file:
        np.savez_compressed(file, **arrays)


def _small(images: ImageSet, row: int) -> Tensor:
    """An image, decoded at a smaller size where that takes less time."""
    return images.reduced(row, lambda height, width: max(1, min(height, width) // (2 * MAP_SIDE)))


def write_thumbnails(folder: Path, images: ImageSet) -> None:
    """Small pictures of the anchors that were flagged for at most recorded epochs, and of their best-scored candidates.

    They are written as arrays for the report, and as files for readers of the CSV of pairs, which is written, too.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(folder / FLAGGED) if (folder / FLAGGED).is_file() else None
    rows: list[int] = []
    if table is not None:
        rows = gallery_rows(table.select([name for name in table.column_names if name not in NAMED]).to_pydict())
    arrays = thumbnail_arrays(images, rows, ENLARGED)
    with replacing(folder / THUMBNAILS) as file:
        np.savez_compressed(file, **arrays)
    shutil.rmtree(folder / PICTURES, ignore_errors=True)
    write_pictures(folder, rows, arrays["images"])
    if table is not None:
        write_bytes(folder / PAIRS, as_csv(table, folder))


def thumbnail_arrays(images: ImageSet, rows: Sequence[int], side: int = SIDE) -> dict[str, Any]:
    """Small pictures of these rows, with what is known of them: rows, names, images and, where there are any, labels."""
    arrays: dict[str, Any] = {
        "rows": np.array(rows, dtype=np.int64),
        "names": np.array([images.describe(row) for row in rows], dtype=str),
    }
    pictures = [thumbnail(images.image(row), side).permute(1, 2, 0).numpy() for row in rows]
    arrays["images"] = np.stack(pictures) if pictures else np.empty((0, side, side, 3), dtype=np.uint8)
    if images.labels is not None:
        arrays["labels"] = images.labels[rows].numpy()
        if images.class_names is not None:
            arrays["class_names"] = np.array(list(images.class_names), dtype=str)
    return arrays


def gallery_rows(flagged: Mapping[str, Sequence[Any]]) -> list[int]:
    """The data-set rows that the gallery shows, from the columns of flagged.parquet."""
    of_anchor: dict[int, dict[int, list[tuple[float, int, bool | None]]]] = {}
    correct = flagged.get("correct", [None] * len(flagged["anchor"]))
    columns = [*(flagged[key] for key in ("anchor", "candidate", "score", "epoch")), correct]
    for anchor, candidate, score, epoch, right in zip(*columns, strict=True):
        of_anchor.setdefault(anchor, {}).setdefault(epoch, []).append((-score, candidate, right))
    chosen: list[int] = []
    for epochs in sorted({len(seen) for seen in of_anchor.values()}, reverse=True):
        group = sorted(anchor for anchor, seen in of_anchor.items() if len(seen) == epochs)
        room = min(ANCHORS - len(chosen), len(group))
        # Spread over the data set: the first rows of a folder are all of one class.
        chosen += [group[place * len(group) // room] for place in range(room)]
    rows = set(chosen)
    for anchor in chosen:
        for candidates in of_anchor[anchor].values():
            ranked = sorted(candidates, key=lambda one: one[:2])
            rows.update(candidate for _, candidate, _ in ranked[:PER_ANCHOR])
            rows.update([candidate for _, candidate, right in ranked if right is False][:PER_ANCHOR])
    return sorted(rows)


def thumbnail(image: Tensor, side: int = SIDE) -> Tensor:
    """(3, side, side) uint8: the middle square of a (3, H, W) uint8 image."""
    middle = min(image.shape[-2:])
    top, left = (image.shape[-2] - middle) // 2, (image.shape[-1] - middle) // 2
    square = image[None, :, top : top + middle, left : left + middle].float()
    # Tiny images are shown as the pixels that they are.
    form: dict[str, Any] = {"mode": "bilinear", "antialias": True} if middle > side // 2 else {"mode": "nearest"}
    return interpolate(square, (side, side), **form)[0].round().clamp(0, 255).to(torch.uint8)
