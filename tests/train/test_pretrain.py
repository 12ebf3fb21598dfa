import copy
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from train.parts import TINY, Unlabelled, assert_same_weights, digits, tiny_encoder, tiny_run, weights

import falseneg as fn
from falseneg.cli.configuration import resolve, run_settings
from falseneg.cli.parser import run_parser
from falseneg.data import Digits
from falseneg.evaluation import EVALUATIONS, evaluate, evaluations_of
from falseneg.train import AdamW, fit
from falseneg.train.describe import clearly_above
from falseneg.train.metrics import read_metrics
from falseneg.train.optimisers import rate_factor
from falseneg.train.plan import make_plan


def test_files_of_a_run(finished):
    folder, figures = finished
    assert {"knn", "linear", "seconds", "seconds_per_epoch", "peak_memory_mib"} <= figures.keys()
    assert (folder / "config.yaml").read_text() == "epochs: 3\n"
    about = json.loads((folder / "run.json").read_text())
    assert about["images"] == 96 and about["small_stem"] is True and about["torch"] == torch.__version__
    assert {"falseneg", "python", "platform", "seed", "git", "command", "started"} <= about.keys()
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        "last.pt",
        "previous.pt",
        "step-00000006.pt",
    ]

    lines = read_metrics(folder)
    assert [line["step"] for line in lines if line["kind"] == "step"] == [1, 2, 4, 6, 8]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [1, 2, 3] and all("knn" in line for line in epochs)
    assert {"loss", "share_flagged", "precision", "recall", "f1", "chance", "seconds"} <= epochs[0].keys()
    assert lines[-1]["kind"] == "final" and lines[-1]["knn"] == figures["knn"]
    rates = [line["learning_rate"] for line in lines if line["kind"] == "step"]
    assert rates == pytest.approx([1e-3 * rate_factor(step - 1, 1, 9) for step in (1, 2, 4, 6, 8)])
    first = lines[0]
    assert {"loss", "learning_rate", "temperature", "images_per_second", "share_flagged", "precision"} <= first.keys()
    assert first["temperature"] == pytest.approx(0.07, rel=0.1)


def test_files_for_the_report(finished):
    folder, _ = finished
    flagged = pq.read_table(folder / "flagged.parquet")
    types = {"anchor": "int64", "candidate": "int64", "anchor_name": "string", "candidate_name": "string"}
    types |= {"score": "float", "epoch": "int32", "correct": "bool"}
    types |= {"anchor_class": "string", "candidate_class": "string"}
    assert {field.name: str(field.type) for field in flagged.schema} == types
    columns = flagged.to_pydict()
    assert sorted(set(columns["epoch"])) == [1, 2, 3]
    labels = digits().labels
    for anchor, candidate, correct in zip(columns["anchor"], columns["candidate"], columns["correct"], strict=True):
        assert anchor != candidate and correct == bool(labels[anchor] == labels[candidate])
    assert len(set(zip(columns["epoch"], columns["anchor"], columns["candidate"], strict=True))) == len(flagged)

    similarities = json.loads((folder / "similarities.json").read_text())
    assert [entry["epoch"] for entry in similarities] == [1, 2, 3]
    for entry in similarities:
        # 3 steps of 32 images with 2 views: each view has 62 negatives.
        assert sum(entry["true_negative"]) + sum(entry["false_negative"]) == 3 * 64 * 62
        assert sum(entry["flagged_true_negative"]) + sum(entry["flagged_false_negative"]) == 3 * 64 * 4
        assert len(entry["edges"]) == 101 and entry["threshold"] is None

    embedding = np.load(folder / "embedding.npz")
    assert embedding["features"].shape == (96, 8) and embedding["labels"].tolist() == labels.tolist()
    thumbnails = np.load(folder / "thumbnails.npz")
    assert thumbnails["images"].shape[1:] == (96, 96, 3) and thumbnails["images"].dtype == np.uint8
    assert len(thumbnails["rows"]) == len(thumbnails["images"]) == len(thumbnails["names"]) > 4
    assert thumbnails["names"][0] == digits().describe(int(thumbnails["rows"][0]))


def test_the_export_is_the_trained_encoder(finished):
    folder, _ = finished
    encoder = fn.Encoder.load(folder / "encoder.safetensors")
    trained = weights(folder)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, trained[f"encoder.{name}"])


