"""MoCo v2, v3 and what lies between, against plain loops; and what its networks do."""

import copy

import catalogue
import pytest
import torch
from reference import moco_loops
from reference.loops import similarity
from torch import nn
from torch.nn.functional import normalize

import falseneg as fn
from falseneg.losses import Criterion
from falseneg.statistics.scan import columns_rule

CLOCK = fn.Clock(step=0, steps_per_epoch=10, epochs=1)
DIM, IMAGES = 6, 4
SAMPLE = torch.tensor([5, 3, 8, 9])
IN_BANK = torch.tensor([0, 3, 1, 3, 9, 2, 6])  # three old keys of the batch's own images among them


class Plain(nn.Module):
    """An encoder that counts its passes: 4 pixels x 4 pixels x 3 colours to 5 features."""

    feature_dim = 5

    def __init__(self, norm=False):
        super().__init__()
        self.layer, self.passes = nn.Linear(48, 5), []
        self.norm = nn.BatchNorm1d(5) if norm else nn.Identity()

    def forward(self, images):
        self.passes.append(len(images))
        return self.norm(self.layer(images.flatten(1).to(self.layer.weight.dtype) / 255))


def moco(norm=False, **options):
    torch.manual_seed(0)
    options = {"bank": 7, "head_layers": 1, "head_dim": DIM, **options}
    return fn.MoCo(Plain(norm), **options).double()


def passes(method):
    """Images in each pass of the main and of the momentum encoder since the last look."""
    encoders = method.encoder, method.momentum_network.network[0]
    seen = [list(encoder.passes) for encoder in encoders]
    for encoder in encoders:
        encoder.passes.clear()
    return seen


def made(method, support=0, seed=1):
    """Leaf queries and keys, support views or None, as `encode` would give them; and a bank that is filled."""
    queries, keys = (method.views, method.views) if method.symmetric else (1, method.views - 1)
    main = catalogue.unit(IMAGES, queries, DIM, seed=seed).requires_grad_()
    further = catalogue.unit(IMAGES, support, DIM, seed=seed + 2).requires_grad_() if support else None
    if method.bank is not None:
        method.bank.enqueue(fn.Embedded(catalogue.unit(len(IN_BANK), DIM, seed=seed + 3), IN_BANK))
    return catalogue.embeddings(main, further, SAMPLE, catalogue.unit(IMAGES, keys, DIM, seed=seed + 1))


def assert_same(loss, expected, leaf):
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=0)
    got, wanted = (torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in (loss, expected))
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


def test_moco_v2():
    method = moco(bank=40)
    embeddings = made(method)
    loss, _ = Criterion(temperature=0.25)(method.contrasts(embeddings), CLOCK)
    tau, total = torch.tensor(0.25, dtype=torch.float64), 0
    held = method.bank.contents()
    for query, key, sample in zip(
        embeddings.rows["image"][:, 0], embeddings.rows["keys"][:, 0], SAMPLE.tolist(), strict=True
    ):
        queue = [z for z, other in zip(held.z, held.sample.tolist(), strict=True) if other != sample]
        total = total + moco_loops.moco(query, key, queue, tau) / IMAGES
    assert_same(loss, total, embeddings.rows["image"])


def test_moco_v3():
    method = moco(prediction_layers=2, symmetric=True, bank=0, denominator="batch")
    embeddings = made(method)
    contrasts = method.contrasts(embeddings)
    assert [contrast.name for contrast in contrasts] == list(method.contrast_names) == ["view 1", "view 2"]
    loss, _ = Criterion(temperature=0.5)(contrasts, CLOCK)
    tau = torch.tensor(0.5, dtype=torch.float64)
    expected = moco_loops.moco_v3(*embeddings.rows["image"].unbind(1), *embeddings.rows["keys"].unbind(1), tau) / 2
    assert_same(loss, expected, embeddings.rows["image"])


class Above(fn.Detector):
    """Flags above a threshold, in one part of the candidates or in all."""

    def __init__(self, threshold, part):
        super().__init__()
        self.threshold, self.part = torch.tensor(threshold, dtype=torch.float64), part

    def flag(self, contrast, clock):
        return fn.AboveThreshold(self.threshold) & columns_rule(contrast, contrast.columns(self.part))


