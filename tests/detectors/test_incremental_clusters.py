"""IncrementalClusters: acceptance, pseudo-labels and the losses of all levels against plain loops; when it clusters."""

from functools import partial

import pytest
import torch
from catalogue import unit
from reference import ifnd_loops

import falseneg as fn
from falseneg.clustering import assign, spherical_k_means

ROWS = 40
FACTS = fn.Facts(rows=ROWS, negatives=20, classes=4, seed=3)


def clock_at(epoch, epochs=10, batch=0, steps=5):
    return fn.Clock(epoch * steps + batch, steps, epochs)


def prepared(*arguments, facts=FACTS, **options):
    detector = fn.IncrementalClusters(*arguments, **options)
    detector.prepare(facts)
    return detector


def clustered(*arguments, points=None, clock=None, **options):
    detector = prepared(*arguments, **options)
    points = unit(ROWS, 6, seed=0, dtype=torch.float32) if points is None else points
    detector.start_epoch(lambda *_: points, clock or clock_at(5))
    return detector


def contrast_of(sample, candidate=None, dtype=torch.float64):
    """Two views of each sample against each other, or against the given old keys; and its leaves."""
    sample = torch.tensor(sample).repeat_interleave(2)
    z = unit(len(sample), 6, seed=1, dtype=dtype).requires_grad_()
    anchors = fn.Embedded(z, sample)
    positives = z.view(-1, 2, 6).flip(1).reshape(-1, 6)
    if candidate is None:
        candidates = anchors
    else:
        candidates = fn.Embedded(unit(len(candidate), 6, seed=2, dtype=dtype), torch.tensor(candidate))
    return fn.Contrast("views", anchors, candidates, (z * positives).sum(1, keepdim=True)), positives


def labels_of(detector):
    return [value.tolist() for name, value in detector.per_sample().items() if name.startswith("pseudo-labels")]


