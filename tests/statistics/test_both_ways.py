"""Two directions of one matrix in one sweep against each by itself: the same statistics, losses and gradients."""

import pytest
import torch
from torch.nn.functional import normalize

import falseneg as fn
from falseneg.methods.two_towers import contrast_pairs
from falseneg.rules import Tiers
from falseneg.statistics import negatives, stats_of_contrasts, stats_of_levels
from falseneg.statistics.tiled import TiledSweep

SIZE = 700  # more than a tile, and not a whole number of them


def pair(size=SIZE, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    sides = [normalize(torch.randn(size, 1, 8, generator=draw, dtype=dtype), dim=-1).requires_grad_() for _ in range(2)]
    # Every pair stands twice, some of them in another tile, and one is of nobody.
    index = torch.randperm(size, generator=draw) // 2
    return sides, contrast_pairs(
        fn.Embeddings(index.where(index > 0, -1), dict(zip(("image", "text"), sides, strict=True)))
    )


def thresholds(contrasts, seed=5):
    draw = torch.Generator().manual_seed(seed)
    return [fn.AboveThreshold(torch.rand(SIZE, generator=draw, dtype=torch.float64) * 0.8) for _ in contrasts]


def levels(contrasts, kind):
    above, higher = thresholds(contrasts), thresholds(contrasts, 6)
    labels = torch.arange(SIZE)[:, None] % 7
    return {
        "none": [[fn.NoPairs()], [fn.NoPairs()]],
        "one side": [[above[0]], [fn.NoPairs()]],
        "thresholds": [[rule] for rule in above],
        "space": [[fn.AboveThreshold(torch.tensor(0.3).double(), each.spaces["text"])] for each in contrasts],
        "levels": [[rule, fn.SameGroup(labels, labels), fn.NoPairs()] for rule in above],
        "top-k": [[fn.top_k(each, 5)] for each in contrasts],
        "tiers": [
            [Tiers(((high, fn.ATTRACT_OUTSIDE), (low, fn.Strategy(0.5, 0.25, True))))]
            for high, low in zip(higher, above, strict=True)
        ],
    }[kind]


KINDS = ("none", "one side", "thresholds", "space", "levels", "top-k", "tiers")
FIELDS = ("log_sum", "count", "flagged", "weight", "full", "attracted", "attracted_sim")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", ["one", "each", "low"])
def test_both_directions_are_those_of_each_alone(kind, temperature, monkeypatch):
    sides, contrasts = pair()
    if temperature == "each":
        draw = torch.Generator().manual_seed(9)
        tau = [(torch.rand(SIZE, generator=draw, dtype=torch.float64) * 0.2 + 0.1).requires_grad_() for _ in range(2)]
    else:
        tau = [torch.tensor(0.2 if temperature == "one" else 0.004, dtype=torch.float64, requires_grad=True)] * 2
    rules = levels(contrasts, kind)
    strategy = fn.Strategy(0.5, 0.25, True)
    made = []
    real = TiledSweep.__init__

    def noted(self, *given, **options):
        made.append(options)
        real(self, *given, **options)

    monkeypatch.setattr(TiledSweep, "__init__", noted)
    found = stats_of_contrasts(contrasts, tau, rules, strategy)
    assert {"both_ways": True} in made and {} not in made
    alone = [stats_of_levels(*each, strategy) for each in zip(contrasts, tau, rules, strict=True)]
    weight = torch.linspace(0.5, 1.5, SIZE, dtype=torch.float64)
    totals = []
    for every in (found, alone):
        total = 0.0
        for direction, of_levels in enumerate(every):
            for stats in of_levels:
                total = total + ((stats.log_sum * weight) + stats.attracted_sim * (1 + direction)).sum()
                total = total + stats.log_sum_at(0.5).sum() + stats.over_attracted(stats.log_sum).sum()
        totals.append(total)
    for ours, theirs in zip(found, alone, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            for name in FIELDS:
                torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-12, atol=1e-12, msg=name)
    leaves = [*sides, *dict.fromkeys(tau)]
    for one, other in zip(*(torch.autograd.grad(total, leaves) for total in totals), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_what_is_not_one_matrix_is_visited_apart(monkeypatch):
    """Small ones, a bank, gathered candidates, tiers of different kinds, a part that alone is pushed away."""
    monkeypatch.setattr(negatives, "_own_part", lambda *_: pytest.fail("visited together"))
    tau = [torch.tensor(0.2, dtype=torch.float64)] * 2
    _, small = pair(size=100)
    stats_of_contrasts(small, tau, [[fn.NoPairs()]] * 2, fn.ELIMINATE)
    _, contrasts = pair()
    above = thresholds(contrasts)
    stats_of_contrasts(contrasts[:1], tau[:1], [[above[0]]], fn.ELIMINATE)
    stats_of_contrasts(contrasts, tau, [[Tiers(((above[0], fn.ATTRACT),))], [above[1]]], fn.ELIMINATE)
    differ = [[Tiers(((rule, own),))] for rule, own in zip(above, (fn.ATTRACT, fn.ELIMINATE), strict=True)]
    stats_of_contrasts(contrasts, tau, differ, fn.ELIMINATE)
    _, (_, other) = pair(seed=1)
    stats_of_contrasts([contrasts[0], other], tau, [[rule] for rule in above], fn.ELIMINATE)


def test_only_one_matrix_of_products_is_made(monkeypatch):
    """Forward: as many products as the matrix has tiles, not twice as many."""
    products = []
    real = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *given, **options: products.append(1) or real(*given, **options))
    _, contrasts = pair()
    stats_of_contrasts(
        contrasts, [torch.tensor(0.2).double()] * 2, [[rule] for rule in thresholds(contrasts)], fn.ELIMINATE
    )
    assert len(products) == 4
