"""Images that are there twice, and images that are nearly the same.

Letters: n images, k neighbours of each.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from falseneg.data import ImageSet
from falseneg.errors import UserError

USUAL = 0.9
"""The share of slightly changed views that are less similar to their own image than a near duplicate."""
SAME_PIXELS = 1 - 1e-5
"""Above this cosine two images may have the same pixels, though not the same bytes."""
ALL_PAIRS = 64
"""Of a group of equal images, all pairs are listed of up to so many; of more, each with so many that follow it."""


@dataclass(frozen=True, eq=False)
class Duplicates:
    """Equal and nearly equal images of a data set.

    Attributes:
        exact: groups of rows with the same bytes or the same pixels, each in rising order.
        near: (p, 2) int64 pairs of other rows, the lower first, that are more similar than the threshold, the most similar
            first: of each image only its k nearest neighbours are looked at.
        cosines: (p,) float32, of the near ones.
        threshold: cosine above which images count as nearly equal.
    """

    exact: tuple[tuple[int, ...], ...]
    near: np.ndarray
    cosines: np.ndarray
    threshold: float

    @property
    def copies(self) -> int:
        """Images that equal one before them."""
        return sum(len(group) - 1 for group in self.exact)

    def exact_pairs(self) -> np.ndarray:
        """(q, 2) int64 pairs of equal images, the lower row first."""
        pairs = [
            (row, other)
            for group in self.exact
            for place, row in enumerate(group)
            for other in group[place + 1 : place + 1 + ALL_PAIRS]
        ]
        return np.array(pairs, dtype=np.int64).reshape(-1, 2)

    def near_groups(self) -> list[list[int]]:
        """Groups of rows that hang together by near pairs, the largest first; of equal size, by their first row."""
        return _components(self.near)


def usual_threshold(own_cosines: Tensor) -> float:
    """The cosine below which nine of ten slightly changed views are to their own image.

    Args:
        own_cosines: (m, V) of views with their images.
    """
    return float(np.quantile(own_cosines.double().numpy(), USUAL))


def find(
    images: ImageSet,
    equal_bytes: Sequence[Sequence[int]],
    cosines: np.ndarray,
    neighbours: np.ndarray,
    threshold: float,
) -> Duplicates:
    """Equal and nearly equal images, from groups of equal files and the nearest neighbours. O(n · k).

    Args:
        images: the data set.
        equal_bytes: what `falseneg.data.find_duplicates` found.
        cosines: (n, k) of each image with its neighbours.
        neighbours: (n, k) int64 rows, −1 for none.
        threshold: cosine above which images are nearly equal.
    """
    # Pixels may be the same whatever counts as nearly so.
    row, place = np.nonzero((cosines > min(threshold, SAME_PIXELS)) & (neighbours >= 0))
    found = np.stack([row, neighbours[row, place]], axis=1).astype(np.int64)
    found.sort(axis=1)
    found, first = np.unique(found, axis=0, return_index=True)
    score = cosines[row, place][first].astype(np.float32)
    exact = _with_same_pixels(images, equal_bytes, found[score > SAME_PIXELS])
    group_of = np.full(len(cosines), -1)
    for number, group in enumerate(exact):
        group_of[group] = number
    one, two = group_of[found].T
    near = ((one != two) | (one < 0)) & (score > threshold)
    found, score = found[near], score[near]
    order = np.argsort(-score, kind="stable")
    return Duplicates(tuple(map(tuple, exact)), found[order], score[order], threshold)


def _with_same_pixels(images: ImageSet, equal_bytes: Sequence[Sequence[int]], alike: np.ndarray) -> list[list[int]]:
    """Groups of equal images: of equal files, and of those of some pairs that have the same pixels."""
    equal = [pair for group in equal_bytes for pair in itertools.pairwise(group)]
    group_of = {row: number for number, group in enumerate(equal_bytes) for row in group}
    for one, other in alike.tolist():
        known = one in group_of and group_of[one] == group_of.get(other)
        if not known and _same_pixels(images, one, other):
            equal.append((one, other))
    return sorted(_components(equal))


def _same_pixels(images: ImageSet, one: int, other: int) -> bool:
    try:
        return torch.equal(images.image(one), images.image(other))
    except UserError:
        return False


def _components(pairs: np.ndarray | Sequence[Sequence[int]]) -> list[list[int]]:
    """Groups of numbers that hang together by pairs, the largest first; each in rising order."""
    from scipy import sparse

    if not len(pairs):
        return []
    rows, places = np.unique(np.asarray(pairs), return_inverse=True)
    one, other = places.reshape(-1, 2).T
    graph = sparse.coo_matrix((np.ones(len(one)), (one, other)), shape=(len(rows), len(rows)))
    _, group = sparse.csgraph.connected_components(graph, directed=False)
    members = np.split(rows[np.argsort(group, kind="stable")], np.cumsum(np.bincount(group))[:-1])
    return sorted((each.tolist() for each in members), key=lambda each: (-len(each), each))
