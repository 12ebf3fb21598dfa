"""What a comparison says: means and spreads over seeds, differences from the baseline, and the gap that was closed.

Standard deviations are *sample* standard deviations over the seeds (n − 1 in the denominator), and None for one seed.
Differences are paired: seed by seed, because runs of one seed share the split, the first weights and the views.

``summary.json`` is `Summary.to_json`: ``{"variants": [VARIANT, ...]}`` with, for each variant,
``name``, ``oracle``, ``figures`` {FIGURE: {``mean``, ``sd``, ``defined``, ``seeds``}},
``versus_none`` {ACCURACY: {``mean``, ``low``, ``high``, ``pairs``} or null} and
``gap_closed`` {ACCURACY: {``value``, ``low``, ``high``, ``oracle``, ``pairs``} or null}; shares in [0, 1], the last two
empty for the baseline.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

BASELINE = "none"
"""The variant that all others are compared with."""
ACCURACIES = ("knn", "linear", "few_label")
"""The figures that differences and the gap closed are computed for."""
FIGURES = (
    *ACCURACIES,
    *("precision", "recall", "f1", "share_flagged", "chance"),
    *("seconds_per_epoch", "peak_memory_mib", "epochs_to_baseline", "seconds_to_baseline"),
)
"""All figures of a result that are summarised."""
CONFIDENCE = 0.95
"""Of every interval."""

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """One figure over the seeds of a variant.

    Attributes:
        mean: over the seeds where it is defined; None if there is no such seed.
        sd: sample standard deviation over them; None for fewer than two.
        defined: seeds where it is defined.
        seeds: seeds that were run.
    """

    mean: float | None
    sd: float | None
    defined: int
    seeds: int


@dataclass(frozen=True)
class Difference:
    """Variant minus baseline, paired by seed, with the 95% interval of Student's t.

    Attributes:
        mean: of the differences.
        low: lower end of the interval; None for a single pair, whose spread is unknown.
        high: upper end.
        pairs: seeds that both were run with.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int

    @property
    def verdict(self) -> str:
        """Whether the interval lies above 0 ("higher"), below ("lower") or over it ("unclear"); or "one seed"."""
        if self.low is None or self.high is None:
            return "one seed"
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "unclear"


@dataclass(frozen=True)
class GapClosed:
    """(variant − none) / (oracle − none) on means over the seeds that all three were run with.

    Attributes:
        value: 1 means as good as with true labels, 0 no better than without any cancelling; may lie outside [0, 1].
        low: lower end of Fieller's 95% interval; None where the interval has no bounds, because the oracle's own gain
            is not known well enough.
        high: upper end, or None.
        oracle: the variant with true labels that it is measured against.
        pairs: the number of seeds.
    """

    value: float
    low: float | None
    high: float | None
    oracle: str
    pairs: int


