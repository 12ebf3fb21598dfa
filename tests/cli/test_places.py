"""Without a home folder, and with names that are not UTF-8: commands work, or say what to do in one sentence."""

import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

PROGRAM = """
import contextlib, io, json, os, pwd, sys

def unknown(user):
    raise KeyError(user)

if "HOME" not in os.environ:
    pwd.getpwuid = unknown  # as for a user of a container who is not in its list of users
from falseneg.cli import main

found = []
for command in json.load(sys.stdin):
    said, shown = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
        status = main(command)
    found.append([status, said.getvalue(), shown.getvalue()])
print(json.dumps(found))
"""
OPTIONS = ["--method.encoder.name=test_resnet", "--epochs=1", "--accelerator=cpu", "--workers=1"]


def run(folder, *commands, **environment):
    """How commands end that a process of its own runs in a folder: status, errors, output."""
    given = {key: value for key, value in {**os.environ, **environment}.items() if value is not None}
    program = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(program, input=json.dumps(commands), capture_output=True, text=True, cwd=folder, env=given)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def write_images(folder, *names):
    for number, name in enumerate(names):
        place = os.path.join(os.fsencode(folder), name)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        with open(place, "wb") as file:
            Image.fromarray(pixels).save(file, "PNG")


def test_without_a_home_folder(tmp_path):
    write_images(tmp_path / "images", *(b"%d.png" % number for number in range(20)))
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(tmp_path / "images", "images")
    pretrain = ["pretrain", *OPTIONS, "--out=run", "--data"]
    found = run(
        tmp_path,
        [*pretrain, "Folder", "--data.root=images"],
        ["report", "run"],
        ["export", "run", "--out=a.safetensors"],
        [*pretrain, "Folder", "--data.root=~/images"],
        [*pretrain, "Shards", "--data.path=images.tar"],
        HOME=None,
        XDG_CACHE_HOME=None,
    )
    assert [status for status, *_ in found] == [0, 0, 0, 2, 2], found
    for _, said, _ in found[3:]:
        assert said.count("\n") == 1 and "set HOME" in said


@pytest.fixture
def place(tmp_path):
    """A folder whose name is not UTF-8, where the file system has such names."""
    try:
        (place := tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    except OSError:
        pytest.skip("the file system has no such names")
    return place


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_names_that_are_not_utf_8(place, locale):
    write_images(place / "images", *(b"cl\xe9\xff%d/%s%d.png" % (n % 2, b"\xe9" * (n % 3), n) for n in range(20)))
    (place / "images" / os.fsdecode(b"cl\xe9\xff0") / os.fsdecode(b"\xe9broken.png")).write_bytes(b"no image")
    pretrain = ["pretrain", *OPTIONS, "--data=Folder", "--data.root=images"]
    skipping = [*pretrain, "--skip-unreadable=true", "--detector=FixedThreshold", "--detector.threshold=0.2"]
    *fine, broken, named = run(
        place,
        [*skipping, "--out=run"],
        ["pretrain", "--resume", "run"],
        ["evaluate", "run"],
        ["report", "run"],
        ["export", "run", "--out=a.safetensors"],
        [*pretrain, "--out=other"],
        [*pretrain, "--out=other", f"--data.root={place / 'images'}"],
        **locale,
    )
    assert [status for status, *_ in fine] == [0] * 5, fine
    for status, said, _ in (broken, named):
        assert status == 2 and said.count("\n") == 1
    assert "broken.png cannot be read as an image" in broken[1]
    assert "is not UTF-8, as every option must be; rename" in named[1]
