"""What happens to a flagged pair: two numbers and a switch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from falseneg.errors import UserError


@dataclass(frozen=True)
class Strategy:
    """The treatment of the negatives that a detector flags.

    Args:
        positive: weight of a flagged pair among the positives, at least 0.
        negative: weight of a flagged pair among the negatives, between 0 and 1.
        renormalise: rescale the remaining mass of negatives to the full count (GloFND's released SimCLR).

    Raises:
        UserError: a weight is outside its range.
    """

    positive: float = 0.0
    negative: float = 0.0
    renormalise: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.positive) and self.positive >= 0):
            raise UserError(f"strategy: positive is {self.positive}; give a finite weight of at least 0")
        if not 0 <= self.negative <= 1:
            raise UserError(f"strategy: negative is {self.negative}; give a weight from 0 to 1")

    def renormalised(self) -> Strategy:
        """The same strategy with the remaining mass of negatives rescaled to the full count."""
        return replace(self, renormalise=True)


IGNORE = Strategy(0, 1)
"""Flagged pairs stay negatives: the plain loss, with detection only measured."""
ELIMINATE = Strategy(0, 0)
"""Flagged pairs leave the denominator (FNC, equation 2; GloFND)."""
ATTRACT = Strategy(1, 1)
"""Flagged pairs become positives and stay in the denominator (FNC, equation 3)."""
ATTRACT_OUTSIDE = Strategy(1, 0)
"""Flagged pairs become positives and leave the denominator (IFND)."""

STRATEGIES = {"ignore": IGNORE, "eliminate": ELIMINATE, "attract": ATTRACT, "attract-outside": ATTRACT_OUTSIDE}
"""The strategies of the papers, by name."""
StrategyName = Literal[
    "ignore",
    "eliminate",
    "attract",
    "attract-outside",
    "ignore-renormalised",
    "eliminate-renormalised",
    "attract-renormalised",
    "attract-outside-renormalised",
]
STRATEGY_NAMES: dict[str, Strategy] = {
    **STRATEGIES,
    **{f"{name}-renormalised": strategy.renormalised() for name, strategy in STRATEGIES.items()},
}
"""All names that the command line, the recipes and the criteria take."""


def strategy_of(given: Strategy | str) -> Strategy:
    """The strategy of that name; a strategy stays itself.

    Raises:
        UserError: there is none of that name.
    """
    if isinstance(given, Strategy):
        return given
    if given not in STRATEGY_NAMES:
        raise UserError(f"strategy is {given!r}; give one of {', '.join(STRATEGY_NAMES)}, or a Strategy")
    return STRATEGY_NAMES[given]
