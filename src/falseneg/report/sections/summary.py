"""What came of it in a few words and figures, and what could not be shown."""

from __future__ import annotations

from dataclasses import dataclass, field

from falseneg.compare.summary import ACCURACIES, BASELINE
from falseneg.compare.tables import INTERVALS, NAMES, of_test_images
from falseneg.report import verdict
from falseneg.report.chart import Style
from falseneg.report.comparison import ComparisonRecord
from falseneg.report.read import RunRecord
from falseneg.report.section import Section, part
from falseneg.report.svg import percent
from falseneg.report.verdict import Judgement


@dataclass(frozen=True)
class Tile:
    """A figure in large type: what it is, its value, and a remark."""

    name: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class Overview:
    """A headline; of a run its figures, of a comparison the verdicts, the primary measure, and what intervals mean."""

    headline: str
    tiles: list[Tile] = field(default_factory=list)
    judgements: list[tuple[Style, Judgement]] = field(default_factory=list)
    measure: str = ""
    intervals: str = ""


def _of_run(run: RunRecord) -> Overview:
    headline = part(run.notes, "the headline", lambda: verdict.run_headline(run)) or ""
    return Overview(headline, part(run.notes, "the figures", lambda: _tiles(run)) or [])


def _of_comparison(record: ComparisonRecord) -> Overview:
    summary, notes = record.summary, record.notes
    headline = part(notes, "the headline", lambda: verdict.headline(summary)) or ""
    judged = [item for item in summary.variants if item.name != BASELINE]
    judgements = part(
        notes, "the verdicts", lambda: [(record.styles[item.name], verdict.judge(item, summary)) for item in judged]
    )
    if not record.results:
        return Overview(headline, judgements=judgements or [])
    intervals = f"{INTERVALS} {of_test_images(summary)}"
    return Overview(headline, judgements=judgements or [], measure=NAMES[summary.primary], intervals=intervals)


def _tiles(run: RunRecord) -> list[Tile]:
    figures = {**run.last, **(run.final or {})}
    tiles = []
    for key in ACCURACIES:
        if figures.get(key) is not None:
            sd, start = figures.get(f"{key}_sd"), run.start.get(key)
            spread = [] if sd is None else [f"± {percent(sd)} over draws of labels"]
            before = [] if start is None else [f"before training {percent(start)}"]
            tiles.append(Tile(f"{NAMES[key]} accuracy", percent(figures[key]), "; ".join([*before, *spread])))
    if figures.get("precision") is not None:
        by_chance = f"chance: {percent(figures['chance'])}" if figures.get("chance") is not None else ""
        tiles.append(Tile("precision of flags", percent(figures["precision"]), by_chance))
    if figures.get("share_flagged"):
        found = f"{percent(figures['recall'])} of false negatives" if figures.get("recall") is not None else ""
        tiles.append(Tile("negatives flagged", percent(figures["share_flagged"]), found))
    seconds = figures.get("seconds_per_epoch", figures.get("seconds"))
    if seconds is not None:
        memory = figures.get("peak_memory_mib")
        tiles.append(Tile("seconds per epoch", f"{seconds:.3g}", f"{memory:,.0f} MiB at peak" if memory else ""))
    return tiles


SECTION = Section(10, "summary", "Summary", "Summary", _of_run, _of_comparison)
