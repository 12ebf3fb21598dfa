"""Spherical k-means over the embeddings of a whole data set, and how surely each image belongs to its cluster.

Letters: n images, D dimensions, K clusters.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from falseneg.errors import UserError
from falseneg.rules import at_least_float32
from falseneg.statistics.gather import from_first_rank, gather_rows, rank, sum_over_ranks, world_size

SCORES = 2**24
"""Similarities that are held at a time when images are assigned: 64 MiB in float32."""
MOST_AT_ONCE = 8192
"""Images that are assigned or checked at a time, at most."""
SPLIT = 1 / 1024
"""By how much the two halves of a cluster that is split move apart, as in faiss."""


def spherical_k_means(
    points: Tensor,
    clusters: int,
    seed: int,
    iterations: int = 20,
    restarts: int = 1,
    points_per_centroid: int | None = None,
) -> Tensor:
    """Centroids of unit length, each along the sum of the points for which it is the most similar one.

    Starts at points drawn by the seed and makes one Lloyd step after the other; of several starts, the one whose
    points are most similar to their centroids is kept (the sum of the cosines in the last assignment, as faiss counts
    it, which is what PCL does five times). A cluster that is empty after a step takes over a part of a large one.
    O(restarts · iterations · n · K · D); the points that are learned from are held as float32.

    Points on a CPU are clustered by faiss, on the first rank. Points on a GPU stay there, and each rank assigns its
    share of them, a few thousand at a time. All ranks have the same centroids after each step. The same seed and number
    of threads give the same centroids on a CPU; on a GPU sums are only repeatable with deterministic algorithms.

    Args:
        points: (n, D) unit rows, the same on every rank; `check_points` has seen them.
        clusters: how many, from 1 to n.
        seed: of the draws.
        iterations: Lloyd steps of each start.
        restarts: starts, at least 1.
        points_per_centroid: learn from this many points for each cluster, drawn by the seed; None for all points.

    Returns:
        (K, D) float32, on the device of the points.

    Raises:
        UserError: there are more clusters than points.
    """
    if clusters > len(points):
        raise UserError(
            f"{len(points)} images cannot form {clusters} clusters; ask for at most one cluster for each image"
        )
    draws = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(points), generator=draws)
    first = points[drawn[:clusters].to(points.device)].float()
    if points_per_centroid is not None and clusters * points_per_centroid < len(points):
        points = points[drawn[: clusters * points_per_centroid].sort().values.to(points.device)]
    lloyd_step = _by_faiss(points) if points.device.type == "cpu" else _by_tensors(points, draws)
    best, highest = first, -math.inf
    for restart in range(restarts):
        centroids, objective = first, -math.inf
        if restart:
            centroids = points[torch.randperm(len(points), generator=draws)[:clusters].to(points.device)].float()
        for _ in range(iterations):
            centroids, objective = lloyd_step(centroids)
        if objective > highest:
            best, highest = centroids, objective
    return best


LloydStep = Callable[[Tensor], tuple[Tensor, float]]
"""(K, D) centroids to the moved ones, with the sum of the cosines of the points with the nearest of the former."""


def _by_faiss(points: Tensor) -> LloydStep:
    """Steps on the CPU of the first rank, which all receive: between two of them a signal is heard."""
    own = points.float().contiguous().numpy() if rank() == 0 else None

    def step(centroids: Tensor) -> tuple[Tensor, float]:
        moved, objective = (centroids, 0.0) if own is None else _faiss_step(own, centroids)
        return from_first_rank(moved), float(from_first_rank(torch.tensor(objective, dtype=torch.float64)))

    return step


@contextlib.contextmanager
def faiss_threads() -> Iterator[Any]:
    """faiss, with as many threads as torch has."""
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield faiss
    finally:
        faiss.omp_set_num_threads(threads)


def _faiss_step(points: Any, centroids: Tensor) -> tuple[Tensor, float]:
    with faiss_threads() as faiss:
        # faiss takes 256 points a centroid and warns of fewer than 39, unless it is told other limits.
        kmeans = faiss.Kmeans(
            points.shape[1],
            len(centroids),
            niter=1,
            spherical=True,
            min_points_per_centroid=1,
            max_points_per_centroid=len(points),
        )
        kmeans.train(points, init_centroids=centroids.numpy())
    moved, objectives = kmeans.centroids, kmeans.obj
    assert moved is not None and objectives is not None
    return torch.from_numpy(moved.copy()), float(objectives[-1])


def _by_tensors(points: Tensor, draws: torch.Generator) -> LloydStep:
    """Steps on the device of the points, of which each rank assigns a share; the draws are the same on all ranks."""
    own = points.tensor_split(world_size())[rank()]

    def step(centroids: Tensor) -> tuple[Tensor, float]:
        sums, number = torch.zeros_like(centroids), centroids.new_zeros(len(centroids), dtype=torch.int64)
        objective = centroids.new_zeros((), dtype=torch.float64)
        for piece in own.split(_at_once(len(centroids))):
            with torch.autocast(piece.device.type, enabled=False):
                best, cluster = (piece.float() @ centroids.T).max(dim=1)
            sums.index_add_(0, cluster, piece.float())
            number += torch.bincount(cluster, minlength=len(centroids))
            objective += best.double().sum()
        sums, number, objective = (sum_over_ranks(part) for part in (sums, number, objective))
        return _filled(normalize(sums, dim=1), number, draws), float(objective)

    return step


def _filled(centroids: Tensor, number: Tensor, draws: torch.Generator) -> Tensor:
    """Centroids of which each empty one takes over half of another's points: both move a little, either way.

    Which other, is drawn in proportion to the points that it can spare; so does faiss.
    """
    sizes = number.cpu()
    away = 1 + SPLIT * (1 - 2 * (torch.arange(centroids.shape[1], device=centroids.device) % 2))
    for empty in (sizes == 0).nonzero()[:, 0].tolist():
        other = int(torch.multinomial((sizes - 1).clamp(min=0).double(), 1, generator=draws))
        sizes[empty] = sizes[other] // 2
        sizes[other] -= sizes[empty]
        centroids[empty] = normalize(centroids[other] * away, dim=0)
        centroids[other] = normalize(centroids[other] / away, dim=0)
    return centroids


def _at_once(clusters: int) -> int:
    """How many points are compared with all centroids at a time."""
    return max(1, min(MOST_AT_ONCE, SCORES // clusters))


@torch.no_grad()
def assign(
    points: Tensor, centroids: Tensor, temperature: float, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """The cluster of each point, and how sure that is.

    The confidence is κ_i = e^{s(i, own)/τ} / Σ_k e^{s(i, k)/τ} over all K centroids, with cosines s (IFND, Chen et al.
    2022, arXiv 2106.03719). Each rank takes a part of the points. O(n · K · D), a few thousand points at a time.

    Args:
        points: (n, D) unit rows, the same on every rank.
        centroids: (K, D) unit rows.
        temperature: what the cosines are divided by, above 0.
        device: where to compute.

    Returns:
        (n,) int64 the most similar centroid, of equals the first; and (n,) the natural log of the confidence, at most 0:
        float32, or float64 for such points. Both on the device, the same on every rank.
    """
    at_once = _at_once(len(centroids))
    # Whole pieces for each rank: the same products, to the bit, however many ranks there are.
    pieces = -(-len(points) // at_once)
    first, last = (pieces * place // world_size() * at_once for place in (rank(), rank() + 1))
    own = points[first:last]
    columns = at_least_float32(centroids).to(device, at_least_float32(points[:1]).dtype).T
    cluster, confidence = [], []
    for piece in own.split(at_once):
        nearest, log_share = _nearest(at_least_float32(piece).to(device), columns, temperature)
        cluster.append(nearest)
        confidence.append(log_share)
    nothing = torch.empty(0, dtype=torch.int64, device=device), columns.new_empty(0)
    of_rank = (torch.cat([empty, *parts]) for empty, parts in zip(nothing, (cluster, confidence), strict=True))
    everyone, shares = (gather_rows(part) for part in of_rank)
    return everyone, shares


def _nearest(points: Tensor, columns: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(r,) the best of the K columns for each of r points, and the log of its share."""
    with torch.autocast(points.device.type, enabled=False):
        scores = (points @ columns).div_(temperature)
    best, cluster = scores.max(dim=1)
    others = scores.sub_(best[:, None]).exp_().scatter_(1, cluster[:, None], 0.0).sum(dim=1)
    return cluster, -torch.log1p(others)  # exact also where the others are next to nothing


def check_points(points: Tensor) -> None:
    """Refuse embeddings that cannot be clustered.

    Args:
        points: (n, D).

    Raises:
        UserError: some are not finite, or all are equal.
    """
    distance = 0.0
    for start in range(0, len(points), MOST_AT_ONCE):
        piece = at_least_float32(points[start : start + MOST_AT_ONCE])
        broken = ~piece.isfinite().all(dim=1)
        if broken.any():
            row = start + int(broken.nonzero()[0])
            raise UserError(
                f"the embedding of image {row} is not finite, so that the images cannot be clustered; lower the learning "
                "rate, or train with precision 32-true, and resume from an earlier checkpoint"
            )
        distance = max(distance, float((piece - at_least_float32(points[:1])).abs().max()))
    if distance < 1e-6:
        raise UserError(
            f"the embeddings of all {len(points)} images are equal, so that there is nothing to cluster; check that "
            "the images differ, and lower the learning rate if the encoder has collapsed"
        )
