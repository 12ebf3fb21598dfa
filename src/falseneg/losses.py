"""Drop-in criteria: replace one line of a training loop that you already have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from falseneg.batch import Embeddings
from falseneg.call_checks import check_rows, check_sample, check_support, check_views
from falseneg.clock import Clock
from falseneg.contrast import NOBODY, Contrast
from falseneg.detectors import Detector, GlobalThreshold, IncrementalClusters, NoDetection, SupportSet
from falseneg.errors import UserError
from falseneg.facts import Facts
from falseneg.flagged import Flagged, Judged
from falseneg.methods.simclr import contrast_views
from falseneg.objectives import GlobalContrastive, InfoNCE, Objective
from falseneg.rules import NoPairs, at_least_float32
from falseneg.statistics import global_mean, stats_of_contrasts
from falseneg.statistics.gather import formed
from falseneg.strategy import ELIMINATE, IGNORE, Strategy, StrategyName, strategy_of
from falseneg.temperature import FixedTemperature, IndividualTemperature, Temperature


class Criterion(nn.Module):
    """Detector, objective, strategy and temperature in one: contrasts to a loss.

    Args:
        detector: which negatives are suspected to be false; None for none.
        strategy: what happens to them: a strategy or its name, such as "eliminate" or "attract".
        objective: what is minimised; None for `InfoNCE`.
        temperature: a fixed one as a number, or a `Temperature`.

    Raises:
        UserError: there is no strategy of that name.
    """

    def __init__(
        self,
        detector: Detector | None = None,
        strategy: Strategy | StrategyName = ELIMINATE,
        objective: Objective | None = None,
        temperature: float | Temperature = 0.1,
    ) -> None:
        super().__init__()
        self.detector = detector or NoDetection()
        self.strategy = strategy_of(strategy)
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
        taus, rules = [], []
        for contrast in contrasts:
            taus.append(self.temperature(contrast))
            flagged = self.detector.flag(contrast, clock)
            rules.append(flagged if isinstance(flagged, tuple) else (flagged,))
        # Without any flags all strategies are one, and this one costs nothing.
        nothing = all(isinstance(rule, NoPairs) for levels in rules for rule in levels)
        strategy = IGNORE if nothing else self.strategy
        found = stats_of_contrasts(contrasts, taus, rules, strategy)
        for contrast, tau, of_levels, levels in zip(contrasts, taus, rules, found, strict=True):
            self.objective.observe(contrast, levels, tau, strategy, clock)
            for rule, stats in zip(of_levels, levels, strict=True):
                losses = self.objective(contrast, stats, tau, strategy, clock)
                loss = loss + contrast.weight / len(levels) * global_mean(losses)
                judged.append((contrast, rule, stats))
        return torch.as_tensor(loss), judged


__all__ = ["ContrastiveLoss", "Criterion", "DropInLoss", "Judged", "unit_views"]
# What is kept for each image by a part of this kind has to know how many images there are.
_KEPT_FOR_EACH_IMAGE = (GlobalThreshold, IncrementalClusters, GlobalContrastive, IndividualTemperature)


class DropInLoss(nn.Module):
    """What criteria for somebody else's loop share. Abstract.

    Args:
        criterion: detector, objective, strategy and temperature in one.
        rows: how many items the data set has; None where nothing is kept for each of them.
        classes: how many kinds to expect in it, for what the detector leaves open.
        contrasts: the names of the contrasts.

    Raises:
        UserError: a part cannot work with that data set, or needs to know how many items it has.
    """

    item: ClassVar[str]
    """What a line of the data set is called: "image" or "pair"."""
    rows_by: ClassVar[str] = "sample, their rows in it, at each call"
    """How their rows are given."""

    def __init__(
        self, criterion: Criterion, rows: int | None, classes: int | None, contrasts: tuple[str, ...], negatives: int
    ) -> None:
        super().__init__()
        self.criterion, self.rows = criterion, rows
        owner, items = type(self).__name__, f"{self.item}s"
        if rows is not None:
            self.criterion.prepare(Facts(rows, negatives=negatives, classes=classes, contrasts=contrasts))
        elif classes is not None:
            raise UserError(f"{owner}: classes says how many kinds there are among the {items}; give {items} as well")
        elif keeping := [part for part in self.modules() if isinstance(part, _KEPT_FOR_EACH_IMAGE)]:
            raise UserError(
                f"{owner}: {type(keeping[0]).__name__} keeps something for each {self.item}; give {items}, the number of "
                f"{items} in the data set, and {self.rows_by}"
            )

    def _samples(self, sample: Tensor | None, rows: Tensor) -> Tensor:
        """(B,) int64 who each of the (B, D) rows is.

        Raises:
            UserError: ``sample`` is not of these rows, or missing where something is kept for each.
        """
        owner = type(self).__name__
        if sample is None:
            if self.rows is not None:
                raise UserError(
                    f"{owner}: what is kept for each {self.item} needs to know the {self.item}s; give {self.rows_by}"
                )
            return torch.full((len(rows),), NOBODY, device=rows.device)
        check_sample(sample, rows, owner, self.item)
        if self.rows is not None:
            check_rows(sample, self.rows, owner, self.item)
        return sample.long()

    def _check_number(self, flagged: Flagged, contrast: Contrast) -> None:
        """Refuse a batch so small that a number to flag takes all of it: mostly the last of an epoch.

        Raises:
            UserError: `SupportSet.check_number`.
        """
        by_number = [part for part in self.modules() if isinstance(part, SupportSet)]
        if by_number and flagged.are_all:
            for part in by_number:
                part.check_number(contrast)


class ContrastiveLoss(DropInLoss):
    """A criterion for embeddings of two or more views: instead of lightly's or solo-learn's NT-Xent.

    Rows of all ranks are compared, with their gradients, unless told otherwise. What learns from step to step for each image
    (`GlobalThreshold`, `GlobalContrastive`, `IndividualTemperature`) needs ``images``, and ``sample`` at each call; its
    state is part of this module's ``state_dict``. What was flagged stands in ``flagged`` after each call.

    Args:
        detector: which negatives are suspected to be false; None for none.
        strategy: what happens to them: a strategy or its name, such as "eliminate" or "attract".
        objective: what is minimised; None for `InfoNCE`.
        temperature: a fixed one as a number, or a `Temperature`.
        images: how many images the data set has.
        classes: how many kinds of image to expect in it, for what the detector leaves open.
        gather_across_devices: compare the rows of all ranks; otherwise those of this rank only, as lightly's ``NTXentLoss`` does
            without ``gather_distributed``. What is kept for each image is that of all ranks either way. Ranks then check their
            batches each by itself: give them equally many images.

    Raises:
        UserError: a part cannot work with that data set, or needs to know how many images it has; or there is no
            strategy of that name.
    """

    item = "image"

    def __init__(
        self,
        detector: Detector | None = None,
        strategy: Strategy | StrategyName = ELIMINATE,
        objective: Objective | None = None,
        temperature: float | Temperature = 0.1,
        *,
        images: int | None = None,
        classes: int | None = None,
        gather_across_devices: bool = True,
    ) -> None:
        criterion = Criterion(detector, strategy, objective, temperature)
        super().__init__(criterion, images, classes, ("views",), 2 * (images or 0))
        self.gather_across_devices = gather_across_devices
        self._flagged: Flagged | None = None

    @property
    def flagged(self) -> Flagged:
        """What the last call flagged: its ``share`` of the negatives, and the ``pairs()``.

        Raises:
            UserError: there was no call yet.
        """
        if self._flagged is None:
            raise UserError("ContrastiveLoss: nothing was flagged yet; call the criterion first")
        return self._flagged

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
            sample: (B,) whole numbers, the data-set rows of the images, so that repetitions are never negatives of each
                other; −1 for an image that repeats no other; None if every row is another image.
            support: S times (B, D), as a list or (S, B, D), further views that only help to detect (FNC).
            clock: where training stands, for parts with a schedule.

        Raises:
            UserError: fewer than two views; views, ``support`` or ``sample`` of another shape, type or device than
                described here; a single image with no other rank's to compare it with; no ``sample`` where state is kept for each image, or one beyond
                the data set; no ``support`` where the detector looks at it; so few images that a `SupportSet` flags all
                negatives of all of them, which would leave nothing to learn from.
        """
        check_views(views, self.gather_across_devices)
        images = views[0]
        if support is not None:
            check_support(support, images, "ContrastiveLoss")
        elif looking := [part for part in self.modules() if getattr(part, "space", None) == "support"]:
            raise UserError(
                f"ContrastiveLoss: {type(looking[0]).__name__} compares with support views; give support, a list of further "
                "views of the same images, (B, D) each, or set its space to None to compare the views themselves"
            )
        sample = self._samples(sample, images)
        rows = {"image": unit_views(views)}
        if support is not None:
            rows["support"] = unit_views(support).detach().to(rows["image"].dtype)
        (contrast,) = formed(lambda: [contrast_views(Embeddings(sample, rows))], self.gather_across_devices)
        loss, judged = self.criterion([contrast], clock or Clock(0, 1, 1))
        self._flagged = Flagged(judged, len(views))
        self._check_number(self._flagged, contrast)
        return loss


def unit_views(views: Sequence[Tensor] | Tensor) -> Tensor:
    """(B, V, D) unit rows, in at least float32."""
    return normalize(at_least_float32(torch.stack(list(views), dim=1)), dim=-1)
