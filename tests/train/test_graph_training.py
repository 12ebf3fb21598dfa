"""The graph of the data set during training: passes over encoder features and views, stopped and resumed, two processes."""

import signal

import numpy as np
import pytest
import torch
from train import two_graphs
from train.parts import assert_same_weights, digits, tiny_encoder, tiny_run, untimed
from train.test_embeddings import StopAt, launch
from train.test_two_processes import assert_alike

import falseneg as fn
from falseneg.data import Augmentation, ViewSet
from falseneg.evaluation import extract_features
from falseneg.train import embeddings, fit
from falseneg.train.checkpoint import load_checkpoint


def graph_run(**options):
    detector = options.pop("detector", None) or fn.NeighbourGraph(neighbours=5, eigenvectors=4, share=0.1)
    return tiny_run(**{"detector": detector, "method": fn.SimCLR(tiny_encoder()), **options})


class Look(fn.NoDetection):
    def __init__(self, _look):
        super().__init__()
        self._look = _look

    def start_epoch(self, features, clock):
        self._look(features, clock)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("guided", [False, True])
def test_encoder_features_of_images_and_of_their_views(tmp_path, monkeypatch, workers, guided):
    monkeypatch.setattr(embeddings, "AT_ONCE", 20)
    method, guide, looks = fn.SimCLR(tiny_encoder()), tiny_encoder(7) if guided else None, []
    row = torch.arange(0, 96, 2)

    def look(features, clock):
        got = features.encoded(guide), features.of_views(row, 2, guide)
        encoder = guide or method.encoder
        modes = [part.training for part in method.modules()]
        expected = extract_features(encoder, digits(), 8)
        made = ViewSet(digits(), {"image": [Augmentation(crop_scale=(0.4, 1.0), flip=0.0).for_size(8)] * 2}, seed=0)
        encoder.eval()
        with torch.no_grad():
            of_views = torch.stack([encoder(made[clock.epoch, each].streams["image"]) for each in row.tolist()])
        encoder.train()
        assert all(modes)
        looks.append((got, (expected, of_views)))

    options = {"method": method, "epochs": 2, "workers": workers}
    fit(tiny_run(detector=Look(look), **options), tmp_path / "run")
    assert len(looks) == 2
    for got, expected in looks:
        assert got[0].shape == (96, method.encoder.feature_dim) and got[1].shape == (48, 2, method.encoder.feature_dim)
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.equal(looks[0][0][1], looks[1][0][1])
    method.load_state_dict(fn.SimCLR(tiny_encoder()).state_dict())


def test_looking_changes_nothing_of_the_training(tmp_path):
    def look(features, clock):
        features.encoded()
        features.of_views(torch.arange(50), 2)

    fit(tiny_run(detector=Look(look), method=fn.SimCLR(tiny_encoder())), tmp_path / "looked")
    fit(tiny_run(detector=fn.NoDetection(), method=fn.SimCLR(tiny_encoder())), tmp_path / "plain")
    assert_same_weights(tmp_path / "looked", tmp_path / "plain")


def test_many_features_go_to_a_file_that_goes_again(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "MOST_IN_MEMORY", 100)
    path, seen = tmp_path / "run" / embeddings.FEATURES_FILE, []

    def look(features, clock):
        points, embedded = features.encoded(), features()
        seen.append((points.dtype, path.stat().st_size == points.numel() * 2, embedded.shape == (96, 128)))

    fit(tiny_run(detector=Look(look), epochs=1, method=fn.SimCLR(tiny_encoder())), tmp_path / "run")
    assert seen == [(torch.float16, True, True)] and not list((tmp_path / "run").glob("*.f16"))


@pytest.mark.parametrize("step", [2, 4])  # at the end of the first epoch, before the graph; and within the second
def test_stopped_and_resumed_it_ends_with_the_same_weights(tmp_path, step):
    torch.manual_seed(0)
    fit(graph_run(objective=StopAt(-1)), tmp_path / "whole")
    with pytest.raises(SystemExit):
        fit(graph_run(objective=StopAt(step)), tmp_path / "parts")
    torch.manual_seed(99)
    fit(graph_run(objective=StopAt(-1)), tmp_path / "parts", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "parts")
    plain = tmp_path / "plain"
    fit(graph_run(detector=fn.NoDetection()), plain)
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "whole", plain)


def test_a_signal_while_the_graph_is_made_breaks_it_off(tmp_path, monkeypatch):
    from falseneg.detectors import neighbour_graph

    fit(graph_run(), tmp_path / "whole")
    made = neighbour_graph.spectral_coordinates
    monkeypatch.setattr(neighbour_graph, "spectral_coordinates", lambda *given: signal.raise_signal(15) or made(*given))
    with pytest.raises(SystemExit):
        fit(graph_run(checkpoint_every=None), tmp_path / "parts")
    assert load_checkpoint(tmp_path / "parts" / "checkpoints" / "last.pt")["step"] == 3
    monkeypatch.setattr(neighbour_graph, "spectral_coordinates", made)
    fit(graph_run(checkpoint_every=None), tmp_path / "parts", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_two_processes_make_one_graph(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "AT_ONCE", embeddings.AT_ONCE)
    fit(two_graphs.graph_run(1), tmp_path / "one")
    done = launch("two_graphs.py", tmp_path / "two", 2)
    assert done.returncode == 0, done.stderr
    assert_alike(tmp_path / "one", tmp_path / "two")
    tables = [load_checkpoint(tmp_path / name / "checkpoints" / "last.pt")["criterion"] for name in ("one", "two")]
    one, two = (table["detector.table"][:-1] for table in tables)
    torch.testing.assert_close(one @ one.T, two @ two.T, rtol=0, atol=1e-3)


def test_two_passes(tmp_path):
    """The first run's encoder guides the second, which sees another graph than its own would be."""
    fit(graph_run(detector=fn.NoDetection()), tmp_path / "first")
    guided = fn.NeighbourGraph(neighbours=5, eigenvectors=4, share=0.1, guide=tmp_path / "first")
    fit(graph_run(detector=guided), tmp_path / "second")
    table = guided.table.clone()
    np.save(
        tmp_path / "features.npy",
        extract_features(fn.Encoder.load(tmp_path / "first" / "encoder.safetensors"), digits(), 8),
    )
    assert table[:-1].isfinite().all()
    fit(graph_run(), tmp_path / "alone")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "second", tmp_path / "alone")
    shared = fn.NeighbourGraph(neighbours=5, eigenvectors=4, share=0.1, guide=tmp_path / "features.npy")
    fit(graph_run(detector=shared), tmp_path / "third")
