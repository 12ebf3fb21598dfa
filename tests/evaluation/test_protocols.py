"""Each protocol on digits, against a plain computation of the same thing; and what stopping it changes, which is nothing."""

import copy
import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import falseneg as fn
from falseneg.data import Digits, Subset
from falseneg.errors import UserError
from falseneg.evaluation import (
    FeatureTable,
    FewLabelCurve,
    LabelFractions,
    LinearEvaluation,
    NearestNeighbours,
    SemiSupervised,
    Split,
    Task,
    few_label_accuracy,
    knn_accuracy,
)
from falseneg.evaluation.knn import knn_accuracies
from falseneg.evaluation.label_fractions import draw_share
from falseneg.evaluation.pieces import Pieces
from falseneg.evaluation.semi_supervised import listed_rows, with_classifier
from falseneg.evaluation.sgd import FeatureBatches, ImageBatches, Recipe, crops_of, new_classifier, train


class Pixels(nn.Module):
    """The picture itself, through a layer that can be fine-tuned and a BatchNorm."""

    image_size = 8

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 24)
        self.norm = nn.BatchNorm1d(24)

    def forward(self, images):
        return F.relu(self.norm(self.layer(images[:, 0].float().flatten(1) / 255)))


@pytest.fixture
def task():
    torch.manual_seed(0)
    digits = Digits()
    return Task(Pixels(), 8, Subset(digits, range(600)), Subset(digits, range(600, 1000)))


def features(task):
    rows = [torch.stack([part.image(row) for row in range(len(part))]) for part in (task.train, task.test)]
    encoder = copy.deepcopy(task.encoder).eval()
    with torch.no_grad():
        return Split(encoder(rows[0]), task.train.labels, encoder(rows[1]), task.test.labels)


def by(figures):
    return {(each.on, each.metric): each.value for each in figures}


def test_knn(task):
    found = by(NearestNeighbours(k=10).run(task))
    assert found["", "top-1"] == pytest.approx(knn_accuracy(*features(task), k=10), abs=1 / 400)
    assert 0.8 < found["", "top-1"] < found["", "top-5"] <= 1


def test_knn_by_a_loop(task):
    split, right = features(task), [0, 0]
    for feature, label in zip(split.test, split.test_labels.tolist(), strict=True):
        near = (F.normalize(split.train, dim=1) @ F.normalize(feature, dim=0)).topk(7)
        votes = {}
        for cosine, row in zip(near.values.tolist(), near.indices.tolist(), strict=True):
            name = int(split.train_labels[row])
            votes[name] = votes.get(name, 0) + math.exp(cosine / 0.2)
        ranked = sorted(votes, key=votes.get, reverse=True)  # classes without a vote are not named
        right = [right[0] + (label in ranked[:1]), right[1] + (label in ranked[:3])]
    assert knn_accuracies(split, 7, 0.2, (1, 3)) == pytest.approx([each / 400 for each in right])


def test_linear_on_cached_features_by_a_loop(task):
    """The published recipe written out: Nesterov momentum .9, half a cosine, the incomplete batch dropped."""
    split = features(task)
    protocol = LinearEvaluation(epochs=4, batch_size=250, learning_rate=0.5, weight_decay=0.01, cached=True)
    weight = torch.randn(10, 24, generator=torch.Generator().manual_seed(task.seed)) * 0.01
    bias, momenta, step = torch.zeros(10), [torch.zeros(10, 24), torch.zeros(10)], 0
    batches = FeatureBatches(split.train, split.train_labels, 250, task.seed)
    for epoch in range(4):
        for x, y in batches.epoch(epoch, 0):
            assert len(x) == 250
            error = ((x @ weight.T + bias).softmax(1) - F.one_hot(y, 10)) / len(x)
            rate = 0.5 * 0.5 * (1 + math.cos(math.pi * step / 8))
            for value, momentum, gradient in zip(
                (weight, bias), momenta, (error.T @ x + 0.01 * weight, error.sum(0)), strict=True
            ):
                momentum.mul_(0.9).add_(gradient)
                value.sub_(rate * (gradient + 0.9 * momentum))
            step += 1
    scores = split.test @ weight.T + bias
    found = by(protocol.run(task))
    assert found["", "top-1"] == pytest.approx(float((scores.argmax(1) == split.test_labels).double().mean()))
    top = (scores.topk(5).indices == split.test_labels[:, None]).any(1).double().mean()
    assert found["", "top-5"] == pytest.approx(float(top))
    assert found["", "top-1"] > 0.3


def test_linear_on_crops_leaves_the_encoder_alone(task):
    before = copy.deepcopy(task.encoder.state_dict())
    found = by(LinearEvaluation(epochs=20, batch_size=100, learning_rate=0.5, crop_area=(0.6, 1.0)).run(task))
    assert found["", "top-1"] > 0.5
    assert all(torch.equal(value, before[key]) for key, value in task.encoder.state_dict().items())
    assert task.encoder.training  # and in the mode it had


