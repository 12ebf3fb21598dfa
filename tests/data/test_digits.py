import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from falseneg.data import Digits
from falseneg.errors import UserError


def test_split_is_fixed_stratified_and_whole():
    train, test = Digits(), Digits("test")
    assert (len(train), len(test)) == (1437, 360)
    assert sorted([*train.rows, *test.rows]) == list(range(1797))
    assert test.labels.bincount(minlength=10).tolist() == [36, 36, 36, 36, 37, 36, 36, 36, 35, 36]
    assert test.rows[[0, 1, 2, 200, -1]].tolist() == [0, 2, 4, 999, 1794]  # for ever
    assert train.test_set().split == "test" and test.test_set() is None


def test_pixels_are_scaled_from_sixteen_to_255():
    digits, source = Digits("test"), load_digits()
    image, row, label = digits[17]
    original = source.images[digits.rows[17]]
    assert image.dtype == torch.uint8 and image.shape == (3, 8, 8)
    assert (image.float() / 255 * 16 - torch.from_numpy(original)).abs().max() < 0.04
    assert label == source.target[digits.rows[17]] and row == 17
    assert np.stack([digits.image(i).numpy() for i in range(50)]).max() == 255


def test_split_is_named_when_mistyped():
    with pytest.raises(UserError, match=r"the split 'tst' is unknown \(did you mean 'test'\?\)"):
        Digits("tst")
