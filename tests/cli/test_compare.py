"""A comparison on digits, in real processes."""

import json
import subprocess
import sys
import time

import pytest
import yaml

from falseneg.cli import main

KEYS = {"variant", "seed", "knn", "linear", "few_label", "precision", "recall", "f1", "share_flagged"}
KEYS |= {"seconds_per_epoch", "peak_memory_mib"}
SMALL = ["--method.encoder.arguments", '{"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}', "--accelerator", "cpu"]
ASKED = ["--seeds", "0", "1", "--variants", "none", "fnc-attract", "--epochs", "1", *SMALL, "--jobs", "2"]


def program(*arguments, **more):
    command = [sys.executable, "-m", "falseneg", "compare", *arguments]
    return subprocess.run(command, capture_output=True, text=True, **more)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def killed(place):
    """A comparison that was killed without warning when its first run was finished."""
    process = subprocess.Popen(
        [sys.executable, "-m", "falseneg", "compare", *ASKED], cwd=place, stdout=subprocess.DEVNULL
    )
    while not _finished(place / "compare-digits"):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    return place / "compare-digits"


def _finished(folder):
    """The encoders of the runs that have said their last."""
    lines = {path.parent: path.read_text() for path in folder.glob("runs/*/*/metrics.jsonl")}
    return [run / "encoder.safetensors" for run, text in lines.items() if '"final"' in text]


def test_it_goes_on_after_it_was_killed(killed, place):
    finished = {path: path.stat().st_mtime_ns for path in _finished(killed)}
    assert 0 < len(finished) < 4
    done = program(*ASKED, cwd=place)
    assert done.returncode == 0, done.stderr
    results = json.loads((killed / "results.json").read_text())
    assert [(each["variant"], each["seed"]) for each in results] == [
        *(("none", 0), ("fnc-attract", 0), ("none", 1), ("fnc-attract", 1))
    ]
    for each in results:
        assert set(each) >= KEYS
        assert all(0 <= each[key] <= 1 for key in ("knn", "linear", "few_label"))
        assert each["peak_memory_mib"] > 100
    assert results[1]["share_flagged"] == pytest.approx(0.05, abs=0.005)  # half of one in ten classes
    assert results[0]["precision"] is None and results[0]["share_flagged"] == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    summary = json.loads((killed / "summary.json").read_text())
    assert [variant["name"] for variant in summary["variants"]] == ["none", "fnc-attract"]
    assert (killed / "report.html").read_text().startswith("<!")
    assert "fnc-attract" in done.stdout and "±" in done.stdout and "report.html" in done.stdout


