import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import falseneg as fn
from falseneg.schedule import cosine_weights
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


def lars_path(weights, gradients, rates, momentum, decay, trust, adapted):
    """LARS by hand (You et al. 2017, algorithm 1): v = m v + lr * ratio * (g + wd w); w -= v. Plain numbers."""
    velocity = [0.0] * len(weights)
    for gradient, rate in zip(gradients, rates, strict=True):
        direction, ratio = gradient, 1.0
        if adapted:
            direction = [g + decay * w for g, w in zip(gradient, weights, strict=True)]
            of_weights, of_direction = math.hypot(*weights), math.hypot(*direction)
            ratio = trust * of_weights / of_direction if of_weights > 0 and of_direction > 0 else 1.0
        velocity = [momentum * v + rate * ratio * d for v, d in zip(velocity, direction, strict=True)]
        weights = [w - v for w, v in zip(weights, velocity, strict=True)]
    return weights


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lars_over_warm_up_and_cosine(decay, momentum):
    """With momentum and a rate that changes it matters that the rate is inside: timm's, for one, ends elsewhere."""
    net, steps = network().double(), 30
    with torch.no_grad():
        net[2].weight.zero_()  # has no norm to adapt to at first
    optimiser = LARS(2.0, weight_decay=decay, momentum=momentum, trust=0.05).build([net], 256)
    draw = torch.Generator().manual_seed(1)
    rates = [2.0 * rate_factor(step, 6, steps) for step in range(steps)]
    gradients = [[torch.randn(p.shape, generator=draw).double() + 0.3 for p in net.parameters()] for _ in rates]
    expected = [
        lars_path(
            *(parameter.flatten().tolist(), [step[place].flatten().tolist() for step in gradients]),
            *(rates, momentum, decay, 0.05, parameter.ndim > 1),
        )
        for place, parameter in enumerate(net.parameters())
    ]
    for rate, of_step in zip(rates, gradients, strict=True):
        for parameter, gradient in zip(net.parameters(), of_step, strict=True):
            parameter.grad = gradient
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
    for found, wanted in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(
            found.detach().flatten(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-13
        )


def test_lars_goes_on_from_its_state():
    nets = [network(), network()]
    first, second = (LARS(0.5).build([net], 256) for net in nets)

    def step(net, optimiser, seed):
        draw = torch.Generator().manual_seed(seed)
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimiser.step()

    step(nets[0], first, 1)
    nets[1].load_state_dict(nets[0].state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for net, optimiser in zip(nets, (first, second), strict=True):
        step(net, optimiser, 2)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


def test_all_but_single_numbers_decay_where_it_is_asked_for():
    net, temperature = network(), fn.LearnedTemperature()
    decayed, plain = SGD(0.1, decay_all=True).build([net, temperature], 256).param_groups
    assert {id(p) for p in decayed["params"]} == {id(p) for p in net.parameters()}
    assert [id(p) for p in plain["params"]] == [id(temperature.log_tau)] and plain["weight_decay"] == 0


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


def test_the_cosine_has_the_same_bits_wherever_it_is_used():
    for total in (7, 10, 93, 1000):
        for step in range(total):
            assert rate_factor(step + 3, 3, total + 3) == 0.5 * (1 + math.cos(math.pi * step / total))
            moved = 0.5 * (1 - math.cos(math.pi * (step / total)))
            assert fn.Cosine(0.3, 0.9).at(fn.Clock(step, total, 1)) == 0.3 * (1 - moved) + 0.9 * moved
            assert 0.01 * cosine_weights(step / total)[0] == 0.01 * (1 + math.cos(math.pi * (step / total))) / 2


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
