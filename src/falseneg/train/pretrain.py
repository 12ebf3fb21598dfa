"""Pretraining from options to an exported encoder."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from falseneg.clock import Clock
from falseneg.errors import UserError
from falseneg.files import LOCK, write_bytes
from falseneg.models import Encoder
from falseneg.train.checkpoint import (
    LAST,
    check_settings,
    damage_said,
    epochs_to_extend,
    load_checkpoint,
    load_module,
    make_last,
    newest_checkpoint,
    seed_all,
)
from falseneg.train.compiled import check_compiler, compile_networks, uncompiled
from falseneg.train.describe import describe, farewell
from falseneg.train.folder import about, claimed, final_figures, go_on_after, write_about
from falseneg.train.guards import determinism, in_one_sentence
from falseneg.train.loop import train
from falseneg.train.metrics import Metrics, further_loggers
from falseneg.train.names import (
    ABOUT,
    CHECKPOINTS,
    CONFIG,
    ENCODER,
    FLAGGED,
    METRICS,
    PAIRS,
    PER_SAMPLE,
    SIMILARITIES,
    UNREADABLE,
)
from falseneg.train.observers import Observer, observers_of
from falseneg.train.plan import Plan, loader_of, make_plan, prepare_criterion, settings
from falseneg.train.processes import LongWait, check_agreement, connect
from falseneg.train.progress import Progress, Silent, default_progress
from falseneg.train.run import Run
from falseneg.train.session import Session
from falseneg.train.sharding import blank_copy, whole
from falseneg.train.state import SEED_OF_RANK, load
from falseneg.train.step import EncodeBatch, Learner

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def fit(
    run: Run,
    folder: str | Path,
    resume: bool = False,
    configuration: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Pretrain, and write the run's folder.

    Args:
        run: the parts and the options.
        folder: the run's folder; made if it is not there.
        resume: continue the run in that folder from its last checkpoint. A finished run stays as it is, unless it is to have
            more epochs; from there on its schedules are those of a run of so many.
        configuration: the full configuration as YAML, to be stored as config.yaml.
        progress: shows how it goes; None is a bar on a terminal, lines elsewhere.

    Returns:
        The figures of the "final" line of metrics.jsonl: seconds, seconds_per_epoch, peak_memory_mib, and, where there
        are labels and a test set, knn, linear, few_label, few_label_sd, test_images (the labelled ones), and start_knn,
        start_linear, start_few_label of the encoder before training.

    Raises:
        UserError: something that the user can fix, in one sentence; checkpoints stay as they were.
        SystemExit: a signal asked to stop (status 130 or 143); the run is saved then.
    """
    folder = Path(folder)
    run.check()
    fabric = connect(run)
    shown = (progress or default_progress()) if fabric.is_global_zero else Silent()
    if run.compile_encoder:
        check_compiler(fabric.device, shown.message)
    with in_one_sentence(), contextlib.ExitStack() as held:
        if fabric.is_global_zero:
            held.enter_context(claimed(folder, resume))
        if resume and (figures := final_figures(folder, run.epochs)) is not None:
            return figures
        fabric.launch()
        with determinism(run.deterministic, about(folder).get("threads") if resume else None):
            session, observers = _start(run, folder, resume, configuration, fabric, shown)
            train(session, observers)
            with uncompiled(run.compile_encoder), whole(session):
                return _finish(session, observers)


def _start(
    run: Run, folder: Path, resume: bool, configuration: str | None, fabric: Fabric, progress: Progress
) -> tuple[Session, list[Observer]]:
    """Everything in place for the next step, the first or the one after the checkpoint."""
    found = newest_checkpoint(folder / CHECKPOINTS, progress.message) if resume else None
    last, stored = found or (folder / CHECKPOINTS / LAST, None)
    plan = make_plan(run, fabric.device.type != "cpu", stored is not None, progress.message)
    criterion = prepare_criterion(run, plan)
    if run.init_from is not None and stored is None:
        _initialise(run, Path(run.init_from))
    if stored is None:
        seed_all(run.seed + SEED_OF_RANK * fabric.global_rank)
    made = settings(run, plan)
    step = "none" if stored is None else str(stored["step"])
    there = "there" if (folder / LOCK).exists() else "missing"
    check_agreement(fabric, {**made, "checkpoint": step, "folder": there, "fsdp": str(run.fsdp)})
    learner = _learner(run, plan, criterion, fabric)
    loader, sampler = loader_of(run, plan, fabric)
    if stored is not None:
        with damage_said(last):
            _check_continued(fabric, folder, made, stored)
        if fabric.is_global_zero:
            make_last(last)
    facts = {"images": len(plan.train), "small_stem": getattr(run.method.encoder, "small_stem", None)}
    facts |= {"threads": torch.get_num_threads(), "settings": made, "processes": fabric.world_size}
    metrics = _open_files(run, plan, folder, stored, configuration, facts, resume) if fabric.is_global_zero else None
    clock = Clock(0, sampler.batches_per_epoch, plan.epochs)
    state = (loader, sampler, metrics, progress, made, plan.peak_rate, LongWait(fabric), clock)
    session = Session(run, plan, folder, learner, *state)
    observers = observers_of(session)
    describe(session)
    if run.compile_encoder:
        compile_networks(run.method)  # not for the few images of the estimate
    if stored is not None:
        with damage_said(last):
            load(session, observers, stored)
        progress.message(f"continuing after step {session.clock.step} of {session.clock.total_steps}")
    return session, observers