def test_crops_are_new_in_each_epoch_and_only_cropped_and_flipped(task):
    images = ImageBatches(task.train, task.train.labels, crops_of(8, (0.2, 1.0)), 600, task)
    (first, labels), (second, _) = next(images.epoch(0, 0)), next(images.epoch(1, 0))
    assert first.shape == (600, 3, 8, 8) and not torch.equal(first, second)
    assert torch.equal(first[:, 0], first[:, 1])  # no colour is added to grey digits
    _whole, whole_labels = next(
        ImageBatches(task.train, task.train.labels, crops_of(8, (1.0, 1.0)), 600, task).epoch(0, 0)
    )
    assert torch.equal(labels.sort().values, whole_labels.sort().values)


def test_few_labels(task):
    found = FewLabelCurve(labels=(1, 5, 1000), draws=3).run(task)
    for each, number in zip(found, (1, 5), strict=False):
        expected = few_label_accuracy(*features(task), number, 3, task.seed, 5 / number)
        assert each.value == pytest.approx(expected.mean, abs=0.004) and each.sd == pytest.approx(
            expected.sd, abs=0.004
        )
    assert found[0].value < found[1].value
    assert found[2].value is None and found[2].on == "1000 labels a class"


def test_label_fractions(task):
    shares, epochs = (1.0, 0.1, 0.02), (30, 60, 60)
    found = by(LabelFractions(shares, epochs, batch_size=100, cached=True).run(task))
    values = [found[f"{on}% of the labels", "top-1"] for on in ("100", "10", "2")]
    assert values == sorted(values, reverse=True) and values[0] > 0.5


def test_shares_are_drawn_class_by_class():
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 3)
    rows = draw_share(labels, 0.1, 0)
    assert torch.bincount(labels[rows]).tolist() == [5, 1, 1]
    assert torch.equal(rows, draw_share(labels, 0.1, 0)) and not torch.equal(rows, draw_share(labels, 0.1, 1))
    assert set(rows.tolist()) < set(draw_share(labels, 0.5, 0).tolist())
    assert torch.equal(draw_share(labels, 1.0, 0), torch.arange(63))


@pytest.mark.parametrize("lars", [True, False])
def test_semi_supervised(task, lars):
    before = copy.deepcopy(task.encoder.state_dict())
    rate = 2.0 if lars else 0.1
    protocol = SemiSupervised((0.05, 0.5), (60, 60), lars=lars, learning_rate=rate, crop_area=(0.7, 1.0))
    found = by(protocol.run(task))
    assert 0.3 < found["5% of the labels", "top-1"] < found["50% of the labels", "top-1"]
    assert all(torch.equal(value, before[key]) for key, value in task.encoder.state_dict().items())


def test_fine_tuning_goes_through_the_first_layers_of_the_head(task):
    head = fn.ProjectionHead(24, 12, 6, 3)
    with_head = Task(**{**vars(task), "head": head})
    model = with_classifier(with_head, 10, layers=1)
    assert [type(part).__name__ for part in model[0][1]] == ["Linear", "BatchNorm1d", "ReLU"]
    assert model[1].in_features == 12 and torch.equal(model[0][1][0].weight, head[0].weight)
    assert all(each.requires_grad for each in model.parameters()) and model[0][1][0].weight is not head[0].weight
    assert with_classifier(with_head, 10)[1].in_features == 24
    assert SemiSupervised(layers=(1, 0)).head_layers == 1
    found = by(SemiSupervised((0.1, 0.5), (2, 2), layers=(1, 0), learning_rate=0.1).run(with_head))
    assert len(found) == 4


