"""What a run's folder holds, read so that a missing, half-written or damaged file costs its own part of the report only."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from falseneg.foreign.archives import load_arrays
from falseneg.foreign.parquet import read_numbers
from falseneg.foreign.text import read_yaml

T = TypeVar("T")
PAIRS = 2**21
"""Pairs that flagged.parquet may hold, more than a run writes."""
SIDE = 512
"""Pixels of a thumbnail's side, at most."""
LARGEST = 1e15
"""No figure of a run comes near it; sums and axes of larger numbers may overflow."""


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

    run.about = part("run.json", _about, {})
    run.settings_text = part("config.yaml", lambda path: path.read_text("utf-8"), "")
    run.settings = part("config.yaml", _settings, {}, expected=False)
    lines: list[dict[str, Any]] = part("metrics.jsonl", lambda path: _lines(path, run), [])
    cleaned = [figures(line, ("loss",)) for line in lines]
    if dropped := sum(number for _, number in cleaned):
        run.notes.append(f"{run.name}: values of metrics.jsonl that are no usable numbers are left out ({dropped})")
    for line, _ in cleaned:
        _sort_in(run, line)
    run.epochs.sort(key=lambda line: float(line["epoch"]))
    diverged = [line["epoch"] for line in run.epochs if not math.isfinite(line.get("loss") or 0.0)]
    if diverged:
        run.notes.append(f"{run.name}: the loss is not a finite number from epoch {diverged[0]} on: training diverged")
    if pictures:
        run.similarities = part("similarities.json", lambda path: _similarities(path, run), [], expected=run.finished)
        flags = any(line.get("share_flagged") for line in run.epochs)
        run.flagged = part("flagged.parquet", _flagged, None, expected=run.finished and flags)
        run.thumbnails = part("thumbnails.npz", _thumbnails, None, expected=run.flagged is not None)
        run.embedding = part("embedding.npz", _embedding, None, expected=run.finished)
        run.clusters = part("clusters.npz", _clusters, None, expected=False)
        for path in sorted(folder.glob("per_sample/epoch-*.npz")):
            epoch = path.stem.removeprefix("epoch-")
            if epoch.isdecimal() and (arrays := part(f"per_sample/{path.name}", load_arrays, None)) is not None:
                run.samples[int(epoch)] = arrays
    return run


def figures(line: dict[str, Any], undefined: tuple[str, ...] = ()) -> tuple[dict[str, Any], int]:
    """The figures of a line without those that are no numbers; and how many these are.

    Args:
        line: figures by name, and its "kind".
        undefined: of these a value that is not finite is kept, for it says something.
    """
    kept = {key: value for key, value in line.items() if key == "kind" or value is None or is_figure(value)}
    kept |= {key: value for key, value in line.items() if key in undefined and isinstance(value, float)}
    return kept, len(line) - len(kept)


def is_figure(value: Any) -> bool:
    """Whether a value is a number that can be drawn."""
    return isinstance(value, int | float) and -LARGEST <= value <= LARGEST


def _about(path: Path) -> dict[str, Any]:
    """What run.json says in words and numbers; anything else in it is left out."""
    content = json.loads(path.read_text("utf-8"))
    git = content.get("git")
    about = {key: value for key, value in content.items() if isinstance(value, str) or is_figure(value)}
    if isinstance(git, dict) and isinstance(git.get("commit"), str):
        about["git"] = {"commit": git["commit"], "dirty": bool(git.get("dirty"))}
    return about


