import catalogue
import pytest
import torch
from train.parts import tiny_encoder

import falseneg as fn
from falseneg.train.estimate import PASSING, estimate


def views_of(images, size=8, support=0):
    main = torch.randint(0, 256, (images, 2, 3, size, size), dtype=torch.uint8)
    further = torch.randint(0, 256, (images, support, 3, size, size), dtype=torch.uint8)
    return catalogue.batch(main, (further,) if support else (), torch.arange(images))


def test_nothing_is_changed():
    method = fn.SimCLR(tiny_encoder(), support_views=1)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    views = views_of(4, support=1)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    found = estimate(method, views, 32, 1)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert all(parameter.grad is None for parameter in method.parameters())
    assert found.memory > 0 and found.seconds_per_image > 0


def test_memory_grows_with_the_batch_and_shrinks_with_pieces():
    method = fn.SimCLR(tiny_encoder())
    weights = sum(parameter.nbytes for parameter in method.parameters())

    def beside_weights(images, pieces):
        return estimate(method, views_of(4), images, pieces).memory - 4 * weights

    assert beside_weights(64, 1) == pytest.approx(2 * beside_weights(32, 1), rel=0.01)
    assert beside_weights(64, 4) == pytest.approx(beside_weights(64, 1) / 4, rel=0.1)


def test_support_views_without_gradient_cost_little():
    plain = estimate(fn.SimCLR(tiny_encoder()), views_of(4), 64, 1).memory
    method = fn.SimCLR(tiny_encoder(), support_views=4)
    detecting = estimate(method, views_of(4, support=4), 64, 1).memory
    method = fn.SimCLR(tiny_encoder(), support_views=4, support_as_positives=True)
    attracting = estimate(method, views_of(4, support=4), 64, 1).memory
    assert detecting < 1.2 * plain and attracting > 2 * plain


def test_memory_is_what_a_step_keeps():
    """Against the tensors that a real step of the whole batch keeps for its backward pass, each storage once."""
    method = fn.SimCLR(tiny_encoder())
    seen = {}
    parameters = {parameter.data_ptr() for parameter in method.parameters()}

    def keep(tensor):
        if tensor.data_ptr() not in parameters:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    views = views_of(64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        method.encode(views)
    kept = sum(storage.nbytes() for storage in seen.values())
    weights = sum(parameter.nbytes for parameter in method.parameters())
    found = estimate(method, views_of(8), 64, 1).memory - 4 * weights - views.streams["image"].nbytes
    assert found == pytest.approx(PASSING * kept, rel=0.1)
