"""Local copies of remote files: bounded, whole, and shared by processes."""

import contextlib
import multiprocessing
import os
import random

import pytest

from falseneg.data import remote_cache
from falseneg.data.remote_cache import RemoteCache, bound
from falseneg.errors import UserError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder of at most a thousand bytes, which is looked at after each copy."""
    monkeypatch.setenv("FALSENEG_CACHE_GB", "1e-6")
    return RemoteCache(tmp_path / "remote")


def test_what_was_not_used_for_longest_goes_first(cache):
    for number in range(9):
        path = cache.write(f"{number}", [bytes(50), bytes(50)])
        os.utime(path, (number, number))
    assert cache.read("0", 100, 10, 5) == bytes(5) and cache.path("1", 100)
    cache.write("new", [bytes(200)])
    left = {path.name for path in cache.folder.iterdir()}
    assert left == {"0", "1", "4", "5", "6", "7", "8", "new"}  # 900 bytes, nine tenths of the bound
    cache.write("large", [bytes(5000)])
    assert [path.name for path in cache.folder.iterdir()] == ["large"]  # what was just asked for stays


def test_a_copy_that_is_not_whole_is_none(cache):
    cache.write("a", [b"0123456789"])
    for content in (b"01234", b""):
        (cache.folder / "a").write_bytes(content)
        assert cache.read("a", 10, 0, 10) is None
    assert cache.path("a", 10) is None and not (cache.folder / "a").exists()


def test_a_copy_that_breaks_off_leaves_nothing(cache):
    def pieces():
        yield b"01234"
        raise UserError("the storage is gone")

    with pytest.raises(UserError, match="is gone"):
        cache.write("a", pieces())
    assert not list(cache.folder.iterdir())


def test_what_a_killed_process_left_goes_in_the_end(cache):
    cache.write("a", [bytes(10)])
    for name, age in ((".b.1.2", 7200), (".c.1.2", 10)):
        (cache.folder / name).write_bytes(bytes(500))
        os.utime(cache.folder / name, (remote_cache.time.time() - age,) * 2)
    cache.write("d", [bytes(10)])
    assert {path.name for path in cache.folder.iterdir()} == {"a", ".c.1.2", "d"}


@pytest.mark.parametrize("given", ["many", "-1", "nan", "inf"])
def test_a_bound_that_is_no_number(monkeypatch, given):
    monkeypatch.setenv("FALSENEG_CACHE_GB", given)
    with pytest.raises(UserError, match=f"FALSENEG_CACHE_GB is '{given}': give a number of gigabytes"):
        bound()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match="cannot be written .*: free some space, lower FALSENEG_CACHE_GB, or name another"
    ):
        RemoteCache(tmp_path / "file").write("a", [b"a"])


def _use(folder, seed):
    """Read and write copies whose content is known by their names, in a folder that holds a fourth of them."""
    cache, numbers = RemoteCache(folder), random.Random(seed)
    for _ in range(300):
        number = numbers.randrange(40)
        data, size = bytes([number]) * (90 + number), 90 + number
        found = cache.read(f"{number}", size, 0, size)
        assert found is None or found == data
        path = cache.path(f"{number}", size)
        if found is None:
            half = size // 2
            path = cache.write(f"{number}", [data[:half], data[half:]])
        with cache.alone(f"{number}"), contextlib.suppress(FileNotFoundError):  # another may make room at any time
            assert path is None or path.stat().st_size == size


def test_processes_share_the_folder(cache):
    context = multiprocessing.get_context("fork")
    users = [context.Process(target=_use, args=(cache.folder, seed)) for seed in range(3)]
    for user in users:
        user.start()
    for user in users:
        user.join(60)
    assert [user.exitcode for user in users] == [0, 0, 0]
    copies = [path for path in cache.folder.iterdir() if not path.name.startswith(".")]
    assert sum(path.stat().st_size for path in copies) <= 1000 + 3 * 130
