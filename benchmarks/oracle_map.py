"""What a detector of a given precision and recall is worth: a comparison of noisy oracles, and its map.

    python benchmarks/oracle_map.py variants map.yaml
    falseneg compare --config digits --config map.yaml --variants none oracle oracle-eliminate NAMES --evaluate-every 100% --out FOLDER
        (NAMES: as the first command prints them)
    python benchmarks/oracle_map.py map FOLDER

Each cell: the share of the gap from `none` to true labels with the same strategy that was closed, in per cent. In the rows of
"similar" the oracle errs in the most similar pairs and finds the most similar ones, as real detectors do.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import yaml  # type: ignore[import-untyped]

PRECISIONS, RECALLS = (0.2, 0.35, 0.5, 0.7, 0.9), (0.3, 0.8)
STRATEGIES = {"eliminate": "oracle-eliminate", "attract": "oracle"}
ERRORS = ("similar", "random")


def name_of(strategy: str, errors: str, recall: float, precision: float) -> str:
    return f"{strategy}-{errors}-r{100 * recall:.0f}-p{100 * precision:.0f}"


def write_variants(path: Path) -> None:
    cells = [
        (*of, precision)
        for of in itertools.product(STRATEGIES, ERRORS, RECALLS)
        for precision in PRECISIONS
        if of[1:] != ("random", RECALLS[1])
    ]
    variants = {
        name_of(strategy, errors, recall, precision): {
            "detector": {
                "class_path": "falseneg.Oracle",
                "init_args": {"precision": precision, "recall": recall, "errors": errors},
            },
            "strategy": strategy,
        }
        for strategy, errors, recall, precision in cells
    }
    path.write_text(yaml.safe_dump({"variants": variants}, sort_keys=False))
    print(" ".join(variants))


def show_map(folder: Path, measure: str) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    mean = {each["name"]: each["figures"][measure]["mean"] for each in summary["variants"]}
    sd = {each["name"]: each["figures"][measure]["sd"] for each in summary["variants"]}
    for name in ("none", *STRATEGIES.values()):
        print(f"{name}: {100 * mean[name]:.1f} ± {100 * sd[name]:.1f}")
    heads = " | ".join(f"precision {precision}" for precision in PRECISIONS)
    print(f"\n| strategy | errors | recall | {heads} |\n|{' --- |' * (3 + len(PRECISIONS))}")
    for strategy, errors, recall in itertools.product(STRATEGIES, ERRORS, RECALLS):
        names = [name_of(strategy, errors, recall, precision) for precision in PRECISIONS]
        gap = mean[STRATEGIES[strategy]] - mean["none"]
        cells = [f"{100 * (mean[name] - mean['none']) / gap:.0f}" if name in mean else "" for name in names]
        if any(cells):
            print(f"| {strategy} | {errors} | {recall} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("variants", "map"))
    parser.add_argument("path", type=Path, help="the YAML file to write, or the folder of the comparison")
    parser.add_argument("--measure", default="few_label", help="of the map: few_label, knn or linear")
    options = parser.parse_args()
    if options.what == "variants":
        write_variants(options.path)
    else:
        show_map(options.path, options.measure)


if __name__ == "__main__":
    main()
