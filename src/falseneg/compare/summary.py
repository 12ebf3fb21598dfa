"""What a comparison says: means and spreads over seeds, differences from the baseline, and the gap that was closed.

Standard deviations are *sample* standard deviations over the seeds (n − 1 in the denominator), and None for one seed.
Differences and their intervals come from one model of all variants and seeds (`falseneg.compare.blocks`). One accuracy,
the primary one, is named before the runs: it alone makes the verdicts, the others are shown.

There are two families of comparisons with the baseline, each with intervals of 95% for all of its members together: the
methods, which see no labels, and the oracles. An oracle is not a candidate: it shows how much there is to gain, and counting
it would make the methods' intervals wider. Each family has its own error, for oracles spread much less than methods.

``summary.json`` is `Summary.to_json`: ``{"primary": ACCURACY, "test_images": NUMBER or null, "variants": [VARIANT, ...]}``
with, for each variant, ``name``, ``oracle``, ``figures`` {FIGURE: {``mean``, ``sd``, ``defined``, ``seeds``}},
``versus_none`` {ACCURACY: {``mean``, ``low``, ``high``, ``pairs``} or null} and
``gap_closed`` {ACCURACY: {``value``, ``low``, ``high``, ``oracle``, ``pairs``} or null}; shares in [0, 1], the last two
empty for the baseline. ``low`` and ``high`` of a gap are null where it is not known: see `GapClosed`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from falseneg.compare.differences import Difference, Differences, GapClosed
from falseneg.evaluation import MEASURES, FewLabel

BASELINE = "none"
"""The variant that all others are compared with."""
ACCURACIES = tuple(each.key for each in MEASURES)
"""The figures that differences and the gap closed are computed for."""
PRIMARY = FewLabel.key
"""The accuracy that makes the verdicts where none is named."""
FIGURES = (
    *ACCURACIES,
    *("precision", "recall", "f1", "share_flagged", "chance"),
    *("seconds_per_epoch", "peak_memory_mib", "epochs_to_baseline", "seconds_to_baseline"),
)
"""All figures of a result that are summarised."""

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
    """All variants, in the order in which they first appear in the results.

    Attributes:
        variants: all of them.
        primary: the accuracy that makes the verdicts: one of `ACCURACIES`.
        test_images: on which accuracies are measured; None if unknown or not the same for all runs.
    """

    variants: tuple[VariantSummary, ...]
    primary: str = PRIMARY
    test_images: int | None = None

    def __getitem__(self, name: str) -> VariantSummary:
        return next(variant for variant in self.variants if variant.name == name)

    def verdict(self, variant: VariantSummary) -> str:
        """Of the primary accuracy: "helped", "hurt", "unclear", or "unknown" if nothing can be said."""
        difference = variant.versus_none.get(self.primary)
        return "unknown" if difference is None else difference.verdict

    @property
    def test_error(self) -> tuple[float, float] | None:
        """How far other test images would move the primary accuracy of the baseline, and a difference from it, at most.

        One binomial standard error, sqrt(p (1 − p) / n), and sqrt(2) times as much: as if two encoders erred on images
        that have nothing to do with each other. They share most of their errors, so that a difference moves less. None
        where the number of test images or the accuracy is unknown.
        """
        base = next((v.figures[self.primary].mean for v in self.variants if v.name == BASELINE), None)
        if not self.test_images or base is None:
            return None
        error = math.sqrt(base * (1 - base) / self.test_images)
        return error, math.sqrt(2) * error

    def to_json(self) -> dict[str, Any]:
        """What ``summary.json`` holds: the dataclasses as they are, nested."""
        content = asdict(self)
        return {"primary": content["primary"], "test_images": content["test_images"], "variants": content["variants"]}


def summarise(results: Sequence[Result], primary: str = PRIMARY) -> Summary:
    """Summarise the runs of a comparison.

    Args:
        results: one mapping for each variant and seed, as in ``results.json``: "variant", "seed", any of `FIGURES`
            and "test_images" (absent or None where undefined), and for the gap closed "oracle" (bool) and "strategy"
            ({"positive", "negative", "renormalise"}).
        primary: the accuracy that makes the verdicts.
    """
    by_variant: dict[str, list[Result]] = {}
    for result in results:
        by_variant.setdefault(result["variant"], []).append(result)
    against = {key: _differences(by_variant, key) for key in ACCURACIES}
    tested = {result.get("test_images") for result in results}
    images = tested.pop() if len(tested) == 1 else None
    return Summary(tuple(_summarise_variant(name, by_variant, against) for name in by_variant), primary, images)


def _summarise_variant(
    name: str, by_variant: Mapping[str, Sequence[Result]], against: Mapping[str, Differences]
) -> VariantSummary:
    runs = by_variant[name]
    figures = {key: _figure([run.get(key) for run in runs]) for key in FIGURES}
    summary = VariantSummary(name, bool(runs[0].get("oracle")), figures)
    oracle = oracle_of(name, by_variant)
    for key in ACCURACIES if name != BASELINE else ():
        summary.versus_none[key] = against[key].of(name)
        summary.gap_closed[key] = against[key].gap_closed(name, oracle) if oracle else None
    return summary


def _differences(by_variant: Mapping[str, Sequence[Result]], key: str) -> Differences:
    cells = {name: _by_seed(runs, key) for name, runs in by_variant.items()}
    others = [name for name in by_variant if name != BASELINE]
    oracles = [name for name in others if by_variant[name][0].get("oracle")]
    return Differences(cells, BASELINE, [name for name in others if name not in oracles], oracles)


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
