"""What detectors flag in batches, against plain loops, scikit-learn and the library's own confusion counts."""

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch
from sklearn.metrics import cohen_kappa_score

import falseneg as fn
from falseneg.audit.measure import NOW, measure
from falseneg.audit.sample import Sample, batches_of, evenly_spread
from falseneg.audit.suggestion import Suggestion, Tried, detectors_of, suggest
from falseneg.facts import Facts
from falseneg.statistics import confusion

sys.path.insert(0, str(Path(__file__).parent))
from planted import random_sample

GROUPS = torch.arange(60) // 2


def flagged_by_loops(sample, batch, share):
    """What four detectors flag by their definitions: sets of (anchor, candidate) of the sample, by name."""
    z = [[float(x) for x in row] for row in torch.nn.functional.normalize(sample.features.double(), dim=1)]
    views = torch.nn.functional.normalize(sample.views.double(), dim=2).tolist()

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    found = {"support set": set(), "batch quantile": set(), "relative margin": set(), "same captions": set()}
    members = batch.tolist()
    for i in members:
        others = [j for j in members if j != i]
        support = sorted(others, key=lambda j: -max(cosine(view, z[j]) for view in views[i]))
        found["support set"] |= {(i, j) for j in support[: max(1, round(share * len(members)))]}
        nearest = sorted(others, key=lambda j: -cosine(z[i], z[j]))
        found["batch quantile"] |= {(i, j) for j in nearest[: math.ceil(share * len(others))]}
        positive = sum(cosine(view, z[i]) for view in views[i]) / len(views[i])
        found["relative margin"] |= {(i, j) for j in others if cosine(z[i], z[j]) > positive - 0.05 * abs(positive)}
        found["same captions"] |= {(i, j) for j in others if GROUPS[i] == GROUPS[j]}
    return found


@pytest.fixture(scope="module")
def case():
    sample, kind = random_sample()
    labels = kind.clone()
    labels[::7] = -1
    sample = dataclasses.replace(sample, labels=labels, caption_groups=GROUPS)
    batches = batches_of(len(sample), 20, 3)
    return sample, labels, batches, measure(sample, batches, detectors_of(4, 60, True))


def test_every_count_is_that_of_plain_loops(case):
    sample, labels, batches, measured = case
    loops = [flagged_by_loops(sample, batch, 1 / 4) for batch in batches]
    sets = {name: set().union(*(each[name] for each in loops)) for name in loops[0]}
    everything = {(i, j) for batch in batches for i in batch.tolist() for j in batch.tolist() if i != j}
    assert measured.negatives == len(everything) == 3 * 20 * 19 and measured.anchors == 60
    known = {(i, j) for i, j in everything if labels[i] >= 0 and labels[j] >= 0}
    same = {(i, j) for i, j in known if labels[i] == labels[j]}
    for name, flagged in sets.items():
        place = measured.names.index(name)
        assert flagged, name
        assert measured.share(place) == len(flagged) / len(everything)
        counts = measured.counts(place)
        assert counts.precision == pytest.approx(len(flagged & same) / len(flagged & known))
        assert counts.recall == pytest.approx(len(flagged & same) / len(same))
        assert counts.chance == pytest.approx(len(same) / len(known))
        for other, its in sets.items():
            at = measured.names.index(other)
            assert measured.also(place, at) == pytest.approx(len(flagged & its) / len(flagged))
            told = [[pair in one for pair in sorted(everything)] for one in (flagged, its)]
            assert measured.kappa(place, at) == pytest.approx(cohen_kappa_score(*told))


def test_votes_are_those_of_the_pairs(case):
    _, labels, _, measured = case
    pairs, number = measured.pairs, len(measured.names)
    known = (labels[pairs.anchor - 100] >= 0) & (labels[pairs.candidate - 100] >= 0)
    same = known & (labels[pairs.anchor - 100] == labels[pairs.candidate - 100])
    assert measured.majority == 4 and number == 6
    for least in range(1, number + 1):
        enough = pairs.flags.sum(dim=1) >= least
        share, right = measured.agreed(least)
        assert share == int(enough.sum()) / measured.negatives
        seen = int((enough & known).sum())
        assert right == (pytest.approx(int((enough & same).sum()) / seen) if seen else None)
    assert measured.agreed(3)[1] is not None and measured.agreed(0)[0] == 1


def test_counts_are_those_of_the_library(case):
    sample, labels, batches, measured = case
    detectors = detectors_of(4, 60, True)
    for place, (name, detector) in enumerate(detectors.items()):
        detector.prepare(Facts(60, 19, contrasts=("images",), caption_groups=GROUPS))
        detector.start_epoch(sample, NOW)
        total = [0, 0, 0, 0]
        for batch in batches:
            contrast = sample.contrast(batch)
            found = confusion(contrast, detector.flag(contrast, NOW), labels)
            mine = found.flagged, found.negatives, found.true_positives, found.false_negatives
            total = [a + int(b) for a, b in zip(total, mine, strict=True)]
        counts = measured.counts(place)
        assert [counts.flagged, counts.negatives, counts.true_positives, counts.false_negatives] == total, name


