"""Clusters and pseudo-labels: how good they are over training, how large they are, and what is in some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from markupsafe import Markup

from falseneg.foreign.archives import load_arrays
from falseneg.report.arrays import are, check
from falseneg.report.chart import Chart, Quantity, Style, chart, points, style_of
from falseneg.report.comparison import ComparisonRecord
from falseneg.report.frame import Axis, Frame
from falseneg.report.pictures import Picture, PictureMaker, Thumbnails, class_name, read_thumbnails
from falseneg.report.read import File, RunRecord
from falseneg.report.samples import PER_SAMPLE, samples_of
from falseneg.report.section import Section, part
from falseneg.report.svg import counted, percent, plain, round_steps, tag
from falseneg.train import names

CLUSTERS, PSEUDO_LABELS = "clusters ", "pseudo-labels "
FIGURES = (
    (
        CLUSTERS,
        "purity",
        "Purity of clusters",
        "Images that belong to the most frequent class of their cluster.",
        False,
    ),
    (
        CLUSTERS,
        "nmi",
        "NMI of clusters and classes",
        "Normalised mutual information: 1 if the two agree, 0 if they are unrelated.",
        False,
    ),
    (
        PSEUDO_LABELS,
        "assigned",
        "Pseudo-labels accepted",
        "Images whose cluster was accepted as their pseudo-label.",
        True,
    ),
    (
        PSEUDO_LABELS,
        "precision",
        "Precision of pseudo-labels",
        "Pairs of images with the same pseudo-label that are of the same class. Dotted: chance.",
        True,
    ),
    (
        PSEUDO_LABELS,
        "recall",
        "Recall of pseudo-labels",
        "Pairs of images of the same class that have the same pseudo-label.",
        True,
    ),
)
"""Which arrays, which of their figures, title, note, and whether the axis starts at zero."""
SHARES = {"purity", "assigned", "precision", "recall"}
MOST_BARS = 24


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


def _read(path: Path, _: RunRecord) -> Clusters:
    arrays, thumbnails = load_arrays(path), read_thumbnails(path)
    group_of, groups, sizes, majority, accepted = (
        arrays[name] for name in ("group_of", "groups", "sizes", "majority", "accepted")
    )
    purity = arrays["purity"]
    check(are(group_of, "iu", len(thumbnails.rows)) and are(groups, "iu"))
    check(all(are(each, "iu", len(groups)) for each in (sizes, majority, accepted)))
    check(are(purity, "f", len(groups)))
    return Clusters(thumbnails, group_of, groups, sizes, majority, purity, accepted)


@dataclass(frozen=True)
class Sizes:
    """A drawn histogram of the sizes of the clusters of one level."""

    title: str
    sentence: str
    drawing: Markup


@dataclass(frozen=True)
class ShownCluster:
    """A cluster of the gallery: what is said of it, and some of its images."""

    title: str
    sentence: str
    pictures: list[Picture]


def levels_of(runs: Sequence[RunRecord]) -> list[str]:
    """The numbers of clusters of a hierarchy, as the metrics name them, from few to many."""
    keys = {key.split("/")[0] for run in runs for line in run.epochs for key in line if key.startswith(CLUSTERS)}
    levels = [key.removeprefix(CLUSTERS) for key in keys]
    return sorted(levels, key=lambda level: (int(level) if level.isdigit() else 10**9, level))


def cluster_charts(variants: Sequence[tuple[str, Sequence[RunRecord]]]) -> tuple[list[Chart], list[Style]]:
    """The figures of clusters and pseudo-labels over training, a curve for each level; and the curves' legend.

    Args:
        variants: names and runs; a single run has an empty name.
    """
    curves = [(name, level, runs) for name, runs in variants for level in levels_of(runs)]
    labels = [f"{name}, {level} clusters" if name else f"{level} clusters" for name, level, _ in curves]
    styles = [style_of(index, label) for index, label in enumerate(labels)]
    charts = []
    for what, figure, title, note, from_zero in FIGURES:
        quantity = Quantity(figure, title, note, figure in SHARES, from_zero)
        drawn = [
            (style, points([run.epochs for run in runs], f"{what}{level}/{figure}"))
            for style, (_, level, runs) in zip(styles, curves, strict=True)
        ]
        with_it = [run.epochs for _, runs in variants for run in runs if levels_of([run])]
        chance = points(with_it, "chance") if figure == "precision" and any(values for _, values in drawn) else []
        charts.append(chart(quantity, drawn, chance))
    return [one for one in charts if one is not None], styles


def size_charts(samples: Mapping[int, Mapping[str, np.ndarray]]) -> list[Sizes]:
    """The sizes of the clusters of each level, at the last recorded epoch that has clusters.

    Args:
        samples: what is held of each image, by epoch and name.
    """
    recorded = [epoch for epoch, arrays in samples.items() if any(key.startswith(CLUSTERS) for key in arrays)]
    if not recorded:
        return []
    arrays = samples[max(recorded)]
    levels = sorted((key for key in arrays if key.startswith(CLUSTERS)), key=lambda key: (len(key), key))
    drawn = []
    for name in levels:
        groups = arrays[name]
        sizes = np.unique(groups[groups >= 0], return_counts=True)[1]
        if len(sizes):
            drawn.append(_sizes(name.removeprefix(CLUSTERS), sizes, max(recorded)))
    return drawn


def _sizes(level: str, sizes: np.ndarray, epoch: int) -> Sizes:
    low, high = int(sizes.min()), int(sizes.max())
    steps = round_steps(low, high + 1, 5, whole=True)
    bars = min(MOST_BARS, int(steps[-1] - steps[0]), max(6, len(sizes) // 2))
    width = -(-int(steps[-1] - steps[0]) // bars)
    edges = np.arange(steps[0], steps[-1] + width, width)
    counts = np.histogram(sizes, edges)[0]
    across = Axis(float(edges[0]), float(edges[-1]), steps, "images in a cluster")
    frame = Frame(across, Axis.along(round_steps(0, max(1, int(counts.max())), 4, whole=True), "clusters"), top=24)
    x, y = frame.across, frame.up
    parts = []
    for start, end, count in zip(edges, edges[1:], counts, strict=False):
        if count:
            first, last = int(start), int(end) - 1
            images = counted(first, "image") if last == first else f"{first} to {last} images"
            text = f"{counted(int(count), 'cluster')} of {images}"
            box = f"M{x(start) + 0.7:.1f} {y(0):.1f}V{y(count):.1f}H{x(end) - 0.7:.1f}V{y(0):.1f}z"
            parts.append(tag("path", tag("title", text), d=box, class_="filled s0"))
    sentence = f"{len(sizes):,} with images in them at epoch {epoch}: {low:,} to {high:,} images, median {plain(float(np.median(sizes)))}"
    label = f"Sizes of {level} clusters. {sentence}."
    return Sizes(f"{level} clusters", sentence, frame.draw(label, *parts))


def cluster_gallery(clusters: Clusters) -> list[ShownCluster]:
    """Some clusters with some of their images, marked by whether they are of the cluster's most frequent class."""
    class_names = clusters.thumbnails.class_names
    maker = PictureMaker(clusters.thumbnails)
    shown = []
    for place, group in enumerate(clusters.groups.tolist()):
        majority, pictures = int(clusters.majority[place]), []
        for row in np.flatnonzero(clusters.group_of == group).tolist():
            label = -1 if clusters.thumbnails.labels is None else int(clusters.thumbnails.labels[row])
            verdict = "unknown" if min(label, majority) < 0 else "right" if label == majority else "wrong"
            pictures.append(maker.picture(int(clusters.thumbnails.rows[row]), verdict))
        sentence = counted(int(clusters.sizes[place]), "image")
        if majority >= 0:
            sentence += f", mostly {class_name(majority, class_names)} ({percent(float(clusters.purity[place]))})"
        if clusters.accepted[place] >= 0:
            sentence += f"; pseudo-label for {clusters.accepted[place]:,}"
        shown.append(ShownCluster(f"Cluster {group}", sentence, pictures))
    return shown


