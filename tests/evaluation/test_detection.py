"""VOC detection: its average precision against the kit's definition, its detector, and the whole protocol on a small tree."""

import json
import random
import shutil
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn
from voc_tree import COLOURS, write_voc

from falseneg.cli import main
from falseneg.errors import UserError
from falseneg.evaluation import Task, VocDetection
from falseneg.evaluation.detection_metrics import (
    THRESHOLDS,
    Boxes,
    Detected,
    coco_average_precisions,
    voc_average_precisions,
)
from falseneg.evaluation.detector import detector_optimiser, faster_rcnn, settle_batch_norm
from falseneg.evaluation.pieces import Pieces
from falseneg.evaluation.scenes import SceneBatches, mirrored
from falseneg.evaluation.voc import VOC_CLASSES, open_voc, voc_objects
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


def boxes(*rows):
    """(image, x, y, x, y, kind)."""
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    return Boxes(table[:, 0].long(), table[:, 1:5], table[:, 5].long())


def test_average_precision_of_a_hand_computed_case():
    """Four objects that count and a difficult one, found in the order right, wrong (its second time), not counted, right, wrong.

    Precision 1, 1/2, 2/3, 2/4 at recalls 1/4, 1/4, 2/4, 2/4: the recalls 0, .1, .2 have 1, .3 to .5 have 2/3, the rest 0.
    """
    truth = boxes(
        (0, 0, 0, 10, 10, 1), (0, 20, 20, 30, 30, 1), (1, 0, 0, 10, 10, 1), (1, 20, 20, 30, 30, 1), (2, 0, 0, 9, 9, 1)
    )
    difficult = torch.tensor([False, True, False, False, False])
    found = boxes(
        (0, 0, 0, 10, 10, 1), (0, 1, 0, 10, 10, 1), (0, 20, 20, 30, 30, 1), (1, 0, 0, 10, 5, 1), (3, 0, 0, 10, 10, 1)
    )
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    given = Detected(found, scores, truth, difficult)
    figures = voc_average_precisions(given, (0.5, 0.55))[1]
    assert figures[0] == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)  # an overlap of exactly .5 is enough, as in the kit
    assert figures[1] == pytest.approx(3 * 1 / 11)


def judged(given, kind, threshold):
    """The kit's VOCevaldet.m line by line, with its 1-based boxes that include their last pixel."""
    objects = {}
    for image, box, each, hard in zip(*(part.tolist() for part in (*given.truth, given.difficult)), strict=True):
        if each == kind:
            x, y, right, bottom = box
            objects.setdefault(image, []).append({"box": (x + 1, y + 1, right, bottom), "hard": hard, "found": False})
    positives = sum(not each["hard"] for listed in objects.values() for each in listed)
    rows = [row for row in range(len(given.scores)) if int(given.found.kind[row]) == kind]
    right, wrong, curve = 0, 0, []
    for row in sorted(rows, key=lambda row: -float(given.scores[row])):
        x, y, x2, y2 = given.found.box[row].tolist()
        x, y = x + 1, y + 1
        best, most = None, -1.0
        for each in objects.get(int(given.found.image[row]), []):
            left, top, last, low = each["box"]
            width, height = min(x2, last) - max(x, left) + 1, min(y2, low) - max(y, top) + 1
            if width > 0 and height > 0:
                union = (x2 - x + 1) * (y2 - y + 1) + (last - left + 1) * (low - top + 1) - width * height
                if width * height / union > most:
                    best, most = each, width * height / union
        if most < threshold:
            wrong += 1
        elif not best["hard"]:
            right, wrong = (right, wrong + 1) if best["found"] else (right + 1, wrong)
            best["found"] = True
        if right + wrong:  # before the first that counts there is no precision
            curve.append((right, right / (right + wrong)))
    total = 0.0
    for tenth in range(11):
        total += max((precision for hits, precision in curve if 10 * hits >= tenth * positives), default=0.0) / 11
    return total if positives else None


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_by_a_loop(seed):
    draw = random.Random(seed)

    def box():
        x, y = draw.randrange(12), draw.randrange(12)
        return x, y, x + draw.randrange(2, 14), y + draw.randrange(2, 14)

    truth = [(draw.randrange(8), *box(), draw.randrange(1, 4)) for _ in range(60)]
    found = [(draw.randrange(10), *box(), draw.randrange(1, 5)) for _ in range(150)]
    for image, x, y, right, bottom, kind in truth[::2]:
        found += [(image, max(0, x - draw.randrange(2)), y, right + draw.randrange(3), bottom, kind)] * 2
    scores = torch.tensor([draw.randrange(40) / 40 for _ in found])  # many are equal
    difficult = torch.tensor([draw.random() < 0.3 for _ in truth])
    given = Detected(boxes(*found), scores, boxes(*truth), difficult)
    figures = voc_average_precisions(given)
    assert len(figures) == 3
    for kind, values in figures.items():
        assert values == pytest.approx([judged(given, kind, threshold) for threshold in THRESHOLDS], abs=1e-12)


