"""VOC detection: the detector, and the whole protocol on a small tree."""

import json
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn
from voc_tree import COLOURS, write_voc

from falseneg.cli import main
from falseneg.errors import UserError
from falseneg.evaluation import Task, VocDetection
from falseneg.evaluation.detector import detector_optimiser, faster_rcnn, settle_batch_norm
from falseneg.evaluation.pieces import Pieces
from falseneg.evaluation.voc import open_voc
from falseneg.evaluation.voc_detection import detections
from falseneg.models import Encoder

THIN = {"channels": [4, 8, 8, 8], "layers": [1, 1, 1, 1]}


SMALL = {"iterations": 2, "batch_size": 2, "drops": (), "sizes": (32, 48), "test_size": 48, "regions": (8, 8)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_voc(tmp_path_factory.mktemp("voc"), 3)


def encoder(name="resnet18", **arguments):
    torch.manual_seed(0)
    return Encoder(name, arguments={**THIN, **arguments})


def test_the_detector_is_c4(root):
    start = encoder()
    model = faster_rcnn(start, 20, (32, 64), (8, 8), 0)
    theirs = [each for name, each in start.backbone.state_dict().items() if not name.startswith("layer4")]
    assert all(torch.equal(a, b) for a, b in zip(model.backbone.state_dict().values(), theirs, strict=True))
    head = model.roi_heads.box_head
    assert torch.equal(head[0][0].conv1.weight, start.backbone.layer4[0].conv1.weight) and isinstance(
        head[1], nn.BatchNorm2d
    )
    seen = {}
    head[0].register_forward_hook(lambda module, given, made: seen.update(inside=given[0].shape, made=made.shape))
    model.backbone.register_forward_hook(
        lambda module, given, made: seen.update(stride=given[0].shape[-1] / made.shape[-1])
    )
    model.eval()([torch.rand(3, 64, 64)])
    assert seen["stride"] == 16 and seen["inside"][1:] == (8, 14, 14) and seen["made"][1:] == (8, 7, 7)
    assert all(each.requires_grad for each in model.parameters())
    assert model.train().backbone[1].training  # BatchNorm learns, too
    again = faster_rcnn(start, 20, (32, 64), (8, 8), 0)
    assert torch.equal(again.rpn.head.conv[0][0].weight, model.rpn.head.conv[0][0].weight)


def test_weights_of_torchvision(tmp_path):
    theirs = torchvision.models.resnet18()
    torch.save(theirs.state_dict(), tmp_path / "r18.pth")
    model = faster_rcnn(Encoder("resnet18", weights=tmp_path / "r18.pth"), 20, (64,), (8, 8), 0)
    images = torch.rand(1, 3, 64, 64)
    expected = nn.Sequential(*list(theirs.children())[:7]).eval()(images)
    assert torch.allclose(model.eval().backbone(images), expected, atol=1e-5)
    assert torch.equal(model.roi_heads.box_head[0][1].conv2.weight, theirs.layer4[1].conv2.weight)
    assert model.train().backbone[1].training  # although an encoder with weights keeps its BatchNorm frozen


def test_resnet_50_has_the_published_sizes():
    with torch.device("meta"):
        start = Encoder("resnet50")
    start.mean, start.std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    model = faster_rcnn(start.to_empty(device="cpu"), 20, (800,), (512, 1000), 0)
    assert model.backbone.out_channels == 1024 and model.rpn.head.cls_logits.weight.shape == (15, 1024, 1, 1)
    assert model.roi_heads.box_predictor.cls_score.weight.shape == (21, 2048)
    assert model.roi_heads.box_predictor.bbox_pred.weight.shape == (84, 2048)
    assert model.roi_heads.box_head[1].weight.shape == (2048,)


def test_norms_are_not_decayed():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 2))
    groups = detector_optimiser(model, 0.1).param_groups
    assert [(len(each["params"]), each["weight_decay"]) for each in groups] == [(4, 1e-4), (2, 0.0)]
    assert groups[0]["momentum"] == 0.9 and not groups[0]["nesterov"]


def test_batch_norm_settles_at_the_plain_mean_over_batches():
    layer, batches = nn.BatchNorm1d(3), [torch.randn(50, 3) + k for k in range(4)]
    layer(torch.randn(5, 3) * 100)
    settle_batch_norm(layer, lambda inputs, _: layer(inputs), [(each, None) for each in batches])
    assert torch.allclose(layer.running_mean, torch.stack([each.mean(0) for each in batches]).mean(0), atol=1e-6)
    assert torch.allclose(layer.running_var, torch.stack([each.var(0) for each in batches]).mean(0), atol=1e-5)
    assert layer.momentum == 0.1


def test_the_rate_rises_and_falls_as_published():
    rate = VocDetection().rate
    assert rate(0) == pytest.approx(2e-5) and rate(50) == pytest.approx(0.02 * (0.001 + 0.999 / 2))
    assert rate(100) == rate(19_999) == pytest.approx(0.02)
    assert rate(20_000) == rate(27_999) == pytest.approx(0.002) and rate(28_000) == rate(33_999) == pytest.approx(2e-4)
    assert VocDetection(warm_up=0).rate(0) == 0.02
    assert VocDetection().sizes == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)


class Stopped(Exception):
    """As if the process had ended there."""


