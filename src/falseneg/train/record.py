"""What the report shows of a run: flagged pairs, similarities, thumbnails, and an embedding to draw a map of."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from falseneg.errors import UserError
from falseneg.files import replacing, write_bytes
from falseneg.foreign.parquet import read_numbers
from falseneg.foreign.text import read_json
from falseneg.losses import Judged
from falseneg.rules import AboveThreshold, SameGroup
from falseneg.statistics import flagged_pairs, similarity_histogram

if TYPE_CHECKING:
    from falseneg.data import ImageSet

WATCHED = 256
"""Images whose flagged pairs are recorded: the same at every recorded epoch."""
MOST_PAIRS = 100_000
"""Recorded pairs of one epoch at most."""
MOST_FLAGGED = 2**21
"""Recorded pairs of all epochs at most, where several contrasts or levels have so many each."""
MOST_EPOCHS = 3
MOST_HISTOGRAMS = 100
"""Steps of one epoch that the histogram of similarities is made of, at most, evenly spread."""
BINS = 100
MAPPED = 1000
"""Images in the embedding that the map is drawn of, at most."""
ANCHORS, PER_ANCHOR, SIDE = 16, 8, 64
"""The gallery: anchors, candidates of each at each recorded epoch, and pixels of a thumbnail's side."""

