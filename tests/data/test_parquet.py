import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

import falseneg.data.arrow_column as column_module
from falseneg.data import Parquet
from falseneg.errors import UserError


@pytest.fixture
def write(encode, picture):
    """A Parquet file of different images in small row groups."""

    def _write(path, count=10, first=0, labels=None, metadata=None, struct=False, name="image"):
        encoded = [encode(picture(first + number)) for number in range(count)]
        if struct:
            images = pa.array([{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(encoded)])
        else:
            images = pa.array(encoded, pa.binary())
        columns = {name: images} | ({} if labels is None else {"label": labels})
        table = pa.table(columns)
        if metadata:
            table = table.replace_schema_metadata(metadata)
        pq.write_table(table, path, row_group_size=3, compression="zstd")
        return encoded

    return _write


@pytest.fixture(params=["in memory", "unpacked"])
def either_way(request, monkeypatch):
    """Small files are held in memory, large ones unpacked and mapped."""
    if request.param == "unpacked":
        monkeypatch.setattr(column_module, "IN_MEMORY", 100)
    return request.param


def test_rows_labels_and_names(tmp_path, write, picture, either_way, own_cache):
    path = tmp_path / "train.parquet"
    labels = list(range(5)) * 2
    encoded = write(path, labels=labels, metadata={"class_names": json.dumps(list("abcde"))})
    images = Parquet(str(path))
    assert len(images) == 10 and images.labels.tolist() == labels and images.class_names == tuple("abcde")
    for row in (9, 0, 4, 3):
        assert images.encoded(row) == encoded[row] and images.encoded_size(row) == len(encoded[row])
        assert (images.image(row).permute(1, 2, 0).numpy() == picture(row)).all()
    assert images[4][1:] == (4, 4) and images.describe(4) == "row 4"
    assert own_cache.exists() == (either_way == "unpacked")


def test_several_files_folders_and_patterns_are_one_set(tmp_path, write, either_way):
    first = write(tmp_path / "a-0.parquet", 4, labels=["x", "y", "x", "x"])
    second = write(tmp_path / "a-1.parquet", 5, first=4, labels=["z", "x", None, "y", "y"])
    wanted = [
        str(tmp_path),
        str(tmp_path / "a-*.parquet"),
        [str(tmp_path / "a-0.parquet"), str(tmp_path / "a-1.parquet")],
    ]
    for path in wanted:
        images = Parquet(path)
        assert [images.encoded(row) for row in range(9)] == first + second
        assert images.labels.tolist() == [0, 1, 0, 0, 2, 0, -1, 1, 1] and images.class_names == ("x", "y", "z")


def test_structure_of_bytes_and_path_as_hugging_face_writes_it(tmp_path, write, either_way):
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    path = tmp_path / "a.parquet"
    encoded = write(path, 7, struct=True, labels=[0, 1, 0, 1, 0, 1, 1], metadata={"huggingface": json.dumps(features)})
    images = Parquet(str(path))
    assert [images.encoded(row) for row in range(7)] == encoded and images.class_names == ("cat", "dog")


def test_works_after_pickling_and_in_several_workers(tmp_path, write, either_way):
    path = tmp_path / "a.parquet"
    encoded = write(path, 12, labels=[0] * 12)
    images = Parquet(str(path))
    pickled = pickle.dumps(images)
    assert len(pickled) < sum(map(len, encoded))
    assert pickle.loads(pickled).encoded(11) == encoded[11]
    rows = [row for batch in DataLoader(images, 3, num_workers=2) for row in zip(batch[0], batch[1], strict=True)]
    assert [int(row) for _, row in rows] == list(range(12))
    assert all(torch.equal(image, images.image(int(row))) for image, row in rows)


def test_unpacked_copy_is_made_once_and_anew_when_the_file_changes(tmp_path, write, monkeypatch, own_cache):
    monkeypatch.setattr(column_module, "IN_MEMORY", 100)
    path = tmp_path / "a.parquet"
    write(path, 5)
    Parquet(str(path))
    (kept,) = own_cache.iterdir()
    made = kept.stat().st_mtime_ns
    Parquet(str(path))
    assert kept.stat().st_mtime_ns == made
    changed = write(path, 6, first=100)
    images = Parquet(str(path))
    assert [images.encoded(row) for row in range(6)] == changed
    assert len(list(own_cache.iterdir())) == 1  # the outdated copy is gone
    (kept,) = own_cache.iterdir()
    kept.write_bytes(b"damaged")
    assert Parquet(str(path)).encoded(5) == changed[5]


def test_a_large_file_is_never_held_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(column_module, "IN_MEMORY", 100)
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("image", pa.binary())]), compression="none") as writer:
        for _ in range(40):
            writer.write_table(pa.table({"image": pa.array([rng.bytes(20_000) for _ in range(50)], pa.binary())}))
    size = os.path.getsize(tmp_path / "a.parquet")
    before = pa.total_allocated_bytes()
    images = Parquet(str(tmp_path / "a.parquet"))
    sizes = [images.encoded_size(row) for row in range(len(images))]
    assert sum(sizes) == 40_000_000 and size > 40_000_000
    assert pa.total_allocated_bytes() - before < size / 10


def test_unlabelled_when_there_is_no_label_column_or_none_is_wanted(tmp_path, write):
    write(tmp_path / "a.parquet")
    assert Parquet(str(tmp_path / "a.parquet")).labels is None
    write(tmp_path / "b.parquet", labels=[1] * 10)
    assert Parquet(str(tmp_path / "b.parquet"), label=None).labels is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "imgae"}, r"the column 'imgae' is unknown \(did you mean 'image'\?\): choose one of image, label"),
        ({"label": "lable"}, r"the column 'lable' is unknown \(did you mean 'label'\?\)"),
        ({"image": "label"}, "column 'label' of .* holds int64, not the bytes of images"),
    ],
)
def test_mistyped_columns(tmp_path, write, options, message):
    write(tmp_path / "a.parquet", labels=[0] * 10)
    with pytest.raises(UserError, match=message):
        Parquet(str(tmp_path / "a.parquet"), **options)


