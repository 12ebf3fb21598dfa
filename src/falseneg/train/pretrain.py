"""Pretraining from options to an exported encoder."""

from __future__ import annotations

import contextlib
import random
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from falseneg.data import ViewSet, collate
from falseneg.errors import UserError
from falseneg.files import write_bytes
from falseneg.methods.base import Views
from falseneg.models import Encoder
from falseneg.train.checkpoint import LAST, check_settings, damage_said, load_checkpoint, load_module
from falseneg.train.compiled import check_compiler, compile_networks, uncompiled
from falseneg.train.estimate import estimate
from falseneg.train.folder import CHECKPOINTS, ENCODER, about, claimed, final_figures, write_about
from falseneg.train.guards import determinism, in_one_sentence
from falseneg.train.loop import Training
from falseneg.train.metrics import FILE, Metrics, further_loggers
from falseneg.train.per_sample import FOLDER as PER_SAMPLE
from falseneg.train.per_sample import write_clusters
from falseneg.train.prepare import Prepared, loader_of, prepare, prepare_criterion, settings, views_of
from falseneg.train.progress import Progress, Silent, default_progress, duration
from falseneg.train.record import write_embedding, write_thumbnails
from falseneg.train.run import Run
from falseneg.train.step import Encoding, Learner

if TYPE_CHECKING:
    from lightning_fabric import Fabric

