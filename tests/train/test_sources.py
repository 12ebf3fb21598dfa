"""Encoders from a run, an export, a checkpoint, timm and open_clip."""

import json
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

import falseneg as fn
from falseneg.cli import main
from falseneg.train.sources import hash_of, open_encoder

SMALL = {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}
IMAGES = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on digits, whose head has three layers."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = ["--method.encoder.arguments", json.dumps(SMALL), "--method.head-layers", "3", "--accelerator", "cpu"]
    options += ["--method.encoder.mean", "[.1,.2,.3]", "--method.head-hidden", "6", "--method.head-dim", "4"]
    assert main(["pretrain", "--config", "digits", *options, "--epochs", "1", "--out", str(folder)]) == 0
    return folder


def test_a_run_its_export_and_its_checkpoint_are_the_same_encoder(run):
    names = [run, run / "encoder.safetensors", run / "checkpoints" / "last.pt"]
    encoders = [open_encoder(str(name)).encoder.eval() for name in names]
    expected = fn.Encoder.load(run / "encoder.safetensors").eval()(IMAGES)
    for encoder in encoders:
        assert torch.equal(encoder(IMAGES), expected)
    assert len({hash_of(encoder) for encoder in encoders}) == 1
    encoders[0].backbone.fc = torch.nn.Linear(1, 1)
    assert hash_of(encoders[0]) != hash_of(encoders[1])


def test_the_head_comes_from_the_checkpoint_or_from_an_export_with_it(run, tmp_path):
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["method"]
    first = state["head.0.weight"]
    out = tmp_path / "with-head.safetensors"
    assert main(["export", str(run), "--head", "--out", str(out)]) == 0
    for name in (run, run / "checkpoints" / "last.pt", out):
        found = open_encoder(str(name), head=True)
        assert (
            torch.equal(found.head[0].weight, first)
            and len([m for m in found.head if m.__class__ is torch.nn.Linear]) == 3
        )
        features = torch.randn(5, 8)
        part = found.head.eval().first(1)
        assert [type(m).__name__ for m in part] == ["Linear", "BatchNorm1d", "ReLU"]
        assert part(features).shape == (5, 6) and torch.equal(found.head.first(3)(features), found.head(features))
    encoder = fn.Encoder.load(out).eval()  # the head is in nobody's way
    assert torch.equal(encoder(IMAGES), fn.Encoder.load(run / "encoder.safetensors").eval()(IMAGES))
    again = fn.Encoder(encoder.name, 8, out, mean=(0.1, 0.2, 0.3), arguments=encoder.arguments).eval()
    assert torch.equal(again(IMAGES), encoder(IMAGES))


@pytest.mark.parametrize("options", [{}, {"batch_norm": False}, {"last_batch_norm": True}])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_head_is_known_by_its_shapes(layers, options):
    head = fn.ProjectionHead(6, 5, 4, layers, **options).eval()
    again = fn.ProjectionHead.of_state(head.state_dict()).eval()
    features = torch.randn(7, 6)
    assert torch.equal(again(features), head(features)) and str(again) == str(head)


def test_a_head_without_affine_end():
    head = fn.ProjectionHead(6, 5, 4, 3, True, last_affine=False)
    assert str(fn.ProjectionHead.of_state(head.state_dict())) == str(head)
    with pytest.raises(fn.UserError, match="no projection head"):
        fn.ProjectionHead.of_state({"0.weight": torch.zeros(3, 4, 5)})
    with pytest.raises(fn.UserError, match="3 layers, and 4"):
        head.first(4)


def test_timm_with_local_weights_and_without(tmp_path):
    torch.manual_seed(1)
    model = timm.create_model("resnet10t", num_classes=0)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    found = open_encoder("timm:resnet10t", str(tmp_path / "w.pth"), 64).encoder.eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.allclose(found(images), model.eval()((images / 255 - found.mean) / found.std), atol=1e-5)
    assert found.image_size == 64 and open_encoder("timm:resnet10t").encoder.image_size is None


TINY = {"embed_dim": 6, "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8}}
TINY["text_cfg"] = {"context_length": 4, "vocab_size": 10, "width": 64, "heads": 1, "layers": 1}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_open_clip_with_local_weights(prefix, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    (tmp_path / "tiny-of-ours.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(1)
    model = open_clip.create_model("tiny-of-ours", load_weights=False).eval()
    save_file({prefix + key: value for key, value in model.state_dict().items()}, tmp_path / "clip.safetensors")
    found = open_encoder("open_clip:tiny-of-ours", str(tmp_path / "clip.safetensors")).encoder.eval()
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        expected = model.encode_image((images / 255 - found.mean) / found.std)
        assert torch.allclose(found(images), expected, atol=1e-6) and found.feature_dim == 6 == expected.shape[1]
    assert found.image_size == 16
    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(fn.UserError, match="of another model: .* is .* there and missing here, .*, .*, [0-9]+ more"):
        open_encoder("open_clip:tiny-of-ours", str(tmp_path / "other.safetensors"))


def test_open_clip_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(fn.UserError, match=r"falseneg\[image-text\]"):
        open_encoder("open_clip:RN50")


@pytest.mark.parametrize(
    "source, options, words",
    [
        ("nowhere", {}, "no nowhere; give the folder of a run"),
        ("resnet18", {}, "did you mean timm:resnet18"),
        ("timm:resnt18", {}, "did you mean resnet18"),
        ("open_clip:RN5", {}, "did you mean RN50"),
        ("timm:resnet18", {"weights": "no.pth"}, "no file no.pth"),
        ("timm:resnet18", {"head": True}, "no projection head"),
    ],
)
def test_refusals(source, options, words):
    if "open_clip" in source:
        pytest.importorskip("open_clip")
    with pytest.raises(fn.UserError, match=words) as error:
        open_encoder(source, **options)
    assert "\n" not in str(error.value)


def test_what_does_not_go_together(run, tmp_path):
    with pytest.raises(fn.UserError, match="has its own"):
        open_encoder(str(run), "w.pth")
    encoder = fn.Encoder.load(run / "encoder.safetensors")
    encoder.save(tmp_path / "plain.safetensors")
    with pytest.raises(fn.UserError, match="holds no projection head.*--head"):
        open_encoder(str(tmp_path / "plain.safetensors"), head=True)
    (tmp_path / "last.pt").write_bytes((run / "checkpoints" / "last.pt").read_bytes())
    with pytest.raises(fn.UserError, match="lies in no run"):
        open_encoder(str(tmp_path / "last.pt"))
    assert main(["export", str(run), "--head", "--format", "timm", "--out", str(tmp_path / "o.safetensors")]) == 2
