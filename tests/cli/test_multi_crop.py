"""Multi-crop on the command line, in YAML files, in a stored configuration and in a comparison."""

import json

import pytest
import yaml

from falseneg.cli import main
from falseneg.cli.configuration import build, check, resolve, run_settings, to_yaml
from falseneg.cli.parser import run_parser
from falseneg.data import Crops
from falseneg.errors import UserError

GROUPS = "[{number: 2, size: 6, scale: [.05,.14]}, {number: 1, size: 4}]"
SMALL = ["--method.encoder.arguments", '{"channels": [8, 8, 8, 8], "stem_width": 8, "layers": [1, 1, 1, 1]}']


def parsed(*arguments):
    parser = run_parser("pretrain", "")
    return run_settings(parser, parser.parse_args(["--config", "digits", *arguments]))


def test_a_file_and_the_command_line_say_the_same(tmp_path):
    path = tmp_path / "crops.yaml"
    path.write_text(f"multi_crop: {GROUPS}\n")
    settings, images = resolve(parsed("--multi-crop", GROUPS))
    assert settings == resolve(parsed("--config", str(path)))[0]
    stored = to_yaml(settings)
    run = build(settings, images)
    assert run.multi_crop == [Crops(2, 6, (0.05, 0.14)), Crops(1, 4)] and run.streams["support"] == 3
    assert to_yaml(settings) == stored, "building leaves the configuration as it was"
    assert check(yaml.safe_load(stored)) == settings


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ("[{number: 6, sizes: 6}]", "no option --multi-crop.sizes .did you mean size"),
        ("[{number: 6}]", "needs --multi-crop.size"),
        ("[{number: six, size: 6}]", "--multi-crop.number is 'six'; give a whole number"),
        ("[{number: 0, size: 6}]", "multi_crop: number is 0"),
        ("[{number: 2, size: 6, scale: [0, 2]}]", "multi_crop: scale is"),
        ("6", "--multi-crop is '6'; give a list"),
    ],
)
def test_what_can_be_wrong(groups, words):
    with pytest.raises(UserError, match=words) as error:
        build(*resolve(parsed("--multi-crop", groups)))
    assert "\n" not in str(error.value)


def test_a_run_and_its_resumption(tmp_path, capsys):
    run = ["--multi-crop", GROUPS, "--method.support-as-positives", "true", "--detector", "SupportSet", *SMALL]
    assert main(["pretrain", "--config", "digits", *run, "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    assert "views of 8 pixels, 2 crops of 6, 1 crop of 4" in capsys.readouterr().out
    assert main(["pretrain", "--resume", str(tmp_path / "run"), "--multi-crop", "[{number: 3, size: 6}]"]) == 2
    assert "--multi-crop differs" in capsys.readouterr().err
    assert main(["pretrain", "--resume", str(tmp_path / "run"), "--multi-crop", GROUPS]) == 0
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert settings["multi_crop"] == "[(2, 6, 0.05, 0.14), (1, 4, 0.05, 0.14)]"
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "multi_crop" in (tmp_path / "run" / "report.html").read_text()


def test_in_a_comparison_the_crops_are_the_support_views(tmp_path, capsys):
    arguments = ["compare", "--config", "digits", "--multi-crop", GROUPS, *SMALL, "--epochs", "1", "--seeds", "0"]
    arguments += ["--method.support-as-positives", "true", "--variants", "none", "fnc-attract"]
    assert main([*arguments, "--out", str(tmp_path / "c"), "--batch-size", "256"]) == 0, capsys.readouterr().err