def test_thresholds_are_those_of_the_tables():
    assert THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def test_a_class_of_difficult_objects_only_has_no_figure():
    given = Detected(
        boxes(), torch.zeros(0), boxes((0, 0, 0, 9, 9, 1), (0, 0, 0, 9, 9, 2)), torch.tensor([True, False])
    )
    assert voc_average_precisions(given) == {2: [0.0] * len(THRESHOLDS)}
    assert set(coco_average_precisions(given, 1).values()) == {0.0}


def test_cocos_average_precision():
    """Of two objects the first is found at an overlap of .8: precision 1 up to a recall of .5, on 51 of 101 recalls."""
    truth = boxes((0, 0, 0, 10, 10, 1), (1, 0, 0, 10, 10, 1), (1, 20, 20, 40, 40, 1))
    found = boxes((0, 0, 0, 10, 8, 1), (1, 20, 20, 40, 40, 1))  # the second is difficult: neither right nor wrong
    given = Detected(found, torch.tensor([0.5, 0.9]), truth, torch.tensor([False, False, True]))
    figures = coco_average_precisions(given, 3)
    # At .8 itself the overlap is enough; the library compares with .8 - 1e-10.
    assert figures == pytest.approx({"AP50": 51 / 101, "AP75": 51 / 101, "AP": 7 / 10 * 51 / 101})


def test_objects_of_a_tree(root):
    learnt, measured = open_voc(str(root), False)
    assert (len(learnt.images), len(measured.images)) == (6, 3)
    hard = 0
    for scenes in (learnt, measured):
        for row in range(len(scenes.images)):
            image = scenes.images.image(row).float()
            assert image.shape == (3, 48, 60)
            for box, kind in zip(scenes.boxes[row].int(), scenes.classes[row].tolist(), strict=True):
                left, top, right, bottom = box.tolist()  # the whole square and no more: JPEG blurs its edge a little
                inside = image[:, top:bottom, left:right].mean(dim=(1, 2))
                colour = torch.tensor(COLOURS[VOC_CLASSES[kind - 1]]).float()
                if scenes.images.describe(row).endswith("2008_000000.jpg"):
                    continue  # grey
                assert (inside - colour).abs().max() < 12
                wider = image[:, max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1].mean(dim=(1, 2))
                assert (inside - colour).abs().sum() < (wider - colour).abs().sum()
            hard += int(scenes.difficult[row].sum())
    objects = sum(len(each) for scenes in (learnt, measured) for each in scenes.boxes)
    assert hard == objects // 10 > 0


