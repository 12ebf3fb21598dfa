"""Spherical k-means against plain Lloyd steps, confidences against the paper's formula, and what cannot be clustered."""

import math

import pytest
import torch
from reference import ifnd_loops
from torch.nn.functional import normalize

import falseneg as fn
from falseneg import clustering
from falseneg.clustering import assign, check_points, spherical_k_means


def points_of(n, dim, seed=0, dtype=torch.float32):
    return normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)).to(dtype), dim=1)


def start_of(points, clusters, seed):
    """The points that the seed draws."""
    return points[torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[:clusters]]


@pytest.fixture(params=["faiss", "tensors"])
def device(request, monkeypatch):
    """Steps as they are made on a CPU, and as they are made on a GPU: the latter in pieces of a few points."""
    if request.param == "tensors":
        monkeypatch.setattr(clustering, "_by_faiss", lambda points: clustering._by_tensors(points, torch.Generator()))
        monkeypatch.setattr(clustering, "SCORES", 200)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("clusters", [2, 7])
def test_each_iteration_is_a_lloyd_step(clusters, steps, device):
    points = points_of(150, 5)
    expected, was_empty = ifnd_loops.lloyd(points.double().tolist(), start_of(points, clusters, 3).tolist(), steps)
    assert not was_empty, "the loop does not say what happens to an empty cluster"
    centroids = spherical_k_means(points, clusters, seed=3, iterations=steps)
    torch.testing.assert_close(centroids, torch.tensor(expected), rtol=0, atol=1e-5)


def test_in_the_end_each_centroid_is_the_direction_of_the_points_nearest_to_it(device):
    points = points_of(300, 4)
    centroids = spherical_k_means(points, 6, seed=0, iterations=100)
    cluster, _ = assign(points, centroids, 0.2)
    assert cluster.tolist() == [ifnd_loops.nearest(point, centroids.tolist()) for point in points.tolist()]
    sums = torch.zeros(6, 4).index_add_(0, cluster, points)
    torch.testing.assert_close(normalize(sums, dim=1), centroids, rtol=0, atol=1e-5)


def test_the_seed_alone_decides_and_global_draws_do_not_move():
    points = points_of(200, 8)
    torch.manual_seed(1)
    first = spherical_k_means(points, 9, seed=4)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1)), "the global generator was used"
    assert torch.equal(spherical_k_means(points, 9, seed=4), first)
    assert not torch.equal(spherical_k_means(points, 9, seed=5), first)


def test_an_empty_cluster_takes_over_a_part_of_a_large_one(device):
    """Copies of one image are among the starting points: all but the first of them start with an empty cluster."""
    points = points_of(120, 6)
    points[:60] = points[0]
    start = start_of(points, 20, 0)
    assert len(start.unique(dim=0)) < 15
    _, was_empty = ifnd_loops.lloyd(points.tolist(), start.tolist(), 1)
    assert was_empty
    centroids = spherical_k_means(points, 20, seed=0)
    torch.testing.assert_close(centroids.norm(dim=1), torch.ones(20))
    cluster, _ = assign(points, centroids, 0.2)
    assert len(cluster.unique()) >= 19  # a step may empty one again, which is left out then
    assert len(cluster[:60].unique()) == 1, "copies of one image belong together"


@pytest.mark.parametrize("seed", range(3))
def test_of_several_starts_the_best_is_kept(device, seed):
    points = points_of(120, 4)
    draws, objectives, found = torch.Generator().manual_seed(seed), [], []
    for _ in range(4):
        start = points[torch.randperm(120, generator=draws)[:8]].tolist()
        centroids, was_empty = ifnd_loops.lloyd(points.tolist(), start, 6)
        assert not was_empty
        before, _ = ifnd_loops.lloyd(points.tolist(), start, 5)
        objectives.append(sum(max(ifnd_loops.similarity(p, c) for c in before) for p in points.tolist()))
        found.append(centroids)
    best = objectives.index(max(objectives))
    kept = spherical_k_means(points, 8, seed, 6, restarts=4)
    torch.testing.assert_close(kept, torch.tensor(found[best]), rtol=0, atol=1e-5)
    assert torch.equal(spherical_k_means(points, 8, seed, 6, restarts=best + 1), kept)


def test_restarts_find_planted_clusters(device):
    """Of planted clusters one start merges some and splits others."""
    from sklearn.metrics import normalized_mutual_info_score as nmi

    draw = torch.Generator().manual_seed(0)
    planted = torch.arange(1000) % 10
    centres = normalize(torch.randn(10, 16, generator=draw), dim=1)
    points = normalize(centres[planted] + 0.12 * torch.randn(1000, 16, generator=draw), dim=1)

    def agreement(seed, restarts):
        return nmi(planted, assign(points, spherical_k_means(points, 10, seed, 20, restarts), 0.2)[0])

    one, five = (sum(agreement(seed, restarts) for seed in range(10)) / 10 for restarts in (1, 5))
    assert five > one + 0.015, (one, five)


