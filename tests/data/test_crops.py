"""Multi-crop: groups of further views, each with its own number, size and scale."""

import pytest
import torch

from falseneg.data import Augmentation, Crops, Digits, Subset, ViewSet, collate
from falseneg.errors import UserError

STILL = {"crop_ratio": (1.0, 1.0), "flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
RICH = Augmentation(12, blur=0.5, solarize=0.3, rotation=10.0)


@pytest.fixture
def digits():
    return Subset(Digits(), range(10))


def view_set(images, *groups, views=2, main=RICH):
    further = [maker for crops in groups for maker in [main.for_crops(crops)] * crops.number]
    return ViewSet(images, {"image": [main] * views, "support": further}, 3)


def shapes(seen):
    return {name: views.shape for name, views in seen.streams.items()}


def test_groups_have_their_sizes_and_numbers(digits):
    sample = view_set(digits, Crops(3, 6), Crops(2, 4))[0, 5]
    assert shapes(sample) == {"image": (2, 3, 12, 12), "support": (3, 3, 6, 6), "support 2": (2, 3, 4, 4)}
    batch = collate([sample, view_set(digits, Crops(3, 6), Crops(2, 4))[0, 7]])
    assert shapes(batch) == {"image": (2, 2, 3, 12, 12), "support": (2, 3, 3, 6, 6), "support 2": (2, 2, 3, 4, 4)}
    assert [len(group) for group in batch[:1].sizes("support")] == [1, 1] and batch.sizes("text") == []


def test_what_has_one_size_goes_together_for_one_forward_pass(digits):
    few, many = Crops(1, 6, (0.1, 0.2)), Crops(2, 6, (0.4, 0.5))
    sample = view_set(digits, few, Crops(1, 4), many)[0, 5]
    assert shapes(sample) == {"image": (2, 3, 12, 12), "support": (3, 3, 6, 6), "support 2": (1, 3, 4, 4)}


def test_the_numbers_of_views_go_on_over_the_groups(digits):
    """A view depends on its number only: groups after it, or how many main views there are, do not change it."""
    both, alone = view_set(digits, Crops(3, 6), Crops(2, 4)), view_set(digits, Crops(3, 6), views=3)
    assert torch.equal(both[1, 5].streams["support"], alone[1, 5].streams["support"])
    split = view_set(digits, Crops(1, 6), Crops(2, 6), Crops(2, 4))
    for name, views in both[1, 5].streams.items():
        assert torch.equal(views, split[1, 5].streams[name])
    # With equal settings in both groups the fourth crop is the fourth: no number is used twice.
    crops = view_set(digits, Crops(3, 6), Crops(2, 6))[1, 5].streams["support"]
    assert torch.equal(crops, view_set(digits, Crops(5, 6))[1, 5].streams["support"])
    assert len({crop.numpy().tobytes() for crop in crops}) == 5


def test_the_scale_is_the_share_of_the_image():
    """Each pixel of this image shows its place: the crop's area is found from its corners."""
    side = 64
    ramp = torch.arange(side, dtype=torch.uint8) * 4
    image = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side), torch.zeros(side, side)])
    augmentation = Augmentation(side, **STILL).for_crops(Crops(1, 32, (0.20, 0.30)))
    for seed in range(20):
        torch.default_generator.manual_seed(seed)
        view = augmentation(image.to(torch.uint8)).float()
        width = (view[0, 16, -1] - view[0, 16, 0]) / 4 * 32 / 31
        assert 0.17 < float(width / side) ** 2 < 0.33


def test_all_else_is_as_in_the_main_views():
    main = Augmentation(blur=0.0, randaugment=(2, 9), hue=0.1)
    crops = main.for_size(96).for_crops(Crops(2, 32, (0.05, 0.14)))
    assert (crops.size, crops.crop_scale, crops.blur) == (32, (0.05, 0.14), 0.0)
    assert {**vars(crops), "size": 96, "crop_scale": main.crop_scale} == vars(main.for_size(96))
    assert main.size is None and main.crop_scale == (0.08, 1.0)


def test_blur_is_as_likely_as_in_the_main_views():
    """Small images are not blurred; small crops of large images are."""
    assert Augmentation().for_size(96).for_crops(Crops(1, 32)).blur == 0.5
    assert Augmentation().for_size(64).for_crops(Crops(1, 32)).blur == 0.0


@pytest.mark.parametrize(
    ("crops", "message"),
    [
        (Crops(0, 6), "number is 0; give at least 1"),
        (Crops(2, 1), "size is 1; give the side"),
        (Crops(2, 6, (0.0, 0.5)), r"scale is \[0.0, 0.5\]; give two shares"),
        (Crops(2, 6, (0.5, 0.2)), "scale is"),
        (Crops(2, 6, (0.5, 1.2)), "scale is"),
    ],
)
def test_bad_crops(crops, message):
    with pytest.raises(UserError, match=f"^multi_crop: {message}"):
        crops.check()
