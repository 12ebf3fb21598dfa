"""What a comparison's folder holds, read like `read_run`: what is missing costs its own part only.

Formats: ``results.json`` is a list with one object for each variant and seed, see `falseneg.compare.summary.summarise`;
``runs/VARIANT/seed-SEED`` are run folders. ``summary.json`` is written for other programs and not needed here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from falseneg.compare.summary import ACCURACIES, BASELINE, FIGURES, PRIMARY, Summary, summarise
from falseneg.foreign.text import read_json
from falseneg.report.chart import Style, variant_styles
from falseneg.report.read import RunRecord, figures, is_figure, is_run, read_run


@dataclass
class ComparisonRecord:
    """All that is known of a comparison.

    Attributes:
        name: of its folder.
        settings_text: compare.yaml as it stands there.
        results: one object for each finished run.
        summary: of the results.
        runs: variant and seed to run, finished or not, in the order of the results.
        notes: what is missing or damaged, a sentence each.
    """

    name: str
    settings_text: str
    results: list[dict[str, Any]]
    summary: Summary
    runs: dict[str, dict[str, RunRecord]]
    notes: list[str]

    @cached_property
    def names(self) -> list[str]:
        """Of all variants, those with results first."""
        return list(dict.fromkeys([*(variant.name for variant in self.summary.variants), *self.runs]))

    @cached_property
    def oracles(self) -> set[str]:
        """The names of the variants that flag by the true labels."""
        return {variant.name for variant in self.summary.variants if variant.oracle}

    @cached_property
    def styles(self) -> dict[str, Style]:
        """How each variant is drawn everywhere on the page."""
        return variant_styles(self.names, self.oracles)

    @cached_property
    def all_runs(self) -> list[RunRecord]:
        return [run for of_variant in self.runs.values() for run in of_variant.values()]

    @cached_property
    def styled_runs(self) -> list[tuple[Style, list[RunRecord]]]:
        """The runs of each variant that has any, and how they are drawn."""
        return [(self.styles[name], list(self.runs[name].values())) for name in self.names if name in self.runs]

    @cached_property
    def examples(self) -> dict[str, tuple[str, RunRecord]]:
        """The run that each variant's pictures are taken from, that of its first seed, with the seed."""
        return {name: next(iter(self.runs[name].items())) for name in self.names if self.runs.get(name)}


def is_comparison(folder: Path) -> bool:
    """Whether a folder looks like that of a comparison."""
    return (folder / "results.json").is_file() or (folder / "compare.yaml").is_file() or (folder / "runs").is_dir()


def read_comparison(folder: Path) -> ComparisonRecord:
    """Read a comparison's folder, with the runs in it."""
    notes: list[str] = []
    results = _read_results(folder / "results.json", notes)
    runs = _read_runs(folder / "runs", [result["variant"] for result in results], notes)
    if not results:
        results = [
            _result(variant, seed, run) for variant, of in runs.items() for seed, run in of.items() if run.finished
        ]
    settings = folder / "compare.yaml"
    text = settings.read_text("utf-8", errors="replace") if settings.is_file() else ""
    primary = _primary(text)
    try:
        summary = summarise(results, primary)
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        notes.append(f"the results cannot be summarised ({type(error).__name__}), so tables and verdicts are left out")
        results, summary = [], summarise([], primary)
    return ComparisonRecord(folder.resolve().name, text, results, summary, runs, notes)


def _primary(settings: str) -> str:
    """The measure that was fixed before the runs."""
    found = re.search(rf"^primary: ({'|'.join(ACCURACIES)})$", settings, re.MULTILINE)
    return found[1] if found else PRIMARY


def _read_results(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    try:
        given = read_json(path)
        results = [_usable(result, notes) for result in given if _is_result(result)]
        if given and not results:
            raise ValueError("no results")
        if len(results) < len(given):
            notes.append(f"damaged entries of results.json are left out ({len(given) - len(results)})")
        return results
    except FileNotFoundError:
        notes.append("results.json is missing: the tables are made from the runs, without the gap closed")
    except (OSError, ValueError, TypeError, RecursionError):
        notes.append("results.json is damaged: the tables are made from the runs, without the gap closed")
    return []


def _is_result(result: Any) -> bool:
    """Whether an entry says which run it is of."""
    return (
        isinstance(result, dict)
        and isinstance(result.get("variant"), str)
        and isinstance(result.get("seed"), int | str)
    )


def _usable(result: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """A result without what is not a figure; what says how it was trained is kept if it has the right form."""
    named: dict[str, Any] = {key: result[key] for key in ("variant", "seed", "oracle") if key in result}
    strategy = result.get("strategy")
    if isinstance(strategy, dict) and all(is_figure(strategy.get(key)) for key in ("positive", "negative")):
        named["strategy"] = strategy
    given = {key: value for key, value in result.items() if key in (*FIGURES, "few_label_sd", "test_images")}
    kept, dropped = figures(given)
    dropped += "strategy" in result and strategy is not None and "strategy" not in named
    if dropped:
        run = f"{result['variant']}, seed {result['seed']}"
        notes.append(f"{run}: unusable values in results.json are left out ({dropped})")
    return named | kept


def _read_runs(folder: Path, order: list[str], notes: list[str]) -> dict[str, dict[str, RunRecord]]:
    """Runs by variant and seed."""
    found = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    runs: dict[str, dict[str, RunRecord]] = {}
    for variant in [name for name in dict.fromkeys([*order, BASELINE, *found]) if name in found]:
        seeds = [path for path in (folder / variant).glob("seed-*") if is_run(path)]
        for path in sorted(seeds, key=lambda path: (len(path.name), path.name)):
            seed = path.name.removeprefix("seed-")
            run = runs.setdefault(variant, {})[seed] = read_run(path, f"{variant}, seed {seed}", notes)
            if not run.finished:
                notes.append(f"{run.name} has not finished, so it is left out of tables and verdicts")
    return runs


def _result(variant: str, seed: str, run: RunRecord) -> dict[str, Any]:
    """A line of results.json, as far as a run's own figures go."""
    figures = {**run.last, **(run.final or {})}
    return {"variant": variant, "seed": seed, **{key: value for key, value in figures.items() if key != "kind"}}
