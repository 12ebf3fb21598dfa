"""Every method x objective x detector x strategy over some steps, by one of several gloo processes or alone.

A program of its own: all_ranks.py RANK WORLD FOLDER.
"""

import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.distributed as dist
from catalogue import STRATEGIES
from distributed.moco_ranks import Plain, views_of

import falseneg as fn
from falseneg.errors import UserError
from falseneg.losses import Criterion
from falseneg.statistics.gather import world_size

IMAGES, STEPS, ROWS = 7, 2, 12  # seven images are dealt out unevenly to two, three and four processes
METHODS = {
    "SimCLR": lambda: fn.SimCLR(Plain(), head_layers=1, head_dim=5, support_views=2),
    "SimCLR, multi-crop": lambda: fn.SimCLR(
        Plain(), head_layers=1, head_dim=5, support_views=2, support_as_positives=True
    ),
    "MoCo": lambda: moco(bank=19, support_views=2),
    "MoCo, own keys": lambda: moco(
        symmetric=True, views=3, bank=31, denominator="both", keep_own_keys=True, support_views=2
    ),
    "MoCo v3": lambda: moco(symmetric=True, prediction_layers=1, bank=0, denominator="batch", support_views=2),
}
OBJECTIVES = {
    "InfoNCE": lambda: (fn.InfoNCE(), fn.LearnedTemperature(0.25)),
    "OwnDenominators": lambda: (fn.OwnDenominators(), fn.FixedTemperature(0.25)),
    "Decoupled": lambda: (fn.Decoupled(), fn.FixedTemperature(0.25)),
    "Debiased": lambda: (fn.Debiased(0.1), fn.FixedTemperature(0.25)),
    "HardNegatives": lambda: (fn.HardNegatives(1.5, 0.1), fn.FixedTemperature(0.25)),
    "SogCLR": lambda: (fn.GlobalContrastive(0.6), fn.FixedTemperature(0.25)),
    "iSogCLR": lambda: (
        fn.GlobalContrastive(0.6, rho=0.3),
        fn.IndividualTemperature(0.25, 0.005, step=fn.GradientStep(0.03, 0.1), clip=5.0),
    ),
}
DETECTORS = {
    "none": fn.NoDetection,
    "support, top k": lambda: fn.SupportSet(top_k=2),
    "support, threshold": lambda: fn.SupportSet(threshold=0.5),
    "GloFND": lambda: fn.GlobalThreshold(alpha=0.3, initial=0.4),
    "batch quantile": lambda: fn.BatchQuantile(0.3),
    "fixed threshold": lambda: fn.FixedThreshold(0.6),
    "components": fn.BatchComponents,
    "relative": lambda: fn.RelativeToPositive(absolute_margin=-0.1),
    "true labels": fn.Oracle,
    "any of": lambda: fn.AnyOf([fn.Oracle(), fn.BatchQuantile(0.2)]),
    "tiers": lambda: Tiered(),
}


class Tiered(fn.Detector):
    """Attract by label, eliminate the nearest."""

    def __init__(self):
        super().__init__()
        self.inside = fn.Oracle()

    def prepare(self, facts):
        self.inside.prepare(facts)

    def flag(self, contrast, clock):
        found = self.inside.flag(contrast, clock)
        return fn.Tiers(
            ((found, fn.ATTRACT), (fn.AboveThreshold(torch.tensor(0.5, dtype=torch.float64)), fn.ELIMINATE))
        )


def moco(**options):
    usual = {"head_layers": 1, "head_dim": 5, "momentum": 0.6, "cosine_momentum": True}
    return fn.MoCo(Plain(), **{**usual, **options})


def combinations(every=False):
    """All of them, or a quarter in which each method, objective and detector meets each strategy."""
    names = list(STRATEGIES)
    for case in itertools.product(
        enumerate(METHODS), enumerate(OBJECTIVES), enumerate(DETECTORS), enumerate(STRATEGIES)
    ):
        numbers, named = zip(*case, strict=True)
        if every or (sum(numbers[:3]) - numbers[3]) % (len(names) // 2) == 0:
            yield named


def train(case, images):
    """Losses and gradients of some steps and all that is kept at the end; or why it is refused."""
    of_method, of_objective, of_detector, of_strategy = case
    torch.manual_seed(0)
    method, (objective, temperature) = METHODS[of_method]().double(), OBJECTIVES[of_objective]()
    labels = torch.arange(ROWS) % 4
    try:
        criterion = Criterion(DETECTORS[of_detector](), STRATEGIES[of_strategy], objective, temperature)
        criterion.prepare(fn.Facts(ROWS, IMAGES - 1, labels, contrasts=method.contrast_names))
    except UserError as error:
        return {"refused": str(error)}
    criterion.double()
    trained = [each for each in (*method.parameters(), *criterion.parameters()) if each.requires_grad]
    optimiser, kept = torch.optim.SGD(trained, lr=0.2), []
    for step in range(STEPS):
        views = views_of(step, images, getattr(method, "views", 2), method.streams["support"])
        clock = fn.Clock(step, STEPS, 1)
        embeddings = method.encode(views)
        loss, _ = criterion(method.contrasts(embeddings), clock)
        optimiser.zero_grad()
        loss.backward()
        found = [loss.detach().clone()]
        found += [torch.zeros_like(each) if each.grad is None else each.grad for each in trained]
        flat = torch.cat([each.flatten() for each in found])
        if world_size() > 1:  # as DDP does
            dist.all_reduce(flat)
            flat /= world_size()
        for each, part in zip(trained, flat[1:].split([each.numel() for each in trained]), strict=True):
            each.grad = part.view_as(each).clone()
        kept.append(flat)
        temperature.after_backward(clock)
        optimiser.step()
        method.after_step(embeddings, clock)
    state = {
        f"{k} {key}": value for k, part in enumerate((method, criterion)) for key, value in part.state_dict().items()
    }
    return {"steps": torch.cat(kept), **state}


def on_rank(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous{world}", rank=rank, world_size=world)
    results = {case: train(case, slice(rank, IMAGES, world)) for case in combinations()}
    torch.save(results, f"{folder}/rank{rank}of{world}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    on_rank(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