def test_done_is_done(killed, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr("falseneg.cli.compare.warm_up", lambda *_: None)
    before = {path: path.stat().st_mtime_ns for path in killed.glob("runs/*/*/*")}
    assert main(["compare", *ASKED]) == 0
    assert "4 of 4 runs are finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in killed.glob("runs/*/*/*")} == before


def test_another_comparison_is_refused_there(killed, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr("falseneg.cli.compare.warm_up", lambda *_: None)
    before = (killed / "compare.yaml").read_bytes()
    assert main(["compare", *ASKED, "--epochs", "4"]) == 2
    said = capsys.readouterr().err
    assert "epochs" in said and "--out" in said
    assert (killed / "compare.yaml").read_bytes() == before


def test_a_comparison_in_one_file(tmp_path, monkeypatch, capsys):
    """Names that come with the package, and variants that change whatever they like: epochs, the method, the data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "data: {class_path: Digits, init_args: {split: train}}\n"
        "test: {class_path: Digits, init_args: {split: test}}\n"
        "method: {class_path: SimCLR, init_args: {encoder: {name: resnet10t, image_size: 8, small_stem: true, arguments: "
        "{channels: [8, 8, 8, 8], layers: [1, 1, 1, 1]}}}}\n"
        "accelerator: cpu\nepochs: 1\nbatch_size: 64\nseeds: [3]\njobs: 2\nout: cmp\nexpected_classes: 10\n"
        "variants:\n"
        "  none:\n"
        "  longer: {epochs: 2, batch_size: 32}\n"
        "  three: {method: {class_path: SimCLR, init_args: {views: 3}}, strategy: attract}\n"
        "  test-split: {data: {init_args: {split: test}}}\n"
        "  second-pass:\n"
        "  again: {detector: {class_path: NeighbourGraph, init_args: {guide: [run of none, run of longer]}}, strategy: attract}\n"
    )
    assert main(["compare", "--config", "mine.yaml"]) == 0
    results = {each["variant"]: each for each in json.loads((tmp_path / "cmp/results.json").read_text())}
    assert {*results} == {"none", "longer", "three", "test-split", "second-pass", "again"}
    assert {each["seed"] for each in results.values()} == {3}
    stored = yaml.safe_load((tmp_path / "cmp/compare.yaml").read_text())["variants"]
    assert (stored["longer"]["epochs"], stored["longer"]["batch_size"], stored["none"]["epochs"]) == (2, 32, 1)
    method = stored["three"]["method"]["init_args"]
    assert (method["views"], method["encoder"]["name"], stored["none"]["method"]["init_args"]["views"]) == (
        3,
        "resnet10t",
        2,
    )
    facts = json.loads((tmp_path / "cmp/runs/test-split/seed-3/run.json").read_text())
    assert facts["images"] == 360
    # What compares by other runs of the same seed is trained after them.
    runs = tmp_path / "cmp/runs"
    again = yaml.safe_load((runs / "again/seed-3/config.yaml").read_text())["detector"]["init_args"]
    assert again["guide"] == [f"cmp/runs/{name}/seed-3" for name in ("none", "longer")]
    assert stored["again"]["detector"]["init_args"]["guide"] == ["run of none", "run of longer"]
    ended = {name: (runs / name / "seed-3/encoder.safetensors").stat().st_mtime_ns for name in ("none", "longer")}
    assert (runs / "second-pass/seed-3/config.yaml").stat().st_mtime_ns > ended["none"]
    assert (runs / "again/seed-3/config.yaml").stat().st_mtime_ns > max(ended.values())
    # A choice of them, by name.
    capsys.readouterr()
    assert main(["compare", "--config", "mine.yaml", "--variants", "longer", "none"]) == 0
    assert "2 of 2 runs are finished already" in capsys.readouterr().out


def test_all_may_use_the_run_of_one(tmp_path, monkeypatch, capsys):
    """The detector that all variants share names a run, and one of them has another detector."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shared.yaml").write_text(
        "detector: {class_path: NeighbourGraph, init_args: {guide: run of none, attract: 0.0}}\nstrategy: eliminate\n"
        "variants:\n  none: {detector: NoDetection, strategy: ignore}\n  guided: {strategy: attract}\n"
    )
    files = ["--config", "digits", "--config", "shared.yaml", "--variants", "guided", "none"]
    assert main(["compare", *files, "--seeds", "0", "--epochs", "1", *SMALL, "--out", "cmp"]) == 0
    assert "estimate: " in capsys.readouterr().out
    assert {each["variant"] for each in json.loads((tmp_path / "cmp/results.json").read_text())} == {"none", "guided"}


def test_own_variants_one_of_which_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "own_parts.py").write_text(
        "import falseneg\n"
        "class Broken(falseneg.NoDetection):\n    '''Broken.'''\n"
        "    def flag(self, contrast, clock):\n        raise RuntimeError('a bug of mine')\n"
    )
    (tmp_path / "variants.yaml").write_text(
        "variants:\n"
        "  mine: {detector: {class_path: FixedThreshold, init_args: {threshold: 0.9}}, strategy: attract}\n"
        "  broken: {detector: own_parts.Broken}\n"
    )
    files = ["--config", "digits", "--config", "variants.yaml"]
    options = [*files, "--seeds", "0", "--epochs", "1", *SMALL, "--out", "cmp"]
    assert main(["compare", *options]) == 1
    said = capsys.readouterr()
    assert "broken, seed 0 failed: RuntimeError: a bug of mine" in said.err and "Traceback" not in said.err
    assert "broken, seed 0: failed" in said.out and "mine, seed 0: done" in said.out
    assert "Traceback" in (tmp_path / "cmp/runs/broken/seed-0/log.txt").read_text()
    assert [each["variant"] for each in json.loads((tmp_path / "cmp/results.json").read_text())] == ["mine"]


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("falseneg.cli.compare.run_tasks", interrupted)
    monkeypatch.setattr("falseneg.cli.compare.warm_up", lambda *_: None)
    assert main(["compare", "--variants", "none", "--seeds", "0", *SMALL, "--out", str(tmp_path / "cmp")]) == 130
    assert "the same command continues it" in capsys.readouterr().err
