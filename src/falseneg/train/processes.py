"""The processes that train together: how many, and what connects them."""

from __future__ import annotations

import datetime
import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import distributed as dist

from falseneg.errors import UserError
from falseneg.train.sharding import sharding_strategy

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from falseneg.train.run import Run

A_YEAR = datetime.timedelta(days=365)


@dataclass(frozen=True)
class Processes:
    """How many processes train together, one for each device.

    Attributes:
        devices: on each machine.
        nodes: machines.
    """

    devices: int
    nodes: int

    @property
    def number(self) -> int:
        """All of them."""
        return self.devices * self.nodes


def processes_of(devices: int | None, nodes: int | None) -> Processes:
    """As asked for, or as the program says that started this process: torchrun, or SLURM's srun.

    Where nothing started it, it starts the processes of its own machine itself, and several machines find each other by the
    variables MASTER_ADDR, MASTER_PORT and NODE_RANK.

    Args:
        devices: on each machine; None leaves it to that program, or is 1.
        nodes: machines; None likewise.

    Raises:
        UserError: what is asked for and the environment contradict each other, or do not suffice.
    """
    started = _started_by_torchrun() or _started_by_slurm()
    if started is None:
        return _started_by_hand(Processes(devices or 1, nodes or 1))
    program, there = started
    for name, given, number in (("devices", devices, there.devices), ("nodes", nodes, there.nodes)):
        if given not in (None, number):
            raise UserError(
                f"{name} is {given}, but {program} started {there.devices} processes on each of {there.nodes} machines; "
                f"leave devices and nodes out, or start it otherwise"
            )
    return there


def _started_by_torchrun() -> tuple[str, Processes] | None:
    if not dist.is_torchelastic_launched():
        return None
    all_of_them, here = _number("WORLD_SIZE"), _number("LOCAL_WORLD_SIZE")
    if all_of_them % here:
        raise UserError(
            f"torchrun started {here} of {all_of_them} processes on this machine, and so not as many on each; give every "
            "machine the same --nproc-per-node"
        )
    return "torchrun", Processes(here, all_of_them // here)


def _started_by_slurm() -> tuple[str, Processes] | None:
    from lightning_fabric.plugins.environments import SLURMEnvironment

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where srun exists, but was not used
        if not SLURMEnvironment.detect():
            return None
    tasks, nodes = _number("SLURM_NTASKS"), _number("SLURM_NNODES", 1)
    if tasks == nodes == 1:
        return None  # a single task may start further processes on its machine
    if "SLURM_STEP_ID" not in os.environ:
        raise UserError(
            f"SLURM gives this job {tasks} tasks, but the command was not started by srun; put srun before it"
        )
    if "SLURM_NTASKS_PER_NODE" not in os.environ or tasks != nodes * _number("SLURM_NTASKS_PER_NODE"):
        raise UserError(
            f"SLURM gives this job {tasks} tasks on {nodes} machines; ask for as many on each machine as it has devices, "
            "with --ntasks-per-node"
        )
    return "SLURM", Processes(tasks // nodes, nodes)


def _started_by_hand(asked: Processes) -> Processes:
    """Nothing but a person, or the first process of its machine, started this one."""
    known = _number("WORLD_SIZE", 1)
    if known != asked.number and (known > 1 or "LOCAL_RANK" in os.environ):
        raise UserError(
            f"the environment says that {known} processes train together (WORLD_SIZE), but devices and nodes make "
            f"{asked.number}; start it with torchrun, give --devices and --nodes, or unset WORLD_SIZE"
        )
    rank = _number("NODE_RANK", 0)
    if rank >= asked.nodes:
        raise UserError(
            f"NODE_RANK is {rank}, which names one of at least {rank + 1} machines, but nodes is {asked.nodes}; give --nodes, "
            "or unset NODE_RANK"
        )
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
    if asked.nodes > 1 and missing:
        raise UserError(
            f"{asked.nodes} machines find each other by MASTER_ADDR, MASTER_PORT and NODE_RANK, and "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set; set them, or start it with torchrun or srun"
        )
    return asked


def _number(name: str, otherwise: int | None = None) -> int:
    """A whole number of the environment."""
    text = os.environ.get(name, "" if otherwise is None else str(otherwise))
    if not text.isdecimal():
        raise UserError(f"the variable {name} of the environment is {text!r}; it has to be a whole number")
    return int(text)


def connect(run: Run) -> Fabric:
    """Devices, precision and processes, none of which has been started yet.

    Raises:
        UserError: the machine does not have them, or the environment says otherwise.
    """
    from lightning_fabric import Fabric

    # Fabric advises on clusters and on tensor cores, and tells which process it starts; none of it is about this run.
    warnings.filterwarnings("ignore", module="lightning_fabric")
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    # Of a 1 x 1 convolution: its gradient may lie in memory in more than one order, and is copied.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
    # Of what is encoded, a view, which nothing here changes in place.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module \(FSDPEncodeBatch\)")
    accelerator = "cuda" if run.accelerator == "gpu" else run.accelerator
    wanted = processes_of(run.devices, run.nodes)
    if run.fsdp and wanted.number == 1:
        raise UserError(
            "fsdp shards the network over several processes, and there is one; give --devices or --nodes, or leave it out"
        )
    strategy = "auto" if wanted.number == 1 else sharding_strategy(wanted.number) if run.fsdp else "ddp"
    try:
        return Fabric(
            accelerator=accelerator,
            devices=wanted.devices,
            num_nodes=wanted.nodes,
            precision=run.precision,  # type: ignore[arg-type]
            strategy=strategy,
        )
    except Exception as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot train on accelerator {run.accelerator!r}, devices {wanted.devices}, precision {run.precision!r}: {first}"
        ) from error


def check_agreement(fabric: Fabric, told: Mapping[str, str]) -> None:
    """Refuse to train together where the processes see different things; every rank has to ask.

    Args:
        fabric: connects the processes.
        told: what has to be the same on all of them.

    Raises:
        UserError: a process sees something else than the first; on all of them alike.
    """
    if fabric.world_size == 1:
        return
    everyone: list[Any] = [None] * fabric.world_size
    dist.all_gather_object(everyone, dict(told))
    for rank, theirs in enumerate(everyone):
        for name in sorted({*theirs, *everyone[0]}):
            first, other = everyone[0].get(name, "absent"), theirs.get(name, "absent")
            if first != other:
                raise UserError(
                    f"the processes do not see the same: {name} is {first!r} for process 0 and {other!r} for process {rank}; give "
                    "all machines the same command and the same data, and --out on storage that they share"
                )


class LongWait:
    """Where all ranks wait for the first, which may measure for hours.

    A collective of the training's own group would end the run after the group's timeout.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.group: Any = dist.new_group(backend="gloo", timeout=A_YEAR) if fabric.world_size > 1 else None

    def __call__(self) -> None:
        if self.group is not None:
            dist.barrier(self.group)


def lost_process(error: BaseException) -> bool:
    """Whether an error says that another process of the training is gone, or does not answer any more."""
    words = (
        "Connection closed by peer",
        "Connection reset by peer",
        "Connection refused",
        "Timed out waiting",
        "Broken pipe",
    )
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    from_gloo = isinstance(error, RuntimeError) and "gloo" in str(error)
    return from_gloo and any(word in str(error) for word in words)
