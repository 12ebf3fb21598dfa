import pytest
import torch
import torchvision.transforms.v2.functional as reference

from falseneg.data.colour import gaussian_blur, jitter

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
NEUTRAL = (1.0, 1.0, 1.0, 0.0)


@pytest.fixture(params=[(8, 8), (7, 33), (64, 48)])
def image(request):
    return torch.randint(0, 256, (3, *request.param), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def levels_apart(ours, theirs):
    assert ours.dtype == torch.uint8 and ours.shape == theirs.shape
    return (ours.int() - theirs.int()).abs().max().item()


def only(which, factor):
    factors = list(NEUTRAL)
    factors[which] = factor
    return factors


@pytest.mark.parametrize(
    ("which", "factor", "kernel"),
    [
        *((BRIGHTNESS, f, reference.adjust_brightness_image) for f in (0.0, 0.3, 1.7)),
        *((CONTRAST, f, reference.adjust_contrast_image) for f in (0.0, 0.3, 1.7)),
        *((SATURATION, f, reference.adjust_saturation_image) for f in (0.0, 0.3, 1.7)),
        *((HUE, f, reference.adjust_hue_image) for f in (-0.5, -0.21, 0.03, 0.5)),
    ],
)
def test_same_as_torchvision_up_to_rounding(image, which, factor, kernel):
    # torchvision cuts to whole numbers, of the grey image as well, where we round once: at most two levels
    assert levels_apart(jitter(image, only(which, factor), [which]), kernel(image, factor)) <= 2


def test_order_matters_and_is_obeyed(image):
    factors = (1.6, 0.4, 1.5, 0.1)
    kernels = [reference.adjust_brightness_image, reference.adjust_contrast_image]
    kernels += [reference.adjust_saturation_image, reference.adjust_hue_image]
    results = []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        expected = image
        for which in order:
            expected = kernels[which](expected, factors[which])
        results.append(jitter(image, factors, order))
        assert (results[-1].int() - expected.int()).abs().float().mean() < 1.5
    assert not torch.equal(results[0], results[1])


def test_grey_and_extreme_pixels_survive_the_turn_of_hue():
    image = torch.tensor([[0, 0, 0], [255, 255, 255], [9, 9, 9], [255, 0, 0], [0, 255, 255]], dtype=torch.uint8).T
    image = image.reshape(3, 1, 5)
    assert torch.equal(jitter(image, only(HUE, 1 / 3), [HUE])[:, 0].T[:3], image[:, 0].T[:3])
    assert jitter(image, only(HUE, 1 / 3), [HUE])[:, 0, 3].tolist() == [0, 255, 0]


def test_neutral_factors_change_nothing_and_the_input_is_left_alone(image):
    before = image.clone()
    assert torch.equal(jitter(image, NEUTRAL, [0, 1, 2, 3]), image)
    jitter(image, (0.5, 0.5, 0.5, 0.2), [0, 1, 2, 3])
    gaussian_blur(image, 1.0, 5)
    assert torch.equal(image, before)


def test_colours_are_rounded_to_the_nearest_number():
    image = torch.tensor([3, 100, 255], dtype=torch.uint8).expand(3, 1, 3)
    assert jitter(image, only(BRIGHTNESS, 0.93), [BRIGHTNESS])[0, 0].tolist() == [3, 93, 237]


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
@pytest.mark.parametrize("window", [3, 7])
def test_blur_is_torchvisions(image, sigma, window):
    theirs = reference.gaussian_blur_image(image, [window, window], [sigma, sigma])
    assert levels_apart(gaussian_blur(image, sigma, window), theirs) <= 1


def test_blur_of_an_image_smaller_than_its_window():
    image = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8).expand(3, 2, 2)
    assert gaussian_blur(image, 2.0, 23).float().std() < 60


def test_channels_last_images_give_the_same(image):
    other = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(
        jitter(other, (1.3, 0.6, 1.4, 0.1), [2, 0, 3, 1]), jitter(image, (1.3, 0.6, 1.4, 0.1), [2, 0, 3, 1])
    )
    assert torch.equal(gaussian_blur(other, 1.0, 5), gaussian_blur(image, 1.0, 5))
