import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from train.parts import assert_same_weights, digits, tiny_encoder, tiny_run
from train.two_checks import checked_run

import falseneg as fn
from falseneg.data import Augmentation, collate
from falseneg.train import fit
from falseneg.train.metrics import read_metrics
from falseneg.train.observers import per_sample, true_quantiles
from falseneg.train.observers.true_quantiles import Checked, Threshold, check_thresholds
from falseneg.train.plan import views_of


def smooth_encoder():
    """Without dropout and BatchNorm: an image's embedding does not depend on its batch."""
    return tiny_encoder(norm_layer="layernorm2d", drop_rate=0.0, drop_path_rate=0.0)


def smooth_method(**options):
    method = fn.SimCLR(smooth_encoder(), head_dim=16, **options)
    method.head[1] = torch.nn.LayerNorm(method.encoder.feature_dim)
    return method


def while_training(monkeypatch, folder, look, **options):
    """Train for an epoch, and let something look at the training where thresholds are checked."""
    seen = []
    monkeypatch.setattr(per_sample, "check_thresholds", lambda *given: seen.append(look(*given)) or {})
    fit(tiny_run(**{"detector": fn.GlobalThreshold(0.1), "epochs": 1, **options}), folder)
    assert len(seen) == 1
    return seen[0]


def by_loops(training, epoch, alpha, values, in_space):
    """The quantile and the share of each image, one pair of views at a time."""
    views = views_of(training.run, training.plan)
    with torch.no_grad():
        samples = [collate([views[epoch, row]]) for row in range(len(training.plan.train))]
        images = [training.learner.method.encode(sample) for sample in samples]
    expected = {}
    for row, image in enumerate(images):
        scores = [
            max(float(query @ candidate) for query in image.rows["support"][0]) if in_space else float(view @ candidate)
            for view in image.rows["image"][0]
            for other in images
            for candidate in other.rows.get("keys", other.rows["image"])[0]
            if other is not image
        ]
        quantile = sorted(scores, reverse=True)[math.ceil(alpha * len(scores)) - 1]
        expected[row] = quantile, sum(score > float(values[row]) for score in scores) / len(scores)
    return expected


def smooth_moco():
    """With a bank that is filled by the steps of the epoch, and whose keys are another encoder's by its end."""
    method = fn.MoCo(smooth_encoder(), head_dim=16, bank=50, momentum=0.5)
    for head in (method.head, method.momentum_network.network[1]):
        head[1] = torch.nn.LayerNorm(method.encoder.feature_dim)
    return method


@pytest.mark.parametrize("kind", ["views", "support", "moco"])
@pytest.mark.parametrize("options", [{}, {"accumulate": 3}, {"workers": 1}, {"batch_size": 12}])
def test_quantiles_are_those_of_plain_loops(tmp_path, monkeypatch, kind, options):
    values = torch.linspace(0.6, 1, 30)
    values[3] = torch.nan
    in_space = kind == "support"

    def look(training, thresholds, epoch):
        threshold = Threshold("views", values, 0.15, "support" if in_space else None)
        checked = check_thresholds(training, {"mine": threshold}, epoch)["mine"]
        return checked, by_loops(training, epoch, 0.15, values, in_space)

    monkeypatch.setattr(true_quantiles, "ANCHORS", 20)  # more than a batch of 12
    run = {
        "data": digits(30),
        "method": smooth_moco() if kind == "moco" else smooth_method(support_views=2 if in_space else 0),
        "test": None,
        "holdout": 0.0,
    }
    checked, expected = while_training(monkeypatch, tmp_path, look, **{**run, "batch_size": 16, **options})
    rows = checked.rows.tolist()
    assert len(set(rows)) == 20 and rows == sorted(rows)
    assert checked.true.tolist() == pytest.approx([expected[row][0] for row in rows], abs=2e-4)
    assert checked.learned.tolist() == pytest.approx(values[rows].tolist(), nan_ok=True)
    shares = [math.nan if row == 3 else expected[row][1] for row in rows]
    assert checked.share.tolist() == pytest.approx(shares, abs=0.003, nan_ok=True)
    assert len({round(share, 3) for share in shares}) > 3


def test_nothing_of_the_training_changes(tmp_path, monkeypatch):
    """Not even with dropout and BatchNorm."""
    options = {"epochs": 2, "evaluate_every": None}
    fit(tiny_run(detector=fn.GlobalThreshold(0.1), **options), tmp_path / "checked")
    monkeypatch.setattr(per_sample, "check_thresholds", lambda *_: {})
    fit(tiny_run(detector=fn.GlobalThreshold(0.1), **options), tmp_path / "plain")
    assert_same_weights(tmp_path / "checked", tmp_path / "plain")
    assert "threshold/true error" in read_metrics(tmp_path / "checked")[-2]


