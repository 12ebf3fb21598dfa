"""From encoded bytes, pictures and arrays to uint8 RGB, and what had to be converted on the way."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from falseneg.data.messages import MEND
from falseneg.errors import UserError

EXIF_ORIENTATION = 0x0112
UPRIGHT = 1
GREYSCALE, DEEP, PALETTE, TRANSPARENT, CMYK, TURNED, OTHER = (
    "greyscale",
    "16-bit",
    "palette",
    "transparent",
    "CMYK",
    "EXIF-rotated",
    "other colour space",
)
_KIND_OF_MODE = {"1": GREYSCALE, "L": GREYSCALE, "LA": GREYSCALE, "P": PALETTE, "PA": PALETTE, "CMYK": CMYK}
_REDUCIBLE = ("JPEG", "MPO")
_DEEP_MODES = ("I", "F")
_HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_AVIF = (b"avif", b"avis")
NEEDED = "which needs"
"""Stands in the message about an image whose format is known and cannot be read here."""
_DEEP_TILE = re.compile(r"(?<!BGR);16")  # sixteen bits a channel; "BGR;16" are sixteen bits a pixel


MOST_PIXELS = 2**26
"""Pixels of the largest image that is decoded: 8192 × 8192. It takes up to 1.5 GiB of memory meanwhile."""

Reduction = Callable[[int, int], int]
"""From height and width of an image to 1, 2, 4 or 8: by how much its sides may be divided."""


class Decoded(NamedTuple):
    """An image as the views want it.

    Attributes:
        image: uint8 (3, H, W), RGB; its memory may be laid out with the channels last.
        conversions: what had to be converted, each kind once: "greyscale", "16-bit", "palette", "transparent",
            "CMYK", "EXIF-rotated", "other colour space".
    """

    image: Tensor
    conversions: tuple[str, ...]


def decode(data: bytes, name: str, reduction: Reduction | None = None) -> Decoded:
    """Decode an image file (the first frame, if there are several).

    Args:
        data: the bytes of the file.
        name: what to call the image in messages.
        reduction: by how much it may be made smaller, if that saves time: a JPEG file can be decoded at 1/2, 1/4 or
            1/8 of its sides without computing its pixels first. None for not at all.

    Raises:
        UserError: the bytes are not an image, are truncated, or claim more than 2^26 pixels.
    """
    with _reading(name):
        if not data:
            raise ValueError("it is empty")
        image = _opened(data)
        _check_pixels(image)  # before it is made smaller, for which a progressive JPEG file is decoded in full
        if reduction is not None and image.format in _REDUCIBLE:
            by = reduction(image.height, image.width)
            if by > 1:
                image.draft(image.mode, (image.width // by, image.height // by))
    return from_picture(image, name)


def _opened(data: bytes) -> Image.Image:
    """The picture, opened only; HEIC by pillow-heif, where that is installed.

    Raises:
        ValueError: what is missing to read HEIC or AVIF.
        UnidentifiedImageError: it is of no known format.
    """
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        brand = data[8:12] if data[4:8] == b"ftyp" else b""
        if brand in _AVIF:
            raise ValueError(f"AVIF, {NEEDED} Pillow 11.3 or later") from None
        if brand not in _HEIC:
            raise
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise ValueError(f"HEIC, {NEEDED} the package pillow-heif") from None
        register_heif_opener()
        return Image.open(io.BytesIO(data))


def from_picture(image: Image.Image, name: str) -> Decoded:
    """A picture, which may be opened only and not yet read, in RGB.

    Args:
        image: the picture.
        name: what to call it in messages.

    Raises:
        UserError: it is truncated, damaged, or has more than 2^26 pixels.
    """
    with _reading(name):
        _check_pixels(image)
        turned = image.format == "TIFF" and _orientation(image) != UPRIGHT  # a TIFF is turned, and forgets it, on load
        deep = bool(_DEEP_TILE.search(str(getattr(image, "tile", ""))))  # Pillow reads 16-bit colour straight into 8
        image.load()
    return convert(image, name, turned, deep)


def _check_pixels(image: Image.Image) -> None:
    """Refuse, by its header, an image of some kilobytes that would fill the memory: Pillow does so from 2^27.4 pixels on."""
    if image.width * image.height > MOST_PIXELS:
        raise Image.DecompressionBombError(f"{image.width} × {image.height}, of {MOST_PIXELS:,} that are allowed")


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Says in one sentence that an image cannot be read: decoders raise anything, and it is always the file's fault.

    What Pillow warns of on the way either ends so, or does no harm.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{name} claims too many pixels to be decoded safely ({error}): make it smaller or remove it"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "no known image format"
        raise UserError(f"{name} cannot be read as an image ({reason}): {MEND}") from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) if there is none or the EXIF data are damaged."""
    with contextlib.suppress(Exception):
        return int(image.getexif().get(EXIF_ORIENTATION, UPRIGHT))
    return UPRIGHT


