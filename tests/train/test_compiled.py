import copy
import signal

import catalogue
import pytest
import torch
from train.parts import tiny_encoder, tiny_run, untimed, weights
from train.test_resume import StopAt

import falseneg as fn
from falseneg.data import Crops
from falseneg.train import fit
from falseneg.train.compiled import compile_networks
from falseneg.train.metrics import read_metrics

NEVER = StopAt(-1, signal.SIGTERM)


@pytest.fixture
def seen(monkeypatch):
    """The shapes of the images that were compiled for. What was compiled then runs as it was written: the compiler takes
    minutes to make machine code of it (`test_machine_code_learns_the_same`)."""
    shapes, plain = [], torch.nn.Module.compile

    def backend(graph, inputs):
        shapes.extend(tuple(tensor.shape) for tensor in inputs if getattr(tensor, "dtype", None) == torch.uint8)
        return graph.forward

    def in_place(self, *, dynamic, options):
        assert options == {"fallback_random": True}
        plain(self, backend=backend, dynamic=dynamic)

    monkeypatch.setattr(torch.nn.Module, "compile", in_place)
    monkeypatch.setattr("falseneg.train.pretrain.check_compiler", lambda device, say: None)
    torch._dynamo.reset()
    yield shapes
    torch._dynamo.reset()


def small(**arguments):
    return tiny_encoder(layers=[1, 1, 1, 1], **arguments)


def run_of(compile_encoder, objective=NEVER, **options):
    method = options.pop("method", None) or fn.SimCLR(small(), support_views=1)
    return tiny_run(method=method, objective=objective, epochs=2, compile_encoder=compile_encoder, **options)


def assert_alike(one, other, rel=1e-5):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-5, msg=name)
    mine, theirs = ([line["loss"] for line in untimed(folder) if "loss" in line] for folder in (one, other))
    assert len(mine) > 2 and mine == pytest.approx(theirs, rel=rel)


def test_only_the_step_is_compiled_and_nothing_else_changes(seen, tmp_path):
    options = {"evaluate_every": "1 epoch", "accumulate": 2}
    for compiles in (False, True):
        fit(run_of(compiles, **options), tmp_path / str(compiles))
        assert bool(seen) == compiles
    # Pieces of 16 images, with and without a gradient; nothing of the estimate or of measuring.
    assert set(seen) == {(32, 3, 8, 8), (16, 3, 8, 8)}
    assert_alike(tmp_path / "False", tmp_path / "True")
    plain, compiled = (fn.Encoder.load(tmp_path / name / "encoder.safetensors") for name in ("False", "True"))
    torch.testing.assert_close(dict(compiled.state_dict()), dict(plain.state_dict()), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("first", [False, True])
def test_resume_works_either_way(seen, tmp_path, first):
    fit(run_of(False), tmp_path / "whole")
    with pytest.raises(SystemExit):
        fit(run_of(first, objective=StopAt(3, signal.SIGTERM)), tmp_path / "parts")
    assert bool(seen) == first
    fit(run_of(not first), tmp_path / "parts", resume=True)
    assert seen and read_metrics(tmp_path / "parts")[-1]["kind"] == "final"
    assert_alike(tmp_path / "whole", tmp_path / "parts")


def test_each_size_of_multi_crop_is_compiled_once(seen, tmp_path):
    method = fn.SimCLR(small(), support_as_positives=True)
    crops = [Crops(2, 6, (0.1, 0.4)), Crops(1, 4, (0.1, 0.4))]
    fit(run_of(True, method=method, multi_crop=crops, detector=fn.NoDetection()), tmp_path / "run")
    assert sorted(seen) == [(32, 3, 4, 4), (64, 3, 6, 6), (64, 3, 8, 8)]


def test_a_momentum_network_is_compiled_too_and_copies_are_not(seen):
    method = fn.MoCo(small(), bank=8)
    names = list(method.state_dict())
    compile_networks(method)
    copied = copy.deepcopy(method)
    views = catalogue.batch(torch.zeros(4, 2, 3, 8, 8, dtype=torch.uint8), (), torch.arange(4))
    expected = copied.eval().encode(views)
    assert not seen
    found = method.eval().encode(views)
    assert len(seen) == 2, "queries and keys"
    torch.testing.assert_close(found.rows["image"], expected.rows["image"])
    torch.testing.assert_close(found.rows["keys"], expected.rows["keys"])
    assert list(method.state_dict()) == list(copied.state_dict()) == names


def test_without_a_compiler_it_is_refused_before_anything_is_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/nowhere/g++"))
    with pytest.raises(
        fn.UserError, match=r"nothing can be compiled for cpu here \(.*\); install a C\+\+ compiler"
    ) as error:
        fit(run_of(True, accelerator="cpu"), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
    assert capsys.readouterr().out.startswith("trying the compiler: about ten seconds the first time")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_machine_code_learns_the_same(tmp_path):
    """With dropout and stochastic depth, whose draws are those of the plain run, in both passes of the gradient cache."""
    for compiles in (False, True):
        method = fn.MoCo(small(), bank=64, support_views=1)
        fit(run_of(compiles, method=method, accumulate=2), tmp_path / str(compiles))
    assert_alike(tmp_path / "False", tmp_path / "True", rel=1e-4)
