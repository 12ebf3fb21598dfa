"""Where training stands, and durations that a person can write: "30 epochs", "500 steps", "10%"."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from falseneg.errors import UserError


@dataclass(frozen=True)
class Clock:
    """Where training stands. Handed in by the loop: nothing below it counts epochs by itself.

    Attributes:
        step: optimiser steps done, from 0.
        steps_per_epoch: optimiser steps in one epoch.
        epochs: epochs in all.
    """

    step: int
    steps_per_epoch: int
    epochs: int

    @property
    def epoch(self) -> int:
        """The current epoch, from 0."""
        return self.step // self.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    @property
    def progress(self) -> float:
        """The share of the training that is done, from 0 to 1."""
        return self.step / self.total_steps


@dataclass(frozen=True)
class Duration:
    """A length of training.

    Args:
        amount: how many of the unit; at least 0.
        unit: "steps", "epochs" or "%" (of the whole training).
    """

    amount: float
    unit: str

    @staticmethod
    def parse(text: str | Duration) -> Duration:
        """Read "500 steps", "30 epochs" or "10%".

        Raises:
            UserError: the text is none of these.
        """
        if isinstance(text, Duration):
            return text
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|%)\s*", str(text))
        if not match:
            raise UserError(f"{text!r} is not a duration: write '500 steps', '30 epochs' or '10%'")
        unit = match[2] if match[2] == "%" else match[2].rstrip("s") + "s"
        duration = Duration(float(match[1]), unit)
        if unit == "%" and duration.amount > 100:
            raise UserError(f"{text!r} is more than the whole training: write at most '100%'")
        return duration

    def steps(self, steps_per_epoch: int, epochs: int) -> int:
        """The duration in optimiser steps, rounded up."""
        per_unit = {"steps": 1.0, "epochs": float(steps_per_epoch), "%": steps_per_epoch * epochs / 100}[self.unit]
        return math.ceil(self.amount * per_unit - 1e-9)

    def reached(self, clock: Clock) -> bool:
        """Whether that much of the training is done."""
        return clock.step >= self.steps(clock.steps_per_epoch, clock.epochs)

    def __str__(self) -> str:
        return f"{self.amount:g}%" if self.unit == "%" else f"{self.amount:g} {self.unit}"


def due(every: str | None, since: int, clock: Clock) -> bool:
    """Whether a multiple of the duration lies after step ``since`` and not after the clock's; never for None."""
    if every is None:
        return False
    steps = max(1, Duration.parse(every).steps(clock.steps_per_epoch, clock.epochs))
    return clock.step // steps > since // steps
