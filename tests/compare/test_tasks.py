import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import toy_runs

from falseneg.compare import tasks as tasks_module
from falseneg.compare.tasks import Task, run_tasks, warm_up
from falseneg.errors import UserError

CODE = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
import toy_runs
from falseneg.compare.tasks import Task, run_tasks, warm_up
if __name__ == "__main__":
    warm_up(1, ["torch"])
    tasks = [Task(str(n), 0, {{"epochs": 2, "then": "wait"}}, Path(sys.argv[1]) / str(n)) for n in range(2)]
    run_tasks(tasks, toy_runs.train, 2, 1, lambda: None)
"""


@pytest.fixture(autouse=True, scope="module")
def imports():
    warm_up(1, ["torch"])


def task(folder, name, then="nothing"):
    return Task(name, 0, {"epochs": 2, "then": then}, folder / name)


def test_each_run_has_a_process_of_its_own_and_ends_alone(tmp_path):
    names = ("good", "fail", "refuse", "die", "leave", "stop", "last")
    tasks = [task(tmp_path, name, name if name not in ("good", "last") else "nothing") for name in names]
    seen = []
    run_tasks(tasks, toy_runs.train, 2, 1, lambda: seen.append([each.state for each in tasks]))
    assert [each.state for each in tasks] == ["done", "failed", "failed", "failed", "failed", "failed", "done"]
    errors = {each.variant: each.error for each in tasks}
    assert errors["good"] is errors["last"] is None
    assert errors["fail"].startswith("RuntimeError: it broke (") and "\n" not in errors["fail"]
    assert errors["refuse"] == "no such thing"
    assert "SIGKILL" in errors["die"]
    assert "status 3" in errors["leave"]
    assert "stopped from outside (status 143)" in errors["stop"]
    assert "Traceback" in (tmp_path / "fail" / "log.txt").read_text()
    assert "Traceback" not in (tmp_path / "refuse" / "log.txt").read_text()
    assert max(states.count("running") for states in seen) == 2
    assert (tasks[0].epoch, tasks[0].seconds, tasks[0].knn) == (2, 0.5, pytest.approx(0.6))


def test_a_run_waits_for_those_that_it_needs(tmp_path):
    first, broken = task(tmp_path, "first"), task(tmp_path, "broken", "refuse")
    second, third = task(tmp_path, "second"), task(tmp_path, "third")
    second.after, third.after = (first.folder,), (first.folder, broken.folder)
    seen = []
    run_tasks([third, second, first, broken], toy_runs.train, 4, 1, lambda: seen.append((first.state, second.state)))
    assert [each.state for each in (first, second, broken, third)] == ["done", "done", "failed", "failed"]
    assert ("running", "waiting") in seen and not {state for state, later in seen if later == "running"} - {"done"}
    assert third.error == f"it needs the run in {broken.folder}, which failed" and not third.folder.exists()


def test_finished_runs_stay_and_others_go_on(tmp_path):
    first = [task(tmp_path, "whole"), task(tmp_path, "half", "fail")]
    run_tasks(first, toy_runs.train, 1, 1, lambda: None)
    (tmp_path / "never").mkdir()
    (tmp_path / "never" / "config.yaml").touch()  # killed before its first checkpoint
    before = (tmp_path / "whole" / "encoder.safetensors").stat().st_mtime_ns
    again = [task(tmp_path, "whole"), task(tmp_path, "half"), task(tmp_path, "never")]
    run_tasks(again, toy_runs.train, 1, 1, lambda: None)
    assert [each.state for each in again] == ["done"] * 3
    assert (tmp_path / "whole" / "encoder.safetensors").stat().st_mtime_ns == before
    assert (tmp_path / "whole" / "log.txt").read_text() == "resume=False\n"
    assert (tmp_path / "half" / "log.txt").read_text().endswith("resume=True\n")
    assert (tmp_path / "never" / "log.txt").read_text() == "resume=False\n"
    assert not (tmp_path / "never" / "config.yaml").exists()


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.05)


@contextlib.contextmanager
def killed_at_last(process):
    """Leaving ``Popen`` waits for the process: a failed test must not wait for ever."""
    try:
        yield
    finally:
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_runs_are_saved_and_end_when_the_comparison_does(number, tmp_path):
    command = [sys.executable, "-c", CODE.format(here=str(Path(__file__).parent)), str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process, killed_at_last(process):
        wait_for(lambda: all((tmp_path / name / "checkpoints" / "last.pt").exists() for name in "01"))
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does: to the whole group
        else:
            process.send_signal(number)
        process.wait(timeout=30)
        wait_for(lambda: all((tmp_path / name / "stopped").exists() for name in "01"))


SAVING = """
import sys, time
from pathlib import Path
from falseneg.files import alone
folder = Path(sys.argv[1])
with alone(folder, "busy"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.pt").touch()
"""


@pytest.mark.parametrize("seconds", [1, 60])
def test_a_run_that_outlives_its_comparison_is_waited_for(seconds, tmp_path, monkeypatch):
    """Its checkpoint is taken up; and what it still writes is not taken from it."""
    run = task(tmp_path, "slow")
    monkeypatch.setattr(tasks_module, "PATIENCE", 10.0 if seconds == 1 else 0.5)
    command = [sys.executable, "-c", SAVING, str(run.folder), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, killed_at_last(process):
        assert process.stdout.readline().strip() == "held"
        if seconds == 1:
            run_tasks([run], toy_runs.train, 1, 1, lambda: None)
            assert run.state == "done" and "resume=True" in (run.folder / "log.txt").read_text()
        else:
            with pytest.raises(UserError, match="still being written by a process of an earlier comparison"):
                run_tasks([run], toy_runs.train, 1, 1, lambda: None)
