"""The twelve transfer sets, each read from a small tree in its published form, and both protocols on them."""

import os
import pickle
import shutil

import pytest
import torch
import torchvision.datasets
from published_trees import CLASSES, TREES, VOC, Pictures
from torch import nn

from falseneg.errors import UserError
from falseneg.evaluation import FineTuning, Task, Transfer
from falseneg.evaluation.transfer_sets import TRANSFER_SETS, VOC_CLASSES, open_set

PER_CLASS = 5
TOP_1 = {"Food101", "CIFAR10", "CIFAR100", "Birdsnap", "SUN397", "StanfordCars", "DTD"}


class MeanColour(nn.Module):
    """Features that tell the pictures apart: the mean of each channel. A weight of 0 is there to be fine-tuned."""

    image_size = 8

    def __init__(self):
        super().__init__()
        self.extra = nn.Linear(3, 3)
        nn.init.zeros_(self.extra.weight)
        nn.init.zeros_(self.extra.bias)

    def forward(self, images):
        means = images.float().mean(dim=(2, 3)) / 255
        return means + self.extra(means)


def trust(monkeypatch):
    """Our small files have other checksums than the published ones: only their presence is checked."""

    def present(path, md5=None):
        return os.path.isfile(path)

    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", present)
    monkeypatch.setattr(torchvision.datasets.flowers102, "check_integrity", present)


@pytest.fixture(autouse=True)
def trusting(monkeypatch):
    trust(monkeypatch)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    for write in TREES.values():
        write(folder, Pictures(), PER_CLASS)
    return folder


def test_the_twelve_sets_are_those_of_the_paper():
    assert list(TRANSFER_SETS) == list(TREES) and len(TRANSFER_SETS) == 12
    per_class = {name for name, kind in TRANSFER_SETS.items() if kind.metric == "mean per class"}
    assert per_class == {"FGVCAircraft", "OxfordIIITPet", "Caltech101", "Flowers102"}
    assert {name for name, kind in TRANSFER_SETS.items() if kind.metric == "top-1"} == TOP_1
    assert TRANSFER_SETS["VOC2007"].metric == "11-point mAP"


@pytest.mark.parametrize("name", TREES)
def test_splits_labels_and_pictures(name, root):
    parts = open_set(name, str(root), False, 0)
    of_each = {"CIFAR10": 5 * PER_CLASS}.get(name, PER_CLASS) * CLASSES
    published_validation = name in ("FGVCAircraft", "VOC2007", "DTD", "Flowers102")
    train, validation, test = (len(part.targets) for part in parts)
    if name == "Caltech101":  # twice as many pictures, at most 30 of a class to learn from, all but one of these few
        assert (train + validation, test) == (CLASSES * (2 * PER_CLASS - 1), CLASSES)
    elif published_validation:
        assert (train, validation, test) == (of_each, of_each, of_each)
    else:
        assert (train + validation, test) == (of_each, PER_CLASS * CLASSES)
        assert validation == of_each // 5
    seen = set()
    for part in parts:
        for row in range(len(part.targets)):
            picture = part.images.image(row).float().mean(dim=(1, 2))
            target = part.targets[row]
            if name == "VOC2007":
                shown = [VOC.index(VOC_CLASSES[c]) for c in (target > 0).nonzero().flatten()]
                assert shown == [int(picture.argmax())]
            else:
                assert int(target) == int(picture.argmax())
            seen.add(bytes(part.images.image(row).numpy().tobytes()))
    assert len(seen) == train + validation + test  # no picture is in two parts


