import itertools
import statistics
from collections import Counter

import pytest
import torch
import yaml
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2
from torchvision.transforms.v2 import functional
from torchvision.transforms.v2.functional import resized_crop_image

from falseneg.cli.recipes import FOLDER
from falseneg.data import Augmentation, evaluation_view, view_generator_seed
from falseneg.data.views import crop_box
from falseneg.errors import UserError

STILL = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0}


@pytest.fixture
def image():
    return torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def seeded(augmentation, image, seed):
    torch.default_generator.manual_seed(seed)
    return augmentation(image)


def test_seed_is_a_pure_function_and_differs_in_every_argument():
    arguments = [(s, e, r, v) for s in (0, 1) for e in (0, 1) for r in (0, 1, 2**40) for v in (-2, -1, 0, 1)]
    seeds = [view_generator_seed(*each) for each in arguments]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [view_generator_seed(*each) for each in arguments]
    assert (view_generator_seed(0, 0, 0, 0), view_generator_seed(7, 3, 1234, -2)) == (
        11619761522075635141,
        11194349963994654077,
    )  # for ever
    low_bits = {seed & 0xFFFFFFFF for seed in seeds}  # all that torch's CPU generator uses of a seed
    assert len(low_bits) == len(seeds)


def test_nothing_random_switched_on_is_the_image(image):
    assert torch.equal(Augmentation(16, **STILL)(image), image)


@pytest.mark.parametrize(
    "option",
    [
        {"flip": 1.0},
        {"jitter": 1.0},
        {"grayscale": 1.0},
        {"blur": 1.0},
        {"solarize": 1.0},
        {"randaugment": (2, 20)},
        {"rotation": 30.0},
        {"translate": 0.4},
        {"crop_scale": (0.2, 0.3)},
    ],
)
def test_every_option_does_something_and_is_a_function_of_the_seed(image, option):
    augmentation = Augmentation(16, **(STILL | option))
    for seed in range(5):
        view = seeded(augmentation, image, seed)
        assert view.dtype == torch.uint8 and view.shape == (3, 16, 16) and view.is_contiguous()
        assert torch.equal(view, seeded(augmentation, image, seed))
    assert any(not torch.equal(seeded(augmentation, image, seed), image) for seed in range(5))


def test_the_magnitude_of_randaugment_is_on_a_scale_of_30(monkeypatch):
    """FNC's 7 on TensorFlow's scale of 10 is a rotation by 21 degrees."""
    monkeypatch.setattr(v2.RandAugment, "_AUGMENTATION_SPACE", {"Rotate": v2.RandAugment._AUGMENTATION_SPACE["Rotate"]})
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    rotated = [functional.rotate_image(image, angle, InterpolationMode.BILINEAR) for angle in (21.0, -21.0)]
    recipe = yaml.safe_load((FOLDER / "fnc/imagenet.yaml").read_text())["augmentation"]["randaugment"]
    view = Augmentation(32, **(STILL | {"randaugment": (1, recipe[1])}))(image)
    assert any(torch.equal(view, expected) for expected in rotated)


def test_flip_grey_and_solarize_are_what_they_say(image):
    assert torch.equal(Augmentation(16, **(STILL | {"flip": 1.0}))(image), image.flip(-1))
    grey = Augmentation(16, **(STILL | {"grayscale": 1.0}))(image)
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[1], grey[2])
    inverted = Augmentation(16, **(STILL | {"solarize": 1.0}))(image)
    assert torch.equal(inverted, torch.where(image >= 128, 255 - image, image))


def test_probabilities_are_kept(image):
    augmentation = Augmentation(16, **(STILL | {"flip": 0.3, "grayscale": 0.0, "solarize": 0.0}))
    flipped = sum(torch.equal(seeded(augmentation, image, seed), image.flip(-1)) for seed in range(2000))
    assert abs(flipped / 2000 - 0.3) < 0.04


def test_one_option_does_not_shift_the_draws_of_another(image):
    for option in ({"flip": 1.0}, {"jitter": 1.0, "hue": 0.0}, {"rotation": 1e-9}):
        plain = Augmentation(16, **(STILL | {"solarize": 0.5}))
        more = Augmentation(16, **(STILL | {"solarize": 0.5, "brightness": 0, "contrast": 0, "saturation": 0} | option))
        for seed in range(10):
            solarized = not torch.equal(seeded(plain, image, seed), image)
            view = seeded(more, image, seed)
            view = view.flip(-1) if "flip" in option else view
            assert torch.equal(view, image) != solarized


@pytest.mark.parametrize(
    ("first", "second"), list(itertools.combinations(["flip", "jitter", "grayscale", "solarize", "blur"], 2))
)
def test_what_happens_to_a_view_is_independent(image, first, second):
    def view(seed, **options):
        return seeded(Augmentation(16, **(STILL | options)), image, seed)

    seen = Counter()
    for seed in range(200):
        both = view(seed, **{first: 0.5, second: 0.5})
        alone = [both.equal(image), both.equal(view(seed, **{first: 1.0})), both.equal(view(seed, **{second: 1.0}))]
        seen[alone.index(True) if any(alone) else 3] += 1
    assert all(25 < seen[each] < 80 for each in range(4))


