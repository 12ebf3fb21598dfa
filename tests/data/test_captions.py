"""What texts are, which images share them, and what is said before training."""

import numpy as np
import pytest
import torch

from falseneg.data import Digits, ImageSet, Subset, align_classes, caption_groups, inspect, split_holdout
from falseneg.data.captions import as_captions, look_at_captions
from falseneg.data.decoding import Decoded
from falseneg.errors import UserError


class Pairs(ImageSet):
    """Images with the captions that are given, each as it might stand in a file."""

    captioned = True

    def __init__(self, *captions, broken=()):
        self.given, self.broken = captions, broken

    def __len__(self):
        return len(self.given)

    def image(self, row):
        if row in self.broken:
            raise UserError(f"image {row} is broken")
        return torch.full((3, 2, 2), row, dtype=torch.uint8)

    def load(self, row):
        return Decoded(self.image(row), ())

    def place(self, row):
        return f"row {row} of the table"

    def captions(self, row):
        return as_captions(self.given[row], self.place(row))


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (None, ()),
        (" a <b>cat</b>\n", (" a <b>cat</b>\n",)),
        (b"\xef\xbb\xbfcaf\xc3\xa9", ("café",)),
        (["one", b"two", None, "one"], ("one", "two", "one")),
        (np.array(["one", "two"]), ("one", "two")),
        ([], ()),
        ("x" * 10_000, ("x" * 10_000,)),
    ],
)
def test_what_captions_are(value, texts):
    assert as_captions(value, "p") == texts


def test_groups_are_of_equal_sets_of_captions():
    pairs = Pairs(
        "a cat", ["x", "y"], None, " a cat\n", ["y", "x", "x "], "x", " ", "", b"\xff", "a  cat", ["x", "", "y"]
    )
    groups = caption_groups(pairs)
    assert groups.dtype == torch.int64
    assert groups.tolist() == [0, 1, -1, 0, 1, 2, -1, -1, -1, 3, -1]


def test_a_set_of_several_captions_is_not_the_caption_that_is_alike():
    assert caption_groups(Pairs("a", ["a", "b"], ["b"], ["b", "a"])).tolist() == [0, 1, 2, 1]


def test_captions_are_counted_once_an_image():
    found = look_at_captions(Pairs("a", ["a ", "b", "b"], "c", ["c", "d"], "e", " "))
    assert (found.total, found.distinct, found.shared) == (7, 5, 4) and list(found.problems) == [5]


def test_only_numbers_are_kept(monkeypatch):
    calls = []
    found = look_at_captions(Pairs(*[f"{number} {'x' * 1000}" for number in range(2100)]), calls.append)
    assert calls == [1024, 2048, 2100] and found.groups.tolist() == list(range(2100))


def test_inspection_names_what_cannot_be_used():
    pairs = Pairs("a", None, " \n", b"\xe9t\xe9", ["b", ""], "c", "d", 7, broken=(2, 6))
    found = inspect(pairs, check_captions=True)
    assert found.unreadable_rows == [2, 6, 1, 3, 4, 7] and found.without_captions == 4
    assert [message.split(":")[0] for message in found.unreadable] == [
        "image 2 is broken",
        "image 6 is broken",
        "row 1 of the table has no caption",
        "row 3 of the table has a caption that is not UTF-8 text (byte 0)",
        "row 4 of the table has an empty caption among its 2",
        "row 7 of the table has a caption of type int",
    ]
    assert all("--skip-unreadable true" in message for message in found.unreadable[2:])
    left = found.readable(pairs)
    assert left.captioned and [left.captions(row) for row in range(len(left))] == [("a",), ("c",)]
    first, second, *_ = found.sentences()
    assert first == "unreadable images: 2, the first: image 2 is broken"
    assert second == "images without usable captions: 4 of 8, the first: row 1 of the table has no caption: give it one"


def test_captions_are_read_only_where_they_are_needed():
    pairs = Pairs("a", None, "a")
    assert inspect(pairs).sentences() == [] and inspect(pairs).captions is None
    with pytest.raises(UserError, match="the data hold no captions, and the method learns from pairs"):
        inspect(Digits(), limit=0, check_duplicates=False, check_captions=True)


def test_all_captions_are_read_whatever_the_limit():
    pairs, calls = Pairs(*map(str, range(40)), None), []
    found = inspect(pairs, lambda *call: calls.append(call), limit=1, check_captions=True)
    assert found.unreadable_rows == [40] and found.checked == 1 and ("reading captions", 41, 41) in calls


def test_shared_captions_are_said_and_few_distinct_ones_are_warned_of():
    found = inspect(Pairs("a", "a\n", "b", "c"), check_captions=True, check_duplicates=False)
    assert (found.captions, found.distinct_captions, found.shared_captions) == (4, 3, 2)
    (said,) = found.sentences()
    assert said.startswith("captions that another image has, too") and said.endswith("2 of 4 (distinct captions: 3)")
    few = inspect(Pairs(*["a", "b"] * 2, "a"), check_captions=True, check_duplicates=False).sentences()
    assert len(few) == 2 and few[1].startswith("warning: there are only 2 distinct captions for 5 images")
    enough = inspect(Pairs(*["a", "b"] * 2), check_captions=True, check_duplicates=False).sentences()
    assert len(enough) == 1
    assert inspect(Pairs("a", "b"), check_captions=True).sentences() == []


def test_no_usable_pair_at_all():
    pairs = Pairs(None, "", broken=(1,))
    with pytest.raises(
        UserError, match="none of the 2 images can be read with its captions, the first because: image 1"
    ):
        inspect(pairs, check_captions=True).readable(pairs)


def test_wrappers_hand_captions_on():
    pairs = Pairs("a", ["b", "c"], "d", "e")
    pairs.labels, pairs.class_names = torch.tensor([0, 1, 0, 1]), ("x", "y")
    subset = Subset(Subset(pairs, [3, 1, 0]), [2, 1])
    assert subset.captioned and subset.captions(1) == ("b", "c") and subset.captions(0) == ("a",)
    assert subset.place(1) == "row 1 of the table"
    other = Pairs("f")
    other.labels, other.class_names = torch.tensor([0]), ("y",)
    aligned = align_classes(other, pairs)
    assert aligned.labels.tolist() == [1] and aligned.captioned and aligned.captions(0) == ("f",)
    rest, out = split_holdout(pairs, 0.5, 0)
    assert rest.captioned and out.captioned
    assert not Digits().captioned and Digits().captions(0) == () and not Subset(Digits(), [0]).captioned
