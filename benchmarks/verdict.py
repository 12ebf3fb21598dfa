"""How often does a comparison say that a method helped or hurt, between equal methods and between different ones?

    python benchmarks/verdict.py [--comparisons 4000] --out FILE.md

Accuracies are drawn in place of trained: what runs of one seed share (a spread of 2 points), an effect, and an error with
each variant's own spread, for `none` and four methods, the number of the default. The verdicts are those of the package, by
one accuracy; beside them stand those of a paired t test for each method with its own error, uncorrected (as the package
did until 2026-11-21) and at a level of 5% over the number of methods (Bonferroni).
"""

from __future__ import annotations

import argparse
import datetime
import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from falseneg.compare.differences import Differences
from falseneg.files import write_bytes

METHODS = ("a", "b", "c", "d")
SPREADS = {
    "equal": (1.0, 1.0, 1.0, 1.0, 1.0),
    "digits": (1.4, 1.2, 2.6, 0.9, 1.3),
    "digits, three seeds": (0.9, 0.3, 2.6, 0.9, 0.3),
    "baseline double": (2.0, 1.0, 1.0, 1.0, 1.0),
}
"""Of none and the methods, in points: the tables of digits of 2026-11-21, and two made ones."""
SEEDS = range(2, 11)
EFFECTS = (0.5, 1.0, 2.0)
SHARED = 2.0
Verdicts = NDArray[np.bool_]


def package(points: NDArray[np.float64]) -> Verdicts:
    """Of one comparison of (variants, seeds)."""
    cells = {name: dict(enumerate(row.tolist())) for name, row in zip(("none", *METHODS), points / 100, strict=True)}
    differences = Differences(cells, "none", METHODS, ())
    found = [differences.of(name) for name in METHODS]
    return np.array([each is not None and each.verdict in ("helped", "hurt") for each in found])


def paired_t(points: NDArray[np.float64], level: float) -> Verdicts:
    """Of all comparisons: (comparisons, variants, seeds)."""
    pairs = points[:, 1:] - points[:, :1]
    error = pairs.std(axis=2, ddof=1) / np.sqrt(pairs.shape[2])
    return np.asarray(np.abs(pairs.mean(axis=2)) > stdtrit(pairs.shape[2] - 1, 1 - level / 2) * error)


@functools.cache
def verdicts(spread: str, effect: float, seeds: int, comparisons: int) -> tuple[Verdicts, Verdicts, Verdicts]:
    """Of the package, of t tests, and of t tests with Bonferroni's level; each (comparisons, methods)."""
    random = np.random.default_rng(seeds)
    noise = random.normal(size=(comparisons, 5, seeds)) * np.array(SPREADS[spread])[:, None]
    points = 90 + noise + SHARED * random.normal(size=(comparisons, 1, seeds))
    points[:, 1:] += effect
    return np.stack([package(each) for each in points]), paired_t(points, 0.05), paired_t(points, 0.05 / len(METHODS))


def null_table(comparisons: int) -> list[str]:
    lines = [f"| seeds | {' | '.join(SPREADS)} |", f"| --- | {' | '.join('---' for _ in SPREADS)} |"]
    for seeds in SEEDS:
        found = [verdicts(spread, 0.0, seeds, comparisons)[:2] for spread in SPREADS]
        cells = [" / ".join(f"{100 * of.any(axis=1).mean():.1f}" for of in each) for each in found]
        lines.append(f"| {seeds} | {' | '.join(cells)} |")
    return lines


def power_table(spread: str, comparisons: int) -> list[str]:
    headings = [f"+{effect:g}" for effect in EFFECTS]
    lines = [f"| seeds | {' | '.join(headings)} |", f"| --- | {' | '.join('---' for _ in headings)} |"]
    for seeds in SEEDS:
        found = [verdicts(spread, effect, seeds, comparisons) for effect in EFFECTS]
        cells = [" / ".join(f"{100 * of.mean():.0f}" for of in each) for each in found]
        lines.append(f"| {seeds} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=4000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    spreads = "; ".join(f"{name}: {', '.join(map(str, of))}" for name, of in SPREADS.items())
    lines = [
        "# Verdicts between equal and between different methods",
        "",
        f"{datetime.date.today()}; `python benchmarks/verdict.py --comparisons {options.comparisons}`; `none` and four methods, "
        f"{options.comparisons:,} simulated comparisons a cell, of which a standard error is at most "
        f"{50 / np.sqrt(options.comparisons):.1f} points, at 5% {100 * np.sqrt(0.0475 / options.comparisons):.1f}. Spreads in points, "
        f"of none and the methods: {spreads}.",
        "",
        "## Equal methods: some one of the four helped or hurt, per cent of the comparisons",
        "",
        "The package / a t test for each method.",
        "",
        *null_table(options.comparisons),
    ]
    for spread in ("equal", "digits"):
        lines += ["", f"## Power, spreads “{spread}”: verdicts on a method that gains so many points, per cent", ""]
        lines += ["The package / a t test for each method / the same with Bonferroni's level.", ""]
        lines += power_table(spread, options.comparisons // 2)
    write_bytes(options.out, ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
