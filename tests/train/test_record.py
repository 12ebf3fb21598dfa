import csv
import json

import catalogue
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from train.parts import digits

import falseneg as fn
from falseneg.data import ImageSet
from falseneg.losses import Criterion
from falseneg.methods.simclr import contrast_views
from falseneg.train import thumbnails
from falseneg.train.observers import flagged_pairs
from falseneg.train.observers.flagged_pairs import FlaggedPairs, recorded_epochs
from falseneg.train.thumbnails import gallery_rows, thumbnail, write_thumbnails

CLOCK = fn.Clock(0, 1, 1)


class Named(ImageSet):
    """Images that have names, for what is recorded of them."""

    def __init__(self, labels=None, rows=12, names=None, class_names=None):
        self.labels, self.rows, self.names, self.class_names = labels, rows, names, class_names

    def __len__(self):
        return self.rows

    def describe(self, row):
        return self.names[row] if self.names else f"photo {row}.jpg"

    def image(self, row):
        return torch.full((3, 90, 120), row, dtype=torch.uint8)


def judged(sample, seed=0, detector=None):
    draw = torch.Generator().manual_seed(seed)
    z = torch.nn.functional.normalize(torch.randn(len(sample), 2, 4, generator=draw), dim=-1)
    contrast = contrast_views(catalogue.embeddings(z, None, torch.as_tensor(sample)))
    return Criterion(detector or fn.FixedThreshold(0.6))([contrast], CLOCK)[1]


def recorder_of(folder, labels=None, rows=12):
    return FlaggedPairs(folder, labels, Named(labels, rows), 2, 0)


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (10, [2, 5, 10]), (100, [11, 50, 100])]
)
def test_an_early_a_middle_and_the_last_epoch(epochs, expected):
    assert recorded_epochs(epochs) == expected


def test_pairs_are_images_with_their_best_score(tmp_path):
    recorder, step = recorder_of(tmp_path), judged([3, 5, 7, 9, 11])
    recorder.add(step)
    recorder.write(4)
    contrast = step[0][0]
    sim = contrast.anchors.z @ contrast.candidates.z.T
    others = contrast.anchors.sample[:, None] != contrast.candidates.sample
    best = sim.unflatten(0, (5, 2)).unflatten(2, (5, 2)).amax(dim=(1, 3))
    sample = [3, 5, 7, 9, 11]
    expected = {
        (sample[a], sample[b]): float(best[a, b]) for a in range(5) for b in range(5) if a != b and best[a, b] > 0.6
    }
    table = pq.read_table(tmp_path / "flagged.parquet").to_pydict()
    found = dict(zip(zip(table["anchor"], table["candidate"], strict=True), table["score"], strict=True))
    assert found == pytest.approx(expected) and len(expected) > 3
    assert set(table["epoch"]) == {4} and "correct" not in table
    entry = json.loads((tmp_path / "similarities.json").read_text())[0]
    assert entry["threshold"] == pytest.approx(0.6)
    assert sum(entry["negative"]) == 10 * 8 and sum(entry["flagged"]) == int(((sim > 0.6) & others).sum())


def test_only_watched_anchors_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(flagged_pairs, "WATCHED", 2)
    recorder = recorder_of(tmp_path)
    watched = recorder.watched.nonzero().flatten().tolist()
    recorder.add(judged(range(12), detector=fn.FixedThreshold(-1.0)))
    recorder.write(1)
    table = pq.read_table(tmp_path / "flagged.parquet").to_pydict()
    assert sorted(set(table["anchor"])) == watched and len(set(table["candidate"])) == 12


def test_a_batch_without_watched_anchors_costs_no_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(flagged_pairs, "WATCHED", 2)
    recorder, swept = recorder_of(tmp_path), []
    plain = flagged_pairs.flagged_pairs
    monkeypatch.setattr(flagged_pairs, "flagged_pairs", lambda *given: swept.append(1) or plain(*given))
    watched = recorder.watched.nonzero().flatten().tolist()
    others = [row for row in range(12) if row not in watched]
    recorder.add(judged(others[:5]))
    assert not swept and not recorder.pairs
    recorder.add(judged([*others[:4], watched[0]]))
    assert len(swept) == 1 and recorder.pairs


def test_the_number_of_pairs_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(flagged_pairs, "MOST_PAIRS", 20)
    recorder = recorder_of(tmp_path)
    for seed in range(2):
        recorder.add(judged(range(12), seed, fn.FixedThreshold(-1.0)))
    recorder.write(1)
    assert 0 < pq.read_table(tmp_path / "flagged.parquet").num_rows <= 20


def test_the_number_of_histograms_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(flagged_pairs, "MOST_HISTOGRAMS", 2)
    recorder = FlaggedPairs(tmp_path, None, Named(), 5, 0)
    for seed in range(5):
        recorder.add(judged(range(12), seed))
    # Steps 0 and 3 of 5, each of 24 views with 22 negatives.
    assert int(recorder.histogram["negative"].sum()) == 2 * 24 * 22


