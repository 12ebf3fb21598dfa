"""Multi-crop in training: resumed, in pieces, over two processes, and at the cost that was promised."""

import re
import signal

import catalogue
import pytest
import torch
from train.parts import assert_same_weights, digits, tiny_encoder, tiny_run, untimed
from train.test_gradient_cache import CLOCK, gradients, learner_of, plain_pieces
from train.test_resume import StopAt

import falseneg as fn
from falseneg.data import Augmentation, Crops
from falseneg.train import fit
from falseneg.train.estimate import PASSING, estimate
from falseneg.train.plan import make_plan, settings
from falseneg.train.step import training_step

CROPS = [Crops(2, 6, (0.1, 0.4)), Crops(3, 4, (0.05, 0.14))]


def crop_run(groups=CROPS, seed=0, **options):
    """A run in which crops of two sizes are support set and positives."""
    method = fn.SimCLR(tiny_encoder(seed), support_as_positives=True)
    parts = {"method": method, "multi_crop": groups, "strategy": fn.ATTRACT}
    return tiny_run(**{**parts, **options})


def views_of(images=7, groups=((2, 6), (3, 4)), seed=3):
    draw = torch.Generator().manual_seed(seed)

    def pictures(number, size):
        return torch.randint(0, 256, (images, number, 3, size, size), generator=draw, dtype=torch.uint8)

    return catalogue.batch(pictures(2, 8), tuple(pictures(*group) for group in groups), torch.arange(images))


def moco(seed=0, **options):
    return fn.MoCo(tiny_encoder(seed), bank=64, support_as_positives=True, **options)


@pytest.mark.parametrize(("accumulate", "method"), [(1, None), (3, None), (1, moco)], ids=["whole", "pieces", "moco"])
def test_stopped_and_resumed_ends_with_the_same_bits(tmp_path, accumulate, method):
    def run(step, **options):
        options |= {} if method is None else {"method": method()}
        return crop_run(accumulate=accumulate, checkpoint_every=None, objective=StopAt(step, signal.SIGTERM), **options)

    fit(run(-1), tmp_path / "whole")
    with pytest.raises(SystemExit):
        fit(run(4), tmp_path / "parts")
    torch.manual_seed(99)
    fit(run(-1), tmp_path / "parts", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "parts")
    fit(run(-1, groups=[Crops(2, 6, (0.1, 0.4)), Crops(3, 4, (0.05, 0.15))]), tmp_path / "other")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "whole", tmp_path / "other")


@pytest.mark.parametrize("groups", [[Crops(2, 6, (0.1, 0.4)), Crops(3, 5)], [Crops(5, 6)], None])
def test_a_checkpoint_of_other_crops_is_refused(tmp_path, groups):
    with pytest.raises(SystemExit):
        fit(crop_run(objective=StopAt(0, signal.SIGTERM)), tmp_path / "run")
    method = fn.SimCLR(tiny_encoder(), support_views=5, support_as_positives=True)
    with pytest.raises(fn.UserError, match="multi_crop is .* there and .* here"):
        fit(crop_run(groups, objective=StopAt(-1, 0), method=method), tmp_path / "run", resume=True)


def test_one_forward_pass_for_each_size_with_detection_on_or_off():
    """FNC on multi-crop adds no pass of the encoder."""
    for detector in (fn.NoDetection(), fn.SupportSet(top_k=3, threshold=0.1)):
        learner = learner_of(support_views=5, support_as_positives=True)
        learner.criterion.detector = detector
        seen = []
        learner.method.encoder.register_forward_hook(lambda _, images, __, seen=seen: seen.append(images[0].shape))
        _, judged = training_step(learner, views_of(), CLOCK)
        assert [(shape[0], shape[-1]) for shape in seen] == [(14, 8), (14, 6), (21, 4)]
    assert int(judged[0][2].flagged.sum()) > 0


@pytest.mark.parametrize("from_main", [True, False])
def test_moco_learns_from_the_crops_whichever_network_detects_with_them(from_main):
    """No network sees them twice."""
    method, views, seen = moco(support_from_main=from_main, support_views=5), views_of(), {}
    for name, encoder in (("main", method.encoder), ("momentum", method.momentum_network)):
        encoder.register_forward_hook(
            lambda _, images, __, name=name: seen.setdefault(name, []).append((len(images[0]), images[0].shape[-1]))
        )
    contrast, of_crops = method.contrasts(method.encode(views))
    assert fn.SupportSet(top_k=2).flag(contrast, CLOCK).offsets[-1] == 7 * 2
    crops = [(14, 6), (21, 4)]
    assert seen == {"main": [(7, 8), *crops], "momentum": [(7, 8)] + crops * (not from_main)}
    assert contrast.positives.shape == (7, 1) and of_crops.positives.shape == (7 * 5, 1)
    method.encoder.zero_grad()
    of_crops.positives.sum().backward()
    assert all(parameter.grad is not None for parameter in method.encoder.parameters())


