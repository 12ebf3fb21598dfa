import pytest
import torch

from falseneg.data import Digits, FileList, Folder, ImageSet, Subset, align_classes, split_holdout
from falseneg.data.image_set import encode_labels
from falseneg.errors import UserError


class Plain(ImageSet):
    """The least that a user's subclass must give."""

    def __init__(self, n=5, labels=None):
        self.n = n
        self.labels = labels

    def __len__(self):
        return self.n

    def image(self, row):
        return torch.full((3, 2, 2), row, dtype=torch.uint8)


def test_a_subclass_needs_a_length_and_images_only():
    plain = Plain()
    image, row, label = plain[3]
    assert image[0, 0, 0] == 3 and (row, label) == (3, -1)
    assert plain.encoded(0) is None and plain.encoded_size(0) is None and plain.test_set() is None
    assert plain.load(2).conversions == ()
    assert [row for _, row, _ in plain] == [0, 1, 2, 3, 4]
    with pytest.raises(IndexError):
        plain[5]


def test_subset_renumbers_rows_and_keeps_everything_else():
    digits = Digits()
    subset = Subset(digits, [7, 3])
    image, row, label = subset[1]
    assert row == 1 and label == digits.labels[3] and torch.equal(image, digits.image(3))
    assert subset.describe(0) == digits.describe(7)
    assert subset.encoded(0) == digits.encoded(7) and subset.encoded_size(0) == 8 * 8 * 3
    assert subset.class_names == digits.class_names and len(subset.test_set()) == 360


def test_holdout_is_disjoint_and_known_by_its_seed():
    digits = Digits()
    rest, out = split_holdout(digits, 0.1, seed=1)
    assert sorted(rest.rows.tolist() + out.rows.tolist()) == list(range(len(digits)))
    assert len(out) == round(0.1 * len(digits))
    assert torch.equal(out.rows, split_holdout(digits, 0.1, seed=1)[1].rows)
    assert not torch.equal(out.rows, split_holdout(digits, 0.1, seed=2)[1].rows)


def test_holdout_does_not_depend_on_what_labels_say():
    labels = torch.arange(40) % 5
    labels[::8] = -1
    shuffled = labels.clone()
    known = (labels >= 0).nonzero().flatten()
    shuffled[known] = labels[known.flip(0)] * 7
    rest, out = split_holdout(Plain(40, labels), 0.2, seed=3)
    assert not torch.equal(labels, shuffled) and len(out) == 7
    assert torch.equal(out.rows, split_holdout(Plain(40, shuffled), 0.2, seed=3)[1].rows)
    assert torch.equal(rest.rows, split_holdout(Plain(40, shuffled), 0.2, seed=3)[0].rows)


def test_holdout_is_drawn_among_the_labelled_images():
    labels = torch.full((30,), -1)
    labels[10:20] = 0
    rest, out = split_holdout(Plain(30, labels), 0.05, seed=0)
    assert len(out) == 1 and out.labels.tolist() == [0] and len(rest) == 29
    with_none = Plain(30, torch.full((30,), -1))
    assert torch.equal(split_holdout(with_none, 0.1, seed=0)[1].rows, split_holdout(Plain(30), 0.1, seed=0)[1].rows)


def test_holdout_without_labels():
    rest, out = split_holdout(Plain(10), 0.3, seed=0)
    assert (len(rest), len(out)) == (7, 3) and out.labels is None


@pytest.mark.parametrize(("n", "share"), [(10, 0.0), (10, 1.0), (10, -1), (1, 0.5)])
def test_holdout_that_leaves_a_side_empty(n, share):
    with pytest.raises(UserError, match="hold-out share"):
        split_holdout(Plain(n), share, seed=0)


def test_test_folder_that_lacks_a_class_counts_as_the_training_folder(tmp_path, write_images):
    write_images(tmp_path / "train", "ant/1.png", "bee/1.png", "cat/1.png")
    write_images(tmp_path / "test", "bee/1.png", "cat/1.png", "dog/1.png")
    train, test = Folder(str(tmp_path / "train")), Folder(str(tmp_path / "test"))
    aligned = align_classes(test, train)
    assert test.labels.tolist() == [0, 1, 2]
    assert aligned.labels.tolist() == [1, 2, -1] and aligned.class_names == ("ant", "bee", "cat")
    assert aligned[0][2] == 1
    (tmp_path / "list.csv").write_text("test/bee/1.png,bee\ntest/cat/1.png,\n")
    assert align_classes(FileList(str(tmp_path / "list.csv")), train).labels.tolist() == [1, -1]
    plain = Plain(labels=torch.tensor([4, 3, 2, 1, 0]))
    assert align_classes(plain, train) is plain


@pytest.mark.parametrize(
    ("values", "labels", "names"),
    [
        ([3, 0, 0], [3, 0, 0], None),
        (["2", " 0", ""], [2, 0, -1], None),
        ([1.0, float("nan"), None], [1, -1, -1], None),
        (["dog", "cat", b"dog"], [1, 0, 1], ("cat", "dog")),
        (["10", "x", "9"], [0, 2, 1], ("10", "9", "x")),
        ([1_000_000, -7, 20], [2, 0, 1], ("-7", "20", "1000000")),
        (["--1", "a"], [0, 1], ("--1", "a")),
        ([0.5, 1.5], [0, 1], ("0.5", "1.5")),
    ],
)
def test_labels_as_they_stand_in_files(values, labels, names):
    found, found_names = encode_labels(values)
    assert found.dtype == torch.int64 and found.tolist() == labels and found_names == names


def test_no_label_at_all():
    assert encode_labels([None, ""]) == (None, None)