def test_what_is_said(tmp_path, capsys):
    fit(tiny_run(accumulate=2, epochs=1), tmp_path / "run")
    said = capsys.readouterr().out
    for words in (
        "96 images (10 classes",
        "small stem",
        "1 epoch of 3 steps, 32 images each in 2 pieces",
        "warning: a batch of 32 is 33%",
    ):
        assert words in said
    assert "estimate: " in said and "MiB" in said and "step 1/3" in said and "images/s" in said and "left" in said
    loading = said[said.index("from falseneg import Encoder") :].strip().splitlines()
    scope = {"image": torch.zeros(3, 11, 9, dtype=torch.uint8)}
    exec("\n".join(loading), scope)
    assert len(loading) == 4 and scope["features"].shape == (1, 8)


def test_the_starting_encoder_is_measured_and_training_must_beat_it(tmp_path, capsys):
    run = tiny_run(epochs=1, optimiser=AdamW(1e-9))
    untrained = evaluate(copy.deepcopy(run.method.encoder), run.data, run.test, 8, evaluations=evaluations_of(5, 10))
    figures = fit(run, tmp_path / "run")
    said = capsys.readouterr().out
    (start,) = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "start"]
    for each in EVALUATIONS:
        assert start[each.key] == figures[f"start_{each.key}"] == untrained[each.key]
    assert f"before training: nearest neighbours {start['knn']:.1%}, linear probe" in said
    assert (
        "warning: by nearest neighbours and linear probe and 5 labels a class training has not clearly beaten" in said
    )


@pytest.mark.parametrize(("after", "images", "expected"), [(0.6, 100, False), (0.6, 1000, True), (0.4, 1000, False)])
def test_what_is_clearly_above(after, images, expected):
    assert clearly_above(after, 0.5, images) is expected


def test_accuracy_is_measured_ten_times_where_there_are_labels(tmp_path):
    fit(tiny_run(epochs=20, few_labels=50), tmp_path / "run")
    measured = [line["epoch"] for line in read_metrics(tmp_path / "run") if line["kind"] == "epoch" and "knn" in line]
    assert measured == list(range(2, 21, 2))


def test_few_label_says_why_it_is_missing(tmp_path, capsys):
    fit(tiny_run(epochs=1, few_labels=50), tmp_path / "run")
    assert "no few-label accuracy: a class has" in capsys.readouterr().out


def test_the_seed_decides_whatever_came_before(finished, tmp_path):
    run = tiny_run()
    torch.manual_seed(77)
    fit(run, tmp_path / "run")
    assert_same_weights(finished[0], tmp_path / "run")
    other = tiny_run(seed=1, method=tiny_run().method)
    fit(other, tmp_path / "other")
    assert not torch.equal(weights(tmp_path / "run")["head.0.weight"], weights(tmp_path / "other")["head.0.weight"])


def test_not_a_number_stops_with_finite_weights(tmp_path):
    class Broken(fn.InfoNCE):
        def forward(self, contrast, stats, tau, strategy, clock=None):
            losses = super().forward(contrast, stats, tau, strategy, clock)
            return losses * torch.nan if clock.step == 4 else losses

    with pytest.raises(fn.UserError, match="loss became nan at step 5; lower the learning rate"):
        fit(tiny_run(objective=Broken()), tmp_path / "run")
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)["step"] == 3
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


class BrokenGradient(fn.InfoNCE):
    """At some steps the loss is finite, and its gradient is not."""

    def __init__(self, *steps):
        super().__init__()
        self._steps = steps

    def forward(self, contrast, stats, tau, strategy, clock=None):
        losses = super().forward(contrast, stats, tau, strategy, clock)
        if clock.step in self._steps:
            zero = (losses - losses).abs()
            losses = losses + zero.sqrt()  # 0, of infinite slope
        return losses


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(fn.UserError, match="a gradient became infinite or NaN at step 5; .*of encoder.backbone"):
        fit(tiny_run(objective=BrokenGradient(4)), folder)
    held = torch.load(folder / "checkpoints" / "not-finite.pt", weights_only=True)
    assert held["step"] == 4 and all(value.isfinite().all() for value in held["method"].values())
    about = json.loads((folder / "checkpoints" / "not-finite.json").read_text())
    assert about["step"] == 5 and len(about["rows"]) == 32 and about["largest_gradient"] in ("nan", "inf")
    # The state reproduces the fault; the last checkpoint goes on where the fault does not return.
    (folder / "checkpoints" / "not-finite.pt").replace(folder / "checkpoints" / "last.pt")
    with pytest.raises(fn.UserError, match="at step 5"):
        fit(tiny_run(objective=BrokenGradient(4)), folder, resume=True)


