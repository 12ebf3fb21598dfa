"""The graph of the whole data set against dense algebra in float64."""

import numpy as np
import pytest
import torch
from reference import graph_loops
from torch.nn.functional import normalize

import falseneg as fn
from falseneg import graph


def blobs(rows, kinds, width=6, spread=0.5, seed=0):
    """Points around as many centres, kind by kind, and their kinds."""
    draw = torch.Generator().manual_seed(seed)
    kind = torch.arange(rows) % kinds
    return 3 * torch.randn(kinds, width, generator=draw)[kind] + spread * torch.randn(rows, width, generator=draw), kind


def views_of(points, strength, others=0.1, seed=1):
    """Two views of each point, which differ mostly in the first feature."""
    noise = torch.randn(len(points), 2, points.shape[1], generator=torch.Generator().manual_seed(seed))
    return points[:, None] + noise * torch.tensor([strength] + [others] * (points.shape[1] - 1))


def test_whitening_is_by_the_covariance_within_images(monkeypatch):
    monkeypatch.setattr(graph, "AT_ONCE", 7)
    points, _ = blobs(40, 3)
    views = views_of(points, 2.0)
    got = graph.whitened(points, views)
    expected = graph_loops.whitened_cosines(points.double().numpy(), views.double().numpy(), graph.RIDGE)
    np.testing.assert_allclose((got @ got.T).numpy(), expected, atol=1e-5)
    centred = normalize(points - points.mean(dim=0), dim=1)
    for plain in (graph.whitened(points, None), graph.whitened(points, points[:, None].expand(-1, 2, -1))):
        torch.testing.assert_close(plain, centred, rtol=1e-5, atol=1e-6)


def test_neighbours_are_the_most_similar_others():
    points = normalize(blobs(50, 4)[0], dim=1)
    points[10:16] = points[3]  # so many alike that itself need not be among the first
    cosines, numbers = graph.nearest(points, 3)
    sim = (points @ points.T).fill_diagonal_(-2)
    assert not (numbers == np.arange(50)[:, None]).any()
    np.testing.assert_allclose(np.sort(cosines)[:, ::-1], sim.topk(3).values.numpy(), atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(sim.numpy(), numbers, axis=1), cosines, atol=1e-6)


def test_neighbours_among_many_are_nearly_all_found(monkeypatch):
    points = normalize(blobs(3000, 20, spread=0.8)[0], dim=1)
    _, exact = graph.nearest(points, 10)
    monkeypatch.setattr(graph, "EXACT", 100)
    cosines, found = graph.nearest(points, 10)
    shared = [len(set(one) & set(other)) for one, other in zip(exact.tolist(), found.tolist(), strict=True)]
    assert sum(shared) > 0.9 * exact.size
    again = graph.nearest(points, 10)
    assert np.array_equal(found, again[1]) and np.array_equal(cosines, again[0])


@pytest.mark.parametrize("number, dense", [(2, 512), (5, 512), (5, 0)])
def test_coordinates_are_the_leading_eigenvectors(number, dense, monkeypatch):
    monkeypatch.setattr(graph, "DENSE", dense)
    monkeypatch.setattr(graph, "FURTHER", 2)
    points, _ = blobs(60, 4, spread=2.0)
    views = views_of(points, 1.0)
    got = graph.spectral_coordinates(*graph.nearest(graph.whitened(points, views), 8), number).double().numpy()
    cosines = graph_loops.whitened_cosines(points.double().numpy(), views.double().numpy(), graph.RIDGE)
    expected = graph_loops.coordinates(cosines, 8, graph.STEEPNESS, number)
    np.testing.assert_allclose(got @ got.T, expected @ expected.T, atol=2e-3)


def test_many_pieces_are_each_found(monkeypatch):
    """Seven eigenvectors of one value, of a block and of a matrix that is solved whole."""
    points = normalize(torch.eye(8)[torch.arange(400) % 8] + 1e-3 * torch.rand(400, 8), dim=1)
    for dense in (512, 0):
        monkeypatch.setattr(graph, "DENSE", dense)
        table = graph.spectral_coordinates(*graph.nearest(points, 12), 7)
        same = (torch.arange(400) % 8)[:, None] == torch.arange(400) % 8
        assert (table @ table.T)[same].min() > 0.999 and (table @ table.T)[~same].max() < 0.5


def test_a_graph_in_pieces_is_told_apart_and_an_image_alone_is_like_no_other():
    """Three pieces have three eigenvectors of the value 1, of which the trivial one is any mixture."""
    neighbours = np.array([[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4], [7, -1], [6, -1], [-1, -1]])
    table = graph.spectral_coordinates(np.full((9, 2), 0.9, dtype=np.float32), neighbours, 2)
    assert table[8].isnan().all()
    piece = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    same = piece[:, None] == piece
    sim = table[:8] @ table[:8].T
    assert sim[same].min() > 0.999 and sim[~same].max() < 0.5


def test_quantiles_of_all_pairs(monkeypatch):
    table = normalize(blobs(200, 5)[0], dim=1)
    table = torch.cat([table, torch.full((3, 6), torch.nan)])
    scores = (table[:200] @ table[:200].T)[torch.ones(200, 200, dtype=torch.bool).triu(1)]
    found = graph.quantiles_of_pairs(table, [0.05, 0.1], seed=0)
    for threshold, share in zip(found, (0.05, 0.1), strict=True):
        assert float((scores > threshold).float().mean()) == pytest.approx(share, abs=1e-4)
    monkeypatch.setattr(graph, "SAMPLED", 150)
    sampled = graph.quantiles_of_pairs(table, [0.05, 0.1], seed=0)
    assert torch.equal(sampled, graph.quantiles_of_pairs(table, [0.05, 0.1], seed=0))
    assert not torch.equal(sampled, found)
    assert float((scores > sampled[1]).float().mean()) == pytest.approx(0.1, abs=0.02)
    assert graph.quantiles_of_pairs(table[-3:], [0.5], 0).tolist() == [1.0]


def test_more_eigenvectors_than_there_are():
    with pytest.raises(fn.UserError, match="9 eigenvectors cannot be found of a graph of 10 images; give at most 8"):
        graph.spectral_coordinates(np.ones((10, 1)), np.roll(np.arange(10), 1)[:, None], 9)


def test_agreement_is_the_share_of_the_closest_pairs_that_both_have(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    one, other = (normalize(torch.randn(300, 4, generator=draw), dim=1) for _ in range(2))
    close = [(table @ table.T).fill_diagonal_(-1) for table in (one, other)]
    pairs = torch.ones(300, 300, dtype=torch.bool).triu(1)
    number = round(0.05 * int(pairs.sum()))
    best = [set(scores[pairs].topk(number).indices.tolist()) for scores in close]
    found = graph.agreement(one, other, 0.05, 0)
    assert found == pytest.approx(len(best[0] & best[1]) / number, abs=1e-3)
    assert found == pytest.approx(0.05, abs=0.02)  # chance
    assert graph.agreement(one, one, 0.05, 0) == 1
    monkeypatch.setattr(graph, "SAMPLED", 250)
    near = normalize(one + 0.1 * other, dim=1)
    assert 0.5 < graph.agreement(one, near, 0.05, 0) < 1
    assert graph.agreement(one, torch.full_like(one, torch.nan), 0.05, 0) == 0
