from types import SimpleNamespace

import pytest
import torch

from falseneg.contrast import Contrast, Embedded
from falseneg.evaluation import DetectionCounts
from falseneg.rules import AboveThreshold, NoPairs
from falseneg.statistics import confusion


def batch(seed, images=12, classes=3):
    generator = torch.Generator().manual_seed(seed)
    z = torch.nn.functional.normalize(torch.randn(images, 5, generator=generator), dim=1)
    labels = torch.randint(classes, (images,), generator=generator)
    rows = Embedded(z, torch.arange(images))
    return Contrast("views", rows, rows, torch.zeros(images, 1)), labels


def by_loops(batches, threshold):
    """Every pair of every batch, one at a time, in one pool."""
    right = flagged = same = pairs = 0
    for contrast, labels in batches:
        z = contrast.anchors.z
        for i in range(len(z)):
            for j in range(len(z)):
                if i != j:
                    is_flagged, is_same = bool(z[i] @ z[j] > threshold), bool(labels[i] == labels[j])
                    right, flagged = right + (is_flagged and is_same), flagged + is_flagged
                    same, pairs = same + is_same, pairs + 1
    return right, flagged, same, pairs


def test_pools_batches_and_equals_plain_loops():
    batches = [batch(seed, images) for seed, images in enumerate((12, 5, 20))]
    counts = DetectionCounts()
    for contrast, labels in batches:
        counts.add(confusion(contrast, AboveThreshold(torch.tensor(0.3)), labels))
    right, flagged, same, pairs = by_loops(batches, 0.3)
    precision, recall = right / flagged, right / same
    assert counts.figures() == pytest.approx(
        {
            "share_flagged": flagged / pairs,
            "precision": precision,
            "recall": recall,
            "f1": 2 * precision * recall / (precision + recall),
            "chance": same / pairs,
        }
    )
    assert 0 < counts.precision < 1 and 0 < counts.recall < 1


def test_a_detector_that_flags_nothing_is_not_flattered():
    contrast, labels = batch(0)
    counts = DetectionCounts()
    counts.add(confusion(contrast, NoPairs(), labels))
    assert counts.precision is None
    assert counts.recall == 0
    assert counts.f1 == 0
    assert counts.share_flagged == 0
    assert counts.chance > 0


def test_without_false_negatives_nothing_can_be_found():
    contrast, _ = batch(0)
    counts = DetectionCounts()
    counts.add(confusion(contrast, NoPairs(), torch.arange(12)))
    assert (counts.precision, counts.recall, counts.f1, counts.chance) == (None, None, None, 0)


def test_before_any_batch_every_figure_is_undefined():
    assert set(DetectionCounts().figures().values()) == {None}


def test_without_labels_only_the_share_flagged_is_known():
    counts = DetectionCounts()
    for _ in range(2):
        counts.add_unlabelled(SimpleNamespace(flagged=torch.tensor([1, 2, 0]), count=torch.tensor([10, 10, 10])))
    assert counts.share_flagged == 0.1
    assert (counts.precision, counts.recall, counts.f1, counts.chance) == (None, None, None, None)


def test_counts_wait_as_tensors_until_a_figure_is_asked_for():
    contrast, labels = batch(0)
    counts = DetectionCounts()
    counts.add(confusion(contrast, AboveThreshold(torch.tensor(0.3)), labels))
    assert all(isinstance(count, torch.Tensor) for count in vars(counts).values())
