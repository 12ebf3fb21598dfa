"""Data on remote storage, which fails, delays, changes and vanishes."""

import gc
import io
import multiprocessing
import os
import re
import sys
import tarfile
import threading
import time
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.registry import known_implementations

from falseneg.data import (
    Augmentation,
    EpochSampler,
    FileList,
    Folder,
    Parquet,
    Shards,
    Table,
    ViewSet,
    remote,
    retries,
    view_loader,
)
from falseneg.data.remote_listing import remote_files
from falseneg.errors import UserError

sys.path.insert(0, str(Path(__file__).parent))

from storages import Faults, Flaky, WebServer


@pytest.fixture(autouse=True)
def storage(monkeypatch):
    """The storage of the tests, empty; waits are short."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.store.clear()
    Flaky.begin()
    monkeypatch.setattr(retries, "WAITS", (0.001,) * 4)
    monkeypatch.setattr(remote, "_looked_at", {})
    return fsspec.filesystem("flaky")


@pytest.fixture
def photos(storage, tmp_path, write_images):
    """The same photos in a local folder and on the storage, at flaky://bucket/photos."""
    names = [f"{'ab'[number % 2]}/{number}.png" for number in range(12)] + ["a/.hidden.png", "b/notes.txt"]
    write_images(tmp_path / "photos", *names)
    for name in names:
        storage.pipe(f"/bucket/photos/{name}", (tmp_path / "photos" / name).read_bytes())
    return tmp_path / "photos"


