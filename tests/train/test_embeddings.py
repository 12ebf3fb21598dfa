"""Passes over the whole data set for detectors, and clustering during training: stopped, killed, over two processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from train import clustering_trainee, two_clusterings
from train.clustering_trainee import clustered_run
from train.parts import Unlabelled, assert_same_weights, digits, tiny_encoder, tiny_run, untimed
from train.test_two_processes import assert_alike

import falseneg as fn
from falseneg import clustering
from falseneg.clustering import spherical_k_means
from falseneg.evaluation import extract_features
from falseneg.train import embeddings, fit
from falseneg.train.checkpoint import load_checkpoint
from falseneg.train.guards import Stopped, StopRequests


class Look(fn.NoDetection):
    """Looks at the embeddings of the whole data set at the start of each epoch, and calls something then."""

    def __init__(self, _seen, _meanwhile=lambda: None):
        super().__init__()
        self._seen, self._meanwhile = _seen, _meanwhile

    def start_epoch(self, features, clock):
        points = features()
        self._meanwhile()
        self._seen.append(points.clone())


def looked(folder, **options):
    seen = []
    meanwhile = options.pop("meanwhile", lambda: None)
    fit(tiny_run(**{"detector": Look(seen, meanwhile), "epochs": 2, **options}), folder)
    return seen


@pytest.mark.parametrize("workers", [0, 1])
def test_every_image_as_the_method_embeds_it_without_augmentation(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(embeddings, "AT_ONCE", 40)
    method, expected = fn.SimCLR(tiny_encoder(), support_views=1), []

    class Embed(torch.nn.Module):
        def forward(self, images):
            return method.embed(images)

    def embed():
        method.eval()
        expected.append(extract_features(Embed(), digits(), 8))
        method.train()

    seen = looked(tmp_path / "run", method=method, meanwhile=embed, workers=workers)
    for points, alone in zip(seen, expected, strict=True):
        assert points.shape == (96, 128) and points.dtype == torch.float32
        torch.testing.assert_close(points, alone, rtol=1e-5, atol=1e-6)
    assert not torch.equal(seen[0], seen[1])


def test_many_embeddings_go_to_a_file_in_half_precision(tmp_path, monkeypatch):
    path, sizes = tmp_path / "file" / embeddings.FILE, []
    in_memory = looked(tmp_path / "memory", meanwhile=lambda: sizes.append((tmp_path / "memory" / path.name).exists()))
    assert not any(sizes)
    monkeypatch.setattr(embeddings, "MOST_IN_MEMORY", 96 * 128 * 4 - 1)
    monkeypatch.setattr(embeddings, "AT_ONCE", 50)
    in_file = looked(tmp_path / "file", meanwhile=lambda: sizes.append(path.stat().st_size))
    assert sizes[2:] == [96 * 128 * 2] * 2 and not path.exists()
    for whole, half in zip(in_memory, in_file, strict=True):
        assert half.dtype == torch.float16
        torch.testing.assert_close(half.float(), whole, rtol=1e-3, atol=1e-4)
    assert_same_weights(tmp_path / "memory", tmp_path / "file")


def test_clusters_of_a_file(tmp_path, monkeypatch):
    fit(clustered_run(epochs=2), tmp_path / "memory")
    monkeypatch.setattr(embeddings, "MOST_IN_MEMORY", 1000)
    fit(clustered_run(epochs=2), tmp_path / "file")
    whole, half = (read_arrays(tmp_path / name, 2) for name in ("memory", "file"))
    assert whole.keys() == half.keys() == {"clusters 4", "pseudo-labels 4", "clusters 9", "pseudo-labels 9"}
    assert (whole["clusters 4"] == half["clusters 4"]).mean() > 0.9


def read_arrays(folder, epoch):
    with np.load(folder / "per_sample" / f"epoch-{epoch:05d}.npz") as stored:
        return {name: stored[name] for name in stored.files}


def assert_same_runs(one, other):
    assert_same_weights(one, other)
    assert untimed(one) == untimed(other)
    names = {path.relative_to(one) for path in one.rglob("*")}
    assert names == {path.relative_to(other) for path in other.rglob("*")}
    for path in (one / "per_sample").iterdir():
        epoch = int(path.stem.split("-")[1])
        first, second = read_arrays(one, epoch), read_arrays(other, epoch)
        assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    torch.manual_seed(0)
    fit(clustered_run(), folder)
    return folder


def kill_this():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("step", [1, 8, 15])  # of the first level, of the second, and of the next epoch
def test_a_signal_during_the_clustering_stops_it_at_once(undisturbed, tmp_path, monkeypatch, capsys, step):
    monkeypatch.setattr(clustering, "_faiss_step", clustering._faiss_step)  # is put back afterwards
    steps = clustering_trainee.before_step(step, kill_this)
    with pytest.raises(SystemExit) as stopped:
        fit(clustered_run(checkpoint_every=None), tmp_path / "run")
    assert stopped.value.code == 128 + signal.SIGTERM and len(steps) == step
    assert f"after step {3 * (1 + step // 11)} of 12 and saved" in capsys.readouterr().out
    torch.manual_seed(99)
    fit(clustered_run(checkpoint_every=None), tmp_path / "run", resume=True)
    assert_same_runs(undisturbed, tmp_path / "run")


@pytest.mark.parametrize("in_a_file", [False, True])
def test_a_signal_during_the_pass_stops_it_at_once(tmp_path, monkeypatch, in_a_file):
    monkeypatch.setattr(embeddings, "MOST_IN_MEMORY", 1000 if in_a_file else 2**30)
    monkeypatch.setattr(embeddings, "AT_ONCE", 20)
    fit(clustered_run(), tmp_path / "whole")
    add, batches = embeddings._Kept.add, []

    def added(kept, batch):
        batches.append(batch)
        if len(batches) == 8:
            kill_this()
        add(kept, batch)

    monkeypatch.setattr(embeddings._Kept, "add", added)
    with pytest.raises(SystemExit):
        fit(clustered_run(checkpoint_every=None), tmp_path / "run")
    assert len(batches) == 8 and not list((tmp_path / "run").glob("*embeddings*"))
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["step"] == 6
    fit(clustered_run(checkpoint_every=None), tmp_path / "run", resume=True)
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


class StopAt(fn.InfoNCE):
    def __init__(self, step):
        super().__init__()
        self._step = step

    def forward(self, contrast, stats, tau, strategy, clock=None):
        if clock.step == self._step:
            self._step = -1  # it is called for each level
            kill_this()
        return super().forward(contrast, stats, tau, strategy, clock)


def test_stopped_within_an_epoch(undisturbed, tmp_path):
    """The pseudo-labels of the epoch come from the checkpoint: the weights are no longer those of its start."""
    with pytest.raises(SystemExit):
        fit(clustered_run(objective=StopAt(7)), tmp_path / "run")
    fit(clustered_run(objective=StopAt(-1)), tmp_path / "run", resume=True)
    assert_same_runs(undisturbed, tmp_path / "run")


def launch(script, *arguments):
    command = [sys.executable, str(Path(__file__).parent / script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)


@pytest.mark.parametrize("dies", [17, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_during_the_clustering(undisturbed, tmp_path, dies):
    assert launch("clustering_trainee.py", tmp_path / "run", dies, "new").returncode == -signal.SIGKILL
    done = launch("clustering_trainee.py", tmp_path / "run", 0, "resume")
    assert done.returncode == 0, done.stderr
    assert_same_runs(undisturbed, tmp_path / "run")


def test_faiss_itself_is_broken_off():
    points = torch.nn.functional.normalize(torch.randn(40_000, 64), dim=1)
    subprocess.Popen(["sh", "-c", f"sleep 1; kill -TERM {os.getpid()}"])
    began = time.monotonic()
    with StopRequests() as stop, pytest.raises(Stopped), stop.at_once():
        spherical_k_means(points, 2000, seed=0, iterations=1000)
    assert stop.wanted == signal.SIGTERM and time.monotonic() - began < 30


def test_a_signal_that_came_before_is_not_passed_over():
    with StopRequests() as stop:
        kill_this()
        with pytest.raises(Stopped), stop.at_once():
            pytest.fail("not begun")


@pytest.mark.parametrize("in_a_file", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_two_processes_cluster_as_one(tmp_path, monkeypatch, in_a_file):
    for name in ("AT_ONCE", "MOST_IN_MEMORY"):
        monkeypatch.setattr(embeddings, name, getattr(embeddings, name))
    fit(two_clusterings.clustered_run(1, in_a_file), tmp_path / "one")
    done = launch("two_clusterings.py", tmp_path / "two", 2, in_a_file, 0, "new")
    assert done.returncode == 0, done.stderr
    assert_alike(tmp_path / "one", tmp_path / "two")
    one, two = read_arrays(tmp_path / "one", 3), read_arrays(tmp_path / "two", 3)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert (one["pseudo-labels 6"] >= 0).sum() == round(0.8 * 96)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 4, 5])
def test_a_signal_to_one_process_stops_both_in_the_pass(tmp_path, monkeypatch, stop):
    for name in ("AT_ONCE", "MOST_IN_MEMORY"):
        monkeypatch.setattr(embeddings, name, getattr(embeddings, name))
    fit(two_clusterings.clustered_run(1, True), tmp_path / "one")
    stopped = launch("two_clusterings.py", tmp_path / "two", 2, True, stop, "new")
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert f"after step {2 if stop < 4 else 4} of 6" in stopped.stdout and f"{stop} batches" in stopped.stderr
    done = launch("two_clusterings.py", tmp_path / "two", 2, True, 0, "resume")
    assert done.returncode == 0, done.stderr
    assert_alike(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"detector": fn.IncrementalClusters([97])}, "clusters is .97., but there are 96 images"),
        ({"detector": fn.IncrementalClusters()}, "give clusters, or the number of expected classes"),
        ({"detector": fn.IncrementalClusters(warmup="0%"), "expected_classes": 10}, "clusters is .10, 30, 100., but"),
    ],
)
def test_more_clusters_than_images(tmp_path, options, sentence):
    with pytest.raises(fn.UserError, match=sentence):
        fit(tiny_run(**options), tmp_path / "run")


def test_images_that_are_all_the_same(tmp_path):
    class Same(Unlabelled):
        def image(self, row):
            return super().image(0)

    detector = fn.IncrementalClusters([4], warmup="0%")
    with pytest.raises(fn.UserError, match="the embeddings of all 96 images are equal"):
        fit(tiny_run(data=Same(), test=None, detector=detector, check_duplicates=False), tmp_path / "run")
