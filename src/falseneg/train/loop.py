"""The training loop."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from falseneg.batch import Batch
from falseneg.clock import Duration, due
from falseneg.errors import UserError
from falseneg.files import write_bytes
from falseneg.train.checkpoint import LAST
from falseneg.train.compiled import uncompiled
from falseneg.train.embeddings import Passes
from falseneg.train.guards import Stopped, StopRequests, end_workers, lost_loader
from falseneg.train.metrics import over_ranks
from falseneg.train.names import CHECKPOINTS, NOT_FINITE
from falseneg.train.observers import Figures, Observer
from falseneg.train.optimisers import rate_factor
from falseneg.train.progress import duration
from falseneg.train.session import Session, Stepped
from falseneg.train.sharding import whole
from falseneg.train.state import save
from falseneg.train.step import NotFinite, start_fetching, training_step

TOLD_AFTER = 10.0
"""Seconds that a detector may take before an epoch without a word."""


def train(session: Session, observers: Sequence[Observer]) -> None:
    """All epochs that are left.

    Raises:
        SystemExit: a signal asked to stop; the run is saved then.
        UserError: the loss is not finite, or the disk refuses.
    """
    session.learner.method.train()
    session.learner.criterion.train()
    try:
        with StopRequests() as stop, session.progress:
            while session.clock.step < session.clock.total_steps:
                _Epoch(session, observers, stop).train()
    except (RuntimeError, UserError) as error:
        if not (stop.wanted and lost_loader(error)):
            raise
        # The signal went to all processes, and ended those that load images for measuring.
        session.progress.message(
            f"stopped by a signal; --resume continues from the last checkpoint in {session.folder}"
        )
        raise SystemExit(128 + stop.wanted) from None
    finally:
        end_workers(session.loader)


class _Epoch:
    """What is left of the current epoch."""

    def __init__(self, session: Session, observers: Sequence[Observer], stop: StopRequests) -> None:
        self.session, self.observers, self.stop = session, observers, stop

    def train(self) -> None:
        session = self.session
        started = time.perf_counter()
        epoch, start_batch = divmod(session.clock.step, session.clock.steps_per_epoch)
        if start_batch == 0:
            with uncompiled(session.run.compile_encoder), whole(session):
                for observer in self.observers:
                    observer.start_epoch(session)
                session.wait_for_first()
                started = time.perf_counter()
                self._start_detector()
        session.sampler.set_epoch(epoch, start_batch)
        for batch in self._batches():
            # Of several processes asked before the step: the answer is there at its end, and not one more to wait for.
            asked = self._asked()
            stepped = self._step(batch)
            session.seconds += time.perf_counter() - started
            after_step(session, self.observers, stepped)
            self._stop_if_asked(asked)
            started = time.perf_counter()

    def _step(self, batch: Batch) -> Stepped | None:
        try:
            return step(self.session, batch)
        except NotFinite as problem:
            skip(self.session, self.observers, problem)
            return None

    def _start_detector(self) -> None:
        """What the detector does before an epoch. It may take long: a signal does not wait for its end.

        What is broken off is started again by the resumed run, at the same place. Several processes have to agree on a stop:
        they do so after each batch of a pass over the data set, and at the end.
        """
        session, alone = self.session, self.session.fabric.world_size == 1

        passes = Passes(session, lambda: None if alone else self._stop_if_asked(self._asked()))
        started = time.perf_counter()
        try:
            with contextlib.suppress(Stopped), self.stop.at_once() if alone else contextlib.nullcontext():
                session.learner.criterion.detector.start_epoch(passes, session.clock)
            self._stop_if_asked(self._asked())  # which all processes reach before the embeddings go
        finally:
            passes.remove()
        if (seconds := time.perf_counter() - started) >= TOLD_AFTER:
            session.progress.message(f"the detector looked at all images for {duration(seconds)}")

    def _batches(self) -> Iterator[Batch]:
        """What is left of the epoch. Where a batch cannot be made, the run is saved before it ends.

        One process can: of several, the others already wait for this one in their step.
        """
        session = self.session
        try:
            yield from session.loader
        except UserError as error:
            if session.fabric.world_size > 1 or self.stop.wanted:
                raise
            save(session, self.observers)
            at = f"step {session.clock.step} of {session.clock.total_steps}"
            raise UserError(f"{error}; the run is saved after {at}, and --resume continues it") from error

    def _asked(self) -> Callable[[], float]:
        """The signal that has come, 0 for none: when it is looked at, or, of several processes, to any of them by now."""
        fabric = self.session.fabric
        if fabric.world_size == 1:
            return lambda: self.stop.wanted
        # They have to agree: a signal may reach them at different steps.
        fetched = start_fetching(over_ranks(fabric, torch.full((1,), self.stop.wanted, device=fabric.device), "max"))
        return lambda: fetched()[0]

    def _stop_if_asked(self, asked: Callable[[], float]) -> None:
        session, wanted = self.session, int(asked())
        if wanted and session.clock.step < session.clock.total_steps:
            save(session, self.observers)
            session.progress.message(
                f"stopped by a signal after step {session.clock.step} of {session.clock.total_steps} and saved; the same "
                f"command with --resume continues it (the run is in {session.folder})"
            )
            raise SystemExit(128 + wanted)


def step(session: Session, batch: Batch) -> Stepped:
    """One optimiser step; the clock stays where it was."""
    clock, run = session.clock, session.run
    warmup = Duration.parse(run.warmup).steps(clock.steps_per_epoch, clock.epochs)
    rate = session.peak_rate * rate_factor(clock.step, warmup, clock.total_steps)
    for group in session.learner.optimiser.param_groups:
        group["lr"] = rate
    batch = batch.to(session.fabric.device, non_blocking=True)
    return Stepped(clock, rate, *training_step(session.learner, batch, clock, run.accumulate))


def skip(session: Session, observers: Sequence[Observer], problem: NotFinite) -> None:
    """Pass over a step that must not be taken, if that is wished for; otherwise save where it stands, and stop.

    Raises:
        UserError: steps like this are not to be skipped, or no more of them.
    """
    step, run = session.clock.step + 1, session.run
    found = (
        f"the loss became {problem.loss}" if not math.isfinite(problem.loss) else "a gradient became infinite or NaN"
    )
    largest = f"the largest gradient is {problem.gradient:g}, of {problem.name}"
    session.skipped += 1
    broken = _left_in_buffers(session)
    if session.skipped <= run.skip_not_finite and not broken:
        session.learner.optimiser.zero_grad(set_to_none=True)
        left = run.skip_not_finite - session.skipped
        session.progress.message(f"warning: {found} at step {step}, which is skipped ({largest}; {left} more may be)")
        return
    save(session, observers, [f"{NOT_FINITE}.pt"])
    if session.metrics is not None:
        about = {"step": step, "loss": str(problem.loss), "largest_gradient": str(problem.gradient)}
        text = json.dumps({**about, "of": problem.name, "rows": problem.rows}) + "\n"
        write_bytes(session.folder / CHECKPOINTS / f"{NOT_FINITE}.json", text.encode())
    if broken:
        found += f" and has reached {broken}, so that the step cannot be skipped,"
    raise UserError(
        f"{found} at step {step}; lower the learning rate, lengthen the warm-up, raise the temperature or train with precision "
        "32-true, and resume from the last checkpoint, or pass over such steps with --skip-not-finite 3 "
        f"({largest}; {CHECKPOINTS}/{NOT_FINITE}.pt holds the state before the step, {NOT_FINITE}.json the rows of its images)"
    )


def _left_in_buffers(session: Session) -> str:
    """The first of the method's buffers that is not finite on any rank, such as a mean of BatchNorm: it would stay so."""
    buffers = {name: each for name, each in session.learner.method.named_buffers() if each.is_floating_point()}
    if not buffers:
        return ""
    bad = torch.stack([~each.isfinite().all() for each in buffers.values()]).float()
    bad = over_ranks(session.fabric, bad, "max")
    return next((name for name, each in zip(buffers, bad.tolist(), strict=True) if each), "")