def test_labels_say_which_are_correct(tmp_path):
    labels = torch.tensor([0, 0, 1, -1])
    recorder = recorder_of(tmp_path, labels, 4)
    recorder.add(judged(range(4), detector=fn.FixedThreshold(-1.0)))
    recorder.write(1)
    table = pq.read_table(tmp_path / "flagged.parquet").to_pydict()
    pairs = zip(table["anchor"], table["candidate"], table["correct"], strict=True)
    correct = [(anchor, candidate) for anchor, candidate, right in pairs if right]
    assert sorted(correct) == [(0, 1), (1, 0)] and len(table["anchor"]) == 12


def test_interrupted_and_repeated_epochs(tmp_path):
    def record_all(folder, interrupt):
        folder.mkdir()
        recorder = recorder_of(folder)
        for epoch in (1, 3):
            for step in (0, 1):
                recorder.add(judged(range(12), 10 * epoch + step))
                if interrupt and (epoch, step) == (3, 0):
                    torch.save(recorder.state(None), folder / "state")
                    recorder.add(judged(range(12), 99))
                    recorder.write(3)  # killed after this, and before the next checkpoint
                    recorder = recorder_of(folder)
                    recorder.load_state(None, torch.load(folder / "state", weights_only=True))
            recorder.write(epoch)
        return pq.read_table(folder / "flagged.parquet"), json.loads((folder / "similarities.json").read_text())

    plain, interrupted = record_all(tmp_path / "a", False), record_all(tmp_path / "b", True)
    assert plain[0].equals(interrupted[0]) and plain[1] == interrupted[1]
    assert [entry["epoch"] for entry in plain[1]] == [1, 3]


def test_the_state_is_not_changed_by_what_follows(tmp_path):
    recorder = recorder_of(tmp_path)
    recorder.add(judged(range(12), 1))
    state = recorder.state(None)
    kept = {key: value.clone() for key, value in state["histogram"].items()}
    recorder.add(judged(range(12), 2))
    assert len(state["pairs"]) == 1
    assert all(torch.equal(value, kept[key]) for key, value in state["histogram"].items())


def test_gallery_prefers_anchors_that_are_flagged_for_at_every_epoch():
    rows = [(5, 1, 0.9, 1), (5, 2, 0.8, 3), *[(4, candidate, candidate / 100, 3) for candidate in range(20, 40)]]
    columns = dict(zip(("anchor", "candidate", "score", "epoch"), zip(*rows, strict=True), strict=True))
    assert gallery_rows(columns) == [1, 2, 4, 5, *range(32, 40)]
    many = {key: list(range(100)) for key in ("anchor", "candidate", "score")} | {"epoch": [1] * 100}
    spread = gallery_rows(many)
    assert len(spread) == thumbnails.ANCHORS and spread[-1] >= 90  # over the whole data set, not its first class alone


@pytest.mark.parametrize("shape", [(8, 8), (70, 200), (300, 40), (1, 5)])
def test_thumbnails(shape):
    image = torch.zeros(3, *shape, dtype=torch.uint8)
    image[0] = 255
    small = thumbnail(image)
    assert small.shape == (3, 64, 64) and small.dtype == torch.uint8
    assert (small[0] == 255).all() and not small[1:].any()


def test_without_any_flagged_pair(tmp_path):
    recorder = recorder_of(tmp_path)
    recorder.add(judged(range(12), detector=fn.NoDetection()))
    recorder.write(1)
    write_thumbnails(tmp_path, digits(12))
    thumbnails = np.load(tmp_path / "thumbnails.npz")
    assert pq.read_table(tmp_path / "flagged.parquet").num_rows == 0
    assert thumbnails["images"].shape == (0, 96, 96, 3)


def test_the_table_for_spreadsheets_and_the_pictures_it_names(tmp_path):
    images = Named(torch.tensor([0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1]), class_names=["cat", "dog"])
    recorder = FlaggedPairs(tmp_path, images.labels, images, 2, 0)
    recorder.add(judged(range(12), detector=fn.FixedThreshold(0.2)))
    recorder.write(2)
    write_thumbnails(tmp_path, images)
    with open(tmp_path / "flagged.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    table = pq.read_table(tmp_path / "flagged.parquet")
    assert len(lines) == table.num_rows > 10
    for line in lines:
        for side in ("anchor", "candidate"):
            assert line[f"{side}_name"] == f"photo {line[side]}.jpg"
            assert (tmp_path / line[f"{side}_thumbnail"]).is_file()


def test_wrong_flags_have_pictures_though_they_are_less_similar():
    columns = {"anchor": [0] * 40, "candidate": list(range(1, 41)), "score": [-n for n in range(40)], "epoch": [1] * 40}
    right = [n < 20 for n in range(40)]
    assert gallery_rows(columns | {"correct": right}) == [*range(9), *range(21, 29)]
    assert gallery_rows(columns | {"correct": [None] * 40}) == list(range(9))


def test_an_earlier_run_without_names_is_continued(tmp_path):
    old = {"anchor": [1], "candidate": [2], "score": pa.array([0.5], pa.float32()), "epoch": pa.array([1], pa.int32())}
    pq.write_table(pa.table(old), tmp_path / "flagged.parquet")
    recorder = recorder_of(tmp_path)
    recorder.read_written()
    recorder.add(judged(range(12)))
    recorder.write(3)
    table = pq.read_table(tmp_path / "flagged.parquet").to_pylist()
    assert table[0]["anchor"] == 1 and table[0]["anchor_name"] is None and table[-1]["anchor_name"].startswith("photo")
