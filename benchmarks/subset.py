"""A part of a Parquet file of labelled images: so many images, evenly of some of its classes.

    python benchmarks/subset.py cifar100/train.parquet c100-20-train.parquet --images 5000 --classes 20

The classes are drawn with a fixed seed, so that those of 10 are among those of 20; of each, the first images are taken. With
--imbalance 10 the first class keeps all of its images, the last a tenth, and the others what lies between, in equal ratios.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--images", type=int, help="in all; without it, all of these classes")
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--imbalance", type=float, default=1, help="the largest class over the smallest")
    options = parser.parse_args()
    table = pq.read_table(options.source)
    labels = table["label"].to_numpy()
    classes = np.random.default_rng(0).permutation(int(labels.max()) + 1)[: options.classes]
    each = options.images // options.classes if options.images else None
    rows = [np.flatnonzero(labels == label)[:each] for label in classes]
    shares = options.imbalance ** -np.linspace(0, 1, len(rows))
    kept = np.sort(np.concatenate([row[: round(len(row) * share)] for row, share in zip(rows, shares, strict=True)]))
    pq.write_table(table.take(kept), options.target)
    print(f"{options.target}: {len(kept):,} images of {options.classes} classes")


if __name__ == "__main__":
    main()
