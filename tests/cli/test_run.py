"""One small run, and what the commands make of it."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from falseneg import Encoder
from falseneg.cli import main

SMALL = ["--method.encoder.arguments", '{"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}', "--accelerator", "cpu"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run on digits."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    options = ["--config", "digits", *SMALL, "--epochs", "2", "--detector", "SupportSet", "--method.support-views", "1"]
    assert main(["pretrain", *options, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def test_it_can_be_done_again_from_its_own_configuration(run, tmp_path):
    again = tmp_path / "again"
    assert main(["pretrain", "--config", str(run / "config.yaml"), "--out", str(again)]) == 0
    assert (again / "config.yaml").read_bytes() == (run / "config.yaml").read_bytes()
    first, second = (Encoder.load(folder / "encoder.safetensors").state_dict() for folder in (run, again))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_its_folder_is_refused_to_another_run(run, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["pretrain", "--config", "digits", *SMALL, "--out", str(run)]) == 2
    said = capsys.readouterr().err
    assert "--resume" in said and "--out" in said
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "options", [[], ["--workers", "1"], ["--epochs=2", "--detector", "SupportSet"], ["--strategy", "eliminate"]]
)
def test_it_resumes_as_it_was(run, options):
    assert main(["pretrain", "--resume", str(run), *options]) == 0


def test_the_same_command_with_resume_goes_on(run):
    options = ["--config", "digits", *SMALL, "--epochs", "2", "--detector", "SupportSet", "--method.support-views", "1"]
    assert main(["pretrain", *options, "--out", str(run), "--resume"]) == 0


@pytest.mark.parametrize(
    "options, named",
    [
        (["--epochs", "1"], "--epochs"),
        (["--batch-size", "12"], "--batch-size"),
        (["--detector", "Oracle"], "--detector"),
        (["--strategy", "attract"], "--strategy"),
        (["--out", "elsewhere"], "--out"),
    ],
)
def test_it_does_not_resume_otherwise(run, options, named, capsys):
    assert main(["pretrain", "--resume", str(run), *options]) == 2
    said = capsys.readouterr().err
    assert named in said and "--init-from" in said


def test_a_finished_run_goes_on_with_more_epochs(run, capsys):
    assert main(["pretrain", "--resume", str(run), "--epochs", "3"]) == 0
    assert "epoch 3/3" in capsys.readouterr().out
    assert yaml.safe_load((run / "config.yaml").read_text())["epochs"] == 3
    assert (run / "epochs-00002" / "encoder.safetensors").is_file()
    assert main(["pretrain", "--resume", str(run)]) == 0
    assert "epoch 3/3" not in capsys.readouterr().out, "it has its three epochs now"
    assert main(["report", str(run)]) == 0


def test_measuring_can_wait(tmp_path, capsys):
    options = ["--config", "digits", *SMALL, "--epochs", "1", "--evaluate", "later", "--out", str(tmp_path / "run")]
    assert main(["pretrain", *options]) == 0
    said = capsys.readouterr().out
    assert f"falseneg evaluate {tmp_path / 'run'} measures the encoder" in said and "before training" not in said
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert not [line for line in lines if "knn" in line]
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert "nearest neighbours" in capsys.readouterr().out


def test_a_damaged_configuration_is_named(run, capsys):
    (run / "config.yaml").write_text("data: [")
    assert main(["pretrain", "--resume", str(run)]) == 2
    assert "config.yaml" in capsys.readouterr().err


def test_evaluation_of_a_run_repeats_its_figures(run, capsys):
    assert main(["evaluate", str(run)]) == 0
    shown = capsys.readouterr().out
    figures = json.loads((run / "evaluation.json").read_text())
    final = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    for key in ("knn", "linear", "few_label"):
        assert figures[key] == pytest.approx(final[key])
        assert f"{figures[key]:.1%}" in shown
    assert (figures["images"], figures["test_images"]) == (1437, 360)


def test_evaluation_of_an_encoder_on_other_data(run, tmp_path):
    out = tmp_path / "figures.json"
    options = ["--data", "Digits", "--data.split", "test", "--holdout", "0.5", "--out", str(out)]
    assert main(["evaluate", str(run / "encoder.safetensors"), *options]) == 0
    assert json.loads(out.read_text())["test_images"] == 180


def test_the_lines_that_load_an_export_do_load_it(run, tmp_path, capsys):
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    original = Encoder.load(run / "encoder.safetensors").eval()
    for form in ("falseneg", "timm"):
        assert main(["export", str(run), "--format", form, "--out", str(tmp_path / f"{form}.safetensors")]) == 0
        names: dict = {}
        exec("\n".join(line.strip() for line in capsys.readouterr().out.splitlines() if "images" not in line), names)
        if form == "falseneg":
            features = names["encoder"](images)
        else:
            features = names["model"].eval()((images / 255 - original.mean) / original.std)
        assert torch.allclose(features, original(images), atol=1e-5)


def test_an_export_overwrites_nothing(run, capsys):
    before = (run / "encoder.safetensors").read_bytes()
    assert main(["export", str(run), "--out", str(run / "encoder.safetensors")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (run / "encoder.safetensors").read_bytes() == before


def test_an_unfinished_run_has_nothing_to_export(run, tmp_path, capsys):
    (run / "encoder.safetensors").unlink()
    assert main(["export", str(run), "--out", str(tmp_path / "e.safetensors")]) == 2
    assert "finished" in capsys.readouterr().err


def test_a_report(run, tmp_path):
    assert main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text().startswith("<!")


def test_a_new_run_starts_from_its_weights(run, tmp_path):
    options = ["--config", str(run / "config.yaml"), "--epochs", "1", "--seed", "1"]
    assert main(["pretrain", *options, "--init-from", str(run), "--out", str(tmp_path / "next")]) == 0


def test_recipes(capsys):
    assert main(["recipes"]) == 0
    assert "digits" in capsys.readouterr().out
    assert main(["recipes", "digits"]) == 0
    assert "data:" in capsys.readouterr().out


def test_a_program_is_killed_and_goes_on(tmp_path):
    folder = tmp_path / "run"
    last, log = folder / "checkpoints" / "last.pt", tmp_path / "log"
    options = ["--config", "digits", *SMALL, "--epochs", "200", "--evaluate-every", "null", "--out", str(folder)]
    status = until(lambda: last.exists(), ["pretrain", *options], signal.SIGKILL, log)
    assert status == -signal.SIGKILL
    step = torch.load(last, weights_only=True)["step"]
    # Before its first step a program does not heed signals yet, and has nothing to save.
    trains = re.compile(r"continuing after.*^step ", re.DOTALL | re.MULTILINE).search
    status = until(lambda: trains(log.read_text()), ["pretrain", "--resume", str(folder)], signal.SIGTERM, log)
    assert status == 128 + signal.SIGTERM
    assert f"continuing after step {step} of 2200" in log.read_text()
    assert torch.load(last, weights_only=True)["step"] > step


def until(happened, arguments, number, log):
    """The status of a program that gets a signal once something has happened."""
    with open(log, "w") as file:
        process = subprocess.Popen([sys.executable, "-m", "falseneg", *arguments], stdout=file, stderr=file)
    while not happened() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    return process.wait(timeout=60)


def test_a_variant_by_name(tmp_path):
    arguments = ["pretrain", "--config", "digits", "--variant", "fnc-attract", "--epochs", "1"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert settings["detector"]["class_path"] == "falseneg.SupportSet" and settings["strategy"]["positive"] == 1.0
    assert settings["detector"]["init_args"]["share"] == 0.05 and settings["method"]["init_args"]["support_views"] == 4
