"""What protocols measured, beside what the papers publish."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from falseneg.evaluation.published import SOURCES, methods_of, published
from falseneg.foreign.text import read_json
from falseneg.report.comparison import ComparisonRecord
from falseneg.report.read import Files, RunRecord, is_figure
from falseneg.report.section import Section, part
from falseneg.report.svg import percent
from falseneg.train.names import EVALUATIONS

_LONGEST = 60
"""Letters of a name that a file may give a row."""
_MOST = 100
"""Rows of a table."""
_NONE = "–"


@dataclass(frozen=True)
class Measured:
    """The figures of one protocol.

    Attributes:
        protocol: its name.
        note: with what it was measured.
        source: where the published figures stand; empty where there are none.
        columns: the heads of the table.
        rows: a line for each figure: what, metric, here, and the published ones.
    """

    protocol: str
    note: str
    source: str
    columns: list[str]
    rows: list[list[str]]


def _read(path: Path, run: RunRecord) -> Measured:
    content = read_json(path)
    protocol, listed = str(content["protocol"])[:_LONGEST], content["figures"]
    figures = [each for each in listed if each["value"] is None or is_figure(each["value"])][:_MOST]
    methods = methods_of(protocol)
    rows = []
    for each in figures:
        on, metric = str(each["on"])[:_LONGEST], str(each["metric"])[:_LONGEST]
        theirs = published(protocol, on, metric)
        others = [percent(theirs[name]) if name in theirs else _NONE for name in methods]
        rows.append([on or protocol, metric, _here(each), *others])
    note = f"images of {int(content['image_size'])} pixels, seed {int(content['seed'])}, "
    note += f"encoder {str(content['encoder']['sha256'])[:12]}"
    return Measured(protocol, note, SOURCES.get(protocol, ""), ["", "metric", "here", *methods], rows)


def _here(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return "not measurable"
    sd = figure.get("sd")
    return percent(figure["value"]) + (f" ± {percent(sd)}" if sd is not None and is_figure(sd) else "")


FILES = Files(f"{EVALUATIONS}/*.json", _read)


def _of_run(run: RunRecord) -> list[Measured] | None:
    return part(run.notes, "the evaluations", lambda: list(run.get_all(FILES).values())) or None


def _of_comparison(record: ComparisonRecord) -> None:
    """Of a comparison each run has its own."""


SECTION = Section(25, "evaluations", "Evaluations", "Evaluations", _of_run, _of_comparison, (FILES,))