def test_steps_that_are_not_finite_can_be_skipped(tmp_path, capsys):
    with pytest.raises(fn.UserError, match="at step 6"):
        fit(tiny_run(objective=BrokenGradient(1, 5), skip_not_finite=1), tmp_path / "one")
    figures = fit(tiny_run(objective=BrokenGradient(1, 2, 5), skip_not_finite=3), tmp_path / "run")
    assert "at step 2, which is skipped" in capsys.readouterr().out
    assert figures["knn"] > 0 and all(value.isfinite().all() for value in weights(tmp_path / "run").values())
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert state["skipped"] == 3 and state["step"] == 9
    taken = {int(entry["step"]) for entry in state["optimiser"]["state"].values()}
    assert taken == {6}, "the optimiser has taken the other six"


def test_a_step_that_breaks_batch_norm_is_not_skipped(tmp_path):
    run, calls = tiny_run(skip_not_finite=3), []

    def overflow(module, inputs, output):
        if module.training:
            calls.append(1)
        return output * torch.inf if module.training and len(calls) == 7 else output

    run.method.encoder.backbone.conv1.register_forward_hook(overflow)
    with pytest.raises(fn.UserError, match="has reached .*bn1.running_mean, so that the step cannot be skipped"):
        fit(run, tmp_path / "run")


def test_what_is_skipped_is_counted_over_a_resume(tmp_path):
    stopping = tiny_run(objective=BrokenGradient(1, 4), skip_not_finite=1)
    with pytest.raises(fn.UserError, match="at step 5"):
        fit(stopping, tmp_path / "run")
    with pytest.raises(fn.UserError, match="at step 5"):
        fit(tiny_run(objective=BrokenGradient(1, 4), skip_not_finite=1), tmp_path / "run", resume=True)
    assert fit(tiny_run(objective=BrokenGradient(1, 4), skip_not_finite=2), tmp_path / "run", resume=True)["knn"] > 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_is_one_sentence(tmp_path, error):
    class Hungry(fn.InfoNCE):
        def forward(self, *arguments):
            raise error

    with pytest.raises(fn.UserError, match="memory ran out; lower the batch size, encode it in more pieces"):
        fit(tiny_run(objective=Hungry()), tmp_path / "run")


def test_a_real_want_of_memory(tmp_path):
    class Hungry(fn.InfoNCE):
        def forward(self, *arguments):
            return torch.empty(2**60)

    with pytest.raises(fn.UserError, match="memory ran out"):
        fit(tiny_run(objective=Hungry()), tmp_path / "run")


def test_a_bug_keeps_its_traceback(tmp_path):
    class Wrong(fn.InfoNCE):
        def forward(self, *arguments):
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        fit(tiny_run(objective=Wrong()), tmp_path / "run")


def test_without_labels_everything_else_works(tmp_path, capsys):
    figures = fit(tiny_run(data=Unlabelled(), test=None, epochs=2), tmp_path / "run")
    assert figures.keys() == {"seconds", "seconds_per_epoch", "peak_memory_mib"}
    assert "without labels" in capsys.readouterr().out
    step = read_metrics(tmp_path / "run")[0]
    assert step["share_flagged"] > 0 and "precision" not in step
    assert "correct" not in pq.read_table(tmp_path / "run" / "flagged.parquet").column_names
    entry = json.loads((tmp_path / "run" / "similarities.json").read_text())[0]
    assert sum(entry["flagged"]) < sum(entry["negative"])
    assert "labels" not in np.load(tmp_path / "run" / "embedding.npz")


def test_unreadable_images(tmp_path, capsys):
    with pytest.raises(fn.UserError, match="number 7 is broken.*--skip-unreadable"):
        fit(tiny_run(data=Unlabelled(7), test=None), tmp_path / "one")
    fit(tiny_run(data=Unlabelled(7), test=None, epochs=1, skip_unreadable=True), tmp_path / "two")
    assert (tmp_path / "two" / "unreadable.txt").read_text() == "number 7 is broken\n"
    said = capsys.readouterr().out
    assert "number 7 is broken" in said and "95 images" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 97}, "batch_size is 97, but there are 96 images"),
        ({"accumulate": 33}, "accumulate is 33, but a process sees 32 images"),
        ({"detector": fn.SupportSet(top_k=63)}, "top_k is 63, but an anchor is compared with 62"),
        ({"detector": fn.Oracle(), "data": Unlabelled(), "test": None}, "Oracle: the data set has no labels"),
        ({"detector": fn.BatchQuantile()}, "give alpha, or the number of expected classes"),
        ({"evaluate_every": "1 epoch", "data": Unlabelled(), "test": None}, "evaluate_every needs labelled images"),
        ({"accelerator": "cuda"}, "cannot train on accelerator 'cuda'"),
    ],
)
def test_impossible_combinations(tmp_path, options, words):
    if options.get("accelerator") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(fn.UserError, match=words):
        fit(tiny_run(**options), tmp_path / "run")


