"""The temperature that cosines are divided by."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from falseneg.clock import Clock
from falseneg.contrast import Contrast
from falseneg.errors import UserError
from falseneg.facts import Facts
from falseneg.row_step import GradientStep, RowStep
from falseneg.sample_table import SampleTable, of_contrast
from falseneg.statistics.gather import gather_rows, sum_over_ranks, world_size


class Temperature(nn.Module):
    """Gives the temperature of each anchor. Open."""

    def prepare(self, facts: Facts) -> None:
        """Called once before training: allocate what is kept for each sample.

        Raises:
            ValueError: the temperature cannot work with these facts.
        """

    def forward(self, contrast: Contrast) -> Tensor:
        """() or (N,) positive temperatures of a contrast's anchors."""
        raise NotImplementedError

    def of_all(self) -> float | None:
        """The temperature, where it is one for all anchors."""
        return None

    def after_backward(self, clock: Clock, scale: float = 1.0) -> None:
        """Called when the gradients of a step are there, for temperatures with their own update.

        Args:
            clock: where training stands.
            scale: what the gradients are multiplied by (the loss scaling of float16).
        """


class FixedTemperature(Temperature):
    """The same temperature throughout.

    Args:
        tau: above 0, of a cosine.

    Raises:
        UserError: tau is not above 0.
    """

    tau: Tensor

    def __init__(self, tau: float = 0.1) -> None:
        super().__init__()
        _check("FixedTemperature: tau", tau)
        self.register_buffer("tau", torch.tensor(tau), persistent=False)

    def forward(self, contrast: Contrast) -> Tensor:
        return self.tau

    def of_all(self) -> float:
        return float(self.tau)


class LearnedTemperature(Temperature):
    """One learned temperature, kept within bounds; its logarithm is the parameter (CLIP, Radford et al. 2021).

    With a ``step`` of its own it follows neither the optimiser's learning rate nor its schedule, as in FastCLIP-v0 and v3
    (Wei et al. 2024, arXiv 2407.01445), whose released program takes Adam.

    Args:
        initial: where it starts.
        minimum: the lowest temperature allowed (CLIP: 0.01).
        maximum: the highest temperature allowed.
        step: how its logarithm follows the gradient; None leaves it to the run's optimiser.
        slower_below: from this temperature down the learning rate of ``step`` is a third (FastCLIP-v3: .03); None for never.

    Raises:
        UserError: a value is not above 0, or the three are not in order; or ``slower_below`` is given without a step.
    """

    log_tau: Tensor
    updates: Tensor

    def __init__(
        self,
        initial: float = 0.07,
        minimum: float = 0.01,
        maximum: float = 1.0,
        step: RowStep | None = None,
        slower_below: float | None = None,
    ) -> None:
        super().__init__()
        _check("LearnedTemperature: minimum", minimum)
        _check_order("LearnedTemperature", minimum, initial, maximum)
        if slower_below is not None:
            _check("LearnedTemperature: slower_below", slower_below)
            if step is None:
                raise UserError("LearnedTemperature: slower_below is of a step of its own; give step, too")
        self.bounds, self.step, self.slower_below = (minimum, maximum), step, slower_below
        start = torch.tensor(math.log(initial))
        if step is None:
            self.log_tau = nn.Parameter(start)
        else:
            self.register_buffer("log_tau", start)
            for name in ("updates", *step.state):
                self.register_buffer(name, torch.zeros((), dtype=torch.float64))
        self._used: list[Tensor] = []

    def forward(self, contrast: Contrast) -> Tensor:
        # Bounded here, so that no step ever uses a value outside; the gradient still reaches a parameter at its bound.
        with torch.no_grad():
            self.log_tau.clamp_(math.log(self.bounds[0]), math.log(self.bounds[1]))
        if self.step is None or not (self.training and torch.is_grad_enabled()):
            return self.log_tau.exp()
        self._used.append(self.log_tau.clone().requires_grad_())
        return self._used[-1].exp()

    def of_all(self) -> float:
        return min(max(float(self.log_tau.detach().exp()), self.bounds[0]), self.bounds[1])

    @torch.no_grad()
    def after_backward(self, clock: Clock, scale: float = 1.0) -> None:
        gradients = [used.grad.double() for used in self._used if used.grad is not None]
        self._used.clear()
        if self.step is None or not gradients:
            return
        # The loss is scaled for gradients that are averaged over the ranks.
        gradient = sum_over_ranks(torch.stack(gradients).sum()) / (world_size() * scale)
        if not bool(gradient.isfinite()):
            return
        step = self.step
        if self.slower_below is not None and float(self.log_tau) <= math.log(self.slower_below):
            step = replace(step, learning_rate=step.learning_rate / 3)
        self.updates += 1
        state = {name: getattr(self, name) for name in step.state}
        moved, state = step(self.log_tau.double(), gradient, state, self.updates)
        self.log_tau.copy_(moved.clamp(math.log(self.bounds[0]), math.log(self.bounds[1])))
        for name, value in state.items():
            getattr(self, name).copy_(value)


