"""Options with a class of their own inside: how a threshold steps, schedules."""

import pytest

import falseneg as fn
from falseneg.cli.configuration import build, check
from falseneg.cli.parser import run_parser

CONFIGURATION = {
    "data": {"class_path": "falseneg.data.Digits"},
    "detector": {
        "class_path": "falseneg.GlobalThreshold",
        "init_args": {
            "alpha": {"class_path": "falseneg.Linear", "init_args": {"start": 0.05, "end": 0.1, "over": "50%"}},
            "step": {"class_path": "falseneg.GradientStep", "init_args": {"learning_rate": 0.5}},
            "start": "10%",
        },
    },
    "objective": {
        "class_path": "falseneg.GlobalContrastive",
        "init_args": {"gamma": {"class_path": "falseneg.Cosine", "init_args": {"start": 1.0, "end": 0.2}}},
    },
    "temperature": {"class_path": "falseneg.IndividualTemperature"},
}


def test_a_configuration_builds_its_parts():
    run = build(check(CONFIGURATION))
    assert run.detector.alpha == fn.Linear(0.05, 0.1, "50%") and run.detector.step == fn.GradientStep(0.5)
    assert run.objective.gamma == fn.Cosine(1.0, 0.2) and isinstance(run.temperature, fn.IndividualTemperature)
    plain = {**CONFIGURATION, "detector": {"class_path": "falseneg.GlobalThreshold", "init_args": {"alpha": 0.2}}}
    detector = build(check(plain)).detector
    assert detector.alpha == 0.2 and detector.step == fn.AdamStep() and detector.initial is None


@pytest.mark.parametrize(
    "options, sentence",
    [
        (
            ["--detector.step", "AdamStp"],
            r"no AdamStp \(did you mean AdamStep\?\); choose one of AdamStep, GradientStep",
        ),
        (
            ["--detector.step.learning-rate", "1"],
            "--detector.step has options, but no class; first choose one of AdamStep",
        ),
        (["--detector.step", "AdamStep", "--detector.step.rate", "1"], "AdamStep takes learning-rate, beta1"),
        (["--detector.alpha", "much"], "--detector.alpha is 'much'; give a number"),
    ],
)
def test_wrong_options_are_answered_with_one_sentence(options, sentence):
    with pytest.raises(fn.UserError, match=sentence):
        run_parser("pretrain", "").parse_args(["--data", "Digits", "--detector", "GlobalThreshold", *options])
