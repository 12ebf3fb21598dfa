import math

import pytest
import torch

from falseneg.contrast import Contrast, Embedded, Space
from falseneg.statistics import scan
from falseneg.statistics.spread import BINS, Spread


def unit(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=draw), dim=-1)


def contrast_of(z, sample, candidates, of_candidates, space=None):
    spaces = {} if space is None else {"support": space}
    parts = {"batch": slice(0, len(candidates) // 2)}
    rows = Embedded(candidates, of_candidates)
    return Contrast("views", Embedded(z, sample), rows, torch.zeros(len(z), 1), spaces, parts)


def by_loops(alpha, pieces, place, in_space=False, part=None):
    """The k-th highest similarity over all pieces and all views of an anchor, one pair at a time."""
    scores = {}
    for contrast in pieces:
        for i in range(len(contrast.anchors)):
            for j in range(contrast.columns(part).stop):
                if contrast.anchors.sample[i] != contrast.candidates.sample[j]:
                    if in_space:
                        space = contrast.spaces["support"]
                        queries, candidate = space.queries[space.query_of[i]], space.candidates[j]
                        score = max(float(query @ candidate) for query in queries)
                    else:
                        score = float(contrast.anchors.z[i] @ contrast.candidates.z[j])
                    scores.setdefault(int(place[i]), []).append(score)
    return [sorted(scores[a], reverse=True)[math.ceil(alpha * len(scores[a])) - 1] for a in sorted(scores)]


@pytest.mark.parametrize("alpha", [0.004, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("in_space", "part"), [(False, None), (True, None), (False, "batch"), (True, "batch")])
def test_equals_plain_loops(monkeypatch, alpha, in_space, part):
    monkeypatch.setattr(scan, "BLOCK", 100)  # several blocks of rows
    monkeypatch.setattr(scan, "ROWS", 2)
    place = torch.tensor([0, 0, 1, 1, 2, 2])
    anchors, queries = unit(6, 8), unit(3, 2, 8, seed=7)
    spread, pieces = Spread(3), []
    for piece in range(3):
        candidates = unit(40, 8, seed=piece + 1)
        space = Space(queries, place, candidates.roll(1, 0))
        pieces.append(contrast_of(anchors, place, candidates, torch.arange(40) // 2 + 20 * piece, space))
        spread.add(pieces[-1], place, pieces[-1].space("support") if in_space else None, part)
    expected = by_loops(alpha, pieces, place, in_space, part)
    assert spread.quantile(alpha).tolist() == pytest.approx(expected, abs=2 / BINS)
    of_each = 2 * (3 * 40 - 2) if part is None else 2 * (3 * 20 - 2)
    assert spread.seen.tolist() == [of_each] * 3


def test_extreme_similarities_and_anchors_without_any():
    z = torch.tensor([[1.0000001, 0.0], [0.0, 1.0]])
    candidates = torch.tensor([[1.0000001, 0.0], [-1.0000001, 0.0]])
    spread = Spread(2)
    spread.add(contrast_of(z[:1], torch.tensor([7]), candidates, torch.arange(2)), torch.tensor([0]))
    assert spread.quantile(0.5)[0] == pytest.approx(1, abs=2 / BINS)
    assert spread.quantile(1.0)[0] == pytest.approx(-1, abs=2 / BINS)
    assert spread.quantile(0.5)[1].isnan()
