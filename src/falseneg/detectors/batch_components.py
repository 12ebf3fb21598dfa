"""Images that hang together in the batch's graph of nearest neighbours: WCL."""

from __future__ import annotations

import torch
from torch import Tensor

from falseneg.clock import Clock
from falseneg.contrast import NOBODY, Contrast
from falseneg.detectors.base import Detector
from falseneg.rules import NoPairs, PairRule, SameGroup, at_least_float32
from falseneg.statistics.gather import from_first_rank

AT_ONCE = 1024
"""Images whose nearest neighbours are looked for at a time: the matrix of the batch is never whole."""


class BatchComponents(Detector):
    """Flags the negatives in the anchor's connected component, as in WCL (Zheng et al. 2021, arXiv 2110.04770).

    For each view, every image of the batch (of all ranks) is joined to the nearest other one; images that are connected get a
    common weak label. The labels are swapped: a view's anchors go by the labels of the next view of the same images. Where
    the candidates are single rows for each image, as the texts of two towers or the keys of MoCo, all anchors go by theirs.
    Old keys of a memory bank have no label.

    Use it with attraction. WCL adds its weakly supervised loss to that of SimCLR, by a second projection head, and contrasts
    only rows of one view there; here the strategy treats the pairs of the one loss.

    Costs O(B² · D) a step for B images, and waits for a GPU to bring the neighbours to the CPU.
    """

    @torch.no_grad()
    def flag(self, contrast: Contrast, clock: Clock) -> PairRule:
        columns = contrast.columns("batch" if "batch" in contrast.parts else None)
        sample, z = contrast.candidates.sample[columns], contrast.candidates.z[columns]
        known = (sample != NOBODY).nonzero()[:, 0]
        if not len(known):
            return NoPairs()
        images, image_of, rows = sample[known].unique(return_inverse=True, return_counts=True)
        views = int(rows.min())  # an image that a sampler repeats has more; it is in each graph once
        view_of = _occurrence(sample[known])
        # Line by line: the label of each image in the graph of each view; the last line is nobody's.
        labels = torch.full((len(images) + 1, views), -1, device=sample.device)
        for view in range(views):
            here = (view_of == view).nonzero()[:, 0]
            labels[image_of[here], view] = _components(at_least_float32(z[known[here]]))
        labels = from_first_rank(labels)  # one rounding of the cosines decides on all ranks

        candidate = labels.new_full((len(contrast.candidates), views), -1)
        candidate[torch.arange(len(candidate), device=sample.device)[columns][known]] = labels[image_of]
        of_anchor = contrast.anchors.sample
        place = torch.searchsorted(images, of_anchor).clamp(max=len(images) - 1)
        place = torch.where(images[place] == of_anchor, place, len(images))
        swapped = (_occurrence(of_anchor) + 1) % views
        anchor = torch.full_like(labels, -1)[place].scatter_(1, swapped[:, None], labels[place, swapped][:, None])
        return SameGroup(anchor, candidate)


def _occurrence(sample: Tensor) -> Tensor:
    """(n,) for each row, how many rows of its sample come before it: the number of its view."""
    order = sample.argsort(stable=True)
    ordered = sample[order]
    first = torch.searchsorted(ordered, ordered)
    return torch.empty_like(sample).scatter_(0, order, torch.arange(len(sample), device=sample.device) - first)


def _components(z: Tensor) -> Tensor:
    """(n,) int64 the connected component of each row in the graph that joins each to the nearest other one."""
    from scipy import sparse
    from scipy.sparse import csgraph

    rows = torch.arange(len(z), device=z.device)
    nearest = torch.empty_like(rows)
    for piece in rows.split(AT_ONCE):
        with torch.autocast(z.device.type, enabled=False):
            cosines = z[piece] @ z.T
        cosines[torch.arange(len(piece), device=z.device), piece] = -2
        nearest[piece] = cosines.argmax(dim=1)
    edges = torch.stack([rows, nearest]).cpu().numpy()
    graph = sparse.coo_array((edges[0] >= 0, edges), shape=(len(z), len(z)))
    return torch.from_numpy(csgraph.connected_components(graph, directed=False)[1]).to(z.device, torch.int64)
