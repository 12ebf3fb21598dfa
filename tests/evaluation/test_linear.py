import math

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from falseneg.errors import UserError
from falseneg.evaluation import linear_accuracy
from falseneg.evaluation.linear import Standard
from falseneg.evaluation.logistic import fit_logistic


@pytest.fixture(scope="module")
def digits():
    pixels, labels = load_digits(return_X_y=True)
    pixels, labels = torch.tensor(pixels, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return pixels[order[:700]], labels[order[:700]], pixels[order[700:1100]], labels[order[700:1100]]


def objective(features, labels, weight, bias, penalty):
    """The stated objective, one image at a time, in float64."""
    total = 0.0
    for x, label in zip(features.double(), labels.tolist(), strict=True):
        scores = (weight.double() @ x + bias.double()).tolist()
        largest = max(scores)
        total += largest + math.log(sum(math.exp(s - largest) for s in scores)) - scores[label]
    return total / len(labels) + penalty / 2 * sum(w * w for w in weight.double().flatten().tolist())


@pytest.mark.parametrize("rows", [700, 40])  # more images than dimensions, and fewer
def test_reaches_the_minimum_that_scikit_learn_finds(digits, rows):
    train, labels = Standard.of(digits[0])(digits[0][:rows]), digits[1][:rows]
    penalty = 0.01
    judge = LogisticRegression(C=1 / (rows * penalty), tol=1e-8, max_iter=5000).fit(train.double(), labels)
    theirs = objective(train, labels, torch.tensor(judge.coef_), torch.tensor(judge.intercept_), penalty)
    ours = objective(train, labels, *fit_logistic(train, labels, 10, penalty), penalty)
    assert theirs - 1e-9 <= ours < theirs + 2e-4


def test_accuracy_is_that_of_standardised_logistic_regression(digits):
    train, labels, test, test_labels = digits
    mean, sd = train.double().mean(0), train.double().std(0, correction=0)
    used = sd > 0
    judge = LogisticRegression(C=1 / (700 * 0.003), tol=1e-8, max_iter=5000)
    judge.fit(((train - mean) / sd)[:, used], labels)
    expected = judge.score(((test - mean) / sd)[:, used], test_labels)
    assert linear_accuracy(*digits) == pytest.approx(expected, abs=1 / 400)
    assert 0.9 < expected < 1


def test_does_not_depend_on_the_scale_of_features_nor_on_constant_ones(digits):
    train, labels, test, test_labels = digits
    plain = linear_accuracy(*digits)
    moved = linear_accuracy(train * 1000 - 7, labels, test * 1000 - 7, test_labels)
    assert moved == pytest.approx(plain, abs=1 / 400)
    constant = torch.full((700, 1), 0.1), torch.full((400, 1), 1e6)  # says nothing in training, so is ignored
    padded = linear_accuracy(torch.cat([train, constant[0]], 1), labels, torch.cat([test, constant[1]], 1), test_labels)
    assert padded == plain


def test_is_repeatable_and_works_while_gradients_are_off(digits):
    with torch.no_grad():
        first = linear_accuracy(*digits)
    assert linear_accuracy(*digits) == first


def test_a_collapsed_encoder_scores_the_largest_class():
    train = torch.ones(30, 4)
    labels = torch.tensor([0] * 20 + [1] * 10)
    assert linear_accuracy(train, labels, torch.ones(10, 4), torch.arange(10) % 2) == 0.5


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan")])
def test_penalty_must_be_above_zero(digits, penalty):
    with pytest.raises(UserError, match="penalty is"):
        linear_accuracy(*digits, penalty=penalty)


def test_one_class_is_refused(digits):
    train, labels, test, test_labels = digits
    with pytest.raises(UserError, match="one class"):
        linear_accuracy(train, torch.zeros_like(labels), test, test_labels)
