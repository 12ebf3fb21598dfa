"""Both directions of image-text pairs against plain loops, in value, gradient and state."""

import math

import pytest
import torch
from reference import pair_loops
from torch.nn.functional import normalize

import falseneg as fn

CLOCK = fn.Clock(0, 10, 3)
TAU = 0.25  # which float32 holds exactly
BATCHES = ([0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7, 8], [8, 1, 5, 0, 2, 3], [0, 1, 2, 3, 4, 5])


def sides(seed, size=6, dim=5):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(size, dim, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2)]


def cosines(raw):
    image, text = (normalize(side, dim=1) for side in raw)
    return [[(a * b).sum() for b in text] for a in image]


def criterion_of(**parts):
    criterion = fn.Criterion(**parts)
    criterion.prepare(fn.Facts(rows=10, negatives=5, contrasts=fn.TwoTowers.contrast_names))
    return criterion


def contrasts(raw, ids, **more):
    rows = {"image": raw[0], "text": raw[1]} | more
    unit = {name: normalize(each if each.ndim == 3 else each[:, None], dim=-1) for name, each in rows.items()}
    return fn.methods.two_towers.contrast_pairs(fn.Embeddings(torch.tensor(ids), unit))


def gradients(value, raw):
    return torch.cat(torch.autograd.grad(value, raw, retain_graph=True))


def same(got, expected, raw, atol=1e-12):
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)
    torch.testing.assert_close(gradients(got, raw), gradients(expected, raw), rtol=1e-9, atol=atol)


