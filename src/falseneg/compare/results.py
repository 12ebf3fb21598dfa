"""What the runs of a comparison came to: one record for each variant and seed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from falseneg.compare.summary import BASELINE, Summary, summarise
from falseneg.compare.tasks import Task
from falseneg.evaluation import EVALUATIONS, PAIR_EVALUATIONS
from falseneg.files import write_bytes
from falseneg.train.metrics import read_metrics

OF_THE_END = (
    *(key for each in EVALUATIONS for key in each.keys),
    "test_images",
    *("seconds", "seconds_per_epoch", "peak_memory_mib"),
)
OF_PAIRS = tuple(key for each in PAIR_EVALUATIONS for key in each.keys)
"""Only in the records of two towers."""
OF_THE_LAST_EPOCH = ("precision", "recall", "f1", "share_flagged", "chance")
RESULTS = "results.json"
SUMMARY = "summary.json"


def collect(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """A record for each finished run, with the keys of ``results.json``; what is undefined is None.

    ``epochs_to_baseline`` and ``seconds_to_baseline`` say after how many epochs, and seconds of training, the online
    nearest-neighbour accuracy first reached the baseline's at its last epoch, averaged over the baseline's seeds.
    """
    done = [task for task in tasks if task.state == "done"]
    curves = {id(task): [line for line in read_metrics(task.folder) if line["kind"] == "epoch"] for task in done}
    last = [_last_knn(curves[id(task)]) for task in done if task.variant == BASELINE]
    known = [value for value in last if value is not None]
    goal = statistics.fmean(known) if known else None
    return [_record(task, curves[id(task)], goal) for task in done]


def write_results(folder: Path, results: Sequence[Mapping[str, Any]], primary: str) -> Summary:
    """Write ``results.json`` and ``summary.json``; the primary accuracy makes the verdicts."""
    summary = summarise(results, primary)
    write_bytes(folder / RESULTS, (json.dumps(list(results), indent=1) + "\n").encode())
    write_bytes(folder / SUMMARY, (json.dumps(summary.to_json(), indent=1) + "\n").encode())
    return summary


def _record(task: Task, epochs: Sequence[Mapping[str, Any]], goal: float | None) -> dict[str, Any]:
    final = next(line for line in reversed(read_metrics(task.folder)) if line["kind"] == "final")
    reached = _first_reaching(epochs, goal)
    return {
        "variant": task.variant,
        "seed": task.seed,
        **{key: final.get(key) for key in OF_THE_END},
        **{key: final[key] for key in OF_PAIRS if key in final},
        **{key: epochs[-1].get(key) if epochs else None for key in OF_THE_LAST_EPOCH},
        "epochs": len(epochs),
        "epochs_to_baseline": None if reached is None else epochs[reached]["epoch"],
        "seconds_to_baseline": None if reached is None else sum(line["seconds"] for line in epochs[: reached + 1]),
        "strategy": task.configuration["strategy"],
        "oracle": task.configuration["detector"]["class_path"].rsplit(".", 1)[-1] == "Oracle",
    }


def _last_knn(epochs: Sequence[Mapping[str, Any]]) -> float | None:
    return next((line["knn"] for line in reversed(epochs) if line.get("knn") is not None), None)


def _first_reaching(epochs: Sequence[Mapping[str, Any]], goal: float | None) -> int | None:
    """The index of the first epoch whose accuracy is at least the goal."""
    if goal is None:
        return None
    return next((index for index, line in enumerate(epochs) if line.get("knn", -1.0) >= goal), None)
