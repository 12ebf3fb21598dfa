"""A part of a Parquet file of labelled images: so many images, evenly of some of its classes.

    python benchmarks/subset.py cifar100/train.parquet c100-20-train.parquet --images 5000 --classes 20

The classes are drawn with a fixed seed, so that those of 10 are among those of 20; of each, the first images are taken.
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
    options = parser.parse_args()
    table = pq.read_table(options.source)
    labels = table["label"].to_numpy()
    classes = np.random.default_rng(0).permutation(int(labels.max()) + 1)[: options.classes]
    each = options.images // options.classes if options.images else None
    kept = np.sort(np.concatenate([np.flatnonzero(labels == label)[:each] for label in classes]))
    pq.write_table(table.take(kept), options.target)
    print(f"{options.target}: {len(kept):,} images of {options.classes} classes")


if __name__ == "__main__":
    main()
