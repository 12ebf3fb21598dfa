"""Two towers in a whole run: learning, measuring, resuming, exporting."""

import json
import signal

import captioned
import pytest
import torch
from train.parts import assert_same_weights, digits, tiny_run, untimed
from train.test_resume import StopAt

import falseneg as fn
from falseneg.train import fit
from falseneg.train.metrics import read_metrics


def test_towers_learn_to_name_digits(tmp_path):
    run = captioned.pair_run(
        data=captioned.CaptionedDigits(images=1000, one=True),
        test=captioned.CaptionedDigits("test", 200, one=True),
        detector=fn.Oracle(),
        prompts=["{}, a handwritten digit"],
        epochs=8,
    )
    run.data.class_names = run.test.class_names = tuple(captioned.WORDS)
    run.data.image_set.class_names = run.test.image_set.class_names = tuple(captioned.WORDS)
    figures = fit(run, tmp_path / "run")
    assert figures["zero_shot"] > 0.5 > figures["start_zero_shot"] + 0.2
    assert figures["shared_image_to_text_1"] > 0.5 > figures["image_to_text_1"]  # one caption in ten is as right as any
    lines = read_metrics(tmp_path / "run")
    assert any("retrieval" in line for line in lines if line["kind"] == "epoch")
    assert [line["retrieval"] for line in lines if line["kind"] == "start" and "retrieval" in line]
    pooled = [line for line in lines if line["kind"] == "epoch"][-1]
    assert pooled["precision"] == 1.0 and pooled["recall"] == 1.0  # an oracle in both directions

    loaded = fn.CLIP.load(tmp_path / "run" / "towers.safetensors").eval()
    trained = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)["method"]
    assert all(torch.equal(value, trained[key]) for key, value in loaded.state_dict().items())
    texts = loaded.embed_texts(loaded.tokenize([f"{word}, a handwritten digit" for word in captioned.WORDS]))
    images = torch.stack([run.test.image(row) for row in range(200)])
    found = (loaded.embed(images) @ texts.T).argmax(dim=1)
    assert float((found == run.test.labels).double().mean()) == pytest.approx(figures["zero_shot"])


@pytest.mark.parametrize("accumulate", [1, 3])
def test_resume_ends_with_the_same_bits(tmp_path, accumulate):
    def run(step):
        class Global(fn.GlobalContrastive):
            def forward(self, contrast, stats, tau, strategy, clock=None):
                stopping.forward(contrast, stats, tau, strategy, clock)
                return super().forward(contrast, stats, tau, strategy, clock)

        stopping = StopAt(step, signal.SIGTERM)
        Global.__name__ = Global.__qualname__ = "Global"
        temperature = fn.LearnedTemperature(step=fn.AdamStep(0.01), slower_below=0.069)
        return captioned.pair_run(
            objective=Global(0.7, relative=True, rho=1.0),
            detector=fn.GlobalThreshold(alpha=0.2),
            temperature=temperature,
            method=captioned.two_towers(support_views=1, support_texts=2),
            accumulate=accumulate,
            evaluate_every="1 epoch",
            checkpoint_every=None,
        )

    fit(run(-1), tmp_path / "whole")
    with pytest.raises(SystemExit):
        fit(run(4), tmp_path / "parts")
    torch.manual_seed(99)
    fit(run(-1), tmp_path / "parts", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "parts")
    stored = [torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True) for name in ("whole", "parts")]
    assert all(torch.equal(value, stored[1]["criterion"][key]) for key, value in stored[0]["criterion"].items())


def test_images_without_captions_are_refused(tmp_path):
    with pytest.raises(fn.UserError, match="CLIP learns from images and their captions, and these images have none"):
        fit(captioned.pair_run(data=digits(), test=None), tmp_path / "run")


def test_without_labels_or_a_test_set_images_are_held_out(tmp_path, capsys):
    data = captioned.CaptionedDigits()
    data.labels, data.image_set.class_names = None, None
    data.captions, data.test_set = lambda row: (f"number {row}",), lambda: None
    figures = fit(captioned.pair_run(data=data, test=None, epochs=1), tmp_path / "run")
    assert "10 images are set aside" in capsys.readouterr().out
    assert "retrieval" in figures and "knn" not in figures and "zero_shot" not in figures


@pytest.mark.parametrize("prompts, sentence", [(["a photo"], "write {} where the name"), ([], "prompts is empty")])
def test_prompts_need_a_place_for_the_name(prompts, sentence):
    with pytest.raises(fn.UserError, match=sentence):
        captioned.pair_run(prompts=prompts).check()


@pytest.fixture
def tiny_model(tmp_path, monkeypatch):
    import open_clip
    from open_clip import factory

    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    (tmp_path / "tiny-test.json").write_text(json.dumps(captioned.TINY_OPEN_CLIP))
    open_clip.add_model_config(tmp_path / "tiny-test.json")
    return "tiny-test"


