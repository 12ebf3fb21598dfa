"""Drop-in criteria: replace one line of a training loop that you already have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.detectors import Detector, NoDetection
from falseneg.errors import UserError
from falseneg.facts import Facts
from falseneg.methods.base import Embeddings
from falseneg.methods.simclr import contrast_views
from falseneg.objectives import InfoNCE, Objective
from falseneg.rules import NoPairs, PairRule, at_least_float32
from falseneg.statistics import NegativeStats, global_mean, stats_of_levels
from falseneg.statistics.gather import world_size
from falseneg.strategy import ELIMINATE, IGNORE, Strategy
from falseneg.temperature import FixedTemperature, Temperature


class Criterion(nn.Module):
    """Detector, objective, strategy and temperature in one: contrasts to a loss.

    Args:
        detector: which negatives are suspected to be false; None for none.
        strategy: what happens to them.
        objective: what is minimised; None for `InfoNCE`.
        temperature: a fixed one as a number, or a `Temperature`.
    """

    def __init__(
        self,
        detector: Detector | None = None,
        strategy: Strategy = ELIMINATE,
        objective: Objective | None = None,
        temperature: float | Temperature = 0.1,
    ) -> None:
        super().__init__()
        self.detector = detector or NoDetection()
        self.strategy = strategy
        self.objective = objective or InfoNCE()
        self.temperature = temperature if isinstance(temperature, Temperature) else FixedTemperature(temperature)

    def prepare(self, facts: Facts) -> None:
        """Tell the parts about the data, once, before training.

        Raises:
            UserError: one of them cannot work with these data.
        """
        for part in (self.detector, self.objective, self.temperature):
            try:
                part.prepare(facts)
            except UserError:
                raise
            except ValueError as error:
                raise UserError(f"{type(part).__name__}: {error}") from error

    def forward(self, contrasts: Sequence[Contrast], clock: Clock) -> tuple[Tensor, list[Judged]]:
        """The loss of one step, averaged over the anchors of all ranks, and what was flagged on the way.

        With several ranks the loss is scaled for gradients that are averaged over them, as DDP does.
        """
        loss: Tensor | float = 0.0
        judged = []
        for contrast in contrasts:
            tau = self.temperature(contrast)
            rules = self.detector.flag(contrast, clock)
            rules = rules if isinstance(rules, tuple) else (rules,)
            # Without any flags all strategies are one, and this one costs nothing.
            strategy = IGNORE if all(isinstance(rule, NoPairs) for rule in rules) else self.strategy
            levels = stats_of_levels(contrast, tau, rules, strategy)
            self.objective.observe(contrast, levels, tau, strategy, clock)
            for rule, stats in zip(rules, levels, strict=True):
                losses = self.objective(contrast, stats, tau, strategy, clock)
                loss = loss + contrast.weight / len(levels) * global_mean(losses)
                judged.append((contrast, rule, stats))
        return torch.as_tensor(loss), judged


Judged = tuple[Contrast, PairRule, NegativeStats]


class ContrastiveLoss(nn.Module):
    """A criterion for embeddings of two or more views: in the place of lightly's or solo-learn's NT-Xent.

    Rows of all ranks are compared, with their gradients. What learns from step to step for each image
    (`GlobalThreshold`, `GlobalContrastive`, `IndividualTemperature`) needs ``images``, and ``sample`` at each call; its
    state is part of this module's ``state_dict``.

    Args:
        detector: which negatives are suspected to be false; None for none.
        strategy: what happens to them.
        objective: what is minimised; None for `InfoNCE`.
        temperature: a fixed one as a number, or a `Temperature`.
        images: how many images the data set has.
        classes: how many kinds of image to expect in it, for what the detector leaves open.

    Raises:
        UserError: a part cannot work with that data set.
    """

    def __init__(
        self,
        detector: Detector | None = None,
        strategy: Strategy = ELIMINATE,
        objective: Objective | None = None,
        temperature: float | Temperature = 0.1,
        *,
        images: int | None = None,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.criterion = Criterion(detector, strategy, objective, temperature)
        self.images = images
        if images is not None:
            self.criterion.prepare(Facts(images, negatives=2 * images, classes=classes))
        elif classes is not None:
            raise UserError("ContrastiveLoss: classes says how many kinds there are among the images; give images, too")

    def forward(
        self,
        *views: Tensor,
        sample: Tensor | None = None,
        support: Sequence[Tensor] | Tensor | None = None,
        clock: Clock | None = None,
    ) -> Tensor:
        """The loss, averaged over all anchors of all ranks.

        Args:
            views: two or more (B, D), row b of each showing image b; of any length, normalised here.
            sample: (B,) int64 data-set rows of the images, so that repetitions are never negatives of each other;
                None if every row is another image.
            support: S times (B, D), as a list or (S, B, D), further views that only help to detect (FNC).
            clock: where training stands, for parts with a schedule.

        Raises:
            UserError: fewer than two views, or views of different shapes; no ``sample`` where state is kept for each image,
                or one beyond the data set.
        """
        if len(views) < 2 or any(view.shape != views[0].shape for view in views):
            shapes = ", ".join(str(tuple(view.shape)) for view in views) or "nothing"
            raise UserError(f"ContrastiveLoss: got views of {shapes}; give two or more of one shape (B, D)")
        if sample is None and self.images is not None:
            raise UserError(
                "ContrastiveLoss: what is kept for each image needs to know the images; give sample, their rows in the data set"
            )
        if sample is not None and self.images is not None:
            _check_rows(sample, self.images)
        if sample is None:
            rank = torch.distributed.get_rank() if world_size() > 1 else 0
            # Far apart, so that no two ranks name one sample, however many rows each has.
            sample = torch.arange(len(views[0]), device=views[0].device) + rank * 2**40
        embeddings = Embeddings(_unit(views), None if support is None else _unit(support).detach(), sample)
        loss, _ = self.criterion([contrast_views(embeddings)], clock or Clock(0, 1, 1))
        return loss


def _check_rows(sample: Tensor, images: int) -> None:
    """Refuse rows that the data set has not: some of them would be taken for others.

    Raises:
        UserError: a row is negative, or too large.
    """
    least, most = torch.stack(sample.aminmax()).tolist()
    if least < 0 or most >= images:
        raise UserError(
            f"ContrastiveLoss: sample holds {most if most >= images else least}, but a data set of {images} images has the "
            f"rows 0 to {images - 1}; give the rows of the images, or the right number of images"
        )


def _unit(views: Sequence[Tensor] | Tensor) -> Tensor:
    """(B, V, D) unit rows, in at least float32."""
    return normalize(at_least_float32(torch.stack(list(views), dim=1)), dim=-1)
