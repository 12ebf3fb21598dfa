"""How good an encoder's features are, and how well false negatives are detected.

Functions of features take all four tensors on one device, whichever that is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from falseneg.evaluation.base import Evaluation, Figure, Measure, Protocol, Split, Task
from falseneg.evaluation.checks import check_split
from falseneg.evaluation.false_negatives import DetectionCounts
from falseneg.evaluation.feature_table import FeatureTable
from falseneg.evaluation.features import evaluation_mode, extract_features
from falseneg.evaluation.few_label import FewLabel, few_label_accuracy
from falseneg.evaluation.few_label_curve import FewLabelCurve
from falseneg.evaluation.fine_tuning import FineTuning
from falseneg.evaluation.groups import group_figures
from falseneg.evaluation.knn import KNN, NearestNeighbours, knn_accuracy
from falseneg.evaluation.label_fractions import LabelFractions
from falseneg.evaluation.linear import Linear, linear_accuracy
from falseneg.evaluation.linear_evaluation import LinearEvaluation
from falseneg.evaluation.pairs import PAIR_EVALUATIONS, PairSplit, Retrieval, ZeroShot, pair_figures, pair_split
from falseneg.evaluation.parts import labelled
from falseneg.evaluation.semi_supervised import SemiSupervised
from falseneg.evaluation.transfer import Transfer
from falseneg.evaluation.voc_detection import VocDetection

if TYPE_CHECKING:
    from falseneg.data.image_set import ImageSet

__all__ = [
    "EVALUATIONS",
    "KNN",
    "MEASURES",
    "PAIR_EVALUATIONS",
    "PROTOCOLS",
    "DetectionCounts",
    "Evaluation",
    "FeatureTable",
    "FewLabel",
    "FewLabelCurve",
    "Figure",
    "FineTuning",
    "LabelFractions",
    "Linear",
    "LinearEvaluation",
    "Measure",
    "NearestNeighbours",
    "PairSplit",
    "Protocol",
    "Retrieval",
    "SemiSupervised",
    "Split",
    "Task",
    "Transfer",
    "VocDetection",
    "ZeroShot",
    "check_split",
    "evaluate",
    "evaluate_features",
    "evaluation_mode",
    "evaluations_of",
    "extract_features",
    "features_of",
    "few_label_accuracy",
    "group_figures",
    "knn_accuracy",
    "linear_accuracy",
    "pair_figures",
    "pair_split",
]

PROTOCOLS: dict[str, type[Protocol]] = {
    each.name: each
    for each in (
        NearestNeighbours,
        LinearEvaluation,
        FewLabelCurve,
        LabelFractions,
        SemiSupervised,
        Transfer,
        FineTuning,
        VocDetection,
        FeatureTable,
    )
}
"""What `falseneg evaluate --protocol` knows by name. A further one is its file and its place here."""

EVALUATIONS: tuple[Evaluation, ...] = (KNN(), Linear(), FewLabel())
"""What is measured of every encoder, with usual settings. A further one is its file and its place here."""


MEASURES: tuple[Measure, ...] = (*EVALUATIONS, *PAIR_EVALUATIONS)
"""Whatever may stand among the figures of a run."""


def evaluations_of(few_labels: int, few_label_draws: int) -> list[Evaluation]:
    """`EVALUATIONS`, with that many labelled images of each class for few-label accuracy, drawn that many times."""
    few = FewLabel(few_labels, few_label_draws)
    return [few if isinstance(each, FewLabel) else each for each in EVALUATIONS]


def evaluate(
    encoder: nn.Module,
    train_set: ImageSet,
    test_set: ImageSet,
    size: int,
    device: torch.device | str = "cpu",
    workers: int = 0,
    seed: int = 0,
    evaluations: Sequence[Evaluation] = EVALUATIONS,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float | None]:
    """Figures of an encoder on frozen features; the encoder as it is, no epoch is chosen.

    Images without a label are left out. Labels of ``test_set`` are used to count, never to choose anything.

    Args:
        encoder: (B, 3, size, size) uint8 images to (B, F) features; it lies on ``device`` already.
        train_set: labelled images to learn classifiers from.
        test_set: labelled images to measure on.
        size: side of the square that each image becomes, in pixels.
        device: where the encoder lies.
        workers: processes that read images; 0 reads in this one.
        seed: of what the evaluations draw.
        evaluations: what is measured.
        progress: called with the images done and the images in all, over both sets.

    Returns:
        See `evaluate_features`.

    Raises:
        UserError: a data set has no labels, or the features cannot be measured (`check_split`).
    """
    split = features_of(encoder, train_set, test_set, size, device, workers, progress)
    return evaluate_features(split, seed, evaluations)


def features_of(
    encoder: nn.Module,
    train_set: ImageSet,
    test_set: ImageSet,
    size: int,
    device: torch.device | str = "cpu",
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Split:
    """Features and labels of the labelled images of both sets; the arguments are those of `evaluate`.

    Raises:
        UserError: a data set has no labels, or an image cannot be read.
    """
    parts = [labelled("train", train_set), labelled("test", test_set)]
    total, before = sum(len(part) for part, _ in parts), 0
    found: list[Tensor] = []
    for part, labels in parts:

        def shifted(done: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, total)

        found += [extract_features(encoder, part, size, device=device, progress=shifted, workers=workers), labels]
        before += len(part)
    return Split(*found)


def evaluate_features(
    split: Split, seed: int = 0, evaluations: Sequence[Evaluation] = EVALUATIONS
) -> dict[str, float | None]:
    """All figures of features, each by the protocol and the fixed settings of its evaluation.

    Returns:
        By the keys of the evaluations, such as "knn", "linear", "few_label" with "few_label_sd" over its draws; shares in
        [0, 1], None where the labels do not allow them.

    Raises:
        UserError: the features cannot be measured (`check_split`).
    """
    check_split(*split)
    figures: dict[str, float | None] = {}
    for evaluation in evaluations:
        figures |= evaluation.figures(split, seed)
    return figures
