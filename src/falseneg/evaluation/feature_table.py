"""Features in a file, for other tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from falseneg.data.image_set import UNLABELLED
from falseneg.errors import UserError
from falseneg.evaluation.base import Figure, Protocol, Task
from falseneg.evaluation.parts import features_of_part
from falseneg.files import replacing


@dataclass(frozen=True)
class FeatureTable(Protocol):
    """The features of every image of --data, with its row, its name and its label, labelled or not.

    Args:
        file: where they go. A .parquet file has the columns row, name, label (−1: none) and features (a list of F numbers);
            a .npy file is one array with the fields row, label and features: ``numpy.load(file)["features"]`` is (n, F).
    """

    file: str = "features.parquet"

    name: ClassVar[str] = "features"
    wants: ClassVar[tuple[str, ...]] = ("train",)

    def run(self, task: Task) -> Sequence[Figure]:
        path = Path(self.file)
        if path.suffix not in (".parquet", ".npy"):
            raise UserError(f"{self.name}: file is {self.file}; give a name that ends in .parquet or .npy")
        if path.exists():
            raise UserError(f"{self.name}: {path} exists already; give another name, or remove it first")
        assert task.train is not None
        features = features_of_part("all", task.train, task)
        labels = task.train.labels
        if labels is None:
            labels = torch.full((len(task.train),), UNLABELLED)
        if path.suffix == ".npy":
            _write_npy(path, features, labels)
        else:
            _write_parquet(path, features, labels, [task.train.describe(row) for row in range(len(labels))])
        return [
            Figure(self.file, "features written", None, details={"images": len(labels), "width": features.shape[1]})
        ]


def _write_npy(path: Path, features: Tensor, labels: Tensor) -> None:
    kind = [("row", "<i8"), ("label", "<i8"), ("features", "<f4", (features.shape[1],))]
    table = np.empty(len(features), dtype=kind)
    table["row"], table["label"], table["features"] = np.arange(len(features)), labels.numpy(), features.numpy()
    with replacing(path) as file:
        np.save(file, table, allow_pickle=False)


def _write_parquet(path: Path, features: Tensor, labels: Tensor, names: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pa.FixedSizeListArray.from_arrays(pa.array(features.numpy().ravel()), features.shape[1])
    columns = {"row": np.arange(len(features)), "name": names, "label": labels.numpy(), "features": rows}
    with replacing(path) as file:
        pq.write_table(pa.table(columns), file)