STRATEGIES = {name: catalogue.STRATEGIES[name] for name in ("eliminate-renormalised", "attract", "attract-outside")}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("part", [None, "batch", "bank"])
@pytest.mark.parametrize("denominator", ["both", "batch", "bank"])
@pytest.mark.parametrize(("views", "symmetric", "support"), [(2, False, 0), (3, False, 2), (2, True, 2), (3, True, 0)])
def test_denominators_and_where_the_detector_looks(views, symmetric, support, denominator, part, strategy):
    """Independent of each other: a flagged key outside the denominator is attracted and not pushed away."""
    threshold, wanted = -0.1, STRATEGIES[strategy]
    options = {"views": views, "symmetric": symmetric, "denominator": denominator}
    method = moco(**options, support_as_positives=support > 0)
    embeddings = made(method, support)
    detector = Above(threshold, part)
    loss, _ = Criterion(detector, wanted, temperature=0.25)(method.contrasts(embeddings), CLOCK)

    tau, total, held = torch.tensor(0.25, dtype=torch.float64), 0, method.bank.contents()
    bank = [("bank", int(sample), z) for sample, z in zip(held.sample, held.z, strict=True)]
    queries = list(range(views)) if symmetric else [0]
    keys = range(views) if symmetric else range(views - 1)

    def of_one(b, query, own, seen):
        batch = [
            ("batch", int(SAMPLE[image]), embeddings.rows["keys"][image, v]) for image in range(IMAGES) for v in seen
        ]
        positives = [similarity(query, embeddings.rows["keys"][b, v]) for v in own]
        others = [(p, similarity(query, z)) for p, sample, z in batch + bank if sample != int(SAMPLE[b])]
        negatives = [(s, part in (None, p) and s > threshold, denominator in ("both", p)) for p, s in others]
        return moco_loops.parted(positives, negatives, tau, wanted.positive, wanted.negative, wanted.renormalise)

    for b in range(IMAGES):
        for view in queries:
            own = [v for v in keys if not symmetric or v != view]
            # MoCo v3 compares with the other view only; with more views, all keys of all other images are candidates.
            seen = own if symmetric and views == 2 else keys
            total = total + of_one(b, embeddings.rows["image"][b, view if symmetric else 0], own, seen)
        for crop in range(support):  # a query like the views, whose positives are all keys of its image
            total = total + of_one(b, embeddings.rows["support"][b, crop], keys, keys)
    total = total / IMAGES / (len(queries) + support)
    leaves = embeddings.rows["image"] if not support else [embeddings.rows["image"], embeddings.rows["support"]]
    for leaf in [leaves] if not support else leaves:
        assert_same(loss, total, leaf)


def test_who_the_candidates_are():
    method = moco(views=3, symmetric=True)
    contrast = method.contrasts(made(method))[1]
    assert contrast.parts == {"batch": slice(0, 12), "bank": slice(12, 19)}
    assert contrast.candidates.sample.tolist() == [5] * 3 + [3] * 3 + [8] * 3 + [9] * 3 + IN_BANK.tolist()
    assert contrast.weight == pytest.approx(1 / 3) and not contrast.candidates.z.requires_grad


def test_own_old_keys_are_excluded_unless_they_are_kept():
    counts = []
    for keep in (False, True):
        method = moco(bank=4, keep_own_keys=keep, denominator="bank")
        for _ in range(2):  # the second time the bank holds the keys of the same images
            embeddings = made_without_bank(method)
            (contrast,) = method.contrasts(embeddings)
            stats = fn.negative_stats(contrast, torch.tensor(0.1), fn.NoPairs(), fn.IGNORE)
            method.after_step(embeddings, CLOCK)
        counts.append(stats.count.tolist())
        held = method.bank.contents()
        assert held.row.tolist() == SAMPLE.tolist()
        assert held.sample.tolist() == ([fn.NOBODY] * 4 if keep else SAMPLE.tolist())
    assert counts == [[3] * 4, [4] * 4]


def made_without_bank(method, support=0):
    bank, method.bank = method.bank, None
    embeddings = made(method, support)
    method.bank = bank
    return embeddings


