import os
import shutil
import signal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from train.parts import FirstWeights, Unlabelled, assert_same_weights, digits, tiny_encoder, tiny_run, untimed, weights

import falseneg as fn
from falseneg.data import Subset
from falseneg.train import AdamW, fit
from falseneg.train.checkpoint import save_checkpoint
from falseneg.train.metrics import read_metrics


class StopAt(fn.InfoNCE):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step, number):
        super().__init__()
        self._step, self._number = step, number

    def forward(self, contrast, stats, tau, strategy, clock=None):
        if clock.step == self._step:
            self._step = -1  # a second signal would end the process at once, and a step may have several contrasts
            os.kill(os.getpid(), self._number)
        return super().forward(contrast, stats, tau, strategy, clock)


@pytest.mark.parametrize(
    ("step", "number", "accumulate"), [(0, signal.SIGINT, 1), (4, signal.SIGTERM, 1), (4, signal.SIGINT, 3)]
)
def test_a_signal_saves_and_resume_ends_with_the_same_bits(tmp_path, capsys, step, number, accumulate):
    options = {"accumulate": accumulate, "evaluate_every": "1 epoch", "checkpoint_every": None}
    fit(tiny_run(**options, objective=StopAt(-1, number)), tmp_path / "whole")
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        fit(tiny_run(**options, objective=StopAt(step, number)), tmp_path / "parts")
    assert stopped.value.code == 128 + number and signal.getsignal(number) is before
    assert f"after step {step + 1} of 9" in capsys.readouterr().out
    torch.manual_seed(99)  # nothing may depend on what came before
    run = tiny_run(**options, objective=StopAt(-1, number), method=fn.SimCLR(tiny_encoder(5), support_views=1))
    fit(run, tmp_path / "parts", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "parts")
    whole, parts = (pq.read_table(tmp_path / name / "flagged.parquet") for name in ("whole", "parts"))
    assert whole.equals(parts)
    whole, parts = ((tmp_path / name / "similarities.json").read_text() for name in ("whole", "parts"))
    assert whole == parts


class Whole(fn.NoDetection):
    """Looks at the embeddings of the whole data set at the start of each epoch."""

    def __init__(self, _seen):
        super().__init__()
        self._seen = _seen

    def start_epoch(self, features, clock):
        self._seen.append((clock.step, features()))


def test_detectors_see_the_whole_data_set_once_an_epoch(tmp_path):
    seen = []
    options = {"detector": Whole(seen), "checkpoint_every": None}
    with pytest.raises(SystemExit):
        fit(tiny_run(**options, objective=StopAt(4, signal.SIGTERM)), tmp_path / "run")
    fit(tiny_run(**options, objective=StopAt(-1, signal.SIGTERM)), tmp_path / "run", resume=True)
    assert [step for step, _ in seen] == [0, 3, 6]
    for _, embeddings in seen:
        assert embeddings.shape == (96, 128)
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(96))
    assert not torch.equal(seen[0][1], seen[1][1])
    fit(tiny_run(checkpoint_every=None, detector=fn.NoDetection()), tmp_path / "plain")
    assert_same_weights(tmp_path / "run", tmp_path / "plain")


class Beside(fn.InfoNCE):
    """In the middle of a step, somebody else asks for the folder, to go on or to start anew."""

    def __init__(self, folder):
        super().__init__()
        self._folder, self._said = folder, []

    def forward(self, contrast, stats, tau, strategy, clock=None):
        if clock.step in (0, 4):
            for resume in (True, False):
                with torch.random.fork_rng(), pytest.raises(fn.UserError) as refused:
                    fit(tiny_run(), self._folder, resume=resume)
                self._said.append(str(refused.value))
        return super().forward(contrast, stats, tau, strategy, clock)


@pytest.mark.parametrize("workers", [0, 1])
def test_one_run_folder_one_writer(tmp_path, workers):
    folder = tmp_path / "run"
    objective = Beside(folder)
    fit(tiny_run(objective=objective, workers=workers), folder)
    assert [said.split(";")[0] for said in objective._said[:3]] == [
        f"another process is writing the run in {folder}"
    ] * 3
    assert "holds a run already" in objective._said[3]
    assert [line["epoch"] for line in read_metrics(folder) if line["kind"] == "epoch"] == [1, 2, 3]
    fit(tiny_run(objective=fn.InfoNCE()), tmp_path / "plain")
    assert_same_weights(folder, tmp_path / "plain")
    assert not list(folder.glob(".*"))


def test_a_finished_run_stays_as_it_is(finished):
    folder, figures = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert fit(tiny_run(), folder, resume=True) == pytest.approx(figures)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_folders(finished, tmp_path):
    folder, _ = finished
    with pytest.raises(fn.UserError, match="holds a run already .*--resume .*--out"):
        fit(tiny_run(), folder)
    with pytest.raises(fn.UserError, match="holds no run to resume"):
        fit(tiny_run(), tmp_path / "nothing", resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(fn.UserError, match="cannot be made"):
        fit(tiny_run(), tmp_path / "file")


def stopped_run(folder, **options):
    with pytest.raises(SystemExit):
        fit(tiny_run(**options, objective=StopAt(1, signal.SIGTERM)), folder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 2}, "epochs is '3' there and '2' here"),
        ({"data": digits(95)}, "is '.*' there and '.*' here"),
        ({"data": Subset(digits(97), range(1, 97))}, "data is"),
        ({"detector": fn.SupportSet(top_k=5)}, "detector.top_k is '4' there and '5' here"),
        ({"optimiser": AdamW(2e-3)}, "optimiser.learning_rate is"),
        ({"method": fn.SimCLR(tiny_encoder(channels=[8, 8, 8, 16]), support_views=1)}, "encoder.arguments is"),
        ({"method": fn.SimCLR(tiny_encoder(), head_dim=64, support_views=1)}, "method.head.3.bias is"),
    ],
)
def test_a_checkpoint_of_another_configuration(tmp_path, options, words):
    stopped_run(tmp_path / "run")
    whole = (tmp_path / "run" / "checkpoints" / "last.pt").read_bytes()
    with pytest.raises(fn.UserError, match=words) as error:
        fit(tiny_run(**{"objective": StopAt(1, signal.SIGTERM), **options}), tmp_path / "run", resume=True)
    assert "--init-from" in str(error.value)
    assert (tmp_path / "run" / "checkpoints" / "last.pt").read_bytes() == whole


