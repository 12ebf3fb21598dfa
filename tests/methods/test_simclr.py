import catalogue
import pytest
import torch
from torch.nn.functional import cosine_similarity

import falseneg as fn


@pytest.fixture(scope="module")
def encoder():
    return fn.Encoder("resnet10t", image_size=8, arguments={"channels": [8, 8, 16, 16]})


def views_of(images, views, support):
    draw = torch.Generator().manual_seed(2)
    main = torch.randint(0, 256, (images, views, 3, 8, 8), generator=draw, dtype=torch.uint8)
    further = torch.randint(0, 256, (images, support, 3, 8, 8), generator=draw, dtype=torch.uint8)
    return catalogue.batch(main, (further,) if support else (), torch.arange(10, 10 + images))


@pytest.mark.parametrize("views", [2, 3])
def test_every_view_is_an_anchor_and_all_its_pairs_are_positives(encoder, views):
    method = fn.SimCLR(encoder, views=views, head_dim=16).eval()
    embeddings = method.encode(views_of(4, views, 0))
    (contrast,) = method.contrasts(embeddings)
    assert contrast.candidates is contrast.anchors
    assert contrast.anchors.sample.tolist() == [10 + b for b in range(4) for _ in range(views)]
    for b in range(4):
        for v in range(views):
            expected = [
                cosine_similarity(embeddings.rows["image"][b, v], embeddings.rows["image"][b, w], dim=0)
                for w in range(views)
                if w != v
            ]
            torch.testing.assert_close(contrast.positives[b * views + v], torch.stack(expected))
    stats = fn.negative_stats(contrast, torch.tensor(0.1), fn.NoPairs(), fn.IGNORE)
    assert stats.count.tolist() == [method.negatives(4)] * (4 * views)


def test_support_views_detect_without_gradient(encoder):
    method = fn.SimCLR(encoder, support_views=3, head_dim=16)
    (contrast,) = method.contrasts(method.encode(views_of(4, 2, 3)))
    space = contrast.spaces["support"]
    assert space.queries.shape == (4, 3, 16) and not space.queries.requires_grad and not space.candidates.requires_grad
    assert space.query_of.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert contrast.positives.shape == (8, 1) and contrast.positives.requires_grad


def test_support_views_as_positives_carry_gradient(encoder):
    method = fn.SimCLR(encoder, support_views=3, support_as_positives=True, head_dim=16)
    embeddings = method.encode(views_of(4, 2, 3))
    (contrast,) = method.contrasts(embeddings)
    assert embeddings.rows["support"].requires_grad and contrast.positives.shape == (8, 4)
    assert not contrast.spaces["support"].queries.requires_grad  # detection never has a gradient
    expected = (embeddings.rows["image"][1, 0] * embeddings.rows["support"][1, 2]).sum()
    torch.testing.assert_close(contrast.positives[2, 3], expected)


def test_pieces_put_together_are_the_batch(encoder):
    method = fn.SimCLR(encoder, support_views=2, head_dim=16).eval()
    batch = views_of(5, 2, 2)
    whole = method.encode(batch)
    pieces = fn.Embeddings.cat([method.encode(batch[:2]), method.encode(batch[2:])])
    assert torch.equal(pieces.index, whole.index) and pieces.rows.keys() == {"image", "support"}
    for name in pieces.rows:
        torch.testing.assert_close(pieces.rows[name], whole.rows[name])


def test_embeddings_are_unit_rows_in_float32_under_autocast(encoder):
    method = fn.SimCLR(encoder, head_dim=16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        main = method.encode(views_of(4, 2, 0)).rows["image"]
    assert main.dtype == torch.float32
    torch.testing.assert_close(main.norm(dim=-1), torch.ones(4, 2))


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"views": 1}, "views is 1; an anchor needs a positive"),
        ({"support_views": -1}, "support_views is -1"),
    ],
)
def test_bad_options(encoder, options, sentence):
    with pytest.raises(fn.UserError, match=sentence):
        fn.SimCLR(encoder, **options)