@pytest.mark.parametrize("symmetric", [False, True])
def test_keys_enter_after_the_step_image_by_image(symmetric):
    method = moco(views=3, symmetric=symmetric, bank=30)
    embeddings = made_without_bank(method)
    first = method.contrasts(embeddings)[0]
    keys = 12 if symmetric else 8
    assert first.parts["bank"] == slice(keys, keys)
    before = first.candidates.z.clone()
    method.after_step(embeddings, CLOCK)
    held = method.bank.contents()
    assert torch.equal(held.z, embeddings.rows["keys"].flatten(0, 1))
    assert held.sample.tolist() == SAMPLE.repeat_interleave(3 if symmetric else 2).tolist()
    method.contrasts(embeddings)
    second = method.contrasts(embeddings)[0]
    method.after_step(embeddings, CLOCK)
    assert torch.equal(first.candidates.z, before), "what was compared is looked at after the step"
    assert len(second.candidates) == keys + len(held)
    assert int(method.bank.written) == 2 * len(held), "comparing stores nothing"


@pytest.mark.parametrize(
    "detector",
    [
        fn.SupportSet(top_k=3, part="bank"),
        fn.SupportSet(top_k=3, part="bank", distinct=True),
        fn.SupportSet(top_k=2, threshold=0.1, part="bank"),
        fn.BatchQuantile(alpha=0.2, part="bank"),
    ],
)
@pytest.mark.parametrize("strategy", [fn.ELIMINATE.renormalised(), fn.ATTRACT_OUTSIDE])
def test_the_bank_is_empty_at_first(detector, strategy):
    method = moco(support_views=2)
    embeddings = made_without_bank(method, support=2)
    for objective in (fn.InfoNCE(), fn.OwnDenominators(), fn.Decoupled()):
        loss, judged = Criterion(detector, strategy, objective)(method.contrasts(embeddings), CLOCK)
        (gradient,) = torch.autograd.grad(loss, embeddings.rows["image"])
        assert loss.isfinite() and gradient.isfinite().all() and int(judged[0][2].flagged.sum()) == 0


def images(count=IMAGES, views=2, support=(), seed=4):
    draw = torch.Generator().manual_seed(seed)
    groups = [torch.randint(0, 256, (count, n, 3, 4, 4), generator=draw, dtype=torch.uint8) for n in (views, *support)]
    return catalogue.batch(groups[0], tuple(groups[1:]), torch.arange(count))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("prediction", [0, 1])
def test_queries_and_keys(symmetric, prediction):
    method, batch = moco(symmetric=symmetric, prediction_layers=prediction, views=3), images(views=3)
    with torch.no_grad():  # so that the two networks differ
        method.head[0].weight.add_(0.1)
    found = method.encode(batch)
    assert passes(method) == ([[12], [12]] if symmetric else [[4], [8]])
    follower = method.momentum_network.network
    for b in range(IMAGES):
        for v in range(3) if symmetric else [0]:
            query = method.head(method.encoder(batch.streams["image"][b, v][None]))
            query = query if method.prediction is None else method.prediction(query)
            torch.testing.assert_close(found.rows["image"][b, v], normalize(query, dim=-1)[0])
        for place, v in enumerate(range(3) if symmetric else [1, 2]):
            torch.testing.assert_close(
                found.rows["keys"][b, place], normalize(follower(batch.streams["image"][b, v][None]), dim=-1)[0]
            )
    assert found.rows["image"].requires_grad and not found.rows["keys"].requires_grad


@pytest.mark.parametrize("from_main", [False, True])
@pytest.mark.parametrize("as_positives", [False, True])
def test_support_views(from_main, as_positives):
    """Which network scores the negatives has nothing to do with which one learns from the crops: always the main one.

    As positives they are queries of the keys of their image, and pass the prediction head as queries do.
    """
    method = moco(prediction_layers=1, support_views=5, support_from_main=from_main, support_as_positives=as_positives)
    batch = images(support=(2, 3))
    with torch.no_grad():
        method.head[0].weight.add_(0.1)
    found = method.encode(batch)
    main = [8, 12] * as_positives + [8, 12] * from_main
    assert passes(method) == [[4, *main], [4] + [8, 12] * (not from_main)]  # one pass for each group and network
    crops = [torch.cat([group[b] for group in batch.sizes("support")]) for b in range(IMAGES)]
    networks = nn.Sequential(method.encoder, method.head), method.momentum_network.network
    by_main, by_momentum = (normalize(torch.stack([network(c) for c in crops]), dim=-1) for network in networks)
    contrasts = method.contrasts(found)
    assert [contrast.name for contrast in contrasts] == list(method.contrast_names)
    for contrast, number in zip(contrasts, (1, 5), strict=False):
        space = contrast.spaces["support"]
        torch.testing.assert_close(space.queries, by_main if from_main else by_momentum)
        assert space.query_of.tolist() == torch.arange(4).repeat_interleave(number).tolist()
        assert space.candidates is contrast.candidates.z and not space.queries.requires_grad
        assert contrast.positives.shape == (4 * number, 1)
        assert contrast.weight == pytest.approx(number / (6 if as_positives else 1))
    if as_positives:
        queries = torch.stack([method.prediction(networks[0](c)) for c in crops])
        torch.testing.assert_close(contrasts[1].anchors.z.unflatten(0, (4, 5)), normalize(queries, dim=-1))
        assert contrasts[1].anchors.sample.tolist() == torch.arange(4).repeat_interleave(5).tolist()
        passes(method)
    assert found.rows["support"].requires_grad == as_positives
    passes(method)
    again = method.encode_again(batch)
    assert passes(method) == [[4, 8, 12] if as_positives else [4], []], "what has no gradient is not embedded again"
    torch.testing.assert_close(again.rows["image"], found.rows["image"])


