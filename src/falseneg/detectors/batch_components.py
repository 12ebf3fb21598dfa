"""Images that hang together in the batch's graph of nearest neighbours: WCL."""

from __future__ import annotations

import torch
from torch import Tensor

from falseneg.clock import Clock
from falseneg.contrast import NOBODY, Contrast, Embedded
from falseneg.detectors.base import Detector
from falseneg.rules import NoPairs, PairRule, SameGroup
from falseneg.statistics.gather import from_first_rank
from falseneg.statistics.scan import top_k


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
            labels[image_of[here], view] = _components(Embedded(z[known[here]], images[image_of[here]]))
        if contrast.gathered:
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


def _components(rows: Embedded) -> Tensor:
    """(n,) int64 the connected component of each row in the graph that joins each to the nearest other one."""
    from scipy import sparse
    from scipy.sparse import csgraph

    nearest = top_k(Contrast("view", rows, rows, rows.z[:, :1]), 1)
    columns, offsets = nearest.columns.cpu().numpy(), nearest.offsets.cpu().numpy()
    graph = sparse.csr_array((columns >= 0, columns, offsets), shape=(len(rows), len(rows)))
    label = csgraph.connected_components(graph, directed=False)[1]
    return torch.from_numpy(label).to(rows.z.device, torch.int64)