def _check_continued(fabric: Fabric, folder: Path, made: dict[str, str], stored: dict[str, Any]) -> None:
    """Refuse to continue another run. One that goes on beyond its epochs keeps what it has exported and measured."""
    before = epochs_to_extend(made, stored["settings"])
    check_settings(made, stored["settings"])
    stored["metrics"] = max(0, int(stored["metrics"]))
    if before is not None and fabric.is_global_zero:
        stored["metrics"] = go_on_after(folder, before, stored["metrics"])


def _learner(run: Run, plan: Plan, criterion: nn.Module, fabric: Fabric) -> Learner:
    """Modules on their devices, and the optimiser."""
    method = run.method
    suitable = fabric.device.type == "cuda" and not method.shuffle_groups
    wanted = suitable if run.sync_batch_norm is None else run.sync_batch_norm
    if fabric.world_size > 1 and wanted:
        # Statistics of a rank's own views would let the encoder tell positives by them (SimCLR, section 2.2).
        nn.SyncBatchNorm.convert_sync_batchnorm(method)
    blank = blank_copy(method) if run.fsdp else None
    encoding = fabric.setup_module(EncodeBatch(method))
    criterion.to(fabric.device)
    optimiser = fabric.setup_optimizers(run.optimiser.build([method, criterion], plan.batch_size))
    if fabric.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(fabric.device)
    else:
        with contextlib.suppress(OSError):  # so that the peak is this run's, on Linux
            Path("/proc/self/clear_refs").write_text("5")
    parts = (method, encoding, criterion, optimiser, blank, run.gather_across_devices)
    return Learner(fabric, *parts)  # type: ignore[arg-type]


def _open_files(
    run: Run,
    plan: Plan,
    folder: Path,
    stored: dict[str, Any] | None,
    configuration: str | None,
    facts: dict[str, Any],
    resume: bool,
) -> Metrics:
    """run.json, config.yaml and metrics.jsonl."""
    if stored is not None:
        described = about(folder)
        if described:
            described |= {"settings": facts["settings"], "processes": facts["processes"]}
            write_bytes(folder / ABOUT, (json.dumps(described, indent=2) + "\n").encode())
            if configuration is not None and (folder / CONFIG).is_file():  # with the epochs that it goes on to
                write_bytes(folder / CONFIG, configuration.encode())
    else:
        if configuration is not None:  # first: a run that is killed from here on can be resumed
            write_bytes(folder / CONFIG, configuration.encode())
        described = write_about(folder, run.seed, facts, resume)
        if plan.unreadable:
            write_bytes(
                folder / UNREADABLE,
                "".join(f"{each}\n" for each in plan.unreadable).encode("utf-8", "backslashreplace"),
            )
        for name in (METRICS, FLAGGED, PAIRS, SIMILARITIES):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / PER_SAMPLE, ignore_errors=True)
    loggers = further_loggers(run.loggers, folder, described.get("id", folder.name), facts["settings"])
    return Metrics(folder, stored["metrics"] if stored is not None else 0, loggers)


def _initialise(run: Run, path: Path) -> None:
    """Start from weights: of an exported encoder, or of another run's method.

    Raises:
        UserError: there are no weights, or they are of another model.
    """
    if path.is_dir():
        options = (path / CHECKPOINTS / LAST, path / ENCODER)
        path = next((option for option in options if option.is_file()), path)
    if path.suffix == ".safetensors":
        load_module(run.method.encoder, Encoder.load(path).state_dict(), "encoder")
    elif path.is_file():
        with damage_said(path):
            load_module(run.method, load_checkpoint(path)["method"], "method")
    else:
        raise UserError(
            f"init_from is {path}, which holds no weights; give an encoder.safetensors or the folder of a run"
        )
    run.method.after_loading()


def _finish(session: Session, observers: Sequence[Observer]) -> dict[str, Any]:
    """Export the encoder, measure it, and write what the report shows. Only the first rank does."""
    figures: dict[str, Any] = {}
    if session.metrics is not None:
        figures["seconds"] = session.seconds
        figures["seconds_per_epoch"] = session.seconds / session.clock.epochs
        figures["peak_memory_mib"] = peak_memory(session.fabric.device)
        temperature = session.learner.criterion.temperature
        session.learner.method.export(session.folder, temperature.of_all())  # first: measuring may take long
        for observer in observers:
            figures |= observer.finish(session)
        session.metrics.write("final", figures)
        session.metrics.close()
        farewell(session, figures)
    session.wait_for_first()
    return {key: value for key, value in figures.items() if value is not None}


def peak_memory(device: torch.device) -> float | None:
    """The most memory used so far, in MiB: of the GPU, or of this process; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
