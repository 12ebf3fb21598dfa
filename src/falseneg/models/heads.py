"""Heads: features to the embedding that is compared, and from there to what predicts another view's (MoCo v3)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor, nn

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

    @staticmethod
    def of_state(state: Mapping[str, Tensor]) -> ProjectionHead:
        """The head that a state dict is of; its shapes tell everything.

        Raises:
            UserError: it is of no projection head.
        """
        weights = [value for value in state.values() if value.ndim == 2]
        norms = sum(key.endswith("running_mean") for key in state)
        between = norms >= len(weights) - 1 > 0
        last = norms - (len(weights) - 1 if between else 0)
        affine = sum(value.ndim == 1 and key.endswith(".weight") for key, value in state.items())
        if weights:
            widths = weights[0].shape[1], weights[0].shape[0], weights[-1].shape[0]
            head = ProjectionHead(*widths, min(len(weights), 3), last > 0, affine == norms, between)
            if {key: value.shape for key, value in head.state_dict().items()} == {k: v.shape for k, v in state.items()}:
                head.load_state_dict(dict(state))
                return head
        raise UserError("these weights are of no projection head of falseneg: give those of a run of this version")

    def first(self, layers: int) -> nn.Sequential:
        """Its first layers, each with the BatchNorm and the ReLU that follow it: where SimCLR v2 and FNC fine-tune from.

        Raises:
            UserError: it has fewer layers.
        """
        starts = [place for place, module in enumerate(self) if isinstance(module, nn.Linear)]
        if not 0 <= layers <= len(starts):
            raise UserError(
                f"the head has {len(starts)} layers, and {layers} were asked for; give at most {len(starts)}"
            )
        return nn.Sequential(*list(self)[: [*starts, len(self)][layers]])
