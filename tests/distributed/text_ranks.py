"""What each of two gloo processes runs of text pairs, and one alone; a program of its own: text_ranks.py RANK FOLDER."""

import sys

import torch
import torch.distributed as dist
from torch.nn.functional import normalize

import falseneg as fn
from falseneg.methods.text_ranking import TextBatch, contrast_names, contrast_texts
from falseneg.statistics.gather import gather_rows, sum_over_ranks, world_size

PAIRS, COLUMNS, IN, DIM = 8, 3, 6, 4
SHARES = {"even": (4, 4), "uneven": (3, 5)}
CLOCK = fn.Clock(0, 1, 1)
ALL = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
DIRECTIONS = {
    "one": (("query_to_doc",), True),
    "each": (("query_to_doc", "doc_to_query"), False),
    "all": (ALL, True),
}
DETECTORS = {
    "none": fn.NoDetection,
    "guide": lambda: fn.RelativeToPositive(absolute_margin=0.1, space="guide"),
    "same text": lambda: fn.FixedThreshold(0.99, space="same text"),
    "glofnd": lambda: fn.GlobalThreshold(alpha=0.3),
}


def data():
    draw = torch.Generator().manual_seed(7)
    columns, guide = (torch.randn(COLUMNS, PAIRS, IN, generator=draw, dtype=torch.float64) for _ in range(2))
    code = torch.tensor([[0, 1, 2, 3, 4, 0, 6, 7], [8, 9, 10, 11, 12, 13, 14, 8], [15, 16, 8, 18, 19, 20, 21, 22]])
    return columns, guide, torch.tensor([3, 1, 4, 1, 5, 9, 2, 6]), torch.eye(23, dtype=torch.float64)[code]


def step(own, directions, detector):
    """Loss, gradient of a linear encoder, figures, and what GloFND learned, of the pairs of this rank."""
    columns, guide, sample, same = data()
    if detector != "glofnd":  # which keeps something for each pair, and has to know them
        sample = torch.where(sample > 3, -1, sample)
    weight = torch.randn(IN, DIM, generator=torch.Generator().manual_seed(5), dtype=torch.float64).requires_grad_()
    directions, jointly = DIRECTIONS[directions]
    criterion = fn.Criterion(DETECTORS[detector](), temperature=0.25)
    criterion.prepare(fn.Facts(rows=10, negatives=7, contrasts=contrast_names(directions, jointly)))
    rows, by_guide = ([normalize(each, dim=1) for each in some] for some in ((columns[:, own] @ weight), guide[:, own]))
    contrasts = contrast_texts(TextBatch(rows, sample[own], by_guide, list(same[:, own])), directions, jointly)
    loss, judged = criterion(contrasts, CLOCK)
    loss.backward()
    figures = torch.stack([torch.stack([stats.flagged.sum(), stats.count.sum()]) for *_, stats in judged])
    mean = gather_rows(torch.stack([loss.detach(), torch.zeros_like(loss.detach())])[:1]).mean()
    gradient = sum_over_ranks(weight.grad) / world_size()
    tables = [each for name, each in criterion.state_dict().items() if name.endswith("threshold")]
    return mean, gradient, sum_over_ranks(figures), *tables


def main(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for name, (first, _) in SHARES.items():
        own = slice(0, first) if rank == 0 else slice(first, PAIRS)
        found |= {(name, d, e): step(own, d, e) for d in DIRECTIONS for e in DETECTORS}
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
