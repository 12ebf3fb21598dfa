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
from torch import Tensor, nn

from falseneg import Clock, Facts, NeighbourGraph
from falseneg.data import Augmentation, Digits, Folder, ImageSet, Parquet, ViewSet
from falseneg.evaluation import extract_features
from falseneg.graph import quantiles_of_pairs
from falseneg.train.embeddings import AT_ONCE, embed_views


def opened(data: str) -> ImageSet:
    if data == "digits":
        return Digits("train")
    return Folder(data) if Path(data).is_dir() else Parquet(data)


class Passes:
    """What the detector asks a training for, without one."""

    def __init__(self, images: ImageSet, augmentation: Augmentation) -> None:
        self.images, self.augmentation = images, augmentation

    def encoded(self, encoder: nn.Module, modality: str = "image") -> Tensor:
        return extract_features(encoder, self.images, encoder.image_size)

    def of_views(self, row: Tensor, views: int, encoder: nn.Module) -> Tensor:
        made = ViewSet(self.images, {"image": [self.augmentation.for_size(encoder.image_size)] * views}, 0)
        keys = [[(0, each) for each in piece.tolist()] for piece in row.split(AT_ONCE // views)]
        with closing(embed_views(encoder, made, keys, 0, torch.device("cpu"))) as found:
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
    augmentation = Augmentation(**yaml.safe_load(options.config.read_text())["augmentation"])
    detector = NeighbourGraph(options.neighbours, number, share, guide=options.encoders)
    detector.prepare(Facts(len(images), 0))
    detector.start_epoch(Passes(images, augmentation), Clock(0, 1, 1))  # type: ignore[arg-type]
    print(f"agreement {detector.figures()['graph agreement']:.3f}")
    table, labels = detector.table[:-1], images.labels
    assert labels is not None
    same = labels[:, None] == labels
    pairs = torch.ones(len(table), len(table), dtype=torch.bool).triu(1)
    for part in (share / 5, share / 2, share):
        flagged = (table @ table.T > quantiles_of_pairs(table, [part], 0)) & pairs
        right = (flagged & same).sum()
        print(f"closest {part:.2%}: precision {right / flagged.sum():.1%}, recall {right / (same & pairs).sum():.1%}")


if __name__ == "__main__":
    main()
