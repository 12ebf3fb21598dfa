"""What must a detector reach before acting pays? Digits, true labels that err as often as they are told to.

    python benchmarks/oracle_map.py --seeds 200 201 202 --out benchmarks/results/DATE-oracle-map.md --runs FOLDER

`Oracle(precision, recall, errors)` takes the detector's place in the recipe `digits`: of the pairs with equal labels the share
`recall` is flagged, and as many others as make the precision, drawn at random or the most similar ones, as real
detectors err. Few-label accuracy (one label a class, 50 draws) over that of the plain loss with the same seed, mean and standard
deviation over the seeds. Runs that are there already are not made again.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import statistics
from pathlib import Path

from added_cost import machine
from gap import LABELS, measured

from falseneg.cli import main as falseneg
from falseneg.files import write_bytes
from falseneg.train.folder import final_figures

PRECISIONS, RECALL = (0.2, 0.35, 0.5, 0.7, 0.9, 1.0), 0.3
ERRORS, STRATEGIES = ("random", "similar"), ("eliminate", "attract")


def accuracies(folder: Path, seed: int, *options: str) -> dict[str, float]:
    """Of one run, which is made if it is not there."""
    if final_figures(folder) is None:
        resume = ["--resume"] if (folder / "checkpoints").exists() else []
        command = [
            "pretrain",
            "--config",
            "digits",
            "--seed",
            str(seed),
            "--evaluate-every",
            "100%",
            "--out",
            str(folder),
            *options,
        ]
        assert falseneg([*command, *resume]) == 0
    return measured(folder, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[200, 201, 202])
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    plain = {seed: accuracies(options.runs / f"none-{seed}", seed) for seed in options.seeds}
    measures = [f"{number} label{'s' * (number > 1)} a class" for number in LABELS]
    lines = [f"# What a detector must reach, {datetime.date.today()}", ""]
    lines += [
        f"`python benchmarks/oracle_map.py`; recipe `digits`, recall {RECALL}, seeds {options.seeds}; {machine('cpu')}.",
        "",
    ]
    base = ", ".join(f"{measure} {mean_sd([each[measure] for each in plain.values()])}" for measure in measures)
    lines += [f"The plain loss: {base}. The table holds points above it.", ""]
    heads = [
        f"{strategy}, {errors}: {measure}"
        for strategy, errors, measure in itertools.product(STRATEGIES, ERRORS, measures)
    ]
    lines += [f"| precision | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for precision in PRECISIONS:
        row = [f"{precision:g}"]
        for strategy, errors in itertools.product(STRATEGIES, ERRORS):
            gains: dict[str, list[float]] = {measure: [] for measure in measures}
            for seed in options.seeds:
                place = options.runs / f"{strategy}-{errors}-{precision}-{seed}"
                oracle = [
                    "--detector",
                    "Oracle",
                    "--detector.precision",
                    str(precision),
                    "--detector.recall",
                    str(RECALL),
                ]
                found = accuracies(place, seed, *oracle, "--detector.errors", errors, "--strategy", strategy)
                for measure in measures:
                    gains[measure].append(found[measure] - plain[seed][measure])
            row += [mean_sd(gains[measure], "+") for measure in measures]
        lines.append(f"| {' | '.join(row)} |")
        write_bytes(options.out, ("\n".join(lines) + "\n").encode())


def mean_sd(values: list[float], sign: str = "") -> str:
    return f"{statistics.fmean(values):{sign}.1f} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    main()
