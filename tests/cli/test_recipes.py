"""Every recipe says what it is, parses, and builds: with made-up data in the place of its own."""

import re

import pytest
import torch
import yaml

from falseneg.cli import compare, main
from falseneg.cli.configuration import build, run_settings
from falseneg.cli.parser import run_parser
from falseneg.cli.recipes import FOLDER, recipe_names
from falseneg.data import ImageSet
from falseneg.facts import Facts
from falseneg.losses import Criterion
from falseneg.train.defaults import Circumstances

# What the data of a recipe are like: images, classes, side in pixels.
DATA = {
    "imagenet/train": (1_281_167, 1000, 400),
    "imagenet100/train": (126_689, 100, 400),
    "Cifar10,": (50_000, 10, 32),
    "Cifar100,": (50_000, 100, 32),
    "Digits,": (1_437, 10, 8),
    "cc3m/": (2_900_000, None, 400),
    "emoji-train": (3_136, 1_493, 72),
    "root: photos": (2_020, 101, 300),
}
NAMES = recipe_names()


class MadeUp(ImageSet):
    """As many captioned images as a data set has, none of which can be opened."""

    captioned = True

    def __init__(self, images, classes):
        self.images, self.labels = images, None if classes is None else torch.arange(images) % classes

    def __len__(self):
        return self.images


def about(name):
    """The comment on top."""
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    return [line[1:].strip() for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]]


def test_they_are_listed_with_what_they_are(capsys):
    assert main(["recipes"]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(listed) == NAMES and {"digits", "moco/imagenet", "fnc/imagenet"} < set(NAMES)
    assert all(listed[name] == about(name)[0] for name in NAMES)


def test_every_figure_of_fnc_is_there_at_both_scales():
    scales = [
        [name.rsplit("/")[-1] for name in NAMES if name.startswith(f"fnc/ablations/{scale}/")]
        for scale in ("imagenet", "digits")
    ]
    assert scales[0] == scales[1]
    left, right = "figure-4-left", "figure-4-right"
    numbers = ["figure-10", left, right, "figure-5", "figure-6", "figure-7", "figure-8-right", "figure-9", "table-4"]
    assert sorted(scales[0]) == sorted(numbers)


@pytest.mark.parametrize("name", NAMES)
def test_each_tells_command_cost_and_expectation(name):
    comment = "\n".join(about(name))
    assert re.search(
        rf"^command\s+falseneg (pretrain|compare).* --config {name}( |$)|^command\s+falseneg compare ", comment, re.M
    )
    assert re.search(r"^cost\s+\S", comment, re.M) and re.search(r"^expected\s+\S", comment, re.M)
    assert max(map(len, (FOLDER / f"{name}.yaml").read_text().splitlines())) <= 130


@pytest.fixture
def recipe(request, tmp_path, monkeypatch):
    """The options of a recipe, with a smaller encoder, and its data, all of which are made up."""
    text = (FOLDER / f"{request.param}.yaml").read_text()
    small = "name: resnet10t, arguments: {channels: [8, 8, 8, 8]}"
    path = tmp_path / "recipe.yaml"
    for usual, less in (("name: resnet50", small), ("name: resnet18", small), ("model: RN50", "model: ViT-S-32-alt")):
        text = text.replace(usual, less)
    path.write_text(text)
    count, classes, side = next(facts for part, facts in DATA.items() if part in text)
    images = MadeUp(count, classes)
    facts = Circumstances(count, side, gpu=False, cores=2)
    for room in ("falseneg.cli.compare", "falseneg.cli.configuration"):
        monkeypatch.setattr(f"{room}.open_data", lambda *_: (facts, images))
    parser = run_parser("compare", "")
    for option, details in compare.OPTIONS.items():
        parser.add_argument(f"--{option}", **details)
    arguments = ["--config", str(path), "--accelerator", "cpu"]
    return parser, parser.parse_args(arguments), compare._own_variants(arguments), images


@pytest.mark.parametrize("recipe", NAMES, indirect=True)
def test_each_builds_and_every_part_can_work_with_its_data(recipe, monkeypatch):
    parser, options, own, images = recipe
    built = []
    monkeypatch.setattr(compare, "build", lambda *given: built.append((given[0], build(*given))) or built[-1][1])
    if options["variants"] is None:
        options["variants"] = {"alone": {}}
        own = {"alone": {}}
    settings = run_settings(parser, options)
    comparison = compare._comparison(options, own, settings, compare.open_data(settings, 1), 1)
    assert list(comparison.variants) == list(options["variants"])
    assert len({str(configuration) for configuration in comparison.variants.values()}) == len(options["variants"])
    assert len(built) == len(comparison.variants)
    for configuration, run in built:
        negatives = run.method.negatives(configuration["batch_size"])
        classes = configuration["expected_classes"]
        facts = Facts(len(images), negatives, images.labels, classes, run.method.contrast_names, 0)
        Criterion(run.detector, run.strategy, run.objective, run.temperature).prepare(facts)


def leaves(value, place=()):
    """Every setting of a configuration and its place; of a part the name of its class, and below it its arguments."""
    if not isinstance(value, dict):
        yield ".".join(place), value
    elif "class_path" in value:
        yield ".".join(place), value["class_path"].rsplit(".", 1)[-1]
        yield from leaves(value.get("init_args", {}), place)
    else:
        for name, inner in value.items():
            yield from leaves(inner, (*place, name))


def as_in_the_table(value):
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "null"}[value]
    if isinstance(value, list) and isinstance(value[0], dict):
        return "; ".join(f"{g['number']} of {g['size']}, {g['scale'][0]} to {g['scale'][1]}" for g in value)
    if isinstance(value, list):
        return ", ".join(map(as_in_the_table, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_the_table_of_numbers_holds_every_setting_with_its_source():
    text = (FOLDER.parents[3] / "docs" / "recipe-numbers.md").read_text()
    columns, found = [], {}
    for line in (line for line in text.splitlines() if line.startswith("|") and "---" not in line):
        setting, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if setting == "setting":
            columns = [cell.strip("`") for cell in cells]
            continue
        for recipe, cell in zip(columns, cells, strict=True):
            if cell:
                value, source = cell.rsplit(" ", 1)
                assert source in "PCBMO", line
                found[recipe, setting] = value
    left_out = ("data", "test", "evaluate_every", "expected_classes")
    expected = {}
    for recipe in [name for name in NAMES if not re.search("ablations|digits|emoji|own-photos", name)]:
        content = yaml.safe_load((FOLDER / f"{recipe}.yaml").read_text())
        chosen = {name: value for name, value in content.items() if name not in left_out}
        settings = {place: as_in_the_table(value) for place, value in leaves(chosen)}
        expected |= {(recipe, place): value for place, value in settings.items() if place != "temperature"}
    assert found == expected


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("fnc/ablations/imagenet/")])
def test_the_ablations_stand_on_the_ablation_set_up(name):
    base, own = (yaml.safe_load((FOLDER / f"{n}.yaml").read_text()) for n in ("fnc/imagenet-ablation", name))
    shared = ("data", "test", "temperature", "augmentation", "optimiser", "warmup", "epochs", "batch_size")
    assert {key: own[key] for key in shared} == {key: base[key] for key in shared}
    assert {**own["method"]["init_args"], "support_views": 8} == base["method"]["init_args"]
