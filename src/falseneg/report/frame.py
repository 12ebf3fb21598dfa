"""The frame of every plot: axes whose numbers are exactly where they say, and the fine lines that belong to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from falseneg.report.svg import MINUS, Scale, drawing, join, tag

WIDTH = 360
UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Axis:
    """What is along one side of a plot.

    Attributes:
        low: the number at its start.
        high: the number at its end.
        steps: numbers that are written beside it; of these only the ones between low and high.
        title: what the numbers are.
        share: they are written as percentages.
    """

    low: float
    high: float
    steps: Sequence[float] = ()
    title: str = ""
    share: bool = False

    @staticmethod
    def along(steps: Sequence[float], title: str = "", share: bool = False) -> Axis:
        """From the first to the last of these numbers."""
        return Axis(steps[0], steps[-1], steps, title, share)

    @property
    def shown(self) -> list[tuple[float, str]]:
        """The numbers between low and high, and how they are written."""
        slack = 1e-9 * max(abs(self.high - self.low), 1e-300)
        steps = [step for step in self.steps if self.low - slack <= step <= self.high + slack]
        return list(zip(steps, ticks(steps, self.share), strict=True))


@dataclass(frozen=True)
class Frame:
    """Where a plot is, and its axes; without steps an axis is not written. Places are in units of the drawing.

    Attributes:
        x: across.
        y: upwards.
        left, right, top, bottom: of the plot; numbers and titles are outside.
        inset: space between the sides of the plot and the ends of x.
    """

    x: Axis
    y: Axis = field(default_factory=lambda: Axis(0, 1))
    left: float = 46
    right: float = 348
    top: float = 12
    bottom: float = 190
    inset: float = 7

    @property
    def across(self) -> Scale:
        """From numbers of x to places."""
        return Scale(self.x.low, self.x.high, self.left + self.inset, self.right - self.inset)

    @property
    def up(self) -> Scale:
        """From numbers of y to places."""
        return Scale(self.y.low, self.y.high, self.bottom, self.top)

    def draw(self, label: str, *parts: Markup) -> Markup:
        """The whole plot: the frame, and what is in it.

        Args:
            label: the plot in words, for those who do not see it.
            parts: drawn over the frame's lines.
        """
        return drawing(WIDTH, self.bottom + 42, label, self._lines(), *parts, self._numbers())

    def _lines(self) -> Markup:
        """Fine lines at the steps of y; at those of x, if y has none."""
        lines = [tag("line", x1=self.left, x2=self.right, y1=y, y2=y, class_="grid") for y in self._at(self.y, self.up)]
        places = self._at(self.x, self.across)
        if not lines:
            lines = [tag("line", x1=x, x2=x, y1=self.top, y2=self.bottom, class_="grid") for x in places]
        base = tag("path", d=f"M{self.left:.1f} {self.bottom:.1f}H{self.right:.1f}", class_="base")
        small = "".join(f"M{x:.1f} {self.bottom:.1f}v4" for x in places)
        return join([*lines, base, tag("path", d=small, class_="base")])

    def _at(self, axis: Axis, scale: Scale) -> list[float]:
        return [scale(step) for step, _ in axis.shown]

    def _numbers(self) -> Markup:
        parts = []
        for step, text in self.y.shown:
            parts.append(tag("text", text, x=self.left - 6, y=self.up(step) + 4, text_anchor="end", class_="tick"))
        for step, text in self.x.shown:
            at, below = self.across(step), self.bottom + 17
            parts.append(tag("text", text, x=at, y=below, text_anchor="middle", class_="tick"))
        if self.y.title:
            parts.append(tag("text", self.y.title, x=4, y=self.top - 12, class_="axis"))
        if self.x.title:
            middle, below = (self.left + self.right) / 2, self.bottom + 34
            parts.append(tag("text", self.x.title, x=middle, y=below, text_anchor="middle", class_="axis"))
        return join(parts)


def ticks(steps: Sequence[float], share: bool = False) -> list[str]:
    """Numbers of one axis, all with as many digits as the most exact of them needs: never rounded to another number.

    Args:
        steps: the numbers, evenly spaced.
        share: as percentages.
    """
    if not steps:
        return []
    shown = [100 * step for step in steps] if share else list(steps)
    largest = max(abs(value) for value in shown)
    unit, name = next(((unit, name) for unit, name in UNITS if largest >= max(unit, 1e5)), (1.0, ""))
    if largest >= 1e16 or 0 < largest < 1e-4:
        return [f"{value:.6g}".replace("-", MINUS) for value in shown]
    values = [value / unit for value in shown]
    slack = 1e-6 * (abs(values[1] - values[0]) if len(values) > 1 else abs(values[0]) or 1)
    digits = next((d for d in range(9) if all(abs(round(value, d) - value) <= slack for value in values)), 9)
    written = [f"{value:,.{digits}f}{name}".replace("-", MINUS) if value else "0" for value in values]
    return [text + "%" * share for text in written]
