import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from falseneg.errors import UserError
from falseneg.evaluation.metrics import (
    average_precision_11,
    check_same_classes,
    classification_loss,
    mean_average_precision_11,
    mean_per_class,
    measure,
    top_k,
)


@pytest.fixture
def scores():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(200, 7, generator=generator), torch.randint(0, 7, (200,), generator=generator)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_is_scikit_learns(scores, k):
    assert top_k(*scores, k) == pytest.approx(top_k_accuracy_score(scores[1], scores[0], k=k, labels=range(7)))


def test_top_k_of_few_classes_and_of_foreign_labels(scores):
    assert top_k(scores[0][:, :3], torch.zeros(200, dtype=torch.int64), 5) == 1.0
    assert top_k(scores[0], torch.full((200,), -1), 5) == 0.0


def test_mean_per_class_is_the_balanced_accuracy(scores):
    values, labels = scores[0][:, :5], torch.where(scores[1] > 4, 0, scores[1])  # uneven classes
    expected = balanced_accuracy_score(labels, values.argmax(1))
    assert mean_per_class(values, labels) == pytest.approx(expected)
    assert mean_per_class(values, labels) != pytest.approx(top_k(values, labels, 1), abs=1e-4)
    few = labels < 3  # classes without images do not count
    few_scores = values[few][:, :3]
    expected = balanced_accuracy_score(labels[few], few_scores.argmax(1))
    assert mean_per_class(torch.cat([few_scores, few_scores[:, :1] - 9], 1), labels[few]) == pytest.approx(expected)


def test_average_precision_by_hand():
    """Ranked: hit, miss, hit, (difficult), miss, hit. Precision 1 up to recall 1/3, 2/3 up to 2/3, 3/5 up to 1."""
    scores = torch.tensor([0.9, 0.8, 0.7, 0.65, 0.6, 0.5])
    truth = torch.tensor([1, -1, 1, 0, -1, 1])
    # recalls 0, .1, .2, .3 | .4, .5, .6 | .7, .8, .9, 1
    expected = (4 * 1.0 + 3 * 2 / 3 + 4 * 3 / 5) / 11
    assert average_precision_11(scores, truth) == pytest.approx(expected)
    assert average_precision_11(scores.flip(0), truth.flip(0)) == pytest.approx(expected)


def development_kit(scores, truth):
    """VOCevalcls.m: out, then rec, prec, and the largest precision beyond each of t = 0:0.1:1."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    tp = fp = 0
    curve = []
    positives = sum(1 for t in truth if t > 0)
    for i in order:
        tp, fp = tp + (truth[i] > 0), fp + (truth[i] < 0)
        if tp + fp:
            curve.append((tp / positives, tp / (fp + tp)))
    ap = 0.0
    for tenth in range(11):
        ap += max([p for r, p in curve if r >= tenth / 10 - 1e-12], default=0.0) / 11
    return ap


@pytest.mark.parametrize("seed", range(20))
def test_average_precision_is_the_development_kits(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(30 + seed, generator=generator)
    truth = torch.randint(-1, 2, scores.shape, generator=generator)
    truth[0] = 1
    assert average_precision_11(scores, truth) == pytest.approx(development_kit(scores.tolist(), truth.tolist()))


def test_recalls_that_are_tenths_are_reached():
    """With ten images of a class, recall .3 is 3 of 10, which floating point puts a little beside .3."""
    truth = torch.tensor([1, 1, 1] + [-1] * 7 + [1] * 7)
    scores = torch.arange(17, 0, -1).float()
    assert average_precision_11(scores, truth) == pytest.approx((4 * 1.0 + 7 * 10 / 17) / 11)


def test_the_mean_leaves_classes_out_that_nobody_shows():
    scores, truth = torch.tensor([[0.9, 0.1], [0.2, 0.3]]), torch.tensor([[1, -1], [-1, -1]])
    assert mean_average_precision_11(scores, truth) == measure("11-point mAP", scores, truth) == 1.0
    assert math.isnan(average_precision_11(scores[:, 1], truth[:, 1]))


def test_the_loss_of_several_classes_leaves_difficult_ones_out():
    scores, targets = torch.randn(4, 3), torch.tensor([[1, -1, 0], [0, 0, 0], [-1, 1, 1], [1, 1, -1]])
    total = 0.0
    for row in range(4):
        for column in range(3):
            if targets[row, column] != 0:
                total += float(F.softplus(-scores[row, column] * targets[row, column]))
    assert float(classification_loss(scores, targets)) == pytest.approx(total / 4)
    labels = torch.tensor([0, 2, 1, 1])
    assert torch.equal(classification_loss(scores, labels), F.cross_entropy(scores, labels))


def test_test_classes_that_nobody_teaches_are_refused():
    check_same_classes(torch.tensor([0, 1, 2]), torch.tensor([2, 0]))
    with pytest.raises(UserError, match="have 2 classes, and the test images show 1 others .number 5"):
        check_same_classes(torch.tensor([0, 1, 1]), torch.tensor([5, 0]))
