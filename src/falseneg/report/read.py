"""What a run's folder holds, read so that a missing, half-written or damaged file costs its own part of the report only."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from falseneg.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Flagged:
    """The columns of flagged.parquet, each (k,).

    Attributes:
        anchor: data-set rows.
        candidate: data-set rows.
        score: cosines.
        epoch: from 1.
        correct: whether the two share a label; None without labels.
    """

    anchor: np.ndarray
    candidate: np.ndarray
    score: np.ndarray
    epoch: np.ndarray
    correct: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Small pictures for the gallery.

    Attributes:
        rows: (k,) data-set rows.
        images: (k, H, W, 3) uint8.
        names: file or key of each; or None.
        labels: (k,) classes, −1 where unknown; or None.
        class_names: the name of each class; or None.
    """

    rows: np.ndarray
    images: np.ndarray
    names: list[str] | None
    labels: np.ndarray | None
    class_names: list[str] | None


@dataclass(frozen=True, eq=False)
class Clusters:
    """Some clusters for the gallery, and some images of each.

    Attributes:
        thumbnails: of k images.
        group_of: (k,) the cluster of each.
        groups: (g,) the clusters that are shown.
        sizes: (g,) images in each.
        majority: (g,) its most frequent class, −1 without labels.
        purity: (g,) the share of that class among its labelled images.
        accepted: (g,) its images that took it for a pseudo-label, −1 where there are none.
    """

    thumbnails: Thumbnails
    group_of: np.ndarray
    groups: np.ndarray
    sizes: np.ndarray
    majority: np.ndarray
    purity: np.ndarray
    accepted: np.ndarray


@dataclass(frozen=True, eq=False)
class Embedding:
    """Features for the map: (m, F), and (m,) labels or None."""

    features: np.ndarray
    labels: np.ndarray | None


@dataclass
class RunRecord:
    """All that is known of a run. What could not be read is empty or None, and said in ``notes``.

    Attributes:
        name: of its folder, or its variant and seed.
        about: run.json.
        settings: config.yaml.
        settings_text: the same as it stands there.
        epochs: the epoch lines of metrics.jsonl; of an epoch that was repeated the last.
        steps: its step lines.
        final: its final line; None if the run has not finished.
        flagged: flagged.parquet.
        similarities: similarities.json.
        embedding: embedding.npz.
        thumbnails: thumbnails.npz.
        samples: the arrays of per_sample/epoch-NNNNN.npz, by epoch and name.
        clusters: clusters.npz.
        notes: what is missing or damaged, a sentence each.
    """

    name: str
    about: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    settings_text: str = ""
    epochs: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    final: dict[str, Any] | None = None
    flagged: Flagged | None = None
    similarities: list[dict[str, Any]] = field(default_factory=list)
    embedding: Embedding | None = None
    thumbnails: Thumbnails | None = None
    samples: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    clusters: Clusters | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.final is not None

    @property
    def last(self) -> dict[str, Any]:
        """The figures of the last epoch; empty before the first is done."""
        return self.epochs[-1] if self.epochs else {}


def is_run(folder: Path) -> bool:
    """Whether a folder looks like that of a run."""
    return any((folder / name).is_file() for name in ("metrics.jsonl", "run.json"))


