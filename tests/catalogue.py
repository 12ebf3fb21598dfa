"""The lists whose product is tested: rules x strategies x objectives, on tiny shapes."""

from functools import partial

import torch
from reference import baseline_loops, global_loops, loops
from torch.nn.functional import normalize

import falseneg as fn

STRATEGIES = {
    "ignore": fn.IGNORE,
    "eliminate": fn.ELIMINATE,
    "eliminate-renormalised": fn.ELIMINATE.renormalised(),
    "attract": fn.ATTRACT,
    "attract-renormalised": fn.ATTRACT.renormalised(),
    "attract-outside": fn.ATTRACT_OUTSIDE,
    "attract-outside-renormalised": fn.ATTRACT_OUTSIDE.renormalised(),
    "half": fn.Strategy(0.5, 0.25, True),
}
OBJECTIVES = {
    "InfoNCE": fn.InfoNCE(),
    "OwnDenominators": fn.OwnDenominators(),
    "Decoupled": fn.Decoupled(),
    "Debiased": fn.Debiased(0.1),
    "HardNegatives": fn.HardNegatives(1.5, 0.1),
    "GlobalContrastive": fn.GlobalContrastive(epsilon=0.5, rho=0.3),
}
OBJECTIVES["GlobalContrastive"].prepare(
    fn.Facts(rows=10, negatives=10)
)  # it is not told what is seen: each time the first
# One anchor's loss: (s_pos, s_neg, flagged, tau, positive, negative, renormalise).
LOOPS = {name: partial(loops.objective, name) for name in ("InfoNCE", "OwnDenominators", "Decoupled")}
LOOPS["GlobalContrastive"] = partial(global_loops.at_first_sight, rho=0.3, epsilon=0.5)
LOOPS["Debiased"] = partial(baseline_loops.loss, partial(baseline_loops.debiased, prior=0.1))
LOOPS["HardNegatives"] = partial(baseline_loops.loss, partial(baseline_loops.hard_negatives, prior=0.1, beta=1.5))


def batch(main, support=(), index=None):
    """A batch of main views, with groups of support views of one size each."""
    names = [f"support {k + 1}" if k else "support" for k in range(len(support))]
    index = torch.arange(len(main)) if index is None else index
    return fn.Batch(index, {"image": main, **dict(zip(names, support, strict=True))})


def embeddings(main, support=None, index=None, keys=None):
    rows = {"image": main, "support": support, "keys": keys}
    return fn.Embeddings(index, {name: given for name, given in rows.items() if given is not None})


def unit(*shape, seed, dtype=torch.float64):
    return normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1
    ).to(dtype)


def make(kind, seed=0, dtype=torch.float64):
    """Leaf rows of anchors and candidates, and the contrast's parts, of one tiny case.

    batch: 5 images x 2 views against themselves. bank: 4 anchors against 11 old keys, one its own, one of nobody,
    3 positives. alone: an anchor without any negatives among others.
    """
    if kind == "batch":
        z = unit(10, 6, seed=seed, dtype=dtype).requires_grad_()
        sample = torch.arange(5).repeat_interleave(2)
        return z, None, sample, sample, 1
    if kind == "bank":
        z = unit(4, 6, seed=seed, dtype=dtype).requires_grad_()
        bank = unit(11, 6, seed=seed + 1, dtype=dtype).requires_grad_()
        return z, bank, torch.tensor([7, 8, 9, -1]), torch.tensor([0, 1, 2, 7, 8, -1, 3, 3, 4, 5, 9]), 3
    z = unit(3, 6, seed=seed, dtype=dtype).requires_grad_()
    bank = unit(2, 6, seed=seed + 1, dtype=dtype).requires_grad_()
    return z, bank, torch.tensor([0, 1, 2]), torch.tensor([0, 0]), 1