def test_bad_files(tmp_path, write, encode, picture):
    with pytest.raises(UserError, match="there is no file"):
        Parquet(str(tmp_path / "a.parquet"))
    with pytest.raises(UserError, match=r"holds no \.parquet files"):
        Parquet(str(tmp_path))
    with pytest.raises(UserError, match="is not a file: copy it to one first"):
        Parquet("pipe:cat a.parquet")
    with pytest.raises(UserError, match="at least one"):
        Parquet([])
    (tmp_path / "text.parquet").write_text("no parquet at all, only some text")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        Parquet(str(tmp_path / "text.parquet"))
    write(tmp_path / "empty.parquet", 0)
    with pytest.raises(UserError, match="has no rows"):
        Parquet(str(tmp_path / "empty.parquet"))


def test_damaged_pages_are_one_sentence(tmp_path, write, either_way):
    path = tmp_path / "a.parquet"
    write(path)
    data = bytearray(path.read_bytes())
    data[20:200] = bytes(180)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.parquet cannot be read as Parquet") as caught:
        Parquet(str(path))
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_images_are_named(tmp_path, encode, picture):
    images = pa.array([encode(picture()), None, b"text"], pa.binary())
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    found = Parquet(str(tmp_path / "a.parquet"))
    with pytest.raises(UserError, match=r"row 1 of .*a\.parquet holds no image"):
        found.image(1)
    with pytest.raises(UserError, match=r"row 2 of .*a\.parquet cannot be read as an image"):
        found.image(2)


def captioned(path, encode, picture, captions, name="caption", **options):
    images = [encode(picture(number)) for number in range(len(captions))]
    pq.write_table(pa.table({"image": images, name: captions}), path, row_group_size=2, **options)
    return str(path)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_a_column_of_captions(tmp_path, encode, picture, either_way, kind):
    texts = ["one", None, " <i>é</i>\n", "", "x" * 10_000]
    values = (
        pa.array(texts, pa.string()).cast(kind)
        if not pa.types.is_dictionary(kind)
        else pa.array(texts).dictionary_encode()
    )
    images = Parquet(captioned(tmp_path / "a.parquet", encode, picture, values))
    assert images.captioned and [images.captions(row) for row in (4, 1, 0, 2, 3)] == [
        ("x" * 10_000,),
        (),
        ("one",),
        (" <i>é</i>\n",),
        ("",),
    ]
    assert pickle.loads(pickle.dumps(images)).captions(2) == (" <i>é</i>\n",)
    assert not Parquet(str(tmp_path / "a.parquet"), caption=None).captioned


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.binary())])
def test_a_column_of_lists_of_captions(tmp_path, encode, picture, either_way, kind):
    values = pa.array([["a", "b"], [], None, ["c", None], ["d"], ["e"]], kind)
    images = Parquet(captioned(tmp_path / "a.parquet", encode, picture, values, "texts"), caption="texts")
    assert [images.captions(row) for row in range(6)] == [("a", "b"), (), (), ("c",), ("d",), ("e",)]
    assert (images.image(5).permute(1, 2, 0).numpy() == picture(5)).all()


def test_lists_are_measured_before_they_are_read(tmp_path, encode, picture):
    path = captioned(tmp_path / "a.parquet", encode, picture, [[f"{number}" * 1000] for number in range(10)])
    assert column_module.stored_size([path], "caption") > 10_000


def test_a_column_unpacked_as_captions_is_not_taken_for_images(tmp_path, encode, picture, monkeypatch):
    monkeypatch.setattr(column_module, "IN_MEMORY", 100)
    path = captioned(tmp_path / "a.parquet", encode, picture, [encode(picture(9))], "other")
    Parquet(path, caption="other")
    assert Parquet(path, image="other").encoded(0) == encode(picture(9))


def test_files_of_either_kind_of_captions_are_one_set(tmp_path, encode, picture, either_way):
    captioned(tmp_path / "a.parquet", encode, picture, ["a", "b", "c"])
    captioned(tmp_path / "b.parquet", encode, picture, [["d", "e"]], use_compliant_nested_type=False)
    images = Parquet(str(tmp_path))
    assert [images.captions(row) for row in range(4)] == [("a",), ("b",), ("c",), ("d", "e")]


def test_a_caption_that_is_not_utf8(tmp_path, encode, picture, either_way):
    values = pa.array(["é".encode("latin-1"), b"b"], pa.binary())
    values = pa.StringArray.from_buffers(2, values.buffers()[1], values.buffers()[2])  # it says that it is
    images = Parquet(captioned(tmp_path / "a.parquet", encode, picture, values))
    assert images.captions(1) == ("b",)
    with pytest.raises(UserError, match=r"row 0 of .*a\.parquet has a caption that is not UTF-8 text"):
        images.captions(0)


def test_bad_columns_of_captions(tmp_path, encode, picture, write):
    path = captioned(tmp_path / "a.parquet", encode, picture, [1, 2])
    with pytest.raises(UserError, match="the column 'caption' of .* holds int64, not texts: choose one of texts"):
        Parquet(path)
    assert not Parquet(path, caption=None).captioned
    with pytest.raises(UserError, match=r"the column 'captoin' is unknown \(did you mean 'caption'\?\)"):
        Parquet(path, caption="captoin")
    write(tmp_path / "b.parquet", 3)
    images = Parquet(str(tmp_path / "b.parquet"))
    assert not images.captioned and images.captions(0) == ()
