"""Weights, gradients and optimiser state that are sharded over processes: the same training in less memory of each."""

import json
import signal

import pytest
import timm
from train.many_processes import run_of
from train.parts import tiny_encoder, tiny_run
from train.test_many_processes import assert_alike

import falseneg as fn
from falseneg.train import LARS, AdamW, fit
from falseneg.train.metrics import read_metrics
from falseneg.train.sharding import _blocks

FIGURES = {
    "start_knn",
    "start_linear",
    "knn",
    "linear",
    "few_label",
    "loss",
    "precision",
    "true correlation",
    "recall at 1",
}


@pytest.mark.parametrize(
    "options",
    [
        {"method": "SimCLR", "form": "FNC"},
        pytest.param({"method": "SimCLR", "form": "GloFND", "accumulate": 2}, marks=pytest.mark.slow),
        pytest.param({"method": "MoCo", "form": "FNC", "optimiser": LARS(0.05)}, marks=pytest.mark.slow),
        pytest.param({"method": "SimCLR", "form": "IFND", "optimiser": AdamW(1e-3)}, marks=pytest.mark.slow),
        pytest.param({"method": "CLIP", "form": "GloFND"}, marks=pytest.mark.slow),
        pytest.param({"method": "OpenCLIP", "form": "FNC", "optimiser": AdamW(1e-3)}, marks=pytest.mark.slow),
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_shards_train_as_one_process_does(launch, tmp_path, options):
    """On two processes, then, from the middle of an epoch, on three, and at the end without shards on one."""
    options = {"batch_size": 20, **options}
    fit(run_of(**options), tmp_path / "alone")
    share = [tmp_path / "share0", tmp_path / "share1"]
    for world, last in ((2, 6), (3, 11)):
        fault, resume = [last - 2, world - 1, "SIGTERM"], world == 3
        more = {"different": lambda rank: {"shares": share[rank]}} if world == 2 else {}
        outs = launch(
            tmp_path / "run",
            world,
            codes=(128 + signal.SIGTERM,),
            fault=fault,
            resume=resume,
            fsdp=True,
            **more,
            **options,
        )
        assert f"after step {last} of 12" in outs[0]
    fit(run_of(**options), tmp_path / "run", resume=True)
    assert_alike(tmp_path / "alone", tmp_path / "run", options["method"])
    mine, theirs = (read_metrics(tmp_path / name) for name in ("alone", "run"))
    for one, other in zip(mine, theirs, strict=True):
        if one["kind"] != "step":
            figures = {key: one[key] for key in one.keys() & FIGURES}
            assert figures == pytest.approx({key: other.get(key) for key in figures}, rel=1e-5), one["kind"]
    held, everything = zip(*(json.loads(each.read_text()) for each in share), strict=True)
    assert everything[0] == everything[1] and sum(held) < 1.01 * everything[0]
    assert max(held) < 0.6 * everything[0]


def test_what_is_repeated_in_a_network_is_sharded_by_itself():
    vit, resnet = timm.create_model("vit_tiny_patch16_224", depth=3), timm.create_model("resnet18")
    assert _blocks(vit) == list(vit.blocks)
    layers = [block for number in range(1, 5) for block in getattr(resnet, f"layer{number}")]
    assert _blocks(resnet) == layers
    convnext = timm.create_model("convnext_atto")
    assert _blocks(convnext) == [block for stage in convnext.stages for block in stage.blocks]
    assert len(_blocks(timm.create_model("hrnet_w18_small"))) > 20, "a list of modules is not called, so not sharded"
    clip = fn.CLIP(fn.Encoder("vit_tiny_patch16_224", 224, arguments={"depth": 3}), fn.TextEncoder(layers=2), dim=8)
    assert len(_blocks(clip)) == 5


def test_fsdp_wants_several_processes_and_nothing_that_it_does_not_go_with(tmp_path):
    with pytest.raises(fn.UserError, match="there is one; give --devices or --nodes"):
        fit(tiny_run(fsdp=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(fn.UserError, match="fsdp does not go together with compile_encoder"):
        tiny_run(fsdp=True, devices=2, compile_encoder=True).check()
    with pytest.raises(fn.UserError, match="encode equally often, and the method's shuffle_groups is 2"):
        tiny_run(method=fn.MoCo(tiny_encoder(), bank=64, shuffle_groups=2), fsdp=True, devices=2).check()
    with pytest.raises(fn.UserError, match="with precision '16-mixed'"):
        tiny_run(fsdp=True, devices=2, precision="16-mixed").check()
