import os
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import falseneg.data.table as module
from falseneg.data import Table, inspect
from falseneg.errors import UserError


@pytest.fixture
def table(tmp_path, write_images):
    """A table of that content beside the images 1.png to 5.png."""
    write_images(tmp_path, *(f"{number}.png" for number in range(1, 6)))

    def _table(content, name="a.csv"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(tmp_path / name)

    return _table


def captions_of(images):
    return [images.captions(row) for row in range(len(images))]


def test_lines_of_one_image_are_its_captions(table, tmp_path):
    path = table(
        'image,caption,kind\n2.png,"a cat, black",b\n1.png,<b>x</b>,a\n2.png, "two\nlines",b\n\n2.png,x,\n3.png,"a ""q""",c\n'
    )
    images = Table(path, label="kind")
    assert images.captioned and images.names == ["2.png", "1.png", "3.png"]
    assert captions_of(images) == [("a cat, black", "two\nlines", "x"), ("<b>x</b>",), ('a "q"',)]
    assert images.labels.tolist() == [1, 0, 2] and images.class_names == ("a", "b", "c")
    assert images.encoded(1) == (tmp_path / "1.png").read_bytes() and images.encoded_size(0) > 0
    assert images[2][0].shape == (3, 6, 9) and images.describe(0) == "2.png" and Table(path).labels is None
    again = pickle.loads(pickle.dumps(images))
    assert again.captions(0) == images.captions(0) and torch.equal(again.image(2), images.image(2))


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_table_of_open_clip(table, mark, end):
    """Tab separated, whatever its ending."""
    path = table(mark + end.join(["filepath\ttitle", "1.png\ta cat, and é", "2.png\tb"]))
    images = Table(path, image="filepath", caption="title")
    assert captions_of(images) == [("a cat, and é",), ("b",)]


def test_another_separator_and_another_root(table, tmp_path, write_images):
    write_images(tmp_path / "sub", "7.png")
    path = table("image_name| comment_number| comment\n7.png| 0| Two men .\n7.png| 1| Two , young .\n")
    images = Table(path, image="image_name", caption="comment", separator="|", root=str(tmp_path / "sub"))
    assert captions_of(images) == [("Two men .", "Two , young .")] and images.place(0) == str(
        tmp_path / "sub" / "7.png"
    )


def test_order_is_kept_over_pieces(table, monkeypatch):
    monkeypatch.setattr(module, "_AT_A_TIME", 3)
    lines = [(number % 5 + 1, f"text {number}") for number in range(50)]
    images = Table(table("image,caption\n" + "".join(f"{image}.png,{text}\n" for image, text in lines)))
    assert captions_of(images) == [tuple(text for image, text in lines if image == row + 1) for row in range(5)]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_a_parquet_table_of_paths(tmp_path, table, kind):
    table("")
    paths = pa.array(["2.png", "1.png", "2.png", "3.png"])
    paths = paths.dictionary_encode() if pa.types.is_dictionary(kind) else paths.cast(kind)
    columns = {
        "image": paths,
        "caption": ["a", None, "b", "c"],
        "texts": [["d", "e"], [], ["f"], None],
        "y": [1, 0, 1, 4],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=2)
    images = Table(str(tmp_path / "t.parquet"), label="y")
    assert images.names == ["2.png", "1.png", "3.png"] and images.labels.tolist() == [1, 0, 4]
    assert captions_of(images) == [("a", "b"), (), ("c",)]
    assert captions_of(Table(str(tmp_path / "t.parquet"), caption="texts")) == [("d", "e", "f"), (), ()]


def test_what_cannot_be_used_is_left_to_the_inspection(table):
    images = Table(table("image,caption\n1.png,a\n2.png\n3.png,  \n6.png,gone\n4.png,b\n"))
    found = inspect(images, check_captions=True)
    assert found.unreadable_rows == [3, 1, 2] and found.without_captions == 2
    assert "there is no file" in found.unreadable[0] and "6.png" in found.unreadable[0]
    assert "2.png has no caption" in found.unreadable[1] and "3.png has an empty caption" in found.unreadable[2]
    assert captions_of(found.readable(images)) == [("a",), ("b",)]


@pytest.mark.parametrize("name", ["/dev/zero", "pipe", "a\0b", "x" * 5000])
def test_what_is_no_file_is_not_read(table, tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    images = Table(table(f"image,caption\n1.png,a\n{name},b\n"))
    for read in (images.image, images.encoded, images.encoded_size):
        with pytest.raises(UserError, match="there is no file"):
            read(1)
    assert inspect(images).unreadable_rows == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "in the first line of .*a.csv, which names the columns, the column 'image' is unknown|names no images"),
        ("image,caption\n", "names no images: write a line"),
        ("imgae,caption\n1.png,a\n", r"the column 'image' is unknown \(did you mean 'imgae'\?\)"),
        ("image,title\n1.png,a\n", "the column 'caption' is unknown: choose one of image, title"),
        (
            "image,caption\n1.png,a cat, black\n",
            r"line 2 of .*a\.csv has 3 cells, and the first line 2: put a text that holds ','",
        ),
        ('image,caption\n1.png,"a\nb"\n2.png,b,c\n', r"line 4 of .*a\.csv has 3 cells"),
        ("image,caption\n1.png,a\n ,b\n", r"line 3 of .*a\.csv names no image"),
        (
            'image,caption\n1.png,a\n2.png,"b\n3.png,"c"\n',
            r"line 3 of .*a\.csv cannot be read .*write its own quotes twice",
        ),
        (
            'image,caption\n1.png,a\n2.png,"b\n3.png,c\n',
            r"line 3 of .*a\.csv cannot be read \(unexpected end of data\)",
        ),
        (
            "image,caption\n1.png," + "a" * 200_000,
            r"line 2 of .*a\.csv cannot be read \(field larger than.*, or shorten a text of more than 131,072 characters",
        ),
        (
            "image,caption\n1.png,a\n2.png,caf\xe9\n".encode("latin-1"),
            r"line 3 of .*a\.csv is not UTF-8 text \(byte 9 of the line\)",
        ),
        ("image,caption\n1.png,a\n".encode("utf-16"), r"line 1 of .*a\.csv is not UTF-8 text"),
        ("image,caption\n1.png," + "a" * 2**22, r"line 2 of .*a\.csv has more than 4,194,304 bytes"),
        ("image,caption\n7.png,a\n8.png,b\n", r"none of the 2 images that .*a\.csv names is there, such as .*7\.png"),
    ],
)
def test_bad_tables(table, content, message):
    with pytest.raises(UserError, match=message) as error:
        Table(table(content))
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_labels_of_an_image_that_differ(table):
    path = table("image,caption,y\n1.png,a,\n2.png,b,0\n1.png,c,3\n1.png,d\n1.png,e,4\n")
    with pytest.raises(UserError, match=r"line 6 of .* gives '1\.png' the label '4', and a line before it '3'"):
        Table(path, label="y")
    assert Table(path).labels is None


