import copy
from itertools import pairwise

import catalogue
import pytest
import torch
from lightning_fabric import Fabric
from train.parts import tiny_encoder

import falseneg as fn
from falseneg.losses import Criterion
from falseneg.train.gradient_cache import GradientCache, frozen_statistics
from falseneg.train.optimisers import SGD
from falseneg.train.step import EncodeBatch, Learner, training_step

CLOCK = fn.Clock(0, 1, 1)


def learner_of(dropout=False, batch_norm=False, precision="32-true", dtype=torch.float64, **simclr):
    """SimCLR with LayerNorm in the place of BatchNorm, unless BatchNorm is wanted."""
    chances = {} if dropout else {"drop_rate": 0.0, "drop_path_rate": 0.0}
    encoder = tiny_encoder(**({} if batch_norm else {"norm_layer": "layernorm2d"}), **chances)
    method = fn.SimCLR(encoder, head_dim=16, **simclr)
    if not batch_norm:
        method.head[1] = torch.nn.LayerNorm(encoder.feature_dim)
    criterion = Criterion(fn.SupportSet(top_k=5) if simclr.get("support_views") else None, fn.ATTRACT)
    criterion.temperature = fn.LearnedTemperature(0.2)
    method.to(dtype)
    criterion.to(dtype)
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    encoding = fabric.setup_module(EncodeBatch(method))
    optimiser = fabric.setup_optimizers(SGD(0.1, momentum=0.0).build([method, criterion], 7))
    return Learner(fabric, method, encoding, criterion, optimiser)


def views_of(images=7, views=2, support=0, seed=3):
    draw = torch.Generator().manual_seed(seed)
    main = torch.randint(0, 256, (images, views, 3, 8, 8), generator=draw, dtype=torch.uint8)
    further = torch.randint(0, 256, (images, support, 3, 8, 8), generator=draw, dtype=torch.uint8)
    return catalogue.batch(main, (further,) if support else (), torch.arange(images))


def gradients(learner):
    named = [*learner.method.named_parameters(), *learner.criterion.named_parameters()]
    return {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}


def plain_pieces(learner, views, pieces):
    """The reference: encode piece by piece with the graph kept, one loss, one backward pass."""
    bounds = [len(views) * i // pieces for i in range(pieces + 1)]
    parts = [learner.encode(views[slice(*ends)]) for ends in pairwise(bounds)]
    loss, _ = learner.criterion(learner.method.contrasts(fn.Embeddings.cat(parts)), CLOCK)
    loss.backward()
    return float(loss.detach())


def assert_gradients_of_the_whole_batch(learner, views, pieces):
    """A step in pieces leaves the gradients of one plain pass."""
    plain_pieces(learner, views, 1)
    expected = gradients(learner)
    assert expected["temperature.log_tau"].abs() > 0 and expected["encoder.backbone.conv1.weight"].abs().sum() > 0
    training_step(learner, views, CLOCK, pieces)
    found = gradients(learner)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("pieces", [1, 2, 3])
@pytest.mark.parametrize("support", [{}, {"support_views": 2}, {"support_views": 2, "support_as_positives": True}])
def test_gradients_equal_those_of_the_whole_batch(pieces, support):
    learner, views = learner_of(**support), views_of(support=support.get("support_views", 0))
    assert_gradients_of_the_whole_batch(learner, views, pieces)


@pytest.mark.parametrize("pieces", [2, 3])
@pytest.mark.parametrize("support", [{}, {"support_views": 2}, {"support_views": 2, "support_as_positives": True}])
def test_random_draws_are_the_same_in_both_passes(pieces, support):
    learner, views = learner_of(dropout=True, **support), views_of(support=support.get("support_views", 0))
    torch.manual_seed(11)
    loss = plain_pieces(learner, views, pieces)
    expected, draw_after = gradients(learner), torch.rand(1)
    torch.manual_seed(11)
    found_loss, _ = training_step(learner, views, CLOCK, pieces)
    assert found_loss == pytest.approx(loss, rel=1e-12)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients(learner)[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
    assert torch.equal(torch.rand(1), draw_after), "the generator must stand where a plain step leaves it"


def test_dropout_does_matter():
    learner, views = learner_of(dropout=True), views_of()
    losses = {plain_pieces(learner, views, 2) for _ in range(3)}
    assert len(losses) == 3


def test_running_statistics_move_once():
    learner, views = learner_of(batch_norm=True), views_of(support=0)
    once = copy.deepcopy(learner.method)
    once.train()
    for piece in (views[0:3], views[3:7]):
        once.encode(piece)
    cache = GradientCache(learner, views, 2)
    loss, _ = learner.criterion(learner.method.contrasts(cache.embeddings), CLOCK)
    learner.fabric.backward(loss)
    cache.replay()
    for (name, expected), found in zip(once.named_buffers(), learner.method.buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)
    assert int(learner.method.encoder.backbone.bn1.num_batches_tracked) == 2


def test_statistics_are_put_back_as_they_were():
    norm, frozen = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2, track_running_stats=False)
    module = torch.nn.Sequential(norm, frozen)
    with pytest.raises(RuntimeError), frozen_statistics(module):
        module(torch.randn(4, 2))
        raise RuntimeError
    assert norm.track_running_stats and not frozen.track_running_stats
    assert int(norm.num_batches_tracked) == 0


def test_support_views_that_only_detect_are_encoded_once(monkeypatch):
    learner, views = learner_of(support_views=2), views_of(support=2)
    seen = []
    embed = learner.method._embed
    monkeypatch.setattr(learner.method, "_embed", lambda images: seen.append(images.shape[1:2]) or embed(images))
    training_step(learner, views, CLOCK, 3)
    assert seen == [(2,), (2,)] * 3 + [(2,)] * 3


def test_detector_runs_once_a_step():
    class Counting(fn.NoDetection):
        calls = 0

        def flag(self, contrast, clock):
            self.calls += 1
            return super().flag(contrast, clock)

    learner = learner_of()
    learner.criterion.detector = Counting()
    training_step(learner, views_of(), CLOCK, 3)
    assert learner.criterion.detector.calls == 1


class Held:
    """A tensor kept for the backward pass; counts the bytes that are alive at the same time."""

    alive = most = 0

    def __init__(self, tensor):
        self.tensor = tensor
        Held.alive += tensor.nbytes
        Held.most = max(Held.most, Held.alive)

    def __del__(self):
        Held.alive -= self.tensor.nbytes


def test_activations_of_one_piece_only_are_kept():
    def most_kept(pieces):
        learner, views = learner_of(), views_of(images=24)
        Held.alive = Held.most = 0
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            training_step(learner, views, CLOCK, pieces)
        return Held.most

    assert most_kept(4) < 0.4 * most_kept(1)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_other_precisions(precision):
    learner, views = learner_of(precision=precision, dtype=torch.float32, support_views=1), views_of(support=1)
    training_step(learner, views, CLOCK, 1)
    expected = gradients(learner)
    learner = learner_of(precision=precision, dtype=torch.float32, support_views=1)
    training_step(learner, views, CLOCK, 3)
    tolerance = {"32-true": 1e-4, "bf16-mixed": 0.1}[precision]
    for name, gradient in expected.items():
        error = (gradients(learner)[name] - gradient).norm() / (gradient.norm() + 1e-6)
        assert error < tolerance, (name, error)
