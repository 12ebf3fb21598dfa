"""The rules of the house that a machine can check."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "falseneg"

# Imports run one way: a room may import from those of lower rank, and from its own.
RANK = {
    "errors": 0,
    **dict.fromkeys(("files", "clock", "facts", "strategy", "row_step", "batch", "lars"), 1),
    **dict.fromkeys(("contrast", "schedule", "foreign"), 2),
    "rules": 3,
    "statistics": 4,
    **dict.fromkeys(("sample_table", "clustering", "models", "flagged", "call_checks"), 5),
    "graph": 5.5,
    **dict.fromkeys(("detectors", "objectives", "temperature"), 6),
    "methods": 7,
    **dict.fromkeys(("losses", "data"), 8),
    **dict.fromkeys(("pair_loss", "sentence_transformers", "evaluation"), 9),
    "train": 10,
    **dict.fromkeys(("compare", "audit"), 11),
    "report": 12,
    "cli": 13,
}


def imports_of(path):
    """The rooms of falseneg that a file imports when it is imported, not those behind TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("falseneg."):
            yield node.module.split(".")[1]


FILES = [
    path
    for path in sorted(SOURCE.rglob("*.py"))
    if path.relative_to(SOURCE).parts[0] not in ("__init__.py", "__main__.py")
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_one_way(path):
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    for other in imports_of(path):
        assert other == room or RANK[other] < RANK[room], f"{room} imports from {other}"


@pytest.mark.parametrize(
    "package, rooms",
    [("lightning_fabric", ("train", "cli")), ("torch.distributed", ("statistics", "sample_table", "train"))],
)
def test_what_only_some_rooms_may_import(package, rooms):
    for path in FILES:
        if path.relative_to(SOURCE).parts[0].removesuffix(".py") not in rooms:
            text = path.read_text()
            assert f"import {package}" not in text and f"from {package}" not in text, path


@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=" ".join
)
def test_style_and_types(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
