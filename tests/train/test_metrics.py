import json
import sys
import types
from dataclasses import replace

import catalogue
import pytest
import torch
from lightning_fabric import Fabric

import falseneg as fn
from falseneg.losses import Criterion
from falseneg.methods.simclr import contrast_views
from falseneg.train.metrics import FILE, Meter, Metrics, further_loggers, read_metrics

CLOCK = fn.Clock(0, 1, 1)


def judged(seed, detector=None):
    draw = torch.Generator().manual_seed(seed)
    z = torch.nn.functional.normalize(torch.randn(6, 2, 4, generator=draw), dim=-1)
    contrast = contrast_views(catalogue.embeddings(z, None, torch.arange(6)))
    return Criterion(detector or fn.BatchQuantile(0.3))([contrast], CLOCK)[1]


LABELS = torch.tensor([0, 0, 0, 1, 1, 1])


def test_counts_are_pooled_over_steps_not_averaged():
    steps = [judged(1), judged(2, fn.BatchQuantile(0.9)), judged(3)]
    meters = [Meter.of_step(float(i), step, LABELS) for i, step in enumerate(steps)]
    whole = meters[0] + meters[1] + meters[2]
    flagged = right = negatives = 0
    for (contrast, rule, _), *_ in steps:
        everything = slice(0, 12)
        sim = contrast.anchors.z @ contrast.candidates.z.T
        negative = contrast.anchors.sample[:, None] != contrast.candidates.sample
        hit = rule.tile(everything, everything, sim) & negative
        same = LABELS[contrast.anchors.sample][:, None] == LABELS[contrast.candidates.sample]
        flagged, right, negatives = flagged + hit.sum(), right + (hit & same).sum(), negatives + negative.sum()
    figures = whole.figures()
    assert figures["loss"] == 1.0
    assert figures["precision"] == pytest.approx(float(right / flagged))
    assert figures["share_flagged"] == pytest.approx(float(flagged / negatives))
    assert figures["chance"] == pytest.approx(0.4)


def test_without_labels_only_the_share_is_known():
    figures = (Meter.of_step(1.0, judged(1), None) + Meter.of_step(3.0, judged(2), None)).figures()
    assert figures["loss"] == 2 and figures["share_flagged"] == pytest.approx(0.3)
    assert figures["precision"] is figures["recall"] is figures["chance"] is None
    assert Meter().figures()["loss"] is None


@pytest.mark.parametrize("kind", ["batch", "bank", "alone"])
def test_without_labels_the_negatives_outside_the_denominator_count_too(kind):
    contrast, _ = catalogue.contrast_of(kind)
    contrast = replace(contrast, denominator="second")
    judged = Criterion(fn.FixedThreshold(0.1))([contrast], CLOCK)[1]
    of_anchor, of_candidate = contrast.anchors.sample.tolist(), contrast.candidates.sample.tolist()
    expected = sum(one != other or one == -1 for one in of_anchor for other in of_candidate)
    assert int(Meter.of_step(1.0, judged, None).detection.negatives) == expected


@pytest.mark.parametrize("labels", [None, LABELS])
def test_state_survives(labels):
    fabric = Fabric(accelerator="cpu", devices=1)
    meter = Meter.of_step(1.5, judged(1), labels).pooled(fabric)
    again = Meter.of_state(json.loads(json.dumps(meter.state())), first_rank=True)
    more = Meter.of_step(2.5, judged(2), labels)
    assert (again + more).figures() == (meter + more).figures()
    other = Meter.of_state(meter.state(), first_rank=False)
    assert other.loss == 1.5 and (other + more).figures()["share_flagged"] == more.figures()["share_flagged"]


def test_lines_and_truncation(tmp_path):
    metrics = Metrics(tmp_path)
    metrics.write("step", {"step": 1, "loss": 0.5, "precision": None})
    position = metrics.position()
    metrics.write("step", {"step": 2, "loss": 0.4})
    metrics.close()
    with open(tmp_path / FILE, "ab") as file:
        file.write(b'{"kind": "st')  # killed while writing
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    metrics = Metrics(tmp_path, position)
    metrics.write("epoch", {"epoch": 1})
    metrics.close()
    assert read_metrics(tmp_path) == [{"kind": "step", "step": 1, "loss": 0.5}, {"kind": "epoch", "epoch": 1}]
    assert read_metrics(tmp_path / "nowhere") == []
    (tmp_path / FILE).write_text("{}\nnonsense\n")
    with pytest.raises(fn.UserError, match="damaged"):
        read_metrics(tmp_path)


def test_tensorboard_gets_the_lines(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = Metrics(tmp_path, 0, further_loggers(["tensorboard"], tmp_path, "id", {}))
    metrics.write("step", {"step": 3, "loss": 0.5})
    metrics.write("final", {"knn": 0.9})
    metrics.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalar = events.Scalars("step/loss")[0]
    assert (scalar.step, scalar.value) == (3, 0.5)
    assert events.Scalars("final/knn")[0].value == pytest.approx(0.9)


def test_weights_and_biases_gets_the_lines(tmp_path, monkeypatch):
    """Against a stand-in for the package, which is not installed here: what is checked is how it is called."""
    calls = []
    run = types.SimpleNamespace(
        log=lambda figures, step: calls.append((figures, step)), finish=lambda: calls.append("finish")
    )
    wandb = types.SimpleNamespace(init=lambda **options: calls.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    metrics = Metrics(tmp_path, 0, further_loggers(["wandb"], tmp_path, "abc", {"seed": "1"}))
    metrics.write("step", {"step": 3, "loss": 0.5})
    metrics.close()
    assert calls[0]["id"] == "abc" and calls[0]["resume"] == "allow" and calls[0]["config"] == {"seed": "1"}
    assert calls[1:] == [({"step/loss": 0.5}, 3), "finish"]
