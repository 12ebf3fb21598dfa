"""One pretraining: its parts and its options, checked before anything starts."""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from falseneg.clock import Duration
from falseneg.data.views import Augmentation, Crops
from falseneg.detectors import Detector, NoDetection
from falseneg.errors import UserError
from falseneg.evaluation.pairs import PROMPTS
from falseneg.methods.base import Method
from falseneg.models import Momentum
from falseneg.objectives import InfoNCE, Objective
from falseneg.strategy import ELIMINATE, Strategy
from falseneg.temperature import FixedTemperature, Temperature
from falseneg.train.metrics import LOGGERS
from falseneg.train.optimisers import AdamW, Optimiser

MOST_SEEDS = 2**62
"""Below it a seed, and what is added to it for each process, is a number to every generator."""
INCIDENTAL = (
    *(
        "devices",
        "nodes",
        "workers",
        "log_every",
        "skip_not_finite",
        "loggers",
        "checkpoint_every",
        "keep_every",
        "compile_encoder",
        "fsdp",
    ),
)
"""Settings that a run may change when it is continued, because no weight depends on them, except for rounding.

The number of processes is checked apart where the negatives are each process's own.
"""
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true")


@dataclass
class Run:
    """One pretraining. A setting that is None is chosen to suit the data (`falseneg.train.defaults`).

    Durations are written "500 steps", "30 epochs" or "10%" (of the whole training).

    Args:
        data: the images to learn from; labels, if there are any, serve the oracle and measuring only.
        method: where anchors, candidates and positives come from, with the encoder inside.
        detector: decides which negatives are suspected to be false.
        strategy: what happens to the negatives that the detector flags.
        objective: what is minimised.
        temperature: what cosines are divided by.
        augmentation: how a main view is made of an image.
        support_augmentation: how a support view is made; None makes it as a main view.
        multi_crop: groups of small further views, each with a number, a size in pixels and a scale (share of the area):
            they are the method's support views, and positives too with its ``support_as_positives``. All else about
            them is as the support augmentation says.
        optimiser: AdamW, SGD or LARS, with its learning rate and weight decay.
        test: labelled images to measure accuracy on; None takes the data set's own test split, if it has one.
        holdout: the share of the labelled images that is set aside for measuring where there is no test set, drawn by row
            whatever the labels say; from 0 to below 1.
        epochs: passes over the data.
        batch_size: images in one optimiser step, over all processes.
        keep_last: train on the last, incomplete batch of an epoch, too; otherwise its images, other ones in each epoch, are
            left out.
        gather_across_devices: an anchor's negatives are the images of the whole batch; otherwise only those that its own process
            encodes, as lightly's losses do unless told otherwise. Then the loss depends on how many processes there are.
        accumulate: pieces in which each process encodes its part of a batch (the gradient cache): the same gradients,
            except for BatchNorm, in less memory and about a third more time; 1 encodes it at once.
        warmup: duration over which the learning rate rises to its peak; it then falls to 0 along a cosine.
        seed: of all random draws, from 0 to below 2^62.
        deterministic: only deterministic algorithms, and a fixed number of threads: an interrupted run ends with the
            same weights as an undisturbed one, bit for bit, on the same machine.
        precision: "32-true", "bf16-mixed", "16-mixed" (CUDA only) or "bf16-true".
        accelerator: "auto", "cpu", "cuda" or "mps".
        devices: how many devices of each machine to train on, one process each; None takes what torchrun or srun started,
            or else 1.
        nodes: how many machines train together; None likewise.
        workers: processes that load images, for each training process; 0 loads in the training process itself.
        checkpoint_every: duration after which the checkpoint last.pt is replaced by a new one; None writes it only at
            the end and when the run is interrupted.
        keep_every: duration after which a checkpoint is also kept as step-NNNNNNNN.pt; None keeps only the last.
        evaluate_every: duration after which kNN accuracy is measured during training, for which labels are needed; "100%"
            measures at the end only.
        evaluate: "now", or "later": nothing is measured before, during and after the training, and the command that
            measures the encoder is told at the end.
        evaluate_linear: also measure the linear probe whenever kNN accuracy is measured during training.
        prompts: texts that stand for a class in zero-shot classification, with {} where its name goes; for two towers.
        few_labels: labelled images of each class that the few-label classifier learns from at the end.
        few_label_draws: how many times they are drawn; the accuracy is the mean.
        skip_not_finite: how many steps whose loss or gradient is not finite are passed over, each with a warning; the next
            one stops the run. (Running statistics of BatchNorm have seen its images.)
        log_every: optimiser steps from one logged line to the next.
        expected_classes: how many classes to expect in the data: sets what a detector leaves open, such as its share of
            flagged negatives (1 / classes).
        compile_encoder: compile the encoder by torch.compile as each size of views first comes, which takes minutes and a C++
            compiler: the same results, up to rounding. Measuring is not compiled. On a CPU a ResNet-18 is no faster for it.
        sync_batch_norm: BatchNorm takes its statistics over all processes (CUDA only); null does so with several of them,
            unless the method shuffles BatchNorm.
        fsdp: weights, gradients and the optimiser's state are sharded over the processes, each of which holds a share (fully
            sharded data parallel): for networks that are too large for a device. The same training, up to rounding. The method stays
            sharded afterwards.
        skip_unreadable: leave images out that cannot be read, and count them, instead of stopping before training.
        check_duplicates: look for exact duplicate images before training; they are certain false negatives.
        loggers: further loggers beside metrics.jsonl: "tensorboard", "wandb".
        init_from: start from weights: an encoder that was exported, or the folder or a checkpoint of another run. (To
            continue a run, resume it.)
    """

    data: Dataset
    method: Method
    detector: Detector = field(default_factory=NoDetection)
    strategy: Strategy = ELIMINATE
    objective: Objective = field(default_factory=InfoNCE)
    temperature: Temperature = field(default_factory=FixedTemperature)
    augmentation: Augmentation = field(default_factory=Augmentation)
    support_augmentation: Augmentation | None = None
    multi_crop: list[Crops] | None = None
    optimiser: Optimiser = field(default_factory=AdamW)
    test: Dataset | None = None
    holdout: float = 0.1
    epochs: int | None = None
    batch_size: int | None = None
    keep_last: bool = False
    gather_across_devices: bool = True
    accumulate: int = 1
    warmup: str = "10%"
    seed: int = 0
    deterministic: bool = False
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int | None = None
    nodes: int | None = None
    workers: int | None = None
    checkpoint_every: str | None = "1 epoch"
    keep_every: str | None = None
    evaluate_every: str | None = None
    evaluate: str = "now"
    evaluate_linear: bool = False
    prompts: Sequence[str] = PROMPTS
    few_labels: int = 5
    few_label_draws: int = 10
    skip_not_finite: int = 0
    log_every: int = 10
    expected_classes: int | None = None
    compile_encoder: bool = False
    sync_batch_norm: bool | None = None
    fsdp: bool = False
    skip_unreadable: bool = False
    check_duplicates: bool = True
    loggers: Sequence[str] = ()
    init_from: Path | None = None

    def __post_init__(self) -> None:
        if not self.multi_crop:
            return
        for group in self.multi_crop:
            group.check()
        crops, given = self.streams["support"], self.method.streams.get("support", 0)
        if given not in (0, crops):
            raise UserError(
                f"multi_crop gives {crops} crops of an image, but the method's support_views is {given}; the crops are its "
                "support views, so leave support_views out"
            )

    @property
    def streams(self) -> dict[str, int]:
        """The streams of a batch, and how many views or captions of an image are in each: the crops are support views."""
        crops = {"support": sum(group.number for group in self.multi_crop)} if self.multi_crop else {}
        return {**self.method.streams, **self.method.texts, **crops}

    def check(self) -> None:
        """Refuse what cannot work, as far as it can be seen without opening the data.

        Raises:
            UserError: an option is outside its range, or options contradict one another.
        """
        for name, least in (
            ("epochs", 1),
            ("accumulate", 1),
            ("few_labels", 1),
            ("few_label_draws", 1),
            ("log_every", 1),
            ("devices", 1),
            ("nodes", 1),
            ("workers", 0),
            ("skip_not_finite", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} is {value}; give at least {least}")
        most = max(16, 4 * (os.cpu_count() or 1))  # each is a process of some 100 MiB, started before anything can fail
        for name in ("workers", "devices"):
            if (getattr(self, name) or 0) > most:
                raise UserError(f"{name} is {getattr(self, name)}; give at most {most} on this machine")
        check_seed(self.seed)
        if self.batch_size is not None:
            check_batch_size(self.batch_size)
        if not 0 <= self.holdout < 1:
            raise UserError(f"holdout is {self.holdout}; it is a share of the data, so give a number from 0 to below 1")
        if self.expected_classes is not None and self.expected_classes < 2:
            raise UserError(f"expected_classes is {self.expected_classes}; give at least 2, or leave it out")
        for name in ("warmup", "checkpoint_every", "keep_every", "evaluate_every"):
            self._check_duration(name)
        _choose("precision", self.precision, PRECISIONS)
        _choose("evaluate", self.evaluate, ("now", "later"))
        _choose("accelerator", self.accelerator, ("auto", "cpu", "cuda", "gpu", "mps"))
        if self.fsdp and (self.compile_encoder or self.precision == "16-mixed"):
            other = "compile_encoder" if self.compile_encoder else "precision '16-mixed'"
            raise UserError(f"fsdp does not go together with {other}; leave one of the two out")
        if self.fsdp and self.method.shuffle_groups > 1:
            raise UserError(
                f"fsdp wants every process to encode equally often, and the method's shuffle_groups is "
                f"{self.method.shuffle_groups}; give 1 or 0, or leave fsdp out"
            )
        cuda = torch.cuda.is_available() and self.accelerator in ("auto", "cuda", "gpu")
        if self.precision == "16-mixed" and not cuda:
            raise UserError("precision is '16-mixed', which needs a CUDA device; use 'bf16-mixed' or '32-true'")
        if self.sync_batch_norm and self.method.shuffle_groups:
            raise UserError(
                "sync_batch_norm takes statistics over all processes, which undoes the method's shuffle_groups; leave one of "
                "the two out"
            )
        if self.sync_batch_norm and not cuda:
            raise UserError("sync_batch_norm needs CUDA devices, for torch supports it nowhere else; leave it out")
        if self.precision == "bf16-true" and any(isinstance(part, Momentum) for part in self.method.modules()):
            raise UserError(
                "precision is 'bf16-true', in which a momentum network would stand still: its steps are smaller than "
                "bfloat16 can represent; use 'bf16-mixed' or '32-true'"
            )
        for prompt in self.prompts:
            if "{}" not in prompt:
                raise UserError(f"prompts holds {prompt!r}; write {{}} where the name of the class goes")
        if not self.prompts:
            raise UserError("prompts is empty; give at least one text, or leave it out")
        for logger in self.loggers:
            _choose("loggers", logger, tuple(LOGGERS))
            if importlib.util.find_spec(LOGGERS[logger]) is None:
                raise UserError(
                    f"the logger {logger!r} is not installed; pip install {LOGGERS[logger]}, or leave it out"
                )
        self._check_views()

    def _check_duration(self, name: str) -> None:
        text = getattr(self, name)
        try:
            zero = text is not None and Duration.parse(text).amount == 0
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
        if zero and name != "warmup":
            raise UserError(f"{name} is {text!r}; give more than 0, or leave it out")

    def _check_views(self) -> None:
        """Let the method compare a few made-up embeddings, and see whether it offers what the detector looks at."""
        method = self.method
        # Parts that have trained before, and go on, may hold their own embeddings, on another device.
        device = next((parameter.device for parameter in method.parameters()), torch.device("cpu"))
        for contrast in method.contrasts(method.made_up(self.streams, device)):
            for part in self.detector.modules():
                try:
                    contrast.space(getattr(part, "space", None))
                    contrast.columns(getattr(part, "part", None))
                except ValueError as error:
                    raise UserError(f"{type(part).__name__}: {error}") from None


def check_seed(seed: int) -> None:
    """Refuse a seed that no generator takes.

    Raises:
        UserError: it is below 0, or 2^62 or more.
    """
    if not 0 <= seed < MOST_SEEDS:
        raise UserError(f"seed is {seed}; give a number from 0 to {MOST_SEEDS - 1}")


def check_batch_size(batch_size: int) -> None:
    """Refuse a batch without negatives, also where a learning rate is to follow from it.

    Raises:
        UserError: it holds fewer than two images.
    """
    if batch_size < 2:
        raise UserError(f"batch_size is {batch_size}; an image needs others to compare with, so give at least 2")


def _choose(name: str, given: Any, allowed: Sequence[str]) -> None:
    if given not in allowed:
        near = difflib.get_close_matches(str(given), allowed, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{name} is {given!r}; give one of {', '.join(allowed)}{hint}")
