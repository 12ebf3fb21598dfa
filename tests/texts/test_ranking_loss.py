"""`FalseNegativeRankingLoss` against the losses of sentence-transformers, and against plain loops."""

import math

import pytest
import torch
from sentence_transformers.sentence_transformer import losses
from texts import tiny_texts
from torch.nn.functional import normalize

import falseneg as fn
from falseneg.sentence_transformers import FalseNegativeRankingLoss, SameText

ALL = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
BOTH = ("query_to_doc", "doc_to_query")
SCALE = 16.0  # float32 holds 1 / 16 exactly


def loss_of(model, *parts, **how):
    return FalseNegativeRankingLoss(model, *parts, **{"scale": SCALE, **how})


def multiple_negatives(model, **how):
    return losses.MultipleNegativesRankingLoss(model, **{"scale": SCALE, **how})


def value_and_gradient(loss, model, columns, labels=None, seed=None):
    model.zero_grad()
    if seed is not None:
        torch.manual_seed(seed)
    value = loss([model.preprocess(column) for column in columns], labels)
    value.backward()
    return value.detach(), torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])


def same(ours, theirs, model, columns, **how):
    got, expected = (value_and_gradient(loss, model, columns, **how) for loss in (ours, theirs))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("columns", [2, 3, 4])
@pytest.mark.parametrize(
    "directions, mode", [(("query_to_doc",), "joint"), (BOTH, "joint"), (BOTH, "per_direction"), (ALL, "joint")]
)
@pytest.mark.parametrize("size", [7, 300])  # the second is not dense
def test_without_detection_it_is_the_multiple_negatives_ranking_loss(model, columns, directions, mode, size):
    texts = tiny_texts.texts(size, columns, columns)
    how = {"scale": SCALE, "directions": directions, "partition_mode": mode}
    same(loss_of(model, **how), multiple_negatives(model, **how), model, texts)


@pytest.mark.parametrize("columns, mode", [(2, "all_negatives"), (4, "all_negatives"), (2, "in_batch_negatives")])
@pytest.mark.parametrize("directions, partition", [(("query_to_doc",), "joint"), (BOTH, "per_direction")])
@pytest.mark.parametrize("size", [7, 300])  # the second is not dense
def test_hardness_is_that_of_the_multiple_negatives_ranking_loss(model, columns, mode, directions, partition, size):
    texts = tiny_texts.texts(size, columns, columns)
    how = {"directions": directions, "partition_mode": partition, "hardness_mode": mode, "hardness_strength": 9.0}
    theirs = multiple_negatives(model, **how)
    same(loss_of(model, **how), theirs, model, texts)
    same(loss_of(model, **how, mini_batch_size=5), theirs, model, texts)
    plain, _ = value_and_gradient(multiple_negatives(model, **{**how, "hardness_strength": 0.0}), model, texts)
    assert abs(value_and_gradient(theirs, model, texts)[0] - plain) > 0.01
    with torch.no_grad():
        features = [model.preprocess(column) for column in texts]
        kept = loss_of(model, fn.GlobalThreshold(alpha=0.1), **how, pairs=size)
        torch.testing.assert_close(kept(features), theirs(features, None), rtol=1e-9, atol=1e-12)


