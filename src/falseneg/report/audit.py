"""The page of an audit: one HTML file, without a script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from falseneg.audit import Audit
from falseneg.audit.files import few, same_class
from falseneg.audit.measure import MOST_PAIRS
from falseneg.audit.suggestion import NEARLY, Suggestion
from falseneg.files import write_bytes
from falseneg.report.page import Page, render
from falseneg.report.pictures import Picture, PictureMaker, Thumbnails, class_name
from falseneg.report.sections.summary import Tile
from falseneg.report.svg import counted, percent
from falseneg.train.sources import name_of
from falseneg.train.thumbnails import ENLARGED, thumbnail_arrays

PAGE = "audit.html"
GROUPS, OF_GROUP = 16, 8
"""Groups of duplicates that are shown, and images of each."""
ANCHORS, PER_ANCHOR = 16, 8
"""Images whose flagged negatives are shown, and how many of each."""


@dataclass(frozen=True)
class Part:
    """A section of the page: ``templates/ANCHOR.html`` shows the content."""

    anchor: str
    title: str
    link: str


@dataclass(frozen=True)
class Group:
    """Images that are the same or nearly so: those that are shown, and how many there are."""

    pictures: list[Picture]
    images: int


@dataclass(frozen=True)
class Suspect:
    """A flagged negative, and the detectors that flag it."""

    picture: Picture
    by: list[str]


def write_page(found: Audit, about: Mapping[str, Any], folder: Path) -> Path:
    """Write the page into the folder.

    Args:
        found: the audit.
        about: what was audited, as ``audit.json`` has it.
        folder: where it goes.

    Raises:
        UserError: an image cannot be read any more, or the file cannot be written.
    """
    maker = _pictures(found)
    facts = [counted(len(found.images), "image"), name_of(about["encoder"]), f"{about['image_size']} pixels"]
    facts += [f"batches of {found.suggestion.batch:,}", f"seed {about['seed']}"]
    page = Page("an audit", str(about["data"]), facts, found.measured.labelled, [])
    parts = [
        (Part("findings", "What was found", "Findings"), _findings(found)),
        (Part("twins", "Duplicates", "Duplicates"), _twins(found, maker)),
        (Part("detectors", "What detectors would flag", "Detectors"), _detectors(found)),
        (Part("suggestion", "How much to flag", "How much"), _suggestion(found)),
        (Part("lookalikes", "Classes that look alike", "Look-alikes"), _lookalikes(found, maker)),
        (Part("suspects", "Flagged negatives", "Flagged"), _suspects(found, maker)),
    ]
    out = folder / PAGE
    write_bytes(out, render(page, parts).encode(errors="replace"))  # names of files may hold what is not text
    return out


def _findings(found: Audit) -> dict[str, Any]:
    duplicates, suggestion, measured = found.duplicates, found.suggestion, found.measured
    precision = measured.counts(0).precision
    near = same_class(found)
    tiles = [
        Tile(
            "exact duplicates",
            f"{duplicates.copies:,}",
            "image that equals an earlier one" if duplicates.copies == 1 else "images that equal an earlier one",
        ),
        Tile(
            "near duplicates",
            f"{len(duplicates.near):,}",
            ("pair" if len(duplicates.near) == 1 else "pairs")
            + ("" if near is None else f", {percent(near)} of one class"),
        ),
        _alpha(suggestion),
        Tile(
            "support set right",
            "unknown" if precision is None else percent(precision),
            "of what it flags" if precision is not None else "without labels",
        ),
    ]
    if found.shared_captions is not None:
        tiles.insert(2, Tile("shared captions", f"{found.shared_captions:,}", "images with another's captions"))
    return {"headline": _headline(found), "tiles": tiles, "looked_at": len(found.sample), "of": len(found.images)}


def _alpha(suggestion: Suggestion) -> Tile:
    if suggestion.known:
        note = f"suggested share of negatives to flag; top_k {suggestion.top_k}"
        return Tile("alpha", f"{suggestion.chosen.alpha:.3g}", note)
    fewest, most = suggestion.fitting
    return Tile(
        "alpha",
        f"{most.alpha:.2g} to {fewest.alpha:.2g}",
        "shares of negatives that fit; without labels none is suggested",
    )


def _headline(found: Audit) -> str:
    measured, negatives = found.measured, found.suggestion.batch - 1
    share, right = measured.agreed(measured.majority)
    agreed = f"at least {measured.majority} of {len(measured.names)} detectors flag {few(share * negatives)}"
    agreed += "" if right is None else f", and {percent(right)} of those flags are right"
    if (chance := measured.counts(0).chance) is not None:
        agreed = f"by the labels {few(chance * negatives)} of them are false; {agreed}"
    return f"In a batch of {negatives + 1:,} an image has {negatives:,} negatives: {agreed}."


def _twins(found: Audit, maker: PictureMaker) -> dict[str, Any]:
    duplicates = found.duplicates
    exact, near = list(duplicates.exact), duplicates.near_groups()
    return {
        "threshold": f"{duplicates.threshold:.3f}",
        "exact": _groups(exact, maker),
        "exact_of": len(exact),
        "near": _groups(near, maker),
        "near_of": len(near),
    }


def _groups(groups: Sequence[Sequence[int]], maker: PictureMaker) -> list[Group]:
    shown = _spread(groups, GROUPS)
    return [Group([maker.picture(row, "unknown") for row in each[:OF_GROUP]], len(each)) for each in shown]


def _spread(groups: Sequence[Sequence[int]], most: int) -> list[Sequence[int]]:
    """Half of them the first, which are the largest; the others spread over the rest."""
    first, rest = list(groups[: most // 2]), groups[most // 2 :]
    room = min(most - len(first), len(rest))
    return first + [rest[place * len(rest) // room] for place in range(room)]


def _detectors(found: Audit) -> dict[str, Any]:
    measured, negatives = found.measured, found.suggestion.batch - 1
    columns = ["detector", "flagged of an image's negatives", "share"]
    columns += ["right (precision)", "found (recall)", "F1"] if measured.labelled else []
    rows = []
    for place, name in enumerate(measured.names):
        counts, share = measured.counts(place), measured.share(place)
        row = [name, f"{few(share * negatives)} of {negatives:,}", percent(share)]
        figures = [counts.precision, counts.recall, counts.f1] if measured.labelled else []
        rows.append(row + ["" if each is None else percent(each) for each in figures])
    agreement = []
    for one, name in enumerate(measured.names):
        also = [measured.also(one, other) for other in range(len(measured.names))]
        agreement.append([name, *("" if each is None else percent(each) for each in also)])
    votes = []
    for least in range(len(measured.names), 0, -1):
        share, right = measured.agreed(least)
        row = [
            f"{least} or more" if least < len(measured.names) else f"all {least}",
            f"{few(share * negatives)} of {negatives:,}",
            percent(share),
        ]
        votes.append(row + ([percent(right) if right is not None else ""] if measured.labelled else []))
    counts = measured.counts(0)
    return {
        "columns": columns,
        "rows": rows,
        "chance": None if counts.chance is None else percent(counts.chance),
        "captioned": found.shared_captions is not None,
        "votes_columns": ["detectors that flag", *columns[1:3], *(["right (precision)"] if measured.labelled else [])],
        "votes": votes,
        "agreement_columns": ["flagged by ↓, also by →", *measured.names],
        "agreement": agreement,
        "said": [f"{name} {percent(value)}" for name, value in measured.figures.items()],
    }


def _suggestion(found: Audit) -> dict[str, Any]:
    suggestion, labelled = found.suggestion, found.measured.labelled
    columns = ["kinds", "alpha", "agreement (kappa)"] + (["precision", "recall", "F1"] if labelled else [])
    rows, best = [], suggestion.by_agreement
    for each in suggestion.tried:
        marks = [" ← suggested"] * (suggestion.known and each == suggestion.chosen)
        marks += [" ← most agreement"] * (each == best and not marks)
        row = [
            f"{each.kinds:,}{''.join(marks)}",
            f"{each.alpha:.4g}",
            "" if each.kappa is None else f"{each.kappa:.3f}",
        ]
        figures = [each.precision, each.recall, each.f1] if labelled else []
        rows.append(row + ["" if figure is None else percent(figure) for figure in figures])
    return {"columns": columns, "rows": rows, "chosen": suggestion, "agreed": best, "nearly": NEARLY}


def _lookalikes(found: Audit, maker: PictureMaker) -> list[dict[str, Any]] | None:
    if not found.confusable:
        return None
    names = found.images.class_names
    return [
        {
            "one": class_name(each.one, names),
            "other": class_name(each.other, names),
            "share": percent(each.share),
            "back": percent(each.back),
            "pictures": [maker.picture(each.pair[0], "unknown"), maker.picture(each.pair[1], "unknown", each.cosine)],
        }
        for each in found.confusable
    ]


def _suspects(found: Audit, maker: PictureMaker) -> dict[str, Any]:
    labels, names, pairs = found.images.labels, found.measured.names, found.measured.pairs
    shown = []
    for anchor, places in _gallery(found).items():
        suspects = []
        for place in places:
            candidate = int(pairs.candidate[place])
            verdict = "unknown"
            if labels is not None and min(int(labels[anchor]), int(labels[candidate])) >= 0:
                verdict = "right" if labels[anchor] == labels[candidate] else "wrong"
            by = [name for name, flag in zip(names, pairs.flags[place].tolist(), strict=True) if flag]
            suspects.append(Suspect(maker.picture(candidate, verdict, float(pairs.score[place])), by))
        shown.append({"anchor": maker.picture(anchor, "anchor"), "suspects": suspects})
    return {"anchors": shown, "of": len(names), "pairs": len(pairs.score), "all": len(pairs.score) < MOST_PAIRS}


def _gallery(found: Audit) -> dict[int, list[int]]:
    """Anchors, spread over those with flagged negatives, and the places of their most similar pairs."""
    pairs = found.measured.pairs
    anchors = pairs.anchor.unique()
    chosen = (
        anchors[[place * len(anchors) // ANCHORS for place in range(ANCHORS)]].unique() if len(anchors) else anchors
    )
    return {anchor: (pairs.anchor == anchor).nonzero()[:PER_ANCHOR, 0].tolist() for anchor in chosen.tolist()}


def _pictures(found: Audit) -> PictureMaker:
    """Of all images that are shown."""
    groups = [*_spread(found.duplicates.exact, GROUPS), *_spread(found.duplicates.near_groups(), GROUPS)]
    rows = {row for group in groups for row in group[:OF_GROUP]}
    rows |= {row for each in found.confusable or [] for row in each.pair}
    for anchor, places in _gallery(found).items():
        rows |= {anchor, *found.measured.pairs.candidate[places].tolist()}
    arrays = thumbnail_arrays(found.images, sorted(rows), ENLARGED)
    texts: dict[str, list[str] | None] = {
        name: _as_texts(arrays.get(name)) for name in ("names", "class_names", "captions")
    }
    kept = (
        arrays["rows"],
        arrays["images"],
        texts["names"],
        arrays.get("labels"),
        texts["class_names"],
        texts["captions"],
    )
    return PictureMaker(Thumbnails(*kept))


def _as_texts(values: Iterable[Any] | None) -> list[str] | None:
    return None if values is None else [str(value) for value in values]