def test_fine_tuning_lets_batch_norm_learn(tmp_path):
    """An encoder from given weights keeps its BatchNorm frozen in contrastive training; no published fine-tuning does."""
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    encoder = fn.Encoder("test_resnet", 32, tmp_path / "w.pth")
    assert encoder.frozen_batch_norm
    model = with_classifier(Task(encoder, 32), 3).train()
    layers = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
    before = [each.running_mean.clone() for each in layers]
    model(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    assert all(not torch.equal(old, each.running_mean) for old, each in zip(before, layers, strict=True))
    encoder.train()
    assert encoder.frozen_batch_norm and not any(
        each.training for each in encoder.modules() if isinstance(each, nn.BatchNorm2d)
    )


def test_published_lists_choose_the_images(task, tmp_path):
    names = [task.train.describe(row) for row in (5, 3, 40, 200, 201, 202, 203, 204)]
    (tmp_path / "1percent.txt").write_text("".join(f"{name}\n" for name in names))
    assert listed_rows(tmp_path / "1percent.txt", task.train).tolist() == [3, 5, 40, 200, 201, 202, 203, 204]
    found = SemiSupervised((0.01,), (2,), (str(tmp_path / "1percent.txt"),), (0,), learning_rate=0.1).run(task)
    assert found[0].details["images"] == 8
    (tmp_path / "wrong.txt").write_text("n01440764_10026.JPEG\n")
    (tmp_path / "empty.txt").write_text("\n")
    for name, words in (("wrong", "n01440764_10026.JPEG"), ("empty", "names no images"), ("nowhere", "cannot be read")):
        with pytest.raises(UserError, match=words):
            listed_rows(tmp_path / f"{name}.txt", task.train)


def test_features(task, tmp_path):
    split = features(task)
    labels = task.train.labels.clone()
    labels[4] = -1
    task.train.labels = labels
    FeatureTable(str(tmp_path / "f.parquet")).run(task)
    FeatureTable(str(tmp_path / "f.npy")).run(task)
    table, array = pq.read_table(tmp_path / "f.parquet"), np.load(tmp_path / "f.npy")
    assert table.column_names == ["row", "name", "label", "features"]
    for rows, given, found in (
        (table["row"].to_numpy(), table["label"].to_numpy(), np.stack(table["features"].to_numpy())),
        (array["row"], array["label"], array["features"]),
    ):
        assert (rows == np.arange(600)).all() and (given == labels.numpy()).all()
        assert np.allclose(found, split.train.numpy(), atol=1e-6)
    assert table["name"][3].as_py() == task.train.describe(3)
    for name, words in (("f.npy", "exists already"), ("f.csv", "ends in .parquet or .npy")):
        with pytest.raises(UserError, match=words):
            FeatureTable(str(tmp_path / name)).run(task)


class Stop(Exception):
    pass


def test_what_is_stopped_goes_on_to_the_same_weights(task, tmp_path):
    """Interrupted in the middle of an epoch, as by ctrl-C, a training ends as an undisturbed one does, bit for bit."""

    def trained(pieces, stop_at=None):
        def progress(what, done, total):
            if done == stop_at:
                raise KeyboardInterrupt

        mine = Task(**{**vars(task), "pieces": pieces, "progress": progress})
        torch.manual_seed(stop_at or 0)  # another process has other random states
        drop = nn.Sequential(copy.deepcopy(task.encoder), nn.Dropout(0.5), new_classifier(24, 10, mine))
        batches = ImageBatches(task.train, task.train.labels, crops_of(8, (0.5, 1.0)), 100, mine)
        train("fine-tuning", drop.train(), batches, Recipe(15, 0.1, lars=True), mine)
        return drop.state_dict()

    whole = trained(Pieces())
    with pytest.raises(KeyboardInterrupt):
        trained(Pieces(tmp_path / "parts", {"seed": 0}), stop_at=8)
    assert torch.load(tmp_path / "parts" / "fine-tuning.pt", weights_only=True)["step"] == 8
    resumed = trained(Pieces(tmp_path / "parts", {"seed": 0}))
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_pieces_are_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return [0.5, {"penalty": 1.0}]

    Pieces(
        tmp_path / "parts", {"seed": 2}
    )  # stopped before its first piece: nothing to go on with, and nothing in the way
    pieces = Pieces(tmp_path / "parts", {"seed": 0})
    assert not pieces.begun
    assert pieces.figures("DTD", make) == Pieces(tmp_path / "parts", {"seed": 0}).figures("DTD", make) == make()
    assert len(made) == 2 and Pieces(tmp_path / "parts", {"seed": 0}).begun
    with pytest.raises(UserError, match="another evaluation"):
        Pieces(tmp_path / "parts", {"seed": 1})
    (tmp_path / "parts" / "DTD.json").write_text("{")
    with pytest.raises(UserError, match="damaged; remove it"):
        pieces.figures("DTD", make)
    (tmp_path / "parts" / "x.pt").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"damaged|x\.pt"):
        pieces.state("x")
    pieces.clear()
    assert not (tmp_path / "parts").exists()


REFUSED = {
    "epochs is 0": LinearEvaluation(epochs=0),
    "learning_rate is -1": LinearEvaluation(learning_rate=-1),
    "k is 0": NearestNeighbours(k=0),
    "labels is": FewLabelCurve(labels=(0,)),
    "draws is 0": FewLabelCurve(draws=0),
    "4 shares and 1 epochs": LabelFractions(epochs=(90,)),
    "shares is": LabelFractions(shares=(2.0,), epochs=(1,)),
    "2 shares and 1 lists": SemiSupervised(lists=("a",)),
    "batch_size is 0": SemiSupervised(batch_size=0),
}


@pytest.mark.parametrize("words", REFUSED)
def test_refusals(words, task):
    with pytest.raises(UserError, match=words) as error:
        REFUSED[words].run(task)
    assert "\n" not in str(error.value)


def test_a_loss_that_diverges_is_said(task):
    with pytest.raises(UserError, match="no longer a finite number; give a lower learning rate"):
        LinearEvaluation(epochs=50, batch_size=100, learning_rate=1e30, weight_decay=1.0, cached=True).run(task)


@pytest.mark.parametrize("protocol", [NearestNeighbours(), LinearEvaluation(1), SemiSupervised(epochs=(1, 1))])
def test_labels_are_needed_and_the_same_classes(protocol, task):
    task.test.labels = task.test.labels + 1
    with pytest.raises(UserError, match="the test images show 1 others .number 10"):
        protocol.run(task)
    task.test.labels = None
    with pytest.raises(UserError, match="test: the images have no labels"):
        protocol.run(task)


def test_settings_are_what_json_holds():
    for protocol in (LinearEvaluation(), SemiSupervised(), FewLabelCurve()):
        assert json.loads(json.dumps(protocol.settings()))
