"""Run and comparison folders as training and comparing write them, made from scikit-learn's digits in a moment.

Features are a mixture of noise and of what tells the classes apart; the mixture gets better from epoch to epoch. Flags,
similarities and accuracies are computed from those features, so that the figures fit one another.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from falseneg.train.observers.per_sample import summary, write_arrays, write_clusters
from falseneg.train.observers.true_quantiles import Checked
from falseneg.train.pairs import pair_table

STRATEGIES = {
    "none": (0.0, 1.0),
    "fnc-eliminate": (0.0, 0.0),
    "fnc-attract": (1.0, 1.0),
    "oracle": (1.0, 1.0),
    "oracle-eliminate": (0.0, 0.0),
}
QUALITY = {"none": 0.50, "fnc-eliminate": 0.51, "fnc-attract": 0.58, "oracle": 0.66, "oracle-eliminate": 0.53}


class MadeImages:
    """The digits as training knows them, as far as pictures of clusters need it."""

    captioned = False

    def __init__(self, pixels, labels, fake):
        self.pixels, self.labels = pixels, torch.from_numpy(labels) if fake.labelled else None
        self.class_names = fake.class_names

    def describe(self, row):
        return f"digit-{row:04d}.png"

    def image(self, row):
        return torch.from_numpy(self.pixels[row].reshape(1, 8, 8) * 255 / 16).to(torch.uint8).expand(3, 8, 8)


@dataclass
class Fake:
    """What the folders are made of."""

    images: int = 400
    epochs: int = 8
    labelled: bool = True
    class_names: tuple[str, ...] = (
        *("zero", "one", "two", "three", "four"),
        *("five", "six", "seven", "eight", "nine"),
    )
    finished: bool = True
    clusters: tuple[int, ...] = ()
    thresholds: bool = False

    def run(self, folder: Path, variant: str = "fnc-attract", seed: int = 0) -> dict:
        """Write a run folder; returns its final figures."""
        folder.mkdir(parents=True)
        random = np.random.default_rng([seed, *variant.encode()])
        pixels, labels = load_digits(return_X_y=True)
        chosen = np.random.default_rng(seed).permutation(len(labels))[: self.images]
        pixels, labels = pixels[chosen], labels[chosen]
        classes = LinearDiscriminantAnalysis(n_components=9).fit(pixels, labels).transform(pixels)
        quality = QUALITY.get(variant, 0.55) + random.normal(0, 0.012)
        recorded = sorted({self.epochs // 10 + 1, (self.epochs + 1) // 2, self.epochs})
        lines, pairs, similarities, features = [], [], [], classes
        for epoch in range(1, self.epochs + 1):
            share = quality * (1 - 0.75 * 0.75 ** (epoch * 12 / self.epochs))
            features = share * classes / classes.std() + (1 - share) * random.normal(size=(self.images, 9)) * 1.1
            z = features / np.linalg.norm(features, axis=1, keepdims=True)
            flags, histogram, detection = self._detect(z, labels, variant, random)
            seconds = 1.9 + 0.4 * (variant != "none") + random.normal(0, 0.05)
            loss = 5.2 - 2.1 * share + random.normal(0, 0.01)
            epoch_line = {
                "kind": "epoch",
                "epoch": epoch,
                "step": 6 * epoch,
                "seconds": seconds,
                "loss": loss,
                **detection,
            }
            held, checked = self._of_samples(z, epoch, random)
            epoch_line |= summary(held, torch.from_numpy(labels) if self.labelled else None)
            for name, result in checked.items():
                epoch_line |= {f"{name}/{key}": value for key, value in result.figures().items()}
            if held and epoch in recorded:
                write_arrays(folder, epoch, held, checked)
            lines.append({"kind": "step", "step": 6 * epoch, "epoch": epoch - 0.1, "loss": loss, "share_flagged": 0.0})
            lines.append(epoch_line | ({"knn": self._knn(z, labels)} if self.labelled else {}))
            if epoch in recorded and len(flags):
                pairs.append((epoch, flags))
            if epoch in recorded:
                similarities.append({"epoch": epoch, "edges": np.linspace(-1, 1, 101).tolist(), **histogram})
        final = self._final(lines, quality, random)
        self._write(folder, variant, seed, lines + ([{"kind": "final", **final}] if self.finished else []))
        self._write_pictures(folder, pixels, labels, pairs, features.astype(np.float32))
        (folder / "similarities.json").write_text(json.dumps(similarities))
        write_clusters(folder, MadeImages(pixels, labels, self))
        detection = {key: lines[-1].get(key) for key in ("precision", "recall", "f1", "share_flagged", "chance")}
        epochs_lines = [line for line in lines if line["kind"] == "epoch"]
        return final | detection | {"epoch_lines": epochs_lines}

    def compare(self, folder: Path, variants=tuple(STRATEGIES), seeds=(0, 1, 2)) -> list[dict]:
        """Write a comparison folder; returns its results."""
        results, reached = [], {}
        for seed in seeds:
            for variant in variants:
                figures = self.run(folder / "runs" / variant / f"seed-{seed}", variant, seed)
                lines = figures.pop("epoch_lines")
                if variant == "none":
                    reached[seed] = figures.get("knn")
                above = [line for line in lines if reached.get(seed) and line.get("knn", 0) >= reached[seed]]
                positive, negative = STRATEGIES.get(variant, (1.0, 0.0))
                results.append(
                    {"variant": variant, "seed": seed, **figures}
                    | {"epochs_to_baseline": above[0]["epoch"] if above else None}
                    | {"seconds_to_baseline": above[0]["epoch"] * figures["seconds_per_epoch"] if above else None}
                    | {"strategy": {"positive": positive, "negative": negative, "renormalise": False}}
                    | {"oracle": variant.startswith("oracle")}
                )
        (folder / "compare.yaml").write_text("seeds: [0, 1, 2]\nvariants: [none, fnc-attract]\nepochs: 8\n")
        (folder / "results.json").write_text(json.dumps(results))
        return results

    def _detect(self, z, labels, variant, random):
        """Flag pairs as the variant would, and compare with the labels."""
        sim = z @ z.T
        negative = ~np.eye(len(z), dtype=bool)
        same = (labels[:, None] == labels) & negative
        threshold = None
        if variant == "none":
            flagged = np.zeros_like(same)
        elif variant.startswith("oracle"):
            flagged = same
        else:
            seen = sim + random.normal(0, 0.25, sim.shape)
            threshold = float(np.quantile(seen[negative], 0.95))
            flagged = (seen > threshold) & negative
        kinds = {"true_negative": negative & ~same, "false_negative": same} if self.labelled else {"negative": negative}
        histogram = {"threshold": threshold}
        for kind, mask in kinds.items():
            name = "flagged" if kind == "negative" else f"flagged_{kind}"
            for key, chosen in ((kind, mask), (name, mask & flagged)):
                histogram[key] = np.histogram(sim[chosen], bins=100, range=(-1, 1))[0].tolist()
        anchor, candidate = np.nonzero(flagged[:60])
        flags = np.stack([anchor, candidate, sim[anchor, candidate], same[anchor, candidate]], 1)
        right, count = int((flagged & same).sum()), int(flagged.sum())
        figures = {"share_flagged": count / negative.sum()}
        if self.labelled:
            figures |= {"recall": right / same.sum(), "chance": same.sum() / negative.sum()}
            figures |= {"f1": 2 * right / (count + same.sum())} | ({"precision": right / count} if count else {})
        return flags, histogram, figures

    def _of_samples(self, z, epoch, random):
        """Clusters of the features, of which ever more are accepted; thresholds that approach the quantiles."""
        held, checked = {}, {}
        for number in self.clusters:
            means = KMeans(number, n_init=1, max_iter=20, random_state=epoch).fit(z)
            groups = torch.from_numpy(means.labels_).long()
            distance = torch.from_numpy(means.transform(z).min(axis=1))
            accepted = distance.argsort() < len(z) * (epoch - 1) / max(1, self.epochs - 1)
            held |= {f"clusters {number}": groups, f"pseudo-labels {number}": groups.where(accepted, -1)}
        if self.thresholds:
            sim = z @ z.T - 2 * np.eye(len(z))
            true = np.quantile(sim, 0.9, axis=1)
            learned = true + random.normal(0, 0.3 / (epoch + 1), len(z)) + 0.4 / epoch**2
            learned = learned.clip(-1, 1)
            share = (sim > learned[:, None]).mean(axis=1)
            rows = torch.arange(60)
            arrays = {"threshold": torch.from_numpy(learned), "share_flagged": torch.from_numpy(share)}
            held |= arrays
            checked["threshold"] = Checked(
                rows, torch.from_numpy(true)[rows], arrays["threshold"][rows], arrays["share_flagged"][rows], 0.1
            )
        return held, checked

    def _knn(self, z, labels):
        sim = z @ z.T - 2 * np.eye(len(z))
        return float((labels[sim.argmax(1)] == labels).mean())

    def _final(self, lines, quality, random):
        figures = {
            "seconds": 90.0,
            "seconds_per_epoch": lines[-1]["seconds"],
            "peak_memory_mib": 512 + 3 * random.normal(),
        }
        if self.labelled:
            few = quality + 0.14 + random.normal(0, 0.004)
            figures |= {"knn": lines[-1]["knn"], "linear": min(1.0, lines[-1]["knn"] + 0.03), "few_label": few}
            figures["few_label_sd"] = 0.03
        return figures

    def _write(self, folder, variant, seed, lines):
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "config.yaml").write_text(
            f"seed: {seed}\nepochs: {self.epochs}\nbatch_size: 64\ndetector:\n  class_path: falseneg.SupportSet\n"
        )
        about = {"falseneg": "0.1.0", "torch": "2.11.0", "python": "3.11.2", "platform": "Linux", "seed": seed}
        about |= {"git": {"commit": "0123456789abcdef", "dirty": False}, "started": "2026-01-02T03:04:05+00:00"}
        about |= {"command": f"falseneg pretrain --detector {variant} --out somewhere", "images": self.images}
        (folder / "run.json").write_text(json.dumps(about))

    def _write_pictures(self, folder, pixels, labels, pairs, features):
        made = MadeImages(pixels, labels, self)
        if pairs:
            epochs = np.concatenate([np.full(len(flags), epoch) for epoch, flags in pairs])
            flags = np.concatenate([flags for _, flags in pairs])
            tables = [
                pair_table(
                    made, flags[epochs == epoch, :2].astype("int64"), flags[epochs == epoch, 2].astype("f4"), epoch
                )
                for epoch, _ in pairs
            ]
            pq.write_table(pa.concat_tables(tables), folder / "flagged.parquet")
        rows = np.arange(self.images)
        images = np.repeat(np.repeat(pixels.reshape(-1, 8, 8), 8, 1), 8, 2) * 255 / 16
        arrays = {"rows": rows, "images": np.repeat(images[..., None], 3, 3).astype(np.uint8)}
        arrays["names"] = np.array([f"digit-{row:04d}.png" for row in rows])
        if self.labelled:
            arrays |= {"labels": labels, "class_names": np.array(self.class_names)}
        np.savez_compressed(folder / "thumbnails.npz", **arrays)
        on_map = {"features": features, "rows": rows, "names": arrays["names"], "images": arrays["images"][:, ::2, ::2]}
        np.savez_compressed(folder / "embedding.npz", **on_map, **({"labels": labels} if self.labelled else {}))


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "my run"
    Fake().run(folder)
    return folder


@pytest.fixture(scope="session")
def compare_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "comparison"
    folder.mkdir()
    Fake(images=150).compare(folder)
    return folder


@pytest.fixture(scope="session")
def fake():
    return Fake
