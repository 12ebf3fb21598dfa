"""What each of two gloo processes runs, and one alone; a program of its own: two_ranks.py RANK FOLDER."""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import normalize

import falseneg as fn
from falseneg.methods.simclr import contrast_views
from falseneg.statistics.gather import gather_rows, world_size

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


DETECTORS = {
    "none": fn.NoDetection,
    "support top-k": lambda: fn.SupportSet(top_k=3),
    "support threshold": lambda: fn.SupportSet(threshold=0.3),
    "support mean, distinct": lambda: fn.SupportSet(top_k=2, mean=True, distinct=True),
    "fixed threshold": lambda: fn.FixedThreshold(0.1),
    "batch quantile": lambda: fn.BatchQuantile(alpha=0.3),
    "oracle": lambda: fn.Oracle(LABELS),
    "both": lambda: fn.AllOf([fn.Oracle(LABELS), fn.FixedThreshold(0.0)]),
    "levels": Levels,
}
STRATEGIES = {"eliminate": fn.ELIMINATE.renormalised(), "attract": fn.ATTRACT, "attract-outside": fn.ATTRACT_OUTSIDE}
OBJECTIVES = {"InfoNCE": fn.InfoNCE, "OwnDenominators": fn.OwnDenominators, "Decoupled": fn.Decoupled}


def step(images, detector, strategy, objective):
    """The loss of these images of the batch, and the gradients of the encoder and the temperature."""
    torch.manual_seed(0)
    encoder = nn.Linear(PIXELS, DIM, dtype=torch.float64)
    temperature = fn.LearnedTemperature(0.3).double()
    main, support, sample = (tensor[images] for tensor in data())
    criterion = fn.Criterion(DETECTORS[detector](), STRATEGIES[strategy], OBJECTIVES[objective](), temperature)
    with torch.no_grad():
        queries = normalize(encoder(support), dim=-1)
    embeddings = fn.Embeddings(normalize(encoder(main), dim=-1), queries, sample)
    loss, _ = criterion([contrast_views(embeddings)], CLOCK)
    loss.backward()
    gradients = [p.grad for p in (encoder.weight, encoder.bias, temperature.log_tau)]
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
        results[name, "table"] = table_after_writes(images)
    rows = torch.arange(3 + 2 * rank, dtype=torch.float64).requires_grad_()
    everyone = gather_rows(rows)
    (everyone * torch.arange(8.0, dtype=torch.float64) * (rank + 1)).sum().backward()
    results["gather"] = [everyone.detach(), rows.grad]
    # Each rank numbers its own images when the caller names none: they must not be taken for the other rank's.
    main, _, _ = (tensor[slice(0, 3) if rank == 0 else slice(3, IMAGES)] for tensor in data())
    results["criterion"] = [fn.ContrastiveLoss()(main[:, 0], main[:, 1])]
    dist.all_reduce(results["criterion"][0])
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    on_rank(int(sys.argv[1]), sys.argv[2])
