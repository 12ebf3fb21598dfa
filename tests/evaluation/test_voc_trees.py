"""The VOC trees: objects and their boxes, batches of them, and what is missing or damaged."""

import shutil

import pytest
import torch
import torchvision
from torch import nn
from voc_tree import COLOURS, write_voc

from falseneg.errors import UserError
from falseneg.evaluation import Task
from falseneg.evaluation.scenes import SceneBatches, mirrored
from falseneg.evaluation.voc import VOC_CLASSES, open_voc, voc_objects


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_voc(tmp_path_factory.mktemp("voc"), 3)


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
    with pytest.raises(UserError, match="give --protocol.download true, or put it there"):
        open_voc(str(tmp_path / "sets"), False)
    learnt, _ = open_voc(str(tmp_path / "sets"), True)
    assert len(learnt.images) == 6
    assert [each[1:] for each in asked] == [("2007", "trainval"), ("2012", "trainval"), ("2007", "test")]
    open_voc(str(tmp_path / "sets"), True)
    assert len(asked) == 3  # once


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
            open_voc(str(root), False)
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
            open_voc(str(root), False)
    finally:
        path.write_text(text)
    assert "\n" not in str(error.value)


def test_empty_lists_are_said(root, tmp_path):
    shutil.copytree(root / "VOCdevkit", tmp_path / "VOCdevkit")
    (tmp_path / "VOCdevkit/VOC2007/ImageSets/Main/test.txt").write_text("")
    with pytest.raises(UserError, match="the lists of VOC2007 for test are empty") as error:
        open_voc(str(tmp_path), False)
    assert str(tmp_path) in str(error.value)


def test_an_object_is_read_as_the_kit_writes_it(tmp_path):
    body = "<object><name>dog</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>2.0</ymin><xmax>500</xmax>"
    body += (
        "<ymax>3</ymax></bndbox></object><object><name>person</name><bndbox><xmax>9</xmax><xmin>5</xmin><ymin>5</ymin>"
    )
    (tmp_path / "a.xml").write_text(f"<annotation>{body}<ymax>9</ymax></bndbox></object></annotation>")
    dog, person = voc_objects(tmp_path / "a.xml")
    assert dog == ("dog", True, (0.0, 1.0, 500.0, 3.0)) and person == ("person", False, (4.0, 4.0, 9.0, 9.0))