def test_crops_are_distributed_as_torchvisions():
    scale, ratio, height, width = (0.08, 1.0), (3 / 4, 4 / 3), 60, 90
    ours, theirs = [], []
    picture = torch.zeros(3, height, width)
    torch.manual_seed(0)
    for _ in range(3000):
        top, left, h, w = crop_box(height, width, scale, ratio, torch.rand(22).tolist())
        assert 0 <= top <= height - h and 0 <= left <= width - w and h > 0 and w > 0
        ours.append((top + h / 2, left + w / 2, h * w, w / h))
        top, left, h, w = RandomResizedCrop.get_params(picture, scale, ratio)
        theirs.append((top + h / 2, left + w / 2, h * w, w / h))
    for mine, other in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        error = statistics.stdev(other) / 3000**0.5
        assert abs(statistics.mean(mine) - statistics.mean(other)) < 6 * error
        assert abs(statistics.stdev(mine) / statistics.stdev(other) - 1) < 0.08


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [9, 24, 60])
@pytest.mark.parametrize("bicubic", [False, True])
def test_crops_are_resized_as_torchvision_does_it(layout, size, bicubic):
    mode = InterpolationMode.BICUBIC if bicubic else InterpolationMode.BILINEAR
    draw = torch.Generator().manual_seed(5)
    image = torch.randint(0, 256, (1, 3, 40, 60), dtype=torch.uint8, generator=draw).to(memory_format=layout)[0]
    for seed, scale in ((0, (0.08, 1.0)), (1, (0.08, 1.0)), (2, (0.6, 0.9)), (3, (1.0, 1.0))):
        augmentation = Augmentation(
            size, **(STILL | {"crop_scale": scale, "crop_ratio": (3 / 4, 4 / 3)}), bicubic=bicubic
        )
        torch.manual_seed(seed)
        box = crop_box(40, 60, scale, (3 / 4, 4 / 3), torch.rand(22).tolist())
        torch.manual_seed(seed)
        assert torch.equal(augmentation(image), resized_crop_image(image, *box, [size, size], mode))


@pytest.mark.parametrize(("height", "width", "expected"), [(10, 1000, (0, 493, 10, 13)), (1000, 10, (493, 0, 13, 10))])
def test_image_too_narrow_for_any_crop_gives_its_middle(height, width, expected):
    assert crop_box(height, width, (0.9, 1.0), (3 / 4, 4 / 3), [0.5] * 22) == expected


@pytest.mark.parametrize(
    ("height", "width", "options", "by"),
    [
        (375, 500, {}, 1),
        (1500, 2000, {}, 1),
        (3000, 4000, {}, 2),
        (3000, 4000, {"crop_scale": (0.5, 1.0)}, 8),
        (6000, 8000, {}, 4),
        (600, 12000, {}, 2),
        (300, 12000, {}, 1),
        (4000, 4000, {"crop_ratio": (1.0, 16.0)}, 1),
        (50, 20, {}, 1),
    ],
)
def test_images_are_reduced_only_as_far_as_no_crop_is_enlarged(height, width, options, by):
    augmentation = Augmentation(224, **options)
    assert augmentation.reduction(height, width) == by
    draws = torch.rand(2000, 22, generator=torch.Generator().manual_seed(0)).tolist()

    def narrowest(divisor):
        shape = -(-height // divisor), -(-width // divisor)
        return min(min(crop_box(*shape, augmentation.crop_scale, augmentation.crop_ratio, each)[2:]) for each in draws)

    assert by == 1 or narrowest(by) >= 224
    assert by == 8 or narrowest(2 * by) < 224 * 1.2


def test_one_pixel_is_enough():
    assert Augmentation(8)(torch.zeros(3, 1, 1, dtype=torch.uint8)).shape == (3, 8, 8)


def test_size_left_to_the_run(image):
    augmentation = Augmentation()
    with pytest.raises(UserError, match="does not know the size"):
        augmentation(image)
    assert augmentation.for_size(24)(image).shape == (3, 24, 24) and augmentation.size is None
    assert Augmentation(8).for_size(24)(image).shape == (3, 8, 8)


def test_small_views_are_not_blurred_unless_asked(image):
    sharp = {name: value for name, value in STILL.items() if name != "blur"}
    assert all(torch.equal(seeded(Augmentation(16, **sharp), image, seed), image) for seed in range(20))
    large = torch.randint(0, 256, (3, 80, 80), dtype=torch.uint8)
    blurred = sum(not torch.equal(seeded(Augmentation(80, **sharp), large, seed), large) for seed in range(200))
    assert 70 < blurred < 130


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "flip = 1.5"),
        ({"blur": -0.1}, "blur = -0.1"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_ratio": (0.0, 1.0)}, "crop_ratio"),
        ({"hue": 0.6}, "hue = 0.6"),
        ({"brightness": -1.0}, "brightness = -1"),
        ({"size": 1}, "1 pixels"),
        ({"randaugment": (2, 31)}, "magnitude"),
        ({"translate": 2.0}, "translate = 2"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        Augmentation(**options)


def test_evaluation_view_of_small_images_is_the_whole_image():
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    assert torch.equal(evaluation_view(image, 8), image)
    assert evaluation_view(image, 32).shape == (3, 32, 32)
    assert evaluation_view(torch.zeros(3, 50, 20, dtype=torch.uint8), 32).shape == (3, 32, 32)


def test_evaluation_view_of_large_images_is_their_middle():
    image = torch.zeros(3, 256, 512, dtype=torch.uint8)
    image[:, :, 128:384] = 200
    view = evaluation_view(image, 224)
    assert view.shape == (3, 224, 224) and (view == 200).all() and view.is_contiguous()
    assert torch.equal(view, evaluation_view(image, 224))
    assert evaluation_view(torch.zeros(3, 100, 90, dtype=torch.uint8), 224).shape == (3, 224, 224)
