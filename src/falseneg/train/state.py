"""What the rest of a run depends on: saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from falseneg.train.checkpoint import load_module, random_states, restore_random_states, save_checkpoint
from falseneg.train.names import CHECKPOINTS
from falseneg.train.observers import Observer
from falseneg.train.session import Session


def save(session: Session, observers: Sequence[Observer], keep: bool = False) -> None:
    """Write the checkpoint; every rank has to ask.

    Raises:
        UserError: it cannot be written; the one before stays.
    """
    learner = session.learner
    state = {
        "settings": session.settings,
        "step": session.clock.step,
        "seconds": session.seconds,
        "method": learner.method.state_dict(),
        "criterion": learner.criterion.state_dict(),
        "optimiser": learner.optimiser.state_dict(),
        "scaler": session.fabric.strategy.precision.state_dict(),
        "random": _of_all_ranks(session.fabric, random_states()),
        "observers": {type(observer).__name__: observer.state(session) for observer in observers},
    }
    if session.metrics is not None:
        state["metrics"] = session.metrics.position()
        save_checkpoint(session.folder / CHECKPOINTS, state, session.clock.step, keep)
    session.fabric.barrier()


def load(session: Session, observers: Sequence[Observer], state: Mapping[str, Any]) -> None:
    """Go on from there.

    Raises:
        UserError: it is the state of another configuration.
    """
    learner = session.learner
    load_module(learner.method, state["method"], "method")
    load_module(learner.criterion, state["criterion"], "criterion")
    learner.optimiser.load_state_dict(state["optimiser"])
    session.fabric.strategy.precision.load_state_dict(state["scaler"])
    restore_random_states(state["random"][session.fabric.global_rank])
    for observer in observers:
        observer.load_state(session, state["observers"][type(observer).__name__])
    session.clock = replace(session.clock, step=int(state["step"]))
    session.seconds = state["seconds"]
    session.first_step, session.first_seconds = session.clock.step, session.seconds


def _of_all_ranks(fabric: Any, value: Any) -> list[Any]:
    """The value of each rank, rank after rank."""
    if fabric.world_size == 1:
        return [value]
    values: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(values, value)
    return values