SCHEDULES = {
    "linear": (fn.Linear(0.0, 1.0), lambda done: done),
    "linear over half": (fn.Linear(0.2, 0.8, "50%"), lambda done: 0.2 + 0.6 * min(1, 2 * done)),
    "stairs": (fn.Stairs(0.0, 1.0, jumps=4), lambda done: 0.25 * int(4 * done + 1e-9)),
    "all at once": (fn.Stairs(0.0, 1.0, "6 epochs", 1), lambda done: float(done >= 0.6)),
    "constant": (0.3, lambda done: 0.3),
    "everything": (1.0, lambda done: 1.0),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_surest_are_accepted_as_the_schedule_says(name):
    schedule, share = SCHEDULES[name]
    points = unit(ROWS, 6, seed=0, dtype=torch.float64)
    points[20:25] = points[7]  # equally sure: lower rows first
    detector = clustered([5], points=points, clock=clock_at(0), warmup="0%", acceptance=schedule, iterations=4)
    clusters = detector.per_sample()["clusters 5"].tolist()
    seed = _seed_of(detector, points, clusters)
    centroids = spherical_k_means(points, 5, seed, 4, restarts=5).double().tolist()
    confidences = [round(ifnd_loops.confidence(point, centroids, 0.2), 12) for point in points.tolist()]
    contrast, _ = contrast_of([0, 1, 2])
    for step in range(50):
        detector.flag(contrast, clock_at(0, batch=step))
        expected = ifnd_loops.pseudo_labels(clusters, confidences, share(step / 50))
        assert labels_of(detector) == [expected], step


def _seed_of(detector, points, clusters):
    """The seed that the detector drew, found by its result."""
    from numpy.random import SeedSequence

    seed = int(SeedSequence([FACTS.seed, 0, 5]).generate_state(1)[0])
    assert assign(points, spherical_k_means(points, 5, seed, 4, restarts=5), 0.2)[0].tolist() == clusters
    return seed


BANK = [1, 3, 5, 5, 7, 9, -1, 11, 13, 39, 2]
FORMS = {
    "eliminate": (ifnd_loops.eliminate, fn.InfoNCE(), fn.ELIMINATE),
    "attract": (ifnd_loops.attract, fn.OwnDenominators(), fn.ATTRACT_OUTSIDE),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("candidate", [None, BANK], ids=["batch", "bank"])
@pytest.mark.parametrize("numbers", [[3], [3, 6], [2, 4, 9]], ids=str)
def test_the_loss_is_the_mean_over_the_levels(form, candidate, numbers):
    loop, objective, strategy = FORMS[form]
    detector = clustered(numbers, acceptance=0.7)
    contrast, positives = contrast_of([1, 4, 9, 16, 25, 3, 12, 30], candidate)
    criterion = fn.Criterion(detector, strategy, objective, 0.25)  # a number that float32 holds exactly
    loss, judged = criterion([contrast], clock_at(5))
    assert len(judged) == len(numbers) and judged[0][2].flagged.sum() > 0
    (gradient,) = torch.autograd.grad(loss, contrast.anchors.z, retain_graph=True)
    samples = [side.sample.tolist() for side in (contrast.anchors, contrast.candidates)]
    rows = contrast.anchors.z, contrast.candidates.z, positives
    expected = ifnd_loops.loss(loop, *rows, *samples, labels_of(detector), 0.25)
    (of_loop,) = torch.autograd.grad(expected, contrast.anchors.z)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, of_loop, rtol=1e-10, atol=1e-14)


def test_old_keys_are_looked_up_by_who_they_are():
    detector = clustered([4], acceptance=1.0)
    contrast, _ = contrast_of([1, 4], BANK)
    rule = detector.flag(contrast, clock_at(5))
    (labels,) = labels_of(detector)
    flagged = rule.tile(slice(0, 4), slice(0, len(BANK)), torch.zeros(4, len(BANK)))
    for i, sample in enumerate([1, 1, 4, 4]):
        assert flagged[i].tolist() == [key != -1 and labels[key] == labels[sample] for key in BANK]


def times_of(epochs, **options):
    """The epochs at whose start the detector looks at the data set."""
    detector, seen = prepared([4], **options), []
    for epoch in range(epochs):

        def features(modality, epoch=epoch):
            seen.append(epoch)
            return unit(ROWS, 6, seed=epoch, dtype=torch.float32)

        detector.start_epoch(features, clock_at(epoch, epochs))
    return seen


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, list(range(1, 10))),
        ({"warmup": "0%"}, list(range(10))),
        ({"warmup": "25%", "every": "3 epochs"}, [2, 5, 8]),  # it ends in the middle of epoch 2
        ({"warmup": "2 epochs", "every": "50%"}, [2, 7]),
        ({"warmup": "8 steps", "every": "7 steps"}, [1, 3, 5, 7, 9]),  # steps are rounded up to epochs
        ({"warmup": "100%"}, []),
    ],
)
def test_when_it_clusters(options, expected):
    assert times_of(10, **options) == expected


def test_nothing_is_flagged_during_the_warmup():
    detector = clustered([2, 3], warmup="25%", acceptance=1.0, clock=clock_at(2))
    contrast, _ = contrast_of(list(range(10)))
    assert isinstance(detector.flag(contrast, clock_at(2, batch=2)), fn.NoPairs)
    assert len(detector.flag(contrast, clock_at(2, batch=3))) == 2


def test_acceptance_goes_on_between_two_clusterings():
    detector = clustered([5], every="5 epochs", clock=clock_at(1))
    before = detector.per_sample()["clusters 5"]
    contrast, _ = contrast_of([0, 1])
    for step in (5, 17, 29):
        detector.start_epoch(lambda *_: pytest.fail("not due"), clock_at(5))
        detector.flag(contrast, clock_at(0, batch=step))
        accepted = detector.per_sample()["pseudo-labels 5"]
        assert int((accepted >= 0).sum()) == round(step / 50 * ROWS)
        assert torch.equal(accepted[accepted >= 0], before[accepted >= 0])


