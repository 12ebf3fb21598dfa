"""What a comparison of few seeds says of digits, against what all its seeds say.

    falseneg compare --seeds 100 101 102 ... --out compare-digits
    python benchmarks/digits_seeds.py compare-digits --out FILE.md

The encoders of a comparison's runs are measured again with 1, 2 and 5 labelled images of each class and more draws. Then
many choices of S seeds are made, and their verdicts held against those of all seeds by the same measure. The seeds are not
those of the default (0, 1, 2, ...), which are left unseen.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from falseneg.compare.differences import Differences
from falseneg.data import Digits
from falseneg.evaluation import extract_features, few_label_accuracy
from falseneg.files import write_bytes
from falseneg.models import Encoder

LABELS, DRAWS = (1, 2, 5), (10, 50)
REFERENCE = "1 labels, 50 draws"
CHOICES = 300
"""Of seeds."""

Cells = dict[str, dict[int, float]]


def measured(folder: Path, seed: int) -> dict[str, float]:
    """Few-label accuracy of a run's encoder, by the number of labels and draws; kept beside the encoder."""
    kept = folder / "few-label.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    encoder, sets = Encoder.load(folder / "encoder.safetensors"), (Digits("train"), Digits("test"))
    train, test = (extract_features(encoder, images, 8) for images in sets)
    labels = [images.labels for images in sets]
    found = {}
    for per_class in LABELS:
        each = few_label_accuracy(train, labels[0], test, labels[1], per_class, max(DRAWS), seed).each
        found |= {f"{per_class} labels, {draws} draws": statistics.fmean(each[:draws]) for draws in DRAWS}
    kept.write_text(json.dumps(found))
    return found


def verdicts(cells: Cells, names: Sequence[str], seeds: Sequence[int]) -> dict[str, str]:
    """Of each method, and of each oracle, in a comparison of these variants and seeds."""
    chosen = {name: {seed: cells[name][seed] for seed in seeds} for name in ("none", *names)}
    oracles = [name for name in names if name.startswith("oracle")]
    differences = Differences(chosen, "none", [name for name in names if name not in oracles], oracles)
    return {name: found.verdict for name in names if (found := differences.of(name)) is not None}


def agreement(cells: Cells, truth: dict[str, str], names: Sequence[str], size: int) -> tuple[float, float, int]:
    """How often all verdicts, and how often one, are as with all seeds; and how many are of the opposite sign."""
    random, seeds = np.random.default_rng(size), list(cells["none"])
    whole, single, opposite = [], [], 0
    for _ in range(CHOICES):
        found = verdicts(cells, names, random.choice(seeds, size, replace=False).tolist())
        right = [found[name] == truth[name] for name in names]
        opposite += sum({found[name], truth[name]} == {"helped", "hurt"} for name in names)
        whole.append(all(right))
        single.append(np.mean(right))
    return float(np.mean(whole)), float(np.mean(single)), opposite


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    about = json.loads((options.folder / "results.json").read_text())
    order = list(dict.fromkeys(result["variant"] for result in about))
    of_seed = {s: [r["variant"] for r in about if r["seed"] == s] for s in sorted({r["seed"] for r in about})}
    seeds = [seed for seed, names in of_seed.items() if set(names) == set(order)]
    every: dict[str, Cells] = {}
    for name in order:
        for seed in seeds:
            for what, value in measured(options.folder / "runs" / name / f"seed-{seed}", seed).items():
                every.setdefault(what, {}).setdefault(name, {})[seed] = value
    others = [name for name in order if name != "none"]
    truth = {what: verdicts(cells, others, seeds) for what, cells in every.items()}
    lines = [f"{datetime.date.today()}; {len(seeds)} seeds, {seeds[0]} to {seeds[-1]}.", ""]
    lines += [f"| variant | {' | '.join(every)} | error, {REFERENCE} | verdict |", "| --- " * (len(every) + 3) + "|"]
    common = {seed: np.mean([every[REFERENCE][name][seed] for name in order[:5]]) for seed in seeds}
    for name in order:
        shown = [f"{100 * np.mean(list(c[name].values())):.1f} ± {100 * np.std(list(c[name].values()), ddof=1):.1f}"
                 for c in every.values()]  # fmt: skip
        rest = np.std([every[REFERENCE][name][seed] - common[seed] for seed in seeds], ddof=1)
        lines.append(f"| `{name}` | {' | '.join(shown)} | {100 * rest:.2f} | {truth[REFERENCE].get(name, '')} |")
    lines += ["", f"| variant | {' | '.join(every)} |", "| --- " * (len(every) + 1) + "|"]
    for name in others:
        lines.append(f"| `{name}` | {' | '.join(truth[what].get(name, '') for what in every)} |")
    sets = {"all": others} | {
        f"without {' and '.join(left)}": [name for name in others if name not in left]
        for left in (("oracle",), ("fnc-attract",), ("fnc-attract", "oracle"), ("ifnd", "oracle"))
        if {*left} <= {*others}
    }
    sizes = [size for size in (3, 4, 5, 6, 8) if size < len(seeds)]
    lines += [
        "",
        f"| measure | variants | {' | '.join(f'{size} seeds' for size in sizes)} |",
        "| --- " * (len(sizes) + 2) + "|",
    ]
    for what, cells in every.items():
        for title, names in sets.items() if what == REFERENCE else [("all", others)]:
            found = [agreement(cells, truth[what], names, size) for size in sizes]
            shown = [f"{100 * each:.0f} / {100 * one:.0f} / {opposite}" for each, one, opposite in found]
            lines.append(f"| {what} | {title} | {' | '.join(shown)} |")
    write_bytes(options.out, ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
