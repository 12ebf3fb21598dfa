"""Logistic regression by full-batch L-BFGS: for one penalty, and for many with warm starts. Nothing in it is random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from falseneg.evaluation.metrics import classification_loss


@dataclass(frozen=True, eq=False)
class _Problem:
    """Rows turned to their principal axes, in which the curvature of the loss at zero is known.

    Attributes:
        turned: (n, r) the rows in these axes.
        targets: see `classification_loss`.
        energy: (r,) mean squares of the columns.
        axes: (F, r) the directions; r is the smaller of n and F.
        classes: C.
    """

    turned: Tensor
    targets: Tensor
    energy: Tensor
    axes: Tensor
    classes: int

    @staticmethod
    def of(features: Tensor, targets: Tensor, classes: int) -> _Problem:
        energy, axes = _principal_axes(features)
        return _Problem(features @ axes, targets, energy, axes, classes)

    def solve(self, penalty: float, start: tuple[Tensor, Tensor] | None, tolerance: float) -> tuple[Tensor, Tensor]:
        """(C, r) weights in the turned axes and (C,) biases, from a start or from zero."""
        scale = (self.energy / self.classes + penalty).rsqrt()
        first = self.turned.new_zeros(self.classes, len(scale)), self.turned.new_zeros(self.classes)
        if start is not None:
            first = start[0] / scale, start[1].clone()
        weight, bias = (each.requires_grad_() for each in first)
        optimiser = torch.optim.LBFGS(
            [weight, bias], max_iter=500, tolerance_grad=tolerance, tolerance_change=0, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimiser.zero_grad()
            inside = weight * scale
            value = classification_loss(self.turned @ inside.T + bias, self.targets)
            value = value + penalty / 2 * inside.square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            optimiser.step(loss)
        return weight.detach() * scale, bias.detach()


def fit_logistic(
    features: Tensor, targets: Tensor, classes: int, penalty: float, tolerance: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression with an L2 penalty, by full-batch L-BFGS from zero.

    Minimises mean cross-entropy (nats) + penalty/2 · |W|²; the bias is not penalised. The search runs in coordinates in
    which the curvature at zero is 1 in all directions. That leaves the minimum where it is, takes 40 steps where
    correlated features take 200, and gives the stopping rule a meaning: no derivative above 1e-3 there puts the loss
    some 1e-4 nats above its minimum. At most 500 steps.

    Args:
        features: (n, F) float32; their mean should be about 0.
        targets: (n,) int64 in [0, classes); or (n, C), see `classification_loss`.
        classes: C.
        penalty: of the squared weights, above 0. Scikit-learn's C is 1 / (n · penalty).
        tolerance: the largest derivative at which the search ends.

    Returns:
        (C, F) weights and (C,) biases.
    """
    problem = _Problem.of(features, targets, classes)
    weight, bias = problem.solve(penalty, None, tolerance)
    return weight @ problem.axes.T, bias


def logistic_path(
    features: Tensor, targets: Tensor, classes: int, penalties: Sequence[float], tolerance: float = 1e-5
) -> Iterator[tuple[float, Tensor, Tensor]]:
    """The same for several penalties, from the largest to the smallest, each search from where the last one ended.

    Minimises the *sum* of the cross-entropy over rows + penalty/2 · |W|², so that scikit-learn's C is 1 / penalty. The mean
    of the features is taken away before, and given back in the biases: it changes no minimum.

    Args:
        features: (n, F) float32.
        targets: as in `fit_logistic`.
        classes: C.
        penalties: above 0, in any order.
        tolerance: as in `fit_logistic`.

    Yields:
        A penalty, its (C, F) weights and (C,) biases.
    """
    mean = features.mean(dim=0)
    problem = _Problem.of(features - mean, targets, classes)
    found: tuple[Tensor, Tensor] | None = None
    for penalty in sorted(penalties, reverse=True):
        found = problem.solve(penalty / len(features), found, tolerance)
        weight = found[0] @ problem.axes.T
        yield penalty, weight, found[1] - weight @ mean


def _principal_axes(features: Tensor) -> tuple[Tensor, Tensor]:
    """(r,) mean squares and (F, r) directions that span the rows of the features; r is the smaller of n and F.

    Outside their span the best weights are 0, because only the penalty is felt there.
    """
    rows, width = features.shape
    if rows < width:
        _, singular, axes = torch.linalg.svd(features, full_matrices=False)
        return singular.square() / rows, axes.T
    energy, axes = torch.linalg.eigh(features.T @ features / rows)
    return energy.clamp(min=0), axes
