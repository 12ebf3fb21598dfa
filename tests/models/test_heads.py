import pytest
import torch
from torch import nn

import falseneg as fn


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("last", [False, True])
def test_layers(layers, last):
    head = fn.ProjectionHead(6, 5, 4, layers, last)
    kinds = [type(module) for module in head]
    between = [nn.Linear, nn.BatchNorm1d, nn.ReLU] * (layers - 1)
    assert kinds == [*between, nn.Linear, *([nn.BatchNorm1d] if last else [])]
    assert head(torch.randn(3, 6)).shape == (3, 4)


def test_bias_only_where_no_batch_norm_follows():
    head = fn.ProjectionHead(6, 5, 4, 3)
    assert [module.bias is not None for module in head if isinstance(module, nn.Linear)] == [False, False, True]
    assert fn.ProjectionHead(6, 5, 4, 2, last_batch_norm=True)[-2].bias is None


def test_moco_v2_has_biases_and_no_batch_norm():
    head = fn.ProjectionHead(6, 5, 4, 2, batch_norm=False)
    assert [type(module) for module in head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert head[0].bias is not None and head[2].bias is not None


def test_the_last_batch_norm_may_be_without_weights():
    between, last = (m for m in fn.ProjectionHead(6, 5, 4, 2, True, last_affine=False) if isinstance(m, nn.BatchNorm1d))
    assert between.affine and not last.affine


@pytest.mark.parametrize(("arguments", "words"), [((6, 5, 4, 4), "layers is 4"), ((6, 0, 4), "at least 1")])
def test_refusals(arguments, words):
    with pytest.raises(fn.UserError, match=words):
        fn.ProjectionHead(*arguments)
