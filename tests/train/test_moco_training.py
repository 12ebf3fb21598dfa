"""MoCo in training: the gradient cache, a killed and resumed run, weights to start from, and what is refused before it."""

import os
import signal

import pyarrow.parquet as pq
import pytest
import torch
from lightning_fabric import Fabric
from train.parts import FirstWeights, Unlabelled, assert_same_weights, tiny_encoder, tiny_run, untimed, weights
from train.test_gradient_cache import CLOCK, assert_gradients_of_the_whole_batch, gradients, plain_pieces, views_of

import falseneg as fn
from falseneg.losses import Criterion
from falseneg.train import fit
from falseneg.train.estimate import estimate
from falseneg.train.gradient_cache import GradientCache
from falseneg.train.metrics import read_metrics
from falseneg.train.optimisers import SGD
from falseneg.train.step import EncodeBatch, Learner


def learner_of(dropout=False, **moco):
    """MoCo without BatchNorm."""
    chances = {} if dropout else {"drop_rate": 0.0, "drop_path_rate": 0.0}
    encoder = tiny_encoder(norm_layer="layernorm2d", **chances)
    method = fn.MoCo(encoder, head_layers=1, head_dim=16, bank=40, **moco).double()
    detector = fn.SupportSet(top_k=3) if moco.get("support_views") else None
    criterion = Criterion(detector, fn.ATTRACT, temperature=fn.LearnedTemperature(0.2)).double()
    fabric = Fabric(accelerator="cpu", devices=1)
    optimiser = fabric.setup_optimizers(SGD(0.1, momentum=0.0).build([method, criterion], 7))
    return Learner(fabric, method, fabric.setup_module(EncodeBatch(method)), criterion, optimiser)


def fill(learner):
    learner.method.bank.enqueue(
        fn.Embedded(torch.nn.functional.normalize(torch.randn(20, 16), dim=1), torch.arange(20))
    )


SUPPORT = [
    {},
    {"support_views": 2},
    {"support_views": 2, "support_as_positives": True},
    {"support_views": 2, "support_from_main": True},
    {"support_views": 2, "support_from_main": True, "support_as_positives": True},
]


@pytest.mark.parametrize("pieces", [2, 3])
@pytest.mark.parametrize("options", [{}, {"symmetric": True, "prediction_layers": 1, "denominator": "both"}])
@pytest.mark.parametrize("support", SUPPORT)
def test_gradients_of_pieces_are_those_of_the_batch(pieces, options, support):
    learner, views = learner_of(**options, **support), views_of(support=support.get("support_views", 0))
    fill(learner)
    assert_gradients_of_the_whole_batch(learner, views, pieces)


