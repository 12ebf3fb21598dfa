import math

import pytest
import torch

from falseneg.errors import UserError
from falseneg.evaluation import knn, knn_accuracy


def by_loops(train, train_labels, test, test_labels, k, temperature):
    """Wu et al., 2018, one number at a time."""
    right = 0
    for image, label in zip(test.tolist(), test_labels.tolist(), strict=True):
        scores = []
        for other, name in zip(train.tolist(), train_labels.tolist(), strict=True):
            product = sum(a * b for a, b in zip(image, other, strict=True))
            scores.append((product / math.hypot(*image) / math.hypot(*other), name))
        votes = {}
        for cosine, name in sorted(scores, reverse=True)[:k]:
            votes[name] = votes.get(name, 0.0) + math.exp(cosine / temperature)
        right += max(votes, key=votes.__getitem__) == label
    return right / len(test)


def blobs(rows, classes=4, width=6, spread=1.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    return centres[labels] + spread * torch.randn(rows, width, generator=generator), labels


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (5, 0.1), (20, 0.1), (20, 1.0), (7, 0.02)])
def test_equals_plain_loops(k, temperature):
    train, test = blobs(60), blobs(40, seed=1)
    accuracy = knn_accuracy(*train, *test, k=k, temperature=temperature)
    assert accuracy == by_loops(*train, *test, k, temperature)
    assert 0.3 < accuracy < 1


def test_more_neighbours_than_images_means_all():
    train, test = blobs(12), blobs(40, seed=1)
    assert knn_accuracy(*train, *test, k=500) == knn_accuracy(*train, *test, k=12)


def test_tiles_do_not_change_the_figure(monkeypatch):
    train, test = blobs(60), blobs(40, seed=1)
    whole = knn_accuracy(*train, *test)
    monkeypatch.setattr(knn, "_TILE", 7 * 60)  # six tiles, the last of five rows
    assert knn_accuracy(*train, *test) == whole


def test_tiles_hold_a_bounded_number_of_similarities(monkeypatch):
    monkeypatch.setattr(knn, "_TILE", 300)
    sizes = []
    real = torch.Tensor.topk
    monkeypatch.setattr(torch.Tensor, "topk", lambda self, *a, **kw: sizes.append(self.numel()) or real(self, *a, **kw))
    knn_accuracy(*blobs(60), *blobs(40, seed=1))
    assert max(sizes) <= 300
    assert sum(sizes) == 60 * 40


def test_a_tiny_temperature_does_not_overflow():
    train, test = blobs(60), blobs(40, seed=1)
    assert knn_accuracy(*train, *test, temperature=1e-4) == knn_accuracy(*train, *test, k=1)


def test_labels_need_not_be_dense_and_unknown_classes_are_wrong():
    train, labels = blobs(60)
    test, test_labels = blobs(40, seed=1)
    spread = torch.tensor([3, 70, 71, 1000])
    plain = knn_accuracy(train, labels, test, test_labels)
    assert knn_accuracy(train, spread[labels], test, spread[test_labels]) == plain
    unknown = torch.full_like(test_labels, 5000)
    assert knn_accuracy(train, spread[labels], test, unknown) == 0
    assert knn_accuracy(train, spread[labels], test, torch.zeros_like(test_labels)) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": 0}, "k is 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"train": torch.full((60, 6), float("nan"))}, "train: the features of 60 of 60 images hold NaN"),
        ({"test": torch.full((40, 6), float("inf"))}, "test: the features of 40 of 40 images"),
        ({"train_labels": torch.ones(60, dtype=torch.int64)}, "one class"),
        ({"train_labels": torch.full((60,), -1)}, "60 of 60 images have no label"),
        ({"test": torch.zeros(40, 5)}, "6 dimensions and test features 5"),
        ({"test": torch.zeros(0, 6), "test_labels": torch.zeros(0)}, "at least one"),
        ({"test_labels": torch.zeros(3)}, "do not match"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(change, words):
    (train, train_labels), (test, test_labels) = blobs(60), blobs(40, seed=1)
    given = {"train": train, "train_labels": train_labels, "test": test, "test_labels": test_labels}
    with pytest.raises(UserError, match=words) as error:
        knn_accuracy(**given | change)
    assert "\n" not in str(error.value)