FLAGGED, SIMILARITIES = "flagged.parquet", "similarities.json"
_KINDS = {"anchor": "i", "candidate": "i", "score": "f", "epoch": "i"}
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
        rows: images in the data set.
        steps_per_epoch: over which the recorded pairs are spread.
        watched: (rows,) bool on the device, the anchors whose pairs are recorded.
    """

    folder: Path
    labels: Tensor | None
    rows: int
    steps_per_epoch: int
    seed: int
    device: torch.device

    def __post_init__(self) -> None:
        chosen = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.seed))[:WATCHED]
        self.watched = torch.zeros(self.rows, dtype=torch.bool)
        self.watched[chosen] = True
        self.watched = self.watched.to(self.device)
        self.written: dict[str, np.ndarray] = {}
        self.entries: list[dict[str, Any]] = []
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
        edges = torch.linspace(-1, 1, BINS + 1, dtype=torch.float64).tolist()
        threshold = sum(self.thresholds) / len(self.thresholds) if self.thresholds else None
        entry = {"epoch": epoch, "edges": edges, **{kind: count.tolist() for kind, count in self.histogram.items()}}
        self.entries = [old for old in self.entries if old["epoch"] < epoch] + [{**entry, "threshold": threshold}]
        write_bytes(self.folder / SIMILARITIES, json.dumps(self.entries).encode())
        self.clear()

    def state(self) -> dict[str, Any]:
        """What was collected so far, for the checkpoint."""
        return {name: copy.copy(getattr(self, name)) for name in _COLLECTED}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there, and from what was written before.

        Raises:
            UserError: a file that was written before is damaged.
        """
        for name in _COLLECTED:
            setattr(self, name, copy.copy(state[name]))
        self.written, self.entries = _read_flagged(self.folder), _read_similarities(self.folder)
        if self.written and ("correct" in self.written) != (self.labels is not None):
            raise _damaged(self.folder / FLAGGED, "the column 'correct'")

    def _write_pairs(self, epoch: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pairs = torch.cat([torch.empty(0, 2, dtype=torch.int64), *self.pairs])
        columns: dict[str, Any] = {"anchor": pairs[:, 0].numpy(), "candidate": pairs[:, 1].numpy()}
        columns["score"] = torch.cat([torch.empty(0, dtype=torch.float32), *self.scores]).numpy()
        columns["epoch"] = np.full(len(pairs), epoch, dtype=np.int32)
        if self.labels is not None:
            of_anchor, of_candidate = self.labels.cpu()[pairs].unbind(1)
            columns["correct"] = ((of_anchor == of_candidate) & (of_anchor >= 0)).numpy()
        columns = {key: new[: MOST_FLAGGED // MOST_EPOCHS] for key, new in columns.items()}
        if self.written:
            earlier = self.written["epoch"] < epoch
            columns = {key: np.concatenate([self.written[key][earlier], new]) for key, new in columns.items()}
        with replacing(self.folder / FLAGGED) as file:
            pq.write_table(pa.table(columns), file, compression="zstd")  # type: ignore[attr-defined]
        self.written = columns


def _read_flagged(folder: Path) -> dict[str, np.ndarray]:
    """The columns of flagged.parquet, which may come from anybody; empty if there is none.

    Raises:
        UserError: it is damaged.
    """
    path = folder / FLAGGED
    if not path.is_file():
        return {}
    try:
        columns = read_numbers(path, (*_KINDS, "correct"), MOST_FLAGGED)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file makes Arrow raise
        raise _damaged(path, type(error).__name__) from error
    for name, kind in _KINDS.items():
        if name not in columns or columns[name].dtype.kind != kind:
            raise _damaged(path, f"the column {name!r}")
    if len(np.unique(columns["epoch"])) > MOST_EPOCHS:
        raise _damaged(path, f"more than {MOST_EPOCHS} epochs")
    return columns


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
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(path, type(error).__name__) from error
    if not all(isinstance(entry, dict) and isinstance(entry.get("epoch"), int) for entry in entries):
        raise _damaged(path, "an entry without an epoch")
    return entries


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged ({what}); put a whole copy in its place, or remove it")


def _highest(pairs: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of images with the highest score that any two of their views have."""
    distinct, inverse = pairs.unique(dim=0, return_inverse=True)
    best = scores.new_full((len(distinct),), -torch.inf).scatter_reduce(0, inverse, scores, "amax")
    return distinct, best


def write_embedding(folder: Path, encoder: nn.Module, images: ImageSet, size: int, device: torch.device) -> None:
    """Features of some images, evenly spread over the data set, for the map."""
    from falseneg.data import Subset
    from falseneg.evaluation import extract_features

    rows = torch.linspace(0, len(images) - 1, min(MAPPED, len(images))).long()
    features = extract_features(encoder, Subset(images, rows), size, device=device)
    arrays: dict[str, Any] = {"features": features.numpy(), "rows": rows.numpy()}
    if images.labels is not None:
        arrays["labels"] = images.labels[rows].numpy()
    with replacing(folder / "embedding.npz") as file:
        np.savez(file, **arrays)


def write_thumbnails(folder: Path, images: ImageSet) -> None:
    """Small pictures of the anchors that were flagged for at most recorded epochs, and of their best-scored candidates."""
    flagged = _read_flagged(folder)
    rows = [row for row in gallery_rows(flagged) if 0 <= row < len(images)] if flagged else []
    with replacing(folder / "thumbnails.npz") as file:
        np.savez_compressed(file, **thumbnail_arrays(images, rows))


def thumbnail_arrays(images: ImageSet, rows: Sequence[int]) -> dict[str, Any]:
    """Small pictures of these rows, with what is known of them: rows, names, images and, where there are any, labels."""
    arrays: dict[str, Any] = {
        "rows": np.array(rows, dtype=np.int64),
        "names": np.array([images.describe(row) for row in rows], dtype=str),
    }
    pictures = [thumbnail(images.image(row)).permute(1, 2, 0).numpy() for row in rows]
    arrays["images"] = np.stack(pictures) if pictures else np.empty((0, SIDE, SIDE, 3), dtype=np.uint8)
    if images.labels is not None:
        arrays["labels"] = images.labels[rows].numpy()
        if images.class_names is not None:
            arrays["class_names"] = np.array(list(images.class_names), dtype=str)
    return arrays


def gallery_rows(flagged: Mapping[str, Any]) -> list[int]:
    """The data-set rows that the gallery shows, from the columns of flagged.parquet."""
    anchor, candidate, score, epoch = (np.asarray(flagged[name]) for name in _KINDS)
    visits = np.unique(np.stack([anchor, epoch], axis=1), axis=0)
    anchors, epochs = np.unique(visits[:, 0], return_counts=True)
    chosen: list[int] = []
    for number in sorted(set(epochs.tolist()), reverse=True):
        group = anchors[epochs == number]
        room = min(ANCHORS - len(chosen), len(group))
        # Spread over the data set: the first rows of a folder are all of one class.
        chosen += [int(group[place * len(group) // room]) for place in range(room)]
    rows = set(chosen)
    for one, at in visits[np.isin(visits[:, 0], chosen)]:
        here = np.flatnonzero((anchor == one) & (epoch == at))
        best = here[np.lexsort((candidate[here], -score[here]))[:PER_ANCHOR]]
        rows.update(candidate[best].tolist())
    return sorted(rows)


def thumbnail(image: Tensor) -> Tensor:
    """(3, 64, 64) uint8: the middle square of a (3, H, W) uint8 image."""
    side = min(image.shape[-2:])
    top, left = (image.shape[-2] - side) // 2, (image.shape[-1] - side) // 2
    square = image[None, :, top : top + side, left : left + side].float()
    # Tiny images are shown as the pixels that they are.
    form: dict[str, Any] = {"mode": "bilinear", "antialias": True} if side > SIDE // 2 else {"mode": "nearest"}
    return interpolate(square, (SIDE, SIDE), **form)[0].round().clamp(0, 255).to(torch.uint8)
