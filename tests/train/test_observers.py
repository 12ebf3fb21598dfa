import dataclasses

import pytest
import torch
from train.parts import assert_same_weights, tiny_encoder, tiny_run

import falseneg as fn
from falseneg.data import Augmentation
from falseneg.data.views import Crops
from falseneg.strategy import ATTRACT
from falseneg.train import SGD, fit, pretrain
from falseneg.train.metrics import read_metrics
from falseneg.train.observers import accuracy
from falseneg.train.plan import MEASURING, TOLD_BY_THE_DATA, make_plan, settings
from falseneg.train.run import INCIDENTAL

# What a resumed run must share: another value of each field of a run, but of those that are free.
OTHER = {
    "method": lambda: fn.SimCLR(tiny_encoder(), support_views=2),
    "detector": lambda: fn.SupportSet(top_k=5),
    "strategy": lambda: ATTRACT,
    "objective": fn.Decoupled,
    "temperature": lambda: fn.FixedTemperature(0.1),
    "augmentation": lambda: Augmentation(crop_scale=(0.5, 1.0)),
    "support_augmentation": lambda: Augmentation(crop_scale=(0.5, 1.0)),
    "multi_crop": lambda: [Crops(1, 6)],
    "optimiser": lambda: SGD(1e-3),
    "data": lambda: tiny_run().test,
    "epochs": lambda: 4,
    "batch_size": lambda: 16,
    "keep_last": lambda: True,
    "gather_across_devices": lambda: False,
    "accumulate": lambda: 2,
    "warmup": lambda: "20%",
    "seed": lambda: 5,
    "deterministic": lambda: False,
    "precision": lambda: "bf16-mixed",
    "expected_classes": lambda: 7,
    "sync_batch_norm": lambda: False,
}
ELSEWHERE = ("init_from",)  # first weights are used once
FREE = (*INCIDENTAL, *MEASURING, *TOLD_BY_THE_DATA, *ELSEWHERE)


def test_every_option_of_a_run_is_shared_or_named_as_free():
    assert sorted([*OTHER, *FREE]) == sorted(field.name for field in dataclasses.fields(tiny_run()))


@pytest.mark.parametrize("name", OTHER)
def test_what_a_resumed_run_must_share(name):
    def described(**options):
        run = tiny_run(**options)
        return settings(run, make_plan(run, False, True, print))

    given = {"seed": 0} if name != "multi_crop" else {"method": fn.SimCLR(tiny_encoder())}
    assert described(**given) == described(**given)
    assert described(**given) != described(**{**given, name: OTHER[name]()})


@pytest.mark.parametrize("detector", [lambda: fn.GlobalThreshold(0.1), lambda: fn.SupportSet(top_k=4)])
def test_observers_never_change_the_training(tmp_path, monkeypatch, detector):
    options = {"evaluate_every": "1 epoch", "epochs": 2}
    fit(tiny_run(detector=detector(), **options), tmp_path / "watched")
    monkeypatch.setattr(pretrain, "observers_of", lambda session: [])
    fit(tiny_run(detector=detector(), **options), tmp_path / "alone")
    assert_same_weights(tmp_path / "watched", tmp_path / "alone")
    assert (tmp_path / "watched" / "flagged.parquet").is_file() != (tmp_path / "alone" / "flagged.parquet").is_file()


def test_an_observer_that_draws_would_be_noticed(tmp_path, monkeypatch):
    class Draws(pretrain.Observer):
        def after_step(self, session, stepped):
            torch.rand(1)

    fit(tiny_run(epochs=2), tmp_path / "watched")
    monkeypatch.setattr(pretrain, "observers_of", lambda session: [Draws()])
    fit(tiny_run(epochs=2), tmp_path / "drawn")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "watched", tmp_path / "drawn")


def test_the_features_of_the_last_epoch_are_extracted_once(tmp_path, monkeypatch):
    passes = []
    plain = accuracy.shared_features
    monkeypatch.setattr(accuracy, "shared_features", lambda *given: passes.append(len(passes)) or plain(*given))
    figures = fit(tiny_run(epochs=2, evaluate_every="1 epoch"), tmp_path / "run")
    assert len(passes) == 2 * 3, "of both sets before training and after each of two epochs"
    assert read_metrics(tmp_path / "run")[-2]["knn"] == figures["knn"]