SHOWN = File(names.CLUSTERS, _read)


@dataclass(frozen=True)
class ClusterPart:
    """Figures over training with their legend; of a run also sizes and pictures."""

    charts: list[Chart] = field(default_factory=list)
    legend: list[Style] = field(default_factory=list)
    sizes: list[Sizes] = field(default_factory=list)
    gallery: list[ShownCluster] = field(default_factory=list)


def _of_run(run: RunRecord) -> ClusterPart | None:
    charts, legend = part(run.notes, "figures of clusters", lambda: cluster_charts([("", [run])])) or ([], [])
    sizes = part(run.notes, "the sizes of the clusters", lambda: size_charts(samples_of(run)))
    clusters, gallery = run.get(SHOWN), None
    if clusters is not None:
        gallery = part(run.notes, "the gallery of clusters", lambda: cluster_gallery(clusters))
    return ClusterPart(charts, legend, sizes or [], gallery or []) if charts else None


def _of_comparison(record: ComparisonRecord) -> ClusterPart | None:
    variants = [(name, list(record.runs[name].values())) for name in record.names if name in record.runs]
    charts, legend = part(record.notes, "figures of clusters", lambda: cluster_charts(variants)) or ([], [])
    return ClusterPart(charts, legend) if charts else None


SECTION = Section(50, "clusters", "Clusters", "Clusters", _of_run, _of_comparison, (PER_SAMPLE, SHOWN))
