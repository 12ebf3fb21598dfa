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


@pytest.fixture
def captioned(tmp_path, write, encode, picture):
    """A shard of one image a caption, which is the content of KEY.txt, or of KEY.json; None for a sample without."""

    def _captioned(*contents, ending="txt", name="c.tar"):
        members = []
        for number, content in enumerate(contents):
            members.append((f"{number}.png", encode(picture(number))))
            if content is not None:
                members.append((f"{number}.{ending}", content))
        write(tmp_path / name, members)
        return str(tmp_path / name)

    return _captioned


def test_captions_of_files(captioned, own_cache):
    texts = ("a cat\n", None, "<b>é</b>", "", "x" * 10_000, b"\xef\xbb\xbfmark")
    images = Shards(captioned(*texts))
    assert images.captioned and len(images) == 6
    assert [images.captions(row) for row in (5, 1, 0, 2, 3, 4)] == [
        ("mark",),
        (),
        ("a cat\n",),
        ("<b>é</b>",),
        ("",),
        ("x" * 10_000,),
    ]
    assert pickle.loads(pickle.dumps(images)).captions(2) == ("<b>é</b>",)
    assert (
        not Shards(captioned(*texts), caption=None).captioned
        and Shards(captioned(*texts), caption=None).captions(0) == ()
    )
    assert sum(path.stat().st_size for path in own_cache.iterdir()) < 10_000  # what is kept is not the texts


def test_images_without_any_captions(shards):
    images = Shards(str(shards))
    assert not images.captioned and images.captions(0) == ()


def test_captions_of_a_field_beside_labels_of_another(captioned):
    fields = [
        {"name": "b", "text": ["one", "two"]},
        {"name": "a", "text": "three"},
        {"name": "a", "text": None},
        {"name": "a"},
    ]
    images = Shards(captioned(*map(json.dumps, fields), ending="json"), label="name", caption="text")
    assert images.captioned and images.labels.tolist() == [1, 0, 0, 0] and images.class_names == ("a", "b")
    assert [images.captions(row) for row in range(4)] == [("one", "two"), ("three",), (), ()]
    other = Shards(captioned(*map(json.dumps, fields), ending="json"), caption="name")
    assert [other.captions(row) for row in range(4)] == [("b",), ("a",), ("a",), ("a",)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": 3}', "has a caption of type int: give a text or a list"),
        ('{"text": ["a", {"b": 1}]}', "has a caption of type dict"),
        ('{"text": "\\ud800"}', "is not UTF-8 text: convert it"),
        ('{"text": "caf\xe9"}'.encode("latin-1"), "KEY.json of .* is not JSON"),
        ("{", "KEY.json of .* is not JSON"),
        ("[" * 100_000, "is nested too deeply"),
        ("[1]", "is a list: give an object with fields"),
        (f'{{"text": "{"a" * (2**20 + 1)}"}}', "a caption of 1,048,577 bytes: give at most 1,048,576"),
        (" " * 2**22 + '{"text": "a"}', "a caption of 4,194,317 bytes"),
        (" " * 2**22 + "{}", "a caption of 4,194,306 bytes"),  # nor is it read to be indexed
    ],
)
def test_a_bad_field_is_said_where_it_is_read(captioned, content, message):
    images = Shards(captioned('{"text": "good"}', content, ending="json"), caption="text")
    assert images.captions(0) == ("good",) and images.image(1).shape == (3, 6, 9)
    with pytest.raises(UserError, match=message) as error:
        images.captions(1)
    said = str(error.value)
    assert "1.png in " in said and "c.tar" in said and "--skip-unreadable true" in said and len(said) < 400


def test_a_caption_in_another_encoding_and_a_huge_one(captioned):
    images = Shards(captioned("caf\xe9 noir".encode("latin-1"), "a" * (2**20 + 1), "bücher".encode("utf-16")))
    for row, message in enumerate((r"0\.png in .*c\.tar .*not UTF-8 text \(byte 3\)", "1,048,577 bytes", "not UTF-8")):
        with pytest.raises(UserError, match=message):
            images.captions(row)


def test_a_field_that_no_sample_has(captioned):
    path = captioned('{"text": "a"}', '{"txet": "b"}', ending="json")
    with pytest.raises(UserError, match=r"the field 'texts' is unknown \(did you mean 'text'\?\): choose one of text"):
        Shards(path, caption="texts")
    with pytest.raises(UserError, match="choose one of .there are none."):
        Shards(captioned("a"), caption="text")


def test_the_index_of_one_caption_is_not_read_for_another(captioned):
    path = captioned('{"text": "a"}', '{"other": "b"}', ending="json")
    assert [Shards(path, caption=name).captions(1) for name in ("text", "other")] == [(), ("b",)]


def test_members_that_stand_twice(tmp_path, write, encode, picture):
    new = encode(picture(1))
    members = [("1.png", encode(picture(0))), ("1.txt", "old"), ("2.png", new), ("1.png", new), ("1.txt", "new")]
    write(tmp_path / "a.tar", members)
    write(tmp_path / "b.tar", [("1.png", encode(picture(2))), ("1.txt", "other")])
    images = Shards(str(tmp_path))
    assert [(images.describe(row), images.captions(row)) for row in range(3)] == [
        ("1.png", ("new",)),
        ("2.png", ()),
        ("1.png", ("other",)),  # of another file: a sample of its own
    ]
    assert (
        images.encoded(0) == new
        and images.note == "2 members stand twice in their tar file: the last one of each is taken"
    )


def test_one_member_that_stands_twice_and_an_empty_file(tmp_path, write, encode, picture):
    write(tmp_path / "a.tar", [("1.png", encode(picture(0))), ("1.txt", "old"), ("1.txt", "new")])
    assert Shards(str(tmp_path)).note == "1 member stands twice in its tar file: the last one is taken"
    (tmp_path / "b.tar").touch()
    with pytest.raises(UserError, match=r"b\.tar cannot be read as a tar file \(it is empty\)"):
        Shards(str(tmp_path))


def test_a_tar_that_was_cut_short(tmp_path, write, encode, picture, captioned):
    path = tmp_path / "a.tar"
    write(path, [(f"{number}.{ending}", "a") for number in range(9) for ending in ("png", "txt")])
    whole = path.read_bytes()
    for blocks in (18, 17):
        path.write_bytes(whole[: blocks * 1024])
        images = Shards(str(path))
        assert len(images) == 9 and images.captions(8) == (("a",) if blocks == 18 else ())
        assert "no end is marked in" in images.note and "a.tar: cut short" in images.note
    for length in (17 * 1024 + 100, 17 * 1024 + 512, 17 * 1024 + 513):  # in a header, behind one, in the content
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.tar cannot be read as a tar file"):
            Shards(str(path))
    path.write_bytes(whole[:5120] + b"damaged" + whole[5127:])
    with pytest.raises(UserError, match="there is no member at byte 5,120"):
        Shards(str(path))
