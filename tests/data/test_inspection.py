import os
import signal
import sys

import numpy as np
import pytest
from PIL import Image

from falseneg.data import Digits, Folder, ImageSet, Subset, Wrapped, find_duplicates, inspect
from falseneg.data.decoding import Decoded
from falseneg.errors import UserError


@pytest.fixture
def photos(tmp_path, encode, picture):
    """Every kind of image once, one unreadable, one triple and one pair of copies."""
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "a.png": encode(picture(0)),
        "b.png": encode(picture(1)),
        "c-copy-of-a.png": encode(picture(0)),
        "d-grey.png": encode(picture(2)[:, :, 0]),
        "e-deep.png": encode(np.arange(54, dtype=np.uint16).reshape(6, 9)),
        "f-turned.jpg": encode(picture(3, 16, 24), "JPEG", exif=exif),
        "g-clear.png": encode(Image.new("RGBA", (9, 6), (0, 0, 0, 0))),
        "h-broken.jpg": encode(picture(4, 64, 64), "JPEG")[:700],
        "i-copy-of-a.png": encode(picture(0)),
        "j-copy-of-grey.png": encode(picture(2)[:, :, 0]),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return Folder(str(tmp_path))


@pytest.mark.parametrize("workers", [0, 2])
def test_everything_is_found_and_each_kind_counted_once_an_image(photos, workers):
    calls = []
    found = inspect(photos, lambda *call: calls.append(call), workers=workers)
    assert (found.images, found.checked) == (10, 10)
    assert found.converted == {"greyscale": 3, "16-bit": 1, "EXIF-rotated": 1, "transparent": 1}
    assert found.unreadable_rows == [7] and len(found.unreadable) == 1 and "h-broken.jpg" in found.unreadable[0]
    assert found.sizes == {(6, 9): 8, (24, 16): 1}
    assert found.duplicates == [[0, 2, 8], [3, 9]] and found.exact_duplicate_images == 3
    assert calls[0][0] == "reading images" and calls[-1] == ("comparing files", calls[-1][2], calls[-1][2])
    left = found.readable(photos)
    assert len(left) == 9 and left.describe(7) == "i-copy-of-a.png"
    text = found.sentences()
    assert len(text) == 3 and "h-broken.jpg" in text[0] and "3 greyscale" in text[1] and ": 3 (groups" in text[2]
    assert not any("\n" in sentence for sentence in text)


def test_clean_set_has_nothing_to_say():
    digits = Subset(Digits(), range(40))
    found = inspect(digits)
    assert found.sentences() == [] and found.readable(digits) is digits and found.sizes == {(8, 8): 40}


def test_only_images_of_equal_size_are_read_for_duplicates(photos, monkeypatch):
    read = []
    original = Folder.encoded
    monkeypatch.setattr(Folder, "encoded", lambda self, row: read.append(row) or original(self, row))
    assert find_duplicates(photos) == [[0, 2, 8], [3, 9]]
    sizes = [photos.encoded_size(row) for row in range(len(photos))]
    assert sorted(read) == [row for row in range(10) if sizes.count(sizes[row]) > 1]
    assert 7 not in read and 5 not in read


def test_equal_sizes_are_not_yet_duplicates(tmp_path):
    for name, colour in (("a.ppm", b"abc"), ("b.ppm", b"abd"), ("c.ppm", b"abc")):
        (tmp_path / name).write_bytes(b"P6 1 1 255\n" + colour)
    assert find_duplicates(Folder(str(tmp_path))) == [[0, 2]]


def test_duplicates_where_nothing_is_stored_encoded():
    grey = [np.full((2, 3), 5), np.full((3, 2), 5), np.full((2, 3), 6), np.full((2, 3), 5)]
    assert find_duplicates(Wrapped([array.astype(np.uint8) for array in grey])) == [[0, 3]]


def test_duplicates_of_images_kept_in_memory():
    assert find_duplicates(Subset(Digits(), [4, 5, 4])) == [[0, 2]]


def test_search_can_be_bounded_and_switched_off(photos, monkeypatch):
    found = inspect(photos, limit=3, check_duplicates=False)
    assert (found.images, found.checked, found.duplicates, found.duplicates_checked) == (10, 3, [], False)
    assert inspect(photos, limit=0).checked == 0 and inspect(photos, limit=0).duplicates == [[0, 2, 8], [3, 9]]


def test_a_file_that_vanished_is_unreadable_not_an_error(photos, tmp_path):
    (tmp_path / "b.png").unlink()
    found = inspect(photos)
    assert found.unreadable_rows == [1, 7] and found.duplicates == [[0, 2, 8], [3, 9]]


def test_nothing_readable_at_all(tmp_path):
    (tmp_path / "a.png").write_bytes(b"text")
    (tmp_path / "b.png").write_bytes(b"")
    folder = Folder(str(tmp_path))
    with pytest.raises(UserError, match=r"none of the 2 images can be read, the first because: .*a\.png"):
        inspect(folder).readable(folder)


def test_images_are_not_held_all_at_once():
    import weakref

    import torch

    alive = weakref.WeakSet()
    most = 0

    class Large(ImageSet):
        def __len__(self):
            return 200

        def load(self, row):
            nonlocal most
            image = torch.zeros(3, 4, 4, dtype=torch.uint8)
            alive.add(image)
            most = max(most, len(alive))
            return Decoded(image, ())

        def image(self, row):
            return self.load(row).image

    inspect(Large())
    assert most <= 2


class Deadly(Digits):
    def load(self, row):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_one_sentence():
    with pytest.raises(UserError, match="a data-loading process was killed.*use fewer workers") as error:
        inspect(Deadly(), limit=40, check_duplicates=False, workers=1)
    assert "\n" not in str(error.value)


def test_what_is_missing_to_read_photos_of_phones_is_counted_and_named(
    tmp_path, monkeypatch, forget_format, encode, picture
):
    """All files of one kind in one clause: a person with a thousand of them has to know what to install."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    forget_format("HEIF")
    for extra, name in enumerate(("a.heic", "b.HEIC", "c.heif")):
        (tmp_path / name).write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + bytes(40 + extra))
    (tmp_path / "d.jpg").write_bytes(b"")
    (tmp_path / "e.png").write_bytes(encode(picture(0)))
    images = Folder(str(tmp_path))
    assert images.names == ["a.heic", "b.HEIC", "c.heif", "d.jpg", "e.png"]
    (sentence,) = inspect(images).sentences()
    assert (
        sentence.startswith("unreadable images: 4, 3 of them HEIC, which needs the package pillow-heif, the first: ")
        and "a.heic" in sentence
    )