def test_hardness_beside_a_detector_is_a_plain_sum(model):
    """Flagged negatives are left out, the others weigh more without gradient; of some anchors none is left."""
    texts = tiny_texts.texts(12, 3, 2)

    def cosines():
        rows = (normalize(model(model.preprocess(column))["sentence_embedding"], dim=1) for column in texts)
        return torch.matmul(next(rows), next(rows).T)

    lowest = cosines().detach().min(dim=1).values.sort().values
    threshold = float(lowest[5:7].mean())
    loss = loss_of(model, fn.FixedThreshold(threshold), hardness_mode="all_negatives", hardness_strength=9.0)
    value, gradient = value_and_gradient(loss, model, texts)
    assert 0 < loss.skipped().share < 1 and "had no negative left" in str(loss.skipped())
    model.zero_grad()
    total = 0.0
    for i, row in enumerate(cosines()):
        terms = [(SCALE * s + 9.0 * s.detach()).exp() for j, s in enumerate(row) if j != i and s <= threshold]
        total = total + (sum(terms) + (SCALE * row[i]).exp()).log() - SCALE * row[i]
    (total / 12).backward()
    expected = torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])
    torch.testing.assert_close(value, total.detach() / 12, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize("anchors", [True, False])
@pytest.mark.parametrize("positives", [True, False])
@pytest.mark.parametrize(
    "strategy, margin", [("absolute", 0.0), ("absolute", 0.05), ("relative", 0.0), ("relative", 0.1)]
)
def test_with_a_guide_and_a_margin_it_is_the_gist_embed_loss(
    model, guide, columns, anchors, positives, strategy, margin
):
    texts = tiny_texts.texts(12, 3, columns)
    how = {"margin_strategy": strategy, "margin": margin, "contrast_anchors": anchors, "contrast_positives": positives}
    theirs = losses.GISTEmbedLoss(model, guide, temperature=1 / SCALE, **how)
    directions = ["query_to_doc", *["query_to_query"] * anchors, *["positive_to_positive"] * positives]
    detector = fn.RelativeToPositive(**{f"{strategy}_margin": margin}, space="guide")
    ours = loss_of(model, detector, guide=guide, directions=directions)
    same(ours, theirs, model, texts)
    assert 0 < ours.skipped().share < 0.9
    cached = loss_of(model, detector, guide=guide, directions=directions, mini_batch_size=5)
    same(cached, theirs, model, texts)


def test_a_guide_with_another_tokenizer_reads_the_texts_again(model, tmp_path):
    other = tiny_texts.model_of(tmp_path, seed=5, words=tiny_texts.WORDS[::-1]).double()
    texts = tiny_texts.texts(12, 3, 3)
    directions = ("query_to_doc", "query_to_query", "positive_to_positive")
    detector = fn.RelativeToPositive(absolute_margin=0.0, space="guide")
    theirs = losses.GISTEmbedLoss(model, other, temperature=1 / SCALE)
    for size in (None, 5):
        ours = loss_of(model, detector, guide=other, directions=directions, mini_batch_size=size)
        same(ours, theirs, model, texts)


def test_a_guide_leaves_what_it_reads_to_the_model(model, guide):
    """Models write into their features, which others read again."""
    loss = loss_of(model, guide=guide)
    features = [model.preprocess(column) for column in tiny_texts.texts(6, 0, 2)]
    before = [dict(each) for each in features]
    for size in (0, 4):
        loss.guide(features, size)
    assert [each.keys() for each in features] == [each.keys() for each in before]


@pytest.mark.parametrize("columns", [2, 4])
def test_a_gradient_cache_changes_nothing(model, columns):
    texts = tiny_texts.texts(11, 0, columns)
    detector = fn.AnyOf([SameText(), fn.RelativeToPositive(absolute_margin=0.05)])
    whole, cached = (loss_of(model, detector, "attract", directions=ALL, mini_batch_size=size) for size in (None, 4))
    same(cached, whole, model, texts)
    assert whole.skipped() == cached.skipped() and whole.skipped().flagged


@pytest.mark.parametrize("size", [None, 3])
def test_dropout_is_drawn_as_sentence_transformers_draws_it(tmp_path, size):
    model = tiny_texts.model_of(tmp_path, dropout=0.3).double().train()
    texts = tiny_texts.texts(8, 0, 3)
    if size:
        theirs = losses.CachedMultipleNegativesRankingLoss(model, scale=SCALE, mini_batch_size=size)
    else:
        theirs = multiple_negatives(model)
    same(loss_of(model, mini_batch_size=size), theirs, model, texts, seed=4)
    first, second = (value_and_gradient(theirs, model, texts, seed=seed)[0] for seed in (4, 5))
    assert abs(first - second) > 1e-3


@pytest.mark.parametrize("size", [None, 4])
def test_matryoshka_takes_it(model, size):
    texts = tiny_texts.texts(9, 0, 3)
    if size:
        inner = losses.CachedMultipleNegativesRankingLoss(model, scale=SCALE, mini_batch_size=size)
    else:
        inner = multiple_negatives(model)
    ours = loss_of(model, mini_batch_size=size)
    same(*(losses.MatryoshkaLoss(model, each, [16, 8]) for each in (ours, inner)), model, texts)


def by_hand(model, columns, drop, scale=SCALE):
    """The loss as a loop over queries and documents; drop(i, text column, j, cosine, positive's cosine)."""
    rows = [normalize(model(model.preprocess(column))["sentence_embedding"], dim=1) for column in columns]
    total, size, dropped = 0.0, len(rows[0]), 0
    for i in range(size):
        positive = rows[0][i] @ rows[1][i]
        terms = [scale * positive]
        for column in range(1, len(rows)):
            for j in range(size):
                cosine = rows[0][i] @ rows[column][j]
                if column == 1 and i == j:
                    continue
                if drop(i, column, j, float(cosine.detach()), float(positive.detach())):
                    dropped += 1
                else:
                    terms.append(scale * cosine)
        total = total - scale * positive + torch.stack(terms).logsumexp(0)
    return total / size, dropped


def test_the_mask_of_qwen3_embedding(model):
    """What scores above the positive by .1 is dropped."""
    texts = tiny_texts.texts(14, 1, 3)
    ours = loss_of(model, fn.RelativeToPositive(absolute_margin=-0.1))
    value, _ = value_and_gradient(ours, model, texts)
    expected, dropped = by_hand(model, texts, lambda i, column, j, cosine, positive: cosine > positive + 0.1)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-9, atol=0)
    assert ours.skipped().flagged == dropped > 0 and ours.skipped().negatives == 14 * 27