def convert(image: Image.Image, name: str, turned: bool = False, deep: bool = False) -> Decoded:
    """A loaded picture in RGB: turned upright, 16 bits scaled to 8, transparency composited on white.

    Args:
        image: the picture.
        name: what to call the image in messages.
        turned: the decoder has already turned it.
        deep: the decoder has already reduced it from 16 bits to 8.

    Raises:
        UserError: its colour space has no conversion to RGB.
    """
    kinds: dict[str, None] = dict.fromkeys([TURNED] * turned + [DEEP] * deep)
    if not turned and 2 <= _orientation(image) <= 8:
        image = ImageOps.exif_transpose(image)
        kinds[TURNED] = None
    if image.mode.startswith(_DEEP_MODES):
        kinds |= {DEEP: None, GREYSCALE: None}
        grey = eight_bits(np.asarray(image), name)
        return Decoded(torch.from_numpy(grey).expand(3, *grey.shape).contiguous(), tuple(kinds))
    if image.mode in _KIND_OF_MODE:
        kinds[_KIND_OF_MODE[image.mode]] = None
    elif image.mode not in ("RGB", "RGBA", "RGBX"):
        kinds[OTHER] = None
    try:
        rgb, transparent = _opaque(image)
    except ValueError as error:
        raise UserError(
            f"{name} has colours of kind {image.mode!r}, which cannot be converted: save it as RGB"
        ) from error
    if transparent:
        kinds[TRANSPARENT] = None
    return Decoded(torch.from_numpy(np.array(rgb)).permute(2, 0, 1), tuple(kinds))


def _opaque(image: Image.Image) -> tuple[Image.Image, bool]:
    """The picture in RGB on white, and whether anything of it was transparent."""
    if not (image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info):
        return (image if image.mode == "RGB" else image.convert("RGB")), False
    layered = image.convert("RGBA")
    least_opaque, _ = layered.getchannel("A").getextrema()
    if least_opaque == 255:
        return layered.convert("RGB"), False
    white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layered).convert("RGB"), True


def eight_bits(values: np.ndarray, name: str) -> np.ndarray:
    """Numbers of any type as uint8.

    Integers within 0..65535 are taken as 16-bit and divided by 257, floats within 0..1 are multiplied by 255 and
    floats within 0..255 kept; anything beyond is stretched from its own smallest to its own largest value.

    Raises:
        UserError: there are values that are not numbers.
    """
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise UserError(f"{name} holds values that are not finite numbers: fix or remove it")
    low, high = (float(numbers.min()), float(numbers.max())) if numbers.size else (0.0, 0.0)
    if np.issubdtype(values.dtype, np.floating):
        span = (0.0, 1.0) if low >= 0 and high <= 1 else (0.0, 255.0)
    else:
        span = (0.0, 65535.0)
    if low < span[0] or high > span[1]:
        span = (low, high)
    scale = 255 / (span[1] - span[0]) if span[1] > span[0] else 0.0
    return ((numbers - span[0]) * scale).round().astype(np.uint8)


def from_any(value: Any, name: str) -> Decoded:
    """Whatever a user's own data set yields as an image: a picture, a tensor or an array.

    Tensors and arrays are (H, W), (C, H, W) or (H, W, C) with 1, 3 or 4 channels: uint8, uint16, bool, other integers
    within 0..255, or floats within 0..1.

    Raises:
        UserError: it is none of these.
    """
    if isinstance(value, Image.Image):
        return from_picture(value, name)
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if not isinstance(value, np.ndarray):
        raise UserError(
            f"{name} is a {type(value).__name__}: a data set must yield a PIL image, a tensor or an array, alone, first in a "
            f"tuple, or as 'image' of a mapping"
        )
    return _from_array(value, name)


def _from_array(values: np.ndarray, name: str) -> Decoded:
    if values.ndim == 3 and values.shape[0] in (1, 3, 4) and values.shape[2] not in (1, 3, 4):
        values = values.transpose(1, 2, 0)
    elif values.ndim == 3 and values.shape[0] in (1, 3) and values.shape[2] in (1, 3, 4) and values.shape[1] <= 4:
        values = values.transpose(1, 2, 0)  # a tiny image in torch's layout
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4) or 0 in values.shape:
        raise UserError(
            f"{name} has shape {tuple(values.shape)}: images are (H, W), (C, H, W) or (H, W, C) with 1, 3 or 4 channels"
        )
    deep = values.dtype == np.uint16
    pixels = np.ascontiguousarray(_to_uint8(values, name))
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return convert(picture, name, deep=deep)


def _to_uint8(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16:
        return eight_bits(values, name)
    low, high = values.min(), values.max()
    if np.issubdtype(values.dtype, np.floating):
        if low >= -1e-3 and high <= 1 + 1e-3:  # a resized picture may overshoot by a rounding error
            return (values.clip(0, 1) * 255).round().astype(np.uint8)
        allowed = "floats must lie in 0..1, without normalisation"
    else:
        if low >= 0 and high <= 255:
            return values.astype(np.uint8)
        allowed = "integers must lie in 0..255"
    raise UserError(f"{name} has values from {low:g} to {high:g}: {allowed}")
