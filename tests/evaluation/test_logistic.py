"""Logistic regression over many penalties against scikit-learn's on the same features."""

import itertools

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from falseneg.evaluation.logistic import fit_logistic, logistic_path
from falseneg.evaluation.metrics import classification_loss
from falseneg.evaluation.transfer import PENALTIES


@pytest.fixture(scope="module")
def digits():
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.tensor(pixels, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]


def value(features, targets, weight, bias, penalty):
    """The stated objective, in float64."""
    scores = features.double() @ weight.double().T + bias.double()
    return float(classification_loss(scores, targets) * len(features) + penalty / 2 * weight.double().square().sum())


def test_45_penalties_evenly_spread():
    assert len(PENALTIES) == 45 and min(PENALTIES) == pytest.approx(1e-6) and max(PENALTIES) == pytest.approx(1e5)
    steps = {round(b / a, 6) for a, b in itertools.pairwise(PENALTIES)}
    assert steps == {round(10 ** (11 / 44), 6)}


def test_every_penalty_reaches_scikit_learns_minimum(digits):
    train, labels, test = digits[0][:500], digits[1][:500], digits[0][500:]
    for penalty, weight, bias in logistic_path(train, labels, 10, [1e5, 100.0, 1.0, 0.01]):
        judge = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=20_000).fit(train.double(), labels)
        theirs = value(train, labels, torch.tensor(judge.coef_), torch.tensor(judge.intercept_), penalty)
        ours = value(train, labels, weight, bias, penalty)
        assert theirs - 1e-3 <= ours < theirs + 0.005, penalty  # 1e-5 nats for each of the 500 images
        expected = torch.tensor(judge.predict_proba(test.double()))
        # The smaller the penalty, the flatter the loss around its minimum, and the less float32 knows of it.
        atol = 0.001 if penalty >= 1 else 0.02
        assert torch.allclose((test @ weight.T + bias).softmax(1).double(), expected, atol=atol), penalty
        same = (test @ weight.T + bias).argmax(1) == torch.tensor(judge.predict(test.double()))
        assert float(same.double().mean()) > 0.997, penalty


def test_penalties_come_from_the_largest_and_warm_starts_change_nothing(digits):
    features, labels = digits[0][:300], digits[1][:300]
    path = list(logistic_path(features, labels, 10, [0.1, 10.0, 1.0]))
    assert [penalty for penalty, _, _ in path] == [10.0, 1.0, 0.1]
    for penalty, weight, bias in path:
        ((_, alone, alone_bias),) = logistic_path(features, labels, 10, [penalty])
        here, there = (value(features, labels, *each, penalty) for each in ((weight, bias), (alone, alone_bias)))
        assert here == pytest.approx(there, abs=0.01)


def test_a_constant_that_is_added_to_features_changes_nothing(digits):
    features, labels = digits[0][:300], digits[1][:300]
    ((_, weight, bias),) = logistic_path(features, labels, 10, [1.0])
    ((_, moved, moved_bias),) = logistic_path(features + 3.0, labels, 10, [1.0])
    assert torch.allclose(features @ weight.T + bias, (features + 3) @ moved.T + moved_bias, atol=2e-2)


def test_several_classes_at_once_are_as_many_binary_regressions(digits):
    features, labels = digits[0][:400], digits[1][:400]
    targets = torch.stack([2 * (labels % (c + 2) == 0).long() - 1 for c in range(3)], dim=1)
    targets[::7, 1] = 0  # difficult: left out for that class
    ((_, weight, bias),) = logistic_path(features, targets, 3, [1.0], tolerance=1e-5)
    for c in range(3):
        used = targets[:, c] != 0
        judge = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(features[used].double(), targets[used, c])
        expected = torch.tensor(judge.decision_function(features.double()))
        assert torch.allclose((features @ weight[c] + bias[c]).double(), expected, atol=0.02)


def test_one_penalty_alone_is_on_the_mean(digits):
    features, labels = digits[0][:300] - digits[0][:300].mean(0), digits[1][:300]
    weight, bias = fit_logistic(features, labels, 10, 0.01, tolerance=1e-5)
    ((_, same, same_bias),) = logistic_path(features, labels, 10, [3.0], tolerance=1e-5)
    assert torch.allclose(features @ weight.T + bias, features @ same.T + same_bias, atol=1e-2)
