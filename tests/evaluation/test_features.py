import os
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import get_worker_info

from falseneg.data.image_set import ImageSet
from falseneg.errors import UserError
from falseneg.evaluation import Split, evaluate, evaluate_features, evaluations_of, extract_features, few_label_accuracy


class Squares(ImageSet):
    """Squares whose colour is their class, with a little noise."""

    def __init__(self, labels, seed=0, size=8):
        generator = torch.Generator().manual_seed(seed)
        self.labels = None if labels is None else torch.as_tensor(labels)
        colours = torch.eye(3)[[0] * 30 if labels is None else self.labels.clamp(min=0)]
        noise = torch.randint(0, 50, (len(colours), 3, size, size), generator=generator)
        self.images = (200 * colours[:, :, None, None] + noise).to(torch.uint8)

    def __len__(self):
        return len(self.images)

    def image(self, row):
        return self.images[row]

    def describe(self, row):
        return f"square {row}"


class Probe(nn.Module):
    """Remembers what it saw; a batch norm and a frozen one have modes to be put back."""

    def __init__(self):
        super().__init__()
        self.norm, self.frozen = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.frozen.eval()
        self.seen = []

    def forward(self, images):
        self.seen.append((images.dtype, tuple(images.shape), self.training, torch.is_grad_enabled()))
        return self.frozen(self.norm(images.float() / 255)).mean(dim=(2, 3))


def test_features_come_in_order_in_evaluation_mode_and_the_mode_is_put_back():
    images, encoder = Squares([0, 1, 2] * 5), Probe()
    before = encoder.norm.running_mean.clone()
    progress = []
    features = extract_features(
        encoder, images, 8, batch_size=4, progress=lambda done, total: progress.append((done, total))
    )
    expected = torch.stack([images.image(row).float().mean(dim=(1, 2)) / 255 for row in range(15)])
    torch.testing.assert_close(features, expected / (1 + 1e-5), rtol=1e-4, atol=1e-5)
    assert features.dtype == torch.float32 and not features.requires_grad
    assert [shape for _, shape, _, _ in encoder.seen] == [(4, 3, 8, 8)] * 3 + [(3, 3, 8, 8)]
    assert {(dtype, training, gradient) for dtype, _, training, gradient in encoder.seen} == {
        (torch.uint8, False, False)
    }
    assert encoder.training and encoder.norm.training and not encoder.frozen.training
    assert torch.equal(encoder.norm.running_mean, before)
    assert progress == [(4, 15), (8, 15), (12, 15), (15, 15)]


def test_the_mode_is_put_back_after_an_error():
    class Broken(Squares):
        def image(self, row):
            raise UserError("square 3 cannot be read")

    encoder = Probe()
    with pytest.raises(UserError, match="square 3"):
        extract_features(encoder, Broken([0, 1]), 8)
    assert encoder.training and not encoder.frozen.training


@pytest.mark.parametrize("workers", [0, 1])
def test_measuring_moves_no_global_random_state_and_workers_do_not_matter(workers):
    images = Squares([0, 1, 2] * 5)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    features = extract_features(Probe(), images, 8, batch_size=4, workers=workers)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(features, extract_features(Probe(), images, 8))


def test_images_take_the_asked_size():
    encoder = Probe()
    extract_features(encoder, Squares([0, 1], size=12), 8)
    assert encoder.seen[0][1] == (2, 3, 8, 8)


def test_an_empty_set_is_refused():
    with pytest.raises(UserError, match="empty"):
        extract_features(Probe(), Squares(torch.zeros(0, dtype=torch.int64)), 8)


def test_evaluate_gives_every_figure_and_leaves_unlabelled_images_out():
    train = Squares([0, 1, 2, -1] * 8)
    test = Squares([0, 1, 2, -1] * 5, seed=1)
    progress = []
    figures = evaluate(Probe(), train, test, 8, progress=lambda done, total: progress.append((done, total)))
    assert figures == {"knn": 1.0, "linear": 1.0, "few_label": 1.0, "few_label_sd": 0.0}
    assert progress == [(24, 39), (39, 39)]


def test_few_label_is_blank_where_a_class_is_too_small():
    labels = torch.tensor([0] * 20 + [1] * 4)
    features = torch.randn(24, 3, generator=torch.Generator().manual_seed(0)) + 5 * labels[:, None]
    split = Split(features, labels, features, labels)
    figures = evaluate_features(split)
    assert figures["few_label"] is None and figures["few_label_sd"] is None
    assert figures["linear"] > 0.9
    fewer = evaluate_features(split, 3, evaluations_of(2, 4))
    expected = few_label_accuracy(features, labels, features, labels, per_class=2, draws=4, seed=3)
    assert (fewer["few_label"], fewer["few_label_sd"]) == (expected.mean, expected.sd)


def test_evaluate_needs_labels():
    with pytest.raises(UserError, match="test: the images have no labels"):
        evaluate(Probe(), Squares([0, 1] * 10), Squares(None), 8)


class Deadly(Squares):
    def image(self, row):
        if row == 5 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().image(row)


def test_a_worker_that_is_killed_is_one_sentence():
    with pytest.raises(UserError, match="a data-loading process was killed.*use fewer workers") as error:
        extract_features(Probe(), Deadly([0, 1] * 5), 8, batch_size=4, workers=2)
    assert "\n" not in str(error.value)


class Unreadable(Squares):
    def image(self, row):
        if row == 5:
            raise UserError("square 5 cannot be read")
        return super().image(row)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_its_own_sentence(workers):
    with pytest.raises(UserError) as error:
        extract_features(Probe(), Unreadable([0, 1] * 5), 8, batch_size=4, workers=workers)
    assert str(error.value) == "square 5 cannot be read"


def test_full_shared_memory_is_one_sentence(monkeypatch):
    def full(tensor):
        raise RuntimeError("unable to write to file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(UserError, match=r"shared memory \(/dev/shm\), through which .* is full: enlarge it"):
        extract_features(Probe(), Squares([0, 1] * 5), 8, batch_size=4, workers=1)