def tar_of(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture
def shards(encode, picture):
    """Two shards of six labelled samples, as bytes by name."""
    numbers = {name: range(first, first + 6) for name, first in (("s-000.tar", 0), ("s-001.tar", 6))}
    return {
        name: tar_of(
            [
                member
                for number in them
                for member in ((f"{number}.png", encode(picture(number))), (f"{number}.cls", b"%d" % (number % 3)))
            ]
        )
        for name, them in numbers.items()
    }


def epoch_of(images, workers):
    view_set = ViewSet(images, {"image": [Augmentation(8)] * 2})
    batches = list(view_loader(view_set, EpochSampler(len(images), 4), workers))
    return torch.cat([batch.index for batch in batches]), torch.cat([batch.streams["image"] for batch in batches])


def same_epoch(first, second, workers=0):
    return all(map(torch.equal, epoch_of(first, workers), epoch_of(second, 0)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_remote_folder_is_the_local_one_however_its_storage_fails(photos, workers):
    Flaky.begin(Faults(0.4, seed=1))
    images, local = Folder("flaky://bucket/photos"), Folder(str(photos))
    assert images.names == local.names and images.class_names == local.class_names == ("a", "b")
    assert torch.equal(images.labels, local.labels)
    assert [images.encoded_size(row) for row in range(12)] == [local.encoded_size(row) for row in range(12)]
    assert same_epoch(images, local, workers)
    before = Flaky.asked["cat_file"]
    assert workers or (before > 12 and Flaky.faults.failed > 0)
    assert same_epoch(images, local) and Flaky.asked["cat_file"] == before  # copies are here now
    assert images.place(0) == "flaky://bucket/photos/a/0.png"


def test_a_listing_is_read_once_and_says_how_to_have_it_again(photos, storage, own_cache):
    first = Folder("flaky://bucket/photos")
    storage.pipe("/bucket/photos/a/00.png", b"new")
    Flaky.begin()
    again = Folder("flaky://bucket/photos/")
    assert not Flaky.asked and again.names == first.names
    (kept,) = own_cache.glob("listing-*.json")
    assert f"remove {kept} to list it again" in again.note
    kept.unlink()
    assert len(Folder("flaky://bucket/photos")) == 13


@pytest.mark.parametrize(
    "path", ["flaky://bucket/s-*.tar", "flaky://bucket/s-{000..001}.tar", "flaky://bucket", "flaky://*cket/*"]
)
def test_remote_shards_are_the_local_ones(storage, tmp_path, shards, path):
    for name, data in shards.items():
        (tmp_path / name).write_bytes(data)
        storage.pipe(f"/bucket/{name}", data)
    storage.pipe("/bucket/below/s-002.tar", b"another")
    Flaky.begin(Faults(0.5, seed=2))
    images, local = Shards(path), Shards(str(tmp_path / "s-*.tar"))
    assert torch.equal(images.labels, local.labels) and images.describe(7) == local.describe(7)
    assert images.place(7) == "7.png in flaky:///bucket/s-001.tar"
    assert same_epoch(images, local)
    Flaky.begin()
    Shards(path)
    assert Flaky.asked["cat_file"] == 0  # the index is kept
    storage.pipe("/bucket/s-001.tar", shards["s-000.tar"])
    assert Shards(path).describe(7) == "1.png"  # and made again for a shard that changes


def test_shards_that_do_not_fit_are_read_in_parts(storage, shards, monkeypatch, own_cache):
    for name, data in shards.items():
        storage.pipe(f"/bucket/{name}", data)
    monkeypatch.setenv("FALSENEG_CACHE_GB", str(1.5 * len(shards["s-000.tar"]) / 1e9))
    images = Shards("flaky://bucket/s-*.tar")
    Flaky.begin()
    parts = [images.encoded(row) for row in range(12)]
    assert (
        Flaky.asked["cat_file"] == 6 and Flaky.asked["info"] == 1
    )  # of the first shard, which made way for the second
    assert parts == [images.encoded(row) for row in range(12)] and Flaky.asked["cat_file"] == 6
    assert all(part.startswith(b"\x89PNG") for part in parts)
    assert sum(file.stat().st_size for file in (own_cache / "remote").iterdir()) <= 1.5 * len(shards["s-000.tar"])


@pytest.mark.parametrize("in_memory", [2**28, 100])
def test_remote_parquet_is_the_local_one(storage, tmp_path, encode, picture, monkeypatch, in_memory):
    monkeypatch.setattr("falseneg.data.arrow_column.IN_MEMORY", in_memory)
    table = pa.table({"image": [encode(picture(number)) for number in range(8)], "label": [0, 1] * 4})
    pq.write_table(table, tmp_path / "a.parquet")
    storage.pipe("/bucket/a.parquet", (tmp_path / "a.parquet").read_bytes())
    Flaky.begin(Faults(0.3, seed=3))
    images, local = Parquet("flaky://bucket/*.parquet"), Parquet(str(tmp_path / "a.parquet"))
    assert torch.equal(images.labels, local.labels) and same_epoch(images, local, workers=2)
    assert images.place(3) == "row 3 of flaky:///bucket/a.parquet"
    monkeypatch.setenv("FALSENEG_CACHE_GB", "1e-6")
    with pytest.raises(
        UserError, match=r"a\.parquet has .* GB, and copies of remote files may take 1e-06 GB: set FALSE"
    ):
        Parquet("flaky://bucket/a.parquet")


def test_a_large_file_comes_in_blocks_and_each_may_fail(storage, shards, monkeypatch):
    monkeypatch.setattr(remote, "_BLOCK", 500)
    storage.pipe("/bucket/s.tar", shards["s-000.tar"])
    Flaky.begin(Faults(0.5, seed=4))
    (file,) = remote_files("flaky://bucket/s.tar", ".tar", Shards("flaky://bucket/s.tar").files[0].cache)
    assert Flaky.faults.failed > 4 and Path(file).read_bytes() == shards["s-000.tar"]


def test_failures_that_last_are_one_sentence_after_five_attempts(photos):
    images = Folder("flaky://bucket/photos")
    Flaky.begin(Faults(1.0, in_a_row=99))
    before = retries.asked_again()
    with pytest.raises(
        UserError, match=r"photos/a/0\.png could not be read in 5 attempts \(the last one: the connection"
    ):
        images.image(0)
    assert Flaky.asked["cat_file"] == 5 and retries.asked_again() == before + 4
    view_set = ViewSet(images, {"image": [Augmentation(8)]})
    with pytest.raises(UserError, match=r"photos/\S+ could not be read in 5 attempts"):
        list(view_loader(view_set, EpochSampler(12, 4), 2))


def test_storage_that_never_answers_is_left_alone(photos, monkeypatch):
    images = Folder("flaky://bucket/photos")
    never = threading.Event()
    monkeypatch.setattr(Flaky, "cat_file", lambda self, *_, **__: never.wait())
    monkeypatch.setattr(retries, "PATIENCE", 0.05)
    started = time.monotonic()
    with pytest.raises(
        UserError, match=r"a/0\.png could not be read in 5 attempts \(the last one: no answer within 0\.05 s"
    ):
        images.image(0)
    assert time.monotonic() - started < 5
    never.set()


class NoCredentialsError(Exception):
    """As botocore calls it."""


class Refused(OSError):
    """As aiohttp and gcsfs tell it."""

    status = 403


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            NoCredentialsError("Unable to locate credentials"),
            r"refused \(Unable to locate credentials\): give credentials",
        ),
        (
            PermissionError("Access Denied"),
            r"access to flaky://bucket/\S* is refused \(Access Denied\): give credentials",
        ),
        (Refused("Forbidden"), "is refused"),
        (
            FileNotFoundError("The specified bucket does not exist"),
            "does not exist: give|there is no file flaky://bucket/",
        ),
    ],
)
def test_what_will_not_pass_is_asked_for_once(error, message):
    for kind, path in ((Folder, "flaky://bucket/photos"), (Shards, "flaky://bucket/a.tar")):
        Flaky.begin(error=error)
        with pytest.raises(UserError, match=message):
            kind(path)
        assert sum(Flaky.asked.values()) == 1


