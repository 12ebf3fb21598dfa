"""Detectors made of detectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import and_, or_

from torch import Tensor, nn

from falseneg.clock import Clock, Duration
from falseneg.contrast import Contrast
from falseneg.detectors.base import Detector, Features, Rules
from falseneg.errors import UserError
from falseneg.facts import Facts
from falseneg.rules import NoPairs, PairRule, Tiers


class _Wrapper(Detector):
    """Hands everything on to the detectors inside."""

    def __init__(self, detectors: Sequence[Detector]) -> None:
        super().__init__()
        if not detectors:
            raise UserError(f"{type(self).__name__}: the list of detectors is empty; give at least one")
        self.detectors = nn.ModuleList(detectors)

    def prepare(self, facts: Facts) -> None:
        for detector in self._inner():
            detector.prepare(facts)

    def start_epoch(self, features: Features, clock: Clock) -> None:
        for detector in self._inner():
            detector.start_epoch(features, clock)

    def per_sample(self) -> Mapping[str, Tensor]:
        held: dict[str, Tensor] = {}
        for place, detector in enumerate(self._inner(), start=1):
            for name, values in detector.per_sample().items():
                held[name if name not in held else f"{name} {place}"] = values
        return held

    def figures(self) -> Mapping[str, float]:
        return {name: value for detector in self._inner() for name, value in detector.figures().items()}

    def _inner(self) -> list[Detector]:
        return list(self.detectors)  # type: ignore[arg-type]

    def _combined(self, contrast: Contrast, clock: Clock, combine: Callable[[PairRule, PairRule], PairRule]) -> Rules:
        """One rule a level; a detector with a single level takes part in every level of the others."""
        flagged = [detector.flag(contrast, clock) for detector in self._inner()]
        levels = [rule if isinstance(rule, tuple) else (rule,) for rule in flagged]
        for detector, rules in zip(self._inner(), levels, strict=True):
            if any(isinstance(rule, Tiers) for rule in rules):
                raise UserError(
                    f"{type(self).__name__}: {type(detector).__name__} flags tiers, each with a strategy of its own, and these "
                    "do not combine; use it alone, or have it flag one tier"
                )
        depth = max(len(rules) for rules in levels)
        if any(len(rules) not in (1, depth) for rules in levels):
            counts = ", ".join(str(len(rules)) for rules in levels)
            raise UserError(f"{type(self).__name__}: detectors with {counts} levels do not combine; give equal numbers")
        combined = tuple(
            reduce(combine, (rules[level if len(rules) > 1 else 0] for rules in levels)) for level in range(depth)
        )
        return combined[0] if depth == 1 else combined


class AllOf(_Wrapper):
    """Flags what every one of its detectors flags.

    Args:
        detectors: at least one.

    Raises:
        UserError: the list is empty.
    """

    def flag(self, contrast: Contrast, clock: Clock) -> Rules:
        return self._combined(contrast, clock, and_)


class AnyOf(_Wrapper):
    """Flags what at least one of its detectors flags.

    Args:
        detectors: at least one.

    Raises:
        UserError: the list is empty.
    """

    def flag(self, contrast: Contrast, clock: Clock) -> Rules:
        return self._combined(contrast, clock, or_)


class StartAt(_Wrapper):
    """Flags nothing until a part of the training is done; the detector inside learns from the start.

    Args:
        detector: the detector that then takes over.
        at: when: "30 epochs", "500 steps" or "10%" of the training.

    Raises:
        UserError: ``at`` is not a duration.
    """

    def __init__(self, detector: Detector, at: str = "10%") -> None:
        super().__init__([detector])
        self.at = Duration.parse(at)

    def flag(self, contrast: Contrast, clock: Clock) -> Rules:
        rules = self._inner()[0].flag(contrast, clock)
        return rules if self.at.reached(clock) else NoPairs()
