import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset, TensorDataset

from falseneg.data import Digits, Subset, Wrapped, as_image_set
from falseneg.errors import UserError


class Own:
    """A data set as users write them."""

    classes = ("a", "b", "c")

    def __init__(self, n=4, targets=None, broken=()):
        self.n, self.reads, self.broken = n, 0, broken
        if targets is not None:
            self.targets = targets

    def __len__(self):
        return self.n

    def __getitem__(self, row):
        self.reads += 1
        if row in self.broken:
            raise OSError("image file is truncated")
        return Image.new("L", (5, 4), row), np.int64(row % 3), "further"


def test_image_and_label():
    images = as_image_set(Own())
    assert isinstance(images, Wrapped) and len(images) == 4
    assert images.labels.tolist() == [0, 1, 2, 0] and images.class_names == ("a", "b", "c")
    image, row, label = images[2]
    assert image.shape == (3, 4, 5) and (image == 2).all() and (row, label) == (2, 2)
    assert images.load(1).conversions == ("greyscale",)
    assert images.describe(1) == "image 1 of Own" and images.encoded(0) is None


@pytest.mark.parametrize("targets", [[0, 1, 2, 0], torch.tensor([0, 1, 2, 0]), np.array([0, 1, 2, 0], dtype=np.uint8)])
def test_labels_are_taken_from_targets_without_reading_everything(targets):
    own = Own(targets=targets)
    images = Wrapped(own)
    assert own.reads == 0
    assert images.labels.tolist() == [0, 1, 2, 0] and images.labels.dtype == torch.int64
    assert own.reads <= 2


@pytest.mark.parametrize("targets", [[5, 5, 5, 5], [0, 1, 2], ["a", "b", "c", "a"], [[0, 1], [1, 1], [2, 2], [0, 3]]])
def test_targets_that_are_not_the_labels_are_not_believed(targets):
    assert Wrapped(Own(targets=targets)).labels.tolist() == [0, 1, 2, 0]


def test_labels_are_read_once():
    own = Own(50)
    images = Wrapped(own)
    assert len(images.labels) == 50
    reads = own.reads
    assert len(images.labels) == 50 and own.reads == reads


def test_images_without_labels():
    class Bare(Own):
        def __getitem__(self, row):
            return torch.rand(3, 4, 4)

    images = Wrapped(Bare())
    assert images.labels is None and images[1][2] == -1 and images.image(0).dtype == torch.uint8


def test_second_element_that_is_no_label():
    images = Wrapped(TensorDataset(torch.zeros(3, 3, 4, 4), torch.rand(3)))
    assert images.labels is None
    assert Wrapped(TensorDataset(torch.zeros(3, 3, 4, 4), torch.tensor([2, 0, 1]))).labels.tolist() == [2, 0, 1]


def test_unreadable_image_is_named_and_does_not_hide_the_labels():
    images = Wrapped(Own(5, broken=(0, 3)))
    with pytest.raises(UserError, match=r"image 3 of Own cannot be read as an image \(image file is truncated"):
        images.image(3)
    assert images.labels.tolist() == [-1, 1, 2, -1, 1]
    assert Wrapped(Own(4, targets=[0, 1, 2, 0], broken=(0,))).labels.tolist() == [0, 1, 2, 0]


def test_picture_that_the_user_has_opened_but_not_read(tmp_path, encode, picture):
    (tmp_path / "whole.png").write_bytes(encode(picture(0)))
    (tmp_path / "cut.jpg").write_bytes(encode(picture(1, 64, 64), "JPEG")[:900])

    class Opened(Own):
        def __getitem__(self, row):
            return Image.open(tmp_path / ("whole.png", "cut.jpg")[row]), row

    images = Wrapped(Opened(2))
    assert (images.image(0).permute(1, 2, 0).numpy() == picture(0)).all()
    with pytest.raises(UserError, match=r"image 1 of Opened cannot be read as an image \(image file is truncated"):
        images.image(1)


def test_a_bug_of_the_users_keeps_its_traceback():
    class Bug(Own):
        def __getitem__(self, row):
            raise KeyError("bug")

    with pytest.raises(KeyError):
        Wrapped(Bug()).image(0)


def test_what_is_an_image_set_already_is_left_alone():
    digits = Digits()
    assert as_image_set(digits) is digits


def test_what_cannot_be_read_by_row():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(UserError, match="Stream cannot be read by row"):
        as_image_set(Stream())
    with pytest.raises(UserError, match="int cannot be read by row"):
        as_image_set(3)
    with pytest.raises(UserError, match="Own is empty"):
        as_image_set(Own(0))


@pytest.mark.parametrize("keys", [("image", "label"), ("img", "target")])
def test_items_that_are_mappings(keys):
    class Mappings(Own):
        def __getitem__(self, row):
            image, label, further = super().__getitem__(row)
            return {"further": further, keys[1]: label, keys[0]: image}

    images = Wrapped(Mappings())
    assert images.labels.tolist() == [0, 1, 2, 0]
    image, row, label = images[2]
    assert (image == 2).all() and (row, label) == (2, 2) and images.load(1).conversions == ("greyscale",)


def test_a_mapping_without_an_image_is_named_by_what_it_holds():
    class Mappings(Own):
        def __getitem__(self, row):
            return {"picture": Image.new("L", (5, 4), row), "label": 1}

    images = Wrapped(Mappings())
    with pytest.raises(
        UserError, match="image 1 of Mappings is a mapping that holds 'picture', 'label': an item needs"
    ):
        images.image(1)
    assert images.labels is None


def picture_of(number):
    return Image.new("L", (5, 4), number)


@pytest.mark.parametrize(
    "items",
    [
        [(picture_of(0), "a cat"), (picture_of(1), ["a dog", "pet"])],
        [{"image": picture_of(0), "caption": "a cat"}, {"image": picture_of(1), "caption": ["a dog", "pet"]}],
        [{"img": picture_of(0), "text": "a cat", "label": 1}, {"img": picture_of(1), "text": ["a dog", "pet"]}],
    ],
)
def test_captions_of_items(items):
    images = Wrapped(items)
    assert images.captioned and [images.captions(row) for row in (1, 0)] == [("a dog", "pet"), ("a cat",)]
    assert images.image(1).shape == (3, 4, 5)


def test_labels_are_no_captions():
    images = Wrapped(Own())  # its third element is a text, as the path of a file might be
    assert not images.captioned and images.captions(0) == ()
    assert not Wrapped([picture_of(0)]).captioned and Wrapped([picture_of(0)]).captions(0) == ()


def test_captions_are_looked_for_once_and_a_broken_first_item_is_passed_over():
    class Broken(Own):
        def __getitem__(self, row):
            return super().__getitem__(row)[0], "text"

    own = Broken(broken=(0,))
    images = Wrapped(own)
    assert own.reads == 0 and images.captioned and own.reads == 2 and images.captioned and own.reads == 2
    assert Subset(images, [1]).captions(0) == ("text",)
    with pytest.raises(UserError, match="image 0 of Broken cannot be read"):
        images.captions(0)


def test_an_item_with_another_thing_for_a_caption():
    with pytest.raises(UserError, match="image 0 of list has a caption of type int"):
        Wrapped([{"image": picture_of(0), "caption": 5}]).captions(0)
