"""Views of an image: random crops and distortions whose randomness is known by (seed, epoch, row, view)."""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import struct
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from falseneg.data.colour import gaussian_blur, jitter
from falseneg.errors import UserError
from falseneg.models.encoder import SMALL_IMAGE

_CROP_TRIALS = 10
_CROP_DRAWS = 2 * _CROP_TRIALS + 2
_OTHER_DRAWS = 17
_BLUR_SIGMA = (0.1, 2.0)
_SOLARIZE_ABOVE = 128


@functools.cache
def kernels() -> ModuleType:
    """The v2 kernels of torchvision: loaded when first used, for they take a second."""
    import torchvision.transforms.v2.functional as functional

    return functional


def view_generator_seed(seed: int, epoch: int, row: int, view: int) -> int:
    """The seed of everything that is random in one view: a hash, so that no two views have related streams.

    Args:
        seed: the seed of the run.
        epoch: from 0.
        row: the data-set row.
        view: from 0 for the main views; −1, −2, ... for support views, so that they do not depend on how many main
            views there are.
    """
    packed = struct.pack("<4q", seed, epoch, row, view)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Crops:
    """Further views of one size, beside the main views (multi-crop, Caron et al. 2020, arXiv 2006.09882).

    Args:
        number: how many of each image, at least 1.
        size: their side in pixels, at least 2 and at most that of the main views.
        scale: smallest and largest share of the image's area that a crop covers, within 0..1.
    """

    number: int
    size: int
    scale: tuple[float, float] = (0.05, 0.14)

    def check(self) -> None:
        """Refuse what cannot be; not at construction, for the parser would bury the sentence in its own.

        Raises:
            UserError: a value is outside its range.
        """
        if self.number < 1:
            raise UserError(f"multi_crop: number is {self.number}; give at least 1 crop, or leave the group out")
        if self.size < 2:
            raise UserError(f"multi_crop: size is {self.size}; give the side of the crops in pixels, at least 2")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(
                f"multi_crop: scale is {list(self.scale)}; give two shares of the area, 0 < smallest <= largest <= 1"
            )


