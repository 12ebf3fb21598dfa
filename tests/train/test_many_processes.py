"""Runs over several processes and machines, that change their number, last longer, wait, and lose a process."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from train.many_processes import free_port, rows_of, run_of, wait_for_lines
from train.parts import untimed, weights

import falseneg as fn
from falseneg.data.loader import EpochSampler
from falseneg.train import fit
from falseneg.train.checkpoint import newest_checkpoint
from falseneg.train.metrics import read_metrics
from falseneg.train.optimisers import rate_factor

SCRIPT = str(Path(__file__).parent / "many_processes.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    fit(run_of(), folder)
    return folder


def assert_alike(one, other, method="SimCLR"):
    """Weights within 1e-6; what is kept of each image, in float32, whose rounding temperatures' steps multiply, within 1e-5."""
    first, second = (torch.load(each / "checkpoints" / "last.pt", weights_only=True) for each in (one, other))
    start = run_of(method).method.state_dict()
    moved = [float((value - start[name]).abs().max()) for name, value in weights(one).items() if name in start]
    assert max(moved) > 1e-3, "the comparison says nothing about weights that have not moved"
    for part in ("method", "criterion"):
        assert first[part].keys() == second[part].keys()
        for name, value in first[part].items():
            tolerance = 1e-6 if part == "method" else 1e-5
            same = torch.allclose(second[part][name], value, rtol=tolerance, atol=tolerance, equal_nan=True)
            assert same, (name, float((second[part][name].double() - value.double()).abs().max()))


def test_torchrun_says_how_many(alone, tmp_path):
    command = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", SCRIPT, str(tmp_path / "run"), "{}"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=250, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert_alike(alone, tmp_path / "run")
    assert done.stdout.count("images (10 classes") == 1, "only the first process speaks"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["processes"] == 2
    for mine, theirs in zip(untimed(alone), untimed(tmp_path / "run"), strict=True):
        assert mine.pop("kind") == theirs.pop("kind") and mine == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["SimCLR", "MoCo"])
