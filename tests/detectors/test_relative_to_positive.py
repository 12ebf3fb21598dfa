"""Thresholds relative to the positive, against plain loops; and what is refused."""

import catalogue
import numpy as np
import pytest
import torch
from reference import loops
from safetensors.torch import save_file

import falseneg as fn
from falseneg.batch import Embeddings
from falseneg.losses import Criterion
from falseneg.methods.two_towers import contrast_pairs

CLOCK = fn.Clock(0, 1, 1)


def flags(rule, contrast):
    n, m = len(contrast.anchors), len(contrast.candidates)
    return rule.tile(slice(0, n), slice(0, m), (contrast.anchors.z @ contrast.candidates.z.T).detach())


def negatives(contrast):
    """Anchor, column of each negative."""
    samples = contrast.anchors.sample.tolist(), contrast.candidates.sample.tolist()
    return [(i, j) for i in range(len(contrast.anchors)) for j in loops.negatives_of(i, *samples)]


MARGINS = [{}, {"absolute_margin": 0.0}, {"absolute_margin": 0.3}, {"relative_margin": 0.4}]


@pytest.mark.parametrize("margins", MARGINS, ids=str)
@pytest.mark.parametrize("kind", ["batch", "bank"])
def test_with_the_encoders_own_similarity(kind, margins):
    """The mean of the positives; a relative margin lowers a negative similarity too."""
    contrast, _ = catalogue.contrast_of(kind)
    flagged = flags(fn.RelativeToPositive(**margins).flag(contrast, CLOCK), contrast)
    seen = set()
    for i, j in negatives(contrast):
        cosines = contrast.positives[i].tolist()
        positive = sum(cosines) / len(cosines)
        margin = margins.get("absolute_margin", 0.0) + margins.get("relative_margin", 0.0) * abs(positive)
        score = float(contrast.anchors.z[i] @ contrast.candidates.z[j])
        assert bool(flagged[i, j]) == (score > positive - margin)
        seen.add((bool(flagged[i, j]), positive > 0))
    assert len(seen) == 4  # flagged and not, above and below zero


def test_the_comparison_is_strict():
    z = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    anchors, candidates = fn.Embedded(z[:1], torch.tensor([0])), fn.Embedded(z[1:], torch.tensor([1]))
    contrast = fn.Contrast("views", anchors, candidates, torch.tensor([[0.6]]))
    assert not flags(fn.RelativeToPositive().flag(contrast, CLOCK), contrast).any()
    assert flags(fn.RelativeToPositive(absolute_margin=1e-6).flag(contrast, CLOCK), contrast).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("margins", [{"absolute_margin": 1.1}, {"relative_margin": 0.5}], ids=str)
def test_with_a_guide(dtype, margins, tmp_path):
    """Embeddings of any length by sample; nobody is never flagged, not even below a threshold under 0."""
    guide = np.random.default_rng(0).normal(size=(10, 3)).astype(dtype) * 4
    np.save(tmp_path / "guide.npy", guide)
    detector = fn.RelativeToPositive(guide=tmp_path / "guide.npy", **margins)
    detector.prepare(fn.Facts(rows=10, negatives=8))
    contrast, _ = catalogue.contrast_of("bank")
    flagged = flags(detector.flag(contrast, CLOCK), contrast)
    unit = guide.astype(np.float64) / np.linalg.norm(guide.astype(np.float64), axis=1, keepdims=True)
    of_anchor, of_candidate = contrast.anchors.sample.tolist(), contrast.candidates.sample.tolist()
    threshold = 1 - margins.get("absolute_margin", 0) - margins.get("relative_margin", 0)
    seen = set()
    for i, j in negatives(contrast):
        a, c = of_anchor[i], of_candidate[j]
        known = a >= 0 and c >= 0
        assert bool(flagged[i, j]) == (known and unit[a] @ unit[c] > threshold)
        seen.add((bool(flagged[i, j]), known))
    assert seen == {(True, True), (False, True), (False, False)}


