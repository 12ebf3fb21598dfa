"""What is counted: top-k, mean per class, and the mean average precision of VOC 2007."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from falseneg.errors import UserError

TOP_1, TOP_5, PER_CLASS, MAP_11 = "top-1", "top-5", "mean per class", "11-point mAP"


def top_k(scores: Tensor, labels: Tensor, k: int) -> float:
    """The share of rows whose own class is among the k largest scores.

    Args:
        scores: (m, C).
        labels: (m,) int64; −1 is wrong whatever is predicted.
        k: at least 1; with fewer classes all count.
    """
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return float((best == labels[:, None]).any(dim=1).double().mean())


def mean_per_class(scores: Tensor, labels: Tensor) -> float:
    """The mean over the classes that occur of the share of their rows that are named correctly.

    Args:
        scores: (m, C).
        labels: (m,) int64 of at least 0.
    """
    right = (scores.argmax(dim=1) == labels).double()
    _, numbers, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    return float((torch.zeros(len(counts), dtype=torch.float64).index_add_(0, numbers, right) / counts).mean())


def average_precision_11(scores: Tensor, truth: Tensor, positives: int | None = None) -> float:
    """Average precision as VOC 2007 defines it (Everingham et al. 2010, section 4.2).

    The mean over the recalls 0, .1, …, 1 of the largest precision that is reached at that recall or a larger one. Of
    images with equal scores the first comes first, as in a stable sort.

    Args:
        scores: (m,) the larger, the surer.
        truth: (m,) 1 for images that show the class, −1 for those that do not, 0 for difficult ones, which do not count.
        positives: how many there are to be found, if more than those in ``truth``: detections may miss some.

    Returns:
        In [0, 1]; not-a-number where no image shows the class.
    """
    counted = truth != 0
    order = scores[counted].argsort(descending=True, stable=True)
    hits = (truth[counted][order] > 0).double().cumsum(0)
    positives = int((truth > 0).sum()) if positives is None else positives
    if not positives:
        return float("nan")
    precision = hits / torch.arange(1, len(hits) + 1)
    # Tenths of whole counts: 3 of 10 is recall .3, whatever floating point makes of it.
    reached = [precision[10 * hits >= tenth * positives] for tenth in range(11)]
    return sum(float(part.max()) if len(part) else 0.0 for part in reached) / 11


def mean_average_precision_11(scores: Tensor, truth: Tensor) -> float:
    """The mean of `average_precision_11` over the classes that some image shows.

    Args:
        scores: (m, C).
        truth: (m, C) as there.
    """
    columns = [c for c in range(truth.shape[1]) if bool((truth[:, c] > 0).any())]
    return sum(average_precision_11(scores[:, c], truth[:, c]) for c in columns) / len(columns)


def measure(metric: str, scores: Tensor, targets: Tensor) -> float:
    """The figure of that name of (m, C) scores."""
    if metric == MAP_11:
        return mean_average_precision_11(scores, targets)
    return (
        mean_per_class(scores, targets) if metric == PER_CLASS else top_k(scores, targets, 5 if metric == TOP_5 else 1)
    )


def classification_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over rows (nats).

    Args:
        scores: (B, C).
        targets: (B,) int64 classes, or (B, C) of −1, 0 and 1 where an image may show several: then the sum over the classes
            of the binary cross-entropy, without those that are 0.
    """
    if targets.ndim == 1:
        return F.cross_entropy(scores, targets)
    each = F.binary_cross_entropy_with_logits(scores, (targets > 0).to(scores.dtype), reduction="none")
    return (each * (targets != 0)).sum() / len(targets)


def check_same_classes(train: Tensor, test: Tensor) -> None:
    """Refuse test images of classes that are not learnt.

    Args:
        train: (n,) labels.
        test: (m,) labels.

    Raises:
        UserError: there is one.
    """
    known, asked = set(train.unique().tolist()), set(test.unique().tolist())
    if foreign := sorted(asked - known):
        raise UserError(
            f"the images to learn from have {len(known)} classes, and the test images show {len(foreign)} others "
            f"(number {foreign[0]} is one); give data of the same classes"
        )
