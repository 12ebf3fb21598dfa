"""A map of the embedding: similar images lie near one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from markupsafe import Markup

from falseneg.report.arrays import are, check, read_arrays
from falseneg.report.comparison import ComparisonRecord
from falseneg.report.flags import FLAGGED
from falseneg.report.pictures import THUMBNAILS, class_name
from falseneg.report.read import File, RunRecord
from falseneg.report.section import Section, part
from falseneg.report.svg import MARKS, PALETTE, Scale, drawing, mark, tag
from falseneg.train import names

WIDTH, HEIGHT, MARGIN = 360, 300, 16
MOST_POINTS = 600
"""Points on a map: more make it slow to draw and no clearer."""
NAMED_CLASSES = 20
"""Up to this many classes are named on the map."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """Features for the map: (m, F), and (m,) labels or None."""

    features: np.ndarray
    labels: np.ndarray | None


def _read(path: Path, _: RunRecord) -> Embedding:
    arrays = read_arrays(path)
    features, labels = arrays["features"], arrays.get("labels")
    check(are(features, "f", dimensions=2) and (labels is None or are(labels, "iu", len(features))))
    return Embedding(features, labels)


EMBEDDING = File(names.EMBEDDING, _read, lambda run: run.finished)


@dataclass(frozen=True)
class Map:
    """A drawn map, and what was done to make it, in words."""

    drawing: Markup
    method: str
    points: int


def draw_map(features: np.ndarray, labels: np.ndarray | None, class_names: Sequence[str] | None) -> Map | None:
    """Draw features in two dimensions, coloured by class where there are labels; None for fewer than three images.

    Args:
        features: (m, F).
        labels: (m,) classes, −1 where unknown; or None.
        class_names: the name of each class; or None.
    """
    kept = np.isfinite(features).all(axis=1) & (np.linalg.norm(features, axis=1) > 0)
    rows = np.flatnonzero(kept)
    rows = rows[np.linspace(0, len(rows) - 1, min(MOST_POINTS, len(rows))).astype(int)] if len(rows) else rows
    if len(rows) < 3:
        return None
    places, method = in_two_dimensions(features[rows])
    shown = labels[rows] if labels is not None else np.full(len(rows), -1)
    low, high = places.min(axis=0), places.max(axis=0)
    x = Scale(low[0], high[0], MARGIN, WIDTH - MARGIN)
    y = Scale(low[1], high[1], HEIGHT - MARGIN, MARGIN)
    classes = [int(label) for label in np.unique(shown)]
    marks: list[Markup] = []
    middles: list[tuple[str, float, float]] = []
    for order, label in enumerate(classes):
        members = places[shown == label]
        name = class_name(label, class_names) if label >= 0 else "no label"
        marks.append(_marks(members, order, label, name, x, y))
        if label >= 0 and len(classes) <= NAMED_CLASSES:
            middle = members[np.linalg.norm(members - np.median(members, axis=0), axis=1).argmin()]
            middles.append((name[:16], x(middle[0]), y(middle[1]) + 4))
    known = sum(label >= 0 for label in classes)
    coloured = f"coloured by class ({known} classes)" if known else "without labels"
    label_text = f"Map of {len(rows)} images by {method}, {coloured}."
    return Map(drawing(WIDTH, HEIGHT, label_text, *marks, *_names(middles)), method, len(rows))


def _names(middles: Sequence[tuple[str, float, float]]) -> list[Markup]:
    """Names in the middle of their classes, moved down where they would lie on one another."""
    placed: list[tuple[float, float]] = []
    written = []
    for name, x, y in sorted(middles, key=lambda middle: middle[2]):
        while any(abs(x - other) < 44 and abs(y - above) < 12 for other, above in placed):
            y += 2.0
        placed.append((x, y))
        written.append(tag("text", name, x=x, y=y, text_anchor="middle", class_="place"))
    return written


def _marks(members: np.ndarray, order: int, label: int, name: str, x: Scale, y: Scale) -> Markup:
    shape = MARKS[order % len(MARKS)] if label >= 0 else "disc"
    colour = f"c{order % PALETTE}" if label >= 0 else "unknown"
    path = "".join(mark(shape, x(across), y(up), 4) for across, up in members)
    return tag("path", tag("title", name), d=path, class_=f"point {shape} {colour}")


def in_two_dimensions(features: np.ndarray) -> tuple[np.ndarray, str]:
    """(m, 2) places of m ≥ 3 features, and the name of the method: t-SNE of cosine distances, or PCA for few images.

    Always the same for the same features.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    unit = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    if len(unit) < 30 or unit.std(axis=0).max() < 1e-6:
        return PCA(n_components=2, svd_solver="full").fit_transform(np.pad(unit, ((0, 0), (0, 2)))), "PCA"
    # Of unit vectors, Euclidean distances rank as cosines do. More threads than free cores make it slow, not fast.
    with threadpool_limits(1):
        flat = TSNE(init="pca", random_state=0, perplexity=min(30.0, len(unit) / 4)).fit_transform(unit)
    return flat, "t-SNE"


@dataclass(frozen=True)
class Mapped:
    """The map of one run: its title (empty for the page's only run)."""

    title: str
    map: Map


def _of_run(run: RunRecord) -> list[Mapped] | None:
    drawn = _drawn(run, _class_names([run]))
    return [Mapped("", drawn)] if drawn else None


def _of_comparison(record: ComparisonRecord) -> list[Mapped] | None:
    class_names = _class_names([run for _, run in record.examples.values()])
    drawn = [(f"{name}, seed {seed}", _drawn(run, class_names)) for name, (seed, run) in record.examples.items()]
    return [Mapped(title, one) for title, one in drawn if one] or None


def _class_names(runs: Sequence[RunRecord]) -> list[str] | None:
    """The names of the classes, from the first run that has them."""
    pictured = [thumbnails for run in runs if (thumbnails := run.get(THUMBNAILS))]
    return next((thumbnails.class_names for thumbnails in pictured if thumbnails.class_names), None)


def _drawn(run: RunRecord, class_names: list[str] | None) -> Map | None:
    embedding = run.get(EMBEDDING)
    if embedding is None:
        return None
    draw = partial(draw_map, embedding.features, embedding.labels, class_names)
    return part(run.notes, f"{run.name}: the map", draw)


SECTION = Section(90, "map", "Map of the embedding", "Map", _of_run, _of_comparison, (FLAGGED, THUMBNAILS, EMBEDDING))
