"""Random configurations and damaged files: each ends well or in one sentence. Always the same cases (see fuzz.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "fuzz.py"
CASES = 1500
MOST_MEMORY = 4
"""GiB that the process may reach over all its cases."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    start("materials", folder / "whole", cwd=folder).check_returncode()
    for name in ("run", "images", "encoder.safetensors"):
        (folder / name).symlink_to(folder / "whole" / name)
    return folder


def start(*arguments, cwd):
    environment = {**os.environ, "XDG_CACHE_HOME": str(cwd / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["configurations", "files"])
def test_every_case_ends_well_or_in_one_sentence(kind, folder):
    log, first, faults, peak = folder / f"{kind}.jsonl", 0, {}, 0.0
    while first < CASES:
        done = start(kind, folder, log, first, CASES, cwd=folder)
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        if not lines:
            pytest.fail(done.stderr[-3000:])
        if done.returncode == 0:
            break
        first = lines[-1]["case"] + 1  # the case that ended the process
        faults.setdefault(f"the process ends with {done.returncode}", []).append(
            (lines[-1]["case"], done.stderr[-300:])
        )
    ended = [line for line in lines if "fault" in line]
    for line in ended:
        peak = max(peak, line["peak"])
        if line["fault"]:
            faults.setdefault(line["fault"][0], []).append(
                (line["case"], *line["fault"][1:], line["about"], line["command"])
            )
    for fault, cases in sorted(faults.items()):
        print(f"{len(cases)} × {fault}; the first is case {cases[0]}")
    assert len(ended) + sum(len(cases) for fault, cases in faults.items() if "the process" in fault) == CASES
    assert not faults and peak < MOST_MEMORY