@pytest.mark.parametrize("side", ["left", "right"])
def test_equal_texts_are_no_negatives(model, side, monkeypatch):
    monkeypatch.setattr(model.tokenizer, "padding_side", side)
    query, document, hard = tiny_texts.texts(8, 2, 3)
    query[3], document[5], hard[1], hard[6] = query[0], document[2], document[4], document[6]
    hard[7] = "w1 w2 w3 w4 w5 w6 w7"  # so that each column is padded to another length
    texts = [query, document, hard]

    def equal(i, column, j, cosine, positive):
        return texts[column][j] == document[i] or (column == 1 and query[i] == query[j])

    ours = loss_of(model, SameText())
    value, _ = value_and_gradient(ours, model, texts)
    expected, dropped = by_hand(model, texts, equal)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-9, atol=0)
    assert ours.skipped().flagged == dropped == 6


def test_the_spaces_of_queries_and_of_documents(model):
    texts = tiny_texts.texts(10, 4, 3)
    rows = [normalize(model(model.preprocess(column))["sentence_embedding"], dim=1).detach() for column in texts]
    for space in ("query", "document"):

        def drop(i, column, j, cosine, positive, own=rows[space == "document"], space=space):
            other = rows[column][j] if space == "document" else rows[0][j] * (column == 1)
            return float(own[i] @ other) > 0.8

        ours = loss_of(model, fn.FixedThreshold(0.8, space=space))
        value, _ = value_and_gradient(ours, model, texts)
        expected, dropped = by_hand(model, texts, drop)
        torch.testing.assert_close(value, expected.detach(), rtol=1e-9, atol=0)
        assert ours.skipped().flagged == dropped > 0


def test_hard_negatives_alone_can_be_looked_at(model):
    texts = tiny_texts.texts(10, 4, 3)
    shares = {}
    for part in ("batch", "hard"):
        loss = loss_of(model, fn.BatchQuantile(0.3, part=part))
        value_and_gradient(loss, model, texts)
        shares[part] = loss.skipped().flagged
    assert shares == {"batch": 10 * math.ceil(0.3 * 9), "hard": 10 * 3}


@pytest.mark.parametrize("size", [None, 4])
def test_glofnd_keeps_a_threshold_for_each_pair(model, size):
    """The rows come as labels; in evaluation nothing is learned, flagged or counted."""
    detector = fn.GlobalThreshold(alpha=0.3)
    loss = loss_of(model, detector, pairs=20, mini_batch_size=size)
    labels = torch.tensor([19, 3, 5, 7, 0, 2])
    texts = tiny_texts.texts(6, 0, 3)
    value_and_gradient(loss, model, texts, labels)
    visits = detector.tables["query_to_doc"].own.visits
    assert visits.nonzero().flatten().tolist() == sorted(labels.tolist()) and loss.skipped().flagged > 0
    before = loss.skipped()
    with torch.no_grad():
        evaluated = loss([model.preprocess(column) for column in texts], torch.tensor([0, 1, 2, 3, 4, 99]))
        plain = multiple_negatives(model)([model.preprocess(column) for column in texts], None)
    torch.testing.assert_close(evaluated, plain, rtol=1e-9, atol=0)
    assert loss.skipped() == before and int(visits.sum()) == 6
    with pytest.raises(fn.UserError, match='give a column "label" with their rows'):
        loss([model.preprocess(column) for column in texts], None)
    with pytest.raises(fn.UserError, match="sample holds 20, but a data set of 20"):
        loss([model.preprocess(column) for column in texts], torch.tensor([0, 1, 2, 3, 4, 20]))
    with pytest.raises(fn.UserError, match='GlobalThreshold keeps something.*pairs.*a column "label"'):
        loss_of(model, fn.GlobalThreshold(alpha=0.3))


