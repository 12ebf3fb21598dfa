"""The graph of a whole data set's nearest neighbours, and the coordinates of its images in the graph's leading eigenvectors.

Letters: n images, F features, k neighbours, C eigenvectors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from falseneg.clustering import faiss_threads
from falseneg.errors import UserError
from falseneg.rules import at_least_float32

RIDGE = 0.1
"""Of the mean variance within images, added to each feature's: a direction in which views hardly differ is not all that counts."""
STEEPNESS = 3
"""The power of the cosine that an edge weighs."""
EXACT = 2**16
"""Up to this many images neighbours are looked for among all; beyond, in the nearest of the cells of an inverted file."""
CELLS, VISITED = 4, 16
"""Of the inverted file: cells for each square root of the number of images, and how many of them are looked through."""
AT_ONCE = 8192
"""Images that are whitened, or whose neighbours are looked for, at a time."""
SAMPLED = 4096
"""Images whose pairs stand for all pairs of the data set when a quantile is estimated."""
ALIKE = 1 - 1e-4
"""Pairs with a higher cosine are equals, which no threshold tells apart: where pieces of a graph hang together by nothing."""
DENSE = 512
"""Up to this many images the eigenvectors are computed densely."""
FURTHER, TOLERANCE, ITERATIONS = 4, 1e-4, 200
"""Of the eigenvectors: so many more are followed on the way, the norm of what may be missing, and steps at most."""


def whitened(points: Tensor, views: Tensor | None) -> Tensor:
    """Unit rows, centred, in which differences between views of one image count little: the augmentations say what does not matter.

    Within-class covariance normalisation (Hatch et al. 2006) with each image as a class of its own: the cosine is that of
    x Σ^−1/2, where Σ is the covariance of views around the mean of their image, plus `RIDGE` times its mean diagonal.

    Args:
        points: (n, F) features.
        views: (m, V, F) features of views of some images, or None: centred only.

    Returns:
        (n, F) float32.
    """
    mean = torch.zeros(points.shape[1], dtype=torch.float64)
    for piece in points.split(AT_ONCE):
        mean += piece.double().sum(dim=0) / len(points)
    matrix = torch.eye(points.shape[1], dtype=torch.float64)
    if views is not None and (spread := _within(views)).trace() > 0:
        spread.diagonal().add_(RIDGE * spread.diagonal().mean())
        # With L Lᵀ = Σ, x L^−T has the cosines of x Σ^−1/2.
        matrix = torch.linalg.solve_triangular(torch.linalg.cholesky(spread), matrix, upper=False).T
    result = torch.empty(points.shape, dtype=torch.float32)
    for start in range(0, len(points), AT_ONCE):
        piece = slice(start, start + AT_ONCE)
        result[piece] = normalize((points[piece].double() - mean) @ matrix, dim=1).float()
    return result


def _within(views: Tensor) -> Tensor:
    """(F, F) float64 covariance of views around the mean of their image."""
    away = (views.double() - views.double().mean(dim=1, keepdim=True)).flatten(0, 1)
    return away.T @ away / len(away)