def read_run(folder: Path, name: str | None = None, pictures: bool = True) -> RunRecord:
    """Read a run's folder.

    Args:
        folder: of the run.
        name: what to call it; None takes the folder's own name.
        pictures: also what is drawn for a single run: flagged pairs, similarities, thumbnails, embedding.
    """
    run = RunRecord(name or folder.resolve().name)

    def part(file: str, read: Callable[[Path], T], otherwise: T, expected: bool = True) -> T:
        path = folder / file
        if not path.is_file():
            if expected:
                run.notes.append(f"{run.name}: {file} is missing")
            return otherwise
        try:
            return read(path)
        except Exception as error:  # whatever a damaged file makes its reader raise
            run.notes.append(f"{run.name}: {file} cannot be read ({type(error).__name__}), so its part is left out")
            return otherwise

    run.about = part("run.json", _mapping, {})
    run.settings_text = part("config.yaml", lambda path: path.read_text("utf-8"), "")
    run.settings = part("config.yaml", _settings, {}, expected=False)
    lines: list[dict[str, Any]] = part("metrics.jsonl", lambda path: _lines(path, run), [])
    for line in lines:
        _sort_in(run, line)
    run.epochs.sort(key=lambda line: float(line["epoch"]))
    diverged = [line["epoch"] for line in run.epochs if not math.isfinite(line.get("loss") or 0.0)]
    if diverged:
        run.notes.append(f"{run.name}: the loss is not a finite number from epoch {diverged[0]} on: training diverged")
    if pictures:
        run.similarities = part("similarities.json", _similarities, [], expected=run.finished)
        flags = any(line.get("share_flagged") for line in run.epochs)
        run.flagged = part("flagged.parquet", _flagged, None, expected=run.finished and flags)
        run.thumbnails = part("thumbnails.npz", _thumbnails, None, expected=run.flagged is not None)
        run.embedding = part("embedding.npz", _embedding, None, expected=run.finished)
        run.clusters = part("clusters.npz", _clusters, None, expected=False)
        for path in sorted(folder.glob("per_sample/epoch-*.npz")):
            if (arrays := part(f"per_sample/{path.name}", _arrays, None)) is not None:
                run.samples[int(path.stem.removeprefix("epoch-"))] = arrays
    return run


def _mapping(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text("utf-8"))
    if not isinstance(content, dict):
        raise ValueError("no mapping")
    return content


def _settings(path: Path) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    content = yaml.safe_load(path.read_text("utf-8"))
    return content if isinstance(content, dict) else {}


def _lines(path: Path, run: RunRecord) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl. The last may be half written if the run was killed; others should be whole."""
    lines, broken = [], 0
    texts = path.read_text("utf-8", errors="replace").split("\n")
    for number, text in enumerate(texts):
        try:
            line = json.loads(text) if text.strip() else None
        except ValueError:
            line, broken = None, broken + (number < len(texts) - 1)
        if isinstance(line, dict):
            lines.append(line)
    if broken:
        run.notes.append(f"{run.name}: {broken} lines of metrics.jsonl are damaged and left out")
    return lines


def _sort_in(run: RunRecord, line: dict[str, Any]) -> None:
    numbered = isinstance(line.get("epoch"), int | float)
    if line.get("kind") == "epoch" and numbered:
        if run.epochs and run.epochs[-1]["epoch"] >= line["epoch"]:
            run.epochs = [other for other in run.epochs if other["epoch"] != line["epoch"]]
        run.epochs.append(line)
    elif line.get("kind") == "step" and numbered:
        run.steps.append(line)
    elif line.get("kind") == "final":
        run.final = line


def _similarities(path: Path) -> list[dict[str, Any]]:
    entries = json.loads(path.read_text("utf-8"))
    return [entry for entry in entries if len(entry["edges"]) > 1 and int(entry["epoch"]) > 0]


def _flagged(path: Path) -> Flagged:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    anchor, candidate, score, epoch = (table[key].to_numpy() for key in ("anchor", "candidate", "score", "epoch"))
    correct = table["correct"].to_numpy() if "correct" in table.column_names else None
    return Flagged(anchor, candidate, score, epoch, correct)


def _arrays(path: Path) -> dict[str, np.ndarray] | None:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _clusters(path: Path) -> Clusters:
    with np.load(path, allow_pickle=False) as arrays:
        named = {name: arrays[name] for name in ("group_of", "groups", "sizes", "majority", "purity", "accepted")}
    return Clusters(_thumbnails(path), **named)


def _thumbnails(path: Path) -> Thumbnails:
    with np.load(path, allow_pickle=False) as arrays:
        rows, images = arrays["rows"], arrays["images"]
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or len(rows) != len(images):
            raise UserError("pictures of another form")
        names = [str(name) for name in arrays["names"]] if "names" in arrays else None
        labels = arrays.get("labels")
        class_names = [str(name) for name in arrays["class_names"]] if "class_names" in arrays else None
    return Thumbnails(rows, images, names, labels, class_names)


def _embedding(path: Path) -> Embedding:
    with np.load(path, allow_pickle=False) as arrays:
        features = arrays["features"]
        return Embedding(features, arrays.get("labels"))
