"""Losses without the candidates of other ranks, by one of two gloo processes or alone: apart_ranks.py RANK FOLDER."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.distributed as dist
from distributed.moco_ranks import Plain, views_of
from torch import nn
from torch.nn.functional import normalize

import falseneg as fn
from falseneg.losses import Criterion
from falseneg.methods.text_ranking import TextBatch, contrast_texts
from falseneg.statistics.gather import formed, world_size

ROWS, PIXELS = 12, 6
SHARES = (slice(0, 3), slice(3, 8))
ROWS_OF_SECOND_STEP = views_of(1, slice(0, 8), 2, 2).index
CLOCK = fn.Clock(0, 1, 1)
DETECTORS = {
    "none": fn.NoDetection,
    "support set": lambda: fn.SupportSet(top_k=2),
    "components": fn.BatchComponents,
    "GloFND": lambda: fn.GlobalThreshold(alpha=0.3, initial=0.4),
}
METHODS = {
    "SimCLR": lambda: fn.SimCLR(Plain(), head_layers=1, head_dim=5, support_views=2),
    "MoCo": lambda: fn.MoCo(Plain(), head_layers=1, head_dim=5, bank=9, denominator="both", support_views=2),
}


def method_loss(images, method, detector, gathered):
    """The second of two steps, so that MoCo's bank is full of the first one's keys; that of the first has all of them."""
    method, criterion = METHODS[method]().double(), Criterion(DETECTORS[detector](), "attract")
    criterion.prepare(fn.Facts(ROWS, 4, contrasts=method.contrast_names))
    everyone = slice(0, 8)
    if isinstance(method, fn.MoCo):
        own = images if world_size() > 1 else everyone
        method.after_step(method.encode(views_of(0, own, 2, 2)), CLOCK)
    embeddings = method.encode(views_of(1, images, 2, 2))
    return method, criterion, criterion(formed(lambda: method.contrasts(embeddings), gathered), CLOCK)[0]


def rows_of(seed, *shape):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(8, *shape, generator=draw, dtype=torch.float64)


def views_loss(images, detector, gathered):
    encoder = nn.Linear(PIXELS, 5, dtype=torch.float64)
    criterion = fn.ContrastiveLoss(DETECTORS[detector](), images=ROWS, gather_across_devices=gathered)
    one, other, support = (encoder(rows_of(seed, PIXELS)[images]) for seed in range(3))
    sample = ROWS_OF_SECOND_STEP[images]
    return encoder, criterion, criterion(one, other, sample=sample, support=[support])


def pair_loss(images, gathered):
    encoder = nn.Linear(PIXELS, 5, dtype=torch.float64)
    detector = fn.RelativeToPositive(absolute_margin=0.1, space="guide")
    criterion = fn.PairLoss(detector, gather_across_devices=gathered)
    image, text, *guide = (rows_of(seed, PIXELS)[images] for seed in range(4))
    return encoder, criterion, criterion(encoder(image), encoder(text), 4.0, guide=(guide[0], guide[1]))


def text_loss(images, gathered):
    encoder, criterion = nn.Linear(PIXELS, 5, dtype=torch.float64), Criterion(fn.FixedThreshold(0.3), temperature=0.25)
    columns = [normalize(encoder(rows_of(seed, PIXELS)[images]), dim=1) for seed in range(3)]
    batch = TextBatch(columns, torch.full((len(columns[0]),), -1))
    contrasts = formed(lambda: contrast_texts(batch, ("query_to_doc", "doc_to_query")), gathered)
    return encoder, criterion, criterion(contrasts, CLOCK)[0]


CASES = {
    f"{method}, {detector}": (method_loss, method, detector)
    for method in METHODS
    for detector in DETECTORS
    if method == "SimCLR" or detector != "GloFND"  # a bank's rows are no gathered rows
} | {f"views, {detector}": (views_loss, detector) for detector in DETECTORS}
CASES |= {"pairs, guide": (pair_loss,), "texts": (text_loss,)}


def found(case, images, gathered=False):
    """Loss, gradients and what is kept of each image; over all ranks as DDP has them."""
    make, *which = CASES[case]
    torch.manual_seed(0)
    encoder, criterion, loss = make(images, *which, gathered)
    loss.backward()
    flat = [loss.detach()[None], *(each.grad.flatten() for each in encoder.parameters() if each.grad is not None)]
    flat = torch.cat(flat)
    if world_size() > 1:
        dist.all_reduce(flat)
        flat /= world_size()
    kept = {name: value for name, value in criterion.state_dict().items() if value.is_floating_point() and value.ndim}
    return flat, kept


def on_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {(case, gathered): found(case, SHARES[rank], gathered) for case in CASES for gathered in (False, True)}
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    on_rank(int(sys.argv[1]), sys.argv[2])