def _settings(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    return content if isinstance(content, dict) else {}


def _lines(path: Path, run: RunRecord) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl. The last may be half written if the run was killed; others should be whole."""
    lines, broken = [], 0
    texts = path.read_text("utf-8", errors="replace").split("\n")
    for number, text in enumerate(texts):
        try:
            line = json.loads(text) if text.strip() else None
        except (ValueError, RecursionError):
            line, broken = None, broken + (number < len(texts) - 1)
        if isinstance(line, dict):
            lines.append(line)
    if broken:
        run.notes.append(f"{run.name}: {broken} lines of metrics.jsonl are damaged and left out")
    return lines


def _sort_in(run: RunRecord, line: dict[str, Any]) -> None:
    numbered = line.get("epoch") is not None
    if line.get("kind") == "epoch" and numbered:
        if run.epochs and run.epochs[-1]["epoch"] >= line["epoch"]:
            run.epochs = [other for other in run.epochs if other["epoch"] != line["epoch"]]
        run.epochs.append(line)
    elif line.get("kind") == "step" and numbered:
        run.steps.append(line)
    elif line.get("kind") == "final":
        run.final = line


def _similarities(path: Path, run: RunRecord) -> list[dict[str, Any]]:
    entries = json.loads(path.read_text("utf-8"))
    usable = [entry for entry in entries if _is_histogram(entry)]
    _check(bool(usable) or entries == [])
    if len(usable) < len(entries):
        run.notes.append(
            f"{run.name}: damaged entries of similarities.json are left out ({len(entries) - len(usable)})"
        )
    return [entry for entry in usable if len(entry["edges"]) > 1 and entry["epoch"] > 0]


def _is_histogram(entry: Any) -> bool:
    """Whether an entry holds an epoch, rising edges and, between these, counts."""
    if not isinstance(entry, dict) or not isinstance(entry.get("epoch"), int) or not is_figure(entry["epoch"]):
        return False
    thresholds = entry.get("threshold")
    thresholds = thresholds if isinstance(thresholds, list) else [thresholds]
    edges = entry.get("edges")
    if not isinstance(edges, list) or not all(is_figure(edge) for edge in edges):
        return False
    counts = [value for key, value in entry.items() if key not in ("epoch", "edges", "threshold") and value is not None]
    return (
        all(low < high for low, high in itertools.pairwise(edges))
        and all(threshold is None or is_figure(threshold) for threshold in thresholds)
        and all(isinstance(each, list) and len(each) == max(0, len(edges) - 1) for each in counts)
        and all(is_figure(count) and count >= 0 for each in counts for count in each)
    )


def _check(right: bool) -> None:
    """Refuse a file of another form; `read_run` says that it was left out."""
    if not right:
        raise ValueError("another form")


def _are(values: np.ndarray, kinds: str, length: int | None = None, dimensions: int = 1) -> bool:
    """Whether an array is of these kinds of numbers (as NumPy abbreviates them) and this shape."""
    return values.dtype.kind in kinds and values.ndim == dimensions and length in (None, len(values))


def _flagged(path: Path) -> Flagged:
    columns = read_numbers(path, COLUMNS, PAIRS)
    anchor, candidate, score, epoch = (columns[key] for key in ("anchor", "candidate", "score", "epoch"))
    correct = columns.get("correct")
    _check(all(_are(column, "iu") for column in (anchor, candidate, epoch)) and _are(score, "f"))
    _check(bool(np.isfinite(score).all()) and (correct is None or _are(correct, "b")))
    return Flagged(anchor, candidate, score, epoch, correct)


COLUMNS = ("anchor", "candidate", "score", "epoch", "correct")


def _clusters(path: Path) -> Clusters:
    arrays, thumbnails = load_arrays(path), _thumbnails(path)
    group_of, groups, sizes, majority, accepted = (
        arrays[name] for name in ("group_of", "groups", "sizes", "majority", "accepted")
    )
    purity = arrays["purity"]
    _check(_are(group_of, "iu", len(thumbnails.rows)) and _are(groups, "iu"))
    _check(all(_are(each, "iu", len(groups)) for each in (sizes, majority, accepted)))
    _check(_are(purity, "f", len(groups)))
    return Clusters(thumbnails, group_of, groups, sizes, majority, purity, accepted)


def _thumbnails(path: Path) -> Thumbnails:
    arrays = load_arrays(path)
    rows, images, names, labels, class_names = (
        arrays.get(name) for name in ("rows", "images", "names", "labels", "class_names")
    )
    if rows is None or images is None:
        raise ValueError("no pictures")
    _check(_are(rows, "iu") and _are(images, "u", len(rows), 4) and images.dtype == np.uint8)
    _check(images.shape[3] == 3 and 0 < images.shape[1] <= SIDE and 0 < images.shape[2] <= SIDE)
    _check(names is None or _are(names, "U", len(rows)))
    _check(labels is None or _are(labels, "iu", len(rows)))
    _check(class_names is None or _are(class_names, "U"))
    return Thumbnails(
        rows,
        images,
        None if names is None else [str(name) for name in names],
        labels,
        None if class_names is None else [str(name) for name in class_names],
    )


def _embedding(path: Path) -> Embedding:
    arrays = load_arrays(path)
    features, labels = arrays["features"], arrays.get("labels")
    _check(_are(features, "f", dimensions=2) and (labels is None or _are(labels, "iu", len(features))))
    return Embedding(features, labels)
