"""Differences of variants from the baseline, and the share of an oracle's gain that they reach, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from falseneg.compare.blocks import (
    CONFIDENCE,
    Cells,
    counted_freedom,
    critical_value,
    fit,
    paired,
    t_quantile,
    variances,
)

WIDEST = 1.0
"""Of an interval of the gap closed that is shown: one as wide as from none to the oracle cannot tell the two apart."""


@dataclass(frozen=True)
class Difference:
    """Variant minus baseline, adjusted for seeds, with its interval: of 95% for all variants of a family together.

    Attributes:
        mean: of the paired differences; where runs are missing, the estimate of the model.
        low: lower end of the interval; None where there is one seed, so that the spread is unknown.
        high: upper end.
        pairs: seeds that both were run with.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int

    @property
    def verdict(self) -> str:
        """Whether the interval lies above 0 ("helped"), below ("hurt") or over it ("unclear"); or "unknown"."""
        if self.low is None or self.high is None:
            return "unknown"
        return "helped" if self.low > 0 else "hurt" if self.high < 0 else "unclear"


@dataclass(frozen=True)
class GapClosed:
    """(variant − none) / (oracle − none).

    Attributes:
        value: 1 means as good as with true labels, 0 no better than without any cancelling; may lie outside [0, 1].
        low: lower end of Fieller's 95% interval; None where the share is *not known*: the interval has no bounds,
            because the oracle's own gain is not known well enough, or it is wider than `WIDEST`.
        high: upper end, or None.
        oracle: the variant with true labels that it is measured against.
        pairs: the number of seeds that the variant shares with none.
    """

    value: float
    low: float | None
    high: float | None
    oracle: str
    pairs: int


class Differences:
    """One figure of all variants against the baseline: see `falseneg.compare.blocks` for the model.

    Args:
        cells: the figure by variant and seed.
        baseline: the variant that all are compared with; it may be missing.
        methods: the variants that see no labels: one family of comparisons.
        oracles: those that do: another.
    """

    def __init__(self, cells: Cells, baseline: str, methods: Sequence[str], oracles: Sequence[str]) -> None:
        self.pairs = {
            name: len(paired(cells, baseline, name)) if baseline in cells else 0 for name in (*methods, *oracles)
        }
        self.families = [self._family(cells, baseline, names) for names in (methods, oracles)]
        known = [name for name, pairs in self.pairs.items() if pairs]
        self.joint = fit(cells, baseline, known) if known else None

    def _family(self, cells: Cells, baseline: str, names: Sequence[str]) -> dict[str, tuple[float, float, float]]:
        """Variance of the error, its counted degrees of freedom and the critical value, of each variant of a family."""
        known = [name for name in names if self.pairs[name]]
        model = fit(cells, baseline, known) if known else None
        if model is None or model.error is None:
            return {}
        freedom = counted_freedom(model.freedom, len(known))
        critical = critical_value(len(known), freedom, model.complete)
        of = variances(cells, baseline, known, model.error)
        return {name: (of[name], freedom, critical) for name in known}

    def of(self, name: str) -> Difference | None:
        """Of a variant from the baseline; None without a seed that both were run with."""
        if self.joint is None or not self.pairs[name]:
            return None
        row = self.joint.names.index(name)
        gain = float(self.joint.gain[row])
        found = next((family[name] for family in self.families if name in family), None)
        if found is None:
            return Difference(gain, None, None, self.pairs[name])
        variance, _, critical = found
        half = critical * math.sqrt(variance * self.joint.unit[row, row])
        return Difference(gain, gain - half, gain + half, self.pairs[name])

    def gap_closed(self, name: str, oracle: str) -> GapClosed | None:
        """The share of the oracle's gain that a variant reaches, with Fieller's 95% interval.

        With the gains d of the variant and o of the oracle, the interval holds every r for which a t test at 5% does not
        reject d − r·o = 0 (Fieller 1954). The error is that of the variant's own difference, with its degrees of freedom.

        Args:
            name: of the variant.
            oracle: of the variant with true labels.

        Returns:
            None without a seed that each shares with the baseline, with one seed, or if the oracle is not clearly above
            the baseline: its own interval does not lie above 0. Without a gap there is nothing to close.
        """
        room = self.of(oracle)
        methods, _ = self.families
        if self.joint is None or name not in methods or room is None or room.verdict != "helped":
            return None
        variant, labelled = self.joint.names.index(name), self.joint.names.index(oracle)
        gain, gap = float(self.joint.gain[variant]), float(self.joint.gain[labelled])
        variance, freedom, _ = methods[name]
        # The ends solve gain² − f·var(gain) − 2r·(gain·gap − f·cov) + r²·(gap² − f·var(gap)) = 0 with f = t².
        unit = t_quantile((1 + CONFIDENCE) / 2, freedom) ** 2 * variance * self.joint.unit
        constant = gain**2 - unit[variant, variant]
        linear = gain * gap - unit[variant, labelled]
        square = gap**2 - unit[labelled, labelled]
        value, pairs = gain / gap, self.pairs[name]
        if square <= 0:
            return GapClosed(value, None, None, oracle, pairs)
        spread = math.sqrt(max(0.0, linear**2 - square * constant))
        if 2 * spread / square > WIDEST:
            return GapClosed(value, None, None, oracle, pairs)
        return GapClosed(value, float((linear - spread) / square), float((linear + spread) / square), oracle, pairs)
