"""WCL's weak labels against a loop over pairs, written from the paper's section 3.2."""

import pytest
import torch
from torch.nn.functional import normalize

import falseneg as fn

CLOCK = fn.Clock(0, 5, 10)


def rows_of(images, views, seed=0):
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(images, 1, 6, generator=draw, dtype=torch.float64)
    return normalize(base + 0.8 * torch.randn(images, views, 6, generator=draw, dtype=torch.float64), dim=-1)


def connected(rows):
    """Who hangs together if each row is joined to its nearest other one: labels are spread until none changes."""
    n = len(rows)
    nearest = [max((j for j in range(n) if j != i), key=lambda j, i=i: float(rows[i] @ rows[j])) for i in range(n)]
    label, changed = list(range(n)), True
    while changed:
        changed = False
        for i, j in enumerate(nearest):
            low = min(label[i], label[j])
            changed |= (label[i], label[j]) != (low, low)
            label[i] = label[j] = low
    return label


def flags(contrast):
    n, m = len(contrast.anchors), len(contrast.candidates)
    rule = fn.BatchComponents().flag(contrast, CLOCK)
    return rule.tile(slice(0, n), slice(0, m), torch.zeros(n, m, dtype=torch.float64))


@pytest.mark.parametrize("views", [2, 3])
def test_the_anchors_of_a_view_go_by_the_components_of_the_next(views):
    images, z = 23, rows_of(23, views)
    index = torch.randperm(100, generator=torch.Generator().manual_seed(1))[:images]
    method = fn.SimCLR(fn.Encoder("resnet10t", 8), views=views)
    (contrast,) = method.contrasts(fn.Embeddings(index, {"image": z}))
    labels = [connected(z[:, view]) for view in range(views)]
    expected = torch.tensor(
        [
            [
                labels[(view + 1) % views][image] == labels[(view + 1) % views][other]
                for other in range(images)
                for _ in range(views)
            ]
            for image in range(images)
            for view in range(views)
        ]
    )
    assert torch.equal(flags(contrast), expected)
    assert len({tuple(each) for each in labels}) == views and not expected.all()


def test_candidates_with_one_row_an_image_label_all_anchors_and_old_keys_have_none():
    """As MoCo has it: queries, the step's keys in another order, and a bank with an old key of one of the images."""
    images, keys, bank = 9, rows_of(9, 1, seed=1)[:, 0], rows_of(4, 1, seed=2)[:, 0]
    order = torch.randperm(images, generator=torch.Generator().manual_seed(3))
    anchors = fn.Embedded(rows_of(images, 1)[:, 0], torch.arange(images))
    candidates = fn.Embedded(torch.cat([bank, keys[order]]), torch.cat([torch.tensor([50, 3, -1, 51]), order]))
    parts = {"bank": slice(0, 4), "batch": slice(4, 13)}
    contrast = fn.Contrast("queries", anchors, candidates, torch.zeros(images, 1), parts=parts)
    label = connected(keys)
    expected = torch.zeros(images, 13, dtype=torch.bool)
    for image in range(images):
        for column, other in enumerate(order.tolist()):
            expected[image, 4 + column] = label[image] == label[other]
    found = flags(contrast)
    assert torch.equal(found, expected) and found.any() and not found[:, 4:].all()


def test_anchors_without_a_candidate_of_their_image_and_nobody_have_no_label():
    z = rows_of(6, 1)[:, 0]
    contrast = fn.Contrast(
        "views",
        fn.Embedded(z[:3], torch.tensor([0, 7, -1])),
        fn.Embedded(z, torch.tensor([0, 1, 2, -1, -1, 3])),
        z[:3, :1],
    )
    found = flags(contrast)
    assert not found[1:].any() and found[0].any() and not found[:, 3:5].any()
    assert not flags(
        fn.Contrast("views", contrast.anchors, fn.Embedded(z[:2], torch.tensor([-1, -1])), z[:3, :1])
    ).any()


def test_a_large_batch_is_looked_through_in_pieces(monkeypatch):
    from falseneg.statistics import scan

    z = rows_of(40, 2, seed=4)
    (contrast,) = fn.SimCLR(fn.Encoder("resnet10t", 8)).contrasts(fn.Embeddings(torch.arange(40), {"image": z}))
    whole = flags(contrast)
    monkeypatch.setattr(scan, "BLOCK", 280)
    monkeypatch.setattr(scan, "ROWS", 7)
    assert torch.equal(flags(contrast), whole)


def test_a_repeated_image_is_in_the_graph_once_and_all_its_rows_have_its_label():
    z = rows_of(8, 2, seed=5)
    index = torch.tensor([0, 1, 2, 3, 4, 5, 6, 2])
    (contrast,) = fn.SimCLR(fn.Encoder("resnet10t", 8)).contrasts(fn.Embeddings(index, {"image": z}))
    labels = [[*connected(z[:7, view])] for view in range(2)]
    for each in labels:
        each.append(each[2])
    rows = [(image, view) for image in range(8) for view in range(2)]
    expected = torch.tensor(
        [[labels[1 - view][one] == labels[1 - view][other] for other, _ in rows] for one, view in rows]
    )
    assert torch.equal(flags(contrast), expected)


def test_images_of_nobody_in_a_batch_are_images_all_the_same():
    z = rows_of(7, 2, seed=6)
    method = fn.SimCLR(fn.Encoder("resnet10t", 8))
    numbered, nobody = (
        method.contrasts(fn.Embeddings(index, {"image": z}))[0]
        for index in (torch.arange(7), torch.full((7,), fn.NOBODY))
    )
    assert torch.equal(flags(numbered), flags(nobody))
