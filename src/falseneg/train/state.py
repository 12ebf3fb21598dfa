"""What the rest of a run depends on: saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from falseneg.train.checkpoint import LAST, load_module, random_states, restore_random_states, save_checkpoint, seed_all
from falseneg.train.names import CHECKPOINTS
from falseneg.train.observers import Observer
from falseneg.train.session import Session
from falseneg.train.sharding import gathered, scattered, scattered_optimiser

SEED_OF_RANK = 1_000_003
"""Between the seeds of two ranks, which draw apart: what the encoder drops, for instance."""


def save(session: Session, observers: Sequence[Observer], names: Sequence[str] = (LAST,)) -> None:
    """Write the checkpoint; every rank has to ask.

    Args:
        session: where training stands.
        observers: what they have seen is saved as well.
        names: of the files that it is written to, one after the other.

    Raises:
        UserError: it cannot be written; the one before stays.
    """
    learner, first = session.learner, session.metrics is not None
    state = {
        "settings": session.settings,
        "step": session.clock.step,
        "seconds": session.seconds,
        "skipped": session.skipped,
        "method": gathered(learner.method.state_dict(), first),
        "criterion": learner.criterion.state_dict(),
        "optimiser": gathered(learner.optimiser.state_dict(), first),
        "scaler": session.fabric.strategy.precision.state_dict(),
        "random": _of_all_ranks(session.fabric, random_states()),
        "observers": {type(observer).__name__: observer.state(session) for observer in observers},
    }
    if session.metrics is not None:
        state["metrics"] = session.metrics.position()
        save_checkpoint(session.folder / CHECKPOINTS, state, names)
    session.fabric.barrier()


def load(session: Session, observers: Sequence[Observer], state: Mapping[str, Any]) -> None:
    """Go on from there.

    Raises:
        UserError: it is the state of another configuration.
    """
    learner = session.learner
    load_module(learner.method, scattered(state["method"], learner.method.state_dict()), "method")
    load_module(learner.criterion, state["criterion"], "criterion")
    learner.optimiser.load_state_dict(scattered_optimiser(state["optimiser"], learner.optimiser))
    session.fabric.strategy.precision.load_state_dict(state["scaler"])
    of_ranks = [dict(each) for each in state["random"]]
    if len(of_ranks) == session.fabric.world_size:
        restore_random_states(of_ranks[session.fabric.global_rank])
    else:
        seed_all(session.run.seed + int(state["step"]) + SEED_OF_RANK * session.fabric.global_rank)
    for observer in observers:
        observer.load_state(session, state["observers"][type(observer).__name__])
    session.clock = replace(session.clock, step=int(state["step"]))
    session.seconds, session.skipped = state["seconds"], int(state["skipped"])
    session.first_step, session.first_seconds = session.clock.step, session.seconds


def _of_all_ranks(fabric: Any, value: Any) -> list[Any]:
    """The value of each rank, rank after rank."""
    if fabric.world_size == 1:
        return [value]
    values: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(values, value)
    return values
