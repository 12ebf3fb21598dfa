"""A network that follows another one slowly."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Momentum(nn.Module):
    """A network whose weights are a running mean of another network's (MoCo, He et al. 2020, arXiv 1911.05722, eq. 2).

    It begins as a copy of the other, is not trained, and gives no gradient. What is averaged are the parameters, those
    of BatchNorm among them. BatchNorm's statistics are not: in training mode it normalises by its own batch and keeps
    running statistics of what it has seen itself, as in MoCo's released code.

    Args:
        network: what to follow; it is copied, not kept.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.network(images)
        return output

    @torch.no_grad()
    def follow(self, network: nn.Module, momentum: float) -> None:
        """One step: own ← momentum · own + (1 − momentum) · other, for each weight.

        Args:
            network: what is followed, of the same structure.
            momentum: from 0 (a copy) to 1 (no step).
        """
        step = get_ema_multi_avg_fn(momentum)  # all weights at once: on a GPU not a kernel for each
        step(list(self.network.parameters()), list(network.parameters()), None)

    def restart(self, network: nn.Module) -> None:
        """Become a copy again, statistics of BatchNorm included."""
        self.network.load_state_dict(network.state_dict())