TRIED = 2**20
"""About as many numbers (channels of pixels of views) does the estimate try; at least 4 images."""


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
        resume: continue the run in that folder from its last checkpoint; a finished run stays as it is.
        configuration: the full configuration as YAML, to be stored as config.yaml.
        progress: shows how it goes; None is a bar on a terminal, lines elsewhere.

    Returns:
        The figures of the "final" line of metrics.jsonl: seconds, seconds_per_epoch, peak_memory_mib, and, where there
        are labels and a test set, knn, linear, few_label, few_label_sd and test_images, the labelled ones.

    Raises:
        UserError: something that the user can mend, in one sentence; checkpoints stay as they were.
        SystemExit: a signal asked to stop (status 130 or 143); the run is saved then.
    """
    folder = Path(folder)
    run.check()
    fabric = _connect(run)
    shown = (progress or default_progress()) if fabric.is_global_zero else Silent()
    if run.compile_encoder:
        check_compiler(fabric.device, shown.message)
    with in_one_sentence(), contextlib.ExitStack() as held:
        if fabric.is_global_zero:
            held.enter_context(claimed(folder, resume))
        if resume and (figures := final_figures(folder)) is not None:
            return figures
        fabric.launch()
        with determinism(run.deterministic, about(folder).get("threads") if resume else None):
            training = _start(run, folder, resume, configuration, fabric, shown)
            training.train()
            with uncompiled(run.compile_encoder):
                return _finish(training)


def _connect(run: Run) -> Fabric:
    """Devices, precision and processes."""
    from lightning_fabric import Fabric

    # Fabric advises on clusters and on tensor cores; none of it is about this run.
    warnings.filterwarnings("ignore", module="lightning_fabric")
    accelerator = "cuda" if run.accelerator == "gpu" else run.accelerator
    try:
        strategy = "auto" if run.devices == 1 else "ddp"
        return Fabric(accelerator=accelerator, devices=run.devices, precision=run.precision, strategy=strategy)  # type: ignore[arg-type]
    except Exception as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot train on accelerator {run.accelerator!r}, devices {run.devices}, precision {run.precision!r}: {first}"
        ) from error


def _start(
    run: Run, folder: Path, resume: bool, configuration: str | None, fabric: Fabric, progress: Progress
) -> Training:
    """Everything in place for the next step, the first or the one after the checkpoint."""
    stored = (
        load_checkpoint(folder / CHECKPOINTS / LAST) if resume and (folder / CHECKPOINTS / LAST).is_file() else None
    )
    gpu = fabric.device.type != "cpu"
    data = prepare(run, gpu, stored is not None, progress.message)
    criterion = prepare_criterion(run, data)
    if run.init_from is not None and stored is None:
        _initialise(run, Path(run.init_from))
    if stored is None:
        _seed(run.seed + 1_000_003 * fabric.global_rank)
    made = settings(run, data, fabric.world_size)
    if stored is not None:
        with damage_said(folder / CHECKPOINTS / LAST):
            check_settings(made, stored["settings"])
    learner = _learner(run, data, criterion, fabric)
    facts = {"images": len(data.train), "small_stem": getattr(run.method.encoder, "small_stem", None)}
    facts |= {"threads": torch.get_num_threads(), "settings": made}
    metrics = _open_files(run, folder, stored, configuration, facts, resume) if fabric.is_global_zero else None
    loader, sampler = loader_of(run, data, fabric)
    rate = run.optimiser.learning_rate or run.optimiser.usual_rate(data.batch_size)
    training = Training(run, data, folder, learner, loader, sampler, metrics, progress, made, rate)
    _describe(training)
    if run.compile_encoder:
        compile_networks(run.method)  # not for the few images of the estimate
    if stored is not None:
        with damage_said(folder / CHECKPOINTS / LAST):
            training.load_state(stored)
        progress.message(f"continuing after step {training.clock.step} of {training.clock.total_steps}")
    return training


def _learner(run: Run, data: Prepared, criterion: nn.Module, fabric: Fabric) -> Learner:
    """Modules on their devices, and the optimiser."""
    method = run.method
    suitable = fabric.device.type == "cuda" and not method.shuffle_groups
    wanted = suitable if run.sync_batch_norm is None else run.sync_batch_norm
    if fabric.world_size > 1 and wanted:
        # Statistics of a rank's own views would let the encoder tell positives by them (SimCLR, section 2.2).
        nn.SyncBatchNorm.convert_sync_batchnorm(method)
    encoding = fabric.setup_module(Encoding(method))
    criterion.to(fabric.device)
    optimiser = fabric.setup_optimizers(run.optimiser.build([method, criterion], data.batch_size))
    if fabric.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(fabric.device)
    else:
        with contextlib.suppress(OSError):  # so that the peak is this run's, on Linux
            Path("/proc/self/clear_refs").write_text("5")
    return Learner(fabric, method, encoding, criterion, optimiser)  # type: ignore[arg-type]


def _open_files(
    run: Run,
    folder: Path,
    stored: dict[str, Any] | None,
    configuration: str | None,
    facts: dict[str, Any],
    resume: bool,
) -> Metrics:
    """run.json, config.yaml and metrics.jsonl."""
    if stored is not None:
        described = about(folder)
    else:
        if configuration is not None:  # first: a run that is killed from here on can be resumed
            write_bytes(folder / "config.yaml", configuration.encode())
        described = write_about(folder, run.seed, facts, resume)
        for name in (FILE, "flagged.parquet", "similarities.json"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / PER_SAMPLE, ignore_errors=True)
    loggers = further_loggers(run.loggers, folder, described.get("id", folder.name), facts["settings"])
    return Metrics(folder, int(stored["metrics"]) if stored is not None else 0, loggers)


def _seed(seed: int) -> None:
    """Start every generator that training draws from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


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