def test_a_model_of_open_clip_trains_and_open_clip_loads_it(tmp_path, tiny_model):
    import open_clip

    method = fn.OpenCLIP(tiny_model)
    figures = fit(captioned.pair_run(method=method, test=captioned.CaptionedDigits("test", 60)), tmp_path / "run")
    assert "retrieval" in figures and "knn" in figures
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'run' / 'open_clip'}")
    stored = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert all(
        torch.equal(value, stored["method"][f"model.{key}"])
        for key, value in model.state_dict().items()
        if key != "logit_scale"
    )
    tau = float(stored["criterion"]["temperature.log_tau"].exp())
    assert float(model.logit_scale.exp()) == pytest.approx(1 / tau, rel=1e-5)
    model, method = model.eval(), method.eval()
    images = torch.rand(4, 3, 8, 8)
    normalise = preprocess.transforms[-1]
    with torch.no_grad():
        expected = model.encode_image(normalise(images), normalize=True)
        texts = model.encode_text(open_clip.get_tokenizer(tiny_model)(["three", "a four"]), normalize=True)
    torch.testing.assert_close(method.embed(images), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(method.embed_texts(method.tokenize(["three", "a four"])), texts, rtol=0, atol=1e-6)

    weights = tmp_path / "run" / "open_clip" / "open_clip_model.safetensors"
    again = fn.OpenCLIP(tiny_model, weights=weights).eval()
    torch.testing.assert_close(again.embed(images), expected, rtol=0, atol=1e-6)
    prefixed = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": prefixed}, tmp_path / "epoch_1.pt")
    again = fn.OpenCLIP(tiny_model, weights=tmp_path / "epoch_1.pt").eval()
    torch.testing.assert_close(again.embed(images), expected, rtol=0, atol=1e-6)


def test_bad_models_and_weights_are_answered_with_one_sentence(tmp_path, tiny_model):
    other = fn.OpenCLIP(tiny_model).model.state_dict()
    other["visual.conv1.weight"] = torch.zeros(3)
    torch.save(other, tmp_path / "other.pt")
    (tmp_path / "broken.pt").write_bytes(b"PK no")
    for options, sentence in [
        ({"model": "ViT-B-33"}, "no model 'ViT-B-33'; did you mean"),
        ({"model": "local-dir:/etc"}, "no model 'local-dir:/etc'"),
        ({"weights": "nowhere.pt"}, "no file nowhere.pt"),
        ({"weights": tmp_path / "other.pt"}, "of another model than 'tiny-test': visual.conv1.weight is .3,. there"),
        ({"weights": tmp_path / "broken.pt"}, "damaged or holds no weights"),
        ({"support_views": -1}, "OpenCLIP: support_views is -1"),
    ]:
        with pytest.raises(fn.UserError, match=sentence):
            fn.OpenCLIP(**({"model": tiny_model} | options))
    for options, sentence in [
        ({"width": 30, "heads": 4}, "width is 30; give a multiple of heads"),
        ({"layers": 0}, "layers is 0"),
        ({"context_length": 2}, "context_length is 2; give at least 3"),
    ]:
        with pytest.raises(fn.UserError, match=sentence):
            fn.TextEncoder(**options)


def test_a_text_of_megabytes_costs_nothing_and_is_cut():
    tokenize = fn.TextEncoder(16, 1, 2, 8).tokenize
    assert tokenize(["a" * 50_000_000, "word " * 10_000, ""]).shape == (3, 8)
    assert torch.equal(tokenize(["word " * 10_000]), tokenize(["word " * 20]))


def test_without_open_clip_one_sentence(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "open_clip.tokenizer", None)
    with pytest.raises(fn.UserError, match="pip install 'falseneg.image-text.'"):
        fn.TextEncoder(16, 1, 2, 8)


def test_missing_captions_are_said_once_or_counted(tmp_path, capsys):
    class Missing(captioned.CaptionedDigits):
        def captions(self, row):
            return () if row == 5 else super().captions(row)

    with pytest.raises(fn.UserError) as error:
        fit(captioned.pair_run(data=Missing()), tmp_path / "one")
    said = "has no caption: give it one; --skip-unreadable true leaves such images out and counts them"
    assert str(error.value).endswith(said) and str(error.value).count("--skip-unreadable") == 1
    fit(captioned.pair_run(data=Missing(), skip_unreadable=True, epochs=1, evaluate="later"), tmp_path / "two")
    shown = capsys.readouterr().out
    assert "images without usable captions: 1 of 96, the first: " in shown and "--skip-unreadable" not in shown


def test_images_with_the_same_captions_are_flagged(tmp_path):
    """Here they are those of one class, which the detector must not need to know."""
    data = captioned.CaptionedDigits(one=True)
    figures = fit(captioned.pair_run(data=data, detector=fn.IdenticalCaptions(), epochs=1), tmp_path / "run")
    last = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "epoch"][-1]
    assert last["precision"] == last["recall"] == 1.0 and "retrieval" in figures
    with pytest.raises(fn.UserError, match="IdenticalCaptions: the images have no captions"):
        fit(tiny_run(detector=fn.IdenticalCaptions()), tmp_path / "images")