def test_fnc_as_released_with_a_memory():
    """All views are queries, all their keys support set and positives; the denominator is the memory but the key itself."""
    views, k, threshold = 3, 4, 0.1
    options = {"views": views, "symmetric": True, "denominator": "both", "support_from_views": True}
    method = moco(**options, keep_own_keys=True, bank=9)
    embeddings = made_without_bank(method)
    old = catalogue.unit(9, DIM, seed=8)  # of the step before, the batch's own images among them: nobody knows
    method.bank.enqueue(fn.Embedded(old, torch.full((9,), fn.NOBODY), torch.arange(9)))
    loss, judged = Criterion(fn.SupportSet(top_k=k, threshold=threshold), fn.ATTRACT, temperature=0.25)(
        method.contrasts(embeddings), CLOCK
    )
    memory = [(b, v, embeddings.rows["keys"][b, v]) for b in range(IMAGES) for v in range(views)]
    memory += [(None, None, z) for z in old]
    total, flagged = 0, 0
    for b in range(IMAGES):
        scores = [
            max(float(similarity(embeddings.rows["keys"][b, v], z)) for v in range(views))
            if image != b
            else float("-inf")
            for image, _, z in memory
        ]
        best = sorted(range(len(memory)), key=lambda j: (-scores[j], j))[:k]
        false = [j for j in best if scores[j] > threshold]
        flagged += views * len(false)
        for v in range(views):
            cosines = [similarity(embeddings.rows["image"][b, v], z) for _, _, z in memory]
            own = memory.index(next(entry for entry in memory if entry[:2] == (b, v)))
            denominator = sum((s / 0.25).exp() for j, s in enumerate(cosines) if j != own)
            attracted = [j for j, (image, _, _) in enumerate(memory) if image == b and j != own] + false
            of_one = -sum(((cosines[j] / 0.25).exp() / denominator).log() for j in attracted) / len(attracted)
            total = total + of_one / IMAGES / views
    assert sum(int(stats.flagged.sum()) for _, _, stats in judged) == flagged > 0
    assert_same(loss, total, embeddings.rows["image"])


def test_the_released_form_has_no_further_support_views():
    with pytest.raises(fn.UserError, match="support_from_views needs the keys of all views; set symmetric to true"):
        moco(support_from_views=True)
    method = moco(support_from_views=True, symmetric=True)
    with pytest.raises(fn.UserError, match="support_from_views makes the main views the support set"):
        method.contrasts(made_without_bank(method, support=2))


class Batchwise(Plain):
    """An encoder that notes whose images it normalised together: of made-up images, the first pixel says who."""

    def __init__(self):
        super().__init__(norm=True)
        self.together = []

    def forward(self, images):
        self.together.append(sorted(set(images[:, 0, 0, 0].tolist())))
        return super().forward(images)