def nearest(
    points: Tensor, k: int, progress: Callable[[int, int], None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar other images of each: their cosines and numbers, (n, k) each; −1 for none.

    Exact up to `EXACT` images, O(n² · F); beyond in about O(n^1.5 · F) and nearly so.

    Args:
        points: (n, F) float32 unit rows.
        k: fewer than n.
        progress: called with the images done and the images in all.
    """
    rows, width = points.shape
    content = points.contiguous().numpy()
    with faiss_threads() as faiss:
        index = faiss.IndexFlatIP(width)
        if rows > EXACT:
            cells = int(CELLS * rows**0.5)
            index = faiss.IndexIVFFlat(index, width, cells, faiss.METRIC_INNER_PRODUCT)
            index.nprobe = VISITED
            index.train(content[np.random.default_rng(0).permutation(rows)[: 64 * cells]])
        index.add(content)
        found = []
        for start in range(0, rows, AT_ONCE):
            found.append(index.search(content[start : start + AT_ONCE], k + 1))
            if progress is not None:
                progress(min(start + AT_ONCE, rows), rows)
    cosines, numbers = (np.concatenate(each) for each in zip(*found, strict=True))
    # Itself is the first, unless others are exactly alike: then the last makes room.
    own = numbers == np.arange(rows)[:, None]
    own[~own.any(axis=1), -1] = True
    keep = ~own
    return cosines[keep].reshape(rows, k), numbers[keep].reshape(rows, k)


def spectral_coordinates(cosines: np.ndarray, neighbours: np.ndarray, number: int) -> Tensor:
    """Unit rows of the leading non-trivial eigenvectors of D^−1/2 W D^−1/2 (Ng, Jordan and Weiss 2001).

    W has the cosines of neighbours, as far as they are positive, to the power of `STEEPNESS`, made symmetric; D has its row
    sums. The trivial eigenvector D^1/2 1 is taken out beforehand, so that a graph in several pieces loses nothing. O(n · k · C).

    Args:
        cosines: (n, k).
        neighbours: (n, k) their numbers, −1 for none.
        number: C, at most n − 2.

    Returns:
        (n, C) float32; NaN for an image without neighbours.

    Raises:
        UserError: there are too few images.
    """
    from scipy import sparse

    rows, k = cosines.shape
    if number > rows - 2:
        raise UserError(f"{number} eigenvectors cannot be found of a graph of {rows} images; give at most {rows - 2}")
    weights = np.clip(cosines, 0, None).astype(np.float64) ** STEEPNESS
    weights[neighbours < 0] = 0
    edges = np.repeat(np.arange(rows), k), np.maximum(neighbours, 0).reshape(-1)
    graph = sparse.csr_matrix((weights.reshape(-1), edges), shape=(rows, rows))
    graph = graph + graph.T
    degree = np.asarray(graph.sum(axis=1))[:, 0]
    scale = np.divide(1, np.sqrt(degree), out=np.zeros(rows), where=degree > 0)
    graph = (sparse.diags(scale) @ graph @ sparse.diags(scale)).tocsr()
    trivial = np.sqrt(degree / max(degree.sum(), 1e-300))

    vectors = _leading(graph, trivial, number)
    coordinates = normalize(torch.from_numpy(np.ascontiguousarray(vectors)), dim=1, eps=1e-300)
    coordinates[torch.from_numpy(degree == 0)] = torch.nan
    return coordinates.float()


def _leading(graph: Any, trivial: np.ndarray, number: int) -> np.ndarray:
    """(n, C) float64 eigenvectors of the largest eigenvalues of a sparse (n, n) matrix, orthogonal to one that is known.

    By blocks (LOBPCG, Knyazev 2001), which find an eigenvalue as often as it occurs: once for each piece of the graph.
    """
    from scipy.sparse import linalg

    rows, block = len(trivial), number + FURTHER
    if rows <= max(DENSE, 6 * block):
        _, vectors = np.linalg.eigh(graph.toarray() - 2 * np.outer(trivial, trivial))
        return vectors[:, ::-1][:, :number]
    start = np.random.default_rng(0).standard_normal((rows, block))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one beyond the C has not converged
        values, vectors = linalg.lobpcg(  # type: ignore[attr-defined]
            graph, start, Y=trivial[:, None], tol=TOLERANCE, maxiter=ITERATIONS, largest=True
        )
    return vectors[:, np.argsort(-values)[:number]]


def quantiles_of_pairs(table: Tensor, shares: list[float], seed: int) -> Tensor:
    """(Q,) float32: the cosines above which these shares of all pairs of rows are; at most `ALIKE`.

    Of more than `SAMPLED` rows those of so many are looked at, drawn by the seed.

    Args:
        table: (n, C) unit rows; pairs with a row of NaN are left out.
        shares: Q, from 0 to 1.
        seed: of the draw.
    """
    table = at_least_float32(table[~table.isnan().any(dim=1)])
    if len(table) > SAMPLED:
        table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))[:SAMPLED]]
    scores = (table @ table.T)[torch.ones(len(table), len(table), dtype=torch.bool).triu(1)].numpy()
    if not len(scores):
        return torch.ones(len(shares))
    return torch.from_numpy(np.quantile(scores, [1 - share for share in shares])).float().clamp(max=ALIKE)


def agreement(one: Tensor, other: Tensor, share: float, seed: int) -> float:
    """Of the pairs of rows that one table has among its closest, the share that the other has, too.

    Made of different views of the same images, two tables tell how far to trust either: no labels are needed. Chance is
    ``share``.

    Args:
        one: (n, C) unit rows; NaN rows are close to nothing.
        other: the same rows of the other table.
        share: of all pairs, which are the closest.
        seed: of the draw of `SAMPLED` rows, where there are more.
    """
    if len(one) > SAMPLED:
        rows = torch.randperm(len(one), generator=torch.Generator().manual_seed(seed))[:SAMPLED]
        one, other = one[rows], other[rows]
    pairs = torch.ones(len(one), len(one), dtype=torch.bool).triu(1)
    first, second = (
        (table @ table.T)[pairs] > float(quantiles_of_pairs(table, [share], seed)) for table in (one, other)
    )
    return float((first & second).sum() / torch.minimum(first.sum(), second.sum()).clamp(min=1))
