"""Spherical k-means over the embeddings of a whole data set, and how surely each image belongs to its cluster.

Letters: n images, D dimensions, K clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from falseneg.errors import UserError
from falseneg.rules import at_least_float32
from falseneg.statistics.gather import from_first_rank, gather_rows, rank, world_size

SCORES = 2**24
"""Similarities that are held at a time when images are assigned: 64 MiB in float32."""
MOST_AT_ONCE = 8192
"""Images that are assigned or checked at a time, at most."""


def spherical_k_means(
    points: Tensor, clusters: int, seed: int, iterations: int = 20, points_per_centroid: int | None = None
) -> Tensor:
    """Centroids of unit length, each along the sum of the points for which it is the most similar one.

    Starts at points drawn by the seed; faiss then makes one Lloyd step after the other. A cluster that is empty after a
    step takes over a part of a large one. The first rank computes, and all receive the centroids after each step, so
    that nobody waits for long. The same seed and number of threads give the same centroids. O(n · K · D) a step; the
    points that are learned from are held as float32.

    Args:
        points: (n, D) unit rows, the same on every rank; `check_points` has seen them.
        clusters: how many, from 1 to n.
        seed: of the draws.
        iterations: Lloyd steps.
        points_per_centroid: learn from this many points for each cluster, drawn by the seed; None for all points.

    Returns:
        (K, D) float32 on the CPU.

    Raises:
        UserError: there are more clusters than points.
    """
    if clusters > len(points):
        raise UserError(f"{clusters} clusters are wanted of {len(points)} images; give at most one for each image")
    drawn = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))
    centroids = points[drawn[:clusters].to(points.device)].float().cpu()
    learned_from = points
    if points_per_centroid is not None and clusters * points_per_centroid < len(points):
        learned_from = points[drawn[: clusters * points_per_centroid].sort().values.to(points.device)]
    own = learned_from.float().cpu().contiguous() if rank() == 0 else None
    for _ in range(iterations):
        if own is not None:
            centroids = _lloyd_step(own, centroids)
        centroids = from_first_rank(centroids)
    return centroids


def _lloyd_step(points: Tensor, centroids: Tensor) -> Tensor:
    """Assign each point to its most similar centroid, and move the centroids; both in float32 on the CPU."""
    import faiss

    # One step a call: between two of them a signal is heard, and the other ranks are told. faiss takes 256 points a
    # centroid and warns of fewer than 39, unless it is told other limits.
    kmeans = faiss.Kmeans(
        points.shape[1],
        len(centroids),
        niter=1,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),
    )
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        kmeans.train(points.numpy(), init_centroids=centroids.numpy())
    finally:
        faiss.omp_set_num_threads(threads)
    moved = kmeans.centroids
    assert moved is not None
    return torch.from_numpy(moved.copy())


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
    at_once = max(1, min(MOST_AT_ONCE, SCORES // len(centroids)))
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
            f"the embeddings of all {len(points)} images are equal, so that there is nothing to cluster; look whether "
            "the images differ, and lower the learning rate if the encoder has collapsed"
        )
