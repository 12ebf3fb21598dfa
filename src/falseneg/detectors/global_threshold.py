"""GloFND: a threshold for each sample, learned over the whole data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from falseneg.clock import Clock, Duration
from falseneg.contrast import Contrast, Space
from falseneg.detectors.base import Detector
from falseneg.detectors.threshold import check_cosine, check_share
from falseneg.errors import UserError
from falseneg.facts import Facts
from falseneg.row_step import AdamStep, RowStep
from falseneg.rules import AboveThreshold, NoPairs, PairRule
from falseneg.sample_table import SampleTable, of_contrast
from falseneg.schedule import Schedule, extremes, value_at
from falseneg.statistics.gather import gather_rows
from falseneg.statistics.scan import columns_rule, count_above, row_quantile


class GlobalThreshold(Detector):
    """GloFND (Balmaseda et al. 2025, arXiv 2502.20612): flags what is above the sample's own threshold.

    The threshold λ_i is learned so that the share alpha of *all* negatives in the data set is above it:
    λ_i = argmin over ν in [−1, 1] of alpha · ν + mean over the negatives of (s − ν)_+ . The gradient on a batch is
    alpha − (share of the batch's negatives above λ_i). A step first updates the thresholds of its anchors, then flags,
    strictly above, with the new values. Several views of a sample, on whatever rank, share one threshold and make one
    update, by the mean of their gradients. One sweep of the matrix, and one more in steps that meet samples for the
    first time if these start at the batch quantile; tables of 4 bytes a row and column, whose cost in a step does not
    depend on the number of rows. In evaluation mode nothing is learned.

    To learn for a while before anything is flagged, wrap it in `StartAt`.

    Args:
        alpha: share of the negatives to flag, above 0 and below 1, or a schedule of it; None for one over the number
            of expected classes.
        step: how a threshold follows its gradient: `AdamStep` as in the released code (the default, with a learning
            rate of .05) or `GradientStep` as in the paper. The result is clipped to [−1, 1].
        initial: the threshold of a sample at its first visit, which then updates it (the released code starts at 1);
            None starts at the quantile of that visit's negatives instead of an update: no transient.
        start: when learning and flagging start: "70 epochs", "10%".
        shared: learn one threshold for all samples.
        shared_until: up to then one threshold is learned for all samples, and each then starts at it.
        part: look only in this part of the candidates ("batch", "bank"); None for all.
        space: the similarity to compare in, by name; None for the loss's own.

    Raises:
        UserError: an option is outside its range, or options contradict one another.
    """

    def __init__(
        self,
        alpha: float | Schedule | None = None,
        step: RowStep | None = None,
        initial: float | None = None,
        start: str = "0 epochs",
        shared: bool = False,
        shared_until: str = "0 epochs",
        part: str | None = None,
        space: str | None = None,
    ) -> None:
        super().__init__()
        for share in extremes(alpha):
            check_share("GlobalThreshold: alpha", share)
        check_cosine("GlobalThreshold: initial", initial)
        self.alpha, self.step, self.initial, self.shared = alpha, step or AdamStep(), initial, shared
        self.start, self.shared_until = Duration.parse(start), Duration.parse(shared_until)
        if shared and self.shared_until.amount:
            raise UserError("GlobalThreshold: shared and shared_until contradict one another; give one of them")
        self.part, self.space = part, space
        self.tables = nn.ModuleDict()

    def prepare(self, facts: Facts) -> None:
        """Make the tables, empty, for each contrast.

        Raises:
            UserError: nothing says what share to flag.
        """
        if self.alpha is None:
            if facts.classes is None:
                raise UserError("GlobalThreshold: give alpha, or the number of expected classes")
            self.alpha = 1 / facts.classes
        columns = {"threshold": 1.0 if self.initial is None else self.initial, "share": torch.nan, "updates": 0.0}
        columns |= dict.fromkeys(self.step.state, 0.0)
        for name in facts.contrasts:
            own = None if self.shared else SampleTable(facts.rows, columns)
            shared = SampleTable(1, columns) if self.shared or self.shared_until.amount else None
            self.tables[name] = _Tables(facts.rows, own, shared)

    def start_epoch(self, features: Callable[[], Tensor], clock: Clock) -> None:
        """Find out whether all samples were met: then no step of the epoch has to ask."""
        for tables in self.tables.values():
            assert isinstance(tables, _Tables)
            for table in (tables.own, tables.shared):
                if table is not None:
                    table.check_complete()

    @torch.no_grad()
    def flag(self, contrast: Contrast, clock: Clock) -> PairRule:
        if not self.start.reached(clock):
            return NoPairs()
        tables: _Tables = of_contrast(self.tables, contrast, self)
        row = contrast.anchors.table_row
        if tables.own is None or not self.shared_until.reached(clock):
            table, row = tables.shared, torch.zeros_like(row)
        else:
            table = tables.own
        assert table is not None
        if self.training:
            start = tables.shared_threshold() if table is tables.own else None
            self._learn(contrast, table, row, start, self.alpha_at(clock))
        rule = AboveThreshold(table.read("threshold", row), contrast.space(self.space))
        return rule if self.part is None else rule & columns_rule(contrast, contrast.columns(self.part))

    def alpha_at(self, clock: Clock) -> float:
        """The share of the negatives to flag in the coming step.

        Raises:
            UserError: it was left open, and nobody has said how many classes to expect.
        """
        if self.alpha is None:
            raise UserError("GlobalThreshold: give alpha")
        return value_at(self.alpha, clock)

    def per_sample(self) -> Mapping[str, Tensor]:
        """Give "threshold", and "share_flagged": what was above it at the last visit, before that visit's update.

        With several contrasts their names follow: "threshold view 1". With one threshold for all samples, no share is
        known of a single sample.
        """
        held: dict[str, Tensor] = {}
        for name, tables in self.tables.items():
            assert isinstance(tables, _Tables)
            suffix = f" {name}" if len(self.tables) > 1 else ""
            held[f"threshold{suffix}"] = tables.thresholds()
            if tables.own is not None:
                held[f"share_flagged{suffix}"] = tables.own.column("share").clone()
        return held

    def _learn(self, contrast: Contrast, table: SampleTable, row: Tensor, start: Tensor | None, alpha: float) -> None:
        """One update of the thresholds of all ranks' anchors; ``start`` is where new ones start, if it is known."""
        at_quantile = start is None and self.initial is None
        threshold, first = table.read("threshold", row), table.visits[row] == 0
        if start is not None:
            threshold = torch.where(first, start, threshold)
        elif at_quantile and not table.complete and bool(first.any()):  # a sweep less is worth the wait for the device
            quantile = _expected_quantile(contrast, alpha, contrast.space(self.space), self.part).clamp(-1, 1)
            quantile = gather_rows(quantile).mean() if table.rows == 1 else quantile  # one line: one threshold for all
            threshold = torch.where(first, quantile.to(threshold.dtype), threshold)

        above, count = count_above(contrast, threshold, contrast.space(self.space), self.part)
        share = torch.where(count > 0, above.double() / count, torch.nan)
        variance = alpha * (1 - alpha) / count.double()
        gathered = table.gather_by_row(row, {"share": share, "threshold": threshold, "variance": variance})
        share, threshold = gathered.mean("share"), gathered.mean("threshold")

        old = {name: table.read(name, gathered.line).double() for name in self.step.state}
        updates = table.read("updates", gathered.line).double() + 1
        moved, state = self.step(threshold, alpha - share, old, updates)
        if at_quantile:
            # A threshold that was just set to the quantile of these very negatives learns nothing from them.
            is_new = table.visits[gathered.line] == 0
            begun = self.step.begin(gathered.mean("variance") / gathered.number)
            moved, state = (
                torch.where(is_new, threshold, moved),
                {k: torch.where(is_new, begun[k], state[k]) for k in state},
            )
        table.update(gathered, {**state, "threshold": moved.clamp(-1, 1), "share": share, "updates": updates})


class _Tables(nn.Module):
    """The tables of one contrast: of each sample's own threshold, of the one shared by all, or both."""

    def __init__(self, rows: int, own: SampleTable | None, shared: SampleTable | None) -> None:
        super().__init__()
        self.rows, self.own, self.shared = rows, own, shared

    def shared_threshold(self) -> Tensor | None:
        """() the threshold that all share, if there is one and it was ever learned."""
        if self.shared is None:
            return None
        if not self.shared.complete:
            self.shared.check_complete()
        return self.shared.column("threshold")[0] if self.shared.complete else None

    def thresholds(self) -> Tensor:
        """(rows,) what each sample would be met with now; NaN where there is nothing yet."""
        shared = self.shared_threshold()
        if self.own is None:
            device = None if shared is None else shared.device
            return torch.full((self.rows,), torch.nan if shared is None else float(shared), device=device)
        threshold, new = self.own.column("threshold"), self.own.visits == 0
        return threshold.masked_fill(new, torch.nan if shared is None else float(shared))


def _expected_quantile(contrast: Contrast, alpha: float, space: Space | None, part: str | None) -> Tensor:
    """(N,) the threshold that the share alpha of *all* negatives is expected to exceed, as far as n of them can tell.

    Of n draws, the k-th highest is exceeded by the share k / (n + 1) on average, and the middle between it and the next
    by (k + 1/2) / (n + 1). So k is alpha (n + 1) − 1/2, rounded, where `row_quantile` by itself rounds alpha · n up.
    """
    columns = contrast.columns(part)
    count = max(columns.stop - columns.start, 1)
    return row_quantile(contrast, alpha + (alpha - 1) / count, space, part)
