"""IncrementalClusters on the command line, in YAML files and in a stored configuration."""

import json

import pytest
import yaml

import falseneg as fn
from falseneg.cli import main
from falseneg.cli.configuration import build, check, resolve, run_settings, to_yaml
from falseneg.cli.parser import run_parser
from falseneg.errors import UserError
from falseneg.train.metrics import read_metrics

SMALL = ["--method.encoder.arguments", '{"channels": [8, 8, 8, 8], "stem_width": 8, "layers": [1, 1, 1, 1]}']
OPTIONS = ["--detector", "IncrementalClusters", "--detector.clusters", "[4,9]", "--detector.warmup", "1 epoch"]
RISES = ["--detector.acceptance", "Linear", "--detector.acceptance.start", "0.5", "--detector.acceptance.end", "1"]
FILE = """
detector:
  class_path: falseneg.IncrementalClusters
  init_args:
    clusters: [4, 9]
    warmup: 1 epoch
    acceptance: {class_path: falseneg.Linear, init_args: {start: 0.5, end: 1}}
"""


def parsed(*arguments):
    parser = run_parser("pretrain", "")
    return run_settings(parser, parser.parse_args(["--config", "digits", *arguments]))


def test_a_file_and_the_command_line_say_the_same(tmp_path):
    path = tmp_path / "clusters.yaml"
    path.write_text(FILE)
    settings, images = resolve(parsed(*OPTIONS, *RISES))
    assert settings == resolve(parsed("--config", str(path)))[0]
    detector = build(settings, images).detector
    assert detector.clusters == [4, 9] and detector.acceptance == fn.Linear(0.5, 1.0)
    assert check(yaml.safe_load(to_yaml(settings))) == settings


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], fn.Linear(0.0, 1.0)),
        (["--detector.acceptance", "0.7"], 0.7),
        (["--detector.acceptance", "Stairs", *(f"--detector.acceptance.{k}" for k in ("start=0", "end=1"))], "stairs"),
    ],
)
def test_acceptance_is_a_number_or_a_schedule(arguments, expected):
    found = build(*resolve(parsed("--detector", "IncrementalClusters", *arguments))).detector.acceptance
    assert found == (fn.Stairs(0.0, 1.0) if expected == "stairs" else expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--detector.clusters", "ten"], "--detector.clusters is 'ten'; give a list"),
        (["--detector.clusters", "[1]"], "clusters is .1.; give one or more different numbers of at least 2"),
        (["--detector.cluster", "[4]"], "no option --detector.cluster .did you mean clusters"),
        (["--detector.warmup", "soon"], "'soon' is not a duration"),
        (["--detector.acceptance", "2"], "acceptance is 2.*; it is a share of the images"),
    ],
)
def test_what_can_be_wrong(arguments, words):
    with pytest.raises(UserError, match=words) as error:
        build(*resolve(parsed("--detector", "IncrementalClusters", *arguments)))
    assert "\n" not in str(error.value)


def test_a_run(tmp_path, capsys):
    folder = tmp_path / "run"
    trained = ["pretrain", "--config", "digits", *SMALL, *OPTIONS, "--epochs", "3", "--batch-size", "256"]
    assert main([*trained, "--out", str(folder)]) == 0
    last = [line for line in read_metrics(folder) if line["kind"] == "epoch"][-1]
    assert last["clusters 4/groups"] == 4 and 0.5 < last["pseudo-labels 9/assigned"] < 1
    assert last["share_flagged"] > 0.05
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    assert stored["detector"]["init_args"]["clusters"] == [4, 9]
    assert "detector.acceptance" in json.loads((folder / "run.json").read_text())["settings"]
