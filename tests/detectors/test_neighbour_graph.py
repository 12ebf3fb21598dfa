"""The detector of the whole set's graph: when it looks, what it flags, and what it refuses. Its numbers: test_graph.py."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_graph import blobs, views_of
from torch.nn.functional import normalize

import falseneg as fn
from falseneg.detectors import neighbour_graph
from falseneg.graph import spectral_coordinates
from falseneg.train.checkpoint import settings_of

ROWS = 80


class Made:
    """Features of blobs; notes what is asked for."""

    def __init__(self, seed=0, spread=1.5, noise=0.1):
        self.noise = noise
        self.points, self.kind = blobs(ROWS, 4, seed=seed, spread=spread)
        self.asked = []

    def encoded(self, encoder=None, modality="image"):
        self.asked.append(("encoded", encoder))
        return self.points

    def of_views(self, row, views, encoder=None):
        self.asked.append((row.tolist(), views, encoder))
        return views_of(self.points, 1.0, self.noise)[row]


def clock(epoch, epochs=40, step=0):
    return fn.Clock(5 * epoch + step, 5, epochs)


def prepared(**options):
    detector = fn.NeighbourGraph(**{"neighbours": 6, **options})
    detector.prepare(fn.Facts(ROWS, negatives=10, classes=4))
    return detector


def contrast_of(samples, candidates=None):
    draw = torch.Generator().manual_seed(3)
    z = normalize(torch.randn(len(samples), 5, generator=draw), dim=1)
    anchors = fn.Embedded(z, torch.as_tensor(samples))
    others = anchors
    if candidates is not None:
        others = fn.Embedded(normalize(torch.randn(len(candidates), 5), dim=1), torch.as_tensor(candidates))
    return fn.Contrast("views", anchors, others, z[:, :1])


def flags(rule, contrast):
    n, m = len(contrast.anchors), len(contrast.candidates)
    return rule.tile(slice(0, n), slice(0, m), contrast.anchors.z @ contrast.candidates.z.T)


def test_it_looks_on_its_schedule_and_flags_nothing_before():
    detector, made, contrast, looked = prepared(), Made(), contrast_of([0, 1, 2, 3]), []
    for epoch in range(40):
        before = len(made.asked)
        detector.start_epoch(made, clock(epoch))
        if len(made.asked) > before:
            looked.append(epoch)
        assert isinstance(detector.flag(contrast, clock(epoch, step=4)), fn.NoPairs if epoch < 1 else fn.Tiers)
    assert looked == [1, 2, 3, 4, 6, 8, 10, 12, 15, 19, 24, 30, 38]
    assert made.asked[:2] == [("encoded", None), (list(range(ROWS)), 2, None)]


@pytest.mark.parametrize(
    "refresh, looked", [(["25%"], [3]), (["6 steps", "3 epochs", "100 epochs"], [2, 3]), (["0 epochs"], [0])]
)
def test_a_schedule_of_ones_own(refresh, looked):
    detector, made, seen = prepared(refresh=refresh), Made(), []
    for epoch in range(12):
        before = len(made.asked)
        detector.start_epoch(made, clock(epoch, epochs=12))
        seen += [epoch] * (len(made.asked) > before)
    assert seen == looked


def test_the_share_of_all_pairs_that_was_asked_for_is_flagged_and_its_surest_part_attracted(monkeypatch):
    monkeypatch.setattr(neighbour_graph, "VIEWED", 30)
    detector, made = prepared(share=0.2, attract=0.25, eigenvectors=3), Made()
    detector.start_epoch(made, clock(1))
    assert len(made.asked[1][0]) == 30 and made.asked[1][0][0] == 0 and made.asked[1][0][-1] == ROWS - 1
    samples = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    contrast = contrast_of(samples)
    tiers = detector.flag(contrast, clock(1))
    (surest, attract), (flagged, of_the_run) = tiers.tiers
    assert attract == fn.ATTRACT and of_the_run is None
    other = ~torch.eye(ROWS, dtype=torch.bool)
    found = [flags(rule, contrast)[other] for rule in (surest, flagged)]
    assert float(found[0].float().mean()) == pytest.approx(0.05, abs=0.01)
    assert float(found[1].float().mean()) == pytest.approx(0.2, abs=0.01)
    same = (made.kind[samples][:, None] == made.kind[samples])[other]
    assert float(same[found[0]].float().mean()) > 0.9 and float(same[found[1]].float().mean()) > 0.75
    table = detector.table[samples]
    expected = table @ table.T > detector.thresholds[1]
    assert torch.equal(flags(tiers, contrast)[other], expected[other])


def test_pairs_that_the_graph_does_not_tell_apart_are_flagged_together():
    """Four pieces without an edge between them: all cosines within one are 1, and no share of them is the surest."""
    detector, made = prepared(share=0.2, attract=0.25, eigenvectors=3), Made(spread=0.01)
    detector.start_epoch(made, clock(1))
    contrast = contrast_of(range(ROWS))
    for rule, _ in detector.flag(contrast, clock(1)).tiers:
        assert torch.equal(flags(rule, contrast), (made.kind[:, None] == made.kind))


def test_tiers_open_when_graphs_of_different_views_agree_elimination_first(monkeypatch):
    agreements = iter([0.3, 0.6, 0.7, 0.2, 0.5, 0.5])
    monkeypatch.setattr(neighbour_graph, "agreement_of", lambda *_: next(agreements))
    detector, made, contrast = prepared(agreement=0.5, eigenvectors=3), Made(), contrast_of(range(ROWS))
    seen = []
    assert detector.figures() == {}
    for epoch in (1, 2, 3, 4, 6, 8):
        detector.start_epoch(made, clock(epoch))
        tiers = detector.flag(contrast, clock(epoch)).tiers
        seen.append(tuple(bool(flags(rule, contrast).any()) for rule, _ in tiers))
    closed, eliminates, both = (False, False), (False, True), (True, True)
    assert seen == [closed, eliminates, both, closed, eliminates, both]
    assert detector.figures() == {"graph agreement": pytest.approx(0.5)}


def test_agreement_is_measured_and_low_where_features_say_nothing():
    told = []
    for spread in (1.0, 300.0):
        detector = prepared(eigenvectors=3)
        detector.start_epoch(Made(spread=spread, noise=0.5 * spread), clock(1))
        told.append(fn.StartAt(detector).figures()["graph agreement"])
    assert told[0] > 0.6 > told[1]


def test_nothing_attracted_is_one_rule_for_the_strategy_of_the_run():
    detector = prepared(attract=0.0)
    detector.start_epoch(Made(), clock(1))
    assert isinstance(detector.flag(contrast_of([0, 1]), clock(1)), fn.AboveThreshold)


def test_nobody_is_like_nobody():
    detector = prepared(share=0.9)
    detector.start_epoch(Made(), clock(1))
    detector.thresholds.fill_(-2)
    contrast = contrast_of([0, -1, 5, -(2**62)], [4, -1, 1, -(2**62) - 1])
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[0, 0] = expected[0, 2] = expected[2, 0] = expected[2, 2] = True
    assert torch.equal(flags(detector.flag(contrast, clock(1)), contrast), expected)


def test_its_state_is_in_the_checkpoint():
    detector, again, contrast = prepared(), prepared(), contrast_of(range(30))
    detector.start_epoch(Made(), clock(1))
    again.load_state_dict(detector.state_dict())
    one, other = (flags(each.flag(contrast, clock(1)), contrast) for each in (detector, again))
    assert torch.equal(one, other) and one.any()


def test_what_is_broken_off_leaves_nothing_behind(monkeypatch):
    detector = prepared()
    detector.start_epoch(Made(), clock(1))
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    monkeypatch.setattr(neighbour_graph, "quantiles_of_pairs", lambda *_: pytest.fail("a signal"))
    with pytest.raises(pytest.fail.Exception):
        detector.start_epoch(Made(seed=5), clock(2))
    assert all(torch.equal(value, before[name]) or name == "table" for name, value in detector.state_dict().items())
    assert torch.equal(detector.table[:-1], before["table"][:-1])


def test_a_guide_of_embeddings(tmp_path):
    made = Made()
    np.save(tmp_path / "guide.npy", made.points.numpy().astype(np.float16))
    detector, contrast = prepared(guide=tmp_path / "guide.npy", eigenvectors=3, share=0.2), contrast_of(range(ROWS))
    for epoch in range(3):
        detector.start_epoch(made, clock(epoch))
    assert not made.asked
    flagged = flags(detector.flag(contrast, clock(0)), contrast).fill_diagonal_(False)
    assert float((made.kind[:, None] == made.kind)[flagged].float().mean()) > 0.95


def test_a_guide_that_is_an_encoder(tmp_path):
    encoder = fn.Encoder("resnet18", 8, arguments={"channels": [8, 8, 8, 8]})
    encoder.save(tmp_path / "encoder.safetensors")
    for guide in (tmp_path, tmp_path / "encoder.safetensors"):
        detector, made = prepared(guide=guide, agreement=0.1, eigenvectors=3), Made()
        detector.start_epoch(made, clock(0))
        assert (detector.thresholds <= 1).all()  # there is no second graph to wait for
        detector.start_epoch(made, clock(1))
        assert len(made.asked) == 2
        for *_, given in made.asked:
            assert all(map(torch.equal, given.state_dict().values(), encoder.state_dict().values()))
            assert not given.training
        assert not list(detector.parameters())


def test_of_several_guides_the_mean_cosine_counts(tmp_path):
    """The graph is that of the mean of the cosines, by a loop over the pairs; each guide alone has another."""
    made, guides = [Made(seed) for seed in (0, 0, 0)], []
    for number, each in enumerate(made):
        each.points = each.points + torch.randn(each.points.shape, generator=torch.Generator().manual_seed(number))
        np.save(tmp_path / f"{number}.npy", each.points.numpy())
        guides.append(str(tmp_path / f"{number}.npy"))
    tables = []
    for guide in (guides, *guides):
        detector = prepared(guide=guide, eigenvectors=3)
        detector.start_epoch(made[0], clock(0))
        tables.append(detector.table[:-1])
    unit = [normalize(each.points.double() - each.points.double().mean(dim=0), dim=1) for each in made]
    cosines = torch.tensor([[sum(float(u[i] @ u[j]) for u in unit) / 3 for j in range(ROWS)] for i in range(ROWS)])
    found = cosines.double().fill_diagonal_(-2).topk(6, dim=1)
    expected = spectral_coordinates(found.values.numpy(), found.indices.numpy(), 3)
    alike = [table @ table.T for table in (expected, *tables)]
    assert torch.allclose(alike[0], alike[1], atol=1e-4)
    assert not any(torch.allclose(alike[1], other, atol=0.1) for other in alike[2:])


def test_a_run_goes_on_when_its_guide_lies_elsewhere(tmp_path, monkeypatch):
    np.save(tmp_path / "guide.npy", np.random.default_rng(0).standard_normal((ROWS, 5)))
    monkeypatch.chdir(tmp_path)
    near, far, other = (
        settings_of(fn.NeighbourGraph(**options), "detector")
        for options in (
            {"guide": "guide.npy"},
            {"guide": tmp_path / "guide.npy"},
            {"guide": "guide.npy", "attract": 0.1},
        )
    )
    assert near == far and other != near


def test_several_encoders_as_guides_agree_together(tmp_path):
    for seed in (0, 1):
        torch.manual_seed(seed)
        fn.Encoder("resnet18", 8, arguments={"channels": [8, 8, 8, 8]}).save(tmp_path / f"{seed}.safetensors")
    guides = [str(tmp_path / f"{seed}.safetensors") for seed in (0, 1)]
    detector, made = prepared(guide=guides, agreement=0.1, eigenvectors=3), Made()
    detector.start_epoch(made, clock(0))
    of_each = [asked[-1].state_dict() for asked in made.asked]
    assert len(of_each) == 4 and detector.figures()["graph agreement"] > 0.1
    weights = [next(iter(state.values())) for state in of_each]
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[2], weights[3])
    assert not torch.equal(weights[0], weights[2])


def refused(tmp_path, array, **options):
    np.save(tmp_path / "guide.npy", array)
    return fn.NeighbourGraph(guide=tmp_path / "guide.npy", **options)


def test_a_guide_of_texts_in_either_form_of_file(tmp_path):
    """Of two towers, whose modality says nothing where there is a file; an encoder of images is no guide of texts."""
    made = Made()
    save_file({"texts": made.points}, tmp_path / "texts.safetensors")
    np.save(tmp_path / "texts.npy", made.points.numpy())
    tables = []
    for name, modality in (("texts.npy", "image"), ("texts.safetensors", "text")):
        detector = fn.NeighbourGraph(6, guide=tmp_path / name, modality=modality)
        detector.prepare(fn.Facts(ROWS, negatives=10, classes=4, modalities=("image", "text")))
        detector.start_epoch(made, clock(0))
        tables.append(detector.table[:-1])
    assert torch.equal(*tables) and not made.asked
    with pytest.raises(fn.UserError, match="texts.safetensors holds 80 embeddings, but there are 81 images"):
        fn.NeighbourGraph(6, guide=tmp_path / "texts.safetensors").prepare(fn.Facts(81, negatives=10, classes=4))
    fn.Encoder("resnet10t", image_size=8).save(tmp_path / "encoder.safetensors")
    with pytest.raises(
        fn.UserError, match="is an encoder of images, and modality is 'text'; give a file of embeddings"
    ):
        fn.NeighbourGraph(guide=tmp_path, modality="text")


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda _: fn.NeighbourGraph(neighbours=0), "neighbours is 0; give at least 1"),
        (lambda _: fn.NeighbourGraph(eigenvectors=0), "eigenvectors is 0"),
        (lambda _: fn.NeighbourGraph(share=1.0), "share is 1.0; it is a share"),
        (lambda _: fn.NeighbourGraph(attract=1.5), "attract is 1.5; it is a share of the flagged pairs"),
        (lambda _: fn.NeighbourGraph(agreement=2.0), "agreement is 2.0; it is a share of pairs"),
        (
            lambda path: refused(path, np.eye(5), agreement=0.5),
            "have no views that could agree; leave agreement out",
        ),
        (lambda _: fn.NeighbourGraph(refresh=[]), "refresh is empty"),
        (lambda _: fn.NeighbourGraph(refresh=["often"]), "'often' is not a duration"),
        (
            lambda path: fn.NeighbourGraph(refresh=["1 epoch"], guide=path),
            "graph of a guide never changes; leave refresh",
        ),
        (lambda _: fn.NeighbourGraph(guide=[]), "guide is an empty list; give at least one"),
        (lambda path: fn.NeighbourGraph(guide=path), "there is no file .*encoder.safetensors; give an encoder"),
        (lambda path: fn.NeighbourGraph(guide=path / "guide.csv"), "there is no file .*guide.csv"),
        (lambda path: refused(path, np.zeros(5)), r"guide.npy is float64 of shape \(5,\); give floats"),
        (lambda path: refused(path, np.full((5, 2), np.nan)), "holds numbers that are not finite"),
        (
            lambda _: fn.NeighbourGraph().prepare(fn.Facts(99, 10)),
            "give share and eigenvectors, or the number of expected",
        ),
        (
            lambda _: fn.NeighbourGraph(30).prepare(fn.Facts(30, 10, classes=3)),
            "take at least 31 images, and there are 30",
        ),
        (lambda _: fn.NeighbourGraph().flag(contrast_of([0, 1]), clock(5)), "call prepare"),
        (
            lambda path: refused(path, np.ones((9, 2))).prepare(fn.Facts(ROWS, 10, classes=3)),
            "guide.npy holds 9 embeddings, but there are 80 images",
        ),
    ],
)
def test_bad_options_are_answered_with_one_sentence(make, sentence, tmp_path):
    with pytest.raises(fn.UserError, match=sentence):
        make(tmp_path)
