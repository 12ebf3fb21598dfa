"""Does anything without labels say how many kinds of image there are? Candidates against the support set's F1 with labels.

    python benchmarks/audit_kinds.py DATA lite0.pth [--run RUN] [--only NAME ...] --out FOLDER

DATA holds caltech101/train, cifar10/train.parquet, cifar100/train.parquet and the shards of emoji, lite0.pth is made as
docs/own-photos.md says, RUN is a `falseneg pretrain --config benchmarks/cifar.yaml`. For each number of kinds K of `KINDS` the
candidates are agreements beyond chance (Cohen's kappa over pairs) of: clusters and support set in batches, as the audit has it;
clusters of all images and the closest 1/K of all pairs, and the same of a Gaussian of equal covariance; the closest pairs by one
view and by another; clusters by one view and by another; clusters learnt from either half of the images. Beside them the gaps
between eigenvalues of the graph of ten neighbours, and its Louvain communities if networkx is installed.
"""

from __future__ import annotations

import argparse
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn.functional import normalize

from falseneg.audit.asked import Asked
from falseneg.audit.sample import Sample, batches_of, embedded_views
from falseneg.audit.suggestion import KINDS, suggest
from falseneg.clustering import faiss_threads
from falseneg.data import Digits, Folder, ImageSet, Parquet, Shards, Subset
from falseneg.evaluation import extract_features
from falseneg.graph import STEEPNESS, nearest, whitened
from falseneg.train.sources import open_encoder

MOST, NEIGHBOURS = 2000, 10
LITE0, SMALL = "lite0", "small"
# What is looked at: the data set, the encoder, pixels, how many classes of it (0 for all), and the seed that draws these.
SETS: dict[str, tuple[str, str, int, int, int]] = {
    "caltech101": ("caltech101", LITE0, 96, 0, 0),
    "caltech50": ("caltech101", LITE0, 96, 50, 1),
    "caltech30": ("caltech101", LITE0, 96, 30, 0),
    "caltech20": ("caltech101", LITE0, 96, 20, 2),
    "caltech10": ("caltech101", LITE0, 96, 10, 0),
    "cifar10": ("cifar10", LITE0, 64, 0, 0),
    "cifar10of4": ("cifar10", LITE0, 64, 4, 0),
    "cifar100": ("cifar100", LITE0, 64, 0, 0),
    "cifar100of20": ("cifar100", LITE0, 64, 20, -5),
    "emoji": ("emoji", LITE0, 72, 0, 0),
    "small/cifar10": ("cifar10", SMALL, 32, 0, 0),
    "small/cifar100": ("cifar100", SMALL, 32, 0, 0),
    "small/cifar100of20": ("cifar100", SMALL, 32, 20, -1),
    "small/digits": ("digits", SMALL, 32, 0, 0),
}


def labelled_images(data: Path, name: str) -> tuple[ImageSet, Tensor]:
    """The images and their kinds; those of the emoji are the emoji, whatever their tone."""
    if name == "digits":
        images: ImageSet = Digits()
    elif name == "caltech101":
        images = Folder(str(data / name / "train"))
    elif name == "emoji":
        pattern = str(data / name / "emoji-train-{00000..00001}.tar")
        return Shards(pattern), _emoji(sorted((data / name).glob("emoji-train-*.tar")))
    else:
        images = Parquet(str(data / name / "train.parquet"))
    assert images.labels is not None
    return images, images.labels


def _emoji(shards: list[Path]) -> Tensor:
    names = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            names += [json.load(tar.extractfile(each))["base_id"] for each in tar if each.name.endswith(".json")]  # type: ignore[arg-type]
    number = {name: index for index, name in enumerate(sorted(set(names)))}
    return torch.tensor([number[name] for name in names])


def rows_of(labels: Tensor, classes: int, seed: int) -> Tensor:
    """At most `MOST` images of so many classes: drawn by the seed, or, of a negative one, every so manieth class."""
    if not classes:
        chosen = labels.unique()
    elif seed < 0:
        chosen = labels.unique()[::-seed][:classes]
    else:
        chosen = labels.unique()[
            torch.randperm(len(labels.unique()), generator=torch.Generator().manual_seed(seed))[:classes]
        ]
    rows = torch.isin(labels, chosen).nonzero().flatten()
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:MOST]]


def sample_of(name: str, data: Path, sources: dict[str, tuple[str, str | None]], out: Path) -> Sample:
    """The features and views of a set, made once."""
    source, encoder, size, classes, seed = SETS[name]
    file = out / f"{name.replace('/', '-')}.pt"
    if not file.exists():
        images, labels = labelled_images(data, source)
        rows = rows_of(labels, classes, seed)
        network = open_encoder(*sources[encoder], size).encoder
        features = extract_features(network, Subset(images, rows), size)
        views = embedded_views(network, images, rows, Asked(size))
        torch.save({"features": features, "views": views, "labels": labels[rows]}, file)
    return Sample(rows=torch.arange(len(torch.load(file)["labels"])), **torch.load(file))


