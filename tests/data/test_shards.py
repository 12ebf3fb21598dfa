import gzip
import io
import json
import os
import pickle
import tarfile

import pytest
import torch
from torch.utils.data import DataLoader

from falseneg.data import Shards
from falseneg.errors import UserError


@pytest.fixture
def write():
    """A tar file of the named members, in order."""

    def _write(path, members):
        with tarfile.open(path, "w") as tar:
            for name, data in members:
                data = data if isinstance(data, bytes) else str(data).encode()
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    return _write


@pytest.fixture
def shards(tmp_path, write, encode, picture):
    """Two shards of three samples with labels in either form."""
    for shard in range(2):
        members = []
        for number in range(3):
            key = f"{shard}{number}"
            members.append((f"{key}.png", encode(picture(int(key)))))
            members.append((f"{key}.cls", number))
            members.append((f"{key}.json", json.dumps({"name": "odd" if number % 2 else "even", "words": ["a"]})))
        write(tmp_path / f"s-{shard:03d}.tar", members)
    return tmp_path


def test_rows_are_stable_and_read_directly(shards, picture, encode):
    for path in (str(shards), str(shards / "s-*.tar"), str(shards / "s-{000..001}.tar")):
        images = Shards(path)
        assert len(images) == 6 and images.labels.tolist() == [0, 1, 2] * 2 and images.class_names is None
        for row, key in ((4, "11"), (0, "00"), (5, "12")):
            assert images.encoded(row) == encode(picture(int(key))) and images.describe(row) == f"{key}.png"
            assert images.encoded_size(row) == len(images.encoded(row))
            assert (images.image(row).permute(1, 2, 0).numpy() == picture(int(key))).all()
        assert images.note is None


def test_label_from_json(shards):
    images = Shards(str(shards), label="name")
    assert images.class_names == ("even", "odd") and images.labels.tolist() == [0, 1, 0, 0, 1, 0]
    assert Shards(str(shards), label=None).labels is None


def test_works_after_pickling_and_in_several_workers(shards):
    images = pickle.loads(pickle.dumps(Shards(str(shards))))
    found = [each for batch in DataLoader(images, 2, num_workers=2) for each in zip(*batch, strict=True)]
    assert [int(row) for _, row, _ in found] == list(range(6))
    assert all(torch.equal(image, images.image(int(row))) for image, row, _ in found)


def test_keys_end_at_the_first_dot_and_folders_belong_to_them(tmp_path, write, encode, picture):
    data = encode(picture())
    members = [("a/x.seg.png", b"no image"), ("a/x.JPG", data), ("b/x.png", data), ("b/x.cls", 3), ("c/x.png", data)]
    write(tmp_path / "a.tar", members)
    images = Shards(str(tmp_path / "a.tar"))
    assert [images.describe(row) for row in range(3)] == ["a/x.JPG", "b/x.png", "c/x.png"]
    assert images.labels.tolist() == [-1, 3, -1]


def test_preferred_ending_and_samples_without_an_image(tmp_path, write, encode, picture):
    small, large = encode(picture(0)), encode(picture(1))
    write(tmp_path / "a.tar", [("1.jpg", small), ("1.png", large), ("2.txt", "words"), ("3.webp", small)])
    images = Shards(str(tmp_path / "a.tar"))
    assert [images.describe(row) for row in range(len(images))] == ["1.jpg", "3.webp"]
    assert "1 samples without an image" in images.note
    assert Shards(str(tmp_path / "a.tar"), images=("png",)).describe(0) == "1.png"


def test_index_is_made_once_and_anew_when_a_shard_changes(shards, write, encode, picture, own_cache, monkeypatch):
    Shards(str(shards))
    (index,) = own_cache.iterdir()

    def refuse(*_, **__):
        pytest.fail("indexed again")

    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", refuse)
        assert len(Shards(str(shards))) == 6
    write(shards / "s-001.tar", [("new.png", encode(picture(7)))])
    images = Shards(str(shards))
    assert len(images) == 4 and images.encoded(3) == encode(picture(7))
    assert not index.exists()
    (index,) = own_cache.iterdir()
    index.write_bytes(b"damaged")
    assert len(Shards(str(shards))) == 4


def test_same_size_and_another_time_is_a_change(tmp_path, write, encode, picture):
    data = encode(picture())
    write(tmp_path / "a.tar", [("1.png", data), ("2.txt", "ab")])
    assert Shards(str(tmp_path / "a.tar")).describe(0) == "1.png"
    write(tmp_path / "a.tar", [("2.txt", "ab"), ("1.png", data)])
    os.utime(tmp_path / "a.tar", ns=(1, 1))
    assert Shards(str(tmp_path / "a.tar")).encoded(0) == data


def test_index_goes_where_it_is_told(shards, tmp_path, own_cache):
    Shards(str(shards), cache=str(tmp_path / "here"))
    assert len(list((tmp_path / "here").iterdir())) == 1 and not own_cache.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file cannot be written .*name another folder with cache"):
        Shards(str(shards), cache=str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("nam", r"the field 'nam' is unknown \(did you mean 'name'\?\)"),
        ("words", "is a list: choose one that holds a name"),
    ],
)
def test_bad_label_fields(shards, label, message):
    with pytest.raises(UserError, match=message):
        Shards(str(shards), label=label)


def test_label_asked_for_and_no_json(tmp_path, write, encode, picture):
    write(tmp_path / "a.tar", [("1.png", encode(picture()))])
    with pytest.raises(UserError, match="there is no 'name' in any KEY.json"):
        Shards(str(tmp_path / "a.tar"), label="name")
    assert Shards(str(tmp_path / "a.tar")).labels is None


def test_bad_tars(tmp_path, write, shards, own_cache):
    whole = (shards / "s-000.tar").read_bytes()
    (tmp_path / "packed.tar").write_bytes(gzip.compress(whole))
    (tmp_path / "cut.tar").write_bytes(whole[:800])
    (tmp_path / "text.tar").write_text("no tar")
    for name in ("packed", "cut", "text"):
        with pytest.raises(UserError, match=f"{name}.tar cannot be read as a tar file .*whole, uncompressed"):
            Shards(str(tmp_path / f"{name}.tar"))
    write(tmp_path / "words.tar", [("1.txt", "words")])
    with pytest.raises(UserError, match=r"words\.tar holds no images"):
        Shards(str(tmp_path / "words.tar"))
    write(tmp_path / "bad.tar", [("1.png", b"text"), ("1.json", "{")])
    with pytest.raises(UserError, match="is not JSON"):
        Shards(str(tmp_path / "bad.tar"), label="name")
    with pytest.raises(UserError, match=r"1\.png in .*bad\.tar cannot be read as an image"):
        Shards(str(tmp_path / "bad.tar")).image(0)
    images = Shards(str(shards / "s-000.tar"))
    (shards / "s-000.tar").unlink()
    with pytest.raises(UserError, match=r"00\.png in .*s-000\.tar cannot be opened"):
        images.image(0)
