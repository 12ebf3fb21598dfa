"""A drop-in criterion for two towers: images and texts, or queries and passages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from falseneg.batch import Embeddings
from falseneg.call_checks import check_guide, check_pairs, check_scale, check_support
from falseneg.clock import Clock
from falseneg.contrast import Contrast, Space
from falseneg.detectors import Detector
from falseneg.errors import UserError
from falseneg.flagged import Flagged
from falseneg.losses import Criterion, DropInLoss, unit_views
from falseneg.methods.two_towers import IMAGE_TO_TEXT, TEXT_TO_IMAGE, contrast_pairs
from falseneg.objectives import Objective
from falseneg.rules import at_least_float32
from falseneg.statistics.gather import formed, gather_rows
from falseneg.strategy import ELIMINATE, Strategy, StrategyName
from falseneg.temperature import Temperature

ROUNDING = 2e-6
"""By how much the length of a unit row in float32 may differ from 1."""


class PairLoss(DropInLoss):
    """A criterion for pairs, called as open_clip's ``ClipLoss`` is: ``criterion(image_features, text_features, logit_scale)``.

    Each side is compared with all of the other, of all ranks (unless told otherwise), with their gradients; the loss is the mean of both
    directions. What learns from step to step for each pair needs ``pairs``, and ``sample`` at each call; its state is part
    of this module's ``state_dict``. What was flagged stands in ``flagged`` after each call.

    Args:
        detector: which negatives are suspected to be false; None for none. It may compare in the spaces "image" (the first
            side with itself), "text" (the second with itself), "support" and "guide", where these are given.
        strategy: what happens to them: a strategy or its name, such as "eliminate" or "attract".
        objective: what is minimised; None for `InfoNCE`, which without a detector is CLIP's.
        temperature: a fixed one as a number, or a `Temperature`; None takes 1 / ``logit_scale`` of each call.
        pairs: how many pairs the data set has.
        classes: how many kinds of pair to expect in it, for what the detector leaves open.
        gather_across_devices: compare with the pairs of all ranks; otherwise with those of this rank only. What is kept for
            each pair is that of all ranks either way. Ranks then check their batches each by itself: give them equally many pairs.

    Raises:
        UserError: a part cannot work with that data set, or needs to know how many pairs it has; or there is no
            strategy of that name.
    """

    item = "pair"

    def __init__(
        self,
        detector: Detector | None = None,
        strategy: Strategy | StrategyName = ELIMINATE,
        objective: Objective | None = None,
        temperature: float | Temperature | None = None,
        *,
        pairs: int | None = None,
        classes: int | None = None,
        gather_across_devices: bool = True,
    ) -> None:
        criterion = Criterion(detector, strategy, objective, _OfCall() if temperature is None else temperature)
        super().__init__(criterion, pairs, classes, (IMAGE_TO_TEXT, TEXT_TO_IMAGE), pairs or 0)
        self.gather_across_devices = gather_across_devices
        self._flagged: dict[str, Flagged] = {}

    @property
    def flagged(self) -> Mapping[str, Flagged]:
        """What the last call flagged, by direction: "image->text" and "text->image".

        Raises:
            UserError: there was no call yet.
        """
        if not self._flagged:
            raise UserError("PairLoss: nothing was flagged yet; call the criterion first")
        return self._flagged

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float | None = None,
        *,
        sample: Tensor | None = None,
        support: Sequence[Tensor] | Tensor | None = None,
        support_texts: Sequence[Tensor] | Tensor | None = None,
        guide: tuple[Tensor, Tensor] | None = None,
        clock: Clock | None = None,
    ) -> Tensor:
        """The loss, averaged over all anchors of all ranks and both directions.

        Args:
            image_features: (B, D), line b of pair b; of any length, normalised here.
            text_features: (B, D), likewise: the positive of line b is line b.
            logit_scale: what cosines are multiplied by, 1 / tau; ignored where a temperature was given.
            sample: (B,) whole numbers, the data-set rows of the pairs, so that repetitions are never negatives of each
                other; −1 for a pair that repeats no other; None if every line is another pair.
            support: S times (B, D), further views of the images that only help to detect.
            support_texts: T times (B, D), further texts, likewise.
            guide: (B, E) of the images and (B, E) of the texts by another model, for detectors whose space is "guide".
            clock: where training stands, for parts with a schedule.

        Raises:
            UserError: features, ``support``, ``guide`` or ``sample`` of another shape, type or device than these lines
                say; a single pair with no other rank's to compare it with; no ``logit_scale``, or one that is not above 0, where no temperature was
                given; no ``sample`` where state is kept for each pair, or one beyond the data set; no ``support`` where the
                detector looks at it; so few pairs that a `SupportSet` flags all negatives.
        """
        check_pairs(image_features, text_features, self.gather_across_devices)
        index = self._samples(sample, image_features)
        rows = {"image": _unit(image_features), "text": _unit(text_features)}
        for name, views in (("support", support), ("support text", support_texts)):
            if views is not None:
                check_support(views, image_features, "PairLoss")
                rows[name] = unit_views(views).detach().to(rows["image"].dtype)
        temperature = self.criterion.temperature
        if isinstance(temperature, _OfCall):
            temperature.take(logit_scale, rows["image"])
        if guide is not None:
            check_guide(guide, rows["image"][:, 0])
        contrasts = formed(lambda: _contrasts(Embeddings(index, rows), guide), self.gather_across_devices)
        loss, judged = self.criterion(contrasts, clock or Clock(0, 1, 1))
        for contrast in contrasts:
            of_contrast = [each for each in judged if each[0] is contrast]
            self._flagged[contrast.name] = Flagged(of_contrast, 1)
            self._check_number(self._flagged[contrast.name], contrast)
        return loss


def _unit(features: Tensor) -> Tensor:
    """(B, D) to (B, 1, D) unit rows, in at least float32.

    What has unit length already, as a model of open_clip gives it, is taken as it is, which spares a third of the memory. On
    a CPU only: another device would have to be waited for.
    """
    rows = at_least_float32(features)
    if rows.device.type == "cpu" and bool(
        ((torch.linalg.vector_norm(rows.detach(), dim=1) - 1).abs() < ROUNDING).all()
    ):
        return rows[:, None]
    return normalize(rows, dim=1)[:, None]


class _OfCall(Temperature):
    """The temperature that comes with each call."""

    def __init__(self) -> None:
        super().__init__()
        self.tau = torch.ones(())

    def take(self, logit_scale: Tensor | float | None, like: Tensor) -> None:
        check_scale(logit_scale)
        self.tau = 1 / torch.as_tensor(logit_scale, dtype=like.dtype, device=like.device).reshape(())

    def forward(self, contrast: Contrast) -> Tensor:
        return self.tau


def _contrasts(embeddings: Embeddings, guide: tuple[Tensor, Tensor] | None) -> list[Contrast]:
    """Both directions, with the guide's space where there is one."""
    contrasts = contrast_pairs(embeddings)
    if guide is None:
        return contrasts
    return [_guided(contrast, *sides) for contrast, sides in zip(contrasts, _both_ways(guide), strict=True)]


def _both_ways(guide: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The guide's unit rows of anchors and of candidates, for each direction."""
    first, second = (normalize(at_least_float32(side.detach()), dim=1) for side in guide)
    return [(first, second), (second, first)]


def _guided(contrast: Contrast, anchors: Tensor, candidates: Tensor) -> Contrast:
    """The contrast with the guide's similarity as a space."""
    each = torch.arange(len(anchors), device=anchors.device)
    positives = (anchors * candidates).sum(dim=1)
    space = Space(anchors[:, None], each, gather_rows(candidates), positives)
    return replace(contrast, spaces={**contrast.spaces, "guide": space})