def test_a_bug_keeps_its_traceback(photos):
    Flaky.begin(error=KeyError("a bug"))
    with pytest.raises(KeyError, match="a bug"):
        Folder("flaky://bucket/photos")


def test_storage_of_an_unknown_kind(monkeypatch):
    monkeypatch.setitem(known_implementations, "far", {"class": "no_such_package.Far", "err": "Install it"})
    with pytest.raises(UserError, match="far://a needs a package that is not installed: pip install no_such_package"):
        Folder("far://a")
    monkeypatch.setitem(
        known_implementations, "near", {"class": "fsspec.implementations.near.Near", "err": "Install near5"}
    )
    with pytest.raises(UserError, match="near://a needs a package that is not installed: Install near5"):
        Folder("near://a")
    with pytest.raises(UserError, match="nope in nope://a/b.tar is not a kind of storage that fsspec knows"):
        Shards("nope://a/b.tar")
    with pytest.raises(UserError, match="the folder memory://nothing does not exist"):
        Folder("memory://nothing")


def test_images_that_change_or_vanish_are_named(photos, storage, encode, picture):
    images = Folder("flaky://bucket/photos")
    storage.pipe("/bucket/photos/a/0.png", encode(picture(50, 40, 40)))
    with pytest.raises(UserError, match=r"a/0\.png has changed since the data set was opened: restore it"):
        images.image(0)
    storage.rm("/bucket/photos/a/10.png")
    with pytest.raises(UserError, match=r"a/10\.png is not there any more: restore it"):
        images.image(1)


def test_a_shard_that_changes_is_named_even_at_the_same_size(storage, shards, monkeypatch):
    storage.pipe("/bucket/s.tar", shards["s-000.tar"])
    images = Shards("flaky://bucket/s.tar")
    for file in Path(images.files[0].cache.folder).iterdir():
        file.unlink()
    images.encoded(0)
    storage.pipe("/bucket/s.tar", bytes(len(shards["s-000.tar"])))
    monkeypatch.setattr(remote, "_TRUSTED_FOR", 0.0)
    with pytest.raises(UserError, match=r"s\.tar has changed since the data set was opened"):
        images.encoded(1)
    assert images.encoded(0).startswith(b"\x89PNG")  # of the copy


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_from_a_web_server_that_fails_and_delays(shards, tmp_path, monkeypatch, workers):
    for name, data in shards.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.setenv("FALSENEG_CACHE_GB", "0")
    with WebServer(shards, Faults(0.3, delay=0.002, seed=5)) as server:
        images, local = Shards(f"{server.url}/s-{{000..001}}.tar"), Shards(str(tmp_path))
        assert torch.equal(images.labels, local.labels) and same_epoch(images, local, workers)
        assert server.faults.failed > 3
        with pytest.raises(UserError, match=r"there is no file http\S+/none\.tar"):
            Shards(f"{server.url}/none.tar")
        server.faults, server.status = Faults(1.0, in_a_row=99), 403
        with pytest.raises(UserError, match="is refused"):
            images.encoded(0)


def test_folders_of_a_web_server(photos, shards):
    local = Folder(str(photos))
    files = {f"photos/{path.relative_to(photos)}": path.read_bytes() for path in photos.rglob("*.*")}
    with WebServer(files | {f"s/{name}": data for name, data in shards.items()}, Faults(0.3, seed=6)) as server:
        images = Folder(f"{server.url}/photos")
        assert images.names == local.names and torch.equal(images.labels, local.labels)
        assert images.encoded_size(3) == local.encoded_size(3) and same_epoch(images, local, 2)
        assert len(Shards(f"{server.url}/s/")) == 12


