"""A stranger's files of some kilobytes that unpack to gigabytes: one sentence each, within a bound of memory.

Commands read them in a process of their own, one after the other, after one that loads what a whole run needs.
"""

import collections
import io
import json
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from foreign.forge import of_footer, of_pages, pickled
from foreign.measured import MEASURED
from PIL import Image

from falseneg.cli import main

MOST = 200
"""MiB that refusing one of these files may take, beside what the program has taken before."""

PROGRAM = f"""
{MEASURED}
import io, json, sys, time
from falseneg.cli import main

found = []
for command in json.load(sys.stdin):
    said, started, before = io.StringIO(), time.perf_counter(), begin()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main(command)
    found.append([status, said.getvalue(), taken(before) / 2**20, time.perf_counter() - started])
print(json.dumps(found))
"""
SECONDS = 20
"""For one of the commands; a bomb takes minutes, or for ever."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that has stopped before its last figures were written, and its images."""
    folder = tmp_path_factory.mktemp("whole")
    for number in range(24):
        place = folder / "images" / f"class-{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    assert main(["pretrain", *options(folder), f"--out={folder / 'run'}"]) == 0
    metrics = folder / "run" / "metrics.jsonl"
    metrics.write_text("".join(line for line in metrics.read_text().splitlines(True) if '"final"' not in line))
    return folder


def options(folder):
    detector = "{class_path: FixedThreshold, init_args: {threshold: 0.2}}"
    data = ["--data=Folder", f"--data.root={folder / 'images'}", f"--detector={detector}"]
    return [*data, "--method.encoder.name=test_resnet", "--epochs=2", "--accelerator=cpu", "--workers=0"]


@pytest.fixture
def refused(whole, tmp_path):
    """Gives the sentences with which commands end; each is made of a bomb and of what reads it."""
    commands = [["evaluate", str(whole / "run"), f"--out={tmp_path / 'figures.json'}"]]
    made = []

    def folder(name, content):
        """A copy of the run, with a bomb in the place of one of its files."""
        copy = tmp_path / f"run-{len(made)}"
        made.append(copy)
        shutil.copytree(whole / "run", copy)
        (copy / name).write_bytes(content)
        return copy

    def run():
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            input=json.dumps([list(map(str, command)) for command in commands]),
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (status, said, *_), *found = json.loads(done.stdout)
        assert status == 0, said
        for command, (status, said, memory, seconds) in zip(commands[1:], found, strict=True):
            about = f"{command}: {status}, {memory:.0f} MiB, {seconds:.1f} s, {said}"
            assert status == 2 and said.count("\n") == 1 and said.startswith("falseneg: "), about
            assert memory < MOST and seconds < SECONDS, about
        return [said for _, said, *_ in found]

    run.folder, run.commands = folder, commands
    run.start = ["pretrain", *options(whole), f"--out={tmp_path / 'new'}"]
    return run


