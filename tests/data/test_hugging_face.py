import pickle
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from falseneg.data import HuggingFace, Wrapped, inspect
from falseneg.errors import UserError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory, monkeypatch):
    """The library neither reads nor writes the user's cache, and shows no bars."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hugging face"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def pictures(picture):
    return [picture(number) for number in range(5)]


def made(pictures, labels=(0, 1, 1, 0, -1), image="image", label="label", **further):
    """A data set of the library, of pictures with classes."""
    names = datasets.ClassLabel(names=["cat", "dog"])
    columns = {image: [Image.fromarray(each) for each in pictures], label: list(labels)} | further
    dataset = datasets.Dataset.from_dict(columns)
    return dataset.cast_column(image, datasets.Image()).cast_column(label, names)


def saved(dataset, folder):
    dataset.save_to_disk(folder)
    return str(folder)


def is_picture(image, array):
    return bool((image.permute(1, 2, 0).numpy() == array).all())


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_data_set_saved_on_disk(tmp_path, pictures, in_memory):
    whole = made(pictures)
    images = HuggingFace(saved(whole if in_memory else datasets.DatasetDict(train=whole), tmp_path / "set"))
    assert len(images) == 5 and images.labels.tolist() == [0, 1, 1, 0, -1] and images.class_names == ("cat", "dog")
    assert all(is_picture(images.image(row), pictures[row]) for row in range(5))
    assert (
        images[2][1:] == (2, 1) and images.describe(3) == "train image 3" and images.encoded(0).startswith(b"\x89PNG")
    )
    again = pickle.loads(pickle.dumps(images))  # as for a worker that is started anew
    assert is_picture(again.image(4), pictures[4])
    assert inspect(images, workers=2).sentences() == []


def test_splits(tmp_path, pictures):
    whole = made(pictures)
    parts = {"train": whole, "validation": whole.select([1, 2]), "test": whole.select([0])}
    path = saved(datasets.DatasetDict(parts), tmp_path / "set")
    assert [len(images) for images in (HuggingFace(path), HuggingFace(path).test_set())] == [5, 1]
    assert HuggingFace(path, "validation").labels.tolist() == [1, 1] and HuggingFace(path, "test").test_set() is None
    with pytest.raises(UserError, match="the split of .* 'tset' is unknown .did you mean 'test'"):
        HuggingFace(path, "tset")
    path = saved(datasets.DatasetDict(first=whole, second=whole), tmp_path / "other")
    with pytest.raises(UserError, match="has the splits first, second: choose one with split"):
        HuggingFace(path)
    path = saved(datasets.DatasetDict(validation=whole), tmp_path / "third")
    assert HuggingFace(path).split == "validation"
    del parts["test"]
    path = saved(datasets.DatasetDict(parts), tmp_path / "fourth")
    assert len(HuggingFace(path).test_set()) == 2


def test_columns(tmp_path, pictures):
    whole = made(pictures, image="img", label="fine", note=["a", "b", "a", None, "a"])
    path = saved(whole.add_column("raw", [b"%d" % number for number in range(5)]), tmp_path / "set")
    assert HuggingFace(path).labels.tolist() == [0, 1, 1, 0, -1]  # the only column of classes
    assert HuggingFace(path, label=None).labels is None
    images = HuggingFace(path, label="note")
    assert images.labels.tolist() == [0, 1, 0, -1, 0] and images.class_names == ("a", "b")
    assert HuggingFace(path, image="raw").encoded(3) == b"3"
    for options, words in (
        ({"image": "imgs"}, "the column 'imgs' is unknown .did you mean 'img'"),
        ({"image": "note"}, "the column 'note' of .* holds .*string.*, not images"),
        ({"label": "fin"}, "the column 'fin' is unknown .did you mean 'fine'"),
        ({"label": "img"}, "the column 'img' of .* holds Image, not labels"),
    ):
        with pytest.raises(UserError, match=words) as error:
            HuggingFace(path, **options)
        assert "\n" not in str(error.value)
    two = whole.add_column("other", [0] * 5).cast_column("other", datasets.ClassLabel(names=["x"]))
    assert HuggingFace(saved(two, tmp_path / "two")).labels is None  # it is not clear which
    bare = whole.remove_columns("img")
    with pytest.raises(UserError, match="has no column of images .its columns: fine, note.: choose one with image"):
        HuggingFace(saved(bare, tmp_path / "bare"))


def test_a_folder_of_parquet_files(tmp_path, pictures):
    made(pictures).to_parquet(tmp_path / "train-00000.parquet")
    made(pictures[:2], labels=[1, 1]).to_parquet(tmp_path / "test-00000.parquet")
    images = HuggingFace(str(tmp_path))
    assert images.class_names == ("cat", "dog") and is_picture(images.image(3), pictures[3])
    assert images.test_set().labels.tolist() == [1, 1]


def test_a_folder_of_image_files(tmp_path, pictures, encode):
    for number, picture in enumerate(pictures):
        file = tmp_path / "set" / "train" / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(picture))
    images = HuggingFace(str(tmp_path / "set"))
    assert images.labels.tolist() == [0, 0, 0, 1, 1] and images.describe(1) == "train image 1 (2.png)"
    assert is_picture(images.image(1), pictures[2])
    (tmp_path / "set/train/cat/2.png").unlink()
    with pytest.raises(UserError, match=r"2.png cannot be opened .No such file"):
        images.image(1)


def test_rows_without_an_image_are_named(tmp_path, pictures):
    whole = made(pictures)
    broken = whole.map(lambda row, number: {"image": None} if number == 2 else row, with_indices=True)
    images = HuggingFace(saved(broken, tmp_path / "set"))
    with pytest.raises(UserError, match="train image 2 of .* holds no image"):
        images.image(2)


def test_nothing_is_fetched_unless_it_is_asked_for(monkeypatch):
    import huggingface_hub

    asked = []
    for name in ("hf_hub_download", "dataset_info"):
        monkeypatch.setattr(huggingface_hub.HfApi, name, lambda *_, **__: asked.append(1) or 1 / 0)
    with pytest.raises(UserError, match="cannot load nobody/nothing .*--data.download true"):
        HuggingFace("nobody/nothing")
    assert not asked and datasets.config.HF_HUB_OFFLINE is False
    with pytest.raises(UserError, match="cannot load nobody/nothing .*check the name and the network"):
        HuggingFace("nobody/nothing", download=True)
    assert asked


def test_what_cannot_be_loaded(tmp_path, monkeypatch, pictures):
    with pytest.raises(UserError, match="the folder ./nowhere does not exist"):
        HuggingFace("./nowhere")
    (tmp_path / "parquet").mkdir()
    (tmp_path / "parquet" / "train.parquet").write_bytes(b"PAR1" * 9)
    with pytest.raises(UserError, match="datasets cannot load .*Parquet.*give a whole data set"):
        HuggingFace(str(tmp_path / "parquet"))
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="is a file: give its folder"):
        HuggingFace(str(tmp_path / "a.parquet"))
    with pytest.raises(UserError, match="datasets cannot load .*give a whole data set"):
        HuggingFace(str(tmp_path))
    path = saved(made(pictures), tmp_path / "set")
    for file in (tmp_path / "set").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="datasets cannot load .*give a whole data set") as error:
        HuggingFace(path)
    assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'falseneg\[hugging-face\]'"):
        HuggingFace(path)


def test_the_library_s_own_data_set_by_row(pictures):
    """Its items are mappings; also with torch's format."""
    whole = made(pictures)
    images = Wrapped(whole)
    assert images.labels.tolist() == [0, 1, 1, 0, -1] and is_picture(images.image(1), pictures[1])
    tensors = Wrapped(whole.with_format("torch"))
    assert is_picture(tensors.image(1), pictures[1]) and torch.equal(tensors.labels, images.labels)