def test_two_agents_of_two_processes(tmp_path, method):
    fit(run_of(method), tmp_path / "alone")
    place = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "7"]
    command = [*TORCHRUN, "--nnodes", "2", "--nproc-per-node", "2", *place, SCRIPT, str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    agents = [
        subprocess.Popen([*command, json.dumps({"method": method})], env=environment, text=True, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    errors = [each.communicate(timeout=250)[1] for each in agents]
    assert [each.returncode for each in agents] == [0, 0], errors
    assert_alike(tmp_path / "alone", tmp_path / "run")


def test_machines_find_each_other_by_their_environment(alone, launch, tmp_path):
    launch(tmp_path / "run", 3)
    assert_alike(alone, tmp_path / "run")


def test_machines_that_see_different_things_are_refused(launch, tmp_path):
    outs = launch(tmp_path / "run", 2, codes=(2,), different=lambda rank: {"seed": rank})
    for out in outs:
        assert "REFUSED the processes do not see the same: seed is '0' for process 0 and '1' for process 1" in out
    assert not (tmp_path / "run" / "run.json").exists()
    outs = launch(None, 2, codes=(2,), different=lambda rank: {"folder": tmp_path / f"own{rank}"})
    assert "folder is 'there' for process 0 and 'missing' for process 1" in outs[1]
    outs = launch(tmp_path / "shards", 2, codes=(2,), different=lambda rank: {"fsdp": rank == 1})
    assert all("fsdp is 'False' for process 0 and 'True' for process 1" in out for out in outs)


def test_negatives_of_the_own_process(launch, tmp_path):
    """Their number depends on the processes, and so no other number goes on."""
    apart = {"gather_across_devices": False, "batch_size": 20}
    launch(tmp_path / "run", 2, codes=(128 + signal.SIGTERM,), fault=[3, 0, "SIGTERM"], **apart)
    with pytest.raises(fn.UserError, match="processes is '2' there and '1' here"):
        fit(run_of(**apart), tmp_path / "run", resume=True)
    launch(tmp_path / "run", 2, resume=True, **apart)
    launch(tmp_path / "undisturbed", 2, **apart)
    assert_alike(tmp_path / "undisturbed", tmp_path / "run")
    launch(tmp_path / "gathered", 2, batch_size=20)
    losses = [read_metrics(tmp_path / name)[0]["loss"] for name in ("run", "gathered")]
    assert losses[1] - losses[0] > 0.5  # of about log(38 / 18), for half of the negatives
    outs = launch(tmp_path / "few", 3, codes=(2,), gather_across_devices=False, batch_size=5)
    assert all(
        "a batch has 5 images, which leaves one of 3 processes with a single one and no negatives" in out
        for out in outs
    )


@pytest.mark.parametrize(
    ("method", "form"),
    [
        ("SimCLR", "FNC"),
        pytest.param("MoCo", "FNC", marks=pytest.mark.slow),
        pytest.param("SimCLR", "GloFND", marks=pytest.mark.slow),
        pytest.param("SimCLR", "IFND", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_with_other_processes(launch, tmp_path, method, form):
    """In the middle of an epoch, and with everything that is kept for each image."""
    options = {"method": method, "form": form, "batch_size": 20, "checkpoint_every": None}
    fit(run_of(**options), tmp_path / "alone")
    for world, last in ((2, 6), (3, 11)):  # a signal that one of them gets stops all
        fault, resume = [last - 2, world - 1, "SIGTERM"], world == 3
        outs = launch(tmp_path / "run", world, codes=(128 + signal.SIGTERM,), fault=fault, resume=resume, **options)
        assert f"after step {last} of 12" in outs[0]
    fit(run_of(**options), tmp_path / "run", resume=True)
    assert_alike(tmp_path / "alone", tmp_path / "run")
    mine, theirs = (read_metrics(tmp_path / name) for name in ("alone", "run"))
    for one, other in zip(mine, theirs, strict=True):
        if one["kind"] == "epoch":
            assert one.get("precision") == pytest.approx(other.get("precision")) and one["loss"] == pytest.approx(
                other["loss"]
            )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(13))
def test_killed_many_times_with_other_processes_between(machines, tmp_path, seed):
    """Eight times in a run, at random moments, one process or all, by signals that can and cannot be heard."""
    draw = random.Random(seed)
    method, form = draw.choice([("SimCLR", "FNC"), ("MoCo", "FNC"), ("SimCLR", "GloFND"), ("SimCLR", "IFND")])
    options = {"method": method, "form": form, "batch_size": 20, "checkpoint_every": "1 steps"}
    fit(run_of(**options), tmp_path / "alone")
    folder, killed, noted = tmp_path / "run", 0, []
    for attempt in range(9):
        world = draw.choice([1, 2, 3])
        options["fsdp"] = world > 1 and draw.random() < 0.3
        resume = (folder / "metrics.jsonl").exists() or (folder / "checkpoints").exists()
        noted.append([tmp_path / f"rows{attempt}of{rank}" for rank in range(world)])
        own = noted[-1]
        processes = machines(folder, world, different=lambda rank: {"rows": own[rank]}, resume=resume, **options)  # noqa: B023
        if attempt < 8:
            wait_for_lines(own[0], draw.choice([0, 0, 1, 1, 2, 3]), processes)
            time.sleep(draw.uniform(0, 0.2))
            number, all_of_them = draw.choice([signal.SIGKILL, signal.SIGTERM]), draw.random() < 0.5
            for each in processes if all_of_them else [draw.choice(processes)]:
                killed += each.exitcode is None
                each.kill() if number == signal.SIGKILL else each.terminate()
        for each in processes:
            each.join(200)
        assert all(each.exitcode is not None for each in processes), "a process hangs"
    assert [each.exitcode for each in processes] == [0] * world and killed
    assert_alike(tmp_path / "alone", folder)
    assert [line["kind"] for line in read_metrics(folder)] == [
        line["kind"] for line in read_metrics(tmp_path / "alone")
    ]
    assert rows_of(noted) == batches_of_one(96, 20, 3)


class Damage:
    """What may happen to a run's files while nobody looks."""

    def __init__(self, draw):
        self.draw = draw

    def truncated(self, path):
        os.truncate(path, self.draw.randrange(path.stat().st_size))

    def flipped(self, path):
        content = bytearray(path.read_bytes())
        content[self.draw.randrange(len(content))] ^= 1 << self.draw.randrange(8)
        path.write_bytes(content)

    def gone(self, path):
        path.unlink()

    def half_written(self, path):
        (path.parent / f".{path.name}.1.tmp").write_bytes(b"half")


FAULTS = ("death", "SIGTERM", "SIGINT", "full disk", "disk error", "unreadable images")
DAMAGE = ("truncated", "flipped", "gone", "half_written")


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))])
def test_faults_of_every_kind(launch, tmp_path, seed):
    """In each round the process or its disk fails at a step, and then perhaps its last checkpoint is damaged."""
    draw = random.Random(seed)
    method, form = draw.choice([("SimCLR", "FNC"), ("MoCo", "FNC"), ("SimCLR", "GloFND"), ("SimCLR", "IFND")])
    options = {"method": method, "form": form, "batch_size": 20, "checkpoint_every": "1 steps"}
    fit(run_of(**options), tmp_path / "alone")
    folder, last, happened = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.pt", []
    for _ in range(3 if seed == 0 else 8):
        found = newest_checkpoint(last.parent, print)
        reached = found[1]["step"] if found else 0
        if reached >= 10:
            break
        what = draw.choice(FAULTS)
        resume = (folder / "metrics.jsonl").exists() or last.exists()
        codes = {"death": 9, "SIGTERM": 128 + signal.SIGTERM, "SIGINT": 128 + signal.SIGINT}.get(what, 2)
        fault = [reached + draw.choice([0, 1]), 0, what]
        out = launch(folder, codes=(codes,), resume=resume, fault=fault, **options)[0]
        assert "Traceback" not in out and (codes != 2 or "REFUSED" in out), out
        happened.append(what)
        whole = [path for path in (last, last.with_name("previous.pt")) if path.is_file()]
        # Where the disk failed at the last moment, both are one file.
        if draw.random() < 0.5 and len(whole) == 2 and not whole[0].samefile(whole[1]):
            happened.append(draw.choice(DAMAGE))
            getattr(Damage(draw), happened[-1])(last)
    fit(run_of(**options), folder, resume=True)
    assert_alike(tmp_path / "alone", folder)
    assert untimed(folder) == untimed(tmp_path / "alone"), happened


def batches_of_one(rows, batch_size, epochs):
    sampler, steps = EpochSampler(rows, batch_size), {}
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for keys in sampler:
            steps[len(steps)] = sorted(row for _, row in keys)
    return steps


def test_measuring_may_take_longer_than_processes_wait_for_each_other(alone, launch, tmp_path):
    """Before training, at the last epoch and at the end; the training itself waits 5 seconds at most."""
    launch(tmp_path / "run", 2, wait=[8, 5])
    assert_alike(alone, tmp_path / "run")


def test_a_process_that_dies_is_one_sentence_on_the_others(launch, tmp_path):
    began = time.monotonic()
    fault = [2, 1, "death"]
    outs = launch(tmp_path / "run", 3, codes=(2, 9, 2), fault=fault, checkpoint_every="1 steps")
    for out in (outs[0], outs[2]):
        assert "REFUSED another process of this training has ended" in out and "Traceback" not in out
    assert time.monotonic() - began < 60
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)["step"] == 2


