"""A map of the embedding: similar images lie near one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from falseneg.foreign.archives import load_arrays
from falseneg.report.arrays import are, check
from falseneg.report.comparison import ComparisonRecord
from falseneg.report.flags import FLAGGED
from falseneg.report.pictures import SIDE, THUMBNAILS, class_name, data_address
from falseneg.report.read import File, RunRecord
from falseneg.report.section import Section, part
from falseneg.report.svg import MARKS, PALETTE, Scale, drawing, mark, tag
from falseneg.train import names

WIDTH, HEIGHT, MARGIN = 360, 300, 16
MOST_POINTS = 600
"""Points on a map: more make it slow to draw and no clearer."""
NAMED_CLASSES = 20
"""Up to this many classes are named on the map."""
TOLD_APART = 30
"""Classes that differ by colour or shape: so many have a key."""
ACROSS = 25
"""Pictures in a row of the sheet of pictures."""


@dataclass(frozen=True, eq=False)
class MapPoints:
    """What the map is made of.

    Attributes:
        features: (m, F).
        labels: (m,) or None.
        names: file or key of each; None in runs of earlier versions.
        images: (m, side, side, 3) uint8; None in runs of earlier versions.
    """

    features: np.ndarray
    labels: np.ndarray | None
    names: np.ndarray | None = None
    images: np.ndarray | None = None


def _read(path: Path, _: RunRecord) -> MapPoints:
    arrays = load_arrays(path)
    features, labels, named, images = arrays["features"], *(arrays.get(name) for name in ("labels", "names", "images"))
    rows = len(features)
    check(are(features, "f", dimensions=2) and (labels is None or are(labels, "iu", rows)))
    check(named is None or are(named, "U", rows))
    if images is not None:
        check(are(images, "u", rows, 4) and images.dtype == np.uint8 and 0 < images.shape[1] <= SIDE)
        check(images.shape[1] == images.shape[2] and images.shape[3] == 3)
    return MapPoints(features, labels, named, images)


EMBEDDING = File(names.EMBEDDING, _read, lambda run: run.finished)


@dataclass(frozen=True)
class Group:
    """The images of one class on a map: its name, how it is marked, and how many they are."""

    name: str
    colour: str
    mark: str
    images: int


@dataclass(frozen=True)
class Map:
    """A drawn map.

    Attributes:
        drawing: the plot.
        method: what made two dimensions of many, in words.
        points: images on it.
        groups: classes, as the drawing has them.
        shown: what a script needs to find an image: places and names of all, group after group.
        sheet: all pictures in one, in the same order, as a data address; or None.
    """

    drawing: Markup
    method: str
    points: int
    groups: list[Group]
    shown: dict[str, Any]
    sheet: str | None = None


def draw_map(embedding: MapPoints, class_names: Sequence[str] | None) -> Map | None:
    """Draw features in two dimensions, coloured by class where there are labels; None for fewer than three images.

    Args:
        embedding: what is drawn.
        class_names: the name of each class; or None.
    """
    features, labels = embedding.features, embedding.labels
    kept = np.isfinite(features).all(axis=1) & (np.linalg.norm(features, axis=1) > 0)
    rows = np.flatnonzero(kept)
    rows = rows[np.linspace(0, len(rows) - 1, min(MOST_POINTS, len(rows))).astype(int)] if len(rows) else rows
    if len(rows) < 3:
        return None
    places, method = in_two_dimensions(features[rows])
    shown = labels[rows] if labels is not None else np.full(len(rows), -1)
    order = np.argsort(shown, kind="stable")  # class after class
    rows, places, shown = rows[order], places[order], shown[order]
    low, high = places.min(axis=0), places.max(axis=0)
    x = Scale(low[0], high[0], MARGIN, WIDTH - MARGIN)
    y = Scale(low[1], high[1], HEIGHT - MARGIN, MARGIN)
    at = np.array([(x(across), y(up)) for across, up in places])
    classes = [int(label) for label in np.unique(shown)]
    groups = [_group(place, label, class_names, int((shown == label).sum())) for place, label in enumerate(classes)]
    marks = [_marks(group, at[shown == label]) for group, label in zip(groups, classes, strict=True)]
    named = [(group, at[shown == label]) for group, label in zip(groups, classes, strict=True) if label >= 0]
    coloured = f"coloured by class ({len(named)} classes)" if named else "without labels"
    words = f"Map of {len(rows)} images by {method}, {coloured}."
    found = {
        "x": [round(place, 1) for place in at[:, 0].tolist()],
        "y": [round(place, 1) for place in at[:, 1].tolist()],
        "names": [] if embedding.names is None else [str(name) for name in embedding.names[rows]],
        "across": ACROSS,
    }
    written = _names([_middle(*one) for one in named]) if len(classes) <= NAMED_CLASSES else []
    sheet = None if embedding.images is None else sheet_of(embedding.images[rows])
    return Map(drawing(WIDTH, HEIGHT, words, *marks, *written), method, len(rows), groups, found, sheet)


def _group(place: int, label: int, class_names: Sequence[str] | None, images: int) -> Group:
    if label < 0:
        return Group("no label", "unknown", "disc", images)
    return Group(class_name(label, class_names), f"c{place % PALETTE}", MARKS[place % len(MARKS)], images)


def _marks(group: Group, at: np.ndarray) -> Markup:
    path = "".join(mark(group.mark, across, down, 4) for across, down in at.tolist())
    return tag("path", tag("title", group.name), d=path, class_=f"point {group.mark} {group.colour}")


def _middle(group: Group, at: np.ndarray) -> tuple[str, float, float]:
    """A class's name, and where it would be written: at the image nearest to the middle of its images."""
    middle = at[np.linalg.norm(at - np.median(at, axis=0), axis=1).argmin()]
    return group.name[:16], float(middle[0]), float(middle[1]) + 4