@pytest.mark.parametrize("support", SUPPORT)
def test_draws_of_pieces_and_no_key_is_embedded_twice(support, monkeypatch):
    learner, views = learner_of(dropout=True, **support), views_of(support=support.get("support_views", 0))
    fill(learner)
    torch.manual_seed(11)
    plain_pieces(learner, views, 3)
    expected, draw_after = gradients(learner), torch.rand(1)
    torch.manual_seed(11)
    learner.optimiser.zero_grad()
    cache = GradientCache(learner, views, 3)
    loss, _ = learner.criterion(learner.method.contrasts(cache.embeddings), CLOCK)
    learner.fabric.backward(loss)
    monkeypatch.setattr(learner.method.momentum_network, "forward", None)  # would fail if it were called
    cache.replay()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients(learner)[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
    assert torch.equal(torch.rand(1), draw_after)


class StopAt(fn.InfoNCE):
    """Sends this process one signal in the middle of a step, however many contrasts the step has."""

    def __init__(self, step, number):
        super().__init__()
        self._steps, self._number = [step], number

    def forward(self, contrast, stats, tau, strategy, clock=None):
        if clock.step in self._steps:
            self._steps.clear()
            os.kill(os.getpid(), self._number)
        return super().forward(contrast, stats, tau, strategy, clock)


def moco(seed=0, **options):
    options = {"bank": 50, "head_dim": 16, "momentum": 0.9, "support_views": 1, **options}
    return fn.MoCo(tiny_encoder(seed), **options)


@pytest.mark.parametrize(
    ("accumulate", "options"),
    [
        (1, {}),
        (3, {"symmetric": True, "bank": 100, "prediction_layers": 2, "denominator": "both", "cosine_momentum": True}),
        (2, {"shuffle_groups": 4}),
    ],
)
def test_a_stopped_and_resumed_run_ends_with_the_same_bits(tmp_path, accumulate, options):
    """50 places for 32 keys a step: the bank is half overwritten where the run stops."""

    def run(step, seed=0):
        detector = fn.SupportSet(top_k=4, part="bank")
        parts = {"accumulate": accumulate, "evaluate_every": "1 epoch", "checkpoint_every": None, "detector": detector}
        return tiny_run(method=moco(seed, **options), objective=StopAt(step, signal.SIGTERM), **parts)

    fit(run(-1), tmp_path / "whole")
    with pytest.raises(SystemExit):
        fit(run(4), tmp_path / "parts")
    torch.manual_seed(99)  # nothing may depend on what came before
    fit(run(-1, seed=5), tmp_path / "parts", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "parts")
    state = weights(tmp_path / "whole")
    keys = 9 * 32 * (2 if options.get("symmetric") else 1)
    assert int(state["bank.written"]) == keys > len(state["bank.z"])
    assert not torch.equal(
        state["momentum_network.network.0.backbone.conv1.weight"], state["encoder.backbone.conv1.weight"]
    )


def test_the_same_parts_go_on_after_a_stop(tmp_path):
    """As in a notebook: the bank of the method at hand is filled already when the run is checked."""
    run = tiny_run(method=moco(), objective=StopAt(4, signal.SIGINT), checkpoint_every=None)
    with pytest.raises(SystemExit):
        fit(run, tmp_path / "run")
    run.objective = StopAt(-1, signal.SIGINT)
    assert "knn" in fit(run, tmp_path / "run", resume=True)


def test_old_own_keys_kept_leave_the_records_in_order(tmp_path):
    detector = fn.SupportSet(top_k=4)
    figures = fit(tiny_run(method=moco(keep_own_keys=True), detector=detector, epochs=1), tmp_path / "run")
    assert "knn" in figures
    flagged = pq.read_table(tmp_path / "run" / "flagged.parquet")
    assert len(flagged) and min(flagged["candidate"].to_pylist()) >= 0


def test_the_share_flagged_is_of_all_negatives_also_without_labels(tmp_path):
    """In the first step the bank is empty, and with it the denominator; 4 of the batch's 31 other keys are flagged."""
    fit(tiny_run(method=moco(), data=Unlabelled(), test=None, epochs=1, log_every=1), tmp_path / "run")
    shares = [line["share_flagged"] for line in read_metrics(tmp_path / "run") if line["kind"] == "step"]
    # The bank of 50 places holds 32 and then 50 keys of other images.
    assert shares == pytest.approx([4 / 31, 4 / (31 + 32), 4 / (31 + 50)])


def test_the_main_encoder_is_exported(tmp_path):
    fit(tiny_run(method=moco(), epochs=1), tmp_path / "run")
    exported = fn.Encoder.load(tmp_path / "run" / "encoder.safetensors").state_dict()
    state = weights(tmp_path / "run")
    for name, value in exported.items():
        assert torch.equal(value, state[f"encoder.{name}"]), name


@pytest.mark.parametrize("source", ["run", "run/encoder.safetensors"])
def test_weights_to_start_from_begin_with_an_empty_bank(tmp_path, source):
    fit(tiny_run(method=moco(), epochs=1), tmp_path / "run")
    method = moco(3)
    first = FirstWeights(method)
    fit(tiny_run(seed=3, method=method, init_from=tmp_path / source, epochs=1, objective=first), tmp_path / "new")
    seen = first.seen
    trained = weights(tmp_path / "run")
    for name in ("conv1.weight", "layer4.0.conv1.weight"):
        for network in ("encoder", "momentum_network.network.0"):
            assert torch.equal(seen[f"{network}.backbone.{name}"], trained[f"encoder.backbone.{name}"])
    assert int(seen["bank.written"]) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": moco(shuffle_groups=17)}, "a process sees 32 images in a step; give groups of at least 2 images"),
        ({"method": moco(), "precision": "bf16-true"}, "momentum network would stand still"),
        ({"method": moco(shuffle_groups=2), "sync_batch_norm": True}, "undoes the method's shuffle_groups"),
        ({"sync_batch_norm": True, "accelerator": "cpu"}, "sync_batch_norm needs CUDA devices"),
        (
            {"method": moco(bank=0, denominator="batch"), "detector": fn.SupportSet(top_k=3, part="bank")},
            "SupportSet: there is no part 'bank' among the candidates .the method offers: batch.",
        ),
        (
            {"method": moco(support_views=0), "detector": fn.SupportSet(top_k=3)},
            "SupportSet: there is no space 'support'",
        ),
        (
            {"method": moco(support_views=0, support_as_positives=True), "detector": fn.NoDetection()},
            "needs support views",
        ),
    ],
)
def test_refused_before_training(tmp_path, options, words):
    with pytest.raises(fn.UserError, match=words) as error:
        fit(tiny_run(**options), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "checkpoints" / "last.pt").exists()


@pytest.mark.parametrize("detector", [fn.SupportSet(top_k=3), fn.BatchQuantile(part="bank")])
def test_what_the_bank_offers_passes(detector):
    tiny_run(method=moco(), detector=detector).check()


def test_the_bank_is_not_sent_around_at_every_step():
    """Every rank writes the same into it; DistributedDataParallel would send its buffers before each forward pass."""
    encoding = EncodeBatch(moco())
    ignored = encoding._ddp_params_and_buffers_to_ignore
    assert ignored == [f"method.bank.{name}" for name in ("z", "sample", "row", "written")]
    assert set(ignored) <= {name for name, _ in encoding.named_buffers()}


def test_the_estimate_counts_what_is_not_trained_once():
    views = views_of(4)
    simple, following = fn.SimCLR(tiny_encoder(), head_dim=16), moco(support_views=0, bank=1000)
    before = {key: value.clone() for key, value in following.state_dict().items()}
    found = estimate(following, views, 64, 1).memory
    assert all(torch.equal(value, before[key]) for key, value in following.state_dict().items())
    weights_and_bank = sum(p.nbytes for p in simple.parameters()) + 1000 * (4 * 16 + 16)
    # One view of two is encoded with gradient.
    kept = estimate(simple, views, 32, 1).memory - 4 * sum(p.nbytes for p in simple.parameters())
    expected = kept + 4 * sum(p.nbytes for p in simple.parameters()) + weights_and_bank
    assert found == pytest.approx(expected, rel=0.02)
