import statistics

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from falseneg.errors import UserError
from falseneg.evaluation import few_label_accuracy
from falseneg.evaluation.few_label import draw_rows


def blobs(rows, classes=3, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    return centres[labels] + 1.5 * torch.randn(rows, width, generator=generator), labels


def test_draws_the_asked_number_of_each_class_without_repetition():
    labels = torch.tensor([2, 0, 1, 1, 2, 0, 0, 2, 1, 0, 2, 1, 1])
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(60):
        rows = draw_rows(labels, 3, generator).tolist()
        assert rows == sorted(set(rows))
        assert [labels[rows].tolist().count(c) for c in range(3)] == [3, 3, 3]
        seen.update(rows)
    assert seen == set(range(13))  # no image is out of reach


def test_equals_scikit_learn_on_the_same_draws():
    train, labels = blobs(90)
    test, test_labels = blobs(120, seed=1)
    ours = few_label_accuracy(train, labels, test, test_labels, per_class=4, draws=6, seed=3)
    mean, sd = train.double().mean(0), train.double().std(0, correction=0)
    generator = torch.Generator().manual_seed(3)
    expected = []
    for _ in range(6):
        rows = draw_rows(labels, 4, generator)
        judge = LogisticRegression(C=1 / (12 * 1.0), tol=1e-8, max_iter=1000)
        judge.fit((train[rows] - mean) / sd, labels[rows])
        expected.append(judge.score((test - mean) / sd, test_labels))
    assert ours.each == pytest.approx(expected, abs=1 / 120)
    assert ours.mean == pytest.approx(sum(ours.each) / 6)
    assert ours.sd == pytest.approx(statistics.stdev(ours.each))
    assert ours.sd > 0


def test_the_seed_decides_the_draws_whatever_the_features():
    train, test = blobs(90), blobs(60, seed=1)
    first = few_label_accuracy(*train, *test, draws=5, seed=0)
    assert few_label_accuracy(*train, *test, draws=5, seed=0) == first
    assert few_label_accuracy(*train, *test, draws=5, seed=1) != first


def test_more_labels_help():
    train, test = blobs(300), blobs(300, seed=1)
    assert few_label_accuracy(*train, *test, per_class=80).mean > few_label_accuracy(*train, *test, per_class=1).mean


def test_one_draw_has_no_deviation():
    assert few_label_accuracy(*blobs(90), *blobs(60, seed=1), draws=1).sd is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"per_class": 31}, "class 0 has 30 labelled training images, fewer than the 31"),
        ({"per_class": 0}, "per_class is 0"),
        ({"draws": 0}, "draws is 0"),
        ({"penalty": 0.0}, "penalty is 0.0"),
    ],
)
def test_bad_numbers_are_refused_in_one_sentence(change, words):
    with pytest.raises(UserError, match=words):
        few_label_accuracy(*blobs(90), *blobs(60, seed=1), **change)