def after_step(session: Session, observers: Sequence[Observer], stepped: Stepped | None) -> None:
    """Move the clock on; observe, and save what is due. A step that was skipped (None) has nothing to observe."""
    before, session.clock = session.clock, replace(session.clock, step=session.clock.step + 1)
    clock, run = session.clock, session.run
    if stepped is not None:
        for observer in observers:
            observer.after_step(session, stepped)
    if clock.step % clock.steps_per_epoch == 0:
        with uncompiled(run.compile_encoder), whole(session):
            _end_epoch(session, observers, before.epoch + 1)
    keep = due(run.keep_every, before.step, clock)
    if keep or due(run.checkpoint_every, before.step, clock) or clock.step == clock.total_steps:
        # The one that stays first: a run that is killed in between makes it again.
        save(session, observers, [f"step-{clock.step:08d}.pt", LAST] if keep else [LAST])


def _end_epoch(session: Session, observers: Sequence[Observer], epoch: int) -> None:
    """The line of an epoch, counted from 1."""
    figures: Figures = {"epoch": epoch, "step": session.clock.step}
    for observer in observers:
        figures |= observer.end_epoch(session, epoch)
    session.wait_for_first()
    if session.metrics is not None:
        session.metrics.write("epoch", figures)
        session.progress.epoch(session.clock, figures)
