"""How a number that is kept for each sample (a threshold, a temperature) follows its gradient."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from falseneg.errors import UserError


@dataclass(frozen=True)
class RowStep(ABC):
    """One step down the gradient, for many rows at once, each with its own state.

    Args:
        learning_rate: above 0.

    Raises:
        UserError: a value is outside its range.
    """

    state: ClassVar[tuple[str, ...]] = ()
    """The names of what it keeps for each row; all of it starts at 0."""

    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UserError(f"{type(self).__name__}: learning_rate is {self.learning_rate}; give a number above 0")

    @abstractmethod
    def __call__(
        self, value: Tensor, gradient: Tensor, state: Mapping[str, Tensor], updates: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The new values and the new state.

        Args:
            value: (L,) the numbers.
            gradient: (L,) of what is minimised, at the numbers.
            state: (L,) for each name in ``state``.
            updates: (L,) how many updates each row has seen, with this one.
        """

    def begin(self, variance: Tensor) -> dict[str, Tensor]:
        """The state after the first update of rows that are put where they belong, instead of a step.

        Args:
            variance: (L,) the expected square of the gradients there.
        """
        return {name: torch.zeros_like(variance) for name in self.state}


@dataclass(frozen=True)
class AdamStep(RowStep):
    """Adam (Kingma and Ba 2015, arXiv 1412.6980) for each row by itself: the released code of GloFND.

    The bias correction counts the row's own updates; the released code counts epochs.

    Args:
        learning_rate: above 0; about the most that a value moves in one update.
        beta1: memory of the mean gradient, from 0 to below 1.
        beta2: memory of the mean squared gradient, from 0 to below 1.
        epsilon: is added to the root of the mean square; above 0.

    Raises:
        UserError: a value is outside its range.
    """

    state: ClassVar[tuple[str, ...]] = ("mean", "square")

    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"AdamStep: {name} is {getattr(self, name)}; give a number from 0 to below 1")
        if not self.epsilon > 0:
            raise UserError(f"AdamStep: epsilon is {self.epsilon}; give a number above 0")

    def __call__(
        self, value: Tensor, gradient: Tensor, state: Mapping[str, Tensor], updates: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        mean = self.beta1 * state["mean"] + (1 - self.beta1) * gradient
        square = self.beta2 * state["square"] + (1 - self.beta2) * gradient**2
        unbiased, spread = mean / (1 - self.beta1**updates), (square / (1 - self.beta2**updates)).sqrt()
        return value - self.learning_rate * unbiased / (spread + self.epsilon), {"mean": mean, "square": square}

    def begin(self, variance: Tensor) -> dict[str, Tensor]:
        # Adam's first step is as long as the learning rate, whatever the gradient, unless it knows what is usual.
        return {"mean": torch.zeros_like(variance), "square": (1 - self.beta2) * variance}


@dataclass(frozen=True)
class GradientStep(RowStep):
    """A step down the gradient (the paper of GloFND), or down its running mean (iSogCLR, with momentum).

    Args:
        learning_rate: above 0.
        momentum: the weight of the past in the running mean of the gradient, which starts at 0; from 0 to below 1. The
            authors of iSogCLR give the weight of the new gradient, which is 1 − momentum.

    Raises:
        UserError: a value is outside its range.
    """

    state: ClassVar[tuple[str, ...]] = ("mean",)

    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise UserError(f"GradientStep: momentum is {self.momentum}; give a number from 0 to below 1")

    def __call__(
        self, value: Tensor, gradient: Tensor, state: Mapping[str, Tensor], updates: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        mean = self.momentum * state["mean"] + (1 - self.momentum) * gradient
        return value - self.learning_rate * mean, {"mean": mean}