@pytest.mark.parametrize("size", [6, 300])  # the second is not dense
def test_clip_is_the_symmetric_cross_entropy(size):
    raw = sides(0, size)
    loss, _ = criterion_of(temperature=TAU)(contrasts(raw, list(range(size)) if size < 10 else [-1] * size), CLOCK)
    image, text = (normalize(side, dim=1) for side in raw)
    logits, target = image @ text.T / TAU, torch.arange(size)
    cross_entropy = torch.nn.functional.cross_entropy
    same(loss, (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2, raw)
    if size < 10:
        same(loss, pair_loops.clip(cosines(raw), TAU), raw)


def test_repetitions_of_a_pair_are_no_negatives():
    raw, ids = sides(0), [0, 1, 2, 0, 4, 5]
    loss, _ = criterion_of(temperature=TAU)(contrasts(raw, ids), CLOCK)
    kept = [[a != b for b in ids] for a in ids]
    same(loss, pair_loops.clip(cosines(raw), TAU, kept, kept), raw)


@pytest.mark.parametrize("learned", [False, True])
def test_siglip(learned):
    raw = sides(1)
    objective = fn.Sigmoid(-2.5).double()
    temperature = fn.LearnedTemperature(0.125).double() if learned else fn.FixedTemperature(0.125)
    loss, _ = criterion_of(objective=objective, temperature=temperature)(contrasts(raw, list(range(6))), CLOCK)
    tau, bias = torch.tensor(0.125, dtype=torch.float64), torch.tensor(-2.5, dtype=torch.float64, requires_grad=True)
    expected = pair_loops.siglip(cosines(raw), tau, bias)
    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=0)
    of_bias = torch.autograd.grad(loss, objective.bias, retain_graph=True)[0]
    torch.testing.assert_close(of_bias, torch.autograd.grad(expected, bias, retain_graph=True)[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients(loss, raw), gradients(expected, raw), rtol=1e-6, atol=1e-12)


GAMMA = 0.6


@pytest.mark.parametrize("version, own_pair", [("v0", False), ("v1", False), ("v1", True)])
@pytest.mark.parametrize("filtering", [False, True], ids=["all", "glofnd"])
def test_fastclip_v0_and_v1_over_several_steps(version, own_pair, filtering):
    """v1 with a constant gamma is bimodal SogCLR, and with the own pair counted iSogCLR's mean."""
    objective = fn.GlobalContrastive(GAMMA, relative=True, own_pair=own_pair, times_tau=version != "v0")
    detector = fn.GlobalThreshold(alpha=0.3, initial=1.0) if filtering else None
    criterion = criterion_of(detector=detector, objective=objective, temperature=TAU)
    us, thresholds, states = ({}, {}), ({}, {}), ({}, {})
    tau = torch.tensor(TAU, dtype=torch.float64)
    seen_flags = False
    for seed, ids in enumerate(BATCHES):
        raw = sides(seed)
        for of_direction in objective.running.values():  # our own rescaling has a test of its own
            of_direction.before_filtering = lambda row: torch.zeros_like(row, dtype=torch.bool)
        loss, _ = criterion(contrasts(raw, ids), CLOCK)
        sim = cosines(raw)
        back = [[sim[j][i] for j in range(6)] for i in range(6)]
        kept = kept_back = None
        if filtering:
            kept = pair_loops.glofnd(thresholds[0], states[0], sim, ids, 0.3)
            kept_back = pair_loops.glofnd(thresholds[1], states[1], back, ids, 0.3)
            seen_flags |= any(not each for row in kept for each in row)
        terms, value = pair_loops.fastclip(
            version, us, sim, ids, ([tau] * 6, [tau] * 6), GAMMA, kept=kept, kept_back=kept_back, own_pair=own_pair
        )
        assert float(loss.detach()) == pytest.approx(value, abs=2e-6)
        torch.testing.assert_close(gradients(loss, raw), gradients(terms, raw), rtol=2e-5, atol=1e-9)
    for name, u in zip(fn.TwoTowers.contrast_names, us, strict=True):
        held = objective.running[name].log_mean(torch.arange(10))
        for row, value in u.items():
            assert float(held[row]) == pytest.approx(math.log(value), abs=1e-5)
    if filtering:
        for name, of_loop in zip(fn.TwoTowers.contrast_names, thresholds, strict=True):
            table = criterion.detector.tables[name].own
            for row, value in of_loop.items():
                assert float(table.read("threshold", torch.tensor([row]))) == pytest.approx(value, abs=1e-6)
        assert seen_flags


def test_fastclip_v2_has_a_temperature_for_each_image_and_each_text():
    rho, rate = 7.0, 0.0133
    step = fn.AdamStep(rate, 0.9, 0.999)
    temperature = fn.IndividualTemperature(initial=0.3, minimum=0.01, maximum=1.0, step=step, clip=5.0)
    criterion = criterion_of(objective=fn.GlobalContrastive(GAMMA, rho=rho, relative=True), temperature=temperature)
    us, taus, states = ({}, {}), ({}, {}), ({}, {})
    for seed, ids in enumerate(BATCHES):
        raw = sides(seed)
        loss, _ = criterion(contrasts(raw, ids), CLOCK)
        sim = cosines(raw)
        used = [
            [torch.tensor(held.get(who, 0.3), dtype=torch.float64, requires_grad=True) for who in ids] for held in taus
        ]
        terms, value = pair_loops.fastclip("v2", us, sim, ids, used, GAMMA, rho)
        assert float(loss.detach()) == pytest.approx(value, abs=1e-5)
        torch.testing.assert_close(gradients(loss, raw), gradients(terms, raw), rtol=1e-4, atol=1e-8)
        loss.backward()
        criterion.temperature.after_backward(CLOCK)
        back = [[sim[j][i] for j in range(6)] for i in range(6)]
        for side, rows in enumerate((sim, back)):
            for i, who in enumerate(ids):
                gradient = pair_loops.v2_tau_gradient(
                    rows[i], i, [True] * 6, used[side][i].detach(), us[side][who], rho
                )
                gradient = min(max(gradient, -5.0), 5.0)
                moved = pair_loops.adam(float(used[side][i]), gradient, states[side].setdefault(who, {}), rate)
                taus[side][who] = min(max(moved, 0.01), 1.0)
    for name, of_loop in zip(fn.TwoTowers.contrast_names, taus, strict=True):
        held = temperature.tables[name].read("tau", torch.arange(10))
        assert len(of_loop) == 9
        for row, value in of_loop.items():
            assert float(held[row]) == pytest.approx(value, abs=1e-5)
            assert abs(value - 0.3) > 1e-3


@pytest.mark.parametrize("slower_below", [None, 0.2])
def test_fastclip_v3_has_one_temperature_with_steps_of_its_own(slower_below):
    """Adam on the logarithm; a third of the rate once the temperature is low."""
    rho, rate = 6.5, 0.05
    temperature = fn.LearnedTemperature(0.22, step=fn.AdamStep(rate, 0.9, 0.999), slower_below=slower_below)
    criterion = criterion_of(objective=fn.GlobalContrastive(GAMMA, rho=rho, relative=True), temperature=temperature)
    us, log_tau, state, slowed = ({}, {}), math.log(0.22), {}, 0
    for seed, ids in enumerate(BATCHES):
        raw = sides(seed)
        loss, _ = criterion(contrasts(raw, ids), CLOCK)
        leaf = torch.tensor(log_tau, dtype=torch.float64, requires_grad=True)
        sim = cosines(raw)
        terms, value = pair_loops.fastclip("v3", us, sim, ids, ([leaf.exp()] * 6, [leaf.exp()] * 6), GAMMA, rho)
        assert float(loss.detach()) == pytest.approx(value, abs=1e-5)
        torch.testing.assert_close(gradients(loss, raw), gradients(terms, raw), rtol=1e-4, atol=1e-8)
        loss.backward()
        criterion.temperature.after_backward(CLOCK)
        slow = slower_below is not None and math.exp(log_tau) <= slower_below
        slowed += slow
        gradient = float(torch.autograd.grad(terms, leaf)[0])
        log_tau = pair_loops.adam(log_tau, gradient, state, rate / 3 if slow else rate)
        assert temperature.of_all() == pytest.approx(math.exp(log_tau), rel=1e-6)
    assert (slowed > 0) == (slower_below is not None)
    assert not list(temperature.parameters())  # nothing for the run's optimiser
    again = fn.LearnedTemperature(0.5, step=fn.AdamStep(rate), slower_below=slower_below)
    again.load_state_dict(temperature.state_dict())
    assert again.of_all() == temperature.of_all() and float(again.updates) == len(BATCHES)


def test_a_temperature_of_a_hundredth_does_not_overflow_in_float32():
    """e^200 does, which the released programs of v0, v1 and v3 form."""
    criterion = criterion_of(objective=fn.GlobalContrastive(relative=True), temperature=0.01)
    image = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    loss, _ = criterion(contrasts([image, -image.detach()], [0, 1]), CLOCK)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(2.0, rel=1e-5) and image.grad.isfinite().all()


def test_attraction_and_lost_negatives_of_a_relative_mean():
    raw = sides(0)
    objective = fn.GlobalContrastive(relative=True)
    criterion = criterion_of(
        detector=fn.FixedThreshold(-1.0), strategy="attract-outside", objective=objective, temperature=TAU
    )
    loss, _ = criterion(contrasts(raw, list(range(6))), CLOCK)
    sim = torch.stack([torch.stack(row) for row in cosines(raw)])
    same(loss, -(sim.mean(1) + sim.mean(0)).mean() / 2, raw, atol=1e-9)


def test_spaces_of_two_towers():
    raw, draw = sides(0), torch.Generator().manual_seed(3)
    support = torch.randn(6, 3, 5, generator=draw, dtype=torch.float64)
    image, text = (normalize(side, dim=1).detach() for side in raw)
    first, second = contrasts(raw, list(range(6)), **{"support": support})
    assert (first.name, second.name) == ("image->text", "text->image") and first.weight == second.weight == 0.5
    rows = slice(0, 6)
    score = fn.rules.space_scores
    for each in (first, second):
        torch.testing.assert_close(score(each.spaces["image"], rows, rows), image @ image.T)
        torch.testing.assert_close(score(each.spaces["text"], rows, rows), text @ text.T)
    crops = normalize(support, dim=-1)
    torch.testing.assert_close(score(first.spaces["support"], rows, rows), (crops @ text.T).amax(1))
    torch.testing.assert_close(
        score(second.spaces["support"], rows, rows), text @ image.T
    )  # no captions: the text itself


@pytest.mark.parametrize(
    "detector",
    [
        fn.SupportSet(top_k=2),
        fn.SupportSet(share=0.3, mean=True),
        fn.BatchQuantile(0.3, space="text"),
        fn.RelativeToPositive(absolute_margin=-0.1),
        fn.RelativeToPositive(relative_margin=0.3, space="image"),
        fn.Oracle(torch.arange(10) % 3),
        fn.AnyOf([fn.BatchQuantile(0.2), fn.FixedThreshold(0.5, space="image")]),
        fn.AllOf([fn.BatchQuantile(0.5), fn.BatchQuantile(0.5, space="text")]),
    ],
    ids=lambda detector: type(detector).__name__,
)
@pytest.mark.parametrize("strategy", ["eliminate", "attract"])
def test_every_detector_flags_in_both_directions(detector, strategy):
    support = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = contrasts(sides(0), list(range(6)), support=support, **{"support text": support})
    loss, judged = criterion_of(detector=detector, strategy=strategy, temperature=TAU)(found, CLOCK)
    assert loss.isfinite() and [int(stats.flagged.sum()) > 0 for *_, stats in judged] == [True, True]