@dataclass(frozen=True)
class VariantSummary:
    """One variant of a comparison.

    Attributes:
        name: of the variant.
        oracle: whether it flags by the true labels.
        figures: each of `FIGURES`.
        versus_none: each of `ACCURACIES` against the baseline; None where there is no pair of runs.
        gap_closed: each of `ACCURACIES`; None where it is undefined (see `gap_closed`).
    """

    name: str
    oracle: bool
    figures: dict[str, Figure]
    versus_none: dict[str, Difference | None] = field(default_factory=dict)
    gap_closed: dict[str, GapClosed | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """All variants, in the order in which they first appear in the results."""

    variants: tuple[VariantSummary, ...]

    def __getitem__(self, name: str) -> VariantSummary:
        return next(variant for variant in self.variants if variant.name == name)

    def to_json(self) -> dict[str, Any]:
        """What ``summary.json`` holds: the dataclasses as they are, nested."""
        return asdict(self)


def summarise(results: Sequence[Result]) -> Summary:
    """Summarise the runs of a comparison.

    Args:
        results: one mapping for each variant and seed, as in ``results.json``: "variant", "seed", any of `FIGURES`
            (absent or None where undefined), and for the gap closed "oracle" (bool) and "strategy" ({"positive",
            "negative", "renormalise"}).
    """
    by_variant: dict[str, list[Result]] = {}
    for result in results:
        by_variant.setdefault(result["variant"], []).append(result)
    return Summary(tuple(_summarise_variant(name, by_variant) for name in by_variant))


def _summarise_variant(name: str, by_variant: Mapping[str, Sequence[Result]]) -> VariantSummary:
    runs = by_variant[name]
    figures = {key: _figure([run.get(key) for run in runs]) for key in FIGURES}
    summary = VariantSummary(name, bool(runs[0].get("oracle")), figures)
    oracle = oracle_of(name, by_variant)
    for key in ACCURACIES if name != BASELINE else ():
        values, base = _by_seed(runs, key), _by_seed(by_variant.get(BASELINE, ()), key)
        summary.versus_none[key] = paired_difference(values, base)
        reference = _by_seed(by_variant[oracle], key) if oracle else {}
        summary.gap_closed[key] = gap_closed(values, base, reference, oracle) if oracle else None
    return summary


def oracle_of(name: str, by_variant: Mapping[str, Sequence[Result]]) -> str | None:
    """The oracle that a variant is measured against: the one with its strategy.

    If there is none, the one that treats flagged pairs alike: both attract them (a positive weight above 0), or both
    only take them out of the negatives. None for oracles themselves and for variants that change nothing.
    """
    strategy = by_variant[name][0].get("strategy")
    if name == BASELINE or by_variant[name][0].get("oracle") or not strategy:
        return None
    oracles = {
        other: runs[0]["strategy"]
        for other, runs in by_variant.items()
        if runs[0].get("oracle") and runs[0].get("strategy")
    }
    same = [other for other, its in oracles.items() if dict(its) == dict(strategy)]
    alike = [other for other, its in oracles.items() if _treatment(its) == _treatment(strategy)]
    return next(iter(same + alike), None) if _treatment(strategy) != "ignore" else None


def _treatment(strategy: Mapping[str, Any]) -> str:
    if strategy["positive"] > 0:
        return "attract"
    return "eliminate" if strategy["negative"] < 1 else "ignore"


def _figure(values: Sequence[float | None]) -> Figure:
    known = [value for value in values if value is not None and math.isfinite(value)]
    mean = statistics.fmean(known) if known else None
    return Figure(mean, statistics.stdev(known) if len(known) > 1 else None, len(known), len(values))


def _by_seed(runs: Sequence[Result], key: str) -> dict[Any, float]:
    return {run["seed"]: run[key] for run in runs if run.get(key) is not None and math.isfinite(run[key])}


def paired_difference(values: Mapping[Any, float], base: Mapping[Any, float]) -> Difference | None:
    """Values minus base over the seeds that both have, with the 95% interval of Student's t; None without such seeds."""
    seeds = [seed for seed in values if seed in base]
    if not seeds:
        return None
    differences = [values[seed] - base[seed] for seed in seeds]
    mean = statistics.fmean(differences)
    if len(seeds) == 1:
        return Difference(mean, None, None, 1)
    half = _t_quantile((1 + CONFIDENCE) / 2, len(seeds)) * statistics.stdev(differences) / math.sqrt(len(seeds))
    return Difference(mean, mean - half, mean + half, len(seeds))


def gap_closed(
    values: Mapping[Any, float], base: Mapping[Any, float], oracle: Mapping[Any, float], oracle_name: str
) -> GapClosed | None:
    """The share of the oracle's gain that a variant reaches, with Fieller's interval for a ratio of paired means.

    With d = variant − none and o = oracle − none for each seed, the interval holds every r for which a paired t test at
    5% does not reject mean(d − r·o) = 0 (Fieller, 1954).

    Args:
        values: the variant's figure by seed.
        base: the baseline's figure by seed.
        oracle: the oracle's figure by seed.
        oracle_name: for the record.

    Returns:
        None if fewer than two seeds are common to all three, or if the oracle is not clearly above the baseline: a
        one-sided paired t test over the seeds at 5%. Without a gap there is nothing to close.
    """
    seeds = [seed for seed in values if seed in base and seed in oracle]
    if len(seeds) < 2:
        return None
    gains = [values[seed] - base[seed] for seed in seeds]
    room = [oracle[seed] - base[seed] for seed in seeds]
    gain, gap = statistics.fmean(gains), statistics.fmean(room)
    if not gap > _t_quantile(CONFIDENCE, len(seeds)) * statistics.stdev(room) / math.sqrt(len(seeds)):
        return None
    factor = _t_quantile((1 + CONFIDENCE) / 2, len(seeds)) ** 2 / len(seeds)
    # The ends solve gain² − factor·var(gains) − 2r·(gain·gap − factor·cov) + r²·(gap² − factor·var(room)) = 0.
    constant = gain**2 - factor * statistics.variance(gains)
    linear = gain * gap - factor * statistics.covariance(gains, room)
    square = gap**2 - factor * statistics.variance(room)
    if square <= 0:
        return GapClosed(gain / gap, None, None, oracle_name, len(seeds))
    spread = math.sqrt(max(0.0, linear**2 - square * constant))
    return GapClosed(gain / gap, (linear - spread) / square, (linear + spread) / square, oracle_name, len(seeds))


def _t_quantile(probability: float, seeds: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(seeds - 1, probability))
