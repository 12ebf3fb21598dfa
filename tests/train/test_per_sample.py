import json
import math
import signal

import numpy as np
import pytest
import torch
from train.parts import digits, tiny_run, untimed
from train.test_resume import StopAt

import falseneg as fn
from falseneg.evaluation import group_figures
from falseneg.train import fit
from falseneg.train.metrics import read_metrics
from falseneg.train.observers import per_sample
from falseneg.train.observers.per_sample import learned_thresholds, shown_groups, summary, write_arrays, write_clusters

CLOCK = fn.Clock(0, 1, 1)


class Grouped(fn.NoDetection):
    """Holds clusters and numbers that change from step to step."""

    def prepare(self, facts):
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._rows = facts.rows

    def flag(self, contrast, clock):
        self.steps += 1
        return super().flag(contrast, clock)

    def per_sample(self):
        rows, steps = torch.arange(self._rows), int(self.steps)
        groups = (rows * 7 + steps) % 5
        number = torch.where(rows < 10 * steps, rows / self._rows + steps, torch.nan)
        accepted = groups.where(rows % 9 < steps, -1)
        return {"number": number, "clusters 5": groups, "pseudo-labels 5": accepted}


def test_numbers_are_summed_up_by_quantiles():
    values = torch.tensor([0.5, torch.nan, -1.0, 0.0, 2.0, torch.inf, 0.25, 0.75])
    for dtype in (torch.float32, torch.float64, torch.float16):
        figures = summary({"a": values.to(dtype)}, None)
        assert figures["a/known"] == 6 and figures["a/mean"] == pytest.approx(2.5 / 6)
        known = sorted([0.5, -1.0, 0.0, 2.0, 0.25, 0.75])
        for percent in per_sample.QUANTILES:
            place = percent / 100 * 5
            low, part = math.floor(place), place - math.floor(place)
            expected = known[low] + part * (known[min(low + 1, 5)] - known[low])
            assert figures[f"a/{percent}%"] == pytest.approx(expected)
    assert summary({"a": torch.full((3,), torch.nan)}, None) == {"a/known": 0}
    assert summary({}, None) == {}


def test_groups_are_compared_with_the_labels():
    groups, labels = torch.arange(12) % 4, torch.arange(12) % 3
    for given in (labels, None):
        figures = summary({"clusters 4": groups.int()}, given)
        assert figures == {f"clusters 4/{key}": value for key, value in group_figures(groups, given).items()}


def test_every_epoch_has_its_figures_and_recorded_ones_their_arrays(tmp_path):
    run = tiny_run(detector=Grouped(), epochs=4, data=digits(96))
    fit(run, tmp_path / "run")
    lines = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "epoch"]
    assert [line["number/known"] for line in lines] == [30, 60, 90, 96]
    assert [line["number/100%"] for line in lines] == pytest.approx(
        [3 + 29 / 96, 6 + 59 / 96, 9 + 89 / 96, 12 + 95 / 96]
    )
    assert all(line["clusters 5/groups"] == 5 and 0 < line["clusters 5/purity"] < 1 for line in lines)
    assert lines[0]["pseudo-labels 5/assigned"] == pytest.approx(33 / 96)
    files = sorted(path.name for path in (tmp_path / "run" / "per_sample").iterdir())
    assert files == ["epoch-00001.npz", "epoch-00002.npz", "epoch-00004.npz"]
    with np.load(tmp_path / "run" / "per_sample" / files[1]) as arrays:
        assert {name: arrays[name].dtype.name for name in arrays.files} == {
            "number": "float32",
            "clusters 5": "int32",
            "pseudo-labels 5": "int32",
        }
        assert arrays["clusters 5"].tolist() == [(row * 7 + 6) % 5 for row in range(96)]
    with np.load(tmp_path / "run" / "clusters.npz") as clusters:
        assert len(clusters["rows"]) == len(clusters["group_of"]) == 5 * per_sample.PER_GROUP


@pytest.mark.parametrize("step", [1, 4])
def test_an_interrupted_run_holds_the_same(tmp_path, step):
    options = {"checkpoint_every": None, "detector": fn.GlobalThreshold(0.1)}
    fit(tiny_run(**options, objective=StopAt(-1, signal.SIGTERM)), tmp_path / "whole")
    options["detector"] = fn.GlobalThreshold(0.1)
    with pytest.raises(SystemExit):
        fit(tiny_run(**options, objective=StopAt(step, signal.SIGTERM)), tmp_path / "parts")
    options["detector"] = fn.GlobalThreshold(0.1)
    fit(tiny_run(**options, objective=StopAt(-1, signal.SIGTERM)), tmp_path / "parts", resume=True)
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "parts")
    for epoch in (1, 2, 3):
        one, other = (np.load(tmp_path / name / f"per_sample/epoch-{epoch:05d}.npz") for name in ("whole", "parts"))
        assert one.files == other.files and "threshold/true" in one.files
        assert all(np.array_equal(one[name], other[name], equal_nan=True) for name in one.files)


def test_a_long_comparison_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(per_sample, "TOLD_AFTER", 0.0)
    fit(tiny_run(epochs=1, detector=fn.GlobalThreshold(0.1)), tmp_path / "run")
    assert "compared learned thresholds with the whole data set for" in capsys.readouterr().out


