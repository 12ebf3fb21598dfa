"""How similar true and false negatives are to their anchors, and which of them were flagged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from falseneg.report.svg import Scale, drawing, join, percent, plain, round_steps, tag, x_axis

WIDTH, HEIGHT = 360, 232
LEFT, RIGHT, TOP, BOTTOM = 14, 348, 22, 190
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
    return [_draw(entry, Scale(low, high, LEFT, RIGHT), Scale(0, highest, BOTTOM, TOP)) for entry in chosen]


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


def _draw(entry: Mapping[str, Any], x: Scale, y: Scale) -> Histogram:
    parts, told = [], []
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
            parts.append(_threshold(x, threshold))
            told.append(f"the threshold was at {threshold:.2f}")
    base = tag("line", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM, class_="base")
    steps = round_steps(x.low, x.high, 5)
    axis = x_axis(x, steps, BOTTOM, "cosine of anchor and negative", plain)
    if not any(sum(_flagged(entry, kind)) for kind, _, _ in _kinds(entry)):
        told = ["nothing was flagged"]
    words = "; ".join(told)
    label = f"Similarities at epoch {entry['epoch']}: {words}."
    return Histogram(
        int(entry["epoch"]), drawing(WIDTH, HEIGHT, label, *parts, base, axis), words[0].upper() + words[1:]
    )


def _outline(edges: Sequence[float], shares: Sequence[float], x: Scale, y: Scale) -> str:
    """Stairs over the bins, down to the base at either end; only where there is something."""
    filled = [place for place, share in enumerate(shares) if share]
    first, last = filled[0], filled[-1]
    path = f"M{x(edges[first]):.1f} {y(0):.1f}"
    for place in range(first, last + 1):
        path += f"V{y(shares[place]):.1f}H{x(edges[place + 1]):.1f}"
    return path + f"V{y(0):.1f}z"


def _threshold(x: Scale, threshold: float) -> Markup:
    at = x(threshold)
    left = at > (LEFT + RIGHT) / 2
    text = tag(
        "text", f"threshold {threshold:.2f}", x=at, y=TOP - 8, text_anchor="end" if left else "start", class_="tick"
    )
    return join([tag("path", d=f"M{at:.1f} {TOP - 4}V{BOTTOM}", class_="threshold"), text])
