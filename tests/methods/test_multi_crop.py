"""Small crops as support set and positives, and FNC as it was released, against plain loops."""

import catalogue
import pytest
import torch
from reference import fnc_loops
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, normalize

import falseneg as fn
from falseneg.statistics.pairs import masks

CLOCK, TAU = fn.Clock(0, 1, 1), 0.3


class Coarse(nn.Module):
    """Images of any size to their colours in four quarters, so that embeddings of different images lie far apart."""

    feature_dim = 12

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(12, 12)

    def forward(self, images):
        return self.mix(adaptive_avg_pool2d(images.double() / 6 - 10, 2).flatten(1))


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Coarse()


def pictures(images, number, size, seed):
    """Noise in a colour of each image's own, so that embeddings differ by image."""
    colour = torch.rand(images, 1, 3, 1, 1, generator=torch.Generator().manual_seed(7))
    draw = torch.Generator().manual_seed(seed)
    return (torch.rand(images, number, 3, size, size, generator=draw) * colour * 255).to(torch.uint8)


def method_of(encoder, **options):
    """In evaluation mode: an image's embedding does not depend on its batch."""
    return fn.SimCLR(encoder, head_dim=8, **options).double().eval()


def losses_of(method, views, detector, strategy=fn.ATTRACT):
    (contrast,) = method.contrasts(method.encode(views))
    tau = torch.tensor(TAU, dtype=torch.float64)
    rule = detector.flag(contrast, CLOCK)
    stats = fn.negative_stats(contrast, tau, rule, strategy)
    return fn.InfoNCE()(contrast, stats, tau, strategy), contrast, rule


def assert_same(method, losses, expected):
    expected = torch.stack(expected)
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=0)
    parameters = [p for p in method.parameters() if p.requires_grad]
    found = torch.autograd.grad(losses.mean(), parameters, retain_graph=True)
    for one, other in zip(found, torch.autograd.grad(expected.mean(), parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("groups", [[(3, 6)], [(2, 6), (3, 4)]])
def test_crops_are_support_set_and_positives(encoder, groups):
    method = method_of(encoder, support_as_positives=True)
    main = pictures(4, 2, 8, seed=1)
    crops = tuple(pictures(4, number, size, seed=size) for number, size in groups)
    views = catalogue.batch(main, crops, torch.arange(4))
    losses, contrast, _ = losses_of(method, views, fn.SupportSet(top_k=2))

    def embedding(image):
        return normalize(method.head(method.encoder(image[None])), dim=-1)[0]

    seen = torch.stack([torch.stack([embedding(view) for view in image]) for image in main])
    small = [[embedding(crop) for group in crops for crop in group[image]] for image in range(4)]
    for anchor in range(8):
        image = anchor // 2
        others = [seen[image, 1 - anchor % 2], *small[image]]
        cosines = torch.stack([(seen[image, anchor % 2] * other).sum() for other in others])
        torch.testing.assert_close(contrast.positives[anchor], cosines, rtol=1e-10, atol=1e-12)
    assert_same(method, losses, fnc_loops.on_multi_crop(seen, small, TAU, 2))


def test_crops_that_only_detect_have_no_gradient(encoder):
    views = catalogue.batch(pictures(4, 2, 8, 1), (pictures(4, 2, 6, 2), pictures(4, 1, 4, 3)), torch.arange(4))
    embeddings = method_of(encoder).encode(views)
    assert embeddings.rows["support"].shape == (4, 3, 8) and not embeddings.rows["support"].requires_grad


@pytest.mark.parametrize("number", [2, 5])
@pytest.mark.parametrize(("k", "threshold"), [(3, -1.0), (4, 0.7), (2, 1.0)])
def test_fnc_as_released(encoder, number, k, threshold):
    """All views are anchors, support set and positives; siblings and flagged rows stay in the denominator."""
    method = method_of(encoder, views=number, support_from_views=True)
    views = catalogue.batch(pictures(5, number, 8, seed=4), (), torch.arange(5))
    losses, contrast, rule = losses_of(method, views, fn.SupportSet(top_k=k, threshold=threshold))
    expected, flagged = fnc_loops.released(method.encode(views).rows["image"], TAU, k, threshold)
    rows = slice(0, 5 * number)
    sim = contrast.anchors.z.detach() @ contrast.candidates.z.detach().T
    found = masks(contrast, rule, rows, rows, sim)[1].unflatten(0, (5, number))
    for image in range(5):
        for anchor in found[image]:
            assert anchor.nonzero()[:, 0].tolist() == flagged[image], "one set an image, shared by its anchors"
    assert (threshold == 1.0) == (not found.any())
    assert_same(method, losses, expected)


def test_the_released_form_differs_from_a_set_for_each_anchor(encoder):
    """The comparison above can fail."""
    method = method_of(encoder, views=4)
    views = catalogue.batch(pictures(5, 4, 8, seed=4), (), torch.arange(5))
    losses, *_ = losses_of(method, views, fn.SupportSet(top_k=3, space=None))
    expected, _ = fnc_loops.released(method.encode(views).rows["image"], TAU, 3, -1.0)
    assert not torch.allclose(losses, torch.stack(expected))


def test_the_released_form_encodes_the_main_views_only(encoder):
    calls = []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    method = method_of(encoder, views=4, support_from_views=True)
    losses_of(method, catalogue.batch(pictures(3, 4, 8, 1), (), torch.arange(3)), fn.SupportSet(top_k=2))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("options", "support", "sentence"),
    [
        (
            {"support_as_positives": True},
            (),
            "support_as_positives needs support views; give support_views, or multi_crop",
        ),
        (
            {"support_from_views": True, "support_views": 2},
            (2,),
            "support_from_views makes the main views the support set",
        ),
        ({"support_from_views": True, "support_as_positives": True}, (), "support_as_positives needs support views"),
    ],
)
def test_contradictions(encoder, options, support, sentence):
    method = method_of(encoder, **options)
    views = catalogue.batch(pictures(3, 2, 8, 1), tuple(pictures(3, n, 8, 2) for n in support), torch.arange(3))
    with pytest.raises(fn.UserError, match=sentence):
        method.contrasts(method.encode(views))