def test_evaluation_counts_nothing_and_flags_what_needs_no_state(model):
    texts = tiny_texts.texts(10, 4, 2)
    loss = loss_of(model, fn.RelativeToPositive(absolute_margin=0.1))
    trained, _ = value_and_gradient(loss, model, texts)
    before = loss.skipped()
    with torch.no_grad():
        torch.testing.assert_close(loss([model.preprocess(column) for column in texts]), trained)
    assert loss.skipped() == before


def test_a_detector_of_ones_own_is_told_whether_it_may_learn(model):
    class Learning(fn.Detector):
        def flag(self, contrast, clock):
            modes.append(self.training)
            return fn.NoPairs()

    modes, loss = [], loss_of(model, Learning())
    features = [model.preprocess(column) for column in tiny_texts.texts(4, 0, 2)]
    for learning in (True, False, True):
        with torch.set_grad_enabled(learning):
            loss(features)
    assert modes == [True, False, True]


@pytest.mark.parametrize("directions", [("query_to_doc",), ALL])
def test_a_single_pair_is_taken_as_sentence_transformers_takes_it(model, directions):
    """The last batch of an epoch may be one."""
    for columns in (2, 3):
        texts = tiny_texts.texts(1, 0, columns)
        ours = loss_of(model, fn.RelativeToPositive(absolute_margin=-0.1), directions=directions)
        theirs = multiple_negatives(model, directions=directions)
        got, expected = (value_and_gradient(loss, model, texts) for loss in (ours, theirs))
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_what_was_skipped_says_it_in_a_sentence(model):
    loss = loss_of(model, fn.FixedThreshold(-1.0))
    assert str(loss.skipped()) == "skipped 0 of 0 negatives (0.00%)"
    for _ in range(2):
        value_and_gradient(loss, model, tiny_texts.texts(40, 4, 2))
    assert loss.skipped() == (3120, 3120, 80, 80)
    assert str(loss.skipped()) == "skipped 3,120 of 3,120 negatives (100.00%); 80 of 80 anchors had no negative left"


@pytest.mark.parametrize(
    "how, words",
    [
        ({"scale": 0.0}, "scale is 0.0; give a number above 0"),
        ({"directions": ("query_to_docs",)}, "directions holds 'query_to_docs'; give a tuple of some of query_to_doc,"),
        ({"directions": "query_to_doc"}, "directions holds 'query_to_doc'; give a tuple"),
        ({"directions": ("doc_to_query",)}, "'query_to_doc' among them"),
        ({"directions": ()}, "'query_to_doc' among them"),
        ({"directions": ("query_to_doc", "query_to_doc")}, "give each once"),
        ({"partition_mode": "both"}, "partition_mode is 'both'"),
        ({"directions": ALL, "partition_mode": "per_direction"}, "doc_to_doc, query_to_query has no positive"),
        ({"hardness_mode": "hard_negatives"}, "hardness_mode is 'hard_negatives'; give 'all_negatives' or, where"),
        ({"hardness_mode": "all_negatives", "hardness_strength": -1.0}, "hardness_strength is -1.0; give a number"),
        ({"hardness_strength": 1.0}, "there is no hardness_mode; give 'all_negatives'"),
        ({"hardness_mode": "all_negatives", "objective": fn.InfoNCE()}, "leave one of the two out"),
        ({"hardness_mode": "all_negatives", "directions": BOTH}, "or partition_mode='per_direction'"),
        ({"mini_batch_size": 0}, "mini_batch_size is 0; give 1 or more"),
        ({"suspects": -1}, "suspects is -1; give 0 or more"),
        ({"strategy": "drop"}, "strategy is 'drop'"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(model, how, words):
    with pytest.raises(fn.UserError, match=words) as error:
        loss_of(model, **how)
    assert "\n" not in str(error.value)


def test_bad_calls_are_refused_in_one_sentence(model):
    texts = tiny_texts.texts(4, 0, 2)
    with pytest.raises(fn.UserError, match="has 1 text columns; give at least two"):
        loss_of(model)([model.preprocess(texts[0])])
    three = [model.preprocess(column) for column in tiny_texts.texts(4, 0, 3)]
    with pytest.raises(fn.UserError, match="has 1 columns of them; give 'all_negatives'"):
        loss_of(model, hardness_mode="in_batch_negatives", hardness_strength=1.0)(three)
    with pytest.raises(fn.UserError, match="there is no space 'guide'"):
        value_and_gradient(loss_of(model, fn.FixedThreshold(0.1, space="guide")), model, texts)