class IndividualTemperature(Temperature):
    """A temperature for each sample, learned by its own steps: iSogCLR (Qiu et al. 2023, arXiv 2305.11965).

    What is minimised comes from the objective: `GlobalContrastive` with ``rho``. The gradient of a sample is the mean
    over its anchors (its views, on whatever rank) of the gradients of their own losses, not divided by the batch size.
    That mean is clipped, followed by one step, and the result is brought back within the bounds. A gradient that is
    not finite is skipped.

    The defaults are the authors' for images alone: a rate of .001, a clip at 3, a start at .07, and .9 as the weight of
    the *new* gradient in its running mean, which is a momentum of .1 in the words of `GradientStep`. For two towers
    they take a rate of .01 and a clip at 5.

    Args:
        initial: where each sample starts.
        minimum: the lowest temperature allowed.
        maximum: the highest temperature allowed.
        step: how a temperature follows its gradient; None is `GradientStep` with learning rate .001 and momentum .1.
        clip: the largest mean gradient, in either direction; above 0.

    Raises:
        UserError: a value is not above 0, or the first three are not in order.
    """

    def __init__(
        self,
        initial: float = 0.07,
        minimum: float = 0.05,
        maximum: float = 1.0,
        step: RowStep | None = None,
        clip: float = 3.0,
    ) -> None:
        super().__init__()
        _check("IndividualTemperature: minimum", minimum)
        _check("IndividualTemperature: clip", clip)
        _check_order("IndividualTemperature", minimum, initial, maximum)
        self.initial, self.bounds, self.clip = initial, (minimum, maximum), clip
        self.step = step or GradientStep(learning_rate=0.001, momentum=0.1)
        self.tables = nn.ModuleDict()
        self._pending: dict[str, tuple[Tensor, Tensor, float]] = {}

    def prepare(self, facts: Facts) -> None:
        """Make the tables, one for each contrast."""
        columns = {"tau": self.initial, "updates": 0.0, **dict.fromkeys(self.step.state, 0.0)}
        self.tables = nn.ModuleDict({name: SampleTable(facts.rows, columns) for name in facts.contrasts})

    def forward(self, contrast: Contrast) -> Tensor:
        """(N,) the anchors' temperatures; with a gradient of their own while training."""
        row = contrast.anchors.table_row
        tau: Tensor = of_contrast(self.tables, contrast, self).read("tau", row)
        if self.training and torch.is_grad_enabled():
            tau.requires_grad_()
            self._pending[contrast.name] = (tau, row, contrast.weight)
        return tau

    @torch.no_grad()
    def after_backward(self, clock: Clock, scale: float = 1.0) -> None:
        for name, (tau, row, weight) in self._pending.items():
            if tau.grad is None:
                continue
            # The loss is a mean over the anchors of all ranks, scaled for gradients that are averaged over the ranks.
            of_one = len(gather_rows(row)) / (world_size() * weight * scale)
            gradient = tau.grad.double() * of_one
            gradient = gradient.where(gradient.isfinite(), torch.nan)
            self._move(self.tables[name], row, gradient)  # type: ignore[arg-type]
        self._pending.clear()

    def _move(self, table: SampleTable, row: Tensor, gradient: Tensor) -> None:
        """One update of the temperatures of all ranks' anchors."""
        gathered = table.gather_by_row(row, {"gradient": gradient})
        old = {column: table.read(column, gathered.line).double() for column in ("tau", "updates", *self.step.state)}
        updates = old["updates"] + 1
        moved, state = self.step(old["tau"], gathered.mean("gradient").clamp(-self.clip, self.clip), old, updates)
        table.update(gathered, {**state, "tau": moved.clamp(*self.bounds), "updates": updates})


def _check_order(name: str, minimum: float, initial: float, maximum: float) -> None:
    if not minimum <= initial <= maximum:
        raise UserError(f"{name}: initial is {initial}; give a value from minimum ({minimum}) to maximum ({maximum})")


def _check(name: str, tau: float) -> None:
    if not (math.isfinite(tau) and tau > 0):
        raise UserError(f"{name} is {tau}; give a number above 0")
