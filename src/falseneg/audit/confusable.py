"""Classes whose images are each other's nearest neighbours: their pairs will be flagged, and by the labels wrongly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Confusable:
    """Two classes.

    Attributes:
        one: its number.
        other: its number, above that of the first.
        share: of the nearest neighbours of the first's images those that are of the second.
        back: of the nearest neighbours of the second's images those that are of the first.
        pair: an image of either, as similar as any two of them that are neighbours.
        cosine: of that pair.
    """

    one: int
    other: int
    share: float
    back: float
    pair: tuple[int, int]
    cosine: float


def confusable_classes(labels: np.ndarray, cosines: np.ndarray, neighbours: np.ndarray, most: int) -> list[Confusable]:
    """The pairs of classes with the most neighbours in each other, by the mean of the two shares. O(n · k).

    Args:
        labels: (n,) int64, −1 where unknown.
        cosines: (n, k) of each image with its neighbours.
        neighbours: (n, k) int64 rows, −1 for none.
        most: pairs of classes, at most.
    """
    labels = np.asarray(labels)
    to = np.where(neighbours >= 0, labels[np.maximum(neighbours, 0)], -1)
    of = np.broadcast_to(labels[:, None], to.shape)
    known = (of >= 0) & (to >= 0)
    classes = int(labels.max(initial=-1)) + 1
    number = np.maximum(np.bincount(of[known], minlength=classes), 1)
    crossing = np.nonzero(known & (of != to))
    if not len(crossing[0]):
        return []
    ends = np.stack([of[crossing], to[crossing]], axis=1)
    pairs, which = np.unique(np.sort(ends, axis=1), axis=0, return_inverse=True)
    which = which.reshape(-1)
    forward = np.bincount(which, weights=ends[:, 0] < ends[:, 1], minlength=len(pairs)) / number[pairs[:, 0]]
    back = np.bincount(which, weights=ends[:, 0] > ends[:, 1], minlength=len(pairs)) / number[pairs[:, 1]]
    found = []
    for place in np.argsort(-(forward + back), kind="stable")[:most].tolist():
        own = np.nonzero(which == place)[0]
        best = own[np.argmax(cosines[crossing][own])]
        row, column = crossing[0][best], crossing[1][best]
        ends_of = (int(row), int(neighbours[row, column]))
        pair = ends_of if labels[row] == pairs[place, 0] else ends_of[::-1]
        one, other = pairs[place].tolist()
        found.append(
            Confusable(one, other, float(forward[place]), float(back[place]), pair, float(cosines[row, column]))
        )
    return found
