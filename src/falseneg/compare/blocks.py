"""All variants and seeds of one figure in one model: y = variant + seed + error, by least squares.

Runs of one seed share the split, the first weights and the views: seeds are blocks. What is estimated are the differences
of variants from the baseline, from every cell (variant, seed) that was run. With V variants and S seeds, none missing, a
difference is the mean of the paired differences, its variance is 2/S of the error's, two differences correlate by 1/2,
and the error has (V − 1)(S − 1) degrees of freedom.

**The error.** Pooling supposes that variants spread alike. They do not, and a pooled error is too small for those that
spread more. So the variance behind a difference is a weighted mean, with the degrees of freedom as weights, of half the
variance of the variant's own paired differences (S − 1) and of a common one, which counts at most `PRIOR` and no more than
the variant's own (a moderated t test; Smyth 2004). The common one is the pooled error, or the mean of all variants' own where
that is larger, as it is where the baseline spreads more than the rest. `benchmarks/verdict.py` simulates what comes of it.

**The number of comparisons.** All intervals of a family hold their true differences at the same time in 95% of the
comparisons. The factor is the studentised maximum modulus, which is safe whatever the correlations are (Šidák 1967). Dunnett's
(1955), for many comparisons with one in complete blocks, is 3% smaller, and too small by a little where each variant has a
part in its own error.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
"""Of every interval."""
PRIOR = 2
"""Degrees of freedom of the common variance, at most: small, so that unequal spreads make no false verdicts."""
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
    """

    names: tuple[str, ...]
    gain: NDArray[np.float64]
    unit: NDArray[np.float64]
    error: float | None
    freedom: int


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
    return Blocks(every, gain, contrast @ inverse @ contrast.T, error, freedom)


def paired(cells: Cells, baseline: str, name: str) -> list[float]:
    """A variant minus the baseline, for each seed that both were run with."""
    return [value - cells[baseline][seed] for seed, value in cells[name].items() if seed in cells[baseline]]


def moderated(cells: Cells, model: Blocks) -> dict[str, tuple[float, int]]:
    """The variance of the error behind the difference of each variant, and its degrees of freedom.

    Args:
        cells: what the model was fitted to.
        model: of the baseline and one family of variants, with an error.
    """
    baseline, *names = model.names
    pairs = {name: paired(cells, baseline, name) for name in names}
    freedom = {name: len(of) - 1 for name, of in pairs.items()}
    own = {name: statistics.variance(of) / 2 if freedom[name] else 0.0 for name, of in pairs.items()}
    every = sum(freedom.values())
    common = max(model.error or 0.0, sum(freedom[name] * own[name] for name in names) / every if every else 0.0)
    found = {}
    for name in names:
        # What the runs of the others add: nothing where there are none, so that one method has the paired t test.
        prior = min(PRIOR, max(freedom[name], 1), model.freedom - freedom[name])
        total = freedom[name] + prior
        found[name] = (freedom[name] * own[name] + prior * common) / total, total
    return found


@functools.lru_cache
def critical_value(comparisons: int, freedom: int) -> float:
    """The factor of the standard error in two-sided simultaneous intervals: the studentised maximum modulus.

    Args:
        comparisons: in the family; for one it is the quantile of Student's t.
        freedom: degrees of freedom of the error.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtr

    spread, share = _nodes(freedom)

    def miss(value: float) -> float:
        return float(share @ (2 * ndtr(value * spread) - 1) ** comparisons) - CONFIDENCE

    upper = 2.0
    while miss(upper) < 0:
        upper *= 2
    return float(brentq(miss, 0.5, upper, xtol=1e-6))


def _nodes(freedom: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and weights for the root of chi² over its degrees of freedom."""
    from scipy.special import chdtri

    # Gauss-Legendre over the probability of chi², refined towards both ends.
    at, share = np.polynomial.legendre.leggauss(400)
    part = (1 + at) / 2
    probability = part**2 * (3 - 2 * part)
    return np.sqrt(chdtri(freedom, 1 - probability) / freedom), share / 2 * 6 * part * (1 - part)


def t_quantile(probability: float, freedom: int) -> float:
    """Of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))
