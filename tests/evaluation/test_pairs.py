"""Retrieval and zero-shot classification against loops over single pairs."""

import captioned
import pytest
import torch
from torch.nn.functional import normalize

from falseneg.errors import UserError
from falseneg.evaluation import PairSplit, Retrieval, ZeroShot, pairs


def split(images=7, seed=0, labels=None, classes=None):
    draw = torch.Generator().manual_seed(seed)
    image_of = torch.tensor([0, 0, 1, 2, 3, 3, 3, 4, 5, 6])
    text = torch.tensor([0, 1, 2, 0, 3, 4, 2, 5, 6, 0])  # 0 is shared by three images, 2 by two
    rows = [normalize(torch.randn(n, 4, generator=draw).round(), dim=1).nan_to_num(0.5) for n in (images, 10)]
    return PairSplit(*rows, image_of, text, labels, classes)


def rank_of(scores, right):
    """The place of the first right one when candidates are sorted by score, equal ones by number."""
    order = sorted(range(len(scores)), key=lambda k: (-float(scores[k]), k))
    return min(order.index(k) for k in right)


@pytest.mark.parametrize("tile", [8, 2**24])
def test_recall(tile, monkeypatch):
    monkeypatch.setattr(pairs, "_TILE", tile)
    found = split()
    figures = Retrieval().figures(found)
    assert list(figures) == list(Retrieval().keys)
    similar = found.images @ found.texts.T
    words = [{int(found.text[t]) for t in range(10) if int(found.image_of[t]) == i} for i in range(7)]
    for shared in (False, True):
        texts = [
            [t for t in range(10) if int(found.image_of[t]) == i or (shared and int(found.text[t]) in words[i])]
            for i in range(7)
        ]
        images = [[i for i in range(7) if t in texts[i]] for t in range(10)]
        of_image = [rank_of(similar[i], texts[i]) for i in range(7)]
        of_text = [rank_of(similar[:, t], images[t]) for t in range(10)]
        for k in (1, 5, 10):
            prefix = "shared_" if shared else ""
            assert figures[f"{prefix}image_to_text_{k}"] == sum(r < k for r in of_image) / 7
            assert figures[f"{prefix}text_to_image_{k}"] == sum(r < k for r in of_text) / 10
    assert figures["retrieval"] == (figures["image_to_text_1"] + figures["text_to_image_1"]) / 2
    assert figures["shared_text_to_image_1"] > figures["text_to_image_1"]


def test_perfect_towers_find_everything_but_what_is_shared():
    rows = torch.eye(7)
    image_of = torch.arange(7)
    text = torch.tensor([0, 1, 2, 0, 3, 4, 5])
    shared = PairSplit(rows, rows[torch.tensor([0, 1, 2, 0, 4, 5, 6])], image_of, text)
    figures = Retrieval().figures(shared)
    assert figures["image_to_text_1"] == 6 / 7 and figures["shared_text_to_image_1"] == 1.0


def test_zero_shot():
    labels = torch.tensor([0, 1, 1, -1, 0, 1, 0])
    found = split(labels=labels, classes=torch.eye(4)[:2])
    expected = [
        bool(row[1] > row[0]) == bool(label) for row, label in zip(found.images, labels, strict=True) if label >= 0
    ]
    assert ZeroShot().figures(found) == {"zero_shot": sum(expected) / 6}
    assert ZeroShot().figures(split()) == {"zero_shot": None}
    assert ZeroShot().figures(split(labels=-torch.ones(7).long(), classes=torch.eye(4))) == {"zero_shot": None}


def test_captions_are_embedded_image_by_image_and_equal_ones_are_known():
    data = captioned.CaptionedDigits(images=20)

    def embed(texts):
        assert len(texts) <= 8
        return torch.tensor([[float(len(text)), 1.0] for text in texts])

    texts, image_of, text = pairs.embed_captions(data, embed, batch_size=8)
    captions = [caption for row in range(20) for caption in data.captions(row)]
    assert texts[:, 0].tolist() == [len(caption) for caption in captions]
    assert image_of.tolist() == [row for row in range(20) for _ in range(3)]
    same = [[a == b for b in captions] for a in captions]
    assert (text[:, None] == text[None]).tolist() == same
    data.captions = lambda row: ()
    with pytest.raises(UserError, match="have no captions"):
        pairs.embed_captions(data, embed)


def test_a_class_is_the_mean_of_its_prompts():
    def embed(texts):
        return normalize(torch.tensor([[float("one" in text), float("photo" in text), 1.0] for text in texts]), dim=1)

    got = pairs.embed_classes(["one", "two"], ["{}", "a photo of {}"], embed)
    for row, name in enumerate(("one", "two")):
        mean = (embed([name])[0] + embed([f"a photo of {name}"])[0]) / 2
        torch.testing.assert_close(got[row], mean / mean.norm())