@pytest.mark.parametrize("place", ["detector", "BatchNorm", "test images"])
def test_stopping_changes_nothing(root, tmp_path, place, monkeypatch):
    monkeypatch.setattr("falseneg.evaluation.voc_detection._AT_ONCE", 2)
    protocol = VocDetection(str(root), **SMALL)
    start = encoder()
    before = [each.clone() for each in start.state_dict().values()]
    undisturbed = Pieces(tmp_path / "undisturbed")
    whole = protocol.run(Task(start, 48, pieces=undisturbed))
    assert all(
        torch.equal(a, b) for a, b in zip(before, start.state_dict().values(), strict=True)
    )  # a copy was trained
    assert [each.metric for each in whole] == ["AP50", "AP75", "AP"] and all(0 <= each.value <= 1 for each in whole)

    def stop(what, done, total):
        if what == place and (done == 3 or place != "test images"):
            raise KeyboardInterrupt if place == "detector" else Stopped

    with pytest.raises((KeyboardInterrupt, Stopped)):
        protocol.run(Task(start, 48, pieces=Pieces(tmp_path / "parts"), progress=stop))
    pieces = Pieces(tmp_path / "parts")
    assert pieces.state("detector")["step"] == (1 if place == "detector" else 2)
    torch.manual_seed(5)  # what the caller drew before does not matter
    steps = []
    second = protocol.run(Task(start, 48, pieces=pieces, progress=lambda what, done, total: steps.append(what)))
    assert second == whole and steps.count("detector") == (1 if place == "detector" else 0)
    assert ("BatchNorm" in steps) is (place != "test images")
    assert steps.count("test images") == (1 if place == "test images" else 3)
    number = 0
    for part in ("detections-0", "detections-2"):
        expected, found = (each.state(part) for each in (undisturbed, pieces))
        assert sorted(found) == ["boxes", "image", "labels", "scores"]
        assert all(torch.equal(found[name], expected[name]) for name in found)
        number += len(found["scores"])
    assert number


class Whole:
    """A detector that finds one thing in every image, which covers it, with its mean brightness as the score."""

    def __init__(self):
        self.transform = SimpleNamespace(min_size=(1,))

    def __call__(self, images):
        assert self.transform.min_size == (32,)
        side = torch.tensor([[0.0, 0.0, images[0].shape[2], images[0].shape[1]]])
        return [{"boxes": side, "labels": torch.tensor([7]), "scores": images[0].mean()[None]}]


def test_detections_and_objects_are_those_of_their_images(root):
    scenes, _ = open_voc(str(root), False)
    given = detections(Whole(), 32, scenes, Task(nn.Identity(), 48))
    assert given.found.image.tolist() == [0, 1, 2, 3, 4, 5] and given.found.kind.tolist() == [7] * 6
    assert given.found.box.tolist() == [[0.0, 0.0, 60.0, 48.0]] * 6
    for row, score in enumerate(given.scores.tolist()):
        assert score == pytest.approx(float(scenes.images.image(row).float().mean() / 255))
        here = given.truth.image == row
        assert torch.equal(given.truth.box[here], scenes.boxes[row])
        assert torch.equal(given.truth.kind[here], scenes.classes[row])
        assert torch.equal(given.difficult[here], scenes.difficult[row])


def test_from_the_command_line(root, tmp_path, capsys):
    out, weights = tmp_path / "o.json", tmp_path / "e.safetensors"
    encoder().save(weights)
    options = "--protocol.iterations 2 --protocol.batch_size 2 --protocol.drops [1] --protocol.sizes [32] "
    options += "--protocol.test_size 32 --protocol.regions [8,8] --protocol.coco true --accelerator cpu --workers 0"
    command = ["evaluate", str(weights), "--protocol", "voc-detection", "--protocol.root", str(root)]
    assert main([*command, *options.split(), "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert [each["metric"] for each in content["figures"]] == [
        "AP50",
        "AP75",
        "AP",
        "COCO AP",
        "COCO AP50",
        "COCO AP75",
    ]
    assert content["image_size"] == 32 and {each["on"] for each in content["figures"]} == {"VOC2007 test"}
    details = content["figures"][0]["details"]
    assert (details["training images"], details["test images"]) == (6, 3) and set(details["of each class"]) <= {
        *COLOURS
    }
    assert "AP50" in capsys.readouterr().out


class Convolution(nn.Module):
    def forward(self, images):
        return images


@pytest.mark.parametrize(
    "start, options, words",
    [
        (Convolution(), {}, "Convolution is not a ResNet"),
        (Encoder("vit_tiny_patch16_224"), {}, "vit_tiny_patch16_224 is not a ResNet"),
        (None, {"drops": (2,)}, r"drops holds 2, and there are 2 iterations"),
        (None, {"drops": (0,)}, "drops holds 0"),
        (None, {"batch_size": 1}, "too small to detect objects"),
        (None, {"sizes": ()}, "sizes is 0"),
        (None, {"iterations": 0}, "iterations is 0"),
        (None, {"regions": (8, 0)}, "regions is 0"),
        (None, {"warm_up": -1}, "warm_up is -1"),
    ],
)
def test_refusals(root, start, options, words):
    with pytest.raises(UserError, match=words):
        VocDetection(str(root), **{**SMALL, **options}).run(Task(start or encoder(), 48))


def test_cocos_package_is_asked_for_before_anything_is_done(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"falseneg\[detection\]"):
        VocDetection("nowhere", coco=True).run(Task(encoder(), 48))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_learns_to_detect(tmp_path):
    """A ResNet-18 of narrow layers from random weights, on 80 pictures: two minutes of a processor."""
    root = str(write_voc(tmp_path, 40, side=64))
    torch.manual_seed(0)
    start = Encoder("resnet18", arguments={"channels": [16, 32, 64, 64]})
    settings = {"batch_size": 4, "drops": (), "sizes": (64,), "test_size": 64, "regions": (16, 32), "warm_up": 20}
    fresh = VocDetection(root, iterations=1, learning_rate=1e-9, **settings).run(Task(start, 64))[0]
    learnt = VocDetection(root, iterations=250, **settings).run(Task(start, 64))[0]
    assert learnt.metric == "AP50" and fresh.value < 0.05 and learnt.value > 0.2
