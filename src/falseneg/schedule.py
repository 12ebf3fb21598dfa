"""Numbers that change while training goes on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from falseneg.clock import Clock, Duration
from falseneg.errors import UserError


@dataclass(frozen=True)
class Schedule(ABC):
    """A number that moves from one value to another and then stays.

    Args:
        start: its value at the start of training.
        end: its value from the end of ``over`` on.
        over: how long it takes: "500 steps", "30 epochs" or "50%" of the training.

    Raises:
        UserError: a value is not finite, or ``over`` is not a duration.
    """

    start: float
    end: float
    over: str = "100%"

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"{type(self).__name__}: {name} is {getattr(self, name)}; give a finite number")
        Duration.parse(self.over)

    @abstractmethod
    def _moved(self, done: float) -> float:
        """The share of the way that is covered when the share ``done`` of the time is over; both from 0 to 1."""

    def at(self, clock: Clock) -> float:
        """The value for the coming step."""
        steps = Duration.parse(self.over).steps(clock.steps_per_epoch, clock.epochs)
        done = 1.0 if clock.step >= steps else clock.step / steps
        moved = self._moved(done)
        return self.start * (1 - moved) + self.end * moved


@dataclass(frozen=True)
class Linear(Schedule):
    """Moves at an even pace."""

    def _moved(self, done: float) -> float:
        return done


@dataclass(frozen=True)
class Cosine(Schedule):
    """Moves along half a cosine: slowly at both ends."""

    def _moved(self, done: float) -> float:
        return cosine_weights(done)[1]


@dataclass(frozen=True)
class Stairs(Schedule):
    """Moves in equal jumps at equal distances; the last one is at the end of ``over``.

    Args:
        start: its value at the start of training.
        end: its value from the end of ``over`` on.
        over: how long it takes: "500 steps", "30 epochs" or "50%" of the training.
        jumps: how many, at least 1; with 1 it moves all at once.

    Raises:
        UserError: a value is not finite, ``over`` is not a duration, or there is no jump.
    """

    jumps: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jumps < 1:
            raise UserError(f"Stairs: jumps is {self.jumps}; give at least 1")

    def _moved(self, done: float) -> float:
        return math.floor(done * self.jumps + 1e-9) / self.jumps


def cosine_weights(done: float, total: float = 1.0) -> tuple[float, float]:
    """The weights of the start and of the end along half a cosine: (1, 0) at the start, (0, 1) at the end.

    Args:
        done: how much of the time is over, in any unit.
        total: the whole of it, in the same unit.
    """
    cosine = math.cos(math.pi * done / total)
    return 0.5 * (1 + cosine), 0.5 * (1 - cosine)


def value_at(value: float | Schedule, clock: Clock) -> float:
    """The value for the coming step, of a schedule or of a number that stays."""
    return value.at(clock) if isinstance(value, Schedule) else value


def extremes(value: float | Schedule | None) -> tuple[float, ...]:
    """The values between which a schedule moves; the number itself if it stays; nothing for None."""
    if value is None:
        return ()
    return (value.start, value.end) if isinstance(value, Schedule) else (value,)
