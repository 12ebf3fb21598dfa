"""The examples are the documentation's code: they run, and stay short enough to be read."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_runs(path, tmp_path):
    done = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_is_short(path):
    assert len(path.read_text().splitlines()) <= 80


def test_the_loop_of_the_plain_example_is_at_most_20_lines():
    loop = re.search(r"^for epoch.*?(?=^\S)", (EXAMPLES[-1].parent / "plain_loop.py").read_text(), re.M | re.S)
    assert loop and len(loop[0].strip().splitlines()) <= 20


def test_the_library_example_of_the_readme_runs():
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert block and len(block[1].splitlines()) <= 12
    done = subprocess.run([sys.executable, "-c", block[1]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
