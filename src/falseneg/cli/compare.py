"""``falseneg compare``: several treatments of false negatives under the same budget."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from falseneg.cli.configuration import (
    Configuration,
    build,
    check,
    device_of,
    open_data,
    run_settings,
    settle,
    to_yaml,
    uses_gpu,
)
from falseneg.cli.messages import sentence
from falseneg.cli.parser import configuration_files, run_parser
from falseneg.cli.trusting import trust, trusted
from falseneg.cli.variants import check_known, classes_of
from falseneg.compare.comparison import Comparison, claimed, finished, read_comparison
from falseneg.compare.display import display, show_tables
from falseneg.compare.other_runs import with_runs
from falseneg.compare.results import collect, write_results
from falseneg.compare.summary import ACCURACIES, PRIMARY
from falseneg.compare.tables import tables
from falseneg.compare.tasks import Task, run_tasks, warm_up
from falseneg.compare.variants import BY_DEFAULT, NAMES, Overrides, changed, named_variants, two_towers
from falseneg.data import ImageSet, inspect
from falseneg.data.inspection import without_advice
from falseneg.errors import UserError
from falseneg.evaluation import Retrieval
from falseneg.foreign.text import read_yaml
from falseneg.train.defaults import Circumstances, available_cores
from falseneg.train.forecast import forecast
from falseneg.train.plan import LOOKED_AT, make_plan
from falseneg.train.processes import processes_of
from falseneg.train.progress import duration
from falseneg.train.run import INCIDENTAL

ABOUT = (
    "Train variants that differ only in how they treat false negatives, with several seeds, and compare them. Without "
    "options it compares none, FNC, IFND, GloFND, a second pass and the true labels on handwritten digits in a few minutes. If "
    "it is stopped, the same command continues where it left off."
)
OPTIONS: dict[str, dict[str, Any]] = {
    "out": {"type": Path | None, "metavar": "DIR", "help": "the folder of the comparison (default: compare-DATA)"},
    "seeds": {
        **{"type": int, "nargs": "+", "default": [0, 1, 2, 3, 4], "metavar": "SEED"},
        "help": "each variant is run once with each of them, instead of --seed",
    },
    "variants": {
        **{"nargs": "+", "metavar": "NAME"},
        "help": f"what to compare: any of {', '.join(NAMES)} (default: {', '.join(BY_DEFAULT)}), and any variant that a "
        "configuration file describes, where this is a mapping from each name to the options in which it differs",
    },
    "primary": {
        **{"type": str | None, "metavar": "ACCURACY"},
        "help": f"the measure that decides what helped: {', '.join(ACCURACIES)}. It is fixed by the first run; the others "
        f"are only shown (default: {PRIMARY}; for images with captions {Retrieval.key})",
    },
    "minutes": {
        "type": float | None,
        "help": "about how long all runs together should take: sets --epochs to match, by trying a few images with each variant",
    },
    "jobs": {"type": int | None, "help": "runs at a time (default: one for each core, at most 4; one on a GPU)"},
}
MOST_JOBS = 4
EVALUATE_EVERY = "5%"
"""Of the training: how often accuracy is measured during it by default."""
SOME_FAILED = 1
PRELOAD = (
    *("falseneg.cli.compare", "falseneg.train.pretrain", "timm", "lightning_fabric", "torchvision.transforms.v2"),
    *("pyarrow.parquet", "sklearn.datasets"),
)


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = run_parser("compare", ABOUT)
    for name, details in OPTIONS.items():
        parser.add_argument(f"--{name}", **details)
    if not any(argument.startswith(("--data", "--config")) for argument in arguments):
        arguments = ["--config", "digits", *arguments]
    options = parser.parse_args(arguments)
    settings = run_settings(parser, options)
    own = _own_variants(arguments)
    if processes_of(settings["devices"], settings["nodes"]).number > 1:
        raise UserError(
            "compare trains each run in one process; leave --devices and --nodes out, start it without torchrun or srun, and give "
            "--jobs to train several runs at once"
        )
    if settings["evaluate"] == "later":
        raise UserError("compare needs what is measured; leave --evaluate out")
    if options["minutes"] is not None and any(each.startswith("--epochs") for each in arguments):
        raise UserError("--minutes sets the epochs; leave it out, or --epochs")
    if options["minutes"] is not None and not options["minutes"] > 0:
        raise UserError(f"--minutes is {options['minutes']}; give more than 0")
    jobs = options["jobs"] or (1 if uses_gpu(settings) else min(available_cores(), MOST_JOBS))
    if jobs < 1:
        raise UserError(f"--jobs is {jobs}; give at least 1")
    threads = max(1, available_cores() // jobs)
    warm_up(threads, PRELOAD)
    folder = options["out"] or Path(f"compare-{settings['data']['class_path'].rsplit('.', 1)[-1].lower()}")
    begun = read_comparison(folder)
    if options["minutes"] is not None and begun is not None:  # it was settled when the comparison began
        settings["epochs"] = begun.base["epochs"]
    facts, images = open_data(settings, threads)
    comparison = _comparison(options, own, settings, (facts, images), threads)
    if begun is None:
        _report_on(images, settings)
        epoch = _seconds_of_an_epoch(comparison, images, threads) / jobs
        if options["minutes"] is not None:
            settings["epochs"] = max(1, round(60 * options["minutes"] / epoch))
            comparison = _comparison(options, own, settings, (facts, images), threads)
        print(f"estimate: {duration(epoch * comparison.base['epochs'])} of training in all; measuring is not counted")
    with claimed(comparison, folder, INCIDENTAL) as everything:
        tasks = comparison.tasks(folder)
        epochs, runs = comparison.base["epochs"], f"{len(tasks)} runs ({len(comparison.variants)} variants)"
        print(f"{runs} of {epochs} epochs on {len(images):,} images, {jobs} at a time, in {folder}", flush=True)
        _train(tasks, folder, jobs, threads)
        return _conclude(tasks, everything, folder)


def train(configuration: Mapping[str, Any], folder: Path, resume: bool, classes: Sequence[str] = ()) -> None:
    """What each process of a comparison does.

    Args:
        configuration: of the run.
        folder: of the run.
        resume: continue from its last checkpoint.
        classes: import paths outside falseneg that the user has named.
    """
    from falseneg.train import fit

    trust(classes)
    try:
        fit(build(configuration), folder, resume=resume, configuration=to_yaml(configuration))
    except Exception as error:
        if (message := sentence(error)) is not None:
            raise UserError(message) from error
        raise


def _comparison(
    options: Namespace,
    own: Mapping[str, Overrides],
    settings: Configuration,
    there: tuple[Circumstances, ImageSet],
    threads: int,
) -> Comparison:
    """What is asked for, every part of it tried out.

    Args:
        options: of the command.
        own: what the variants change that the user describes.
        settings: that all share.
        there: what open settings depend on, and the images.
        threads: for a run.
    """
    facts, images = there
    # The images are looked through once, for all runs.
    base = {**settle(settings, facts), "seed": 0, "check_duplicates": False}
    measured = (images.labels is not None or two_towers(base)) and (base["test"] is not None or base["holdout"] > 0)
    if measured and base["evaluate_every"] is None:
        base["evaluate_every"] = EVALUATE_EVERY
    chosen = _chosen(options["variants"], own, base, images)
    variants = {}
    for name, overrides in chosen.items():
        elsewhere = "data" in overrides or "accelerator" in overrides
        variants[name] = _configured(name, changed(base, overrides), None if elsewhere else there, threads)
    primary = options["primary"] or (Retrieval.key if two_towers(base) else PRIMARY)
    return Comparison(base, variants, list(dict.fromkeys(options["seeds"])), primary)


def _seconds_of_an_epoch(comparison: Comparison, images: ImageSet, threads: int) -> float:
    """Seconds of training that an epoch of all runs takes, one after the other, with so many threads."""
    before, total = torch.get_num_threads(), 0.0
    base = comparison.base
    # What is learned from is found once, and then nothing is left to look through or to set aside.
    train = make_plan(build(with_runs(base, None), images), uses_gpu(base), resumed=True, say=lambda _: None).train
    settled = {"skip_unreadable": False, "holdout": 0.0, "test": None, "evaluate_every": None}
    torch.set_num_threads(threads)
    try:
        for configuration in comparison.variants.values():
            gpu, shared = uses_gpu(configuration), configuration["data"] == base["data"]
            device = device_of(configuration)
            configuration = with_runs(configuration, None)
            run = build({**configuration, **settled}, train) if shared else build(configuration)
            run.method.to(device)
            total += forecast(run, make_plan(run, gpu, resumed=True, say=lambda _: None), device)[0]
    finally:
        torch.set_num_threads(before)
    return total * len(comparison.seeds)


def _chosen(
    asked: Any, own: Mapping[str, Overrides], base: Mapping[str, Any], images: ImageSet
) -> dict[str, Overrides]:
    """What the variants that are asked for change.

    Args:
        asked: names; None for the usual ones.
        own: what the variants change that the user describes.
        base: the configuration that all share, with nothing left open.
        images: to learn from.
    """
    classes, known = classes_of(images), named_variants(base, len(images))
    usual = [name for name in BY_DEFAULT if classes or not name.startswith("oracle")]
    usual = [name for name in usual if name != "second-pass" or not two_towers(base)]
    if asked is None and not classes:
        print("the images have no labels, so there is no oracle to compare with")
    chosen = {}
    for name in map(str, usual if asked is None else asked):
        if name not in own:
            check_known(name, [*NAMES, *own], known, classes, two_towers(base))
        chosen[name] = own.get(name, known.get(name, {}))
    return chosen


def _own_variants(arguments: Sequence[str]) -> dict[str, Overrides]:
    """The variants that the configuration files describe: where ``variants`` is a mapping, those with something in it."""
    own: dict[str, Overrides] = {}
    for path in configuration_files(arguments):
        content = read_yaml(path)
        variants = content.get("variants") if isinstance(content, dict) else None
        if variants is None or isinstance(variants, list):
            continue
        if not isinstance(variants, dict) or not all(isinstance(each, dict | None) for each in variants.values()):
            raise UserError(
                f"the variants in {path} are neither a list of names nor a mapping; write names, and below each the options in "
                "which it differs"
            )
        own |= {str(name): overrides for name, overrides in variants.items() if overrides is not None}
    return own


def _configured(
    name: str, settings: Mapping[str, Any], there: tuple[Circumstances, ImageSet] | None, threads: int
) -> Configuration:
    """The whole configuration of a variant, tried out, so that a mistake shows before anything is trained.

    Args:
        name: of the variant.
        settings: of the variant.
        there: what open settings depend on, and the images, if the variant learns from the same images as all.
        threads: for a run.
    """
    try:
        configuration = check(settings)
        facts, images = there or open_data(configuration, threads)
        configuration = settle(configuration, facts)
        build({**with_runs(configuration, None), "test": None}, images).check()
    except UserError as error:
        raise UserError(f"variant {name}: {error}") from error
    return configuration


def _report_on(images: ImageSet, settings: Mapping[str, Any]) -> None:
    """Say once what the runs would each say of the images.

    Raises:
        UserError: an image cannot be read, and such images are not to be left out.
    """
    duplicates = settings["check_duplicates"]
    found = inspect(images, limit=LOOKED_AT, check_duplicates=duplicates, check_captions=two_towers(settings))
    if found.unreadable and not settings["skip_unreadable"]:
        raise UserError(f"{without_advice(found.unreadable[0])}; --skip-unreadable true leaves such images out")
    for text in found.sentences():
        print(text, flush=True)


def _train(tasks: list[Task], folder: Path, jobs: int, threads: int) -> None:
    try:
        with display(tasks, jobs) as shown:
            run_tasks(tasks, partial(train, classes=trusted()), jobs, threads, shown.update)
    except KeyboardInterrupt:
        print(f"\nstopped; the same command continues it (in {folder})", file=sys.stderr)
        raise


def _conclude(tasks: Sequence[Task], everything: Comparison, folder: Path) -> int:
    """Write the results and the report, show the tables, and say what failed."""
    from falseneg.report import write_report

    results = collect(finished(everything, folder))
    if results:
        show_tables(tables(write_results(folder, results, everything.primary)))
        print(f"the report is {write_report(folder)}")
    failed = [task for task in tasks if task.state == "failed"]
    for task in failed:
        print(f"falseneg: {task.variant}, seed {task.seed} failed: {task.error}", file=sys.stderr)
    return SOME_FAILED if failed else 0
