import dataclasses
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
import yaml
from PIL import Image

import falseneg as fn
from falseneg.cli import configuration, main
from falseneg.cli.configuration import build, check, resolve, run_settings, to_yaml
from falseneg.cli.parser import run_parser
from falseneg.errors import UserError
from falseneg.strategy import ATTRACT, ATTRACT_OUTSIDE, ELIMINATE, IGNORE, Strategy
from falseneg.train import Run
from falseneg.train.optimisers import LARS, SGD, AdamW, Optimiser

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
        "class Mine(falseneg.BatchQuantile):\n    '''Mine.'''\n"
        "def make() -> falseneg.Detector:\n    pathlib.Path('called').touch()\n    return falseneg.NoDetection()\n"
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


def test_options_of_a_class_may_stand_before_it():
    """Only of the class that is named once; a file in between and all other options keep their order."""
    parser = run_parser("pretrain", "")
    orders = [
        ["--data", "Digits", "--data.split", "test", "--method", "MoCo", "--method.views=3", "--seed", "4"],
        ["--data.split=test", "--method.views", "3", "--seed", "4", "--method=MoCo", "--data", "Digits"],
        ["--data.split", "test", "--config", "digits", "--data", "Digits", "--method.views", "3", "--method", "MoCo"],
    ]
    found = [parser.parse_args(order) for order in orders]
    for options in found:
        assert (
            options["data"]["class_path"] == "falseneg.data.Digits" and options["data"]["init_args"]["split"] == "test"
        )
        assert options["method"]["class_path"].endswith("MoCo") and options["method"]["init_args"]["views"] == 3
    assert found[0] == found[1]


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


