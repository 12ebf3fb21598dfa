"""What a detector holds of each image, over training: figures for the metrics, whole arrays for the report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from falseneg.detectors.global_threshold import GlobalThreshold
from falseneg.evaluation import group_figures
from falseneg.files import replacing
from falseneg.foreign.archives import load_arrays
from falseneg.train.names import CLUSTERS, PER_SAMPLE
from falseneg.train.observers.base import Figures, Observer
from falseneg.train.observers.flagged_pairs import recorded_epochs
from falseneg.train.observers.true_quantiles import Checked, Threshold, check_thresholds
from falseneg.train.progress import duration
from falseneg.train.session import Session
from falseneg.train.thumbnails import thumbnail_arrays

if TYPE_CHECKING:
    from falseneg.clock import Clock
    from falseneg.data import ImageSet
    from falseneg.detectors import Detector

TOLD_AFTER = 10.0
"""Seconds that a comparison may take without a word."""
QUANTILES = (0, 5, 25, 50, 75, 95, 100)
"""In percent: of what is known of the images."""
GROUPS, PER_GROUP = 8, 16
"""The gallery of clusters: how many are shown, and images of each."""


class PerSample(Observer):
    """Figures of what the detector holds of each image, named "threshold/50%", "clusters 30/purity", and so on.

    At the recorded epochs the first rank also writes the whole arrays, and learned thresholds are compared with the true
    quantiles of the data set, which costs a forward pass over it. Nothing is done for a detector that holds nothing.
    """

    def end_epoch(self, session: Session, epoch: int) -> Figures:
        detector, recorded = session.learner.criterion.detector, epoch in recorded_epochs(session.clock.epochs)
        held, of_all = detector.per_sample(), detector.figures()
        if not held:
            return dict(of_all)
        names = session.learner.method.contrast_names
        thresholds = learned_thresholds(detector, names, session.clock) if recorded else {}
        started = time.perf_counter()
        checked = check_thresholds(session, thresholds, epoch) if thresholds else {}
        if (seconds := time.perf_counter() - started) >= TOLD_AFTER:
            session.progress.message(f"compared learned thresholds with the whole data set for {duration(seconds)}")
        if session.metrics is None:
            return {}
        figures = dict(of_all) | summary(held, session.labels)
        for name, result in checked.items():
            figures |= {f"{name}/{key}": value for key, value in result.figures().items()}
        if recorded:
            write_arrays(session.folder, epoch, held, checked)
        return figures

    def finish(self, session: Session) -> Figures:
        write_clusters(session.folder, session.plan.train)
        return {}


def summary(held: Mapping[str, Tensor], labels: Tensor | None) -> dict[str, float | None]:
    """The figures of arrays by name: of numbers their mean and quantiles, of groups `group_figures`.

    Args:
        held: (rows,) each: floating point for a number (NaN where there is none yet), integers for a group (−1 for none).
        labels: (rows,) int64, or None.
    """
    figures: dict[str, float | None] = {}
    for name, values in held.items():
        of_one = _spread(values) if values.is_floating_point() else group_figures(values, labels)
        figures |= {f"{name}/{key}": value for key, value in of_one.items()}
    return figures


def _spread(values: Tensor) -> dict[str, float | None]:
    """How many images have a number, the mean of these numbers and their quantiles."""
    known = values[values.isfinite()].double().cpu().numpy()
    if not len(known):
        return {"known": 0}
    quantiles = np.percentile(known, QUANTILES)
    named = {f"{percent}%": float(value) for percent, value in zip(QUANTILES, quantiles, strict=True)}
    return {"known": len(known), "mean": float(known.mean()), **named}


def learned_thresholds(detector: Detector, contrasts: Sequence[str], clock: Clock) -> dict[str, Threshold]:
    """The thresholds that are learned to be quantiles of the whole data set, by name; without those not yet begun."""
    found: dict[str, Threshold] = {}
    for part in detector.modules():
        if isinstance(part, GlobalThreshold):
            held = part.per_sample()
            for contrast in contrasts:
                name = "threshold" if len(contrasts) == 1 else f"threshold {contrast}"
                values = held[name]
                name = name if name not in found else f"{name} {len(found) + 1}"
                if bool(values.isfinite().any()):
                    found[name] = Threshold(contrast, values, part.alpha_at(clock), part.space)
    return found


def write_arrays(folder: Path, epoch: int, held: Mapping[str, Tensor], checked: Mapping[str, Checked]) -> None:
    """Write per_sample/epoch-NNNNN.npz; a repeated epoch replaces itself.

    It holds the arrays by their names, (rows,) in float32 or int32, and of each checked threshold "NAME/rows",
    "NAME/true", "NAME/learned", "NAME/share" and "NAME/alpha".
    """
    arrays: dict[str, Any] = {}
    for name, values in held.items():
        arrays[name] = values.detach().to("cpu", torch.float32 if values.is_floating_point() else torch.int32).numpy()
    for name, result in checked.items():
        arrays |= {f"{name}/{key}": np.asarray(value) for key, value in vars(result).items()}
    with replacing(folder / PER_SAMPLE / f"epoch-{epoch:05d}.npz") as file:
        np.savez_compressed(file, **arrays)


def write_clusters(folder: Path, images: ImageSet) -> None:
    """Some clusters of the last recorded epoch with small pictures, into clusters.npz; nothing if there are no clusters.

    They are those of the level with the fewest clusters.
    """
    recorded = sorted((folder / PER_SAMPLE).glob("epoch-*.npz"))
    if not recorded:
        return
    arrays = load_arrays(recorded[-1], ("clusters ", "pseudo-labels "))
    levels = {name: int(groups.max()) for name, groups in arrays.items() if name.startswith("clusters ")}
    levels = {name: highest for name, highest in levels.items() if highest >= 0}
    if not levels:
        return
    level = min(levels, key=lambda name: levels[name])
    groups, pseudo_labels = arrays[level], arrays.get(level.replace("clusters", "pseudo-labels"))
    accepted = None if pseudo_labels is None else pseudo_labels >= 0
    shown = shown_groups(groups, accepted)
    labels = None if images.labels is None else images.labels.numpy()
    content = thumbnail_arrays(images, [row for members in shown.values() for row in members])
    content["group_of"] = np.array([group for group, members in shown.items() for _ in members], dtype=np.int64)
    content["groups"] = np.array(list(shown), dtype=np.int64)
    described = [_described(groups == group, labels, accepted) for group in shown]
    for name in ("sizes", "majority", "purity", "accepted"):
        content[name] = np.array([one[name] for one in described])
    with replacing(folder / CLUSTERS) as file:
        np.savez_compressed(file, **content)


def _described(members: np.ndarray, labels: np.ndarray | None, accepted: np.ndarray | None) -> dict[str, float]:
    """What is said of a cluster: −1 for what is not known."""
    known = np.empty(0, dtype=np.int64) if labels is None else labels[members & (labels >= 0)]
    counts = np.bincount(known) if len(known) else np.zeros(0, dtype=np.int64)
    return {
        "sizes": int(members.sum()),
        "majority": int(counts.argmax()) if len(counts) else -1,
        "purity": float(counts.max() / counts.sum()) if len(counts) else -1.0,
        "accepted": -1 if accepted is None else int((members & accepted).sum()),
    }


def shown_groups(groups: np.ndarray, accepted: np.ndarray | None) -> dict[int, list[int]]:
    """Some groups, evenly spread from the largest to the smallest, and some of their images, evenly spread over the data.

    Args:
        groups: (rows,) the group of each image, −1 for none.
        accepted: (rows,) bool, images that come first; or None.
    """
    numbers, sizes = np.unique(groups[groups >= 0], return_counts=True)
    by_size = numbers[np.argsort(-sizes, kind="stable")]
    shown = {}
    for group in _evenly(by_size, GROUPS):
        members = np.flatnonzero(groups == group)
        first = members if accepted is None else members[accepted[members]]
        chosen = _evenly(first, PER_GROUP)
        chosen += _evenly(np.setdiff1d(members, first), PER_GROUP - len(chosen))
        shown[int(group)] = chosen
    return shown


def _evenly(values: np.ndarray, most: int) -> list[int]:
    """At most that many of the values, evenly spread."""
    places = np.linspace(0, len(values) - 1, most).round().astype(int) if len(values) > most else range(len(values))
    return [int(values[place]) for place in places]
