"""An encoder's weights under the names that detectron2's ResNets have, as MoCo's converter writes them."""

from __future__ import annotations

import copy
import re

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from falseneg.errors import UserError
from falseneg.models.encoder import Encoder, first_difference

DEPTHS = (50, 101, 152)
"""Not 18 and 34: detectron2's C4 head makes its res5 of bottlenecks, and would pass over theirs with no more than a warning."""
_STAGES = {f"layer{number}": f"res{number + 1}" for number in range(1, 5)}


def detectron2_weights(encoder: Encoder) -> tuple[dict[str, NDArray[np.generic]], int]:
    """Weights by detectron2's names, and the depth of the ResNet.

    Names are those of MoCo's convert-pretrain-to-detectron2.py: ``conv1`` becomes ``stem.conv1``, ``layer1.0.bn2``
    becomes ``res2.0.conv2.norm``, ``layer1.0.downsample.0`` becomes ``res2.0.shortcut``.

    Raises:
        UserError: the encoder is not one of the plain ResNets that detectron2's C4 detectors are built of.
    """
    depth = _depth(encoder)
    state = {_renamed(key): value.detach().cpu().numpy() for key, value in encoder.backbone.state_dict().items()}
    return state, depth


def _depth(encoder: Encoder) -> int:
    """Of torchvision's ResNet that has these names and shapes, and gives these features."""
    import torchvision

    for depth in DEPTHS:
        with torch.device("meta"):
            theirs = getattr(torchvision.models, f"resnet{depth}")()
        theirs.fc = torch.nn.Identity()
        state = encoder.backbone.state_dict()
        if first_difference(theirs, state) is None:
            theirs.load_state_dict(state, assign=True)
            if _same_features(theirs, copy.deepcopy(encoder.backbone)):
                return depth
    listed = ", ".join(str(depth) for depth in DEPTHS)
    raise UserError(
        f"{encoder.name} as it was trained (stem and width included) is none of the plain ResNets that detectron2's C4 detectors "
        f"are built of: depth {listed} with the usual stem; export it with --format falseneg or timm"
    )


def _same_features(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    """Whether both make the same of a picture: equal names may hide another pooling."""
    picture: Tensor = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = first.eval()(picture), second.eval()(picture)
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def _renamed(key: str) -> str:
    for ours, theirs in _STAGES.items():
        key = key.replace(ours, theirs)
    key = re.sub(r"\bbn(\d)\b", r"conv\1.norm", key)
    key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    return key if key.startswith("res") else f"stem.{key}"
