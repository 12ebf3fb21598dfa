"""What a `ContrastiveLoss` or a `PairLoss` is called with, checked: one sentence for whatever does not fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from falseneg.errors import UserError
from falseneg.statistics.gather import world_size


def check_views(views: Sequence[Tensor], across_devices: bool) -> None:
    """Refuse what cannot be compared.

    Args:
        views: of a call.
        across_devices: the images of other ranks are compared, too.

    Raises:
        UserError: fewer than two views, or not (B, D) of one shape, floating-point type and device, with B and D above 0.
    """
    if len(views) < 2 or not all(isinstance(view, Tensor) for view in views):
        given = ", ".join(_described(view) for view in views) or "nothing"
        raise UserError(f"ContrastiveLoss: got views of {given}; give two or more tensors of one shape (B, D)")
    first = views[0]
    alike = all((view.shape, view.dtype, view.device) == (first.shape, first.dtype, first.device) for view in views)
    if not (alike and first.ndim == 2 and first.is_floating_point() and first.numel()):
        given = ", ".join(_described(view) for view in views)
        raise UserError(
            f"ContrastiveLoss: got views of {given}; give two or more of one shape (B, D), one floating-point type and one "
            "device, none of them empty"
        )
    if len(first) == 1 and (world_size() == 1 or not across_devices):
        raise UserError(
            "ContrastiveLoss: got views of a single image, which needs others to compare with; give at least 2 images, for "
            "instance with drop_last=True in the DataLoader"
        )


def check_pairs(first: Tensor, second: Tensor, across_devices: bool) -> None:
    """Refuse what cannot be compared in pairs.

    Args:
        first: one side.
        second: the other.
        across_devices: the pairs of other ranks are compared, too.

    Raises:
        UserError: not (B, D) of one shape and device, of floating-point types, with B and D above 0, and more than one pair.
    """
    sides = first, second
    if not (
        all(isinstance(side, Tensor) and side.ndim == 2 and side.is_floating_point() and side.numel() for side in sides)
        and first.shape == second.shape
        and first.device == second.device
    ):
        given = " and ".join(_described(side) for side in sides)
        raise UserError(
            f"PairLoss: got {given}; give two tensors of one shape (B, D), line b of each its side of pair b, of floating-point "
            "types and on one device, not empty"
        )
    if len(first) == 1 and (world_size() == 1 or not across_devices):
        raise UserError(
            "PairLoss: got a single pair, which needs others to compare with; give at least 2, for instance with "
            "drop_last=True in the DataLoader"
        )


def check_guide(guide: tuple[Tensor, Tensor], images: Tensor) -> None:
    """Refuse a guide's embeddings that are not of these (B, D) rows, (B, E) for each side.

    Raises:
        UserError: there are not two, or they are of another shape, of no floating-point type or on another device.
    """
    sides = list(guide) if isinstance(guide, (tuple, list)) else [guide]
    fit = len(sides) == 2 and all(
        isinstance(side, Tensor)
        and side.ndim == 2
        and len(side) == len(images)
        and side.shape == sides[0].shape
        and side.is_floating_point()
        and side.device == images.device
        for side in sides
    )
    if not fit:
        given = " and ".join(_described(side) for side in sides)
        raise UserError(
            f"PairLoss: got a guide of {given} for {len(images)} pairs; give (B, E) for each side, of floating-point types "
            "and on the device of the features"
        )


def check_scale(logit_scale: Tensor | float | None) -> None:
    """Refuse what cosines cannot be multiplied by, as far as that can be seen without waiting for the device.

    Raises:
        UserError: there is none, or it is not one number above 0.
    """
    if logit_scale is None:
        raise UserError("PairLoss: got no logit_scale; give it, 1 / tau, or a temperature when the criterion is made")
    given = _described(logit_scale)
    if isinstance(logit_scale, Tensor):
        fits = logit_scale.numel() == 1
        if fits and logit_scale.device.type == "cpu":
            logit_scale = float(logit_scale.detach())
    if not isinstance(logit_scale, Tensor):
        given, fits = f"{logit_scale:g}", 0 < logit_scale < math.inf
    if not fits:
        raise UserError(f"PairLoss: logit_scale is {given}; give one number above 0, what cosines are multiplied by")


def check_support(support: Sequence[Tensor] | Tensor, images: Tensor, owner: str) -> None:
    """Refuse support views that are not of these images, (B, D).

    Raises:
        UserError: there are none, or they are of another shape, not of a floating-point type or on another device.
    """
    views = list(support) if not isinstance(support, Tensor) or support.ndim else [support]
    fit = all(
        isinstance(view, Tensor)
        and view.shape == images.shape
        and view.is_floating_point()
        and view.device == images.device
        and view.dtype == views[0].dtype
        for view in views
    )
    if not (views and fit):
        given = ", ".join(_described(view) for view in views) or "nothing"
        raise UserError(
            f"{owner}: got support views of {given}; give one or more of the shape {tuple(images.shape)} of the views, "
            "of one floating-point type and on their device, or leave support out"
        )


def check_sample(sample: Tensor, images: Tensor, owner: str, item: str = "image") -> None:
    """Refuse what does not say for each of these (B, D) rows which image, or pair, it shows.

    Raises:
        UserError: it is of another length, not of an integer type or on another device.
    """
    whole = isinstance(sample, Tensor) and not (
        sample.is_floating_point() or sample.is_complex() or sample.dtype == torch.bool
    )
    if not (whole and sample.shape == (len(images),) and sample.device == images.device):
        raise UserError(
            f"{owner}: got a sample of {_described(sample)}; give {len(images)} whole numbers, one for each {item}, on "
            f"the device of the {'views' if item == 'image' else 'features'}"
        )


def _described(given: object) -> str:
    """Shape, type and device of a tensor in words; of anything else its type."""
    if not isinstance(given, Tensor):
        return type(given).__name__
    return f"{tuple(given.shape)} {str(given.dtype).removeprefix('torch.')} on {given.device}"


def check_rows(sample: Tensor, images: int, owner: str, item: str = "image") -> None:
    """Refuse rows that the data set does not have: some would be mistaken for others.

    Raises:
        UserError: a row is negative, or too large.
    """
    least, most = torch.stack(sample.aminmax()).tolist()
    if least < 0 or most >= images:
        raise UserError(
            f"{owner}: sample holds {most if most >= images else least}, but a data set of {images} {item}s has the "
            f"rows 0 to {images - 1}; give the rows of the {item}s, or the right number of {item}s"
        )
