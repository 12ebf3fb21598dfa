"""The export for detectron2: its own names and shapes, written out here, and the encoder's values under them."""

import pickle

import numpy as np
import pytest
import torch

from falseneg.cli import main
from falseneg.errors import UserError
from falseneg.models import Encoder
from falseneg.models.detectron2 import detectron2_weights


def norm(name, width):
    return {f"{name}.norm.{each}": (width,) for each in ("weight", "bias", "running_mean", "running_var")} | {
        f"{name}.norm.num_batches_tracked": ()
    }


def convolution(name, inputs, outputs, side):
    return {f"{name}.weight": (outputs, inputs, side, side), **norm(name, outputs)}


def expected(blocks):
    """Detectron2's build_resnet_backbone and Res5ROIHeads: BasicStem, then res2 to res5 of BottleneckBlock, each with its norm."""
    names, inputs = convolution("stem.conv1", 3, 64, 7), 64
    for stage, number in enumerate(blocks):
        inside = 64 * 2**stage
        outputs = 4 * inside
        for block in range(number):
            name = f"res{stage + 2}.{block}"
            if inputs != outputs:
                names |= convolution(f"{name}.shortcut", inputs, outputs, 1)
            names |= convolution(f"{name}.conv1", inputs, inside, 1)
            names |= convolution(f"{name}.conv2", inside, inside, 3)
            names |= convolution(f"{name}.conv3", inside, outputs, 1)
            inputs = outputs
    return names


@pytest.mark.parametrize("depth, blocks", [(50, (3, 4, 6, 3)), (101, (3, 4, 23, 3))])
def test_names_and_shapes_are_detectron2s(depth, blocks, tmp_path, capsys):
    torch.manual_seed(0)
    encoder = Encoder(f"resnet{depth}")
    for value in encoder.backbone.buffers():
        value.add_(torch.rand(value.shape) if value.is_floating_point() else 7)
    encoder.save(tmp_path / "e.safetensors")
    out = tmp_path / "out.pkl"
    assert main(["export", str(tmp_path / "e.safetensors"), "--format", "detectron2", "--out", str(out)]) == 0
    content = pickle.loads(out.read_bytes())
    assert content["matching_heuristics"] is True and content["__author__"] not in ("Caffe2", None)
    weights, state = content["model"], encoder.backbone.state_dict()
    assert {key: value.shape for key, value in weights.items()} == expected(blocks)
    assert all(type(value) is np.ndarray for value in weights.values())

    def same(theirs, ours):
        assert np.array_equal(weights[theirs], state[ours].numpy())

    same("stem.conv1.weight", "conv1.weight")
    same("stem.conv1.norm.running_var", "bn1.running_var")
    same("res2.1.conv2.norm.running_mean", "layer1.1.bn2.running_mean")
    same("res5.0.shortcut.weight", "layer4.0.downsample.0.weight")
    same("res5.0.shortcut.norm.bias", "layer4.0.downsample.1.bias")
    same("res4.1.conv1.weight", "layer3.1.conv1.weight")
    used = {value.tobytes() for value in weights.values()}
    assert used == {value.numpy().tobytes() for value in state.values()}
    shown = capsys.readouterr().out
    assert "--config-file configs/pascal_voc_R_50_C4_24k_moco.yaml" in shown and f"MODEL.WEIGHTS {out}" in shown
    assert 'MODEL.PIXEL_MEAN "[123.675, 116.28, 103.53]" MODEL.PIXEL_STD "[58.395, 57.12, 57.375]"' in shown
    assert ("MODEL.RESNETS.DEPTH 101" in shown) is (depth == 101)


@pytest.mark.parametrize(
    "name, options",
    [
        ("resnet18", {}),  # Res5ROIHeads has no basic blocks
        ("resnet50", {"small_stem": True}),
        ("resnet50", {"arguments": {"channels": [8, 8, 8, 8]}}),
        ("resnet10t", {}),
        ("resnetblur50", {}),  # the same names and shapes as resnet50, and another pooling
        ("vit_tiny_patch16_224", {}),
    ],
)
def test_others_are_refused(name, options):
    with pytest.raises(UserError, match="none of the plain ResNets that detectron2's C4"):
        detectron2_weights(Encoder(name, **options))


def test_the_file_ends_as_the_format_wants(capsys):
    for form, name, ending in (("detectron2", "e.safetensors", ".pkl"), ("timm", "e.pkl", ".safetensors")):
        assert main(["export", "timm:resnet18", "--format", form, "--out", name]) == 2
        assert f"for {form} give a file that ends in {ending}" in capsys.readouterr().err
