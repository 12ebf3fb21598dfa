import os
import subprocess
import sys

import pytest
import torch

from falseneg.data import FileList, Folder
from falseneg.errors import UserError


def test_class_folders_in_sorted_order(tmp_path, write_images):
    write_images(tmp_path, "zebra/1.png", "ant/b/deep.PNG", "ant/a.jpg", "Bee/x.jpeg", "zebra/0.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.txt").write_text("not an image")
    (tmp_path / "ant" / "notes.csv").write_text("not an image")
    folder = Folder(str(tmp_path))
    assert folder.names == ["Bee/x.jpeg", "ant/a.jpg", "ant/b/deep.PNG", "zebra/0.png", "zebra/1.png"]
    assert folder.class_names == ("Bee", "ant", "zebra")
    assert folder.labels.tolist() == [0, 1, 1, 2, 2] and folder.labels.dtype == torch.int64
    assert folder.describe(1) == "ant/a.jpg" and folder.note is None
    assert folder.encoded(1) == (tmp_path / "ant/a.jpg").read_bytes()
    assert folder.encoded_size(1) == len(folder.encoded(1))
    assert folder[4][0].shape == (3, 6, 9) and folder[4][1:] == (4, 2)


def test_files_are_not_classes(tmp_path, write_images):
    write_images(tmp_path, "1.png", "2.png", "3.png")
    folder = Folder(str(tmp_path))
    assert len(folder) == 3 and folder.labels is None and folder.class_names is None and folder.note is None


def test_mixed_folder_is_unlabelled_and_says_so(tmp_path, write_images):
    write_images(tmp_path, "1.png", "a/2.png", "b/3.png")
    folder = Folder(str(tmp_path))
    assert len(folder) == 3 and folder.labels is None
    assert "1 images beside its sub-folders (a, b)" in folder.note and "unlabelled" in folder.note


def test_one_sub_folder_is_no_class(tmp_path, write_images):
    write_images(tmp_path, "images/1.png", "images/2.png")
    folder = Folder(str(tmp_path))
    assert folder.labels is None and "one sub-folder images" in folder.note


def test_hidden_files_and_folders_are_ignored(tmp_path, write_images):
    write_images(tmp_path, "a/1.png", "a/._1.png", ".thumbs/2.png", "b/.cache/3.png", "b/4.png")
    assert Folder(str(tmp_path)).names == ["a/1.png", "b/4.png"]


def test_links_are_followed_and_loops_end(tmp_path, write_images):
    write_images(tmp_path / "elsewhere", "1.png", "2.png")
    write_images(tmp_path / "root", "a/0.png")
    root = tmp_path / "root"
    os.symlink(tmp_path / "elsewhere", root / "b")
    os.symlink(root, root / "a" / "loop")
    os.symlink(root / "nowhere.png", root / "a" / "broken.png")
    os.symlink(root / "a" / "0.png", root / "a" / "again.png")
    code = f"from falseneg.data import Folder; f = Folder({str(root)!r}); print(*f.names, *f.class_names)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["a/0.png", "a/again.png", "b/1.png", "b/2.png", "a", "b"]


def test_folder_of_splits_is_refused(tmp_path, write_images):
    write_images(tmp_path, "train/ant/1.png", "test/ant/1.png")
    with pytest.raises(UserError, match=r"are splits \(test, train\), not classes: give one of them, such as .*train"):
        Folder(str(tmp_path))


def test_missing_empty_and_wrong_folders(tmp_path):
    with pytest.raises(UserError, match="missing does not exist"):
        Folder(str(tmp_path / "missing"))
    with pytest.raises(UserError, match=r"holds no images: they must end in \.avif, \.bmp"):
        Folder(str(tmp_path))
    (tmp_path / "list.txt").write_text("")
    with pytest.raises(UserError, match=r"is a file, not a folder.*FileList"):
        Folder(str(tmp_path / "list.txt"))


def test_file_that_vanishes_or_breaks_is_named(tmp_path, write_images, encode, picture):
    write_images(tmp_path, "1.png", "2.jpg")
    (tmp_path / "2.jpg").write_bytes(encode(picture(0, 64, 64), "JPEG")[:900])
    folder = Folder(str(tmp_path))
    with pytest.raises(UserError, match=r"2\.jpg cannot be read as an image \(image file is truncated"):
        folder.image(1)
    (tmp_path / "1.png").unlink()
    for read in (folder.image, folder.encoded, folder.encoded_size):
        with pytest.raises(UserError, match=r"1\.png cannot be opened"):
            read(0)


def test_list_of_paths_alone(tmp_path, write_images):
    write_images(tmp_path, "a b/1, old.png", "2.png")
    listing = tmp_path / "list.txt"
    listing.write_text("a b/1, old.png\n\n2.png\r\n", encoding="utf-8")
    files = FileList(str(listing))
    assert files.names == ["a b/1, old.png", "2.png"] and files.labels is None
    assert files[1][0].shape == (3, 6, 9)


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", "])
def test_text_list_with_labels(tmp_path, write_images, separator):
    write_images(tmp_path, "a b.png", "c.png")
    (tmp_path / "list.txt").write_text(f"a b.png{separator}4\nc.png{separator}0\n")
    files = FileList(str(tmp_path / "list.txt"))
    assert files.names == ["a b.png", "c.png"] and files.labels.tolist() == [4, 0]


def test_csv_with_headings_quotes_and_names(tmp_path, write_images):
    write_images(tmp_path, "1,2.png", "3.png", "4.png")
    listing = tmp_path / "list.csv"
    listing.write_bytes('\ufeffPath,width,label\n"1,2.png",9,dog\n3.png,9,cat\n4.png,9,\n'.encode())
    files = FileList(str(listing))
    assert files.names == ["1,2.png", "3.png", "4.png"]
    assert files.labels.tolist() == [1, 0, -1] and files.class_names == ("cat", "dog")


def test_tsv_without_headings_and_another_root(tmp_path, write_images):
    write_images(tmp_path / "images", "1.png", "2.png")
    (tmp_path / "list.tsv").write_text(f"1.png\t0\n{tmp_path / 'images' / '2.png'}\t1\n")
    files = FileList(str(tmp_path / "list.tsv"), root=str(tmp_path / "images"))
    assert files.labels.tolist() == [0, 1] and files.class_names is None
    assert files.encoded(1) == (tmp_path / "images/2.png").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1.png\nno.png\n", "names 'no.png', but there is no file"),
        (b"\n", "names no images"),
        (b"\xff\xfe\0", "UTF-8"),
    ],
)
def test_bad_lists(tmp_path, write_images, content, message):
    write_images(tmp_path, "1.png")
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        FileList(str(tmp_path / "list.txt"))


def test_missing_list(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        FileList(str(tmp_path / "list.txt"))


@pytest.mark.parametrize("path", ["/dev/zero", "."])
def test_a_list_that_is_no_file_is_not_read(path):
    with pytest.raises(UserError, match="is not a file: give a text, CSV or TSV file"):
        FileList(path)
