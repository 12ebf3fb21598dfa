"""The temperature that cosines are divided by."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.errors import UserError
from falseneg.facts import Facts


class Temperature(nn.Module):
    """Gives the temperature of each anchor. Open."""

    def prepare(self, facts: Facts) -> None:
        """Called once before training: make room for what is kept for each sample.

        Raises:
            ValueError: the temperature cannot work with these facts.
        """

    def forward(self, contrast: Contrast) -> Tensor:
        """() or (N,) positive temperatures of a contrast's anchors."""
        raise NotImplementedError

    def after_backward(self, clock: Clock) -> None:
        """Called when the gradients of a step are there, for temperatures with an update of their own."""


class FixedTemperature(Temperature):
    """The same temperature throughout.

    Args:
        tau: above 0, of a cosine.

    Raises:
        UserError: tau is not above 0.
    """

    tau: Tensor

    def __init__(self, tau: float = 0.1) -> None:
        super().__init__()
        _check("FixedTemperature: tau", tau)
        self.register_buffer("tau", torch.tensor(tau), persistent=False)

    def forward(self, contrast: Contrast) -> Tensor:
        return self.tau


class LearnedTemperature(Temperature):
    """One learned temperature, kept within bounds; its logarithm is the parameter (CLIP, Radford et al. 2021).

    Args:
        initial: where it starts.
        minimum: the lowest temperature allowed (CLIP: 0.01).
        maximum: the highest temperature allowed.

    Raises:
        UserError: a value is not above 0, or the three are not in order.
    """

    def __init__(self, initial: float = 0.07, minimum: float = 0.01, maximum: float = 1.0) -> None:
        super().__init__()
        _check("LearnedTemperature: minimum", minimum)
        if not minimum <= initial <= maximum:
            raise UserError(
                f"LearnedTemperature: initial is {initial}; give a value from minimum ({minimum}) to maximum ({maximum})"
            )
        self.log_tau = nn.Parameter(torch.tensor(math.log(initial)))
        self.bounds = (minimum, maximum)

    def forward(self, contrast: Contrast) -> Tensor:
        # Bounded here, so that no step ever uses a value outside; the gradient still reaches a parameter at its bound.
        with torch.no_grad():
            self.log_tau.clamp_(math.log(self.bounds[0]), math.log(self.bounds[1]))
        return self.log_tau.exp()


def _check(name: str, tau: float) -> None:
    if not (math.isfinite(tau) and tau > 0):
        raise UserError(f"{name} is {tau}; give a number above 0")