@pytest.mark.parametrize("method", [["--method", "CLIP"], ["--method=falseneg.OpenCLIP"], ["--config", "two.yaml"]])
def test_two_towers_have_the_defaults_of_clip(method, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("two.yaml").write_text("method: {class_path: CLIP}\n")
    settings = parsed("--data", "Digits", *method)
    assert settings["temperature"]["class_path"] == "falseneg.LearnedTemperature"
    assert settings["optimiser"]["class_path"] == "falseneg.train.AdamW"
    assert settings["optimiser"]["init_args"]["weight_decay"] == 0.1
    augmentation = settings["augmentation"]
    assert augmentation["crop_scale"] == [0.9, 1.0]
    assert not any(augmentation[change] for change in ("flip", "jitter", "grayscale", "blur", "solarize", "rotation"))
    assert check(settings) == settings == parsed("--config", printed(settings))

    given = ["--temperature", "FixedTemperature", "--augmentation.flip", "0.5", "--optimiser", "LARS"]
    settings = parsed("--data", "Digits", *method, *given)
    assert settings["temperature"] == {"class_path": "falseneg.FixedTemperature", "init_args": {"tau": 0.1}}
    assert settings["augmentation"]["flip"] == 0.5 and settings["augmentation"]["crop_scale"] == [0.9, 1.0]
    assert settings["optimiser"]["init_args"]["weight_decay"] == LARS().weight_decay
    with pytest.raises(SystemExit):
        main(["pretrain", "--data", "Digits", *method, "--print-config"])
    assert "LearnedTemperature" in capsys.readouterr().out
    assert parsed("--data", "Digits")["temperature"]["class_path"] == "falseneg.FixedTemperature"


def printed(settings):
    Path("printed.yaml").write_text(to_yaml(settings))
    return "printed.yaml"


@pytest.mark.parametrize("part, kind", [("optimiser", SGD), ("optimiser", LARS), ("method", fn.MoCo)])
def test_a_class_has_its_own_defaults(part, kind):
    """And not those of the class that stands where none is named, though some of its options have the same names."""
    own = {name: each.default for name, each in inspect.signature(kind).parameters.items() if name != "encoder"}
    object_given = {**parsed("--data", "Digits"), part: {"class_path": kind.__name__}}
    for settings in (parsed("--data", "Digits", f"--{part}", kind.__name__), check(object_given)):
        arguments = settings[part]["init_args"]
        assert {name: arguments[name] for name in own} == own


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


# Wherever a class can stand in a configuration, or pass for one.
HIDDEN = [
    lambda path: {"class_path": path},
    lambda path: path,
    lambda path: path.replace("Mine", "make"),
    lambda path: {"class_path": "falseneg.AllOf", "init_args": {"detectors": [path]}},
    lambda path: {"class_path": "falseneg.StartAt", "init_args": {"detector": {"class_path": path}, "at": "10%"}},
]
# The folder of the run: as it was written, without run.json, and with the name of what is hidden in it.
FOLDERS = {"run": True, "{own}.Mine": True, "cut": False}


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize(
    "command", [["pretrain", "--resume"], ["pretrain", "--resume="], ["pretrain", "--resume", "--out"], ["evaluate"]]
)
def test_a_stored_run_cannot_have_code_imported(command, name, hidden, own, tmp_path, capsys):
    folder = stored_run(Path(name.format(own=own)), hidden(f"{own}.Mine"))
    (folder / "encoder.safetensors").touch()
    if not FOLDERS[name]:
        (folder / "run.json").unlink()
    place = [command[-1] + str(folder)] if command[-1].endswith("=") else [command[-1], str(folder)]
    assert main([*command[:-1], *place]) == 2
    said = capsys.readouterr().err
    assert f"--trust {own}." in said and len(said.strip().splitlines()) == 1
    assert not {"imported", "called"} & {path.name for path in tmp_path.iterdir()}
    assert own not in sys.modules


def test_a_configuration_of_a_run_is_still_its_own_behind_config(own, tmp_path, capsys):
    folder = stored_run(tmp_path / "run", f"{own}.Mine")
    assert main(["pretrain", "--out", "new", "--config", str(folder / "config.yaml")]) == 2
    assert f"--trust {own}.Mine" in capsys.readouterr().err and not (tmp_path / "imported").exists()


# Settings that a stranger may write, in the places of values of any kind and of options; and what is said of them.
TRAPS = {
    "any value": (
        {"data": {"class_path": "falseneg.Wrapped", "init_args": {"dataset": "{trap}"}}},
        "Wrapped|read by row",
    ),
    "any mapping": ({"method": {"init_args": {"encoder": {"arguments": {"x": "{trap}"}}}}}, "timm cannot build"),
    "past the parser": ({"data": {"dict_kwargs": {"x": "{trap}"}}}, "takes no such option.*dict_kwargs"),
    "through falseneg": ({"detector": "falseneg.files.os.system"}, "--trust posix.system"),
    "with trust": ({"trust": ["{own}.Mine"], "detector": "{own}.Mine"}, "--trust"),
    "in another file": ({"config": "further.yaml"}, "--trust|no readable file"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_no_value_of_a_stored_run_becomes_code(trap, own, tmp_path, capsys):
    changes, words = TRAPS[trap]
    folder = stored_run(tmp_path / "run", f"{own}.Mine" if trap == "in another file" else "NoDetection")
    (tmp_path / "further.yaml").write_text(f"detector: {own}.Mine\n")
    (folder / "further.yaml").write_text(f"detector: {own}.Mine\n")
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    if trap == "in another file":
        settings["detector"] = "NoDetection"
    trapped = {"class_path": f"{own}.make"}
    (folder / "config.yaml").write_text(to_yaml(with_changes(settings, changes, own, trapped)))
    assert main(["pretrain", "--resume", str(folder)]) == 2
    said = capsys.readouterr().err
    assert re.search(words, said) and len(said.strip().splitlines()) == 1
    assert not {"imported", "called"} & {path.name for path in tmp_path.iterdir()}


def with_changes(settings, changes, own, trapped):
    """The settings with the changes in them; in these, ``{trap}`` is a class path and ``{own}`` a module."""
    result = dict(settings)
    for key, value in changes.items():
        if isinstance(value, dict) and "class_path" not in value:
            result[key] = with_changes(settings.get(key, {}), value, own, trapped)
        else:
            result[key] = trapped if value == "{trap}" else _filled(value, own, trapped)
    return result


def _filled(value, own, trapped):
    if isinstance(value, dict):
        return {key: _filled(item, own, trapped) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, own, trapped) for item in value]
    return trapped if value == "{trap}" else value.format(own=own)


def test_what_was_trusted_before_is_not_trusted_later(own, tmp_path):
    parsed("--data", "Digits", "--detector", f"{own}.Mine")
    parsed("--data", "Digits")
    with pytest.raises(UserError, match="--trust"):
        check({"data": "Digits", "detector": f"{own}.Mine"})


def test_the_current_directory_is_searched_for_what_the_user_names_only(tmp_path, monkeypatch):
    (tmp_path / "lying_about.py").write_text("class Mine:\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    stored_run(tmp_path / "run", "lying_about.Mine")
    assert main(["pretrain", "--resume", "run"]) == main(["evaluate", "run", "--out", "lying.about"]) == 2
    assert str(tmp_path) not in sys.path and importlib.util.find_spec("lying_about") is None
    assert main(["pretrain", "--resume", "run", "--trust", "lying_about.Mine"]) == 2  # which is no detector
    assert sys.path[-1] == str(tmp_path) and "lying_about" in sys.modules


def test_a_class_that_is_named_again_is_trusted(own, tmp_path):
    path = stored_run(tmp_path / "run", {"class_path": f"{own}.Mine"}) / "config.yaml"
    with pytest.raises(UserError, match="--trust"):
        parsed("--config", str(path))
    assert parsed("--config", str(path), "--trust", f"{own}.Mine")["detector"]["class_path"] == f"{own}.Mine"


@pytest.mark.parametrize("option", ["--trust", "--detector"])
def test_a_run_of_an_own_class_goes_on_when_it_is_named_again(option, own, tmp_path, monkeypatch):
    folder = stored_run(tmp_path / "run", {"class_path": f"{own}.Mine"})
    runs = []
    monkeypatch.setattr("falseneg.train.fit", lambda run, folder, resume, configuration: runs.append(run))
    assert main(["pretrain", "--resume", str(folder), option, f"{own}.Mine"]) == 0
    assert type(runs[0].detector).__name__ == "Mine"


PACKAGE = """
import functools
import torch

def load(row):
    return torch.full((3, 12, 16), row % 256, dtype=torch.uint8)

def dark(row) -> torch.Tensor:
    return load(0)

def untold(row):
    return load(0)

class Loader:
    def __call__(self, row):
        return load(row)

class Squares(torch.utils.data.Dataset):
    def __init__(self, n: int = 40, {parameter}):
        self.n, self.loader = n, loader

    def __len__(self):
        return self.n

    def __getitem__(self, row):
        loader = self.loader() if isinstance(self.loader, type) else self.loader
        return loader(row), row % 2

class Passing(Squares):
    def __init__(self, n: int = 30, **more):
        super().__init__(n, **more)
"""
PARAMETERS = {
    "a function": "loader: Callable[[int], torch.Tensor] = load",
    "a function or nothing": "loader: Callable[[int], torch.Tensor] | None = load",
    "a function or its name": "loader: str | Callable[[int], torch.Tensor] = load",
    "without a type": "loader=load",
    "a class": "loader: type[Loader] = Loader",
    "a part of a function": "loader: Callable[[int], torch.Tensor] = functools.partial(load)",
    "a lambda": "loader: Callable[[int], torch.Tensor] = lambda row: load(row)",
    "an object": "loader: Callable[[int], torch.Tensor] = Loader()",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes a package that re-exports what one of its modules defines."""

    def make(parameter):
        name = f"package_{tmp_path.name}".replace("-", "_")
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("from .inner import Passing, Squares, dark, load, untold\n")
        code = "from __future__ import annotations\nfrom collections.abc import Callable\n" + PACKAGE
        (tmp_path / name / "inner.py").write_text(code.replace("{parameter}", parameter))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path])
        return name

    return make


@pytest.mark.parametrize("kind", ["Squares", "Passing"])
@pytest.mark.parametrize("parameter", PARAMETERS)
def test_classes_that_a_package_reexports_with_functions_as_defaults(package, parameter, kind, tmp_path, monkeypatch):
    """From the command line, and again from what the run has stored."""
    name = package(PARAMETERS[parameter])
    settings, images = resolve(parsed("--data", f"{name}.{kind}", "--data.n", "60"))
    assert images.image(7)[0, 0, 0] == 7 and len(images) == 60
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(settings))
    runs = []
    monkeypatch.setattr("falseneg.train.fit", lambda run, folder, resume, configuration: runs.append(run))
    assert main(["pretrain", "--resume", str(folder), "--trust", f"{name}.{kind}"]) == 0
    assert runs[0].data[7][0][0, 0, 0] == 7


def test_another_function_than_the_default(package):
    name = package(PARAMETERS["a function"])
    for path in (f"{name}.dark", f"{name}.inner.dark"):
        images = resolve(parsed("--data", f"{name}.Squares", "--data.loader", path))[1]
        assert images.image(7)[0, 0, 0] == 0
    with pytest.raises(
        UserError, match="give the import path of a function or .*untold' to be a function that returns"
    ):
        parsed("--data", f"{name}.Squares", "--data.loader", f"{name}.untold")


def test_a_stored_run_cannot_choose_another_function_than_the_default(package, tmp_path, capsys):
    name = package(PARAMETERS["a function"])
    settings, _ = resolve(parsed("--data", f"{name}.Squares"))
    settings["data"]["init_args"]["loader"] = f"{name}.inner.dark"
    (tmp_path / "config.yaml").write_text(to_yaml(settings))
    assert main(["pretrain", "--resume", str(tmp_path), "--trust", f"{name}.Squares"]) == 2
    assert f"--trust {name}.inner.dark" in capsys.readouterr().err


def test_torchvisions_folder_of_images(tmp_path, monkeypatch):
    for place in range(24):
        folder = tmp_path / "images" / "ab"[place % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (place, place, place)).save(folder / f"{place:02}.png")
    arguments = ["--data", "torchvision.datasets.ImageFolder", "--data.root", str(tmp_path / "images")]
    settings, images = resolve(parsed(*arguments))
    assert len(images) == 24 and images.labels.tolist() == [0] * 12 + [1] * 12 and images.image(3)[0, 0, 0] == 6
    assert build(settings).data[0][1] == 0


def parts_of_a_run():
    """Every class of falseneg's that an option of a run can name, and each of its options that cannot be null."""
    kinds = (fn.Method, fn.Detector, fn.Objective, fn.Temperature, fn.RowStep, fn.Schedule, Optimiser)
    for kind in [fn.Encoder, *(getattr(fn, name) for name in fn.__all__), AdamW, SGD, LARS]:
        if not (inspect.isclass(kind) and (kind is fn.Encoder or issubclass(kind, kinds))) or inspect.isabstract(kind):
            continue
        hints = get_type_hints(kind if dataclasses.is_dataclass(kind) else kind.__init__)
        for name in inspect.signature(kind).parameters:
            if hints.get(name, Any) is not Any and type(None) not in (hints[name], *get_args(hints[name])):
                yield pytest.param(kind, name, id=f"{kind.__name__}.{name}")


@pytest.mark.parametrize(("kind", "name"), list(parts_of_a_run()))
def test_null_is_refused_where_it_cannot_be(kind, name):
    with pytest.raises(fn.UserError, match=f"{kind.__name__}: {name} is null; give a value, or leave it out"):
        configuration._constructed(kind, **{name: None})


def test_null_and_what_is_no_group_in_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plain = {field.name: get_type_hints(Run)[field.name] for field in dataclasses.fields(Run)}
    never = [name for name, hint in plain.items() if type(None) not in get_args(hint)]
    cases = {f"{name}: null": None for name in never if name != "data"}
    cases |= {"augmentation: true": "group of options", "augmentation: [1, 2]": "group of options"}
    cases |= {"method: {class_path: SimCLR, init_args: {encoder: 3}}": "group of options"}
    for text, part in cases.items():
        (tmp_path / "own.yaml").write_text(text)
        assert main(["pretrain", "--config", "digits", "--config", "own.yaml", "--out", "o"]) == 2, text
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and (part or text.split(":")[0]) in said[0], (text, said)
    assert not (tmp_path / "o").exists()
