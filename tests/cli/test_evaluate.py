"""``falseneg evaluate --protocol``: from the command line to the table and the file."""

import json
import signal
import subprocess
import sys
import time

import pytest
import timm
import torch
from published_trees import TREES, Pictures
from safetensors.torch import save_file

import falseneg
from falseneg.cli import main
from falseneg.train.sources import hash_of, open_encoder

SMALL = ["--method.encoder.arguments", '{"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}', "--accelerator", "cpu"]
DIGITS = ["--data", "Digits", "--workers", "0", "--accelerator", "cpu"]
MODEL = ["timm:resnet10t", "--image-size", "8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["pretrain", "--config", "digits", *SMALL, "--epochs", "1", "--out", str(folder)]) == 0
    return folder


def figures(path):
    return {(each["on"], each["metric"]): each["value"] for each in json.loads(path.read_text())["figures"]}


def test_a_protocol_of_a_run_takes_the_runs_data(run, capsys):
    assert main(["evaluate", str(run), "--protocol", "knn", "--workers", "0"]) == 0
    out = run / "evaluations" / "knn.json"
    content, shown = json.loads(out.read_text()), capsys.readouterr().out
    plain = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["knn"]
    assert figures(out)["", "top-1"] == pytest.approx(plain) and f"{plain:.1%}" in shown
    assert content["protocol"] == "knn" and content["settings"] == {"k": 20, "temperature": 0.1}
    assert content["encoder"]["sha256"] == hash_of(open_encoder(str(run)).encoder)
    assert content["versions"]["falseneg"] == falseneg.__version__ and content["versions"]["torch"] == torch.__version__
    assert content["seed"] == 0 and content["image_size"] == 8
    assert content["data"]["train"]["images"] == 1437 and len(content["data"]["test"]["fingerprint"]) == 16
    assert not list(out.parent.glob("*.parts"))


def test_settings_of_a_protocol_are_its_arguments(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--protocol", "linear", "--protocol.cached", "true", "--protocol.epochs=3", "--seed", "5"]
    assert main(["evaluate", *MODEL, *DIGITS, *options]) == 0
    content = json.loads((tmp_path / "timm-resnet10t.linear.json").read_text())
    assert content["settings"]["epochs"] == 3 and content["settings"]["cached"] is True and content["seed"] == 5
    assert "linear of timm:resnet10t" in capsys.readouterr().out
    again = tmp_path / "again.json"
    assert main(["evaluate", *MODEL, *DIGITS, *options, "--out", str(again)]) == 0  # random weights are the seed's
    same = json.loads(again.read_text())
    assert (same["figures"], same["encoder"]) == (content["figures"], content["encoder"])


def test_options_of_a_protocol_may_stand_before_it(tmp_path):
    found = []
    for options in (["--protocol", "knn", "--protocol.k=3"], ["--protocol.k", "3", "--protocol=knn"]):
        out = tmp_path / f"{len(found)}.json"
        assert main(["evaluate", *MODEL, *DIGITS, *options, "--out", str(out)]) == 0
        found.append(json.loads(out.read_text()))
    assert found[0]["settings"] == found[1]["settings"] == {"k": 3, "temperature": 0.1}


@pytest.mark.parametrize("protocol", [[], ["--protocol", "knn"]], ids=["plain", "knn"])
def test_random_weights_are_said(protocol, run, tmp_path, capsys):
    weights = tmp_path / "weights.safetensors"
    model = ["timm:test_resnet", "--image-size", "8"]
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), weights)
    sources = {"random": model, str(weights): [*model, "--weights", str(weights)], None: [str(run)]}
    for known, source in sources.items():
        out = tmp_path / "out.json"
        assert main(["evaluate", *source, *DIGITS, *protocol, "--out", str(out)]) == 0
        encoder, shown = json.loads(out.read_text())["encoder"], capsys.readouterr().out
        assert (encoder["source"], encoder["weights"]) == (source[0], known) and len(encoder["sha256"]) == 64
        assert source[0] in shown and ("with random weights" in shown) == (known == "random")


def test_a_protocol_with_its_own_data_needs_none(tmp_path):
    for name in ("DTD", "Birdsnap"):
        TREES[name](tmp_path / "sets", Pictures(), 4)
    out = tmp_path / "out.json"
    options = ["--protocol", "transfer", "--protocol.root", str(tmp_path / "sets"), "--protocol.sets", "[DTD,Birdsnap]"]
    assert main(["evaluate", *MODEL, "--accelerator", "cpu", *options, "--out", str(out)]) == 0
    assert set(figures(out)) == {("DTD", "top-1"), ("Birdsnap", "top-1")}


