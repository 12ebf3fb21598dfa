"""Heads: features to the embedding that is compared, and from there to what predicts another view's (MoCo v3)."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from falseneg.errors import UserError


class ProjectionHead(nn.Sequential):
    """A perceptron of 1 to 3 layers; between two layers BatchNorm and ReLU (SimCLR, section 2.1; FNC uses 3 layers).

    Without any BatchNorm it is that of MoCo v2, PCL and IFND, with biases. With equal widths at both ends it is a
    prediction head.

    Args:
        in_dim: width of the features.
        hidden_dim: width between the layers.
        out_dim: dimensions of the embedding.
        layers: 1 to 3; 1 is a linear map.
        last_batch_norm: end with a BatchNorm, as FNC's, GloFND's and MoCo v3's released code do.
        last_affine: whether that last one has weights and biases; GloFND's and MoCo v3's has none.
        batch_norm: whether there is a BatchNorm between two layers.

    Raises:
        UserError: the number of layers or a width is not allowed.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        out_dim: int,
        layers: int = 2,
        last_batch_norm: bool = False,
        last_affine: bool = True,
        batch_norm: bool = True,
    ) -> None:
        if layers not in (1, 2, 3):
            raise UserError(f"ProjectionHead: layers is {layers}; give 1, 2 or 3")
        if min(in_dim, hidden_dim, out_dim) < 1:
            raise UserError(
                f"ProjectionHead: widths are {in_dim}, {hidden_dim} and {out_dim}; give at least 1 for each of them"
            )
        widths = [in_dim, *[hidden_dim] * (layers - 1), out_dim]
        modules: list[nn.Module] = []
        for depth, (before, after) in enumerate(pairwise(widths), start=1):
            # A BatchNorm takes the mean away, so that a bias before it would do nothing.
            between = depth < layers
            normalised = batch_norm if between else last_batch_norm
            modules.append(nn.Linear(before, after, bias=not normalised))
            if normalised:
                modules.append(nn.BatchNorm1d(after, affine=between or last_affine))
            if between:
                modules.append(nn.ReLU(inplace=True))
        super().__init__(*modules)