def aliases(levels=10, width=10):
    lines = ["x0: &x0 [lol]"] + [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def merges(levels=30):
    lines = ["x0: &x0 {epochs: 3}"] + [f"x{n}: &x{n} {{<<: [*x{n - 1}, *x{n - 1}]}}" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


ITSELF = "data: &a [*a]\n"
IN_A_TEXT = json.dumps({"data": "{" + ", ".join(merges().splitlines()) + "}"})


def test_yaml(refused, tmp_path):
    for number, bomb in enumerate((aliases(), merges(), ITSELF, IN_A_TEXT, "a: " + "[" * 10_000, "- a\n" * 300_000)):
        own = tmp_path / f"{number}.yaml"
        own.write_text(bomb)
        run = refused.folder("config.yaml", bomb.encode())
        compared = tmp_path / f"comparison-{number}"
        compared.mkdir()
        (compared / "compare.yaml").write_text(bomb)
        refused.commands += [
            ["pretrain", "--config", own, "--out", tmp_path / "new"],
            ["pretrain", "--resume", run],
            ["pretrain", "--config", run / "config.yaml", "--out", tmp_path / "new"],
            ["evaluate", run],
            ["compare", f"--config={own}", f"--out={tmp_path / 'new'}"],
        ]
    said = refused()
    words = ["50,000 values"] * 4 + ["nested too deeply", "more than 1 MiB"]
    assert all(
        word in each for word, five in zip(words, zip(*[iter(said)] * 5, strict=True), strict=True) for each in five
    )


def checkpoint_with(content, parts=(), compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("a/data.pkl", content)
        archive.writestr("a/version", "3\n")
        for name, data in parts:
            archive.writestr(f"a/data/{name}", data)
    return buffer.getvalue()


class Called:
    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


def doubled(times=30):
    import _codecs

    content = Called(_codecs.encode, "x" * 1000, "latin1")
    for _ in range(times):
        content = Called(_codecs.encode, content, "hex")
    return content


def two_directories():
    """A whole archive with another one behind it: which of the two is read depends on the reader."""
    bomb = checkpoint_with(pickled({"a": bytearray(4)}), [("0", bytes(2**24))], zipfile.ZIP_DEFLATED)
    harmless = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, harmless)
    return bomb + harmless.getvalue()


CHECKPOINTS = {
    "compressed": lambda: checkpoint_with(pickled({"a": (2**27, (2**27,), (1,))}), [("0", bytes(2**29))], zipfile.ZIP_DEFLATED),
    "bytes": lambda: checkpoint_with(pickle.dumps({"a": Called(bytearray, 2**31)}, 2)),
    "doubled": lambda: checkpoint_with(pickle.dumps({"a": doubled()}, 2)),
    "strided": lambda: checkpoint_with(pickled({"a": (4, (2**40,), (0,))}), [("0", bytes(16))]),
    "lists": lambda: checkpoint_with(b"\x80\x02(" + b"]" * 2**24 + b"l."),
    "old": lambda: pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + b"\x80\x02(" + b"]" * 2**24 + b"l.",
    "more than it holds": lambda: checkpoint_with(pickled({"a": (2**33, (2**33,), (1,))}), [("0", bytes(16))]),
    "two": two_directories,
}  # fmt: skip


def test_checkpoints(refused, tmp_path):
    for number, make in enumerate(CHECKPOINTS.values()):
        run = refused.folder("checkpoints/last.pt", bomb := make())
        (run / "checkpoints" / "previous.pt").unlink()  # which would be taken instead
        weights = tmp_path / f"{number}.pth"
        weights.write_bytes(bomb)
        refused.commands += [
            ["pretrain", "--resume", run],
            [*refused.start, "--init-from", run],
            [*refused.start, "--init-from", run / "checkpoints" / "last.pt"],
            [*refused.start, "--method.encoder.weights", weights],
        ]
    for said in refused():
        assert "last.pt" in said or ".pth" in said


def safetensors(header, data=b"", length=None):
    text = json.dumps(header).encode()
    return struct.pack("<Q", length or len(text)) + text + data


def described(**changes):
    about = {"name": "test_resnet", "image_size": 12, "small_stem": True, "mean": [0, 0, 0], "std": [1, 1, 1]}
    about |= {"arguments": {}, **changes}
    return {"__metadata__": {"falseneg.encoder": json.dumps(about)}}


ENCODERS = {
    "a header of gigabytes": safetensors(described(), length=2**40),
    "a tensor of gigabytes": safetensors(
        described() | {"x": {"dtype": "F32", "shape": [2**30], "data_offsets": [0, 2**32]}}, bytes(16)
    ),
    "overlapping tensors": safetensors(
        described() | {f"x{n}": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for n in range(1000)}, bytes(16)
    ),
    "a shape of more than its bytes": safetensors(
        described() | {"x": {"dtype": "F32", "shape": [2**30], "data_offsets": [0, 16]}}, bytes(16)
    ),
    "a large encoder": safetensors(described(name="vit_huge_patch14_224", small_stem=False, image_size=224)),
    "wide layers": safetensors(described(arguments={"channels": [20_000] * 4})),
    "many pixels": safetensors(described(name="vit_tiny_patch16_224", small_stem=False, image_size=50_000)),
    "what cannot be": safetensors(described(arguments={"channels": [-1] * 4})),
}


def test_encoders(refused, tmp_path):
    for number, bomb in enumerate(ENCODERS.values()):
        run = refused.folder("encoder.safetensors", bomb)
        (run / "checkpoints" / "last.pt").unlink()
        own = tmp_path / f"{number}.safetensors"
        own.write_bytes(bomb)
        refused.commands += [
            ["evaluate", run],
            ["export", run, "--out", tmp_path / "out.safetensors"],
            ["export", own, "--out", tmp_path / "out.safetensors"],
            [*refused.start, "--init-from", run],
            [*refused.start, "--init-from", own],
        ]
    words = (
        ["not a safetensors file"] * 4
        + ["safetensors describes an encoder that is far larger than its"] * 3
        + ["cannot be built"]
    )
    five = zip(*[iter(refused())] * 5, strict=True)
    assert all(word in said for word, each in zip(words, five, strict=True) for said in each)


def test_flagged_pairs(refused, tmp_path, whole):
    plain = (whole / "run" / "flagged.parquet").read_bytes()
    bombs = [of_footer(plain, values=2**40), of_footer(plain, rows=2**40), of_pages(2**30), zeros(2**25)]
    for bomb in bombs:
        refused.commands.append(["pretrain", "--resume", refused.folder("flagged.parquet", bomb)])
        own = tmp_path / f"{len(refused.commands)}.parquet"
        own.write_bytes(bomb)
        refused.commands.append([*refused.start, "--detector=Neighbours", f"--detector.path={own}"])
    for said in refused():
        assert ".parquet" in said


def zeros(rows):
    buffer = io.BytesIO()
    columns = {name: np.zeros(rows, dtype=np.int64) for name in ("anchor", "candidate", "epoch")}
    columns["score"] = np.zeros(rows, dtype=np.float32)
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()


def test_similarities_and_figures(refused):
    nested = b"[" * 100_000
    for name, bomb in {"similarities.json": nested, "metrics.jsonl": nested + b"\n"}.items():
        refused.commands.append(["pretrain", "--resume", refused.folder(name, bomb)])
    refused.commands.append(["pretrain", "--resume", refused.folder("similarities.json", b" " * 2**23)])
    assert all(name in said for name, said in zip(("similarities", "metrics", "similarities"), refused(), strict=True))


def test_a_report_leaves_out_what_is_too_large(whole, tmp_path):
    shutil.copytree(whole / "run", tmp_path / "run")
    (tmp_path / "run" / "flagged.parquet").write_bytes(of_pages(2**30))
    (tmp_path / "run" / "config.yaml").write_text(merges())
    assert main(["report", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "flagged.parquet cannot be read" in page and "config.yaml cannot be read" in page


def test_whole_files_are_read(tmp_path):
    from falseneg.foreign.archives import load_tensors

    content = {"a": torch.arange(6.0).view(2, 3).T, "b": [torch.zeros(3, dtype=torch.bfloat16), {"c": (1, "x", None)}]}
    content["ordered"] = collections.OrderedDict(x=torch.nn.Parameter(torch.ones(2)))
    for legacy in (False, True):
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
        found = load_tensors(tmp_path / "a.pt")
        assert torch.equal(found["a"], content["a"]) and found["b"][1] == content["b"][1]
        assert torch.equal(found["ordered"]["x"], torch.ones(2))
