"""Image-text pairs over some steps, by one of several gloo processes or alone: pair_ranks.py RANK WORLD FOLDER."""

import sys

import torch
import torch.distributed as dist
from torch import nn

import falseneg as fn
from falseneg.losses import Criterion
from falseneg.methods.two_towers import TwoTowers
from falseneg.statistics.gather import world_size

PAIRS, STEPS, ROWS = 8, 4, 12
# Pairs of a batch that so many processes share, dealt out in turn as `EpochSampler` does: evenly, and not.
NUMBERS = {2: (7,), 3: (6, 8)}
OBJECTIVES = {
    "CLIP": lambda: (fn.InfoNCE(), fn.LearnedTemperature(0.25)),
    "SigLIP": lambda: (fn.Sigmoid(-2.0), fn.LearnedTemperature(0.25)),
    "v0": lambda: (
        fn.GlobalContrastive(0.6, relative=True, times_tau=False),
        fn.LearnedTemperature(0.25, step=fn.AdamStep(0.01)),
    ),
    "v1": lambda: (fn.GlobalContrastive(0.6, relative=True), fn.FixedTemperature(0.25)),
    "v2": lambda: (
        fn.GlobalContrastive(0.6, relative=True, rho=7.0),
        fn.IndividualTemperature(0.25, 0.01, step=fn.AdamStep(0.0133, 0.9, 0.999), clip=5.0),
    ),
    "v3": lambda: (
        fn.GlobalContrastive(0.6, relative=True, rho=6.5),
        fn.LearnedTemperature(0.25, step=fn.AdamStep(0.01), slower_below=0.24),
    ),
    "iSogCLR": lambda: (
        fn.GlobalContrastive(0.8, relative=True, rho=6.0, own_pair=True),
        fn.IndividualTemperature(0.25, 0.005, step=fn.GradientStep(0.03, 0.1), clip=5.0),
    ),
}
DETECTORS = {
    "none": (fn.NoDetection, "ignore"),
    "GloFND": (lambda: fn.GlobalThreshold(alpha=0.3, initial=0.4), "eliminate"),
    "support set": (lambda: fn.SupportSet(top_k=2), "attract"),
    "texts": (lambda: fn.BatchQuantile(0.3, space="text"), "eliminate-renormalised"),
    "relative": (lambda: fn.RelativeToPositive(absolute_margin=-0.1), "eliminate"),
}


class Towers(TwoTowers):
    def __init__(self):
        super().__init__(dim=5, support_views=2)
        self.encoder, self.text = nn.Linear(12, 5), nn.Linear(6, 5)

    def image_embeddings(self, images):
        return self.encoder(images.flatten(1).double() / 255)

    def text_embeddings(self, tokens):
        return self.text(tokens.double() / 9)


def batch_of(step, pairs):
    draw = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (PAIRS, 1, 3, 2, 2), generator=draw, dtype=torch.uint8)
    support = torch.randint(0, 256, (PAIRS, 2, 3, 2, 2), generator=draw, dtype=torch.uint8)
    texts = torch.randint(0, 9, (PAIRS, 1, 6), generator=draw)
    sample = torch.randperm(ROWS, generator=draw)[:PAIRS]
    return fn.Batch(sample[pairs], {"image": images[pairs], "support": support[pairs], "text": texts[pairs]})


def train(objective, detector, pairs):
    """Losses and gradients of some steps, and everything that is kept at the end."""
    torch.manual_seed(0)
    method, (made, strategy) = Towers().double(), DETECTORS[detector]
    loss_form, temperature = OBJECTIVES[objective]()
    criterion = Criterion(made(), strategy, loss_form, temperature)
    criterion.prepare(fn.Facts(ROWS, PAIRS - 1, contrasts=method.contrast_names))
    criterion.double()
    trained = [*method.parameters(), *criterion.parameters()]
    optimiser, kept = torch.optim.SGD(trained, lr=0.2), []
    for step in range(STEPS):
        clock = fn.Clock(step, STEPS, 1)
        embeddings = method.encode(batch_of(step, pairs))
        loss, _ = criterion(method.contrasts(embeddings), clock)
        optimiser.zero_grad()
        loss.backward()
        kept += [loss.detach().clone(), *(parameter.grad.double().clone() for parameter in trained)]
        for tensor in (kept[-1 - len(trained)], *(parameter.grad for parameter in trained)) if world_size() > 1 else ():
            dist.all_reduce(tensor)  # as DDP does
            tensor /= world_size()
        kept[-len(trained) :] = [parameter.grad.double().clone() for parameter in trained]
        temperature.after_backward(clock)
        optimiser.step()
    state = {key: value for part in (method, criterion) for key, value in part.state_dict().items()}
    return {"steps": torch.cat([each.flatten() for each in kept]), **state}


def on_rank(rank, world, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous{world}", rank=rank, world_size=world)
    results = {
        (number, objective, detector): train(objective, detector, slice(rank, number, world))
        for number in NUMBERS[world]
        for objective in OBJECTIVES
        for detector in DETECTORS
    }
    torch.save(results, f"{folder}/rank{rank}of{world}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    on_rank(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