def test_a_damaged_checkpoint(tmp_path):
    stopped_run(tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(fn.UserError, match="damaged"):
        fit(tiny_run(objective=StopAt(1, signal.SIGTERM)), tmp_path / "run", resume=True)


@pytest.mark.parametrize("instead", [None, "abc", [1, 2], {"a": 1}])
def test_a_whole_checkpoint_of_other_things(tmp_path, instead):
    stopped_run(tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    whole = torch.load(path, weights_only=True)
    for part in ("settings", "method", "criterion", "optimiser", "random", "observers", "step", "metrics"):
        save_checkpoint(path.parent, {**whole, part: instead})
        with pytest.raises(fn.UserError) as error:
            fit(tiny_run(objective=StopAt(1, signal.SIGTERM)), tmp_path / "run", resume=True)
        assert "\n" not in str(error.value) and "the checkpoint" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("similarities.json", b"[3]"),
        ("similarities.json", b'[{"epoch": "x"}]'),
        ("flagged.parquet", b"PAR1"),
        ("flagged.parquet", None),
        ("metrics.jsonl", b"3\n"),
        ("metrics.jsonl", b"\xff\n"),
    ],
)
def test_damaged_records(finished, tmp_path, name, content):
    shutil.copytree(finished[0], tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(lines[:-1]))
    if content is None:  # a column of words
        pq.write_table(pa.table({"anchor": ["x"], "candidate": [1], "score": [0.5], "epoch": [1]}), tmp_path / "x")
        content = (tmp_path / "x").read_bytes()
    (tmp_path / "run" / name).write_bytes(content)
    with pytest.raises(fn.UserError, match=name) as error:
        fit(tiny_run(evaluate_every="1 epoch", keep_every="2 epochs"), tmp_path / "run", resume=True)
    assert "\n" not in str(error.value)


def test_killed_before_the_first_checkpoint(tmp_path):
    """Only a folder and half a file of metrics are there: the run starts again."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text('{"seed"')
    (tmp_path / "run" / "metrics.jsonl").write_text('{"kind": "step", "step": 1}\n{"ki')
    fit(tiny_run(epochs=1), tmp_path / "run", resume=True)
    fit(tiny_run(epochs=1), tmp_path / "whole")
    assert_same_weights(tmp_path / "run", tmp_path / "whole")
    assert untimed(tmp_path / "run") == untimed(tmp_path / "whole")


def test_killed_after_the_last_step(finished, tmp_path):
    """The last measurements are made again."""
    folder, figures = finished
    run = tmp_path / "run"
    run.mkdir()
    for name in ("run.json", "config.yaml", "flagged.parquet", "similarities.json"):
        (run / name).write_bytes((folder / name).read_bytes())
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.pt").write_bytes((folder / "checkpoints" / "last.pt").read_bytes())
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]) + lines[-1][:20])
    again = fit(tiny_run(evaluate_every="1 epoch", keep_every="2 epochs"), run, resume=True)
    assert {key: again[key] for key in ("knn", "linear")} == {key: figures[key] for key in ("knn", "linear")}
    assert untimed(run) == untimed(folder)


@pytest.mark.parametrize("source", ["run", "run/encoder.safetensors", "run/checkpoints/last.pt"])
def test_start_from_weights(finished, tmp_path, source):
    folder, _ = finished
    run = tiny_run(seed=3, init_from=folder.parent / source, epochs=1)
    run.objective = first = FirstWeights(run.method)
    fit(run, tmp_path / "new")
    seen = first.seen
    trained = weights(folder)
    assert torch.equal(seen["encoder.backbone.conv1.weight"], trained["encoder.backbone.conv1.weight"])
    same_head = torch.equal(seen["head.0.weight"], trained["head.0.weight"])
    assert same_head == ("safetensors" not in source)
    assert read_metrics(tmp_path / "new")[0]["step"] == 1


def test_weights_that_do_not_fit(finished, tmp_path):
    folder, _ = finished
    other = fn.SimCLR(tiny_encoder(channels=[8, 8, 8, 16]), support_views=1)
    for source in (folder, folder / "encoder.safetensors"):
        with pytest.raises(fn.UserError, match="is .* there and .* here"):
            fit(tiny_run(method=other, init_from=source), tmp_path / source.name)
    with pytest.raises(fn.UserError, match="holds no weights"):
        fit(tiny_run(init_from=tmp_path), tmp_path / "new")


def test_a_run_that_took_no_step_is_in_nobodys_way(tmp_path):
    class Hungry(fn.InfoNCE):
        def forward(self, *arguments):
            raise MemoryError

    for options in ({"objective": Hungry()}, {"batch_size": 1000}, {"data": Unlabelled(3), "test": None}):
        with pytest.raises(fn.UserError):
            fit(tiny_run(**options), tmp_path / "run", configuration="of the first\n")
    fit(tiny_run(epochs=1), tmp_path / "run", configuration="of the last\n")
    assert (tmp_path / "run" / "config.yaml").read_text() == "of the last\n"
