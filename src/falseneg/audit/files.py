"""The files of an audit: pairs for other programs and for spreadsheets, and all figures.

- ``pairs.parquet`` and ``pairs.csv``: near and exact duplicates of the whole data set, and the most similar pairs that any
  detector flagged in a batch, with the columns of `falseneg.train.pairs` except for ``epoch``; and of each ``exact``,
  ``near``, and one column for each detector, which is null where the two were never in one batch.
- ``duplicates.parquet``: the columns ``anchor``, ``candidate`` and ``score`` of the duplicates, in both orders, as the detector
  `Neighbours` reads them.
- ``audit.json``: the figures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from falseneg.audit.audit import Audit
from falseneg.audit.duplicates import Duplicates
from falseneg.audit.measure import Measured
from falseneg.files import write_bytes
from falseneg.train.pairs import as_csv, pair_table, write_table

if TYPE_CHECKING:
    import pyarrow as pa

PAIRS, PAIRS_CSV, DUPLICATES, FIGURES = "pairs.parquet", "pairs.csv", "duplicates.parquet", "audit.json"
KINDS = ("exact", "near")


def write_files(found: Audit, folder: Path, about: Mapping[str, Any]) -> None:
    """Write all files but the page.

    Args:
        found: the audit.
        folder: where they go.
        about: what was audited, for ``audit.json``.

    Raises:
        UserError: they cannot be written.
    """
    table = pairs_of(found)
    write_table(table, folder / PAIRS)
    write_bytes(folder / PAIRS_CSV, as_csv(table, further=(*KINDS, *found.measured.names)))
    write_table(_both_ways(found.duplicates), folder / DUPLICATES)
    content = {**about, **figures_of(found)}
    write_bytes(folder / FIGURES, (json.dumps(content, indent=1) + "\n").encode())


def pairs_of(found: Audit) -> pa.Table:
    """The columns of ``pairs.parquet``, the most similar pairs first."""
    import pyarrow as pa

    exact, near, flagged = found.duplicates.exact_pairs(), found.duplicates.near, found.measured.pairs
    listed = np.stack([flagged.anchor.numpy(), flagged.candidate.numpy()], axis=1)
    # A duplicate that was flagged stands once, with what is known of it; duplicates that were not are added.
    kinds = {tuple(pair): place for place, pairs in enumerate((exact, near)) for pair in pairs.tolist()}
    kind = np.array([kinds.get((min(a, b), max(a, b)), -1) for a, b in listed.tolist()], dtype=np.int64)
    seen = {(min(a, b), max(a, b)) for (a, b), one in zip(listed.tolist(), kind.tolist(), strict=True) if one >= 0}
    scores = (np.ones(len(exact), dtype=np.float32), found.duplicates.cosines)
    alone = [[tuple(pair) not in seen for pair in pairs.tolist()] for pairs in (exact, near)]
    chosen = [np.array(each, dtype=bool) for each in alone]
    added = np.concatenate([pairs[one] for pairs, one in zip((exact, near), chosen, strict=True)])
    added_scores = np.concatenate([score[one] for score, one in zip(scores, chosen, strict=True)])
    kind = np.concatenate([kind, np.repeat([0, 1], [one.sum() for one in chosen])])
    pairs, score = np.concatenate([listed, added]), np.concatenate([flagged.score.numpy(), added_scores])
    table = pair_table(found.images, pairs, score.astype(np.float32), 0).drop_columns(["epoch"])
    for place, name in enumerate(KINDS):
        table = table.append_column(name, pa.array(kind == place))
    unknown = np.arange(len(pairs)) >= len(listed)
    for place, name in enumerate(found.measured.names):
        flags = np.concatenate([flagged.flags[:, place].numpy(), np.zeros(len(added), dtype=bool)])
        table = table.append_column(name, pa.array(flags, mask=unknown))
    return table.sort_by([("score", "descending")])


def figures_of(found: Audit) -> dict[str, Any]:
    """All figures, as JSON takes them; shares are in [0, 1], None where they cannot be measured."""
    measured, suggestion, duplicates = found.measured, found.suggestion, found.duplicates
    names, places = measured.names, range(len(measured.names))
    detectors = {name: measured.counts(place).figures() for place, name in enumerate(names)}
    for place, name in enumerate(names):
        detectors[name]["share_flagged"] = measured.share(place)
    tried = [
        {"kinds": e.kinds, "kappa": e.kappa, "precision": e.precision, "recall": e.recall, "f1": e.f1}
        for e in suggestion.tried
    ]
    return {
        "images": len(found.images),
        "looked_at_by_detectors": len(found.sample),
        "exact_duplicates": {"groups": len(duplicates.exact), "copies": duplicates.copies},
        "near_duplicates": {
            "pairs": len(duplicates.near),
            "threshold": duplicates.threshold,
            "same_class": same_class(found),
        },
        "shared_captions": found.shared_captions,
        "batch_size": suggestion.batch,
        "suggestion": {
            "alpha": suggestion.chosen.alpha if suggestion.known else None,
            "top_k": suggestion.top_k if suggestion.known else None,
            "by": suggestion.by,
            "detectors_set_to": suggestion.chosen.kinds,
            "fitting": [each.kinds for each in suggestion.fitting],
            "tried": tried,
        },
        "detectors": detectors,
        "agreed": [_agreed(measured, least) for least in range(1, len(names) + 1)],
        "also_flagged": {names[one]: {names[other]: measured.also(one, other) for other in places} for one in places},
        "said_by_detectors": dict(measured.figures),
        "confusable": _confusable(found),
    }


def _agreed(measured: Measured, least: int) -> dict[str, float | None]:
    share, precision = measured.agreed(least)
    return {"at_least": least, "share": share, "precision": precision}


def same_class(found: Audit) -> float | None:
    """Of the near duplicates whose classes are known, the share that has the same one."""
    if found.images.labels is None:
        return None
    classes = found.images.labels.numpy()[found.duplicates.near]
    known = (classes >= 0).all(axis=1)
    return float((classes[known, 0] == classes[known, 1]).mean()) if known.any() else None


def few(number: float) -> str:
    """How many of an image's negatives, on average."""
    return f"{number:.0f}" if number >= 10 or not number else f"{number:.1f}" if number >= 0.1 else f"{number:.1g}"


def _confusable(found: Audit) -> list[dict[str, Any]] | None:
    if found.confusable is None:
        return None
    names = found.images.class_names
    named = [
        (str(e.one) if names is None else names[e.one], str(e.other) if names is None else names[e.other])
        for e in found.confusable
    ]
    return [
        {"classes": both, "share": e.share, "back": e.back} for both, e in zip(named, found.confusable, strict=True)
    ]


def _both_ways(duplicates: Duplicates) -> pa.Table:
    import pyarrow as pa

    exact = duplicates.exact_pairs()
    pairs = np.concatenate([exact, duplicates.near])
    scores = np.concatenate([np.ones(len(exact), dtype=np.float32), duplicates.cosines])
    ordered = np.concatenate([pairs, pairs[:, ::-1]])
    columns = {"anchor": ordered[:, 0].copy(), "candidate": ordered[:, 1].copy(), "score": np.tile(scores, 2)}
    return pa.table(columns).sort_by([("anchor", "ascending"), ("candidate", "ascending")])
