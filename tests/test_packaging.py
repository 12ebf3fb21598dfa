"""What is declared about the package is true of it."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

import falseneg as fn

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_OURS_TO_DECLARE = {"wandb", "tensorboard", "triton"}
"""What is asked for by name where a user wants it, and what comes with torch where there is a GPU."""


def imported():
    """The packages that the source imports, anywhere, by their first name."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield (node.module or "").split(".")[0]


def test_what_is_imported_is_declared():
    listed = [*PROJECT["dependencies"], *(one for extra in PROJECT["optional-dependencies"].values() for one in extra)]
    declared = {re.split(r"[\[<>=!~; ]", one)[0].lower().replace("_", "-") for one in listed}
    of_name = packages_distributions()
    for name in {*imported()} - {*sys.stdlib_module_names, "falseneg", *NOT_OURS_TO_DECLARE}:
        offered = {each.lower().replace("_", "-") for each in of_name.get(name, [name])}
        assert offered & declared, f"{name} is imported, but no dependency brings it"


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] == fn.__version__ and citation["license"] == PROJECT["license"]


def test_the_workflow_runs_what_we_run():
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
    steps = workflow["jobs"]["tests"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"] and os.access(ROOT / ".ci/run", os.X_OK)


@pytest.mark.parametrize("form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda form: form.stem)
def test_issue_forms_are_whole(form):
    asked = yaml.safe_load(form.read_text())
    assert asked["name"] and asked["description"]
    assert all(part["id"] and part["attributes"]["label"] for part in asked["body"])


@pytest.mark.slow
def test_the_wheel_holds_all_that_it_needs_to_run(tmp_path):
    """Built from a copy, unpacked and run from elsewhere."""
    source = tmp_path / "source"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "unpacked")
    held = {str(path.relative_to(tmp_path / "unpacked")) for path in (tmp_path / "unpacked").rglob("*")}
    ours = {name.removeprefix("src/") for name in tracked if name.startswith("src/") and (ROOT / name).is_file()}
    assert ours <= held
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "unpacked")}
    for command, words in (
        (["--help"], "pretrain"),
        (["recipes"], "glofnd/cifar10"),
        (["recipes", "digits"], "command"),
    ):
        run = [sys.executable, "-m", "falseneg", *command]
        done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and words in done.stdout, done.stdout + done.stderr
