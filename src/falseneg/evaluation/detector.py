"""Faster R-CNN on a ResNet's first four stages, with the fifth as the head of its boxes (R50-C4), of torchvision's parts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from falseneg.errors import UserError

_ANCHORS = ((32, 64, 128, 256, 512),)
_RATIOS = ((0.5, 1.0, 2.0),)
_REGION = 14
_LONGEST = 1333
_DECAY = 1e-4


class _Stages(nn.Sequential):
    """A ResNet up to its fourth stage (torchvision's layer3)."""

    def __init__(self, resnet: Any) -> None:
        super().__init__(
            resnet.conv1, resnet.bn1, resnet.act1, resnet.maxpool, resnet.layer1, resnet.layer2, resnet.layer3
        )
        self.out_channels = resnet.feature_info[3]["num_chs"]


def faster_rcnn(encoder: nn.Module, classes: int, sizes: Sequence[int], regions: tuple[int, int], seed: int) -> Any:
    """A Faster R-CNN that starts from an encoder's weights; all of it learns, BatchNorm included.

    As MoCo's detectron2 recipe (R50-C4) has it: anchors of 32 to 512 pixels in three shapes on one map of stride 16, 12,000
    (in testing 6,000) proposals before non-maximum suppression, regions of 14 × 14 from RoIAlign, the fifth stage on each of
    them and a further BatchNorm behind it, no feature pyramid. The parts are torchvision's, which differ from detectron2's in
    this: the smooth L1 loss is quadratic up to 1/9 (there it is plain L1), RoIAlign is not moved by half a pixel, and the
    images of a batch are padded to multiples of 32, whatever their shapes (there, wide and tall ones are not mixed).

    Args:
        encoder: with a ResNet of timm as its ``backbone``, and the ``mean`` and ``std`` of its input. A copy is taken.
        classes: C, without the background.
        sizes: of the short side in pixels: one of them is drawn for each training image. The long side is at most 1333.
        regions: of an image that reach the head: drawn in training, the best in testing.
        seed: of the new layers.

    Returns:
        torchvision's FasterRCNN: images in [0, 1] and targets to four losses in training mode, else to boxes.

    Raises:
        UserError: the encoder is not a ResNet.
    """
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
    from torchvision.ops import MultiScaleRoIAlign

    resnet = copy.deepcopy(resnet_of(encoder))
    width = resnet.feature_info[4]["num_chs"]
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        predictor = FastRCNNPredictor(width, classes + 1)
        for layer, deviation in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)
        model = FasterRCNN(
            _Stages(resnet),
            min_size=tuple(sizes),
            max_size=_LONGEST,
            image_mean=encoder.mean.flatten().tolist(),  # type: ignore[operator, union-attr]
            image_std=encoder.std.flatten().tolist(),  # type: ignore[operator, union-attr]
            rpn_anchor_generator=AnchorGenerator(_ANCHORS, _RATIOS),
            rpn_pre_nms_top_n_train=12_000,
            rpn_pre_nms_top_n_test=6_000,
            rpn_post_nms_top_n_test=regions[1],
            box_batch_size_per_image=regions[0],
            box_roi_pool=MultiScaleRoIAlign(["0"], _REGION, sampling_ratio=0),
            box_head=nn.Sequential(resnet.layer4, nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            box_predictor=predictor,
        )
    return model.requires_grad_()


def resnet_of(encoder: nn.Module) -> Any:
    """The ResNet inside an encoder.

    Raises:
        UserError: there is none.
    """
    from timm.models.resnet import ResNet

    backbone = getattr(encoder, "backbone", None)
    if not isinstance(backbone, ResNet):
        name = getattr(encoder, "name", None) or type(encoder).__name__
        raise UserError(f"{name} is not a ResNet, which C4 detectors are built on; give a run or a timm:NAME with one")
    return backbone


def detector_optimiser(model: nn.Module, learning_rate: float) -> torch.optim.SGD:
    """SGD as detectron2 has it: momentum .9, and a weight decay of 1e-4 on all but the norms."""
    from torchvision.ops._utils import split_normalization_params

    norms, others = split_normalization_params(model)
    groups = [{"params": others, "weight_decay": _DECAY}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.SGD([each for each in groups if each["params"]], learning_rate, momentum=0.9)


def settle_batch_norm(model: nn.Module, run: Callable[[Any, Any], Any], batches: Iterable[tuple[Any, Any]]) -> None:
    """Make BatchNorm's running statistics the plain mean over batches, instead of one that forgets (precise BatchNorm).

    Args:
        model: in training mode.
        run: passes a batch through it.
        batches: of inputs and targets.
    """
    layers = [each for each in model.modules() if isinstance(each, _BatchNorm)]
    momenta = [each.momentum for each in layers]
    for each in layers:
        each.reset_running_stats()
        each.momentum = None
    with torch.no_grad():
        for inputs, targets in batches:
            run(inputs, targets)
    for each, momentum in zip(layers, momenta, strict=True):
        each.momentum = momentum


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """The buffers of a model, by name."""
    return {name: value.detach().cpu() for name, value in model.named_buffers()}