def test_a_root_may_be_relative(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    for name in TREES:
        for part in open_set(name, root.name, False, 0):
            assert len(part.images.image(0)) == 3


def test_difficult_objects_of_voc_neither_count_nor_are_missing(root):
    for part in open_set("VOC2007", str(root), False, 0):
        columns = [VOC_CLASSES.index(name) for name in VOC]
        last, first = part.targets[-1, columns].tolist(), part.targets[0, columns].tolist()
        assert (last, first) == ([0, -1, 1], [1, -1, -1])  # of both kinds: the plain one decides
        assert int((part.targets == 0).sum()) == 1


def test_what_is_drawn_depends_on_the_seed_alone(root):
    def kept(seed):
        return open_set("Food101", str(root), False, seed).train.images.rows.tolist()

    assert kept(0) == kept(0) != kept(1)
    # class by class: each class loses one in five
    assert torch.bincount(open_set("Food101", str(root), False, 3).validation.targets).tolist() == [1, 1, 1]


def test_the_whole_protocol(root):
    figures = Transfer(str(root)).run(Task(MeanColour(), 8))
    assert [each.on for each in figures] == list(TREES)
    for each in figures:
        assert each.value == 1.0 and each.metric == TRANSFER_SETS[each.on].metric, each
        assert each.details["validation"] == 1.0 and each.details["test images"] > 0
        assert 1e-6 <= each.details["penalty"] <= 1e5


def test_the_penalty_is_chosen_on_validation_images_only(root, monkeypatch):
    """Test pictures of other colours change the figure, and nothing that is chosen."""
    chosen = Transfer(str(root), ("DTD",)).run(Task(MeanColour(), 8))[0]
    swapped = root.parent / "swapped"
    shutil.copytree(root / "dtd", swapped / "dtd")
    images = swapped / "dtd/dtd/images"
    for i in range(PER_CLASS):
        a, b = (images / name / f"{name}_test{i}.jpg" for name in ("banded", "blotchy"))
        content = a.read_bytes()
        a.write_bytes(b.read_bytes())
        b.write_bytes(content)
    found = Transfer(str(swapped), ("DTD",)).run(Task(MeanColour(), 8))[0]
    assert found.value == pytest.approx(1 / 3)
    assert {**found.details} == {**chosen.details}


@pytest.mark.parametrize("name", ["Birdsnap", "VOC2007", "DTD"])
def test_fine_tuning(name, root):
    encoder = MeanColour()
    protocol = FineTuning(
        str(root), (name,), learning_rates=(0.1, 1.0), weight_decays=(0.0, 1e-3), steps=40, batch_size=8
    )
    figure = protocol.run(Task(encoder, 8))[0]
    assert figure.value == 1.0 and figure.details["learning rate"] in (0.1, 1.0)
    assert float(encoder.extra.weight.detach().abs().sum()) == 0.0  # a copy was trained
    assert protocol.run(Task(encoder, 8))[0] == figure  # nothing is random but by the seed


@pytest.mark.parametrize("name", TREES)
def test_a_missing_file_is_named(name, root, tmp_path):
    """Each file that is looked for is missed in one sentence that says what was looked for, and where."""
    shutil.copytree(root, tmp_path / "sets")
    for file in TRANSFER_SETS[name].files:
        path = tmp_path / "sets" / file
        path.rename(tmp_path / "away")
        with pytest.raises(UserError) as error:
            Transfer(str(tmp_path / "sets"), ("CIFAR10" if name != "CIFAR10" else "DTD", name)).run(
                Task(MeanColour(), 8)
            )
        said = str(error.value)
        assert name in said and file in said and str(tmp_path / "sets") in said and "\n" not in said
        (tmp_path / "away").rename(path)


DAMAGED = {
    "Food101": "food-101/meta/train.json",
    "SUN397": "SUN397/Training_01.txt",
    "StanfordCars": "stanford_cars/devkit/cars_train_annos.mat",
    "FGVCAircraft": "fgvc-aircraft-2013b/data/images_variant_train.txt",
    "VOC2007": "VOCdevkit/VOC2007/Annotations/000000.xml",
    "DTD": "dtd/dtd/labels/train1.txt",
    "OxfordIIITPet": "oxford-iiit-pet/annotations/trainval.txt",
    "Flowers102": "flowers-102/imagelabels.mat",
    "CIFAR100": "cifar-100-python/train",
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff\xfe\x00"], ids=["empty", "nonsense", "no text"])
def test_damaged_annotations_are_one_sentence(name, content, root, tmp_path):
    shutil.copytree(root, tmp_path / "sets")
    (tmp_path / "sets" / DAMAGED[name]).write_bytes(content)
    with pytest.raises(UserError) as error:
        Transfer(str(tmp_path / "sets"), (name,)).run(Task(MeanColour(), 8))
    assert name in str(error.value) and "\n" not in str(error.value)


def _emptied(root):
    for path in root.rglob("*.jpg"):
        path.unlink()


def _rewritten(file, change):
    def rewrite(root):
        path = root / file
        path.write_text(change(path.read_text()))

    return rewrite


def _pickled_anew(file, change):
    def rewrite(root):
        fields = pickle.loads((root / file).read_bytes())
        change(fields)
        (root / file).write_bytes(pickle.dumps(fields))

    return rewrite


def _first_words(text):
    return "\n".join(line.split()[0] for line in text.splitlines())


CIFAR_TEST, AIRCRAFT = "cifar-10-batches-py/test_batch", "fgvc-aircraft-2013b/data"
NOT_AS_PUBLISHED = {
    "no photos of dishes": ("Food101", _emptied, "food-101/images/dish_0/train0.jpg"),
    "no textures": ("DTD", _emptied, "dtd/dtd/images/banded/banded_train0.jpg"),
    "no scenes": ("SUN397", _emptied, "SUN397/a/abbey/sun_tr0.jpg"),
    "no birds": ("Birdsnap", _emptied, "birdsnap/train holds no images"),
    "an empty list": ("SUN397", _rewritten("SUN397/Testing_01.txt", lambda text: ""), "there are no test images"),
    "an empty list of pets": (
        "OxfordIIITPet",
        _rewritten("oxford-iiit-pet/annotations/test.txt", lambda text: ""),
        "empty",
    ),
    "a class that is not named": (
        "SUN397",
        _rewritten("SUN397/ClassName.txt", lambda text: text.replace("/z/zen_garden\n", "")),
        "Training_01.txt names images of /z/zen_garden, which is not in ClassName.txt",
    ),
    "no labels of pets": (
        "OxfordIIITPet",
        _rewritten("oxford-iiit-pet/annotations/trainval.txt", _first_words),
        "of oxford-iiit-pet/images, oxford-iiit-pet/annotations/trainval.txt",
    ),
    "no labels of aircraft": (
        "FGVCAircraft",
        _rewritten(f"{AIRCRAFT}/images_variant_train.txt", _first_words),
        f"{AIRCRAFT}/images_variant_train.txt",
    ),
    "no labels of small images": ("CIFAR10", _pickled_anew(CIFAR_TEST, lambda each: each.pop("labels")), "there is no"),
    "fewer labels": (
        "CIFAR10",
        _pickled_anew(CIFAR_TEST, lambda each: each["labels"].pop()),
        f"there are {CLASSES * PER_CLASS} images and {CLASSES * PER_CLASS - 1} labels of them",
    ),
    "a class that is not learnt": (
        "CIFAR10",
        _pickled_anew(CIFAR_TEST, lambda each: each["labels"].__setitem__(4, 9)),
        f"show 3 classes, and 1 of {CLASSES * PER_CLASS} test images are of others, the first of them test image 4",
    ),
    "another species": (
        "Birdsnap",
        lambda root: (root / "birdsnap/test/species 2").rename(root / "birdsnap/test/species 9"),
        "the first of them species 9/0.jpg",
    ),
}


@pytest.mark.parametrize("what", NOT_AS_PUBLISHED)
def test_what_is_not_as_published_is_said_before_anything_is_measured(what, root, tmp_path):
    name, spoil, words = NOT_AS_PUBLISHED[what]
    shutil.copytree(root, tmp_path / "sets")
    spoil(tmp_path / "sets")
    with pytest.raises(UserError) as error:
        open_set(name, str(tmp_path / "sets"), False, 0)
    said = str(error.value)
    assert words in said and name in said and str(tmp_path / "sets") in said and "\n" not in said
    assert "--skip-unreadable" not in said and "Error" not in said.replace("[Errno", "")


def test_an_image_that_breaks_later_is_not_to_be_left_out(root, tmp_path):
    shutil.copytree(root / "dtd", tmp_path / "dtd")
    path = tmp_path / "dtd/dtd/images/blotchy/blotchy_train2.jpg"
    path.write_bytes(b"no image")
    with pytest.raises(UserError) as error:
        Transfer(str(tmp_path), ("DTD",)).run(Task(MeanColour(), 8))
    assert path.name in str(error.value) and "put it there as it is published" in str(error.value)
    assert "--skip-unreadable" not in str(error.value)


def test_refusals(root):
    for options, words in (
        ({"sets": ("Food",)}, "no set Food; choose one of Food101"),
        ({"sets": ()}, "sets is empty"),
        ({"penalties": (0.0,)}, "above 0"),
        ({"penalties": ()}, "above 0"),
    ):
        with pytest.raises(UserError, match=words):
            Transfer(str(root), **options).run(Task(MeanColour(), 8))
