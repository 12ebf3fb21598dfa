"""Detectors that look at the captions of the whole data set: what they see, stopped and resumed, over two processes."""

import captioned
import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from train.parts import assert_same_weights, tiny_run, untimed
from train.test_embeddings import StopAt, launch
from train.two_texts import detector_of, text_run

import falseneg as fn
from falseneg.batch import Embeddings
from falseneg.methods.two_towers import contrast_pairs
from falseneg.train import embeddings, fit
from falseneg.train.checkpoint import load_checkpoint
from falseneg.train.metrics import read_metrics


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(embeddings, "AT_ONCE", 20)


class Uneven(captioned.CaptionedDigits):
    """Every third image has one caption, the others have three."""

    def captions(self, row):
        return super().captions(row)[: 1 if row % 3 == 0 else 3]


class Look(fn.NoDetection):
    def __init__(self, _look):
        super().__init__()
        self._look = _look

    def start_epoch(self, features, clock):
        self._look(features)


def by_loop(method, network, data, unit):
    """One caption at a time."""
    method.eval()
    rows = []
    for row in range(len(data)):
        with torch.no_grad():
            found = [network(method.tokenize([text]))[0] for text in data.captions(row)]
        rows.append(sum(found) / len(found))
    method.train()
    return normalize(torch.stack(rows), dim=1) if unit else torch.stack(rows)


@pytest.mark.parametrize("in_a_file", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_row_is_the_mean_of_its_captions(tmp_path, monkeypatch, in_a_file):
    monkeypatch.setattr(embeddings, "MOST_IN_MEMORY", 1000 if in_a_file else 2**30)
    data, method, looks, modes = Uneven(), captioned.two_towers(), [], []
    method.text.register_forward_hook(lambda tower, *_: modes.append(tower.training))

    def look(features):
        assert all(part.training for part in method.modules())
        modes.clear()
        got = features("text").clone(), features.encoded(modality="text").clone(), features().clone()
        assert modes and not any(modes) and all(part.training for part in method.modules())
        looks.append((got, by_loop(method, method.embed_texts, data, True), by_loop(method, method.text, data, False)))

    fit(captioned.pair_run(data=data, method=method, detector=Look(look), epochs=2), tmp_path / "run")
    tolerance = 1e-3 if in_a_file else 1e-5
    for (embedded, encoded, images), expected, before_head in looks:
        torch.testing.assert_close(embedded.float(), expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(encoded.float(), before_head, rtol=tolerance, atol=tolerance)
        assert images.shape == embedded.shape == (96, 16) and not torch.allclose(images, embedded, atol=0.1)
    assert len(looks) == 2 and not torch.equal(looks[0][0][0], looks[1][0][0])
    assert not list((tmp_path / "run").glob("*.f16"))


def test_looking_at_captions_changes_nothing_of_the_training(tmp_path):
    def look(features):
        features("text")
        features.encoded(modality="text")

    fit(captioned.pair_run(detector=Look(look)), tmp_path / "looked")
    fit(captioned.pair_run(detector=fn.NoDetection()), tmp_path / "plain")
    assert_same_weights(tmp_path / "looked", tmp_path / "plain")


POINTS = {
    "image": normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(1)), dim=1),
    "text": normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(2)), dim=1),
}


class Made:
    def __call__(self, modality="image"):
        return POINTS[modality]

    def encoded(self, encoder=None, modality="image"):
        return POINTS[modality]


def clusters(modality):
    return fn.IncrementalClusters([4], warmup="0%", acceptance=0.7, modality=modality)


@pytest.mark.parametrize("combine", [fn.AnyOf, fn.AllOf])
def test_pairs_of_either_or_both_groups_in_both_directions(combine):
    single = [clusters("image"), clusters("text")]
    detector, now = combine([clusters("image"), clusters("text")]), fn.Clock(0, 5, 4)
    for each in (*single, detector):
        each.prepare(fn.Facts(40, negatives=9, contrasts=("image->text", "text->image"), modalities=("image", "text")))
        each.start_epoch(Made(), now)
    row = torch.tensor([3, 17, 4, 39, 20, 21, 8, 9, 11, 30])
    sides = {name: POINTS[name][row][:, None] for name in POINTS}
    rules = [detector.flag(contrast, now) for contrast in contrast_pairs(Embeddings(row, sides))]
    [each.flag(contrast_pairs(Embeddings(row, sides))[0], now) for each in single]  # how many are accepted now
    held = [
        each.per_sample()[name] for each, name in zip(single, ("pseudo-labels 4", "pseudo-labels 4 text"), strict=True)
    ]
    whole = slice(0, 10)
    found = [rule.tile(whole, whole, torch.zeros(10, 10)) for rule in rules]
    judge = any if combine is fn.AnyOf else all
    flagged = 0
    for i, one in enumerate(row.tolist()):
        for j, other in enumerate(row.tolist()):
            expected = judge(bool(own[one] == own[other] >= 0) for own in held)
            assert [bool(each[i, j]) for each in found] == [expected] * 2
            flagged += expected
    assert 10 > flagged > 0 if combine is fn.AllOf else 100 > flagged > 10
    assert {"clusters 4", "clusters 4 text"} <= detector.per_sample().keys()