def test_features_are_those_of_all_images(run, tmp_path):
    import numpy as np

    options = ["--protocol", "features", "--protocol.file", str(tmp_path / "f.npy"), "--out", str(tmp_path / "o.json")]
    assert main(["evaluate", str(run), *options]) == 0
    assert len(np.load(tmp_path / "f.npy")) == 1437  # all of the training split: nothing is held out


def test_semi_supervised_from_the_head_of_an_export(run, tmp_path):
    export = tmp_path / "e.safetensors"
    assert main(["export", str(run), "--head", "--out", str(export)]) == 0
    options = ["--protocol", "semi-supervised", "--protocol.epochs", "[1,1]", "--protocol.layers", "[1,0]"]
    assert main(["evaluate", str(export), *DIGITS, *options]) == 0
    assert len(figures(tmp_path / "e.semi-supervised.json")) == 4


def test_a_killed_evaluation_goes_on(tmp_path):
    out, parts = tmp_path / "o.json", tmp_path / "o.json.parts"
    options = ["--protocol", "label-fractions", "--protocol.shares", "[1.0,0.5]", "--protocol.cached", "true"]
    command = ["evaluate", *MODEL, *DIGITS, *options, "--out", str(out), "--protocol.epochs"]
    process = subprocess.Popen([sys.executable, "-m", "falseneg", *command, "[2,2000]"])
    first = parts / "linear, 1 of the labels.pt"
    while not first.exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.3)  # the second part has begun
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130 and not out.exists()
    before = first.stat().st_mtime_ns
    interrupted = torch.load(parts / "linear, 0.5 of the labels.pt", weights_only=True)["step"]
    assert 0 < interrupted < 4000
    assert main([*command, "[2,2000]"]) == 0
    assert out.exists() and not parts.exists() and before
    whole = tmp_path / "whole.json"
    assert main([*command[:-3], "--out", str(whole), "--protocol.epochs", "[2,2000]"]) == 0
    assert figures(whole) == figures(out)


def test_parts_of_another_evaluation_are_refused(tmp_path, capsys):
    out = tmp_path / "o.json"
    (tmp_path / "o.json.parts").mkdir()
    (tmp_path / "o.json.parts" / "about.json").write_text("{}")
    (tmp_path / "o.json.parts" / "figures.json").write_text("{}")  # without a piece there is nothing to lose
    assert main(["evaluate", *MODEL, *DIGITS, "--protocol", "knn", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "o.json.parts" in said and "--out" in said and len(said.strip().splitlines()) == 1


WRONG = {
    "timm:resnet10t --data Digits --protocol kn": ["no protocol kn", "did you mean knn", "transfer"],
    "timm:resnet10t --data Digits --protocol.k 3": ["no protocol; choose one with --protocol"],
    "timm:resnet10t --data Digits --protocol knn --protocol.kk 3": ["--protocol.kk", "temperature"],
    "timm:resnet10t --data Digits --protocol knn --protocol.k many": ["--protocol.k", "whole number"],
    "timm:resnet10t --protocol knn": ["needs --data"],
    "timm:resnet10t": ["needs --data"],
    "timm:resnt10t --data Digits --protocol knn": ["resnet10t"],
    "timm:resnet10t --weights no.pth --data Digits --protocol knn": ["no file no.pth"],
    "timm:resnet10t --protocol transfer --protocol.root nowhere": ["Food101", "nowhere", "food-101/images"],
    "timm:resnet10t --protocol voc-detection --protocol.root nowhere": [
        "VOC 2007 and 2012",
        "nowhere",
        "VOCdevkit/VOC2012/JPEGImages",
    ],
    "timm:vit_tiny_patch16_224 --protocol voc-detection": ["vit_tiny_patch16_224 is not a ResNet"],
    "timm:resnet10t --data Digits --protocol semi-supervised --protocol.layers [1,0]": ["no projection head"],
    "timm:resnet10t --data Folder --data.root plain --protocol knn": ["labelled"],
    "timm:resnet10t --data Folder --data.root two --test Folder --test.root others --protocol knn": [
        "1 of the 2 images to measure on are of classes that the images to learn from do not have, such as cat",
    ],
    "--protocol knn": ["needs SOURCE"],
}


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_input_is_answered_in_one_sentence(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").mkdir()
    draw = Pictures()
    for number in range(4):
        draw.write(tmp_path / "plain" / f"{number}.png", 0)
    for place in ("two/bird", "two/dog", "others/bird", "others/cat"):
        draw.write(tmp_path / place / "1.png", 0)
    assert main(["evaluate", *arguments.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith("falseneg: ") and len(said.strip().splitlines()) == 1, said
    for part in WRONG[arguments]:
        assert part in said


def test_help_names_the_protocols(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert "label-fractions" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["evaluate", "--protocol.help", "transfer"])
    assert "--protocol.sets" in capsys.readouterr().out
