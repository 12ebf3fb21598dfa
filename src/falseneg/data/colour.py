"""Colour distortion and blur: the same mathematics as torchvision's v2 kernels, several times as fast.

torchvision rounds to uint8 after each kernel, turns hues through a table that it gathers pixel by pixel, and blurs
with a two-dimensional window. Here colours stay floats until the end, hue is a piecewise linear function, and blur is
two sums of shifted rows. Images are on the CPU: what numpy does in less time than torch is left to numpy, which works
on the same memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

GREY = torch.tensor([0.2989, 0.587, 0.114])
"""The brightness of red, green and blue (ITU-R 601-2), as torchvision has it."""
_HUE_OF_CHANNEL = np.array([5, 3, 1], dtype=np.float32)[:, None, None]
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


def jitter(image: Tensor, factors: Sequence[float], order: Sequence[int]) -> Tensor:
    """Brightness, contrast, saturation and hue, one after the other.

    Args:
        image: uint8 (3, H, W).
        factors: of brightness, contrast and saturation, 1 changing nothing; and the turn of the hue, in full turns.
        order: a permutation of 0..3, in which they are applied.

    Returns:
        uint8 (3, H, W).
    """
    colours = image.float()
    for which in order:
        factor = factors[which]
        if factor == (0.0 if which == _HUE else 1.0):
            continue
        if which == _BRIGHTNESS:
            colours.mul_(factor).clamp_(0, 255)
        elif which == _CONTRAST:
            mean = GREY.dot(colours.mean(dim=(1, 2)))
            colours.mul_(factor).add_(mean, alpha=1 - factor).clamp_(0, 255)
        elif which == _SATURATION:
            grey = (GREY @ colours.reshape(3, -1)).view(colours.shape[1:])
            colours.mul_(factor).add_(grey, alpha=1 - factor).clamp_(0, 255)
        else:
            colours = turn_hue(colours, factor)
    return to_uint8(colours)


def turn_hue(colours: Tensor, turn: float) -> Tensor:
    """Turn the hue of every pixel, in the HSV model.

    Each channel is value − chroma · clamp(2 − |k − 2|, 0, 1), with k = (n + hue) mod 6, the hue in sixths of a turn,
    and n = 5, 3, 1 for red, green and blue.

    Args:
        colours: float (3, H, W), not negative.
        turn: in full turns.
    """
    red, green, blue = colours.numpy()
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    hue = np.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    hue = np.where(value == red, green - blue, hue)
    hue /= torch.from_numpy(chroma).clamp(min=1e-6).numpy()
    k = hue + (_HUE_OF_CHANNEL + np.float32(6 * turn))
    turns = k / 6
    np.floor(turns, out=turns)
    turns *= 6
    k -= turns
    k -= 2
    np.abs(k, out=k)
    np.subtract(2, k, out=k)
    turned = torch.from_numpy(k).clamp_(0, 1)  # numpy's own takes several times as long
    k *= chroma
    np.subtract(value, k, out=k)
    return turned


def gaussian_blur(image: Tensor, sigma: float, window: int) -> Tensor:
    """Blur with a Gaussian of standard deviation `sigma` pixels, reflected at the border.

    Args:
        image: uint8 (3, H, W), at least 2 × 2.
        sigma: in pixels.
        window: odd number of pixels that the Gaussian is cut off to; it is cut off at four standard deviations anyway,
            where under a ten-thousandth of it is left.

    Returns:
        uint8 (3, H, W).
    """
    reach = min(window // 2, math.ceil(4 * sigma), image.shape[1] - 1, image.shape[2] - 1)
    weights = [math.exp(-0.5 * (distance / sigma) ** 2) for distance in range(reach + 1)]
    total = 2 * sum(weights) - weights[0]
    weights = [weight / total for weight in weights]
    blurred = image.float()
    for dim, border in ((1, (0, 0, reach, reach)), (2, (reach, reach, 0, 0))):
        size = blurred.shape[dim]
        padded = pad(blurred, border, mode="reflect")
        blurred = padded.narrow(dim, reach, size) * weights[0]
        for distance in range(1, reach + 1):
            blurred.add_(padded.narrow(dim, reach - distance, size), alpha=weights[distance])
            blurred.add_(padded.narrow(dim, reach + distance, size), alpha=weights[distance])
    return to_uint8(blurred)


def to_uint8(colours: Tensor) -> Tensor:
    """Rounded to the nearest number; changes its argument."""
    return torch.from_numpy(colours.add_(0.5).numpy().astype(np.uint8))  # torch converts one number at a time
