"""Optimisers with the parameter groups that contrastive training wants, and the schedule of the learning rate."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from falseneg.errors import UserError
from falseneg.lars import LarsSteps
from falseneg.schedule import cosine_weights


@dataclass(frozen=True)
class Optimiser(ABC):
    """A recipe for an optimiser. Norms and biases do not decay, unless it says so; a learned temperature never does.

    Args:
        learning_rate: the peak, after warm-up; None for `usual_rate` of the batch size.
        weight_decay: at least 0.

    Raises:
        UserError: a value is outside its range.
    """

    learning_rate: float | None = None
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        rate, decay = self.learning_rate, self.weight_decay
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise UserError(f"{type(self).__name__}: learning_rate is {rate}; give a number above 0")
        if not (math.isfinite(decay) and decay >= 0):
            raise UserError(f"{type(self).__name__}: weight_decay is {decay}; give a number of at least 0")

    @abstractmethod
    def usual_rate(self, batch_size: int) -> float:
        """A peak learning rate that suits a batch of this many images."""

    def _least_decayed(self) -> int:
        """The least number of dimensions of parameters that decay: 2 for weights alone, 1 for norms and biases as well."""
        return 2

    @abstractmethod
    def _build(self, decayed: dict[str, Any], plain: dict[str, Any], rate: float) -> torch.optim.Optimizer:
        """The optimiser of two groups of parameters."""

    def build(self, modules: Iterable[nn.Module], batch_size: int) -> torch.optim.Optimizer:
        """The optimiser of all trainable parameters.

        Args:
            modules: what is trained.
            batch_size: images in a step, over all processes.
        """
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        least = self._least_decayed()
        decayed = {"params": [p for p in parameters if p.ndim >= least], "weight_decay": self.weight_decay}
        plain = {"params": [p for p in parameters if p.ndim < least], "weight_decay": 0.0}
        return self._build(decayed, plain, self.learning_rate or self.usual_rate(batch_size))


@dataclass(frozen=True)
class AdamW(Optimiser):
    """AdamW: forgiving, the choice for small data and few epochs.

    Args:
        learning_rate: the peak, after warm-up; None for 0.001 · sqrt(batch / 256).
        weight_decay: decoupled decay, at least 0.
        beta1: memory of the mean gradient, from 0 to 1.
        beta2: memory of the mean squared gradient, from 0 to 1.
    """

    weight_decay: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= beta < 1:
                raise UserError(f"AdamW: {name} is {beta}; give a number from 0 to below 1")

    def usual_rate(self, batch_size: int) -> float:
        return 1e-3 * math.sqrt(batch_size / 256)

    def _build(self, decayed: dict[str, Any], plain: dict[str, Any], rate: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW([decayed, plain], lr=rate, betas=(self.beta1, self.beta2))


@dataclass(frozen=True)
class SGD(Optimiser):
    """Stochastic gradient descent with momentum, as in MoCo and most CIFAR settings.

    Args:
        learning_rate: the peak, after warm-up; None for 0.03 · batch / 256.
        weight_decay: L2 penalty, at least 0.
        momentum: from 0 to below 1.
        nesterov: look ahead.
        decay_all: norms and biases decay as well, as in the released program of MoCo.
    """

    weight_decay: float = 5e-4
    momentum: float = 0.9
    nesterov: bool = False
    decay_all: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_momentum(self)
        if self.nesterov and self.momentum == 0:
            raise UserError("SGD: nesterov needs momentum; give momentum above 0 or leave nesterov out")

    def usual_rate(self, batch_size: int) -> float:
        return 0.03 * batch_size / 256

    def _least_decayed(self) -> int:
        return 1 if self.decay_all else 2

    def _build(self, decayed: dict[str, Any], plain: dict[str, Any], rate: float) -> torch.optim.Optimizer:
        return torch.optim.SGD([decayed, plain], lr=rate, momentum=self.momentum, nesterov=self.nesterov)


@dataclass(frozen=True)
class LARS(Optimiser):
    """LARS (You et al. 2017, arXiv 1708.03888), for batches of thousands: SimCLR's and FNC's optimiser (`LarsSteps`).

    Norms and biases are neither decayed nor adapted, as in the released code of both.

    Args:
        learning_rate: the peak, after warm-up; None for 0.075 · sqrt(batch) (SimCLR, section B.1).
        weight_decay: L2 penalty, at least 0; FNC takes 1e-4, SimCLR 1e-6.
        momentum: from 0 to below 1.
        trust: the coefficient eta of the ratio of norms, above 0.
    """

    weight_decay: float = 1e-6
    momentum: float = 0.9
    trust: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_momentum(self)
        if not (math.isfinite(self.trust) and self.trust > 0):
            raise UserError(f"LARS: trust is {self.trust}; give a number above 0")

    def usual_rate(self, batch_size: int) -> float:
        return 0.075 * math.sqrt(batch_size)

    def _build(self, decayed: dict[str, Any], plain: dict[str, Any], rate: float) -> torch.optim.Optimizer:
        return LarsSteps([{**decayed, "trust": self.trust}, {**plain, "trust": None}], rate, self.momentum)


def _check_momentum(optimiser: SGD | LARS) -> None:
    if not 0 <= optimiser.momentum < 1:
        name = type(optimiser).__name__
        raise UserError(f"{name}: momentum is {optimiser.momentum}; give a number from 0 to below 1")


def rate_factor(step: int, warmup: int, total: int) -> float:
    """The learning rate of a step as a share of the peak: a linear warm-up, then half a cosine down to 0.

    Args:
        step: optimiser steps done, from 0.
        warmup: steps of warm-up; the last of them has the peak.
        total: steps in all.
    """
    if step < warmup:
        return (step + 1) / warmup
    return cosine_weights(step - warmup, max(1, total - warmup))[0]