def test_the_seed_and_the_epoch_decide():
    def found(seed, epoch, noise):
        torch.manual_seed(noise)
        detector = prepared([7], facts=fn.Facts(ROWS, 20, seed=seed))
        detector.start_epoch(lambda *_: unit(ROWS, 6, seed=0, dtype=torch.float32), clock_at(epoch))
        return detector.per_sample()["clusters 7"]

    assert torch.equal(found(0, 3, 1), found(0, 3, 2))
    assert not torch.equal(found(0, 3, 1), found(1, 3, 1))
    assert not torch.equal(found(0, 3, 1), found(0, 4, 1))


def test_the_state_holds_the_pseudo_labels():
    detector, other = clustered([3, 6], acceptance=0.5), prepared([3, 6], acceptance=0.5)
    contrast, _ = contrast_of([0, 1])
    detector.flag(contrast, clock_at(5))
    other.load_state_dict(detector.state_dict())
    held, again = detector.per_sample(), other.per_sample()
    assert list(held) == ["clusters 3", "pseudo-labels 3", "clusters 6", "pseudo-labels 6"]
    assert all(value.dtype == torch.int64 and value.shape == (ROWS,) for value in held.values())
    assert all(torch.equal(held[name], again[name]) for name in held)
    assert int((held["pseudo-labels 6"] >= 0).sum()) == ROWS // 2


def test_a_clustering_that_fails_leaves_everything_as_it_was():
    detector = clustered([3, 6])
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    broken = unit(ROWS, 6, seed=9, dtype=torch.float32)
    broken[5, 0] = torch.nan
    with pytest.raises(fn.UserError, match="image 5 is not finite"):
        detector.start_epoch(lambda *_: broken, clock_at(6))
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


def test_expected_classes_set_the_numbers_of_clusters():
    detector = prepared()
    assert detector.clusters == [4, 12, 40]
    assert list(detector.per_sample())[-1] == "pseudo-labels 40"


make = partial(fn.IncrementalClusters, [4])


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: fn.IncrementalClusters([]), r"clusters is \[\]; give one or more different numbers of at least 2"),
        (lambda: fn.IncrementalClusters([1, 5]), r"clusters is \[1, 5\]; give"),
        (lambda: fn.IncrementalClusters([5, 5]), r"clusters is \[5, 5\]; give one or more different"),
        (lambda: make(temperature=0.0), "temperature is 0.0; give a number above 0"),
        (lambda: make(acceptance=1.5), "acceptance is 1.5; it is a share"),
        (lambda: make(acceptance=fn.Linear(0.0, 1.2)), "acceptance is 1.2; it is a share"),
        (lambda: make(every="0 epochs"), "every is '0 epochs'; give more than 0"),
        (lambda: make(warmup="soon"), "'soon' is not a duration"),
        (lambda: make(iterations=0), "iterations is 0; give at least 1"),
        (lambda: make(points_per_centroid=0), "points_per_centroid is 0; give at least 1"),
        (lambda: fn.Stairs(0.0, 1.0, jumps=0), "jumps is 0; give at least 1"),
        (lambda: prepared(facts=fn.Facts(ROWS, 20)), "give clusters, or the number of expected classes"),
        (
            lambda: prepared([4, 41]),
            r"clusters is \[4, 41\], but there are 40 images to learn from; give numbers of at",
        ),
        (lambda: make().flag(contrast_of([0, 1])[0], clock_at(5)), "call prepare with the facts"),
        (lambda: clustered([4], points=torch.ones(39, 6)), "39 embeddings for 40 images; give one for each"),
        (lambda: clustered([4], points=torch.ones(40, 6)), "the embeddings of all 40 images are equal"),
    ],
)
def test_bad_options_are_answered_with_one_sentence(make, sentence):
    with pytest.raises(fn.UserError, match=sentence) as error:
        make()
    assert "\n" not in str(error.value)