def test_who_holds_nothing_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(per_sample, "check_thresholds", None)
    monkeypatch.setattr(per_sample, "write_arrays", None)
    fit(tiny_run(epochs=1), tmp_path / "run")
    assert not (tmp_path / "run" / "per_sample").exists() and not (tmp_path / "run" / "clusters.npz").exists()
    assert not any("/" in key for line in read_metrics(tmp_path / "run") for key in line)


def test_a_new_run_leaves_nothing_of_a_broken_one(tmp_path):
    (tmp_path / "run" / "per_sample").mkdir(parents=True)
    (tmp_path / "run" / "per_sample" / "epoch-00009.npz").write_text("")
    fit(tiny_run(epochs=1), tmp_path / "run")
    assert not (tmp_path / "run" / "per_sample").exists()


def facts(*contrasts):
    return fn.Facts(rows=6, negatives=4, contrasts=contrasts)


def learn(detector, *contrasts):
    detector.prepare(facts(*contrasts))
    for name in contrasts:
        z = torch.nn.functional.normalize(torch.randn(4, 3), dim=1)
        rows = fn.Embedded(z, torch.arange(4))
        detector.flag(fn.Contrast(name, rows, rows, torch.zeros(4, 1)), CLOCK)
    return learned_thresholds(detector, contrasts, CLOCK)


def test_thresholds_are_found_wherever_they_are():
    assert learn(fn.FixedThreshold(0.1), "views") == {}
    alone = learn(fn.GlobalThreshold(0.1, part=None), "views")
    assert alone.keys() == {"threshold"} and alone["threshold"].values[:4].isfinite().all()
    assert (alone["threshold"].alpha, alone["threshold"].contrast, alone["threshold"].space) == (0.1, "views", None)
    inside = learn(fn.AnyOf([fn.StartAt(fn.GlobalThreshold(0.2)), fn.GlobalThreshold(0.3)]), "views")
    assert {name: one.alpha for name, one in inside.items()} == {"threshold": 0.2, "threshold 2": 0.3}
    several = learn(fn.GlobalThreshold(0.1), "view 1", "view 2")
    assert {name: one.contrast for name, one in several.items()} == {
        "threshold view 1": "view 1",
        "threshold view 2": "view 2",
    }
    scheduled = learn(fn.GlobalThreshold(fn.Linear(0.3, 0.1)), "views")
    assert scheduled["threshold"].alpha == pytest.approx(0.3)


def test_thresholds_that_have_not_begun_are_not_checked():
    assert learn(fn.GlobalThreshold(0.1, start="50%"), "views") == {}


def test_names_are_those_that_the_detector_gives():
    detector = fn.AnyOf([fn.GlobalThreshold(0.2), fn.GlobalThreshold(0.3)])
    assert learn(detector, "views").keys() <= detector.per_sample().keys()


def test_clusters_from_the_largest_to_the_smallest_accepted_images_first():
    sizes = [40, 1, 25, 3, 60, 7, 12, 5, 30, 2, 50, 9]
    groups = np.repeat(np.arange(12), sizes)[np.random.default_rng(0).permutation(sum(sizes))]
    accepted = np.arange(len(groups)) % 3 == 0
    shown = shown_groups(groups, accepted)
    assert len(shown) == per_sample.GROUPS
    assert next(iter(shown)) == 4 and list(shown)[-1] == 1
    assert [sizes[group] for group in shown] == sorted((sizes[group] for group in shown), reverse=True)
    for group, rows in shown.items():
        members = np.flatnonzero(groups == group)
        assert len(rows) == len(set(rows)) == min(per_sample.PER_GROUP, len(members))
        first = min(len(rows), int(accepted[members].sum()))
        assert accepted[rows[:first]].all() and (groups[rows] == group).all()
    assert shown_groups(np.full(5, -1), None) == {}


def test_pictures_of_clusters_say_what_they_are_of(tmp_path):
    images = digits(90)
    coarse, fine = torch.arange(90) % 3, torch.arange(90) % 8
    accepted = coarse.where(torch.arange(90) < 45, -1)
    held = {"clusters 8": fine, "clusters 3": coarse, "pseudo-labels 3": accepted, "number": torch.rand(90)}
    write_arrays(tmp_path, 4, {"clusters 2": coarse % 2}, {})
    write_arrays(tmp_path, 10, held, {})
    write_clusters(tmp_path, images)
    clusters = np.load(tmp_path / "clusters.npz")
    assert clusters["groups"].tolist() == [0, 1, 2] and clusters["sizes"].tolist() == [30] * 3
    assert clusters["accepted"].tolist() == [15] * 3
    assert (coarse[clusters["rows"]].numpy() == clusters["group_of"]).all()
    for place in range(3):
        of_cluster = images.labels[coarse == place].tolist()
        majority = int(clusters["majority"][place])
        assert of_cluster.count(majority) == max(of_cluster.count(label) for label in of_cluster)
        assert clusters["purity"][place] == pytest.approx(of_cluster.count(majority) / 30)
    assert clusters["images"].shape == (len(clusters["rows"]), 64, 64, 3)
    assert json.dumps(clusters["names"].tolist())


def test_without_clusters_there_are_no_pictures_of_them(tmp_path):
    write_clusters(tmp_path, digits(9))
    for held in ({"threshold": torch.rand(9)}, {"clusters 3": torch.full((9,), -1)}):
        write_arrays(tmp_path, 1, held, {})
        write_clusters(tmp_path, digits(9))
    assert not (tmp_path / "clusters.npz").exists()
