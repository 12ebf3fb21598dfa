"""State that is kept for each row of the data set: thresholds, running means, temperatures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from falseneg.contrast import Contrast
from falseneg.errors import UserError
from falseneg.statistics.gather import gather_rows


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

    def __init__(self, rows: int, columns: Mapping[str, float]) -> None:
        super().__init__()
        if rows < 1:
            raise UserError(f"SampleTable: {rows} rows; give the number of images in the data set, at least 1")
        self.rows, self.names = rows, tuple(columns)
        for name, start in columns.items():
            self.register_buffer(f"column_{name}", torch.full((rows,), start, dtype=torch.float32))
        self.register_buffer("visits", torch.zeros(rows, dtype=torch.int64))

    def read(self, name: str, row: Tensor) -> Tensor:
        """(N,) float32 values of a column.

        Args:
            name: the column.
            row: (N,) int64 lines.

        Raises:
            UserError: a line is beyond the table.
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
            UserError: a line is beyond the table.
        """
        lines, place, everyone = self.together(row, values)
        self.put(lines, {name: mean_of_lines(new, place, len(lines)) for name, new in everyone.items()})

    @torch.no_grad()
    def together(self, row: Tensor, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The values of all ranks, sorted by line: for updates that need a line's values (its views) all at once.

        Args:
            row: (N,) int64 lines, of this rank.
            values: (N,) for each name. An entry with a NaN among its values is left out.

        Returns:
            (L,) the lines that occur; (n,) the place of each entry among them; and (n,) float64 for each name. All the
            same on every rank.

        Raises:
            UserError: a line is beyond the table.
        """
        self._check(row)
        stacked = torch.stack([new.double() for new in values.values()], dim=1)
        row, stacked = gather_rows(row), gather_rows(stacked)
        known = ~stacked.isnan().any(dim=1)
        lines, place = row[known].unique(return_inverse=True)
        return lines, place, dict(zip(values, stacked[known].unbind(1), strict=True))

    @torch.no_grad()
    def put(self, lines: Tensor, values: Mapping[str, Tensor]) -> None:
        """Store new values, which are the same on every rank; one visit of each line.

        Args:
            lines: (L,) int64, no line twice.
            values: (L,) for each column to write.
        """
        for name, new in values.items():
            self.column(name)[lines] = new.float()
        self.visits[lines] += 1

    def column(self, name: str) -> Tensor:
        """(rows,) float32: a whole column, as it is stored."""
        if name not in self.names:
            raise KeyError(f"the table has no column {name!r}; it has {', '.join(self.names)}")
        column: Tensor = getattr(self, f"column_{name}")
        return column

    def _check(self, row: Tensor) -> None:
        if len(row) and not (int(row.min()) >= 0 and int(row.max()) < self.rows):
            raise UserError(
                f"SampleTable: row {int(row.max()) if int(row.max()) >= self.rows else int(row.min())} is outside the "
                f"table of {self.rows} rows; give the table as many rows as the data set has"
            )


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


def mean_of_lines(values: Tensor, place: Tensor, lines: int) -> Tensor:
    """(L,) float64 the mean of each line's values; ``place`` (n,) says which line each belongs to."""
    total = torch.zeros(lines, dtype=torch.float64, device=values.device).index_add_(0, place, values)
    return total / place.bincount(minlength=lines)


def log_mean_of_lines(logs: Tensor, place: Tensor, lines: int) -> Tensor:
    """(L,) float64 the log of the mean of each line's exp(logs), none of which is ever formed."""
    highest = torch.full((lines,), -torch.inf, dtype=torch.float64, device=logs.device)
    highest = highest.scatter_reduce(0, place, logs, "amax")
    return highest + mean_of_lines((logs - highest[place]).exp(), place, lines).log()
