import pytest
from train.parts import tiny_encoder, tiny_run

import falseneg as fn


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs is 0; give at least 1"),
        ({"batch_size": 1}, "batch_size is 1; .* at least 2"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"log_every": 0}, "log_every is 0"),
        ({"few_labels": 0}, "few_labels is 0"),
        ({"few_label_draws": 0}, "few_label_draws is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**62}, "seed is 4611686018427387904; give a number from 0 to 4611686018427387903"),
        ({"holdout": 1.0}, "holdout is 1.0"),
        ({"expected_classes": 1}, "expected_classes is 1"),
        ({"warmup": "ten epochs"}, "warmup: 'ten epochs' is not a duration"),
        ({"checkpoint_every": "0 steps"}, "checkpoint_every is '0 steps'"),
        ({"evaluate_every": "200%"}, "evaluate_every: '200%'"),
        ({"precision": "32"}, "precision is '32'; give one of 32-true"),
        ({"precision": "16-mixed", "accelerator": "cpu"}, "needs a CUDA device"),
        ({"accelerator": "tpu"}, "accelerator is 'tpu'"),
        ({"loggers": ["tensorbord"]}, "did you mean 'tensorboard'"),
        (
            {"detector": fn.SupportSet(top_k=3), "method": fn.SimCLR(tiny_encoder())},
            "SupportSet: there is no space 'support'",
        ),
        (
            {"detector": fn.StartAt(fn.AllOf([fn.SupportSet(top_k=3, part="bank")]))},
            "SupportSet: there is no part 'bank'",
        ),
    ],
)
def test_refusals(options, words):
    run = tiny_run(**options)
    with pytest.raises(fn.UserError, match=words) as error:
        run.check()
    assert "\n" not in str(error.value)


def test_a_logger_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(fn.UserError, match="pip install wandb"):
        tiny_run(loggers=["wandb"]).check()


def test_a_good_run_passes():
    tiny_run(warmup="0 steps", evaluate_every="1 epoch", keep_every="50%").check()