def _describe(training: Training) -> None:
    """What is about to happen, what it will take, before the first epoch."""
    run, data, say = training.run, training.data, training.progress.message
    method, clock, device = training.learner.method, training.clock, training.fabric.device
    labels, parameters = data.train.labels, sum(p.numel() for p in method.parameters() if p.requires_grad)
    known = "without labels" if labels is None else f"{len(labels[labels >= 0].unique())} classes, for measuring only"
    tested = "" if data.test is None else f", {len(data.test):,} to measure accuracy on"
    say(f"{len(data.train):,} images ({known}){tested}")
    stem = ", with the small stem (3 x 3, no pooling)" if getattr(method.encoder, "small_stem", False) else ""
    crops = "".join(
        f", {group.number} crop{'s' * (group.number > 1)} of {group.size}" for group in run.multi_crop or ()
    )
    name = getattr(method.encoder, "name", "encoder")
    say(f"{name}{stem}: {parameters:,} parameters with the head, views of {data.size} pixels{crops}")
    if caution := method.caution():
        say(caution)
    pieces = f" in {run.accumulate} pieces" if run.accumulate > 1 else ""
    epochs = f"{clock.epochs} epoch{'s' * (clock.epochs > 1)}"
    say(f"{epochs} of {clock.steps_per_epoch} steps, {data.batch_size} images each{pieces}, on {device}")

    of_rank = data.batch_size // training.fabric.world_size
    views, loading = _try_loading(views_of(run, data), of_rank)
    with training.fabric.autocast():
        needed = estimate(method, views.to(device), of_rank, run.accumulate)
    each = max(needed.seconds_per_image, loading / data.workers) if data.workers else needed.seconds_per_image + loading
    epoch = each * of_rank * clock.steps_per_epoch
    say(
        f"estimate: {duration(epoch)} an epoch, {duration(epoch * clock.epochs)} in all, "
        f"{needed.memory / 2**20:,.0f} MiB of memory beside the program itself"
    )


def _try_loading(view_set: ViewSet, most: int) -> tuple[Views, float]:
    """The views of a few images, fewer if they are large, and the seconds that each image took."""
    first = view_set[0, 0]  # loads what loading needs
    values = first.main.numel() + sum(group.numel() for group in first.support)
    images = min(max(4, TRIED // values), 64, most)
    started = time.perf_counter()
    views = collate([view_set[0, row] for row in range(images)])
    assert not isinstance(views, UserError)
    return views, (time.perf_counter() - started) / images


def _finish(training: Training) -> dict[str, Any]:
    """Export the encoder, measure it, and write what the report shows. Only the first rank does."""
    figures: dict[str, Any] = {}
    if training.metrics is not None:
        run, data, folder, encoder = training.run, training.data, training.folder, training.learner.method.encoder
        figures["seconds"] = training.seconds
        figures["seconds_per_epoch"] = training.seconds / training.clock.epochs
        figures["peak_memory_mib"] = peak_memory(training.fabric.device)
        write_embedding(folder, encoder, data.train, data.size, training.fabric.device)
        write_thumbnails(folder, data.train)
        write_clusters(folder, data.train)
        if data.test is not None:
            from falseneg.evaluation import evaluate

            training.progress.message("measuring the features: nearest neighbours, linear probe, few labels")
            device, workers = training.fabric.device, data.workers
            figures |= evaluate(
                encoder,
                data.train,
                data.test,
                data.size,
                device=device,
                workers=workers,
                seed=run.seed,
                few_labels=run.few_labels,
                few_label_draws=run.few_label_draws,
            )
            figures["test_images"] = 0 if (labels := data.test.labels) is None else int((labels >= 0).sum())
        if isinstance(encoder, Encoder):
            encoder.save(folder / ENCODER)
        training.metrics.write("final", figures)
        training.metrics.close()
        _farewell(training, figures)
    training.fabric.barrier()
    return {key: value for key, value in figures.items() if value is not None}


def _farewell(training: Training, figures: dict[str, Any]) -> None:
    say, encoder = training.progress.message, training.learner.method.encoder
    from falseneg.evaluation.few_label import few_label_name

    few = few_label_name(training.run.few_labels)
    named = (("knn", "nearest neighbours"), ("linear", "linear probe"), ("few_label", few))
    measured = [f"{name} {figures[key]:.1%}" for key, name in named if figures.get(key) is not None]
    spent = f"done in {duration(training.seconds)} of training"
    say(f"{spent}; accuracy: {', '.join(measured)}" if measured else spent)
    if isinstance(encoder, Encoder):
        say("\nfrom falseneg import Encoder")
        say(f'encoder = Encoder.load("{training.folder / ENCODER}").eval()')
        say(
            f"features = encoder(images)  # uint8 (B, 3, {training.data.size}, {training.data.size}) -> (B, {encoder.feature_dim})"
        )


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
