"""What each of two gloo processes runs, and one alone; a program of its own: two_ranks.py RANK FOLDER."""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import normalize

import falseneg as fn
from falseneg import clustering
from falseneg.methods.simclr import contrast_views
from falseneg.statistics.gather import _reduce_scatter, gather_rows, world_size

IMAGES, VIEWS, SUPPORT, PIXELS, DIM = 8, 2, 3, 7, 5
SHARES = {"even": (4, 4), "uneven": (3, 5)}
CLOCK = fn.Clock(0, 1, 1)


def data():
    draw = torch.Generator().manual_seed(11)
    main = torch.randn(IMAGES, VIEWS, PIXELS, generator=draw, dtype=torch.float64)
    support = torch.randn(IMAGES, SUPPORT, PIXELS, generator=draw, dtype=torch.float64)
    return main, support, torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])  # sample 1 twice: once on each rank when uneven


LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])


class Levels(fn.Detector):
    def flag(self, contrast, clock):
        return fn.AboveThreshold(torch.tensor(0.2)), fn.NoPairs()


def clusters():
    """Made over all ranks: the first one moves the centroids, and each assigns a part of the images, three at a time."""
    detector = fn.IncrementalClusters([4, 2], warmup="0%", acceptance=0.8)
    detector.prepare(fn.Facts(rows=10, negatives=14))
    points = torch.randn(10, DIM, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    at_once, clustering.MOST_AT_ONCE = clustering.MOST_AT_ONCE, 3
    detector.start_epoch(lambda *_: normalize(points, dim=1), CLOCK)
    clustering.MOST_AT_ONCE = at_once
    return detector


def prepared(part):
    part.prepare(fn.Facts(rows=10, negatives=14))
    return part


DETECTORS = {
    "none": fn.NoDetection,
    "clusters": clusters,
    "support top-k": lambda: fn.SupportSet(top_k=3),
    "support threshold": lambda: fn.SupportSet(threshold=0.3),
    "support mean, distinct": lambda: fn.SupportSet(top_k=2, mean=True, distinct=True),
    "fixed threshold": lambda: fn.FixedThreshold(0.1),
    "batch quantile": lambda: fn.BatchQuantile(alpha=0.3),
    "oracle": lambda: fn.Oracle(LABELS),
    "both": lambda: fn.AllOf([fn.Oracle(LABELS), fn.FixedThreshold(0.0)]),
    "levels": Levels,
    "global threshold": lambda: prepared(fn.GlobalThreshold(alpha=0.3)),
    "components": fn.BatchComponents,
    "relative to positive": lambda: fn.RelativeToPositive(absolute_margin=0.2),
}
STRATEGIES = {"eliminate": fn.ELIMINATE.renormalised(), "attract": fn.ATTRACT, "attract-outside": fn.ATTRACT_OUTSIDE}
OBJECTIVES = {
    "InfoNCE": fn.InfoNCE,
    "OwnDenominators": fn.OwnDenominators,
    "Decoupled": fn.Decoupled,
    "GlobalContrastive": lambda: prepared(fn.GlobalContrastive()),
    "Debiased": lambda: fn.Debiased(0.1),
    "HardNegatives": lambda: fn.HardNegatives(1.5, 0.1),
}


def step(images, detector, strategy, objective):
    """The loss of these images of the batch, and the gradients of the encoder and the temperature."""
    torch.manual_seed(0)
    encoder = nn.Linear(PIXELS, DIM, dtype=torch.float64)
    temperature = fn.LearnedTemperature(0.3).double()
    main, support, sample = (tensor[images] for tensor in data())
    criterion = fn.Criterion(DETECTORS[detector](), STRATEGIES[strategy], OBJECTIVES[objective](), temperature)
    with torch.no_grad():
        queries = normalize(encoder(support), dim=-1)
    embeddings = fn.Embeddings(sample, {"image": normalize(encoder(main), dim=-1), "support": queries})
    loss, _ = criterion([contrast_views(embeddings)], CLOCK)
    loss.backward()
    return averaged(loss, [encoder.weight, encoder.bias, temperature.log_tau])


FORMS = {
    "multi-crop": {"support_views": SUPPORT, "support_as_positives": True},
    "released FNC": {"support_from_views": True},
}


def simclr_step(images, form):
    """The loss of these images with a support set among the positives, and the gradients of encoder and head."""
    torch.manual_seed(0)
    encoder = nn.Linear(PIXELS, DIM)
    encoder.feature_dim = DIM
    method = fn.SimCLR(encoder, head_layers=1, head_dim=DIM, **FORMS[form]).double().eval()
    main, support, sample = (tensor[images] for tensor in data())
    sizes = {"support": support[:, :1], "support 2": support[:, 1:]} if "support" in method.streams else {}
    views = fn.Batch(sample, {"image": main, **sizes})
    criterion = fn.Criterion(fn.SupportSet(top_k=3), fn.ATTRACT, temperature=0.3)
    loss, _ = criterion(method.contrasts(method.encode(views)), CLOCK)
    loss.backward()
    return averaged(loss, method.parameters())


def averaged(loss, parameters):
    """The loss and the gradients, over all ranks."""
    gradients = [p.grad for p in parameters]
    loss = loss.detach().clone()
    if world_size() > 1:  # as DDP does
        for tensor in (loss, *gradients):
            dist.all_reduce(tensor)
            tensor /= world_size()
    return [loss, *gradients]


def table_after_writes(rows):
    """Two writes of the given entries of a fixed list into a table."""
    table = fn.SampleTable(6, {"u": 0.0})
    row, value = torch.tensor([0, 1, 1, 2, 2, 2, 5, 4]), torch.arange(8.0)
    for _ in range(2):
        table.write(row[rows], {"u": value[rows] + table.read("u", row[rows])})
    return [table.read("u", torch.arange(6)), table.visits]


GLOBAL = {
    "each": {},
    "from one": {"initial": 1.0, "step": fn.GradientStep(0.5)},
    "shared": {"shared": True},
    "shared first": {"shared_until": "2 steps"},
}


def global_steps(images, options):
    """GloFND, SogCLR and iSogCLR over some steps: losses, gradients, what was flagged, and all that is kept at the end.

    Filtering starts with the second step; sample 1 is seen by both ranks when they share unevenly.
    """
    detector = fn.GlobalThreshold(alpha=0.3, start="1 steps", **options)
    temperature = fn.IndividualTemperature(0.2, step=fn.AdamStep(0.02))
    criterion = prepared(fn.Criterion(detector, fn.ELIMINATE, fn.GlobalContrastive(0.6, rho=0.3), temperature))
    main, _, sample = (tensor[images] for tensor in data())
    found = []
    for number in range(4):
        clock = fn.Clock(number, 10, 1)
        z = normalize(main[..., :DIM] + 0.3 * number, dim=-1).requires_grad_()
        loss, judged = criterion([contrast_views(fn.Embeddings(sample, {"image": z}))], clock)
        loss.backward()
        temperature.after_backward(clock)
        contrast, rule, _ = judged[0]
        counts = torch.stack(list(vars(fn.confusion(contrast, rule, LABELS)).values()))
        total = torch.cat([loss.detach()[None] / world_size(), counts])
        gradient = torch.zeros(IMAGES, *z.shape[1:], dtype=torch.float64)
        gradient[images] = z.grad / world_size()
        if world_size() > 1:
            dist.all_reduce(total)
            dist.all_reduce(gradient)
        found += [total, gradient]
    return [*found, *criterion.state_dict().values()]


def second_derivative(images):
    """Of the squared length of the gradient, with respect to the views of these images."""
    main, _, _ = data()
    views = [main[images, view].clone().requires_grad_() for view in range(2)]
    sample = torch.arange(IMAGES)[images]
    loss = fn.ContrastiveLoss(temperature=0.5)(*views, sample=sample)
    first = torch.autograd.grad(loss, views, create_graph=True)
    length = sum((gradient**2).sum() for gradient in first)
    return torch.stack(torch.autograd.grad(length, views), dim=1)


def on_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {}
    for name, (first, _) in SHARES.items():
        images = slice(0, first) if rank == 0 else slice(first, IMAGES)
        for detector in DETECTORS:
            for strategy in STRATEGIES:
                results[name, detector, strategy, "InfoNCE"] = step(images, detector, strategy, "InfoNCE")
        for objective in OBJECTIVES:
            results[name, "support top-k", "attract", objective] = step(images, "support top-k", "attract", objective)
        for form in FORMS:
            results[name, form] = simclr_step(images, form)
        results[name, "table"] = table_after_writes(images)
        for form, options in GLOBAL.items():
            results[name, "global", form] = global_steps(images, options)
    rows = torch.arange(3 + 2 * rank, dtype=torch.float64).requires_grad_()
    everyone = gather_rows(rows)
    (everyone * torch.arange(8.0, dtype=torch.float64) * (rank + 1)).sum().backward()
    results["gather"] = [everyone.detach(), rows.grad]
    asked = torch.arange(16, dtype=torch.float64).view(8, 2) * (rank + 1)
    results["reduce-scatter"] = [_reduce_scatter(asked, [3, 5])]
    results["second"] = [second_derivative(slice(0, 3) if rank == 0 else slice(3, IMAGES))]
    # Each rank numbers its own images when the caller names none: they must not be taken for the other rank's.
    main, _, _ = (tensor[slice(0, 3) if rank == 0 else slice(3, IMAGES)] for tensor in data())
    results["criterion"] = [fn.ContrastiveLoss()(main[:, 0], main[:, 1])]
    dist.all_reduce(results["criterion"][0])
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    on_rank(int(sys.argv[1]), sys.argv[2])