def test_a_root_may_be_relative(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    for scenes in open_voc(root.name, False):
        assert len(scenes.images.image(0)) == 3


def test_mirroring_moves_boxes_with_their_pixels():
    image = torch.zeros(3, 6, 10, dtype=torch.uint8)
    image[:, 1:4, 2:7] = 200
    turned, moved = mirrored(image, torch.tensor([[2.0, 1.0, 7.0, 4.0]]))
    assert moved.tolist() == [[3.0, 1.0, 8.0, 4.0]]
    assert bool((turned[:, 1:4, 3:8] == 200).all()) and int((turned > 0).sum()) == 3 * 3 * 5


def test_batches_are_known_by_seed_and_epoch(root):
    learnt, _ = open_voc(str(root), False)
    task = Task(nn.Identity(), 48)

    def epoch(number, start=0, workers=0):
        batches = SceneBatches(learnt, 2, Task(nn.Identity(), 48, workers=workers))
        return list(batches.epoch(number, start))

    first, again, other = epoch(0), epoch(0, workers=1), epoch(1)
    assert len(first) == 3 and SceneBatches(learnt, 2, task).per_epoch == 3
    for (images, targets), (same, same_targets) in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(images, same, strict=True))
        assert all(torch.equal(a[key], b[key]) for a, b in zip(targets, same_targets, strict=True) for key in a)
    assert torch.equal(epoch(0, 2)[0][0][0], first[2][0][0])
    seen = [image for part in (first, other) for images, _ in part for image in images]
    assert len({image.numpy().tobytes() for image in seen}) > len(learnt.images)  # some are mirrored in one epoch only


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


def test_what_is_not_there_is_fetched_if_asked_for(root, tmp_path, monkeypatch):
    asked = []

    def fetch(place, year, split, download=False):
        if download:
            asked.append((place, year, split))
            shutil.copytree(root, place, dirs_exist_ok=True)
        return real(place, year, split)

    real = torchvision.datasets.VOCDetection
    fetch.parse_voc_xml = real.parse_voc_xml
    monkeypatch.setattr(torchvision.datasets, "VOCDetection", fetch)
    with pytest.raises(UserError, match="give download, or put it there"):
        open_voc(str(tmp_path / "sets"), False)
    learnt, _ = open_voc(str(tmp_path / "sets"), True)
    assert len(learnt.images) == 6
    assert [each[1:] for each in asked] == [("2007", "trainval"), ("2012", "trainval"), ("2007", "test")]
    open_voc(str(tmp_path / "sets"), True)
    assert len(asked) == 3  # once


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


FILES = (
    "VOC2007/JPEGImages",
    "VOC2007/Annotations",
    "VOC2007/ImageSets/Main/trainval.txt",
    "VOC2007/ImageSets/Main/test.txt",
    "VOC2012/JPEGImages",
    "VOC2012/Annotations",
    "VOC2012/ImageSets/Main/trainval.txt",
    "VOC2007/JPEGImages/010000.jpg",
    "VOC2012/Annotations/2008_000001.xml",
)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(root, file):
    path = root / "VOCdevkit" / file
    path.rename(root / "away")
    try:
        with pytest.raises(UserError) as error:
            VocDetection(str(root), **SMALL).run(Task(encoder(), 48))
    finally:
        (root / "away").rename(path)
    said = str(error.value)
    assert file in said and str(root) in said and "as they are published" in said.replace("as it is", "as they are")
    assert "\n" not in said


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("<name>", "<name>x", "none of the twenty classes"),
        ("<xmin>", "<xmin>9", "whose box is empty"),
        ("</annotation>", "", "damaged"),
        ("<bndbox>", "<box>", "damaged"),
    ],
)
def test_damaged_annotations_are_one_sentence(root, old, new, words):
    path = next(
        path for path in sorted((root / "VOCdevkit/VOC2007/Annotations").iterdir()) if "<object>" in path.read_text()
    )
    text = path.read_text()
    path.write_text(text.replace(old, new))
    try:
        with pytest.raises(UserError, match=words) as error:
            VocDetection(str(root), **SMALL).run(Task(encoder(), 48))
    finally:
        path.write_text(text)
    assert "\n" not in str(error.value)


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


def test_an_object_is_read_as_the_kit_writes_it(tmp_path):
    body = "<object><name>dog</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>2.0</ymin><xmax>500</xmax>"
    body += (
        "<ymax>3</ymax></bndbox></object><object><name>person</name><bndbox><xmax>9</xmax><xmin>5</xmin><ymin>5</ymin>"
    )
    (tmp_path / "a.xml").write_text(f"<annotation>{body}<ymax>9</ymax></bndbox></object></annotation>")
    dog, person = voc_objects(tmp_path / "a.xml")
    assert dog == ("dog", True, (0.0, 1.0, 500.0, 3.0)) and person == ("person", False, (4.0, 4.0, 9.0, 9.0))


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
