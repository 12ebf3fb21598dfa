"""``falseneg recipes``: settings that come with the package, each a YAML file with its command and cost on top."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from falseneg.cli.messages import did_you_mean
from falseneg.errors import UserError

FOLDER = Path(__file__).parent / "recipes"


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="falseneg recipes",
        description="List the recipes that come with the package, or print one. Use it with --config NAME, or print it "
        "to a file and change it.",
    )
    parser.add_argument("name", nargs="?", help="the recipe to print; without it, all are listed")
    name = parser.parse_args(arguments).name
    if name is not None:
        sys.stdout.write(_known(name).read_text(encoding="utf-8"))
        return 0
    names = recipe_names()
    for name in names:
        about = _known(name).read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        print(f"{name:<{max(map(len, names))}} {about}")
    return 0


def recipe_names() -> list[str]:
    """All recipes: the paths of their files below the folder of recipes, without the ending."""
    paths = [path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml")]
    return sorted(paths, key=lambda name: (name.count("/") > 0, name))


def recipe_path(name: str) -> Path:
    """The file of that path, or the recipe of that name.

    Raises:
        UserError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml", ".json"):
        raise UserError(f"there is no configuration file {name}")
    return _known(name)


def _known(name: str) -> Path:
    names = recipe_names()
    if name not in names:
        raise UserError(
            f"there is no file or recipe {name}{did_you_mean(name, names)}; falseneg recipes lists the recipes"
        )
    return FOLDER / f"{name}.yaml"
