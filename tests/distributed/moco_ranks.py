"""MoCo over some steps, by one of two gloo processes or alone; a program of its own: moco_ranks.py RANK FOLDER."""

import sys

import torch
import torch.distributed as dist
from torch import nn

import falseneg as fn
from falseneg.losses import Criterion
from falseneg.statistics.gather import world_size

IMAGES, STEPS = 8, 4
SHARES = {"even": 8, "uneven": 7}  # images of a batch, dealt out in turn as `EpochSampler` does
METHODS = {
    "v2": {},
    "v3": {"symmetric": True, "prediction_layers": 1, "bank": 0, "denominator": "batch"},
    "both": {"symmetric": True, "views": 3, "bank": 31, "denominator": "both", "keep_own_keys": True},
    "released FNC": {
        **{"symmetric": True, "views": 3, "bank": 7, "denominator": "both", "keep_own_keys": True},
        **{"support_from_views": True, "shuffle_groups": 2},
    },
    "multi-crop": {"support_views": 2, "support_as_positives": True, "symmetric": True, "denominator": "both"},
    "support": {"support_views": 2, "support_as_positives": True, "support_from_main": True},
}


class Plain(nn.Module):
    feature_dim = 6

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 6)

    def forward(self, images):
        return self.layer(images.flatten(1).double() / 255)


def views_of(step, images, views, support):
    draw = torch.Generator().manual_seed(step)
    main = torch.randint(0, 256, (IMAGES, views, 3, 2, 2), generator=draw, dtype=torch.uint8)
    further = torch.randint(0, 256, (IMAGES, support, 3, 2, 2), generator=draw, dtype=torch.uint8)
    sample = torch.randperm(12, generator=draw)[:IMAGES]  # some images come again: their old keys are in the bank
    streams = {"image": main[images]} | ({"support": further[images]} if support else {})
    return fn.Batch(sample[images], streams)


def train(name, images):
    """Losses of some steps, and the state at the end."""
    torch.manual_seed(0)
    options = {"bank": 19, "head_layers": 1, "head_dim": 5, "momentum": 0.6, "cosine_momentum": True, **METHODS[name]}
    method = fn.MoCo(Plain(), **options).double()
    detector = (
        fn.SupportSet(top_k=3)
        if "support" in method.streams or method.support_from_views
        else fn.BatchQuantile(alpha=0.3)
    )
    criterion = Criterion(detector, fn.ATTRACT, temperature=0.25)
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimiser, losses = torch.optim.SGD(trained, lr=0.5), []
    for step in range(STEPS):
        views = views_of(step, images, method.views, method.streams.get("support", 0))
        clock = fn.Clock(step, STEPS, 1)
        embeddings = method.encode(views)
        loss, _ = criterion(method.contrasts(embeddings), clock)
        optimiser.zero_grad()
        loss.backward()
        losses.append(loss.detach().clone())
        for tensor in (losses[-1], *(parameter.grad for parameter in trained)) if world_size() > 1 else ():
            dist.all_reduce(tensor)  # as DDP does
            tensor /= world_size()
        optimiser.step()
        method.after_step(embeddings, clock)
    return {"losses": torch.stack(losses), **method.state_dict()}


def on_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {}
    for share, number in SHARES.items():
        for name in METHODS:
            results[share, name] = train(name, slice(rank, number, 2))
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    on_rank(int(sys.argv[1]), sys.argv[2])
