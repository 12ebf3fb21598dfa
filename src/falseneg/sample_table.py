"""State that is kept for each row of the data set: thresholds, running means, temperatures."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

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
        return self._column(name)[row]

    @torch.no_grad()
    def write(self, row: Tensor, values: Mapping[str, Tensor]) -> None:
        """Store new values, of all ranks; several values for one line (its views) are averaged, and count as one visit.

        Args:
            row: (N,) int64 lines.
            values: (N,) for each column to write.

        Raises:
            UserError: a line is beyond the table.
        """
        self._check(row)
        lines, place, repeats = gather_rows(row).unique(return_inverse=True, return_counts=True)
        for name, new in values.items():
            total = torch.zeros(len(lines), dtype=torch.float64, device=row.device)
            total.index_add_(0, place, gather_rows(new.double()))
            self._column(name)[lines] = (total / repeats).float()
        self.visits[lines] += 1

    def _column(self, name: str) -> Tensor:
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
