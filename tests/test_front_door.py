"""What a type checker sees of ``import falseneg as fn`` is what there is."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import falseneg as fn

ROOT = Path(__file__).parent.parent
STUB = ROOT / "src" / "falseneg" / "__init__.pyi"

SNIPPET = """
import falseneg as fn

reveal_type(fn.SimCLR)
reveal_type(fn.ContrastiveLoss(fn.SupportSet(top_k=8), "eliminate").flagged.share)
fn.SupportSet(top_kk=8)
fn.ContrastiveLoss(strategy="elimnate")
fn.Simclr
"""


def test_the_stub_equals_the_lazy_table():
    imported = {}
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            for name in node.names:
                assert name.name == name.asname, f"{name.name} is not re-exported"
                imported.setdefault(node.module, []).append(name.name)
    assert {room: sorted(names) for room, names in imported.items()} == {
        room: sorted(names) for room, names in fn._ROOMS.items()
    }


def test_mypy_finds_the_mistakes_of_a_snippet(tmp_path):
    (tmp_path / "snippet.py").write_text(SNIPPET)
    command = [sys.executable, "-m", "mypy", "--strict", str(tmp_path / "snippet.py")]
    environment = {**os.environ, "MYPYPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    found = {}
    for line in done.stdout.splitlines():
        if "snippet.py:" in line:
            number, message = line.split("snippet.py:")[1].split(": ", 1)
            found[int(number)] = found.get(int(number), "") + message
    assert list(found) == [4, 5, 6, 7, 8], done.stdout
    assert "SimCLR" in found[4] and "Any" not in found[4] and 'type is "float"' in found[5]
    assert 'Unexpected keyword argument "top_kk"' in found[6]
    assert 'Argument "strategy"' in found[7] and "incompatible type" in found[7]
    assert 'has no attribute "Simclr"' in found[8]