@pytest.mark.parametrize("groups", [0, 1, 3])
def test_keys_are_normalised_with_others_than_queries(groups):
    """MoCo, section 3.3; what comes out is each image's own key all the same."""
    torch.manual_seed(0)
    method = fn.MoCo(Batchwise(), bank=9, head_layers=1, head_dim=DIM, shuffle_groups=groups).double()
    batch = images(count=12)
    batch.streams["image"][:, :, 0, 0, 0] = torch.arange(12)[:, None]
    own = method.momentum_network.network[0]
    torch.manual_seed(5)
    found = method.encode(batch)
    queries, keys = method.encoder.together, own.together
    assert queries == ([list(range(12))] if groups < 2 else [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]])
    assert len(keys) == max(1, groups) and sorted(image for group in keys for image in group) == list(range(12))
    assert (keys != queries) == (groups == 3)
    whole = copy.deepcopy(method.momentum_network.network)
    for group in keys:
        expected = normalize(whole(batch.streams["image"][group, 1]), dim=-1)
        torch.testing.assert_close(found.rows["keys"][group, 0].sort(0).values, expected.sort(0).values)
    torch.manual_seed(6)
    method.encode(batch)
    assert groups < 3 or own.together[3:] != keys, "other groups in the next step"
    own.together.clear()
    method.eval()
    with torch.no_grad():
        method.embed(batch.streams["image"][:, 1])
    assert own.together == [list(range(12))]


def test_what_is_not_hidden_is_said():
    assert "positive key is normalised with the query's own batch" in moco(norm=True).caution()
    for hidden in ({"shuffle_groups": 2}, {"denominator": "batch"}):
        assert moco(norm=True, **hidden).caution() == ""
    assert moco(norm=True, shuffle_groups=1).caution(), "one process has no other ranks to shuffle with"
    assert moco().caution() == "", "nothing is normalised by its batch"
    for frozen in (True, False):
        encoder = fn.Encoder("resnet18", 32, arguments={"channels": [8, 8, 8, 8]}, frozen_batch_norm=frozen)
        method = fn.MoCo(encoder, bank=9)
        assert bool(method.caution()) != frozen
        assert method.momentum_network.network[0].backbone.bn1.training != frozen


def test_groups_of_at_least_two_images():
    moco(shuffle_groups=4).negatives(8)
    with pytest.raises(fn.UserError, match="shuffle_groups is 4, but a process sees 7 images .* so at most 3 groups"):
        moco(shuffle_groups=4).negatives(7)
    with pytest.raises(fn.UserError, match="shuffle_groups is -1; give at least 1, or 0 not to shuffle"):
        moco(shuffle_groups=-1)