@pytest.mark.parametrize("separator", ["", "||", '"', "\n"])
def test_what_is_no_separator(table, separator):
    with pytest.raises(UserError, match="is not one character that can stand between columns"):
        Table(table("image,caption\n1.png,a\n"), separator=separator)


def test_what_is_no_table(tmp_path):
    for path, message in (
        (tmp_path / "none.csv", "does not exist"),
        (tmp_path, "is not a file"),
        ("/dev/zero", "is not a file"),
    ):
        with pytest.raises(UserError, match=f"{message}: give a CSV, TSV or Parquet file"):
            Table(str(path))
    (tmp_path / "a.parquet").write_text("image,caption")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        Table(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"image": [b"x"], "caption": ["a"]},
            "'image' of .* holds binary, not paths of images: .*read images .*with Parquet",
        ),
        ({"image": ["x"], "caption": [1]}, "'caption' of .* holds int64, not texts"),
        ({"image": ["x"], "caption": ["a"], "y": [["a"]]}, "'y' of .* holds list<.*>, not labels"),
        ({"image": ["x"], "title": ["a"]}, "the column 'caption' is unknown"),
        ({"image": [None], "caption": ["a"]}, "row 0 of .* names no image"),
    ],
)
def test_bad_parquet_tables(tmp_path, columns, message):
    if columns["image"] == [None]:
        columns = columns | {"image": pa.array([None], pa.string())}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=message):
        Table(str(tmp_path / "t.parquet"), label="y" if "y" in columns else None)


def test_parquet_texts_that_are_not_utf8(tmp_path, table):
    table("")

    def column(*values):
        array = pa.array(values, pa.binary())
        return pa.StringArray.from_buffers(len(values), *array.buffers()[1:])

    pq.write_table(pa.table({"image": ["1.png", "2.png"], "caption": column(b"\xe9", b"b")}), tmp_path / "t.parquet")
    images = Table(str(tmp_path / "t.parquet"))
    assert images.captions(1) == ("b",)
    with pytest.raises(UserError, match=r"1\.png has a caption that is not UTF-8"):
        images.captions(0)
    for options in ({"image": "y"}, {"label": "y"}):
        pq.write_table(
            pa.table({"image": ["1.png"], "caption": ["a"], "y": column(b"\xe9.png")}), tmp_path / "t.parquet"
        )
        with pytest.raises(
            UserError, match="row 0 of .* in another encoding than UTF-8|cannot be read as Parquet .*utf-8"
        ):
            Table(str(tmp_path / "t.parquet"), **options)
