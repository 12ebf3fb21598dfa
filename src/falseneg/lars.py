"""The steps of LARS: for pretraining and for fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class LarsSteps(torch.optim.Optimizer):
    """LARS with the learning rate and the trust ratio *inside* the momentum, as SimCLR's and FNC's released code has it.

    d = g + weight_decay · w;  v ← momentum · v + lr · (trust · |w| / |d|) · d;  w ← w − v  (You et al. 2017, algorithm 1)

    A ratio of which either norm is 0 is 1, and so is that of a group whose ``trust`` is None. timm's and most others
    multiply the momentum by the present rate: with warm-up and a cosine these end elsewhere.

    Args:
        groups: of parameters, each with its ``weight_decay`` and its ``trust``.
        lr: the learning rate.
        momentum: from 0 to below 1.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "trust": None})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; the loss of ``closure``, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["velocity"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        direction = gradient.add(parameter, alpha=group["weight_decay"]) if group["weight_decay"] else gradient
        if group["trust"] is not None:
            weight_norm, norm = parameter.norm(), direction.norm()
            ratio = group["trust"] * weight_norm / norm
            direction = direction * torch.where((weight_norm > 0) & (norm > 0), ratio, 1.0)
        state["velocity"].mul_(group["momentum"]).add_(direction, alpha=group["lr"])
        parameter.sub_(state["velocity"])