def test_labels_are_set_aside_where_there_is_no_test_set(tmp_path, capsys):
    data = digits()
    data.test_set = lambda: None
    figures = fit(tiny_run(data=data, test=None, holdout=0.25, epochs=1, batch_size=16), tmp_path / "run")
    said = capsys.readouterr().out
    assert "labelled images are set aside" in said and "knn" in figures
    assert json.loads((tmp_path / "run" / "run.json").read_text())["images"] < 80


def test_settings_left_open_suit_the_data(tmp_path, capsys):
    run = tiny_run(epochs=1, batch_size=None, workers=None, detector=fn.SupportSet(), expected_classes=10)
    fit(run, tmp_path / "run")
    assert "16 images each" in capsys.readouterr().out
    assert read_metrics(tmp_path / "run")[0]["share_flagged"] == pytest.approx(0.1, abs=0.03)


def test_settings_left_open_are_milder_from_given_weights(tmp_path):
    """The same from the library and from the command line."""
    path = tmp_path / "start.safetensors"
    tiny_encoder().save(path)
    given = fn.Encoder("resnet18", 8, path, arguments=TINY)
    options = ["--data", "Digits", "--accelerator", "cpu", "--method.encoder.name", "resnet18"]
    parser = run_parser("pretrain", "")
    for encoder, more, share in (
        (tiny_encoder(), [], 1),
        (given, ["--method.encoder.weights", str(path)], 10),
        (fn.Encoder.load(path), ["--method.encoder.weights", str(path)], 10),
    ):
        run = tiny_run(method=fn.SimCLR(encoder), data=Digits(), optimiser=AdamW(), epochs=None, batch_size=128)
        plan = make_plan(run, gpu=False, resumed=True, say=print)
        assert (plan.epochs, plan.peak_rate) == (round(139 / share), pytest.approx(AdamW().usual_rate(128) / share))
        settings, _ = resolve(run_settings(parser, parser.parse_args([*options, *more])))
        assert settings["epochs"] == plan.epochs
        assert settings["optimiser"]["init_args"]["learning_rate"] == pytest.approx(plan.peak_rate)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_lower_precisions(tmp_path, precision, accumulate):
    figures = fit(tiny_run(epochs=1, precision=precision, accumulate=accumulate), tmp_path / "run")
    assert 0 < figures["knn"] <= 1 and read_metrics(tmp_path / "run")[0]["loss"] > 0
    dtype = weights(tmp_path / "run")["encoder.backbone.conv1.weight"].dtype
    assert dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)
    assert fn.Encoder.load(tmp_path / "run" / "encoder.safetensors")(torch.zeros(2, 3, 8, 8)).shape == (2, 8)


def test_expected_classes_reach_the_detector(tmp_path):
    fit(tiny_run(epochs=1, detector=fn.BatchQuantile(), expected_classes=5), tmp_path / "run")
    line = read_metrics(tmp_path / "run")[0]
    assert line["share_flagged"] == pytest.approx(0.2, abs=0.02)
    assert json.loads((tmp_path / "run" / "similarities.json").read_text())[0]["threshold"] is not None


def test_the_linear_probe_during_training(tmp_path, capsys):
    fit(tiny_run(epochs=2, evaluate_every="1 epoch", evaluate_linear=True), tmp_path / "run")
    epochs = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "epoch"]
    assert all(0 < line["linear"] <= 1 for line in epochs) and len(epochs) == 2
    assert f"linear {epochs[1]['linear']:.1%}" in capsys.readouterr().out


def test_a_test_folder_that_lacks_a_class_is_numbered_as_the_training_folder(tmp_path):
    from PIL import Image

    from falseneg.data import Folder

    for split, classes in (("train", "abc"), ("test", "bc")):
        for name in classes:
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (8, 8), (number * 40, 0, ord(name))).save(tmp_path / split / name / f"{number}.png")
    run = tiny_run(data=Folder(tmp_path / "train"), test=Folder(tmp_path / "test"), batch_size=4)
    prepared = make_plan(run, gpu=False, resumed=False, say=lambda _: None)
    assert prepared.test.labels.tolist() == [1] * 4 + [2] * 4