def test_an_array_of_float_is_no_picture(tmp_path):
    dataset = datasets.Dataset.from_dict({"image": np.zeros((2, 3, 3)).tolist()})
    with pytest.raises(UserError, match="the column 'image' of .* not images"):
        HuggingFace(saved(dataset, tmp_path / "set"), image="image")


def test_captions(tmp_path, pictures):
    texts = ["one", None, " é\n", "", "x" * 10_000]
    path = saved(
        datasets.DatasetDict(train=made(pictures, caption=texts, words=[["a", "b"], [], None, ["c"], ["d"]])),
        tmp_path / "set",
    )
    images = HuggingFace(path)
    assert images.captioned and [images.captions(row) for row in (4, 0, 1, 2, 3)] == [
        ("x" * 10_000,),
        ("one",),
        (),
        (" é\n",),
        ("",),
    ]
    assert is_picture(images.image(2), pictures[2]) and images.labels.tolist() == [0, 1, 1, 0, -1]
    assert pickle.loads(pickle.dumps(images)).captions(0) == ("one",)
    lists = HuggingFace(path, caption="words")
    assert [lists.captions(row) for row in range(5)] == [("a", "b"), (), (), ("c",), ("d",)]
    assert not HuggingFace(path, caption=None).captioned


def test_captions_of_the_test_split_and_none_at_all(tmp_path, pictures):
    whole = made(pictures, words=list("abcde"))
    images = HuggingFace(saved(datasets.DatasetDict(train=whole, test=whole), tmp_path / "set"), caption="words")
    assert images.test_set().captions(3) == ("d",)
    images = HuggingFace(saved(whole, tmp_path / "other"))
    assert not images.captioned and images.captions(0) == ()


def test_bad_columns_of_captions(tmp_path, pictures):
    path = saved(made(pictures, caption=list(range(5)), words=list("abcde")), tmp_path / "set")
    with pytest.raises(UserError, match="the column 'caption' of .* holds Value.*int64.*, not texts: choose one"):
        HuggingFace(path)
    with pytest.raises(UserError, match=r"the column 'wrods' is unknown \(did you mean 'words'\?\)"):
        HuggingFace(path, caption="wrods")
    with pytest.raises(UserError, match="the column 'label' of .* holds ClassLabel"):
        HuggingFace(path, caption="label")


@pytest.mark.parametrize("kind", ["string", "binary"])
def test_a_caption_that_is_not_utf8(tmp_path, pictures, kind):
    texts = pa.array([b"\xe9", *[b"b"] * 4], pa.binary())
    if kind == "string":  # it says that it is
        texts = pa.StringArray.from_buffers(5, *texts.buffers()[1:])
    whole = datasets.concatenate_datasets([made(pictures), datasets.Dataset(pa.table({"caption": texts}))], axis=1)
    images = HuggingFace(saved(whole, tmp_path / "set"))
    assert images.captions(1) == ("b",)
    with pytest.raises(UserError, match="train image 0.* has a caption that is not UTF-8 text"):
        images.captions(0)