def kappa(one: Tensor, other: Tensor) -> float:
    """Cohen's, of two tables of pairs."""
    first, second, both = one.double().mean(), other.double().mean(), (one & other).double().mean()
    observed, expected = 1 - first - second + 2 * both, first * second + (1 - first) * (1 - second)
    return float((observed - expected) / (1 - expected))


class Pairs:
    """All pairs of n images."""

    def __init__(self, number: int) -> None:
        self.kept = torch.ones(number, number, dtype=torch.bool).triu(1)

    def closest(self, points: Tensor, share: float) -> Tensor:
        cosines = (points @ points.T)[self.kept]
        return cosines > float(np.quantile(cosines.numpy(), 1 - share))

    def together(self, points: Tensor, kinds: int, seed: int, learnt: Tensor | None = None) -> Tensor:
        """In one of K clusters, which some of the points have made."""
        with faiss_threads() as faiss:
            means = faiss.Kmeans(points.shape[1], kinds, niter=20, seed=seed, spherical=True, min_points_per_centroid=1)
            means.train((points if learnt is None else points[learnt]).numpy())
            groups = torch.from_numpy(means.index.search(points.numpy(), 1)[1][:, 0])
        return (groups[:, None] == groups[None])[self.kept]


def candidates(sample: Sample, kinds: int) -> dict[str, float]:
    """The agreements at one number of kinds."""
    pairs, mean = Pairs(len(sample)), sample.features.mean(dim=0)
    points = normalize(sample.features - mean, dim=1)
    one, other = (normalize(sample.views[:, place] - mean, dim=1) for place in (0, 1))
    halves = torch.randperm(len(sample), generator=torch.Generator().manual_seed(1)).chunk(2)
    _, spread, directions = torch.linalg.svd(sample.features - mean, full_matrices=False)
    noise = torch.randn(len(sample), len(spread), generator=torch.Generator().manual_seed(3)) * spread
    gaussian = normalize(noise @ directions, dim=1)
    share = 1 / kinds
    return {
        "clusters and closest": kappa(pairs.together(points, kinds, 2), pairs.closest(points, share)),
        "of a Gaussian": kappa(pairs.together(gaussian, kinds, 2), pairs.closest(gaussian, share)),
        "closest of two views": kappa(pairs.closest(one, share), pairs.closest(other, share)),
        "clusters of two views": kappa(pairs.together(one, kinds, 0), pairs.together(other, kinds, 1)),
        "clusters of two halves": kappa(
            pairs.together(points, kinds, 0, halves[0]), pairs.together(points, kinds, 1, halves[1])
        ),
    }


def graph_figures(sample: Sample) -> dict[str, Any]:
    """The widest gaps between eigenvalues, and communities."""
    cosines, neighbours = nearest(whitened(sample.features, sample.views), NEIGHBOURS)
    rows = np.repeat(np.arange(len(sample)), NEIGHBOURS)
    weights = (np.clip(cosines, 0, None) ** STEEPNESS).reshape(-1)
    graph = sparse.csr_matrix((weights, (rows, neighbours.reshape(-1))), shape=(len(sample), len(sample)))
    graph = graph + graph.T
    scale = sparse.diags(1 / np.sqrt(np.asarray(graph.sum(axis=1))[:, 0] + 1e-12))
    values = np.linalg.eigvalsh((scale @ graph @ scale).toarray())[::-1][: len(sample) // 2]
    gaps = values[1:-1] - values[2:]
    found: dict[str, Any] = {"widest gaps after": (np.argsort(-gaps)[:3] + 2).tolist()}
    try:
        import networkx as nx
    except ImportError:
        return found
    return found | {"communities": len(nx.community.louvain_communities(nx.from_scipy_sparse_array(graph), seed=0))}


def measured(names: list[str], data: Path, sources: dict[str, tuple[str, str | None]], out: Path) -> Iterator[None]:
    """Write the figures of each set to a file of its own."""
    for name in names:
        sample = sample_of(name, data, sources, out)
        tried = suggest(sample, batches_of(len(sample), 256, 0)).tried
        lines = [{"kinds": each.kinds, "audit": each.kappa, "F1": each.f1} for each in tried]
        further = [candidates(sample, kinds) | {"kinds": kinds} for kinds in KINDS if kinds <= len(sample) // 4]
        assert sample.labels is not None
        figures = {"images": len(sample), "classes": len(sample.labels.unique()), **graph_figures(sample)}
        content = {**figures, "audit": lines, "further": further}
        (out / f"{name.replace('/', '-')}.json").write_text(json.dumps(content, indent=1))
        print(name, figures, flush=True)
        for line in (*lines, *further):
            print("  ", {key: round(value, 3) for key, value in line.items() if value is not None}, flush=True)
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights")
    parser.add_argument("--run")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    sources = {LITE0: ("timm:tf_efficientnet_lite0", options.weights), SMALL: (options.run, None)}
    names = options.only or [name for name, (_, encoder, *_) in SETS.items() if encoder == LITE0 or options.run]
    for _ in measured(names, options.data, sources, options.out):
        pass


if __name__ == "__main__":
    main()