def _read_in_a_fork(url):
    Folder(url)
    gc.collect()  # the connections of the process that forked this one are nobody's here, and still in use there


def test_a_fork_leaves_the_connections_of_its_parent_alone(photos, tmp_path):
    files = {f"photos/{path.relative_to(photos)}": path.read_bytes() for path in photos.rglob("*.*")}
    with WebServer(files) as server:
        Folder(f"{server.url}/photos")
        fork = multiprocessing.get_context("fork").Process(target=_read_in_a_fork, args=(f"{server.url}/photos",))
        fork.start()
        fork.join(30)
        assert fork.exitcode == 0
        found = []
        listing = threading.Thread(
            target=lambda: found.append(Folder(f"{server.url}/photos", str(tmp_path / "other"))), daemon=True
        )
        listing.start()
        listing.join(10)
        assert found and len(found[0]) == len(Folder(str(photos)))


def test_a_web_server_that_sends_whole_files_only(shards, own_cache):
    with WebServer(shards, ranges=False) as server:
        images = Shards(f"{server.url}/s-000.tar")
        assert images.encoded(0).startswith(b"\x89PNG")  # of the copy
        for file in (own_cache / "remote").iterdir():
            file.unlink()
        with pytest.raises(
            UserError, match=r"s-000\.tar cannot be read in parts, for its server always sends the whole"
        ):
            images.encoded(1)


def test_what_is_read_next_is_brought_here_many_at_a_time(photos):
    images = Folder("flaky://bucket/photos")
    Flaky.begin(Faults(delay=0.1))
    started = time.monotonic()
    epoch_of(images, 0)  # three batches of four images, one answer after the other: 1.2 s
    assert Flaky.asked["cat_file"] == 12 and time.monotonic() - started < 0.9
    Flaky.begin()
    images.fetch(range(12))
    assert not Flaky.asked


LINES = [f"photos/{'ab'[number % 2]}/{number}.png" for number in (7, 3, 10, 0)]
LIST = "".join(f"{name} {number % 2}\n" for number, name in enumerate(LINES))
TABLE = "image,caption\n" + "".join(f"{name},a {name[7]}\n{name},another\n" for name in LINES)


@pytest.mark.parametrize("list_is_there", [True, False])
@pytest.mark.parametrize(("kind", "text", "ending"), [(FileList, LIST, ".txt"), (Table, TABLE, ".csv")])
def test_lists_and_tables_of_remote_images_are_the_local_ones(photos, storage, kind, text, ending, list_is_there):
    place = photos.parent / f"list{ending}"
    place.write_text(text)
    storage.pipe(f"/bucket/list{ending}", text.encode())
    Flaky.begin(Faults(0.4, seed=1))
    local = kind(str(place))
    images = kind(f"flaky://bucket/list{ending}") if list_is_there else kind(str(place), root="flaky://bucket/")
    assert images.names == local.names == LINES and images.place(1) == f"flaky://bucket/{LINES[1]}"
    assert [images.captions(row) for row in range(4)] == [local.captions(row) for row in range(4)]
    assert images.labels is local.labels is None or images.labels.tolist() == local.labels.tolist() == [0, 1, 0, 1]
    assert [images.encoded_size(row) for row in range(4)] == [local.encoded_size(row) for row in range(4)]
    assert same_epoch(images, local, workers=2) and same_epoch(images, local)
    assert Flaky.faults.failed > 0 and "listed on" in images.note


def test_a_parquet_table_and_a_list_of_addresses(photos, storage):
    table = pa.table({"image": LINES, "caption": [["one", "two"]] * 4})
    with storage.open("/bucket/table.parquet", "wb") as stream:
        pq.write_table(table, stream)
    images = Table("flaky://bucket/table.parquet")
    assert images.captions(3) == ("one", "two") and images.encoded(3) == (photos.parent / LINES[3]).read_bytes()
    storage.pipe("/bucket/list.txt", "".join(f"flaky://bucket/./{name}\n" for name in LINES).encode())
    images = FileList("flaky://bucket/list.txt")
    assert (
        images.encoded(2) == (photos.parent / LINES[2]).read_bytes() and images.place(2) == f"flaky://bucket/{LINES[2]}"
    )


