"""All variants and seeds of one figure in one model: y = variant + seed + error, by least squares.

Runs of one seed share the split, the first weights and the views: seeds are blocks. What is estimated are the differences
of variants from the baseline, from every cell (variant, seed) that was run. With V variants and S seeds, none missing, a
difference is the mean of the paired differences, its variance is 2/S of the error's, two differences correlate by 1/2,
and the error has (V − 1)(S − 1) degrees of freedom.

**The error.** Pooling supposes that variants spread alike. They do not, and a pooled error is too small for those that
spread more. So the variance behind a difference is the largest of three estimates: the pooled one; the mean over the
variants of half the variance of their paired differences from the baseline, which is larger where the baseline itself
spreads more; and half that of the variant's own paired differences. And a pooled estimate of unequal variances varies as if it had
fewer degrees of freedom (Box 1954): a share `EPSILON` of them is counted. Both can only make intervals wider.
`benchmarks/verdict.py` simulates what comes of it.

**The number of comparisons.** Intervals are those of Dunnett (1955), for many comparisons with one: all of a family hold
their true differences at the same time in 95% of the comparisons. Where cells are missing, correlations are unequal;
then they are taken as 0, which is on the safe side whatever they are (Šidák 1967).
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
"""Of every interval."""
EPSILON = 2 / 3
"""Of the degrees of freedom are counted: Box's formula gives .65 and .87 for the spreads in the tables of digits of 2026-11-21."""
ROUNDING = 1e-9
"""Differences of shares below this are 0: no set of test images is large enough to show them."""

Cells = Mapping[str, Mapping[object, float]]
"""A figure by variant and seed."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """The fitted model.

    Attributes:
        names: the variants, the baseline first.
        gain: (V,) each minus the baseline; 0 for the baseline.
        unit: (V, V) covariances of the gains, for an error of variance 1.
        error: mean square of the residuals; None without degrees of freedom.
        freedom: degrees of freedom of the error.
        complete: whether every variant was run with every seed.
    """

    names: tuple[str, ...]
    gain: NDArray[np.float64]
    unit: NDArray[np.float64]
    error: float | None
    freedom: int
    complete: bool


def fit(cells: Cells, baseline: str, names: Sequence[str]) -> Blocks:
    """Fit variant + seed to what was run.

    Args:
        cells: the figure of every run.
        baseline: the variant that all are compared with.
        names: the others; each shares at least one seed with the baseline, so that its difference is determined.
    """
    every = (baseline, *names)
    seeds = list(dict.fromkeys(seed for name in every for seed in cells[name]))
    runs = [(row, seeds.index(seed), value) for row, name in enumerate(every) for seed, value in cells[name].items()]
    design = np.zeros((len(runs), len(every) + len(seeds)))
    for line, (variant, seed, _) in enumerate(runs):
        design[line, variant] = design[line, len(every) + seed] = 1.0
    values = np.array([value for *_, value in runs])
    values = values - values.mean()
    inverse = np.linalg.pinv(design.T @ design, hermitian=True)
    fitted = inverse @ design.T @ values
    residuals = values - design @ fitted
    # A connected design has rank V + S − 1; every variant here meets the baseline, but a seed may stand alone.
    freedom = len(runs) - int(np.linalg.matrix_rank(design))
    contrast = np.eye(len(every), design.shape[1])
    contrast[:, 0] -= 1.0
    gain = contrast @ fitted
    gain[np.abs(gain) < ROUNDING] = 0.0
    error = float(residuals @ residuals) / freedom if freedom else None
    complete = len(runs) == len(every) * len(seeds)
    return Blocks(every, gain, contrast @ inverse @ contrast.T, error, freedom, complete)


def paired(cells: Cells, baseline: str, name: str) -> list[float]:
    """A variant minus the baseline, for each seed that both were run with."""
    return [value - cells[baseline][seed] for seed, value in cells[name].items() if seed in cells[baseline]]


def variances(cells: Cells, baseline: str, names: Sequence[str], pooled: float) -> dict[str, float]:
    """The variance of the error behind the difference of each variant: the largest of three estimates (see above)."""
    pairs = {name: paired(cells, baseline, name) for name in names}
    own = {name: statistics.variance(of) / 2 for name, of in pairs.items() if len(of) > 1}
    freedom = {name: len(pairs[name]) - 1 for name in own}
    mean = sum(freedom[name] * own[name] for name in own) / sum(freedom.values()) if own else 0.0
    return {name: max(pooled, mean, own.get(name, 0.0)) for name in names}


def counted_freedom(freedom: int, comparisons: int) -> float:
    """The degrees of freedom that are counted: of one comparison all, for a paired t test supposes nothing of variances."""
    return freedom * max(1 / comparisons, EPSILON)


@functools.lru_cache
def critical_value(comparisons: int, freedom: float, correlated: bool) -> float:
    """The factor of the standard error in two-sided simultaneous intervals of so many comparisons with one.

    Args:
        comparisons: in the family.
        freedom: degrees of freedom of the error, counted or not.
        correlated: whether the differences correlate by 1/2, as in complete blocks; else they are taken as independent.
    """
    from scipy.optimize import brentq

    def miss(value: float) -> float:
        return _within(value, comparisons, freedom, correlated) - CONFIDENCE

    upper = 2.0
    while miss(upper) < 0:
        upper *= 2
    return float(brentq(miss, 0.5, upper, xtol=1e-6))


def _within(value: float, comparisons: int, freedom: float, correlated: bool) -> float:
    """The probability that no |t| of the family exceeds a value: an integral over baseline and error."""
    from scipy.special import ndtr

    baseline, weight, spread, share = _nodes(freedom)
    if not correlated:
        inside = 2 * ndtr(value * spread) - 1
        return float(share @ inside**comparisons)
    edge = math.sqrt(2) * value * spread[:, None]
    inside = (ndtr(baseline + edge) - ndtr(baseline - edge)) ** comparisons
    return float(share @ inside @ weight)


@functools.lru_cache
def _nodes(freedom: float) -> tuple[NDArray[np.float64], ...]:
    """Nodes and weights for a standard normal, and for the root of chi² over its degrees of freedom."""
    from scipy.special import chdtri

    nodes, weight = np.polynomial.hermite_e.hermegauss(64)
    # Gauss-Legendre over the probability of chi², refined towards both ends.
    at, share = np.polynomial.legendre.leggauss(400)
    part = (1 + at) / 2
    probability = part**2 * (3 - 2 * part)
    spread = np.sqrt(chdtri(freedom, 1 - probability) / freedom)
    return nodes, weight / weight.sum(), spread, share / 2 * 6 * part * (1 - part)


def t_quantile(probability: float, freedom: float) -> float:
    """Of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))