def _names(middles: Sequence[tuple[str, float, float]]) -> list[Markup]:
    """Names in the middle of their classes, or as near as there is room; where there is none, the key has the name."""
    boxes: list[tuple[float, float, float, float]] = []
    written = []
    nearby = sorted(
        ((across, down) for across in range(-60, 61, 6) for down in range(-48, 49, 6)),
        key=lambda by: by[0] ** 2 + 4 * by[1] ** 2,
    )
    for name, x, y in sorted(middles, key=lambda middle: middle[2]):
        half = 3.5 * len(name) + 4
        for across, down in nearby:
            left, top = x + across - half, y + down - 11
            box = (left, top, left + 2 * half, top + 15)
            inside = box[0] >= 0 and box[1] >= 0 and box[2] <= WIDTH and box[3] <= HEIGHT
            if inside and not any(_meet(box, other) for other in boxes):
                boxes.append(box)
                written.append(tag("text", name, x=x + across, y=y + down, text_anchor="middle", class_="place"))
                break
    return written


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def sheet_of(images: np.ndarray) -> str:
    """Pictures (m, side, side, 3) side by side, `ACROSS` in a row, as one data address."""
    side, rows = images.shape[1], -(-len(images) // ACROSS)
    filled = np.zeros((rows * ACROSS, side, side, 3), dtype=np.uint8)
    filled[: len(images)] = images
    tiles = filled.reshape(rows, ACROSS, side, side, 3).swapaxes(1, 2)
    return data_address(tiles.reshape(rows * side, ACROSS * side, 3))


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
    """The map of one run: its title (empty for the page's only run), and which sheet has its pictures, or None."""

    title: str
    map: Map
    sheet: int | None


@dataclass(frozen=True)
class Maps:
    """The maps of a page.

    Attributes:
        maps: one for each run.
        sheets: the pictures that they share.
        key: of all maps; empty without labels, and where classes share a mark or maps differ in their classes.
        shared: whether classes share a mark.
    """

    maps: list[Mapped]
    sheets: list[str]
    key: list[Group]
    shared: bool


def _of_run(run: RunRecord) -> Maps | None:
    return _together([("", _drawn(run, _class_names([run])))])


def _of_comparison(record: ComparisonRecord) -> Maps | None:
    class_names = _class_names([run for _, run in record.examples.values()])
    return _together(
        [(f"{name}, seed {seed}", _drawn(run, class_names)) for name, (seed, run) in record.examples.items()]
    )


def _together(drawn: Sequence[tuple[str, Map | None]]) -> Maps | None:
    """The maps of one page: runs of one comparison show the same images, whose pictures are stored once."""
    maps = [(title, one) for title, one in drawn if one is not None]
    if not maps:
        return None
    sheets = list(dict.fromkeys(one.sheet for _, one in maps if one.sheet))
    mapped = [Mapped(title, one, sheets.index(one.sheet) if one.sheet else None) for title, one in maps]
    groups = [one.groups for _, one in maps]
    classes = [sum(group.colour != "unknown" for group in each) for each in groups]
    shared = max(classes) > TOLD_APART
    one_key = classes[0] > 0 and not shared and all(each == groups[0] for each in groups)
    return Maps(mapped, sheets, groups[0] if one_key else [], shared)


def _class_names(runs: Sequence[RunRecord]) -> list[str] | None:
    """The names of the classes, from the first run that has them."""
    pictured = [thumbnails for run in runs if (thumbnails := run.get(THUMBNAILS))]
    return next((thumbnails.class_names for thumbnails in pictured if thumbnails.class_names), None)


def _drawn(run: RunRecord, class_names: list[str] | None) -> Map | None:
    embedding = run.get(EMBEDDING)
    if embedding is None:
        return None
    return part(run.notes, f"{run.name}: the map", partial(draw_map, embedding, class_names))


SECTION = Section(90, "map", "Map of the embedding", "Map", _of_run, _of_comparison, (FLAGGED, THUMBNAILS, EMBEDDING))