def test_the_graph_of_texts_is_that_of_their_features(tmp_path):
    detector = fn.NeighbourGraph(6, eigenvectors=3, share=0.1, attract=0.0, modality="text", refresh=["0 epochs"])
    detector.prepare(fn.Facts(40, negatives=9, modalities=("image", "text")))
    detector.start_epoch(Made(), fn.Clock(0, 5, 4))
    np.save(tmp_path / "texts.npy", POINTS["text"].numpy())
    expected = fn.NeighbourGraph(6, eigenvectors=3, share=0.1, attract=0.0, guide=tmp_path / "texts.npy")
    expected.prepare(fn.Facts(40, negatives=9))
    expected.start_epoch(Made(), fn.Clock(0, 5, 4))
    torch.testing.assert_close(detector.table[:-1], expected.table[:-1])
    assert float(detector.thresholds[1]) == pytest.approx(float(expected.thresholds[1]))


def test_clusters_of_captions_hold_the_images_that_share_them(tmp_path):
    detector = fn.IncrementalClusters([10], warmup="0%", acceptance=1.0, modality="text")
    fit(captioned.pair_run(data=captioned.CaptionedDigits(one=True), detector=detector, epochs=1), tmp_path / "run")
    last = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "epoch"][-1]
    assert last["recall"] == 1.0 and last["precision"] > 0.5  # here they are those of one class


@pytest.mark.parametrize("step", [4, pytest.param(3, marks=pytest.mark.slow)])
def test_stopped_and_resumed_it_ends_with_the_same_bits(tmp_path, step):
    def run(step):
        detector = fn.AnyOf([detector_of("image"), detector_of("text")])
        return captioned.pair_run(detector=detector, objective=StopAt(step), checkpoint_every=None)

    fit(run(-1), tmp_path / "whole")
    with pytest.raises(SystemExit):
        fit(run(step), tmp_path / "parts")
    torch.manual_seed(99)
    fit(run(-1), tmp_path / "parts", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "parts")
    stored = [load_checkpoint(tmp_path / name / "checkpoints" / "last.pt")["criterion"] for name in ("whole", "parts")]
    for key, value in stored[0].items():
        torch.testing.assert_close(stored[1][key], value, rtol=0, atol=0, equal_nan=True, msg=key)


def test_two_processes_look_as_one(tmp_path):
    fit(text_run(1), tmp_path / "one")
    done = launch("two_texts.py", tmp_path / "two", 2)
    assert done.returncode == 0, done.stderr
    one, two = (load_checkpoint(tmp_path / name / "checkpoints" / "last.pt") for name in ("one", "two"))
    start = text_run(1).method.state_dict()
    assert max(float((value - start[key]).abs().max()) for key, value in one["method"].items()) > 1e-2
    for key, value in one["method"].items():
        torch.testing.assert_close(two["method"][key], value, rtol=1e-5, atol=1e-7, msg=key)
    for name in ("clusters_of", "place_of"):
        key = f"detector.detectors.0.{name}"
        assert torch.equal(one["criterion"][key], two["criterion"][key])
    tables = [each["criterion"]["detector.detectors.1.table"][:-1] for each in (one, two)]
    torch.testing.assert_close(*(table @ table.T for table in tables), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", [fn.IncrementalClusters, fn.NeighbourGraph])
def test_texts_that_are_not_there_are_refused_before_training(tmp_path, kind):
    with pytest.raises(fn.UserError, match=f"{kind.__name__}: modality is 'text', and there is 'image' to look at"):
        fit(tiny_run(detector=kind(modality="text"), expected_classes=10), tmp_path / "run")
    with pytest.raises(fn.UserError, match="modality is 'texts', and there is 'image' and 'text'"):
        fit(captioned.pair_run(detector=kind(modality="texts"), expected_classes=10), tmp_path / "pairs")


def test_texts_have_no_views():
    with pytest.raises(fn.UserError, match="texts have no views that could agree"):
        fn.NeighbourGraph(agreement=0.5, modality="text")
