import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import falseneg as fn
from falseneg.train.optimisers import LARS, SGD, AdamW, rate_factor


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))


@pytest.mark.parametrize("kind", [AdamW, SGD, LARS])
def test_norms_biases_and_single_numbers_never_decay(kind):
    net, temperature = network(), fn.LearnedTemperature()
    optimiser = kind(0.1, weight_decay=0.5).build([net, temperature], 256)
    decayed, plain = optimiser.param_groups
    assert {id(p) for p in decayed["params"]} == {id(net[0].weight), id(net[2].weight)}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0)
    assert id(temperature.log_tau) in {id(p) for p in plain["params"]} and len(plain["params"]) == 5
    before = [p.clone() for p in net.parameters()]
    for parameter in [*net.parameters(), temperature.log_tau]:
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    moved = [not torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True)]
    assert moved == [True, False, False, False, True, False]


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_lars_is_the_papers_rule(decay):
    net = network()
    optimiser = LARS(0.5, weight_decay=decay, momentum=0.0, trust=0.02).build([net], 256)
    draw = torch.Generator().manual_seed(1)
    expected = []
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draw)
        w, g = parameter.detach(), parameter.grad
        if w.ndim > 1:
            g = g + decay * w
            trust = 0.02 * w.norm() / (parameter.grad.norm() + decay * w.norm())
            expected.append(w - 0.5 * trust * g)
        else:
            expected.append(w - 0.5 * g)
    optimiser.step()
    for found, wanted in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach(), wanted, rtol=1e-5, atol=1e-7)


def test_frozen_parameters_are_left_out():
    net = network()
    net[0].requires_grad_(False)
    assert sum(len(group["params"]) for group in AdamW().build([net], 256).param_groups) == 4


@pytest.mark.parametrize(
    ("optimiser", "rate"),
    [(AdamW(), 1e-3 * math.sqrt(2)), (SGD(), 0.06), (LARS(), 0.075 * math.sqrt(512)), (AdamW(0.5), 0.5)],
)
def test_usual_rates(optimiser, rate):
    assert optimiser.build([network()], 512).param_groups[0]["lr"] == pytest.approx(rate)


def test_warm_up_and_cosine():
    factors = [rate_factor(step, 4, 12) for step in range(12)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0 and factors[8] == pytest.approx(0.5)
    assert all(after < before for before, after in pairwise(factors[4:]))
    assert 0 < factors[-1] < 0.05
    assert rate_factor(0, 0, 10) == 1 and rate_factor(9, 10, 10) == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AdamW(0), "learning_rate is 0"),
        (lambda: AdamW(math.inf), "learning_rate is inf"),
        (lambda: SGD(weight_decay=-1), "weight_decay is -1"),
        (lambda: SGD(momentum=1), "momentum is 1"),
        (lambda: SGD(momentum=0, nesterov=True), "nesterov needs momentum"),
        (lambda: AdamW(beta2=1), "beta2 is 1"),
        (lambda: LARS(trust=0), "trust is 0"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(fn.UserError, match=words):
        make()