def contrast_of(kind, seed=0, dtype=torch.float64):
    """The contrast of such a case, and its leaves (anchors, candidates or None, positive rows)."""
    z, bank, of_anchor, of_candidate, positives = make(kind, seed, dtype)
    key = unit(len(z), positives, z.shape[1], seed=seed + 2, dtype=dtype).requires_grad_()
    anchors = fn.Embedded(z, of_anchor, None if kind == "batch" else of_anchor.clamp(min=0))
    candidates = anchors if bank is None else fn.Embedded(bank, of_candidate)
    images = torch.arange(len(z)) // (2 if kind == "batch" else 1)
    support = unit(int(images.max()) + 1, 3, 5, seed=seed + 3, dtype=dtype)
    space = fn.Space(support, images, unit(len(candidates), 5, seed=seed + 4, dtype=dtype))
    cosines = (z[:, None] * key).sum(2)
    half = len(candidates) // 2
    parts = {"first": slice(0, half), "second": slice(half, len(candidates))}
    return fn.Contrast("views", anchors, candidates, cosines, {"support": space}, parts), (z, bank, key)


def temperature(kind):
    """One temperature for all in a batch, one for each anchor elsewhere."""
    if kind == "batch":
        return torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    count = {"bank": 4, "alone": 3}[kind]
    return torch.linspace(0.2, 0.6, count, dtype=torch.float64).requires_grad_()


def values_and_gradients(losses, leaves):
    weights = torch.linspace(0.5, 1.5, len(losses), dtype=losses.dtype)
    return [losses.detach(), *torch.autograd.grad((losses * weights).sum(), leaves, allow_unused=True)]


def rules(contrast):
    """Every rule of the closed set, and combinations, for a contrast."""
    n, m = len(contrast.anchors), len(contrast.candidates)
    draw = torch.Generator().manual_seed(5)
    threshold = torch.rand(n, generator=draw, dtype=contrast.anchors.z.dtype) * 0.6 - 0.3
    groups = fn.SameGroup(torch.randint(-1, 3, (n, 2), generator=draw), torch.randint(-1, 3, (m, 2), generator=draw))
    above = fn.AboveThreshold(threshold)
    in_space = fn.AboveThreshold(threshold, contrast.spaces["support"])
    listed = fn.top_k(contrast, min(3, m), contrast.spaces["support"])
    everything = fn.AboveThreshold(torch.tensor(-2.0, dtype=threshold.dtype))
    return {
        "none": fn.NoPairs(),
        "above": above,
        "above-in-space": in_space,
        "groups": groups,
        "one-grouping": fn.SameGroup(groups.anchor[:, :1], groups.candidate[:, 1:]),
        "large-numbers": fn.SameGroup(groups.anchor[:, :1] + 2**24, groups.candidate[:, 1:] + 2**24),
        "listed": listed,
        "both": above & listed,
        "either": groups | in_space,
        "everything": everything,
    }


def tiers(contrast):
    """Tiers of every kind: overlapping rules, all weights, a strategy of the run, nothing and everything flagged."""
    of = rules(contrast)
    return {
        "attract-eliminate": fn.Tiers(((of["above"], fn.ATTRACT), (of["groups"], fn.ELIMINATE))),
        "three": fn.Tiers(
            (
                (of["one-grouping"], fn.ATTRACT_OUTSIDE),
                (of["above-in-space"], fn.Strategy(0.5, 0.25, True)),
                (of["either"], fn.Strategy(0, 0.5)),
            )
        ),
        "renormalised": fn.Tiers(((of["listed"], fn.ELIMINATE.renormalised()), (of["groups"], fn.ELIMINATE))),
        "of-the-run": fn.Tiers(((of["listed"], None), (of["above"], fn.ATTRACT))),
        "one": fn.Tiers(((of["groups"], fn.ATTRACT_OUTSIDE),)),
        "one-within-another": fn.Tiers(((of["groups"], fn.IGNORE), (of["one-grouping"], fn.ELIMINATE))),
        "none": fn.Tiers(((of["none"], fn.ATTRACT), (of["none"], fn.ELIMINATE))),
        "everything": fn.Tiers(((of["above"], fn.ATTRACT_OUTSIDE), (of["everything"], fn.ELIMINATE.renormalised()))),
    }