@pytest.mark.parametrize("ending", ["npy", "safetensors"])
def test_a_guide_of_texts_counts_in_both_directions(ending, tmp_path):
    """By the rows of the pairs, whichever side is the anchor."""
    guide = torch.randn(30, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    path = tmp_path / f"texts.{ending}"
    np.save(path, guide.numpy()) if ending == "npy" else save_file({"anything": guide}, path)
    detector = fn.RelativeToPositive(absolute_margin=0.7, guide=path)
    detector.prepare(fn.Facts(rows=30, negatives=7, modalities=("image", "text")))
    row = [4, 29, 0, 7, 13, 21, 8, 15]
    sides = {name: catalogue.unit(8, 5, seed=seed)[:, None] for seed, name in enumerate(("image", "text"))}
    for contrast in contrast_pairs(Embeddings(torch.tensor(row), sides)):
        flagged, expected = flags(detector.flag(contrast, CLOCK), contrast), []
        for one in row:
            cosines = [float(guide[one] @ guide[other] / guide[one].norm() / guide[other].norm()) for other in row]
            expected.append([cosine > 1 - 0.7 for cosine in cosines])
        assert flagged.tolist() == expected and 8 < flagged.sum() < 64


def test_a_guide_in_half_precision(tmp_path):
    save_file({"embeddings": torch.eye(4).bfloat16()}, tmp_path / "guide.safetensors")
    assert torch.equal(fn.RelativeToPositive(0.1, guide=tmp_path / "guide.safetensors").embeddings, torch.eye(4))


def test_safetensors_that_hold_no_embeddings(tmp_path):
    path = tmp_path / "guide.safetensors"
    for content, sentence in (
        ({"one": torch.eye(2), "two": torch.eye(2)}, "holds 2 tensors; give a file with one"),
        ({"one": torch.eye(2).long()}, "int64 of shape .2, 2.; give floats"),
    ):
        save_file(content, path)
        with pytest.raises(fn.UserError, match=sentence):
            fn.RelativeToPositive(0.1, guide=path)
    path.write_bytes(b"no")
    with pytest.raises(fn.UserError, match="damaged or not a safetensors file"):
        fn.RelativeToPositive(0.1, guide=path)


def test_a_guide_is_no_part_of_the_checkpoint(tmp_path):
    np.save(tmp_path / "guide.npy", np.eye(4))
    assert not fn.RelativeToPositive(absolute_margin=0.1, guide=tmp_path / "guide.npy").state_dict()


def test_no_gradient_passes_the_threshold():
    """Moving the positive moves the loss only through the loss."""
    contrast, (z, _, key) = catalogue.contrast_of("batch")
    rule = fn.RelativeToPositive(absolute_margin=0.3).flag(contrast, CLOCK)
    assert not rule.threshold.requires_grad
    Criterion(fn.RelativeToPositive(absolute_margin=0.3))([contrast], CLOCK)[0].backward()
    assert torch.isfinite(z.grad).all() and torch.isfinite(key.grad).all()


def saved(folder, content):
    np.save(folder / "guide.npy", content)
    return folder / "guide.npy"


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda _: fn.RelativeToPositive(0.1, 0.1), "give one"),
        (lambda _: fn.RelativeToPositive(-2.1), "absolute_margin is -2.1; .*from -2 to 2"),
        (lambda _: fn.RelativeToPositive(float("nan")), "absolute_margin is nan"),
        (lambda _: fn.RelativeToPositive(relative_margin=1.0), "relative_margin is 1.0; .*from 0 to below 1"),
        (lambda _: fn.RelativeToPositive(0.1, guide="nowhere.npy"), "there is no file nowhere.npy of embeddings"),
        (lambda f: fn.RelativeToPositive(guide=saved(f, np.eye(3))), "give absolute_margin or relative_margin"),
        (
            lambda f: fn.RelativeToPositive(0.1, guide=saved(f, np.eye(3, dtype=int))),
            "int64 of shape .3, 3.; give floats",
        ),
        (lambda f: fn.RelativeToPositive(0.1, guide=saved(f, np.ones(3))), "of shape .3,.; give floats .rows, E."),
        (lambda f: fn.RelativeToPositive(0.1, guide=saved(f, np.full((2, 2), np.nan))), "not finite"),
        (
            lambda f: fn.RelativeToPositive(0.1, guide=saved(f, np.eye(3))).prepare(fn.Facts(rows=9, negatives=4)),
            "holds 3 embeddings, but there are 9 images to learn from",
        ),
    ],
)
def test_bad_options_are_answered_with_one_sentence(make, sentence, tmp_path):
    with pytest.raises(fn.UserError, match=sentence):
        make(tmp_path)


def test_an_array_of_objects_is_refused(tmp_path):
    np.save(tmp_path / "guide.npy", np.array([{}, None], dtype=object), allow_pickle=True)
    with pytest.raises(fn.UserError, match="not an array of numbers"):
        fn.RelativeToPositive(0.1, guide=tmp_path / "guide.npy")