@pytest.mark.parametrize("as_positives", [True, False])
@pytest.mark.parametrize("pieces", [2, 3])
def test_gradients_in_pieces_are_those_of_the_whole_batch(pieces, as_positives):
    learner, views = learner_of(support_views=5, support_as_positives=as_positives), views_of()
    plain_pieces(learner, views, 1)
    expected = gradients(learner)
    training_step(learner, views, CLOCK, pieces)
    found = gradients(learner)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_the_estimate_counts_crops_of_every_size():
    method = fn.SimCLR(tiny_encoder(), support_views=5, support_as_positives=True)
    kept = {}
    parameters = {parameter.data_ptr() for parameter in method.parameters()}

    def keep(tensor):
        if tensor.data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    views = views_of(64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        method.encode(views)
    own = 4 * sum(p.nbytes for p in method.parameters()) + sum(stream.nbytes for stream in views.streams.values())
    found = estimate(method, views[:8], 64, 1).memory - own
    assert found == pytest.approx(PASSING * sum(storage.nbytes() for storage in kept.values()), rel=0.1)


def test_the_crops_are_the_methods_support_views():
    run = crop_run()
    run.check()
    assert run.streams == {"image": 2, "support": 5}
    assert run.method.streams == {"image": 2}, "the method that was given is left as it was"
    assert crop_run(method=fn.SimCLR(tiny_encoder(), support_views=5)).streams["support"] == 5
    assert crop_run([], method=fn.SimCLR(tiny_encoder(), support_views=2)).streams["support"] == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"method": {"support_views": 4}},
            "multi_crop gives 5 crops of an image, but the method's support_views is 4; .*",
        ),
        ({"groups": [Crops(0, 6)]}, "multi_crop: number is 0; .*"),
        ({"groups": [Crops(1, 6, (0.0, 1.0))]}, "multi_crop: scale is .*"),
        ({"groups": None, "method": {"support_as_positives": True}}, ".*needs support views; give support_views, or.*"),
        ({"method": {"support_from_views": True}}, ".*support_from_views makes the main views the support set, but .*"),
    ],
)
def test_refused_before_the_data_are_opened(options, words):
    method = fn.SimCLR(tiny_encoder(), **options.pop("method", {}))
    with pytest.raises(fn.UserError) as error:
        crop_run(**options, method=method).check()
    assert "\n" not in str(error.value)
    assert re.fullmatch(words, str(error.value))


@pytest.mark.parametrize(
    ("size", "views", "words"),
    [
        (9, 12, "crops of 9 pixels are larger than the 8 that the images have .* give at most 8"),
        (7, 6, "crops of 7 pixels are larger than the 6 that the main views have; give at most 6"),
    ],
)
def test_crops_are_not_larger_than_main_views_or_images(tmp_path, size, views, words):
    run = crop_run([Crops(2, size)], augmentation=Augmentation(views), data=digits())
    with pytest.raises(fn.UserError, match=f"^multi_crop: {words}$"):
        fit(run, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_encoder_that_cannot_see_such_crops(tmp_path):
    encoder = fn.Encoder("vit_tiny_patch16_224", 32, arguments={"depth": 1})
    run = crop_run([Crops(2, 8)], method=fn.SimCLR(encoder), augmentation=Augmentation(32))
    with pytest.raises(fn.UserError, match="^multi_crop: the encoder cannot see crops of 8 pixels .*dynamic_img_size"):
        fit(run, tmp_path / "run")
    encoder = tiny_encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    make_plan(crop_run(method=fn.SimCLR(encoder)), False, True, print)
    assert encoder.training and all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_settings_name_the_crops():
    run = crop_run()
    run.check()
    described = settings(run, make_plan(run, False, True, print))
    assert described["multi_crop"] == str(run.multi_crop)
    run = tiny_run()
    assert settings(run, make_plan(run, False, True, print))["multi_crop"] == "None"
