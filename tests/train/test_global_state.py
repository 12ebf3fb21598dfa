"""Runs whose loss, detector and temperature keep something of each sample."""

import signal

import pytest
import torch
from train.parts import assert_same_weights, digits, tiny_run, untimed
from train.test_resume import StopAt

import falseneg as fn
from falseneg.train import fit


class Stopping(fn.GlobalContrastive):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step, number=signal.SIGINT, end=0.3):
        super().__init__(fn.Cosine(1.0, end, "2 epochs"), rho=0.3)
        self._stop = StopAt(step, number)

    def forward(self, contrast, stats, tau, strategy, clock=None):
        self._stop(contrast, stats, tau, strategy, clock)
        return super().forward(contrast, stats, tau, strategy, clock)


def run(step, **options):
    parts = {
        "detector": fn.GlobalThreshold(alpha=0.1, start="1 epoch", shared_until="4 steps"),
        "objective": Stopping(step),
        "temperature": fn.IndividualTemperature(),
        "checkpoint_every": None,
        "batch_size": 20,
        "epochs": 4,
        "data": digits(50),
    }
    return tiny_run(**{**parts, **options})


def kept(folder):
    return torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["criterion"]


@pytest.mark.parametrize("step, accumulate", [(1, 1), (5, 3)])
def test_an_interrupted_run_ends_with_the_same_state(tmp_path, step, accumulate):
    fit(run(-1, accumulate=accumulate), tmp_path / "whole")
    with pytest.raises(SystemExit):
        fit(run(step, accumulate=accumulate), tmp_path / "parts")
    fit(run(-1, accumulate=accumulate), tmp_path / "parts", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "parts")
    whole, parts = kept(tmp_path / "whole"), kept(tmp_path / "parts")
    assert whole.keys() == parts.keys() and "detector.tables.views.own.column_threshold" in whole
    assert all(torch.equal(whole[name].nan_to_num(7), parts[name].nan_to_num(7)) for name in whole)
    visits = whole["objective.running.views.table.visits"]
    assert visits.sum() == 8 * 20 and whole["temperature.tables.views.column_tau"].unique().numel() > 10


@pytest.mark.parametrize(
    "options, words",
    [
        ({"data": digits(60)}, "is '.*' there and '.*' here"),
        ({"detector": fn.GlobalThreshold(alpha=0.2, start="1 epoch", shared_until="4 steps")}, "detector.alpha is"),
        (
            {"detector": fn.GlobalThreshold(0.1, fn.AdamStep(0.01), start="1 epoch", shared_until="4 steps")},
            "detector.step.learning_rate is '0.05' there and '0.01' here",
        ),
        ({"objective": Stopping(-1, end=0.5)}, "objective.gamma.end is '0.3' there and '0.5' here"),
    ],
)
def test_it_is_not_continued_under_other_settings(tmp_path, options, words):
    with pytest.raises(SystemExit):
        fit(run(1), tmp_path / "run")
    with pytest.raises(fn.UserError, match=words):
        fit(run(-1, **options), tmp_path / "run", resume=True)
