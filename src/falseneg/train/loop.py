"""The training loop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from falseneg.clock import Clock, Duration
from falseneg.data import ImageSet, Subset, ViewLoader
from falseneg.data.loader import EpochSampler
from falseneg.errors import UserError
from falseneg.losses import Judged
from falseneg.methods.base import Views
from falseneg.train.checkpoint import load_module, random_states, restore_random_states, save_checkpoint
from falseneg.train.compiled import uncompiled
from falseneg.train.embeddings import all_embeddings, remove_embeddings
from falseneg.train.folder import CHECKPOINTS
from falseneg.train.guards import Stopped, StopRequests, end_workers, lost_loader
from falseneg.train.metrics import Meter, Metrics, over_ranks
from falseneg.train.optimisers import rate_factor
from falseneg.train.per_sample import sample_figures
from falseneg.train.prepare import Prepared, labels_on
from falseneg.train.progress import Progress, duration
from falseneg.train.record import Recorder, recorded_epochs
from falseneg.train.run import Run
from falseneg.train.step import Learner, on_its_way, training_step

TOLD_AFTER = 10.0
"""Seconds that a detector may take before an epoch without a word."""


@dataclass
class Training:
    """A run on its way.

    Attributes:
        run: its options.
        data: its data, and the settings that were left open.
        folder: where it writes.
        learner: what is trained.
        loader: batches of views.
        sampler: says which epoch the loader goes through, and from where.
        metrics: the file, on the first rank only.
        progress: what a person sees.
        settings: what the checkpoint is checked against when the run is continued.
        peak_rate: the learning rate after warm-up.
        seconds: spent on training so far, without measuring and recording.
    """

    run: Run
    data: Prepared
    folder: Path
    learner: Learner
    loader: ViewLoader
    sampler: EpochSampler
    metrics: Metrics | None
    progress: Progress
    settings: dict[str, str]
    peak_rate: float
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.fabric = self.learner.fabric
        self.clock = Clock(0, self.sampler.batches_per_epoch, self.data.epochs)
        self.labels = labels_on(self.fabric.device, self.data.train)
        rows, steps = len(self.data.train), self.clock.steps_per_epoch
        self.recorder = Recorder(self.folder, self.labels, rows, steps, self.run.seed, self.fabric.device)
        self.recorded = recorded_epochs(self.clock.epochs)
        self.window, self.of_epoch = Meter(), Meter()
        self.window_seconds = self.epoch_seconds = 0.0
        self.session_steps, self.session_seconds = 0, 0.0

    def train(self) -> None:
        """All epochs that are left.

        Raises:
            SystemExit: a signal asked to stop; the run is saved then.
            UserError: the loss is not finite, or the disk refuses.
        """
        self.learner.method.train()
        self.learner.criterion.train()
        try:
            with StopRequests() as stop, self.progress:
                while self.clock.step < self.clock.total_steps:
                    self._epoch(stop)
        except (RuntimeError, UserError) as error:
            if not (stop.wanted and lost_loader(error)):
                raise
            # The signal went to all processes, and ended those that load images for measuring.
            self.progress.message(f"stopped by a signal; --resume continues from the last checkpoint in {self.folder}")
            raise SystemExit(128 + stop.wanted) from None
        finally:
            end_workers(self.loader)

    def _epoch(self, stop: StopRequests) -> None:
        """What is left of the current epoch."""
        started = time.perf_counter()
        epoch, start_batch = divmod(self.clock.step, self.clock.steps_per_epoch)
        if start_batch == 0:
            with uncompiled(self.run.compile_encoder):
                self._start_epoch(stop)
        self.sampler.set_epoch(epoch, start_batch)
        for views in self.loader:
            # Of several processes asked before the step: the answer is there at its end, and not one more to wait for.
            asked = self._asked(stop)
            loss, judged = self._step(views)
            self._count_time(time.perf_counter() - started)
            self._after_step(loss, judged)
            self._stop_if_asked(asked)
            started = time.perf_counter()

    def _start_epoch(self, stop: StopRequests) -> None:
        """What the detector does before an epoch. It may take long: a signal does not wait for its end.

        What is broken off is begun anew by the resumed run, at the same place. Several processes have to agree on a stop:
        they do so after each batch of a pass over the data set, and at the end.
        """
        alone = self.fabric.world_size == 1

        def embeddings() -> Tensor:
            return all_embeddings(self, lambda: None if alone else self._stop_if_asked(self._asked(stop)))

        started = time.perf_counter()
        try:
            with contextlib.suppress(Stopped), stop.at_once() if alone else contextlib.nullcontext():
                self.learner.criterion.detector.start_epoch(embeddings, self.clock)
            self._stop_if_asked(self._asked(stop))  # which all processes reach before the embeddings go
        finally:
            remove_embeddings(self)
        if (seconds := time.perf_counter() - started) >= TOLD_AFTER:
            self.progress.message(f"the detector looked at all images for {duration(seconds)}")

    def _step(self, views: Views) -> tuple[float, list[Judged]]:
        warmup = Duration.parse(self.run.warmup).steps(self.clock.steps_per_epoch, self.clock.epochs)
        self.rate = self.peak_rate * rate_factor(self.clock.step, warmup, self.clock.total_steps)
        for group in self.learner.optimiser.param_groups:
            group["lr"] = self.rate
        views = views.to(self.fabric.device, non_blocking=True)
        return training_step(self.learner, views, self.clock, self.run.accumulate)

    def _count_time(self, seconds: float) -> None:
        self.seconds += seconds
        self.window_seconds += seconds
        self.epoch_seconds += seconds
        self.session_seconds += seconds
        self.session_steps += 1

    def _after_step(self, loss: float, judged: list[Judged]) -> None:
        """Measure, log, record, evaluate, save: whatever is due."""
        before, self.clock = self.clock, replace(self.clock, step=self.clock.step + 1)
        meter = Meter.of_step(loss, judged, self.labels)
        self.window, self.of_epoch = self.window + meter, self.of_epoch + meter
        if before.epoch + 1 in self.recorded and self.metrics is not None:
            self.recorder.add(judged)
        if self.clock.step == 1 or self.clock.step % self.run.log_every == 0:
            self._log_step(judged)
        else:
            self.progress.advance(self.clock)
        if self.clock.step % self.clock.steps_per_epoch == 0:
            with uncompiled(self.run.compile_encoder):
                self._end_epoch(before)
        keep = self._due(self.run.keep_every, self.clock.step - 1)
        if (
            keep
            or self._due(self.run.checkpoint_every, self.clock.step - 1)
            or self.clock.step == self.clock.total_steps
        ):
            self.save(keep)

    def _log_step(self, judged: list[Judged]) -> None:
        """A line over the steps since the line before."""
        pooled = self.window.pooled(self.fabric)
        figures = {"step": self.clock.step, "epoch": self.clock.step / self.clock.steps_per_epoch, **pooled.figures()}
        with torch.no_grad():
            taus = [self.learner.criterion.temperature(contrast).mean() for contrast, *_ in judged]
        figures |= {"learning_rate": self.rate, "temperature": float(torch.stack(taus).mean())}
        figures["images_per_second"] = pooled.steps * self.data.batch_size / max(self.window_seconds, 1e-9)
        if self.metrics is not None:
            self.metrics.write("step", figures)
        per_step = self.session_seconds / self.session_steps
        self.progress.step(self.clock, figures, per_step * (self.clock.total_steps - self.clock.step))
        self.window, self.window_seconds = Meter(), 0.0

    def _end_epoch(self, before: Clock) -> None:
        """The line of an epoch, over all its steps; ``before`` is the clock of its last step."""
        epoch = before.epoch + 1
        pooled = self.of_epoch.pooled(self.fabric)
        figures = {"epoch": epoch, "step": self.clock.step, "seconds": self.epoch_seconds, **pooled.figures()}
        if (
            self._due(self.run.evaluate_every, self.clock.step - self.clock.steps_per_epoch)
            and self.metrics is not None
        ):
            figures |= self.accuracy()
        figures |= sample_figures(self, epoch)
        if self.metrics is not None:
            if epoch in self.recorded:
                self.recorder.end_epoch(epoch)
            self.metrics.write("epoch", figures)
            self.progress.epoch(self.clock, figures)
        self.of_epoch, self.epoch_seconds = Meter(), 0.0

    def _due(self, every: str | None, since: int) -> bool:
        """Whether a multiple of the duration lies after step ``since`` and not after the current one."""
        if every is None:
            return False
        steps = max(1, Duration.parse(every).steps(self.clock.steps_per_epoch, self.clock.epochs))
        return self.clock.step // steps > since // steps

    def _asked(self, stop: StopRequests) -> Callable[[], float]:
        """The signal that has come, 0 for none: when it is looked at, or, of several processes, to any of them by now."""
        if self.fabric.world_size == 1:
            return lambda: stop.wanted
        # They have to agree: a signal may reach them at different steps.
        return on_its_way(over_ranks(self.fabric, torch.full((), stop.wanted, device=self.fabric.device), "max"))

    def _stop_if_asked(self, asked: Callable[[], float]) -> None:
        wanted = int(asked())
        if wanted and self.clock.step < self.clock.total_steps:
            self.save()
            self.progress.message(
                f"stopped by a signal after step {self.clock.step} of {self.clock.total_steps} and saved; the same command "
                f"with --resume continues it (the run is in {self.folder})"
            )
            raise SystemExit(128 + wanted)

    def accuracy(self) -> dict[str, float]:
        """What frozen features are worth at this moment: kNN, and the linear probe if it is asked for."""
        from falseneg.evaluation import knn_accuracy, linear_accuracy

        assert self.data.test is not None
        features = *self._features(self.data.train), *self._features(self.data.test)
        figures = {"knn": knn_accuracy(*features)}
        if self.run.evaluate_linear:
            figures["linear"] = linear_accuracy(*features)
        return figures

    def _features(self, images: ImageSet) -> tuple[Tensor, Tensor]:
        """Features and labels of the images that have a label."""
        from falseneg.evaluation import extract_features

        assert images.labels is not None
        kept = Subset(images, (images.labels >= 0).nonzero().flatten())
        encoder, device, workers = self.learner.method.encoder, self.fabric.device, self.data.workers
        return extract_features(encoder, kept, self.data.size, device=device, workers=workers), images.labels[kept.rows]

    def save(self, keep: bool = False) -> None:
        """Write the checkpoint; every rank has to ask.

        Raises:
            UserError: it cannot be written; the one before stays.
        """
        state = self.state()
        if self.metrics is not None:
            save_checkpoint(
                self.folder / CHECKPOINTS, {**state, "metrics": self.metrics.position()}, self.clock.step, keep
            )
        self.fabric.barrier()

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        learner = self.learner
        return {
            "settings": self.settings,
            "step": self.clock.step,
            "method": learner.method.state_dict(),
            "criterion": learner.criterion.state_dict(),
            "optimiser": learner.optimiser.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "random": _of_all_ranks(self.fabric, random_states()),
            "window": self.window.pooled(self.fabric).state(),
            "epoch": self.of_epoch.pooled(self.fabric).state(),
            "recorder": self.recorder.state(),
            "seconds": [self.seconds, self.window_seconds, self.epoch_seconds],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there.

        Raises:
            UserError: it is the state of another configuration.
        """
        load_module(self.learner.method, state["method"], "method")
        load_module(self.learner.criterion, state["criterion"], "criterion")
        self.learner.optimiser.load_state_dict(state["optimiser"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        restore_random_states(state["random"][self.fabric.global_rank])
        first = self.fabric.is_global_zero
        self.window, self.of_epoch = Meter.of_state(state["window"], first), Meter.of_state(state["epoch"], first)
        self.recorder.load_state(state["recorder"])
        self.seconds, self.window_seconds, self.epoch_seconds = state["seconds"]
        self.clock = replace(self.clock, step=int(state["step"]))


def _of_all_ranks(fabric: Any, value: Any) -> list[Any]:
    """The value of each rank, rank after rank."""
    if fabric.world_size == 1:
        return [value]
    values: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(values, value)
    return values
