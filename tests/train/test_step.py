import pytest
import torch
from train.test_gradient_cache import CLOCK, learner_of, views_of

import falseneg as fn
from falseneg.train.step import NotFinite, training_step


@pytest.mark.parametrize("pieces", [1, 2])
def test_everything_happens_once_and_in_order(monkeypatch, pieces):
    learner, calls = learner_of(support_views=1), []
    conv = learner.method.encoder.backbone.conv1.weight

    class Noting(fn.FixedTemperature):
        def after_backward(self, clock, scale):
            calls.append(("after_backward", conv.grad is not None, torch.equal(conv, before)))

    learner.criterion.temperature = Noting(0.2)
    monkeypatch.setattr(
        learner.method,
        "after_step",
        lambda embeddings, clock: calls.append(("after_step", not torch.equal(conv, before))),
    )
    before = conv.detach().clone()
    loss, judged = training_step(learner, views_of(support=1), CLOCK, pieces)
    assert calls == [("after_backward", True, True), ("after_step", True)]
    assert isinstance(loss, float) and len(judged) == 1
    contrast, rule, stats = judged[0]
    assert len(contrast.anchors) == 14 and isinstance(rule, fn.Listed) and int(stats.flagged.sum()) == 14 * 5


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_changes_nothing(value):
    class Broken(fn.InfoNCE):
        def forward(self, *arguments):
            return super().forward(*arguments) + value

    learner = learner_of()
    learner.criterion.objective = Broken()
    before = {key: tensor.clone() for key, tensor in learner.method.state_dict().items()}
    batch = views_of()
    with pytest.raises(NotFinite) as found:
        training_step(learner, batch, CLOCK)
    assert str(found.value.loss) == str(float(value)) and found.value.rows == batch.index.tolist()
    assert all(torch.equal(tensor, before[key]) for key, tensor in learner.method.state_dict().items())


def test_gradients_do_not_add_up_over_steps():
    learner, views = learner_of(), views_of()
    for group in learner.optimiser.param_groups:
        group["lr"] = 0.0
    training_step(learner, views, CLOCK)
    first = learner.method.head[0].weight.grad.clone()
    training_step(learner, views, CLOCK)
    torch.testing.assert_close(learner.method.head[0].weight.grad, first)
