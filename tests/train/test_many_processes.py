"""Runs over several processes and machines, that change their number, last longer, wait, and lose a process."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from train.many_processes import run_of
from train.parts import untimed, weights

import falseneg as fn
from falseneg.train import fit
from falseneg.train.metrics import read_metrics

SCRIPT = str(Path(__file__).parent / "many_processes.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def start(*command, **variables):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def launch(folder, *launcher, code=0, **options):
    """One command, to its end; what it printed."""
    process = start(*(launcher or [sys.executable]), SCRIPT, str(folder), json.dumps(options))
    out, error = process.communicate(timeout=250)
    assert process.returncode == code, (process.returncode, out, error)
    return out


def free_port():
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return str(each.getsockname()[1])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    fit(run_of(), folder)
    return folder


def assert_alike(one, other, tolerance=1e-6):
    first, second = (torch.load(each / "checkpoints" / "last.pt", weights_only=True) for each in (one, other))
    start_weights = run_of().method.state_dict()
    assert max(float((value - start_weights[name]).abs().max()) for name, value in weights(one).items()) > 1e-3
    for part in ("method", "criterion"):
        assert first[part].keys() == second[part].keys()
        for name, value in first[part].items():
            torch.testing.assert_close(
                second[part][name], value, rtol=tolerance, atol=tolerance, equal_nan=True, msg=name
            )


def test_torchrun_says_how_many(alone, tmp_path):
    out = launch(tmp_path / "run", *TORCHRUN, "--standalone", "--nproc-per-node", "3")
    assert_alike(alone, tmp_path / "run")
    assert out.count("images (10 classes") == 1, "only the first process speaks"
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["processes"] == 3
    for mine, theirs in zip(untimed(alone), untimed(tmp_path / "run"), strict=True):
        assert mine.pop("kind") == theirs.pop("kind") and mine == pytest.approx(theirs, rel=1e-5)


def test_two_machines_find_each_other(alone, tmp_path):
    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    options = json.dumps({"nodes": 2})
    command = [sys.executable, SCRIPT, str(tmp_path / "run"), options]
    machines = [start(*command, NODE_RANK=str(rank), **port) for rank in range(2)]
    outs = [each.communicate(timeout=250) for each in machines]
    assert [each.returncode for each in machines] == [0, 0], outs
    assert_alike(alone, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["SimCLR", "MoCo"])
def test_two_agents_of_two_processes(tmp_path, method):
    fit(run_of(method), tmp_path / "alone")
    place = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "7"]
    command = [*TORCHRUN, "--nnodes", "2", "--nproc-per-node", "2", *place, SCRIPT, str(tmp_path / "run")]
    agents = [start(*command, json.dumps({"method": method})) for _ in range(2)]
    outs = [each.communicate(timeout=250) for each in agents]
    assert [each.returncode for each in agents] == [0, 0], outs
    assert_alike(tmp_path / "alone", tmp_path / "run")


def test_machines_that_see_different_data_are_refused(tmp_path):
    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    machines = [
        start(
            sys.executable,
            SCRIPT,
            str(tmp_path / "run"),
            json.dumps({"nodes": 2, "seed": seed}),
            NODE_RANK=str(seed),
            **port,
        )
        for seed in range(2)
    ]
    outs = [each.communicate(timeout=250)[0] for each in machines]
    assert [each.returncode for each in machines] == [2, 2], outs
    for out in outs:
        assert "REFUSED the processes do not see the same: seed is '0' for process 0 and '1' for process 1" in out
    assert not (tmp_path / "run" / "run.json").exists()


def test_machines_with_folders_of_their_own_are_refused(tmp_path):
    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    machines = [
        start(sys.executable, SCRIPT, str(tmp_path / str(rank)), json.dumps({"nodes": 2}), NODE_RANK=str(rank), **port)
        for rank in range(2)
    ]
    outs = [each.communicate(timeout=250)[0] for each in machines]
    assert [each.returncode for each in machines] == [2, 2], outs
    assert "folder is 'there' for process 0 and 'missing' for process 1" in outs[1]


def stop_at(step, folder, devices, **options):
    """Train until a signal, which one of the processes gets in the step before the last, stops all after this many."""
    out = launch(
        folder, code=128 + signal.SIGTERM, devices=devices, fault=[step - 2, devices - 1, "SIGTERM"], **options
    )
    assert f"after step {step} of 12" in out


@pytest.mark.parametrize(
    ("method", "form"),
    [
        ("SimCLR", "FNC"),
        pytest.param("MoCo", "FNC", marks=pytest.mark.slow),
        pytest.param("SimCLR", "GloFND", marks=pytest.mark.slow),
        pytest.param("SimCLR", "IFND", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_with_other_processes(tmp_path, method, form):
    """In the middle of an epoch, and with everything that is kept for each image."""
    options = {"method": method, "form": form, "batch_size": 20, "checkpoint_every": None}
    fit(run_of(**options), tmp_path / "alone")
    stop_at(6, tmp_path / "run", 2, **options)
    stop_at(11, tmp_path / "run", 3, resume=True, **options)
    fit(run_of(**options), tmp_path / "run", resume=True)
    assert_alike(tmp_path / "alone", tmp_path / "run")
    mine, theirs = (read_metrics(tmp_path / name) for name in ("alone", "run"))
    for one, other in zip(mine, theirs, strict=True):
        if one["kind"] == "epoch":
            assert one["precision"] == pytest.approx(other["precision"]) and one["loss"] == pytest.approx(other["loss"])


def test_measuring_may_take_longer_than_processes_wait_for_each_other(alone, tmp_path):
    """Before training, at the last epoch and at the end; the training itself waits 6 seconds at most."""
    launch(tmp_path / "run", devices=2, wait=[12, 6])
    assert_alike(alone, tmp_path / "run")


def test_a_process_that_dies_is_one_sentence_on_the_others(tmp_path):
    began = time.monotonic()
    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    options = json.dumps({"nodes": 2, "fault": [2, 1, "death"], "checkpoint_every": "1 steps"})
    command = [sys.executable, SCRIPT, str(tmp_path / "run"), options]
    machines = [start(*command, NODE_RANK=str(rank), **port) for rank in range(2)]
    outs = [each.communicate(timeout=250) for each in machines]
    assert [each.returncode for each in machines] == [2, 9], outs
    assert "REFUSED another process of this training has ended" in outs[0][0]
    assert "Traceback" not in outs[0][1]
    assert time.monotonic() - began < 90
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert state["step"] == 2


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
        whole = fn_rates(5)
        assert all(rates[step] == pytest.approx(whole[step]) for step in (6, 8, 10))
        assert rates[4] == pytest.approx(fn_rates(2)[4])

    def test_it_is_finished_again(self, folder):
        length = (folder / "metrics.jsonl").stat().st_size
        assert fit(run_of(epochs=5), folder, resume=True)["knn"] >= 0
        assert fit(run_of(epochs=2), folder, resume=True)["knn"] >= 0, "it has these, too"
        assert (folder / "metrics.jsonl").stat().st_size == length


def fn_rates(epochs):
    from falseneg.train.optimisers import rate_factor

    steps = 2 * epochs
    return {step: 0.02 * rate_factor(step - 1, -(-steps // 10), steps) for step in range(1, steps + 1)}


def test_a_longer_run_that_is_killed_at_once_goes_on(tmp_path):
    folder = tmp_path / "run"
    fit(run_of(epochs=2), folder)
    launch(folder, code=9, epochs=4, resume=True, fault=[5, 0, "death"])
    launch(folder, epochs=4, resume=True)
    fit(run_of(epochs=2), tmp_path / "whole")
    fit(run_of(epochs=4), tmp_path / "whole", resume=True)
    assert_alike(tmp_path / "whole", folder)
    kinds = [[line["kind"] for line in read_metrics(each)] for each in (folder, tmp_path / "whole")]
    assert kinds[0] == kinds[1]


def test_the_last_incomplete_batch(tmp_path, capsys):
    """96 images in batches of 40: 16 are left, and seen where that is asked for; by two processes as by one."""
    fit(run_of(batch_size=40), tmp_path / "without")
    said = capsys.readouterr().out
    assert "16 images of each epoch" in said and "epochs of 2 steps" in said
    fit(run_of(batch_size=40, keep_last=True), tmp_path / "alone")
    said = capsys.readouterr().out
    assert "images of each epoch" not in said and "epochs of 3 steps" in said
    launch(tmp_path / "run", devices=3, batch_size=40, keep_last=True)
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