def test_as_many_clusters_as_images():
    points = points_of(12, 6)
    cluster, _ = assign(points, spherical_k_means(points, 12, seed=0), 0.2)
    assert sorted(cluster.tolist()) == list(range(12))


def test_learning_from_some_of_the_points():
    """From one point a centroid each: those that it starts at, which then are their own clusters."""
    points = points_of(400, 6)
    centroids = spherical_k_means(points, 10, seed=2, points_per_centroid=1)
    assert sorted(centroids.tolist()) == sorted(start_of(points, 10, 2).tolist())
    from_all = spherical_k_means(points, 10, seed=2)
    assert torch.equal(spherical_k_means(points, 10, seed=2, points_per_centroid=40), from_all)
    assert not torch.equal(spherical_k_means(points, 10, seed=2, points_per_centroid=39), from_all)


def test_few_clusters_still_learn_from_all_points():
    """faiss by itself takes 256 points a centroid."""
    points = points_of(3000, 3)
    points[:, 0] += 0.5 * (torch.arange(3000) > 1500)  # so that some of them are not all of them
    points = normalize(points, dim=1)
    expected, _ = ifnd_loops.lloyd(points.tolist(), start_of(points, 2, 0).tolist(), 1)
    centroids = spherical_k_means(points, 2, seed=0, iterations=1)
    torch.testing.assert_close(centroids, torch.tensor(expected), rtol=0, atol=1e-5)


def test_half_precision():
    points = points_of(300, 8)
    whole, half = (spherical_k_means(these, 5, seed=0) for these in (points, points.half()))
    torch.testing.assert_close(half, whole, rtol=0, atol=2e-3)
    agree = assign(points, whole, 0.2)[0] == assign(points.half(), half, 0.2)[0]
    assert agree.double().mean() > 0.99


@pytest.mark.parametrize("tau", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("scores", [2**24, 50])
def test_confidence_is_the_papers(monkeypatch, tau, scores):
    monkeypatch.setattr(clustering, "SCORES", scores)  # 50: pieces of seven points
    points, centroids = points_of(60, 5, dtype=torch.float64), points_of(7, 5, seed=1)
    cluster, confidence = assign(points, centroids, tau)
    assert confidence.dtype == torch.float64
    expected = [ifnd_loops.confidence(p, centroids.double().tolist(), tau) for p in points.tolist()]
    torch.testing.assert_close(confidence.exp(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    assert cluster.tolist() == [ifnd_loops.nearest(p, centroids.double().tolist()) for p in points.tolist()]


def test_the_surest_are_told_apart_where_the_share_itself_is_rounded_to_one():
    centroids = torch.eye(2)
    angles = torch.tensor([0.0, 0.1, 0.2])
    points = torch.stack([angles.cos(), angles.sin()], dim=1)
    _, confidence = assign(points, centroids, 0.02)
    assert (confidence.exp() == 1).all()
    assert confidence[0] > confidence[1] > confidence[2]
    exact = [-math.log1p(math.exp((math.sin(a) - math.cos(a)) / 0.02)) for a in (0.0, 0.1, 0.2)]
    torch.testing.assert_close(confidence, torch.tensor(exact), rtol=1e-3, atol=0)


def test_autocast_does_not_blur_what_is_assigned():
    points, centroids = points_of(100, 16), points_of(9, 16, seed=1)
    outside = assign(points, centroids, 0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = assign(points, centroids, 0.2)
    assert torch.equal(outside[0], inside[0]) and torch.equal(outside[1], inside[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_embeddings_that_are_not_finite(monkeypatch, bad):
    monkeypatch.setattr(clustering, "MOST_AT_ONCE", 10)
    points = points_of(30, 4)
    check_points(points)
    points[17, 2] = bad
    with pytest.raises(fn.UserError, match="the embedding of image 17 is not finite"):
        check_points(points)


def test_embeddings_that_are_all_equal(monkeypatch):
    monkeypatch.setattr(clustering, "MOST_AT_ONCE", 10)
    points = points_of(1, 4).expand(30, 4).clone()
    with pytest.raises(fn.UserError, match="the embeddings of all 30 images are equal"):
        check_points(points)
    points[29] = -points[29]
    check_points(points)


def test_more_clusters_than_points():
    with pytest.raises(fn.UserError, match="12 images cannot form 13 clusters"):
        spherical_k_means(points_of(12, 4), 13, seed=0)