class Augmentation:
    """The random views of SimCLR (Chen et al., 2020, appendix A), for one uint8 image at a time.

    In this order: crop and resize, flip, rotate and shift, colour jitter, RandAugment, grey, blur, solarize.
    Everything random is drawn from torch's global generator, the same numbers whatever is switched on.

    Args:
        size: side of the views in pixels; null lets the run decide by the images.
        crop_scale: smallest and largest share of the image's area that a crop covers, within 0..1.
        crop_ratio: smallest and largest width : height of a crop before it is resized to a square.
        bicubic: resize crops by bicubic, not bilinear, interpolation, as SimCLR's and FNC's released code do.
        flip: probability of mirroring left and right, 0..1.
        jitter: probability of changing the colours, 0..1.
        brightness: greatest change of brightness: the factor lies in 1 ± this, and not below 0.
        contrast: greatest change of contrast, likewise.
        saturation: greatest change of saturation, likewise.
        hue: greatest turn of the hue, in turns of the colour circle, 0..0.5.
        grayscale: probability of removing the colours, 0..1.
        blur: probability of a Gaussian blur of 0.1 to 2 pixels, in a window of a tenth of the side, 0..1; null stands
            for 0.5, and for 0 if views are at most 64 pixels.
        solarize: probability of inverting all values from 128 up, 0..1.
        randaugment: number of operations and magnitude of RandAugment (Cubuk et al., 2020); null for none. The magnitude is
            on torchvision's scale of 0 to 30, where 21 is the 7 of TensorFlow's scale of 10 (a rotation by 21 degrees). The
            operations are torchvision's 14: TensorFlow's 16 have Invert, Cutout and SolarizeAdd, and no Identity.
        rotation: greatest rotation either way, in degrees; what comes in from outside is black.
        translate: greatest shift in either direction, as a share of the side, 0..1.
    """

    def __init__(
        self,
        size: int | None = None,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        bicubic: bool = False,
        flip: float = 0.5,
        jitter: float = 0.8,
        brightness: float = 0.8,
        contrast: float = 0.8,
        saturation: float = 0.8,
        hue: float = 0.2,
        grayscale: float = 0.2,
        blur: float | None = None,
        solarize: float = 0.0,
        randaugment: tuple[int, int] | None = None,
        rotation: float = 0.0,
        translate: float = 0.0,
    ) -> None:
        self.size = size
        self.crop_scale = (float(crop_scale[0]), float(crop_scale[1]))
        self.crop_ratio = (float(crop_ratio[0]), float(crop_ratio[1]))
        self.bicubic = bicubic
        self.flip, self.jitter, self.grayscale, self.blur, self.solarize = flip, jitter, grayscale, blur, solarize
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        self.randaugment = None if randaugment is None else (int(randaugment[0]), int(randaugment[1]))
        self.rotation, self.translate = rotation, translate
        self._check()

    def _check(self) -> None:
        for name in ("flip", "jitter", "grayscale", "blur", "solarize", "translate"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name} = {value:g} of the augmentation must lie in 0..1")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise UserError(
                f"crop_scale = {self.crop_scale} must be two shares of the area, 0 < smallest <= largest <= 1"
            )
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise UserError(f"crop_ratio = {self.crop_ratio} must be two ratios, 0 < smallest <= largest")
        for name in ("brightness", "contrast", "saturation", "rotation"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} = {getattr(self, name):g} of the augmentation must be at least 0")
        if not 0 <= self.hue <= 0.5:
            raise UserError(f"hue = {self.hue:g} of the augmentation must lie in 0..0.5")
        if self.size is not None and self.size < 2:
            raise UserError(f"views of {self.size} pixels are too small: size must be at least 2")
        if self.randaugment is not None and not (self.randaugment[0] >= 1 and 0 <= self.randaugment[1] <= 30):
            raise UserError(
                f"randaugment = {self.randaugment} must be a number of operations from 1 and a magnitude in 0..30"
            )

    def for_size(self, size: int) -> Augmentation:
        """The same with the size decided, if it was left to the run."""
        decided = copy.copy(self)
        decided.size = self.size or size
        decided._check()
        return decided

    def for_crops(self, crops: Crops) -> Augmentation:
        """The same for a group of multi-crop, with its size and scale. Blur stays as likely as it is in the main views."""
        decided = copy.copy(self)
        decided.blur = self._blur_probability()
        decided.size, decided.crop_scale = crops.size, (float(crops.scale[0]), float(crops.scale[1]))
        return decided

    def reduction(self, height: int, width: int) -> int:
        """By how much an image may be made smaller before its views are: 1, 2, 4 or 8.

        So that the narrowest crop that can be drawn still has as many pixels as a view, and none is enlarged.

        Args:
            height: of the image, in pixels.
            width: of the image, in pixels.
        """
        narrowest = math.sqrt(height * width * self.crop_scale[0] * min(self.crop_ratio[0], 1 / self.crop_ratio[1]))
        spare = min(narrowest, height, width) / (self.size or math.inf)
        return max(by for by in (1, 2, 4, 8) if by <= max(1, spare))

    def __call__(self, image: Tensor) -> Tensor:
        """A random view.

        Args:
            image: uint8 (3, H, W).

        Returns:
            uint8 (3, size, size).

        Raises:
            UserError: the size has been left to the run, and there is none.
        """
        if self.size is None:
            raise UserError("the augmentation does not know the size of its views: give it one, or call for_size")
        draws = torch.rand(_CROP_DRAWS + _OTHER_DRAWS).tolist()
        top, left, height, width = crop_box(image.shape[1], image.shape[2], self.crop_scale, self.crop_ratio, draws)
        mode = "bicubic" if self.bicubic else "bilinear"
        view = _resized(image[:, top : top + height, left : left + width], self.size, mode)
        return self._distort(view, draws[_CROP_DRAWS:]).contiguous()

    def _distort(self, view: Tensor, draws: list[float]) -> Tensor:
        """Everything that leaves the size alone; draw by draw, so that one option does not shift another's."""
        if draws[0] < self.flip:
            view = view.flip(-1)
        if self.rotation or self.translate:
            reach = self.translate * view.shape[-1]
            shift = [(2 * draws[1] - 1) * reach, (2 * draws[2] - 1) * reach]
            angle = (2 * draws[3] - 1) * self.rotation
            view = kernels().affine_image(view, angle, shift, 1.0, [0.0, 0.0], interpolation=_bilinear())
        if draws[4] < self.jitter:
            strengths = (self.brightness, self.contrast, self.saturation)
            factors = [_between(max(0.0, 1 - s), 1 + s, draw) for s, draw in zip(strengths, draws[5:8], strict=True)]
            factors.append(_between(-self.hue, self.hue, draws[8]))
            view = jitter(view, factors, sorted(range(4), key=draws[9:13].__getitem__))
        if self.randaugment:
            view = _randaugment(self.randaugment)(view)
        if draws[13] < self.grayscale:
            view = kernels().rgb_to_grayscale_image(view, num_output_channels=3)
        if draws[14] < self._blur_probability():
            view = gaussian_blur(view, _between(*_BLUR_SIGMA, draws[15]), max(3, view.shape[-1] // 10 | 1))
        if draws[16] < self.solarize:
            view = kernels().solarize_image(view, _SOLARIZE_ABOVE)
        return view

    def _blur_probability(self) -> float:
        if self.blur is not None:
            return self.blur
        return 0.0 if self.size is None or self.size <= SMALL_IMAGE else 0.5


def _resized(image: Tensor, size: int, mode: str) -> Tensor:
    """Resized to a square: what torchvision's v2 kernel computes, without a dozen questions for each small image."""
    if image.shape[1:] == (size, size):
        return image
    return interpolate(image[None], (size, size), mode=mode, antialias=True)[0]


def _between(low: float, high: float, draw: float) -> float:
    return low + (high - low) * draw


@functools.cache
def _bilinear() -> Any:
    from torchvision.transforms import InterpolationMode

    return InterpolationMode.BILINEAR


@functools.cache
def _randaugment(parameters: tuple[int, int]) -> torch.nn.Module:
    from torchvision.transforms import v2

    return v2.RandAugment(*parameters, interpolation=_bilinear())


def crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], draws: list[float]
) -> tuple[int, int, int, int]:
    """Where to crop: an area and the logarithm of an aspect ratio drawn uniformly until they fit, ten times at most.

    After that, the largest crop of an allowed ratio in the middle; as torchvision's `RandomResizedCrop`.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        scale: smallest and largest share of the area.
        ratio: smallest and largest width : height.
        draws: 22 numbers in [0, 1).

    Returns:
        top, left, height and width of the crop, in pixels.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for trial in range(_CROP_TRIALS):
        area = height * width * _between(*scale, draws[2 * trial])
        aspect = math.exp(_between(low, high, draws[2 * trial + 1]))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = draws[2 * _CROP_TRIALS : _CROP_DRAWS]
            return int(top * (height - crop_height + 1)), int(left * (width - crop_width + 1)), crop_height, crop_width
    crop_width = min(width, max(1, round(height * ratio[1])))
    crop_height = min(height, max(1, round(width / ratio[0])))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def evaluation_view(image: Tensor, size: int) -> Tensor:
    """The one view without randomness: the middle of the image.

    Up to 64 pixels the short side is resized to `size`; above, to 8/7 of it, as is customary (256 for 224).

    Args:
        image: uint8 (3, H, W).
        size: side of the view in pixels.

    Returns:
        uint8 (3, size, size).
    """
    short = size if size <= SMALL_IMAGE else round(size * 8 / 7)
    if min(image.shape[1:]) != short:
        image = kernels().resize_image(image, [short])
    top, left = (image.shape[1] - size) // 2, (image.shape[2] - size) // 2
    return image[:, top : top + size, left : left + size].contiguous()


def whole_view(image: Tensor, size: int) -> Tensor:
    """The middle of the image, its short side resized to ``size`` by bicubic interpolation (SimCLR, section B.8.1).

    Args:
        image: uint8 (3, H, W).
        size: side of the view in pixels.

    Returns:
        uint8 (3, size, size).
    """
    from torchvision.transforms import InterpolationMode

    if min(image.shape[1:]) != size:
        image = kernels().resize_image(image, [size], interpolation=InterpolationMode.BICUBIC)
    top, left = (image.shape[1] - size) // 2, (image.shape[2] - size) // 2
    return image[:, top : top + size, left : left + size].contiguous()
