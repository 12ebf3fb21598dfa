"""What part of the gap between no treatment and true labels each variant of a comparison closes, with an interval.

    falseneg compare --seeds 100 101 102 103 104 --variants none fnc-eliminate neighbour-graph oracle oracle-eliminate --out FOLDER
    python benchmarks/gap.py FOLDER
    python benchmarks/gap.py FOLDER --train train.parquet --test test.parquet       (runs on other images than digits)

Few-label accuracy of the runs' encoders is measured with 1 and 5 labelled images a class in 50 draws; kNN is the run's own.
The gap is that of attraction (`oracle`) or of elimination (`oracle-eliminate`). Its share is a ratio of two means over the
same seeds; the interval is Fieller's, of 95%, which allows for the error of both.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from falseneg.data import Digits, ImageSet, Parquet
from falseneg.evaluation import extract_features, few_label_accuracy
from falseneg.models import Encoder
from falseneg.train.folder import final_figures

LABELS, DRAWS = (1, 5), 50
ORACLES = {"oracle": "attraction", "oracle-eliminate": "elimination"}


def measured(folder: Path, seed: int, sets: Sequence[ImageSet]) -> dict[str, float]:
    """The accuracies of a finished run, in per cent; kept beside the encoder."""
    kept = folder / "gap.json"
    if not kept.is_file():
        encoder = Encoder.load(folder / "encoder.safetensors")
        train, test = (extract_features(encoder, images, encoder.image_size) for images in sets)
        labels = [images.labels for images in sets]
        assert labels[0] is not None and labels[1] is not None
        found = {"kNN": 100 * (final_figures(folder) or {})["knn"]}
        for number in LABELS:
            each = few_label_accuracy(train, labels[0], test, labels[1], number, DRAWS, seed).each
            found[f"{number} label{'s' * (number > 1)} a class"] = 100 * statistics.fmean(each)
        kept.write_text(json.dumps(found))
    return dict(json.loads(kept.read_text()))


def share(gains: Sequence[float], gaps: Sequence[float]) -> tuple[float, float, float]:
    """The ratio of the means of paired numbers and its 95% interval, by Fieller; infinite where the gap may be none."""
    both, n = np.array([gains, gaps]), len(gains)
    gain, gap = both.mean(axis=1)
    (of_gain, of_both), (_, of_gap) = np.cov(both) / n
    t = float(stats.t.ppf(0.975, n - 1))
    a, b, c = gap**2 - t**2 * of_gap, gain * gap - t**2 * of_both, gain**2 - t**2 * of_gain
    if a <= 0:
        return gain / gap, -math.inf, math.inf
    half = math.sqrt(max(b**2 - a * c, 0))
    return gain / gap, (b - half) / a, (b + half) / a


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a comparison")
    parser.add_argument(
        "--train", type=Path, help="a Parquet file of labelled images to learn from; without it, digits"
    )
    parser.add_argument("--test", type=Path, help="and of those to measure on")
    options = parser.parse_args()
    files = options.train, options.test
    sets = [Parquet(str(path)) for path in files] if options.train else [Digits("train"), Digits("test")]
    cells: dict[str, dict[int, dict[str, float]]] = {}
    for run in sorted((options.folder / "runs").glob("*/seed-*")):
        if final_figures(run) is not None:
            seed = int(run.name.removeprefix("seed-"))
            cells.setdefault(run.parent.name, {})[seed] = measured(run, seed, sets)
    for measure in next(iter(cells["none"].values())):
        print(
            f"\n| {measure} | seeds | accuracy | share of the gap of attraction | of elimination |\n| --- | --- | --- | --- | --- |"
        )
        for name, of_seed in cells.items():
            values = [figures[measure] for figures in of_seed.values()]
            spread = statistics.stdev(values) if len(values) > 1 else math.nan
            row = [f"`{name}`", str(len(values)), f"{statistics.fmean(values):.1f} ± {spread:.1f}"]
            for oracle in ORACLES:
                seeds = sorted({*of_seed} & {*cells["none"]} & {*cells.get(oracle, {})})
                if name in ("none", oracle) or len(seeds) < 2:
                    row.append("")
                    continue
                none = [cells["none"][seed][measure] for seed in seeds]
                gains, gaps = (
                    [cells[which][seed][measure] - base for seed, base in zip(seeds, none, strict=True)]
                    for which in (name, oracle)
                )
                part, low, high = share(gains, gaps)
                row.append(f"{part:.0%} ({low:.0%} to {high:.0%})")
            print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
