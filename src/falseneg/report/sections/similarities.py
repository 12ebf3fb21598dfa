"""How similar true and false negatives are to their anchors, and which of them were flagged."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from falseneg.foreign.text import read_json
from falseneg.report.arrays import check
from falseneg.report.chart import Style
from falseneg.report.comparison import ComparisonRecord
from falseneg.report.frame import Axis, Frame
from falseneg.report.read import File, RunRecord, is_figure
from falseneg.report.section import Section, part
from falseneg.report.svg import Scale, join, percent, round_steps, tag
from falseneg.train import names

KINDS = (("true_negative", "true negatives", "kind-true"), ("false_negative", "false negatives", "kind-false"))
UNLABELLED = (("negative", "negatives", "kind-true"),)


@dataclass(frozen=True)
class Histogram:
    """A drawn histogram of one epoch."""

    epoch: int
    drawing: Markup
    sentence: str


def histograms(entries: Sequence[Mapping[str, Any]]) -> list[Histogram]:
    """Draw the first and the last recorded epoch, on the same axes."""
    usable = sorted((entry for entry in entries if _kinds(entry)), key=lambda entry: int(entry["epoch"]))
    chosen = usable if len(usable) < 2 else [usable[0], usable[-1]]
    if not chosen:
        return []
    low, high = min(_range(entry)[0] for entry in chosen), max(_range(entry)[1] for entry in chosen)
    highest = max(max(_shares(entry, kind)) for entry in chosen for kind, _, _ in _kinds(entry))
    across = Axis(low, high, round_steps(low, high, 5), "cosine of anchor and negative")
    frame = Frame(across, Axis(0, highest), left=8, top=22)
    return [_draw(entry, frame) for entry in chosen]


def _kinds(entry: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The kinds of negatives that were counted at least once."""
    known = KINDS if any(name in entry for name, _, _ in KINDS) else UNLABELLED
    return [kind for kind in known if sum(entry.get(kind[0], ())) > 0]


def _flagged(entry: Mapping[str, Any], kind: str) -> Sequence[int]:
    return entry.get("flagged" if kind == "negative" else f"flagged_{kind}") or [0] * len(entry[kind])


def _shares(entry: Mapping[str, Any], kind: str) -> list[float]:
    total = sum(entry[kind])
    return [count / total for count in entry[kind]]


def _range(entry: Mapping[str, Any]) -> tuple[float, float]:
    """The cosines between which negatives were seen, a bin more on either side."""
    filled = [place for kind, _, _ in _kinds(entry) for place, count in enumerate(entry[kind]) if count]
    edges = entry["edges"]
    return edges[max(0, min(filled) - 1)], edges[min(len(edges) - 1, max(filled) + 2)]


def _draw(entry: Mapping[str, Any], frame: Frame) -> Histogram:
    parts, told, x, y = [], [], frame.across, frame.up
    for kind, name, colour in _kinds(entry):
        total, flagged = sum(entry[kind]), _flagged(entry, kind)
        shares = _shares(entry, kind)
        parts.append(tag("path", d=_outline(entry["edges"], shares, x, y), class_=f"histogram {colour}"))
        share = sum(flagged) / total
        text = f"{percent(share)} of the {name} were flagged"
        told.append(text)
        if sum(flagged):
            filled = [count / total for count in flagged]
            parts.append(
                tag("path", tag("title", text), d=_outline(entry["edges"], filled, x, y), class_=f"filled {colour}")
            )
    thresholds = entry.get("threshold")
    for threshold in thresholds if isinstance(thresholds, list) else [thresholds]:
        if threshold is not None and x.low <= threshold <= x.high:
            parts.append(_threshold(frame, threshold))
            told.append(f"the threshold was at {threshold:.2f}")
    if not any(sum(_flagged(entry, kind)) for kind, _, _ in _kinds(entry)):
        told = ["nothing was flagged"]
    words = "; ".join(told)
    label = f"Similarities at epoch {entry['epoch']}: {words}."
    return Histogram(int(entry["epoch"]), frame.draw(label, *parts), words[0].upper() + words[1:])


def _outline(edges: Sequence[float], shares: Sequence[float], x: Scale, y: Scale) -> str:
    """Stairs over the bins, down to the base at either end; only where there is something."""
    filled = [place for place, share in enumerate(shares) if share]
    first, last = filled[0], filled[-1]
    path = f"M{x(edges[first]):.1f} {y(0):.1f}"
    for place in range(first, last + 1):
        path += f"V{y(shares[place]):.1f}H{x(edges[place + 1]):.1f}"
    return path + f"V{y(0):.1f}z"


def _threshold(frame: Frame, threshold: float) -> Markup:
    at, above = frame.across(threshold), frame.top - 8
    anchor = "end" if at > (frame.left + frame.right) / 2 else "start"
    text = tag("text", f"threshold {threshold:.2f}", x=at, y=above, text_anchor=anchor, class_="tick")
    return join([tag("path", d=f"M{at:.1f} {frame.top - 4:.1f}V{frame.bottom:.1f}", class_="threshold"), text])


def _read(path: Path, run: RunRecord) -> list[dict[str, Any]]:
    entries = read_json(path)
    usable = [entry for entry in entries if _is_histogram(entry)]
    check(bool(usable) or entries == [])
    if len(usable) < len(entries):
        run.notes.append(
            f"{run.name}: damaged entries of similarities.json are left out ({len(entries) - len(usable)})"
        )
    return [entry for entry in usable if len(entry["edges"]) > 1 and entry["epoch"] > 0]


def _is_histogram(entry: Any) -> bool:
    """Whether an entry holds an epoch, rising edges and, between these, counts."""
    if not isinstance(entry, dict) or not isinstance(entry.get("epoch"), int) or not is_figure(entry["epoch"]):
        return False
    thresholds = entry.get("threshold")
    thresholds = thresholds if isinstance(thresholds, list) else [thresholds]
    edges = entry.get("edges")
    if not isinstance(edges, list) or not all(is_figure(edge) for edge in edges):
        return False
    counts = [value for key, value in entry.items() if key not in ("epoch", "edges", "threshold") and value is not None]
    return (
        all(low < high for low, high in itertools.pairwise(edges))
        and all(threshold is None or is_figure(threshold) for threshold in thresholds)
        and all(isinstance(each, list) and len(each) == max(0, len(edges) - 1) for each in counts)
        and all(is_figure(count) and count >= 0 for each in counts for count in each)
    )


SIMILARITIES = File(names.SIMILARITIES, _read, lambda run: run.finished)


@dataclass(frozen=True)
class Spread:
    """The histograms of one run: its title (empty for the page's only run) and how it is marked."""

    title: str
    style: Style | None
    histograms: list[Histogram]


def _of_run(run: RunRecord) -> list[Spread] | None:
    drawn = _drawn(run)
    return [Spread("", None, drawn)] if drawn else None


def _of_comparison(record: ComparisonRecord) -> list[Spread] | None:
    # An oracle's flags are right by definition.
    shown = {name: example for name, example in record.examples.items() if name not in record.oracles}
    spreads = [Spread(f"{name}, seed {seed}", record.styles[name], _drawn(run)) for name, (seed, run) in shown.items()]
    return [spread for spread in spreads if spread.histograms] or None


def _drawn(run: RunRecord) -> list[Histogram]:
    entries = run.get(SIMILARITIES) or []
    return part(run.notes, f"{run.name}: similarities", partial(histograms, entries)) or []


SECTION = Section(
    80, "similarities", "Similarities of negatives", "Similarities", _of_run, _of_comparison, (SIMILARITIES,)
)
