"""What a detector of a given precision and recall would be worth: runs of an oracle that errs.

    python benchmarks/oracle_map.py FOLDER --seeds 620 621 622 -- --config digits
    python benchmarks/gap.py FOLDER

After "--" the options of `falseneg pretrain`. FOLDER/runs/NAME/seed-SEED holds the runs: `none`, `oracle` and `oracle-eliminate`, and of each
strategy, recall and precision one, such as `attract-r30-p70`. The oracle errs in the pairs that are most similar, and finds the most similar
ones, as real detectors do, or with --errors random in any. Finished runs stay.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from falseneg.cli import main as falseneg

PRECISIONS, RECALLS, STRATEGIES = (0.2, 0.35, 0.5, 0.7, 0.9), (0.3, 0.8), ("eliminate", "attract")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--recalls", type=float, nargs="+", default=RECALLS)
    parser.add_argument("--errors", default="similar")
    parser.add_argument("options", nargs="+")
    options = parser.parse_args()
    cells = {name: ["--variant", name] for name in ("none", "oracle", "oracle-eliminate")}
    for recall, strategy, precision in itertools.product(options.recalls, STRATEGIES, PRECISIONS):
        name = f"{strategy}-r{100 * recall:.0f}-p{100 * precision:.0f}"
        cells[name] = ["--detector", "Oracle", "--detector.precision", str(precision), "--detector.recall", str(recall)]
        cells[name] += ["--detector.errors", options.errors, "--strategy", strategy]
    for (name, own), seed in itertools.product(cells.items(), options.seeds):
        out = options.folder / "runs" / name / f"seed-{seed}"
        if not (out / "encoder.safetensors").is_file():
            falseneg(
                ["pretrain", *options.options, *own, "--seed", str(seed), "--evaluate-every", "100%", "--out", str(out)]
            )


if __name__ == "__main__":
    main()
