import json
import pickle

import pytest
import safetensors.torch
import timm
import torch

import falseneg as fn

SMALL = {"channels": [8, 8, 16, 16]}


def images(size, count=2):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", SMALL),
        ("resnet18d", SMALL),
        ("mobilenetv3_small_050", {}),
        ("vit_tiny_patch16_224", {"patch_size": 8, "depth": 2}),
    ],
)
def test_features(name, arguments):
    encoder = fn.Encoder(name, 32, arguments=arguments).eval()
    assert encoder(images(32)).shape == (2, encoder.feature_dim)


def test_whole_numbers_and_fractions_are_the_same_images():
    encoder, x = fn.Encoder("resnet18", 32, arguments=SMALL).eval(), images(32)
    torch.testing.assert_close(encoder(x), encoder(x / 255))


def test_images_are_normalised_inside():
    encoder, x = fn.Encoder("resnet18", 32, mean=(0.1, 0.2, 0.3), std=(0.5, 1, 2), arguments=SMALL).eval(), images(32)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 1, 2]).view(3, 1, 1)
    torch.testing.assert_close(encoder(x), encoder.backbone((x / 255 - mean) / std))


def test_float64_stays_float64():
    encoder = fn.Encoder("resnet18", 32, arguments=SMALL).double().eval()
    assert encoder(images(32)).dtype == torch.float64


@pytest.mark.parametrize(
    ("size", "wish", "small"),
    [
        *((8, None, True), (32, None, True), (33, None, False), (64, None, False), (65, None, False)),
        *((None, None, False), (64, True, True), (224, True, True), (32, False, False)),
    ],
)
def test_small_stem(size, wish, small):
    encoder = fn.Encoder("resnet18", size, small_stem=wish, arguments=SMALL)
    assert encoder.small_stem == small
    stem = encoder.backbone.maxpool(encoder.backbone.conv1(torch.zeros(1, 3, 64, 64)))
    assert stem.shape[-1] == (64 if small else 16)


def test_small_stem_of_a_deep_stem():
    encoder = fn.Encoder("resnet18d", 32, arguments=SMALL)
    assert encoder.backbone.maxpool(encoder.backbone.conv1(torch.zeros(1, 3, 32, 32))).shape[-1] == 32


def test_round_trip(tmp_path):
    encoder = fn.Encoder("resnet18", 32, mean=(0.1, 0.2, 0.3), arguments={**SMALL, "drop_path_rate": 0.1})
    encoder(images(32))  # moves the running statistics
    encoder.save(tmp_path / "encoder.safetensors")
    again = fn.Encoder.load(tmp_path / "encoder.safetensors")
    x = images(32)
    assert torch.equal(again.eval()(x), encoder.eval()(x))
    assert (again.name, again.image_size, again.small_stem, again.arguments) == (
        "resnet18",
        32,
        True,
        encoder.arguments,
    )


def test_weights_of_an_export(tmp_path):
    encoder = fn.Encoder("resnet18", 32, arguments=SMALL)
    encoder.save(tmp_path / "encoder.safetensors")
    again = fn.Encoder("resnet18", 32, weights=tmp_path / "encoder.safetensors", arguments=SMALL)
    assert torch.equal(again.backbone.conv1.weight, encoder.backbone.conv1.weight)


def test_frozen_batch_norm_learns_its_weights_and_keeps_its_statistics():
    """Not even the other images of a batch matter then."""
    encoder = fn.Encoder("resnet18", 32, arguments=SMALL, frozen_batch_norm=True)
    method, x = torch.nn.ModuleList([encoder]).eval().train(), images(32, 8)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    features = encoder(x)
    features.sum().backward()
    assert method.training and encoder.backbone.training and encoder.backbone.bn1.weight.grad.abs().sum() > 0
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    torch.testing.assert_close(features[:3], encoder(x[:3]))


def test_batch_norm_is_frozen_where_weights_are_given(tmp_path):
    path = tmp_path / "encoder.safetensors"
    fn.Encoder("resnet18", 32, arguments=SMALL).save(path)
    for wish, frozen in ((None, True), (True, True), (False, False)):
        encoder = fn.Encoder("resnet18", 32, path, arguments=SMALL, frozen_batch_norm=wish)
        assert encoder.frozen_batch_norm == frozen == (not encoder.backbone.bn1.training)
    assert fn.Encoder("resnet18", 32, arguments=SMALL).backbone.bn1.training


@pytest.mark.parametrize("frozen", [True, False])
def test_an_export_remembers_whether_batch_norm_was_frozen(tmp_path, frozen):
    path = tmp_path / "encoder.safetensors"
    fn.Encoder("resnet18", 32, arguments=SMALL, frozen_batch_norm=frozen).save(path)
    again = fn.Encoder.load(path)
    assert again.frozen_batch_norm == frozen == (not again.backbone.bn1.training)


