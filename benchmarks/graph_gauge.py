"""How far two graphs of a model agree that are made of different views, and how often the graph of the images themselves is right.

    python benchmarks/graph_gauge.py train.parquet --config benchmarks/cifar.yaml --kinds 10 RUN/encoder.safetensors [ENCODER ...]
    python benchmarks/graph_gauge.py digits --config src/falseneg/cli/recipes/digits.yaml --kinds 10 RUN/encoder.safetensors

The graph is that of `NeighbourGraph` with these encoders as its guides; the views are those of the configuration's augmentation.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

import torch
import yaml  # type: ignore[import-untyped]
from torch import Tensor

from falseneg import Encoder
from falseneg.data import Augmentation, Digits, Folder, ImageSet, Parquet, ViewSet
from falseneg.evaluation import extract_features
from falseneg.graph import agreement, nearest, quantiles_of_pairs, spectral_coordinates, whitened
from falseneg.train.embeddings import AT_ONCE, embed_views


def opened(data: str) -> ImageSet:
    if data == "digits":
        return Digits("train")
    return Folder(data) if Path(data).is_dir() else Parquet(data)


def views_of(encoder: Encoder, images: ImageSet, augmentation: dict[str, object]) -> Tensor:
    """(n, 2, F) features of two views of each image."""
    made = Augmentation(**{**augmentation, "size": encoder.image_size})  # type: ignore[arg-type]
    keys = [[(0, row) for row in piece.tolist()] for piece in torch.arange(len(images)).split(AT_ONCE // 2)]
    with closing(
        embed_views(encoder, ViewSet(images, {"image": [made] * 2}, 0), keys, 0, torch.device("cpu"))
    ) as found:
        return torch.cat(list(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a Parquet file, a folder, or digits; with labels")
    parser.add_argument("encoders", nargs="+")
    parser.add_argument("--config", type=Path, required=True, help="with the augmentation")
    parser.add_argument("--kinds", type=int, required=True)
    parser.add_argument("--neighbours", type=int, default=5)
    parser.add_argument("--eigenvectors", type=int, help="(default: 1.2 times the kinds)")
    options = parser.parse_args()
    images, share = opened(options.data), 1 / options.kinds
    number = options.eigenvectors or options.kinds + options.kinds // 5
    augmentation = yaml.safe_load(options.config.read_text())["augmentation"]
    whole, halves = [], ([], [])  # type: tuple[list[Tensor], tuple[list[Tensor], list[Tensor]]]
    for path in options.encoders:
        encoder = Encoder.load(path).eval()
        views = views_of(encoder, images, augmentation)
        whole.append(whitened(extract_features(encoder, images, encoder.image_size), views))
        for half in (0, 1):
            halves[half].append(whitened(views[:, half], views))

    def coordinates(unit: list[Tensor]) -> Tensor:
        return spectral_coordinates(*nearest(torch.cat(unit, dim=1) / len(unit) ** 0.5, options.neighbours), number)

    one, other = map(coordinates, halves)
    print(f"agreement {agreement(one, other, share / 2, 0):.3f}")
    table, labels = coordinates(whole), images.labels
    assert labels is not None
    same = labels[:, None] == labels
    pairs = torch.ones(len(table), len(table), dtype=torch.bool).triu(1)
    for part in (share / 5, share / 2, share):
        flagged = (table @ table.T > quantiles_of_pairs(table, [part], 0)) & pairs
        right = (flagged & same).sum()
        print(f"closest {part:.2%}: precision {right / flagged.sum():.1%}, recall {right / (same & pairs).sum():.1%}")


if __name__ == "__main__":
    main()