def test_names_that_are_unusual_are_files_of_a_list(photos, storage):
    there = (photos / "a" / "0.png").read_bytes()
    for name in ("bucket/.hidden/0.png", "bucket/list[1].txt", "top.txt", "top.png"):
        storage.pipe(f"/{name}", there if name.endswith("png") else f".hidden/0.png\n{name[:3]}.png\n".encode())
    storage.pipe("/bucket/buc.png", there)
    assert FileList("flaky://bucket/list[1].txt").encoded(0) == there
    storage.pipe("/top.txt", b"top.png\n")
    assert FileList("flaky://top.txt").place(0) == "flaky://top.png"


def test_a_list_on_a_web_server_with_a_signature(photos):
    there = {f"photos/{name}": (photos / name).read_bytes() for name in ("a/0.png", "b/1.png")}
    there |= {f"photos/others/{number}.png": b"" for number in range(20)}
    there["photos/a b.png"] = there["photos/a/0.png"]
    there["photos/list.csv"] = b'"a/0.png",0\n"a b.png",1\n'
    with WebServer(there) as server:
        images = FileList(f"{server.url}/photos/list.csv?token=a/bc")
        assert images.encoded(1) == there["photos/a b.png"] and images.labels.tolist() == [0, 1]
        assert server.asked["HEAD"] <= 5  # of the list and of the files that it names, and of no others


def test_bad_lists_and_tables_on_remote_storage(photos, storage, own_cache):
    storage.pipe("/bucket/list.txt", b"photos/a/0.png\nphotos/a/77.png\n")
    listed = r"\(flaky://bucket is read as it was listed on .*: remove \S+ to list it again\)"
    missing = f"bucket/list.txt names 'photos/a/77.png', but there is no file flaky://bucket/photos/a/77.png {listed}: "
    with pytest.raises(UserError, match=missing):
        FileList("flaky://bucket/list.txt")
    storage.pipe("/bucket/table.csv", b"image,caption\nphotos/a/0.png,one\nphotos/a/77.png,two\n")
    images = Table("flaky://bucket/table.csv")
    for ask in (images.encoded, images.encoded_size):
        assert ask(0)
        with pytest.raises(UserError, match=f"there is no file flaky:///bucket/photos/a/77.png {listed}"):
            ask(1)
    images.fetch([0, 1])  # raises nothing
    storage.pipe("/bucket/table.csv", b"image,caption\na.png,one\n")
    with pytest.raises(
        UserError, match=r"none of the 1 images that flaky://bucket/table.csv names is there, such as flaky"
    ):
        Table("flaky://bucket/table.csv")
    storage.pipe("/bucket/table.csv", b"image;title\na.png;one\n")
    with pytest.raises(UserError, match=r"in the first line of flaky://bucket/table.csv"):
        Table("flaky://bucket/table.csv", separator=";")
    with pytest.raises(UserError, match=r"there is no file flaky://bucket/none.txt"):
        FileList("flaky://bucket/none.txt")
    with pytest.raises(UserError, match=r"there is no file flaky://bucket/photos/a/\*"):
        Table("flaky://bucket/photos/a/*")
    with pytest.raises(UserError, match=r"flaky://bucket/photos is a folder, not a file"):
        FileList("flaky://bucket/photos")
    Flaky.begin()
    with pytest.raises(UserError, match="nowhere.csv does not exist"):
        Table("nowhere.csv", root="flaky://bucket")
    assert not Flaky.asked["ls"]
    storage.pipe("/bucket/list.txt", b"flaky://bucket/photos/a/77.png\n")
    with pytest.raises(UserError, match="there is no file flaky://bucket/photos/a/77.png"):
        FileList("flaky://bucket/list.txt")
    (photos / "here.txt").write_text("a/0.png\n")
    with pytest.raises(UserError, match=r"flaky://empty holds no files|the folder flaky://empty does not exist"):
        FileList(str(photos / "here.txt"), root="flaky://empty")


def test_a_cache_must_be_local():
    with pytest.raises(
        UserError, match=r"s3://\S+ must be a path of this machine: Folder, FileList, Table, Shards and"
    ):
        Folder("memory://photos", cache="s3://bucket/cache")


def test_a_file_address_is_a_local_path(photos):
    assert Folder(f"file://{photos}").names == Folder(str(photos)).names
    assert not remote.is_remote("C:\\photos") and not re.search("://", os.fspath(photos))