def test_an_export_of_an_earlier_version_has_no_frozen_batch_norm(tmp_path):
    path, encoder = tmp_path / "encoder.safetensors", fn.Encoder("resnet18", 32, arguments=SMALL)
    encoder.save(path)
    with safetensors.safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["falseneg.encoder"])
    del about["frozen_batch_norm"]
    safetensors.torch.save_file(dict(encoder.state_dict()), path, {"falseneg.encoder": json.dumps(about)})
    assert not fn.Encoder.load(path).frozen_batch_norm


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_of_timm(tmp_path, suffix):
    model = timm.create_model("resnet18", num_classes=3, **SMALL)
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    path = tmp_path / f"weights.{suffix}"
    torch.save({"state_dict": state}, path) if suffix == "pth" else safetensors.torch.save_file(state, path)
    full = fn.Encoder("resnet18", weights=path, arguments=SMALL)
    assert torch.equal(full.backbone.conv1.weight, model.conv1.weight)
    small = fn.Encoder("resnet18", 32, weights=path, arguments=SMALL)
    assert torch.equal(small.backbone.conv1.weight, model.conv1.weight[:, :, 2:5, 2:5])
    assert torch.equal(small.backbone.layer4[1].conv2.weight, model.layer4[1].conv2.weight)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "resnt18"}, "did you mean resnet18"),
        ({"name": "hf-hub:someone/model"}, "no model"),
        ({"image_size": 0}, "at least 1"),
        ({"name": "mobilenetv3_small_050", "small_stem": True}, "for ResNets"),
        ({"arguments": {"chanels": [8]}}, "chanels"),
        ({"arguments": {"checkpoint_path": "x"}}, "to start from weights, give weights"),
        ({"mean": (1.0, 2.0)}, "three numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "above 0"),
        ({"weights": "nowhere.pth"}, "no file nowhere.pth"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(fn.UserError, match=words) as error:
        fn.Encoder(**{"name": "resnet18", **options})
    assert "\n" not in str(error.value)


def test_pretrained_weights_without_network(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(fn.UserError, match="could not be downloaded") as error:
        fn.Encoder("resnet18.a1_in1k", weights="pretrained", arguments={"cache_dir": str(tmp_path)})
    assert "\n" not in str(error.value)


def test_weights_of_another_model(tmp_path):
    torch.save(timm.create_model("resnet34", **SMALL).state_dict(), tmp_path / "other.pth")
    with pytest.raises(fn.UserError, match="of another model: layer1.2.bn1.bias is \\(8,\\) there and missing here"):
        fn.Encoder("resnet18", weights=tmp_path / "other.pth", arguments=SMALL)


class Touch:
    """Pickles to a call that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_files_run_no_code(tmp_path):
    trap = tmp_path / "trap"
    for name in ("weights.pth", "encoder.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Touch(trap), protocol=2))
        with pytest.raises(fn.UserError, match="damaged"):
            fn.Encoder("resnet18", weights=tmp_path / name)
        with pytest.raises(fn.UserError, match="damaged"):
            fn.Encoder.load(tmp_path / name)
    torch.save({"state_dict": Touch(trap)}, tmp_path / "weights.pth")
    with pytest.raises(fn.UserError, match="damaged"):
        fn.Encoder("resnet18", weights=tmp_path / "weights.pth")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "local-dir:elsewhere"}, "no model"),
        ({"arguments": {"pretrained_cfg": {"file": "x"}}}, "sets itself"),
        ({"name": 3}, "not an encoder that falseneg exported"),
        ({"mean": "x"}, "not an encoder that falseneg exported"),
        ({"frozen_batch_norm": None}, "not an encoder that falseneg exported"),
    ],
)
def test_metadata_is_not_trusted(tmp_path, change, words):
    encoder = fn.Encoder("resnet18", 32, arguments=SMALL)
    encoder.save(tmp_path / "encoder.safetensors")
    with safetensors.safe_open(tmp_path / "encoder.safetensors", "pt") as file:
        about = {**json.loads(file.metadata()["falseneg.encoder"]), **change}
    safetensors.torch.save_file(
        dict(encoder.state_dict()), tmp_path / "encoder.safetensors", {"falseneg.encoder": json.dumps(about)}
    )
    with pytest.raises(fn.UserError, match=words):
        fn.Encoder.load(tmp_path / "encoder.safetensors")


def test_truncated_and_foreign_files(tmp_path):
    fn.Encoder("resnet18", 32, arguments=SMALL).save(tmp_path / "encoder.safetensors")
    whole = (tmp_path / "encoder.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(fn.UserError, match="damaged"):
        fn.Encoder.load(tmp_path / "half.safetensors")
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(fn.UserError, match="not an encoder that falseneg exported"):
        fn.Encoder.load(tmp_path / "foreign.safetensors")
    with pytest.raises(fn.UserError, match="there is no file"):
        fn.Encoder.load(tmp_path / "nothing.safetensors")