class TestMoreEpochs:
    """A run goes on beyond the epochs that it was given."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("longer") / "run"
        fit(run_of(epochs=2), folder, configuration="epochs: 2\n")
        return folder

    def test_schedules_are_those_of_a_run_of_so_many(self, folder, capsys):
        encoder, first = (folder / "encoder.safetensors").read_bytes(), read_metrics(folder)
        figures = fit(run_of(epochs=5), folder, resume=True, configuration="epochs: 5\n")
        assert "continuing after step 4 of 10" in capsys.readouterr().out
        assert (folder / "epochs-00002" / "encoder.safetensors").read_bytes() == encoder
        assert (folder / "encoder.safetensors").read_bytes() != encoder
        assert (folder / "config.yaml").read_text() == "epochs: 5\n"
        assert json.loads((folder / "run.json").read_text())["settings"]["epochs"] == "5"
        lines = read_metrics(folder)
        assert lines[: len(first)] == first, "what was measured before stays"
        assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [1, 2, 3, 4, 5]
        assert [line["kind"] for line in lines].count("final") == 2 and lines[-1]["knn"] == figures["knn"]
        rates = {line["step"]: line["learning_rate"] for line in lines if line["kind"] == "step"}
        assert all(rates[step] == pytest.approx(0.02 * rate_factor(step - 1, 1, 10)) for step in (6, 8, 10))
        assert rates[4] == pytest.approx(0.02 * rate_factor(3, 1, 4))

    def test_it_is_finished_again(self, folder):
        length = (folder / "metrics.jsonl").stat().st_size
        assert fit(run_of(epochs=5), folder, resume=True)["knn"] >= 0
        assert fit(run_of(epochs=2), folder, resume=True)["knn"] >= 0, "it has these, too"
        assert (folder / "metrics.jsonl").stat().st_size == length

    def test_one_that_is_killed_at_once_goes_on(self, launch, tmp_path):
        folder = tmp_path / "run"
        fit(run_of(epochs=2), folder)
        launch(folder, codes=(9,), epochs=4, resume=True, fault=[5, 0, "death"])
        fit(run_of(epochs=4), folder, resume=True)
        fit(run_of(epochs=2), tmp_path / "whole")
        fit(run_of(epochs=4), tmp_path / "whole", resume=True)
        assert_alike(tmp_path / "whole", folder)
        assert untimed(folder) == untimed(tmp_path / "whole")


def test_the_last_incomplete_batch(launch, tmp_path, capsys):
    """96 images in batches of 40: 16 are left, and seen where that is asked for; by three processes as by one."""
    fit(run_of(batch_size=40), tmp_path / "without")
    said = capsys.readouterr().out
    assert "leaves out 16 of the images" in said and "epochs of 2 steps" in said
    fit(run_of(batch_size=40, keep_last=True), tmp_path / "alone")
    said = capsys.readouterr().out
    assert "leaves out" not in said and "epochs of 3 steps" in said
    launch(tmp_path / "run", 3, batch_size=40, keep_last=True)
    assert_alike(tmp_path / "alone", tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 19, "keep_last": True}, "the last batch of 96 images has 1, too few for 1 process; "),
        ({"batch_size": 46, "keep_last": True, "accumulate": 5}, "accumulate is 5, but a process sees 4 images"),
    ],
)
def test_a_last_batch_that_is_too_small(tmp_path, options, words):
    with pytest.raises(fn.UserError, match=words):
        fit(run_of(**options), tmp_path / "run")
    assert not (tmp_path / "run").exists()
