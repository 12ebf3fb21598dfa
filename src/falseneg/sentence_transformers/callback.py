"""What a loss has to be told of the training around it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from falseneg.clock import Clock
from falseneg.errors import UserError
from falseneg.files import replacing
from falseneg.sentence_transformers.loss import FalseNegativeRankingLoss

STATE = "falseneg.pt"
"""Of a checkpoint: what the loss has learned."""


class FollowTraining(TrainerCallback):  # type: ignore[misc]
    """Tells a loss where training stands, and saves with each checkpoint what it has learned for each pair.

    For detectors and objectives with a schedule, such as ``StartAt(…, "1 epoch")``, for resuming, and for figures of the last
    epoch alone: ``trainer.add_callback(FollowTraining(loss))``.

    Args:
        loss: of the trainer.
    """

    def __init__(self, loss: FalseNegativeRankingLoss) -> None:
        self.loss = loss

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Resume what the loss has learned.

        Raises:
            UserError: training is resumed from a checkpoint that does not hold it.
        """
        if not state.global_step or not self.loss.criterion.state_dict():
            return
        path = _checkpoint(args, state) / STATE
        if not path.is_file():
            raise UserError(
                f"FollowTraining: there is no {path}, so what the loss has learned for each pair cannot be resumed; add this "
                "callback to the run that writes the checkpoints, or train from the start"
            )
        self.loss.criterion.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        epochs = max(1, state.num_train_epochs)
        self.loss.clock = Clock(state.global_step, max(1, math.ceil(state.max_steps / epochs)), epochs)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self.loss.suspects.clear()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        learned = self.loss.criterion.state_dict()
        if learned and state.is_world_process_zero:
            with replacing(_checkpoint(args, state) / STATE) as file:
                torch.save(learned, file)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
