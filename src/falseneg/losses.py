"""Drop-in criteria: replace one line of a training loop that you already have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from falseneg.batch import Embeddings
from falseneg.clock import Clock
from falseneg.contrast import NOBODY, Contrast
from falseneg.detectors import Detector, NoDetection
from falseneg.errors import UserError
from falseneg.facts import Facts
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
            sample: (B,) whole numbers, the data-set rows of the images, so that repetitions are never negatives of each
                other; −1 for an image that is no other's repetition; None if every row is another image.
            support: S times (B, D), as a list or (S, B, D), further views that only help to detect (FNC).
            clock: where training stands, for parts with a schedule.

        Raises:
            UserError: fewer than two views; views, ``support`` or ``sample`` of another shape, type or device than these
                lines say; a single image, on one process; no ``sample`` where state is kept for each image, or one beyond
                the data set.
        """
        _check_views(views)
        images = views[0]
        if support is not None:
            _check_support(support, images)
        if sample is None:
            if self.images is not None:
                raise UserError(
                    "ContrastiveLoss: what is kept for each image needs to know the images; give sample, their rows in the data set"
                )
            sample = torch.full((len(images),), NOBODY, device=images.device)
        else:
            _check_sample(sample, images)
            if self.images is not None:
                _check_rows(sample, self.images)
        rows = {"image": _unit(views)}
        if support is not None:
            rows["support"] = _unit(support).detach().to(rows["image"].dtype)
        loss, _ = self.criterion([contrast_views(Embeddings(sample.long(), rows))], clock or Clock(0, 1, 1))
        return loss


def _check_views(views: Sequence[Tensor]) -> None:
    """Refuse what cannot be compared.

    Raises:
        UserError: fewer than two views, or not (B, D) of one shape, floating-point type and device, with B and D above 0.
    """
    if len(views) < 2 or not all(isinstance(view, Tensor) for view in views):
        given = ", ".join(_described(view) for view in views) or "nothing"
        raise UserError(f"ContrastiveLoss: got views of {given}; give two or more tensors of one shape (B, D)")
    first = views[0]
    alike = all((view.shape, view.dtype, view.device) == (first.shape, first.dtype, first.device) for view in views)
    if not (alike and first.ndim == 2 and first.is_floating_point() and first.numel()):
        given = ", ".join(_described(view) for view in views)
        raise UserError(
            f"ContrastiveLoss: got views of {given}; give two or more of one shape (B, D), one floating-point type and one "
            "device, none of them empty"
        )
    if len(first) == 1 and world_size() == 1:
        raise UserError(
            "ContrastiveLoss: got views of a single image, which needs others to compare with; give at least 2 images, for "
            "instance with drop_last=True in the DataLoader"
        )


def _check_support(support: Sequence[Tensor] | Tensor, images: Tensor) -> None:
    """Refuse support views that are not of these images, (B, D).

    Raises:
        UserError: there are none, or they are of another shape, of no floating-point type or on another device.
    """
    views = list(support) if not isinstance(support, Tensor) or support.ndim else [support]
    fit = all(
        isinstance(view, Tensor)
        and view.shape == images.shape
        and view.is_floating_point()
        and view.device == images.device
        and view.dtype == views[0].dtype
        for view in views
    )
    if not (views and fit):
        given = ", ".join(_described(view) for view in views) or "nothing"
        raise UserError(
            f"ContrastiveLoss: got support views of {given}; give one or more of the shape {tuple(images.shape)} of the views, "
            "of one floating-point type and on their device, or leave support out"
        )


def _check_sample(sample: Tensor, images: Tensor) -> None:
    """Refuse what does not say for each of these (B, D) rows which image it shows.

    Raises:
        UserError: it is of another length, of no type of whole numbers or on another device.
    """
    whole = isinstance(sample, Tensor) and not (
        sample.is_floating_point() or sample.is_complex() or sample.dtype == torch.bool
    )
    if not (whole and sample.shape == (len(images),) and sample.device == images.device):
        raise UserError(
            f"ContrastiveLoss: got a sample of {_described(sample)}; give {len(images)} whole numbers, one for each image, on "
            "the device of the views"
        )


def _described(given: object) -> str:
    """Shape, type and device of a tensor in words; of anything else its type."""
    if not isinstance(given, Tensor):
        return type(given).__name__
    return f"{tuple(given.shape)} {str(given.dtype).removeprefix('torch.')} on {given.device}"


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
