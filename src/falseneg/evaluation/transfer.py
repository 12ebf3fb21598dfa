"""Transfer to other data sets by logistic regression on frozen features, as SimCLR and FNC publish it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from falseneg.data.views import whole_view
from falseneg.errors import UserError
from falseneg.evaluation.base import Figure, Protocol, Task
from falseneg.evaluation.checks import check_features
from falseneg.evaluation.logistic import logistic_path
from falseneg.evaluation.metrics import measure
from falseneg.evaluation.parts import features_of_part
from falseneg.evaluation.set_files import of_set
from falseneg.evaluation.transfer_sets import IMAGES, TRANSFER_SETS, Parts, open_set

PENALTIES = tuple(10 ** (-6 + 11 * step / 44) for step in range(45))
"""45 values from 1e-6 to 1e5, evenly spread in the logarithm."""


@dataclass(frozen=True)
class Transfer(Protocol):
    """Logistic regression on frozen features of other data sets (SimCLR, arXiv 2002.05709, section B.8; FNC's table 7).

    L-BFGS without augmentation; the short side is resized to the size, and the middle taken. Of 45 penalties the one with the
    best figure on the validation set is taken (of equals the largest), then training and validation images are learnt
    together. Test images choose nothing. Of VOC2007, whose images show several classes, it is one binary regression for each.

    Args:
        root: the folder that holds the sets, each as torchvision lays it out; Birdsnap as birdsnap/train and birdsnap/test,
            with a folder for each species.
        sets: which of them.
        download: fetch sets that are not there; Birdsnap and StanfordCars cannot be.
        penalties: to choose from, each beside the summed cross-entropy, half of it times the squared weights.
    """

    root: str = "data"
    sets: tuple[str, ...] = tuple(TRANSFER_SETS)
    download: bool = False
    penalties: tuple[float, ...] = PENALTIES

    name: ClassVar[str] = "transfer"
    wants: ClassVar[tuple[str, ...]] = ()

    def run(self, task: Task) -> Sequence[Figure]:
        if not self.penalties or not min(self.penalties) > 0:
            raise UserError(f"{self.name}: penalties is {list(self.penalties)}; give numbers above 0")
        return over_sets(self.name, self.sets, self.root, self.download, task, self._measured)

    def _measured(self, name: str, parts: Parts, task: Task) -> tuple[float, Mapping[str, Any]]:
        features = []
        for what, part in zip(parts._fields, parts, strict=True):
            features.append(features_of_part(f"{name}-{what}", part.images, task, whole_view).to(task.device))
            check_features(
                f"{name}, {what}", features[-1], part.targets.clamp(min=0).reshape(len(part.targets), -1)[:, 0]
            )
        targets = [part.targets.to(task.device) for part in parts]
        classes = classes_of(parts)
        metric = TRANSFER_SETS[name].metric
        tried: dict[float, float] = {}
        for penalty, weight, bias in logistic_path(features[0], targets[0], classes, self.penalties):
            tried[penalty] = measure(metric, (features[1] @ weight.T + bias).cpu(), parts.validation.targets)
            task.progress(f"{name}: penalties", len(tried), len(self.penalties))
        best = max(tried, key=lambda penalty: (tried[penalty], penalty))
        learnt = torch.cat(features[:2]), torch.cat(targets[:2])
        ((_, weight, bias),) = logistic_path(*learnt, classes, [best])
        scores = (features[2] @ weight.T + bias).cpu()
        for what in parts._fields:
            task.pieces.drop(f"features-{name}-{what}")
        return measure(metric, scores, parts.test.targets), {"penalty": best, "validation": tried[best]}


def over_sets(
    protocol: str,
    sets: Sequence[str],
    root: str,
    download: bool,
    task: Task,
    measured: Callable[[str, Parts, Task], tuple[float, Mapping[str, Any]]],
) -> list[Figure]:
    """A figure for each set. All are opened before anything is measured, so that what is missing is said at once.

    Raises:
        UserError: a name is unknown, or a set is not there.
    """
    if unknown := [name for name in sets if name not in TRANSFER_SETS]:
        raise UserError(f"{protocol}: there is no set {unknown[0]}; choose one of {', '.join(TRANSFER_SETS)}")
    if not sets:
        raise UserError(f"{protocol}: sets is empty; choose one of {', '.join(TRANSFER_SETS)}")
    for name in sets:
        open_set(name, root, download, task.seed)
    found = []
    for name in sets:
        parts = open_set(name, root, False, task.seed)

        def piece(name: str = name, parts: Parts = parts) -> list[Any]:
            value, details = measured(name, parts, task)
            return [value, {**details, **{what: len(part.targets) for what, part in zip(IMAGES, parts, strict=True)}}]

        with of_set(name, Path(root).expanduser()):
            value, details = task.pieces.figures(name, piece)
        found.append(Figure(name, TRANSFER_SETS[name].metric, value, details=details))
    return found


def classes_of(parts: Parts) -> int:
    """How many classes there are."""
    if parts.train.targets.ndim == 2:
        return parts.train.targets.shape[1]
    return int(max(parts.train.targets.max(), parts.validation.targets.max())) + 1
