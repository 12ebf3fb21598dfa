"""State that is kept for each row of the data set: thresholds, running means, temperatures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from falseneg.contrast import Contrast
from falseneg.errors import UserError
from falseneg.statistics.gather import gather_rows


@dataclass(frozen=True, eq=False)
class GatheredRows:
    """Values of all ranks for some lines of a table: n entries, of which several (an image's views) may share a line.

    What follows for a line is held by each of its entries: no shape depends on the values, so that nothing waits for
    the device to tell how many lines there are.

    Attributes:
        line: (n,) int64 the line of each entry.
        place: (n,) int64 below n, the same for the entries of one line and no others.
        known: (n,) bool: no value of the entry is missing.
        values: (n,) float64 for each name; 0 in entries that are not known.
        number: (n,) float64, how many entries of the entry's line are known.
    """

    line: Tensor
    place: Tensor
    known: Tensor
    values: Mapping[str, Tensor]
    number: Tensor

    def mean(self, name: str) -> Tensor:
        """(n,) float64 the mean of each line's known values; NaN where there are none."""
        return _sum_of_lines(self.values[name], self.place) / self.number

    def log_mean(self, name: str) -> Tensor:
        """(n,) float64 the log of the mean of each line's exp(values), none of which is ever formed; NaN likewise."""
        logs = self.values[name].masked_fill(~self.known, -torch.inf)
        highest = torch.full_like(logs, -torch.inf).scatter_reduce(0, self.place, logs, "amax")[self.place]
        relative = (logs - highest).exp().masked_fill(~self.known, 0)
        return highest + (_sum_of_lines(relative, self.place) / self.number).log()


def _sum_of_lines(values: Tensor, place: Tensor) -> Tensor:
    """(n,) the sum over the entries of each entry's line."""
    return torch.zeros_like(values).index_add_(0, place, values)[place]


class SampleTable(nn.Module):
    """Named columns of float32, one line for each row of the data set, saved with the checkpoint.

    Every rank holds the whole table, and a write brings the rows of all ranks together, so that the ranks' tables stay
    equal and no update is lost. Memory: 4 bytes a line and column, 8 for the visits.

    Args:
        rows: lines, one for each row of the data set.
        columns: the columns' names and what they hold before a row is first written.

    Raises:
        UserError: there are no rows.
    """

    visits: Tensor
    complete: bool
    """Every line is known to have been visited; `check_complete` finds out."""

    def __init__(self, rows: int, columns: Mapping[str, float]) -> None:
        super().__init__()
        if rows < 1:
            raise UserError(f"SampleTable: {rows} rows; give the number of images in the data set, at least 1")
        self.rows, self.names = rows, tuple(columns)
        for name, start in columns.items():
            self.register_buffer(f"column_{name}", torch.full((rows,), start, dtype=torch.float32))
        self.register_buffer("visits", torch.zeros(rows, dtype=torch.int64))
        self.complete = False
        self.register_load_state_dict_post_hook(_unknown_again)

    def check_complete(self) -> None:
        """Find out whether every line was visited. Waits for the device, in O(rows): not for every step."""
        self.complete = self.complete or bool((self.visits > 0).all())

    def read(self, name: str, row: Tensor) -> Tensor:
        """(N,) float32 values of a column.

        Args:
            name: the column.
            row: (N,) int64 lines.

        Raises:
            UserError: a line is beyond the table, as far as that can be seen without waiting for the device: on a CPU.
        """
        self._check(row)
        return self.column(name)[row]

    @torch.no_grad()
    def write(self, row: Tensor, values: Mapping[str, Tensor]) -> None:
        """Store new values, of all ranks; several values for one line (its views) are averaged, and count as one visit.

        Args:
            row: (N,) int64 lines.
            values: (N,) for each column to write.

        Raises:
            UserError: as `read`.
        """
        gathered = self.gather_by_row(row, values)
        self.update(gathered, {name: gathered.mean(name) for name in values})

    @torch.no_grad()
    def gather_by_row(self, row: Tensor, values: Mapping[str, Tensor]) -> GatheredRows:
        """The values of all ranks: for updates that need a line's values (its views) all at once.

        Args:
            row: (N,) int64 lines, of this rank.
            values: (N,) for each name. An entry with a NaN among its values counts as not known.

        Returns:
            The same on every rank.

        Raises:
            UserError: as `read`.
        """
        self._check(row)
        stacked = torch.stack([new.double() for new in values.values()], dim=1)
        row, stacked = gather_rows(row), gather_rows(stacked)
        known = ~stacked.isnan().any(dim=1)
        ordered, order = row.sort(stable=True)
        begins = torch.zeros_like(row)
        begins[1:] = ordered[1:] != ordered[:-1]
        place = torch.empty_like(row).scatter_(0, order, begins.cumsum(0))
        columns = stacked.masked_fill(~known[:, None], 0).unbind(1)
        number = _sum_of_lines(known.double(), place)
        return GatheredRows(row, place, known, dict(zip(values, columns, strict=True)), number)

    @torch.no_grad()
    def update(self, gathered: GatheredRows, values: Mapping[str, Tensor]) -> None:
        """Store new values, which are the same on every rank; one visit of each line. What was not known stays.

        Args:
            gathered: n entries.
            values: (n,) for each column to write; the same for all entries of a line.
        """
        known = gathered.number > 0
        for name, new in values.items():
            column = self.column(name)
            column[gathered.line] = torch.where(known, new.float(), column[gathered.line])
        self.visits[gathered.line] = self.visits[gathered.line] + known.long()

    def column(self, name: str) -> Tensor:
        """(rows,) float32: a whole column, as it is stored."""
        if name not in self.names:
            raise KeyError(f"the table has no column {name!r}; it has {', '.join(self.names)}")
        column: Tensor = getattr(self, f"column_{name}")
        return column

    def _check(self, row: Tensor) -> None:
        """On a CPU only: a GPU would have to be waited for, several times in a step. `fit` knows its rows, and
        `ContrastiveLoss` looks at those that it is given.
        """
        if row.device.type == "cpu" and len(row) and not (int(row.min()) >= 0 and int(row.max()) < self.rows):
            raise UserError(
                f"SampleTable: row {int(row.max()) if int(row.max()) >= self.rows else int(row.min())} is outside the "
                f"table of {self.rows} rows; give the table as many rows as the data set has"
            )


def _unknown_again(table: SampleTable, _: object) -> None:
    """After a state was loaded."""
    table.complete = False


def of_contrast(modules: nn.ModuleDict, contrast: Contrast, owner: nn.Module) -> Any:
    """What is kept for that contrast, by its name.

    Raises:
        UserError: there is nothing: ``owner`` was not prepared, or not for this contrast.
    """
    if contrast.name not in modules:
        known = ", ".join(map(repr, modules)) or "none"
        raise UserError(
            f"{type(owner).__name__}: there is no table for the contrast {contrast.name!r} (there are: {known}); before "
            "training, call prepare(Facts(rows=..., contrasts=...)) with the number of images in the data set"
        )
    return modules[contrast.name]
