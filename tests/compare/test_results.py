import json

import pytest

from falseneg.compare.results import collect, write_results
from falseneg.compare.tasks import Task

STRATEGY = {"positive": 0.0, "negative": 1.0, "renormalise": False}


def run(folder, variant, seed, knn, state="done", final=None, seconds=2.0, **figures):
    """A run's folder with these online accuracies, None where an epoch was not measured."""
    task = Task(
        variant,
        seed,
        {"epochs": len(knn), "strategy": STRATEGY, "detector": {"class_path": "falseneg.Oracle"}},
        folder / f"{variant}-{seed}",
        state,
    )
    task.folder.mkdir()
    lines = [{"kind": "step", "step": 1, "loss": 4.0}]
    for epoch, accuracy in enumerate(knn, start=1):
        measured = {} if accuracy is None else {"knn": accuracy}
        lines.append({"kind": "epoch", "epoch": epoch, "seconds": seconds, **measured, **figures})
    lines.append({"kind": "final", "knn": knn[-1], "linear": 0.9, "seconds_per_epoch": seconds, **(final or {})})
    (task.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return task


def test_records_have_the_promised_keys(tmp_path):
    final = {"few_label": 0.7, "few_label_sd": 0.1, "peak_memory_mib": 300.0, "seconds": 4.0, "test_images": 9}
    figures = {"precision": 0.3, "recall": 0.2, "f1": 0.24, "share_flagged": 0.05, "chance": 0.1}
    (record,) = collect([run(tmp_path, "none", 3, [0.4, 0.5], final=final, **figures)])
    assert record == {
        **{"variant": "none", "seed": 3, "knn": 0.5, "linear": 0.9, **final, **figures},
        **{"seconds_per_epoch": 2.0, "epochs": 2, "epochs_to_baseline": 2, "seconds_to_baseline": 4.0},
        **{"strategy": STRATEGY, "oracle": True},
    }


def test_what_is_undefined_is_none(tmp_path):
    (record,) = collect([run(tmp_path, "fnc", 0, [None, None])])
    assert (
        record["precision"]
        is record["few_label"]
        is record["epochs_to_baseline"]
        is record["seconds_to_baseline"]
        is None
    )


def test_when_the_baseline_is_reached(tmp_path):
    tasks = [
        run(tmp_path, "none", 0, [0.3, 0.5]),
        run(tmp_path, "none", 1, [0.3, 0.7]),  # last accuracy of none: 0.6 on average
        run(tmp_path, "quick", 0, [0.6, 0.5, 0.9], seconds=3.0),
        run(tmp_path, "late", 0, [None, 0.59, None, 0.61], seconds=3.0),
        run(tmp_path, "never", 0, [0.1, 0.59]),
    ]
    records = {(record["variant"], record["seed"]): record for record in collect(tasks)}
    reached = {name: (record["epochs_to_baseline"], record["seconds_to_baseline"]) for name, record in records.items()}
    assert reached == {
        **{("none", 0): (None, None), ("none", 1): (2, 4.0)},
        **{("quick", 0): (1, 3.0), ("late", 0): (4, 12.0), ("never", 0): (None, None)},
    }


def test_only_finished_runs_count(tmp_path):
    tasks = [run(tmp_path, "none", 0, [0.5]), run(tmp_path, "none", 1, [0.9], state="failed")]
    assert [record["seed"] for record in collect(tasks)] == [0]


def test_results_and_summary_are_written(tmp_path):
    results = collect([run(tmp_path, "none", seed, [0.5 + seed / 10]) for seed in (0, 1)])
    summary = write_results(tmp_path, results, "knn")
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert json.loads((tmp_path / "summary.json").read_text())["variants"][0]["figures"]["knn"][
        "mean"
    ] == pytest.approx(0.55)
    assert summary["none"].figures["knn"].mean == pytest.approx(0.55)
    assert json.loads((tmp_path / "summary.json").read_text())["primary"] == "knn"
