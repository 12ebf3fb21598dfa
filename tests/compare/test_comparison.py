import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from falseneg.compare.comparison import Comparison, claimed, finished, read_comparison
from falseneg.compare.other_runs import with_runs
from falseneg.errors import UserError

BASE = {"epochs": 2, "augmentation": {"crop_scale": (0.2, 1.0)}, "workers": 0}


def comparison(*names, seeds=(0, 1), **changes):
    base = {**BASE, **changes}
    return Comparison(base, {name: {**base, "detector": name} for name in names}, list(seeds))


def test_the_runs_come_seed_by_seed(tmp_path):
    tasks = comparison("none", "oracle").tasks(tmp_path)
    assert [(task.variant, task.seed) for task in tasks] == [("none", 0), ("oracle", 0), ("none", 1), ("oracle", 1)]
    assert tasks[2].configuration["seed"] == 1
    assert tasks[2].folder == tmp_path / "runs" / "none" / "seed-1"


def guided(by):
    return {**BASE, "detector": {"class_path": "NeighbourGraph", "init_args": {"guide": [f"run of {by}", "other.npy"]}}}


def test_a_variant_uses_the_run_of_another_with_the_same_seed(tmp_path):
    both = Comparison(BASE, {"second": guided("none"), "none": {**BASE, "detector": "none"}}, [3, 4])
    second, none = both.tasks(tmp_path)[2:]
    assert none.after == () and second.after == (none.folder,) == (tmp_path / "runs" / "none" / "seed-4",)
    assert second.configuration["detector"]["init_args"]["guide"] == [str(none.folder), "other.npy"]
    assert both.variants["second"] == guided("none")  # what is kept fits every seed
    assert with_runs(guided("none"), None)["detector"]["init_args"]["guide"] == ["other.npy"]
    assert with_runs({"detector": {"guide": ["run of none"], "other": []}}, None) == {
        "detector": {"guide": None, "other": []}
    }


def test_a_variant_without_the_run_that_it_uses_is_refused():
    with pytest.raises(UserError, match="second uses the run of none; compare the variant none as well"):
        Comparison(BASE, {"second": guided("none")}, [0])
    for others in ({"one": "two", "two": "one"}, {"one": "one"}):
        with pytest.raises(UserError, match=r"a run cannot use itself, directly or through others \((one|two)"):
            Comparison(BASE, {name: guided(other) for name, other in others.items()}, [0])
    Comparison(BASE, {"none": {**BASE, "data": {"init_args": {"root": "run of horses"}}}}, [0])  # a folder of photos


def test_the_folder_remembers_what_is_compared(tmp_path):
    with claimed(comparison("none"), tmp_path / "new", ()):
        pass
    again = read_comparison(tmp_path / "new")
    assert (list(again.variants), again.seeds) == (["none"], [0, 1])
    assert again.base["augmentation"] == {"crop_scale": [0.2, 1.0]}


def test_the_same_comparison_goes_on_and_may_grow(tmp_path):
    with claimed(comparison("none"), tmp_path, ()):
        pass
    with claimed(comparison("none", "oracle", seeds=(1, 2)), tmp_path, ()) as joined:
        assert (list(joined.variants), joined.seeds) == (["none", "oracle"], [0, 1, 2])
    with claimed(comparison("oracle", workers=4), tmp_path, ("workers",)) as joined:
        assert list(joined.variants) == ["none", "oracle"]


@pytest.mark.parametrize(
    "other", [comparison("none", epochs=3), comparison("none", augmentation={"crop_scale": (0.3, 1.0)})]
)
def test_another_comparison_is_refused(other, tmp_path):
    with claimed(comparison("none"), tmp_path, ()):
        pass
    before = (tmp_path / "compare.yaml").read_bytes()
    with pytest.raises(UserError, match="another comparison.*--out"), claimed(other, tmp_path, ("workers",)):
        pass
    assert (tmp_path / "compare.yaml").read_bytes() == before


def test_a_variant_that_means_something_else_is_refused(tmp_path):
    with claimed(comparison("none"), tmp_path, ()):
        pass
    other = Comparison(BASE, {"none": {**BASE, "detector": "Oracle"}}, [0])
    with pytest.raises(UserError, match="detector of none differs"), claimed(other, tmp_path, ()):
        pass


def test_the_primary_measure_is_fixed_with_the_first_run(tmp_path):
    with claimed(comparison("none"), tmp_path, ()):
        pass
    before = (tmp_path / "compare.yaml").read_bytes()
    other = replace(comparison("none"), primary="knn")
    with (
        pytest.raises(UserError, match="primary measure is few_label.*--primary few_label"),
        claimed(other, tmp_path, ()),
    ):
        pass
    assert (tmp_path / "compare.yaml").read_bytes() == before and b"primary: few_label" in before
    (tmp_path / "compare.yaml").write_bytes(before.replace(b"primary: few_label\n", b""))  # of an earlier version
    assert read_comparison(tmp_path).primary == "few_label"
    with claimed(other, tmp_path / "knn", ()):
        assert read_comparison(tmp_path / "knn").primary == "knn"


def test_a_primary_measure_that_is_no_accuracy_is_refused():
    with pytest.raises(UserError, match="primary measure is 'recall'; choose one of knn, linear, few_label"):
        replace(comparison("none"), primary="recall")


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="--out"), claimed(comparison("none"), tmp_path, ()):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_description_is_named(tmp_path):
    (tmp_path / "compare.yaml").write_text("base: [")
    with pytest.raises(UserError, match="compare.yaml is damaged"), claimed(comparison("none"), tmp_path, ()):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="locks files in another way")
def test_only_one_comparison_at_a_time(tmp_path):
    with claimed(comparison("none"), tmp_path, ()):
        code = f"import fcntl; fcntl.flock(open({str(tmp_path / '.lock')!r}, 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        assert b"BlockingIOError" in subprocess.run([sys.executable, "-c", code], capture_output=True).stderr
        with pytest.raises(UserError, match="is running"), claimed(comparison("none"), tmp_path, ()):
            pass


@pytest.mark.parametrize("name", ["../up", "a/b", "", "-x", ".hidden"])
def test_names_that_are_no_folders_are_refused(name):
    with pytest.raises(UserError, match="cannot name a folder"):
        Comparison(BASE, {name: BASE}, [0])


def test_an_empty_comparison_is_refused():
    with pytest.raises(UserError, match="at least one"):
        Comparison(BASE, {"none": BASE}, [])


def test_finished_runs_are_found(tmp_path):
    asked = comparison("none", "oracle")
    done = asked.tasks(tmp_path)[1].folder
    done.mkdir(parents=True)
    (done / "metrics.jsonl").write_text('{"kind": "final", "knn": 0.5}\n')
    assert finished(asked, tmp_path) == []
    (done / "encoder.safetensors").touch()
    assert [(task.variant, task.seed, task.state) for task in finished(asked, tmp_path)] == [("oracle", 0, "done")]


@pytest.mark.parametrize("seed", ["../../elsewhere", None, [1]])
def test_a_seed_that_would_lead_elsewhere(seed, tmp_path):
    """Of a comparison that may be anybody's: seeds name folders."""
    with claimed(comparison("none"), tmp_path, ()):
        pass
    content = yaml.safe_load((tmp_path / "compare.yaml").read_text())
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump({**content, "seeds": [0, seed]}))
    with pytest.raises(UserError, match="is damaged"):
        read_comparison(tmp_path)
