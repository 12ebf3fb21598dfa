"""``falseneg evaluate`` of two towers: retrieval and zero-shot accuracy beside the figures of the image tower."""

import json
import re
from unittest import mock

import captioned
import pytest
import torch

import falseneg as fn
from falseneg.cli import main
from falseneg.evaluation import PAIR_EVALUATIONS
from falseneg.methods import open_clip as methods_open_clip
from falseneg.models import clip_images
from falseneg.train.sources import has_towers, hash_of, open_encoder, open_towers

PAIR_KEYS = [key for each in PAIR_EVALUATIONS for key in each.keys]
TOWERS = [
    *("--method", "CLIP", "--method.encoder.name", "resnet10t", "--method.encoder.image_size", "8"),
    *("--method.encoder.arguments", '{"stem_width": 8, "channels": [8, 8, 16, 16]}', "--method.dim", "16"),
    *("--method.text.width", "16", "--method.text.layers", "1", "--method.text.heads", "2"),
    *("--method.text.context_length", "12"),
]
USUAL = ["--temperature", "LearnedTemperature", "--epochs", "2", "--batch_size", "32", "--workers", "0"]
USUAL += ["--accelerator", "cpu", "--few_label_draws", "2", "--augmentation.flip", "0"]
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4},
    "text_cfg": {"context_length": 10, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    options = []
    for option, split, images in (("data", "train", 96), ("test", "test", 60)):
        path = captioned.write_shards(folder / split, split, images)
        options += [f"--{option}", "Shards", f"--{option}.path", path, f"--{option}.label", "name"]
        options += [f"--{option}.caption", "captions"]
    return options


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    import open_clip

    path = tmp_path_factory.mktemp("model") / "tiny-evaluated.json"
    path.write_text(json.dumps(MODEL))
    open_clip.add_model_config(path)
    return path.stem


def pretrained(data, folder, *options):
    assert main(["pretrain", *data, *USUAL, *options, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    prompts = ["--prompts", '["{}, a handwritten digit"]']
    return pretrained(data, tmp_path_factory.mktemp("runs") / "run", *TOWERS, *prompts)


def final(run):
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def test_evaluation_of_two_towers_repeats_the_runs_figures(run, capsys):
    assert main(["evaluate", str(run)]) == 0
    shown, figures, last = capsys.readouterr().out, json.loads((run / "evaluation.json").read_text()), final(run)
    for key in ("knn", "linear", "few_label", *PAIR_KEYS):
        assert figures[key] == pytest.approx(last[key]), key
        assert f"{figures[key]:.1%}" in shown, key
    assert figures["shared_text_to_image_10"] > figures["text_to_image_10"]
    assert "text to image, at 1, 5 and 10" in shown and figures["test_images"] == 60

    assert main(["evaluate", str(run), "--prompts", '["{}"]', "--out", str(run / "other.json")]) == 0
    assert json.loads((run / "other.json").read_text())["zero_shot"] != figures["zero_shot"]


def test_a_run_says_what_it_takes_where_nobody_said(data, tmp_path, capsys):
    alike = ["--epochs", "1", "--batch_size", "32", "--workers", "0", "--accelerator", "cpu", "--evaluate", "later"]
    assert main(["pretrain", *data, *TOWERS, *alike, "--out", str(tmp_path / "run")]) == 0
    said = "views show 90% to 100% of an image, 0% flipped, 0% in other colours; LearnedTemperature 0.07; AdamW, learning rate up to"
    assert f"{said} 0.000354, weight decay 0.1\n" in capsys.readouterr().out


def measured(source, out, *options):
    assert main(["evaluate", str(source), *options, "--accelerator", "cpu", "--workers", "0", "--out", str(out)]) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", ["towers.safetensors", "checkpoints/last.pt"])
def test_both_towers_of_a_file_or_a_checkpoint(run, data, name, tmp_path, capsys):
    figures, last = measured(run / name, tmp_path / "o.json", *data), final(run)
    for key in ("knn", "linear", "retrieval", "text_to_image_10"):
        assert figures[key] == pytest.approx(last[key]), key
    assert figures["zero_shot"] is not None and "not measured" not in capsys.readouterr().out
    knn = measured(run / name, tmp_path / "knn.json", *data, "--protocol", "knn")
    assert knn["encoder"]["sha256"] == hash_of(open_encoder(str(run)).encoder)


def test_the_image_tower_alone_is_said(run, data, tmp_path, capsys):
    figures = measured(run / "encoder.safetensors", tmp_path / "o.json", *data)
    said = "retrieval was not measured: .*encoder.safetensors has no tower of texts; of a run with two towers give the folder"
    assert re.search(said, capsys.readouterr().out) and "knn" in figures and "retrieval" not in figures


def test_a_checkpoint_whose_run_is_of_other_towers(run, data, tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").write_bytes((run / "checkpoints" / "last.pt").read_bytes())
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text().replace("dim: 16", "dim: 15"))
    assert main(["evaluate", str(tmp_path / "checkpoints" / "last.pt"), *data]) == 2
    assert "are of another model: image_head.weight is (16, 16) there and (15, 16) here" in capsys.readouterr().err


def test_images_without_captions_are_said(run, tmp_path, capsys):
    assert main(["evaluate", str(run), "--data", "Digits", "--test", "null", "--out", str(tmp_path / "o.json")]) == 0
    shown, figures = capsys.readouterr().out, json.loads((tmp_path / "o.json").read_text())
    assert "retrieval was not measured: the images to measure on have no captions" in shown
    assert "knn" in figures and "retrieval" not in figures


def test_captions_without_labels(run, data, tmp_path, capsys):
    plain = [word for at, word in enumerate(data) if not {word, data[at - 1]} & {"--data.label", "--test.label"}]
    assert (
        main(
            [
                "evaluate",
                str(run),
                *plain,
                "--data.label",
                "null",
                "--test.label",
                "null",
                "--out",
                str(tmp_path / "o.json"),
            ]
        )
        == 0
    )
    shown, figures = capsys.readouterr().out, json.loads((tmp_path / "o.json").read_text())
    assert figures["retrieval"] == pytest.approx(final(run)["retrieval"]) and figures["zero_shot"] is None
    assert "knn" not in figures and "nearest" not in shown and "not measurable" in shown


def test_a_run_with_a_model_of_open_clip(data, tiny_model, tmp_path, capsys, monkeypatch):
    run = pretrained(data, tmp_path / "run", "--method", "OpenCLIP", "--method.model", tiny_model)
    assert main(["evaluate", str(run)]) == 0
    figures, last = json.loads((run / "evaluation.json").read_text()), final(run)
    assert {key: figures[key] for key in ("knn", "linear", *PAIR_KEYS)} == pytest.approx(
        {key: last[key] for key in ("knn", "linear", *PAIR_KEYS)}
    )
    assert main(["evaluate", str(run), "--protocol", "knn"]) == 0  # of the image tower
    of_checkpoint = measured(run / "checkpoints" / "last.pt", tmp_path / "c.json", *data)
    assert of_checkpoint["retrieval"] == pytest.approx(last["retrieval"])
    encoders = [open_encoder(str(place)).encoder for place in (run, run / "checkpoints" / "last.pt")]
    assert hash_of(encoders[0]) == hash_of(encoders[1])

    weights = run / "open_clip" / "open_clip_model.safetensors"
    built = mock.Mock(side_effect=clip_images.build_model)
    for module in (clip_images, methods_open_clip):
        monkeypatch.setattr(module, "build_model", built)
    again = measured(f"open_clip:{tiny_model}", tmp_path / "o.json", "--weights", str(weights), *data)
    assert again["retrieval"] == pytest.approx(last["retrieval"]) and built.call_count == 1

    (run / "config.yaml").unlink()
    assert main(["evaluate", str(run), *data]) == 2
    assert "does not say which model of open_clip" in capsys.readouterr().err


def test_towers_of_a_source(run, tiny_model, tmp_path):
    from safetensors.torch import save_file

    towers = open_towers(str(run)).eval()
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(towers.encoder(images), open_encoder(str(run)).encoder.eval()(images)) and has_towers(str(run))
    assert open_towers(str(run / "encoder.safetensors")) is None and open_towers("timm:resnet10t") is None
    assert open_towers(str(run), image_size=12).encoder.image_size == 12
    model = fn.OpenCLIP(tiny_model).model
    save_file(model.state_dict(), tmp_path / "both.safetensors")
    save_file(model.visual.state_dict(), tmp_path / "images.safetensors")
    found = open_towers(f"open_clip:{tiny_model}", str(tmp_path / "both.safetensors"))
    assert torch.equal(found.model.text_projection, model.text_projection)
    assert open_towers(f"open_clip:{tiny_model}", str(tmp_path / "images.safetensors")) is None
