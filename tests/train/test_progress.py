import io

import pytest

import falseneg as fn
from falseneg.train.progress import Bar, Lines, Silent, default_progress, describe, duration

FIGURES = {"loss": 5.25, "images_per_second": 1234.5, "share_flagged": 0.1, "precision": 0.25, "chance": 0.1}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "under 1 s"),
        (59.4, "59 s"),
        (60, "1 min 0 s"),
        (3725, "1 h 2 min"),
        (190000, "2 d 4 h"),
        (-3, "under 1 s"),
    ],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_figures_in_words():
    expected = "loss 5.2500  flagged 10.0%  precision 25.0% (chance 10.0%)  1,234 images/s  1 min 10 s left"
    assert describe(FIGURES, 70) == expected
    assert describe({"loss": 1.0, "share_flagged": 0.0, "precision": None}) == "loss 1.0000"


def test_lines_are_not_more_than_one_a_second(capsys):
    progress = Lines()
    with progress:
        for step in range(1, 21):
            progress.advance(fn.Clock(step, 10, 2))
            progress.step(fn.Clock(step, 10, 2), FIGURES, 1.0)
        progress.epoch(fn.Clock(20, 10, 2), {"epoch": 2, "loss": 1.0})
        progress.epoch(fn.Clock(20, 10, 2), {"epoch": 2, "loss": 1.0, "knn": 0.5})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 1/20", "step 20/20", "epoch 2/2"]
    assert "kNN 50.0%" in lines[-1]


def test_a_line_about_something_aside_comes_where_it_takes_long(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Lines()
    for _ in range(2):  # two passes, of 9 and of 45 seconds
        for done in range(10, 101, 10):
            progress.aside("embedding all images", done, 100)
            now[0] += 1.0 if now[0] < 110 else 5.0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "embedding all images: 30 of 100  23 s left"
    assert [line.split()[3] for line in lines] == ["30", "50", "70", "90"]


def test_silence(capsys):
    with Silent() as progress:
        progress.step(fn.Clock(1, 1, 1), FIGURES, 1.0)
        progress.message("x")
        progress.aside_since = progress.last = -100.0
        progress.aside("x", 1, 2)
    assert capsys.readouterr().out == ""


def test_a_bar_on_a_terminal(monkeypatch):
    from rich.console import Console

    bar, out = Bar(), io.StringIO()
    bar.console = bar.bar.live.console = Console(file=out, force_terminal=True, width=140, highlight=False)
    with bar:
        bar.message("text with [brackets] stays as it is")
        bar.step(fn.Clock(3, 10, 2), FIGURES, 70.0)
        bar.advance(fn.Clock(4, 10, 2))
        assert bar.bar.tasks[0].completed == 4
        bar.aside("embedding all images", 250, 1000)
        bar.bar.refresh()
        assert bar.bar.tasks[1].completed == 250
        bar.aside("embedding all images", 1000, 1000)
        assert len(bar.bar.tasks) == 1
        bar.epoch(fn.Clock(10, 10, 2), {"epoch": 1, "knn": 0.5})
    shown = out.getvalue()
    for words in ("[brackets]", "loss 5.2500", "1 min 10 s left", "epoch 1/2", "kNN 50.0%", "250 of 1,000 images"):
        assert words in shown


def test_the_choice_follows_the_output(monkeypatch):
    assert isinstance(default_progress(), Lines)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert isinstance(default_progress(), Bar)
