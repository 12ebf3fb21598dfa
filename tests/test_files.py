import resource
import subprocess
import sys

import pytest

from falseneg.errors import UserError
from falseneg.files import replacing, write_bytes


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
save_checkpoint(folder, {"step": 1, "x": torch.zeros(10)}, 1, keep=False)
write_bytes(folder / "file", b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for attempt in (
    lambda: write_bytes(folder / "file", b"x" * 200_000),
    lambda: save_checkpoint(folder, {"step": 2, "x": torch.zeros(100_000)}, 2, keep=False),
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