def test_pairs_are_the_flagged_ones_with_rows_of_the_data_set(case):
    sample, _, batches, measured = case
    sets = [flagged_by_loops(sample, batch, 1 / 4) for batch in batches]
    pairs = measured.pairs
    assert (pairs.score.diff() <= 0).all()
    z = torch.nn.functional.normalize(sample.features, dim=1)
    own = (z[pairs.anchor - 100] * z[pairs.candidate - 100]).sum(dim=1)
    assert torch.allclose(own, pairs.score, atol=1e-6)
    for name in ("support set", "batch quantile", "relative margin", "same captions"):
        place = measured.names.index(name)
        chosen = pairs.of(pairs.flags[:, place])
        mine = set(zip((chosen.anchor - 100).tolist(), (chosen.candidate - 100).tolist(), strict=True))
        assert mine == set().union(*(each[name] for each in sets))


def test_without_labels_there_is_no_precision():
    sample, _ = random_sample()
    measured = measure(sample, batches_of(60, 20, 0), detectors_of(4, 60))
    assert not measured.labelled and measured.counts(0).precision is None and measured.counts(0).chance is None
    assert measured.counts(0).share_flagged == measured.share(0) > 0


def test_what_flags_nothing_agrees_with_nobody():
    sample, _ = random_sample()
    measured = measure(sample, batches_of(60, 20, 0), {"none": fn.NoDetection(), "again": fn.NoDetection()})
    assert (
        measured.agreed(1) == (0, None)
        and measured.also(0, 1) is None
        and measured.kappa(0, 1) is None
        and len(measured.pairs.score) == 0
    )


def test_batches_share_no_image():
    found = batches_of(50, 16, 0)
    assert [len(each) for each in found] == [16, 16, 16] and len(torch.cat(found).unique()) == 48
    assert [len(each) for each in batches_of(10, 16, 0)] == [10]
    assert not torch.equal(batches_of(50, 16, 1)[0], found[0])


def test_a_large_set_is_looked_at_evenly():
    assert evenly_spread(5).tolist() == [0, 1, 2, 3, 4]
    rows = evenly_spread(1_000_000)
    assert len(rows) == 8192 and (rows[0], rows[-1]) == (0, 999_999) and set(rows.diff().tolist()) == {122, 123}


@pytest.mark.parametrize("kinds", [3, 5, 10])
def test_the_suggestion_is_the_highest_figure(kinds):
    sample, labels = random_sample(600, 16, kinds, kinds)
    sample = Sample(sample.rows, sample.features + 4 * (labels[:, None] == torch.arange(16)), sample.views)
    batches = batches_of(600, 100, 0)
    found = suggest(sample, batches)
    assert found.by == "agreement" and found.chosen.kappa == max(each.kappa for each in found.tried)
    # Kinds that are far apart: counts in a batch vary, so that the next smaller number may agree more.
    assert kinds / 2 <= found.chosen.kinds <= kinds
    assert found.top_k == round(2 * 100 / found.chosen.kinds)
    sample = dataclasses.replace(sample, labels=labels)
    labelled = suggest(sample, batches)
    assert labelled.by == "labels" and labelled.chosen.f1 == max(each.f1 for each in labelled.tried)
    assert labelled.chosen.kinds == kinds and labelled.by_agreement == dataclasses.replace(
        found.chosen, **_figures(labelled)
    )
    asked = suggest(sample, batches, asked=7)
    assert asked.by == "asked" and asked.chosen.kinds == 7 and asked.by_agreement.kinds == found.chosen.kinds


def test_without_labels_there_is_a_range():
    figures = {2: 0.26, 3: 0.27, 5: 0.36, 10: 0.4, 20: None, 50: 0.27, 100: 0.26}
    tried = tuple(Tried(kinds, kappa, None, None, None) for kinds, kappa in figures.items())
    found = Suggestion(tried, tried[3], "agreement", 256)
    assert not found.known and [each.kinds for each in found.fitting] == [3, 50]  # two thirds of .4
    for by in ("labels", "asked"):
        assert dataclasses.replace(found, by=by).known
    none = tuple(dataclasses.replace(each, kappa=None) for each in tried)
    assert [each.kinds for each in Suggestion(none, none[0], "agreement", 256).fitting] == [2, 2]
    below = tuple(dataclasses.replace(each, kappa=-0.1 * each.kinds) for each in tried)
    assert [each.kinds for each in Suggestion(below, below[0], "agreement", 256).fitting] == [2, 2]


def _figures(suggestion):
    tried = suggestion.by_agreement
    return {name: getattr(tried, name) for name in ("precision", "recall", "f1")}


def test_no_more_kinds_are_tried_than_a_batch_tells_apart():
    sample, _ = random_sample(400)
    assert [each.kinds for each in suggest(sample, batches_of(400, 30, 0)).tried] == [2, 3, 5, 10, 20]
    assert [each.kinds for each in suggest(sample, batches_of(400, 200, 0)).tried] == [2, 3, 5, 10, 20, 50, 100]
