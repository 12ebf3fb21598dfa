import sys

import pytest
import torch
import yaml

from falseneg.cli import main
from falseneg.cli.configuration import build, check, resolve, run_settings, to_yaml
from falseneg.cli.parser import run_parser
from falseneg.errors import UserError
from falseneg.strategy import ATTRACT, ATTRACT_OUTSIDE, ELIMINATE, IGNORE, Strategy

SMALL = '{"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}'


def parsed(*arguments):
    parser = run_parser("pretrain", "")
    return run_settings(parser, parser.parse_args(arguments))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's own in the current directory, new for each test."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "import pathlib\n"
        "import torch\n"
        "import falseneg\n"
        "pathlib.Path('imported').touch()\n"
        "class Mine(falseneg.SupportSet):\n    '''Mine.'''\n"
        "class Squares(torch.utils.data.Dataset):\n"
        "    '''Squares.\n\n    Args:\n        n: how many.\n    '''\n"
        "    def __init__(self, n: int = 40):\n        self.n = n\n"
        "    def __len__(self):\n        return self.n\n"
        "    def __getitem__(self, i):\n        return torch.full((3, 12, 16), i, dtype=torch.uint8), i % 2\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    return name


def test_names_and_options_of_parts():
    settings = parsed(
        "--data", "Digits", "--detector", "SupportSet", "--detector.top-k", "3", "--method.support-views", "4"
    )
    assert settings["data"] == {"class_path": "falseneg.data.Digits", "init_args": {"split": "train"}}
    assert settings["detector"]["init_args"]["top_k"] == 3
    assert settings["method"]["init_args"]["support_views"] == 4
    assert settings["epochs"] is None


def test_dashes_and_underscores_are_the_same():
    assert parsed("--data", "Digits", "--batch-size", "8") == parsed("--data", "Digits", "--batch_size=8")


@pytest.mark.parametrize(
    "arguments, strategy",
    [
        (["ignore"], IGNORE),
        (["eliminate"], ELIMINATE),
        (["attract"], ATTRACT),
        (["attract-outside"], ATTRACT_OUTSIDE),
        (["eliminate-renormalised"], ELIMINATE.renormalised()),
        ([".positive", "0.5", ".negative", "0.25"], Strategy(0.5, 0.25)),
    ],
)
def test_a_strategy_by_name_or_by_its_numbers(arguments, strategy):
    if arguments[0].startswith("."):
        arguments = [f"--strategy{part}" if part.startswith(".") else part for part in arguments]
    else:
        arguments = ["--strategy", *arguments]
    settings, images = resolve(parsed("--config", "digits", *arguments))
    assert build(settings, images).strategy == strategy


def test_files_and_then_options_override_one_another(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("data: Digits\nepochs: 3\nmethod: {init_args: {views: 3}}\n")
    second.write_text("epochs: 4\n")
    settings = parsed("--config", str(first), "--config", str(second), "--batch-size", "16")
    assert (settings["epochs"], settings["batch_size"]) == (4, 16)
    assert settings["method"]["init_args"]["views"] == 3


def test_what_print_config_shows_can_be_fed_back(tmp_path, capsys):
    given = [
        "--data",
        "Digits",
        "--detector",
        "AllOf",
        "--detector.detectors+=SupportSet",
        "--detector.detectors.top-k",
        "3",
    ]
    given += ["--detector.detectors+=NoDetection", "--strategy", "attract", "--augmentation.crop-scale", "[0.3,1]"]
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", *given, "--print-config"])
    assert not stop.value.code
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    assert parsed("--config", str(path)) == parsed(*given)


def test_a_resolved_configuration_is_complete_and_stays_as_it_is():
    settings, _ = resolve(parsed("--data", "Digits", "--expected-classes", "10", "--accelerator", "cpu"), cores=2)
    assert (settings["epochs"], settings["batch_size"], settings["workers"]) == (139, 128, 0)
    assert settings["method"]["init_args"]["encoder"]["image_size"] == settings["augmentation"]["size"] == 8
    assert settings["optimiser"]["init_args"]["learning_rate"] == pytest.approx(1e-3 * 0.5**0.5)
    assert settings["strategy"] == {"positive": 0.0, "negative": 0.0, "renormalise": False}
    assert resolve(settings, cores=16)[0] == settings
    assert check(yaml.safe_load(to_yaml(settings))) == settings


def test_first_weights_depend_on_the_seed_alone():
    settings, images = resolve(parsed("--config", "digits", "--method.encoder.arguments", SMALL))

    def first_weights(seed):
        torch.rand(3)
        return next(build({**settings, "seed": seed}, images).method.encoder.parameters())

    assert torch.equal(first_weights(1), first_weights(1))
    assert not torch.equal(first_weights(1), first_weights(2))


def test_own_classes_by_import_path(own):
    settings, images = resolve(parsed("--data", f"{own}.Squares", "--data.n", "60", "--detector", f"{own}.Mine"))
    assert len(images) == 60
    assert settings["method"]["init_args"]["encoder"]["image_size"] == 12
    assert type(build(settings, images).detector).__name__ == "Mine"


def test_own_classes_in_a_file_of_the_user(own, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"data: Digits\ndetector: {own}.Mine\n")
    assert parsed("--config", "mine.yaml")["detector"]["class_path"] == f"{own}.Mine"


def stored_run(folder, detector):
    """A folder that looks like a run's, with a class path in its configuration."""
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    settings, _ = resolve(parsed("--config", "digits"))
    (folder / "config.yaml").write_text(to_yaml({**settings, "detector": detector}))
    return folder


# Wherever a class can stand in a configuration.
HIDDEN = [
    lambda path: {"class_path": path},
    lambda path: path,
    lambda path: {"class_path": "falseneg.AllOf", "init_args": {"detectors": [path]}},
    lambda path: {"class_path": "falseneg.StartAt", "init_args": {"detector": {"class_path": path}, "at": "10%"}},
]


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("command", [["pretrain", "--resume"], ["evaluate"], ["pretrain", "--out", "new", "--config"]])
def test_a_stored_run_cannot_have_code_imported(command, hidden, own, tmp_path, capsys):
    folder = stored_run(tmp_path / "run", hidden(f"{own}.Mine"))
    (folder / "encoder.safetensors").touch()
    target = folder / "config.yaml" if command[-1] == "--config" else folder
    assert main([*command, str(target)]) == 2
    said = capsys.readouterr().err
    assert f"--trust {own}.Mine" in said and len(said.strip().splitlines()) == 1
    assert not (tmp_path / "imported").exists()
    assert own not in sys.modules


def test_a_class_that_is_named_again_is_trusted(own, tmp_path):
    path = stored_run(tmp_path / "run", {"class_path": f"{own}.Mine"}) / "config.yaml"
    with pytest.raises(UserError, match="--trust"):
        parsed("--config", str(path))
    assert parsed("--config", str(path), "--trust", f"{own}.Mine")["detector"]["class_path"] == f"{own}.Mine"