def test_embedded_as_in_training(tmp_path, monkeypatch):
    """With the batch's statistics, not with the running ones, and without gradient."""
    modes = []

    def look(training, thresholds, epoch):
        norm = next(m for m in training.learner.method.modules() if isinstance(m, torch.nn.BatchNorm2d))
        before, state = norm.running_mean.clone(), torch.get_rng_state()
        hook = norm.register_forward_hook(
            lambda m, _, out: modes.append((m.training, m.track_running_stats, out.requires_grad))
        )
        check_thresholds(training, thresholds, epoch)
        hook.remove()
        assert torch.equal(norm.running_mean, before) and norm.track_running_stats
        assert torch.equal(torch.get_rng_state(), state)
        return True

    assert while_training(monkeypatch, tmp_path, look)
    assert modes == [(True, False, False)] * 6  # main and support views of three batches


class Pixels(torch.nn.Module):
    """An encoder that learns next to nothing, and in which images differ."""

    feature_dim = 64

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.scale * (images[:, 0].flatten(1).float() / 255 - 0.3)


def test_thresholds_that_learn_reach_the_quantiles(tmp_path):
    """Where neither views nor encoder change, up to the noise of the optimiser's steps."""
    method = smooth_method()
    method.encoder, method.head = Pixels(), torch.nn.Identity()
    run = tiny_run(
        data=digits(60),
        method=method,
        detector=fn.GlobalThreshold(0.2, step=fn.AdamStep(learning_rate=0.02)),
        augmentation=Augmentation(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, jitter=0.0, grayscale=0.0),
        epochs=40,
        batch_size=30,
        test=None,
        holdout=0.0,
    )
    fit(run, tmp_path / "run")
    lines = [line for line in read_metrics(tmp_path / "run") if "threshold/true error" in line]
    assert [line["epoch"] for line in lines] == [5, 20, 40]
    assert lines[-1]["threshold/true error"] < 0.02 and lines[-1]["threshold/true correlation"] > 0.9
    assert lines[-1]["threshold/true share"] == pytest.approx(0.2, abs=0.02)
    assert lines[-1]["threshold/alpha"] == 0.2
    with np.load(tmp_path / "run" / "per_sample" / "epoch-00040.npz") as arrays:
        rows = arrays["threshold/rows"]
        assert np.array_equal(arrays["threshold"][rows], arrays["threshold/learned"])
        assert arrays["threshold/true"].std() > 0.04  # there was something to learn


def test_figures():
    true, learned = torch.tensor([0.1, 0.2, 0.4, 0.9]), torch.tensor([0.2, 0.2, 0.3, torch.nan])
    share = torch.tensor([0.1, 0.2, 0.3, torch.nan])
    figures = Checked(torch.arange(4), true, learned, share, 0.1).figures()
    assert figures["true error"] == pytest.approx(0.2 / 3) and figures["true share"] == pytest.approx(0.2)
    assert figures["true correlation"] == pytest.approx(np.corrcoef([0.1, 0.2, 0.4], [0.2, 0.2, 0.3])[0, 1])
    shared = Checked(torch.arange(4), true, torch.full((4,), 0.3), share, 0.1).figures()
    assert shared["true correlation"] is None and shared["true error"] == pytest.approx(0.25)
    nothing = Checked(torch.arange(4), true, torch.full((4,), torch.nan), share * torch.nan, 0.1).figures()
    assert set(nothing.values()) == {None, 0.1}


def test_two_processes_check_together(tmp_path):
    fit(checked_run(1), tmp_path / "alone")
    command = [sys.executable, str(Path(__file__).parent / "two_checks.py"), str(tmp_path / "run"), "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr
    alone, together = (
        [json.dumps({k: round(v, 4) for k, v in line.items() if "/" in k}) for line in read_metrics(tmp_path / name)]
        for name in ("alone", "run")
    )
    assert alone == together and "threshold/true error" in alone[-2]
    with (
        np.load(tmp_path / "alone/per_sample/epoch-00002.npz") as one,
        np.load(tmp_path / "run/per_sample/epoch-00002.npz") as other,
    ):
        for name in one.files:
            np.testing.assert_allclose(one[name], other[name], atol=2e-4, err_msg=name)
