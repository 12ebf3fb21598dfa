import io
from pathlib import Path

import pytest

from falseneg.compare import display
from falseneg.compare.display import Board, Lines, describe, seconds_left, show_tables
from falseneg.compare.tables import Table
from falseneg.compare.tasks import Task


def task(variant, seed=0, **state):
    made = Task(variant, seed, {"epochs": 10}, Path("nowhere"))
    for name, value in state.items():
        setattr(made, name, value)
    return made


def test_where_a_run_stands():
    assert describe(task("none")) == "waiting"
    assert describe(task("none", state="running")) == "starts"
    assert describe(task("none", state="running", epoch=3, knn=0.5)) == "epoch 3/10, kNN 50.0%"
    assert describe(task("none", state="running", epoch=10, knn=0.5)) == "measuring, kNN 50.0%"
    assert describe(task("none", state="failed", error="no memory")) == "failed: no memory"


def test_the_time_left():
    assert seconds_left([task("none"), task("oracle")], jobs=2) is None
    running = [task("none", state="running", epoch=5, seconds=2.0), task("fnc", state="running", epoch=5, seconds=4.0)]
    assert seconds_left([*running, task("none", 1)], jobs=1) == 5 * 2 + 5 * 4 + 10 * 2
    assert seconds_left([*running, task("none", 1)], jobs=2) == pytest.approx(25)
    assert seconds_left([*running, task("new", 1)], jobs=1) == 5 * 2 + 5 * 4 + 10 * 3
    # The last run has a processor for itself, but no more.
    assert seconds_left([task("none", state="running", epoch=5, seconds=2.0)], jobs=4) == 10
    assert seconds_left([task("none", state="done", epoch=10, seconds=2.0)], jobs=1) == 0


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
    tasks = [task("none", state="done", epoch=10, knn=0.6), task("fnc", state="running"), task("fnc", 1)]
    shown = Lines(tasks, 1)
    shown.update()
    assert capsys.readouterr().out.splitlines() == ["1 of 3 runs are finished already", "fnc, seed 0: starts"]
    shown.update()
    assert capsys.readouterr().out == ""
    tasks[1].state, tasks[1].error, tasks[2].state = "failed", "no memory", "running"
    shown.update()
    assert capsys.readouterr().out.splitlines() == ["fnc, seed 0: failed: no memory", "fnc, seed 1: starts"]
    monkeypatch.setattr(display, "EVERY", 0.0)
    tasks[2].epoch, tasks[2].seconds = 2, 3.0
    shown.update()
    assert capsys.readouterr().out == "1 of 3 runs done, 24 s left — fnc, seed 1: epoch 2/10\n"


def test_a_board_on_a_terminal():
    from rich.console import Console

    tasks = [task("none[x]", 0, state="done", knn=0.6), task("none[x]", 1, state="running", epoch=2), task("fnc", 1)]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(Board(tasks, 1)._table())
    shown = console.export_text()
    assert "none[x]" in shown and "done, kNN 60.0%" in shown and "epoch 2/10" in shown
    assert "1 of 3 runs done" in shown


def test_tables_fit_a_terminal_of_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    rows = (("fnc-eliminate", "12.3 ± 4.5", ""), ("oracle-eliminate", "99.9 ± 0.1", "1"))
    show_tables(
        [
            Table("Accuracy", "A note.", ("variant", "kNN", "linear"), rows),
            Table("Empty", "", ("variant", "x"), (("a", ""),)),
        ]
    )
    shown = capsys.readouterr().out
    assert "99.9 ± 0.1" in shown and "A note." in shown and "Empty" not in shown
    assert max(map(len, shown.splitlines())) <= 80