def test_heads():
    kinds = [type(m) for m in moco(head_layers=2).head]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear], "MoCo v2 has no BatchNorm in its head"
    options = {"head_batch_norm": True, "head_last_batch_norm": True, "head_last_affine": False}
    head = moco(head_layers=2, **options).head
    assert [type(m) for m in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    assert head[1].affine and not head[4].affine and head[0].bias is None


@pytest.mark.parametrize("cosine", [False, True])
def test_momentum_weights_over_many_steps(cosine):
    method = moco(norm=True, momentum=0.9, cosine_momentum=cosine, head_layers=2)
    own = [p.tolist() for p in map(torch.Tensor.flatten, method.momentum_network.parameters())]
    draw = torch.Generator().manual_seed(3)
    for step in range(7):
        with torch.no_grad():
            for parameter in (*method.encoder.parameters(), *method.head.parameters()):
                parameter.add_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
        method.after_step(made_without_bank(method), fn.Clock(step, 4, 2))
        momentum = moco_loops.momentum_at(0.9, step, 8, cosine)
        main = [p.flatten().tolist() for p in (*method.encoder.parameters(), *method.head.parameters())]
        own = [
            [momentum * a + (1 - momentum) * b for a, b in zip(mine, theirs, strict=True)]
            for mine, theirs in zip(own, main, strict=True)
        ]
        for mine, parameter in zip(own, method.momentum_network.parameters(), strict=True):
            torch.testing.assert_close(
                parameter.flatten(), torch.tensor(mine, dtype=torch.float64), rtol=1e-12, atol=1e-14
            )


def test_batch_norm_of_the_momentum_network_is_its_own():
    """It begins as a copy, normalises by its own batch in training, and is not averaged."""
    method, batch = moco(norm=True, momentum=0.0), images()
    own, main = method.momentum_network.network[0].norm, method.encoder.norm
    torch.testing.assert_close(own.running_mean, main.running_mean)
    expected = copy.deepcopy(method.momentum_network).train()(batch.streams["image"][:, 1])
    found = method.encode(batch)
    torch.testing.assert_close(found.rows["keys"][:, 0], normalize(expected, dim=-1))
    means = own.running_mean.clone(), main.running_mean.clone()
    assert not torch.equal(*means) and int(own.num_batches_tracked) == int(main.num_batches_tracked) == 1
    method.after_step(found, CLOCK)
    assert torch.equal(own.running_mean, means[0]) and torch.equal(own.weight, main.weight)


def test_the_momentum_network_begins_as_a_copy():
    method = moco(norm=True, head_layers=3)
    main = nn.Sequential(method.encoder, method.head).state_dict()
    state = method.momentum_network.network.state_dict()
    assert main.keys() == state.keys()
    for name, value in main.items():
        assert torch.equal(state[name], value) and state[name].data_ptr() != value.data_ptr(), name


def test_the_momentum_network_is_not_trained_but_kept():
    method = moco(prediction_layers=1)
    trained = [name for name, parameter in method.named_parameters() if parameter.requires_grad]
    assert trained and not any("momentum" in name for name in trained)
    loss, _ = Criterion()(method.contrasts(method.encode(images())), CLOCK)
    loss.backward()
    without = [name for name, parameter in method.named_parameters() if parameter.grad is None]
    assert without == [name for name, _ in method.named_parameters() if name not in trained]
    assert {"momentum_network.network.0.layer.weight", "bank.z", "bank.sample", "bank.row", "bank.written"} <= set(
        method.state_dict()
    )


def test_what_is_embedded_is_seen_by_the_momentum_network():
    from falseneg.evaluation.features import evaluation_mode

    method = moco(norm=True)
    with torch.no_grad():
        method.head[0].weight.add_(0.1)
        method.momentum_network.network[0].norm.running_mean.add_(0.3)
    batch = images().streams["image"][:, 0]
    with evaluation_mode(method):
        found = method.embed(batch)
        expected = method.momentum_network.network(batch)
    torch.testing.assert_close(found, normalize(expected, dim=-1))
    assert not found.requires_grad and method.momentum_network.training


def test_weights_to_start_from():
    method = moco(norm=True, bank=9)
    method.after_step(made(method), CLOCK)
    with torch.no_grad():
        method.head[0].weight.add_(0.1)
        method.encoder.norm.running_mean.add_(0.3)
    method.after_loading()
    assert len(method.bank.contents()) == 0
    main = nn.Sequential(method.encoder, method.head).state_dict()
    for name, value in method.momentum_network.network.state_dict().items():
        assert torch.equal(value, main[name]), name


def test_negatives():
    assert moco(bank=100).negatives(32) == 31 + 100
    assert moco(bank=100, views=3, symmetric=True).negatives(32) == 3 * 31 + 100
    assert moco(bank=100, symmetric=True).negatives(32) == 31 + 100
    assert moco(bank=0, denominator="batch").negatives(32) == 31


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"momentum": 1.5}, "momentum is 1.5; give a number from 0 to 1"),
        ({"bank": -1}, "bank is -1"),
        ({"bank": 0}, "denominator is 'bank', but bank is 0; give a bank, or denominator 'batch'"),
        ({"denominator": "queue"}, "denominator is 'queue'; give one of both, bank, batch"),
        ({"views": 1}, "views is 1"),
        ({"support_views": -2}, "support_views is -2"),
        ({"prediction_layers": 4}, "layers is 4"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(fn.UserError, match=words) as error:
        moco(**options)
    assert "\n" not in str(error.value)


def test_refusals_of_a_step():
    method = moco(support_as_positives=True)
    with pytest.raises(fn.UserError, match="support_as_positives needs support views"):
        method.contrasts(made_without_bank(method))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bank", [0, 16])
def test_images_that_are_nobody_are_not_their_own_negatives(symmetric, bank):
    """Their keys in the bank exclude nothing later: an image that is nobody in the next step is another one."""
    losses = []
    for sample in (torch.arange(20, 24), torch.full((4,), -1)):
        method = moco(symmetric=symmetric, bank=bank, denominator="both" if bank else "batch")
        embeddings = made(method) if not bank else None
        if embeddings is None:
            queries, keys = (2, 2) if symmetric else (1, 1)
            embeddings = catalogue.embeddings(
                catalogue.unit(4, queries, DIM, seed=1), None, SAMPLE, catalogue.unit(4, keys, DIM, seed=2)
            )
        for step in range(2):
            now = fn.Embeddings(sample + 4 * step if sample[0] > 0 else sample, embeddings.rows)
            losses.append(Criterion()(method.contrasts(now), CLOCK)[0])
            method.after_step(now, CLOCK)
    assert losses[:2] == losses[2:]
