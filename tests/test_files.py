import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from falseneg.errors import UserError
from falseneg.files import LOCK, alone, replacing, write_bytes


def test_replaces_whole_files(tmp_path):
    path = tmp_path / "new" / "file"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="could not be written"):
        write_bytes(tmp_path / "file" / "inner", b"x")


FULL = """
import resource, sys
from pathlib import Path
import torch
from falseneg.errors import UserError
from falseneg.files import write_bytes
from falseneg.train.checkpoint import save_checkpoint
folder = Path(sys.argv[1])
save_checkpoint(folder, {"step": 1, "x": torch.zeros(10)})
write_bytes(folder / "file", b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for attempt in (
    lambda: write_bytes(folder / "file", b"x" * 200_000),
    lambda: save_checkpoint(folder, {"step": 2, "x": torch.zeros(100_000)}),
):
    try:
        attempt()
    except UserError as error:
        print("REFUSED", error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="the system has no limit on the size of files")
def test_no_room(tmp_path):
    """The system refuses to let files grow, as it does on a full disk."""
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.count("REFUSED") == 2 and "File too large" in done.stdout
    assert (tmp_path / "file").read_bytes() == b"old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "last.pt"]
    import torch

    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 1


HOLD = """
import os, sys, time
from pathlib import Path
from falseneg.files import alone
with alone(Path(sys.argv[1]), "busy"):
    if sys.argv[2:] == ["fork"] and os.fork() == 0:  # as a process that loads images
        os.write(1, f"{os.getpid()}\\n".encode())
    else:
        os.write(1, b"held\\n")
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds the folder, with the lines that it says."""
    started = []

    def start(*arguments):
        command = [sys.executable, "-c", HOLD, tmp_path / "deep" / "folder", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process, sorted(process.stdout.readline().strip() for _ in range(1 + len(arguments)))

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_folder_is_held_by_one_process(tmp_path, holder):
    process, _ = holder()
    folder = tmp_path / "deep" / "folder"
    with pytest.raises(UserError, match="^busy$"), alone(folder, "busy"):
        pass
    process.kill()
    with alone(folder, "busy", patience=10):
        assert [path.name for path in folder.iterdir()] == [LOCK]
    assert not list(folder.iterdir())  # which it was not that made it


def test_death_frees_a_folder_though_a_fork_lives_on(tmp_path, holder):
    process, (fork, _) = holder("fork")
    try:
        process.kill()
        process.wait()
        with alone(tmp_path / "deep" / "folder", "busy"):
            pass
        os.kill(int(fork), 0)
    finally:
        os.kill(int(fork), signal.SIGKILL)


def test_a_fork_takes_nothing_from_the_one_that_holds(tmp_path):
    folder = tmp_path / "folder"
    with alone(folder, "busy"):
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0,))
        process.start()
        process.join()
        with pytest.raises(UserError, match="busy"), alone(folder, "busy"):
            pass
    with alone(folder, "busy"):
        pass
    assert not folder.exists()


def test_a_lock_that_is_a_link_leads_nowhere(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="cannot be written"), alone(tmp_path, "busy"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"
