import pytest
import torch

from falseneg.data import ImageSet
from falseneg.errors import UserError
from falseneg.train.defaults import (
    Circumstances,
    complete,
    typical_side,
    usual_batch_size,
    usual_epochs,
    usual_image_size,
    usual_rate,
)
from falseneg.train.optimisers import SGD, AdamW


class Images(ImageSet):
    def __init__(self, sizes, unreadable=()):
        self.sizes, self.unreadable, self.opened = sizes, unreadable, 0

    def __len__(self):
        return len(self.sizes)

    def image(self, row):
        self.opened += 1
        if row in self.unreadable:
            raise UserError(f"image {row} cannot be read")
        return torch.zeros(3, *self.sizes[row], dtype=torch.uint8)


def open_settings():
    encoder = {"name": "resnet18", "image_size": None, "weights": None, "small_stem": None, "arguments": None}
    return {
        "method": {"class_path": "falseneg.SimCLR", "init_args": {"encoder": encoder, "head_hidden": None}},
        "augmentation": {"size": None, "blur": None},
        "support_augmentation": None,
        "batch_size": None,
        "epochs": None,
        "workers": None,
    }


@pytest.mark.parametrize(
    "side, on_cpu, on_gpu", [(5, 8, 8), (8, 8, 8), (28, 28, 28), (32, 32, 32), (62, 60, 60), (64, 64, 64)]
)
def test_small_images_are_used_as_they_are(side, on_cpu, on_gpu):
    assert usual_image_size(Circumstances(1000, side, False, 2)) == on_cpu
    assert usual_image_size(Circumstances(1000, side, True, 2)) == on_gpu


@pytest.mark.parametrize("side, on_cpu, on_gpu", [(65, 64, 64), (96, 96, 96), (200, 96, 192), (500, 96, 224)])
def test_larger_images_are_made_smaller(side, on_cpu, on_gpu):
    assert usual_image_size(Circumstances(1000, side, False, 2)) == on_cpu
    assert usual_image_size(Circumstances(1000, side, True, 2)) == on_gpu


@pytest.mark.parametrize(
    "images, on_cpu, on_gpu",
    [(2, 2, 2), (20, 10, 10), (100, 16, 16), (300, 32, 32), (1437, 128, 128), (5000, 256, 512), (10**6, 256, 512)],
)
def test_the_batch_suits_the_number_of_images(images, on_cpu, on_gpu):
    assert usual_batch_size(Circumstances(images, 32, False, 2)) == on_cpu
    assert usual_batch_size(Circumstances(images, 32, True, 2)) == on_gpu
    assert usual_batch_size(Circumstances(images, 224, True, 2)) <= 256


@pytest.mark.parametrize(
    "images, on_cpu, on_gpu", [(300, 400, 1000), (5000, 40, 1000), (50_000, 20, 200), (10**6, 20, 100)]
)
def test_few_images_are_shown_more_often(images, on_cpu, on_gpu):
    assert usual_epochs(Circumstances(images, 32, False, 2)) == on_cpu
    assert usual_epochs(Circumstances(images, 32, True, 2)) == on_gpu


@pytest.mark.parametrize("images, on_cpu, on_gpu", [(300, 40, 100), (5000, 4, 100), (10**6, 2, 10)])
def test_given_weights_are_trained_for_a_tenth_of_the_epochs(images, on_cpu, on_gpu):
    assert usual_epochs(Circumstances(images, 32, False, 2, weights=True)) == on_cpu
    assert usual_epochs(Circumstances(images, 32, True, 2, weights=True)) == on_gpu


@pytest.mark.parametrize("optimiser", [AdamW(), SGD()])
def test_given_weights_are_trained_at_a_tenth_of_the_rate(optimiser):
    rate = optimiser.usual_rate(64)
    assert usual_rate(optimiser, 64, weights=False) == rate
    assert usual_rate(optimiser, 64, weights=True) == pytest.approx(rate / 10)


def test_everything_open_is_filled_in_and_nothing_else():
    settings = open_settings()
    result = complete(settings, Circumstances(5000, 32, False, 4))
    encoder = result["method"]["init_args"]["encoder"]
    assert (encoder["image_size"], encoder["arguments"]) == (32, {"channels": [32, 64, 128, 256]})
    assert result["augmentation"] == {"size": 32, "blur": 0.0}
    assert (result["batch_size"], result["epochs"], result["workers"]) == (256, 40, 3)
    assert result["support_augmentation"] is None
    assert settings == open_settings()


def test_what_was_given_stays():
    settings = open_settings() | {"batch_size": 7, "epochs": 3, "workers": 1}
    settings["method"]["init_args"]["encoder"] |= {"image_size": 48, "arguments": {"drop_rate": 0.1}}
    result = complete(settings, Circumstances(5000, 200, False, 4))
    assert (result["batch_size"], result["epochs"], result["workers"]) == (7, 3, 1)
    assert result["method"]["init_args"]["encoder"]["arguments"] == {"drop_rate": 0.1}
    assert result["augmentation"]["size"] == 48


def test_the_size_of_the_views_gives_the_size_of_the_encoder():
    settings = open_settings()
    settings["augmentation"]["size"] = 40
    assert complete(settings, Circumstances(100, 200, True, 4))["method"]["init_args"]["encoder"]["image_size"] == 40


def test_the_backbone_stays_whole_on_a_gpu_and_with_weights():
    assert (
        complete(open_settings(), Circumstances(100, 32, True, 4))["method"]["init_args"]["encoder"]["arguments"]
        is None
    )
    settings = open_settings()
    settings["method"]["init_args"]["encoder"]["weights"] = "pretrained"
    assert complete(settings, Circumstances(100, 32, False, 4))["method"]["init_args"]["encoder"]["arguments"] is None


def test_a_method_without_these_settings_is_left_alone():
    settings = open_settings() | {"method": {"class_path": "mine.Method", "init_args": {"width": None}}}
    assert complete(settings, Circumstances(100, 32, False, 4))["method"]["init_args"] == {"width": None}


def test_the_typical_side_is_the_median_of_the_shorter():
    assert typical_side(Images([(10, 30), (50, 20), (40, 90)])) == 20


def test_a_large_set_is_looked_at_here_and_there():
    images = Images([(10, 10)] * 5000)
    assert typical_side(images) == 10
    assert images.opened < 100


def test_an_unreadable_image_is_left_to_the_inspection():
    assert typical_side(Images([(10, 10), (12, 12)], unreadable={0})) == 12
    with pytest.raises(UserError, match="image 1"):
        typical_side(Images([(10, 10), (12, 12)], unreadable={0, 1}))
    with pytest.raises(UserError, match="no images"):
        typical_side(Images([]))
