"""How well a grouping of the images (clusters, pseudo-labels) agrees with their labels."""

from __future__ import annotations

import torch
from torch import Tensor


def group_figures(groups: Tensor, labels: Tensor | None = None) -> dict[str, float | None]:
    """The sizes of the groups and, where there are labels, how pure they are; over the whole data set.

    Precision and recall are those of all pairs of images: a pair of one group should be a pair of one class. They are
    what a detector that flags by these groups could reach if every image were compared with every other. Computed from
    the numbers of images of each group and class, in O(rows · log rows). A figure without a denominator is None.

    Args:
        groups: (rows,) integers, the group of each image; −1 for none.
        labels: (rows,) int64, −1 where unknown; None without labels. Images without a label count for the sizes only.

    Returns:
        groups: how many hold at least one image.
        largest, smallest: images in the largest and in the smallest of these.
        assigned: the share of the images that are in a group.
        purity: of the images in a group, the share that belongs to the most frequent class of its group.
        nmi: normalised mutual information of groups and classes (arithmetic mean of their entropies), over the images
            in a group.
        precision: of the pairs of images in one group, the share of one class.
        recall: of the pairs of images of one class, the share in one group; images without a group count here.
    """
    sizes = groups[groups >= 0].unique(return_counts=True)[1]
    figures: dict[str, float | None] = {
        "groups": len(sizes),
        "largest": int(sizes.max()) if len(sizes) else None,
        "smallest": int(sizes.min()) if len(sizes) else None,
        "assigned": int(sizes.sum()) / len(groups) if len(groups) else None,
    }
    return figures if labels is None else figures | _agreement(groups.long(), labels)


def _agreement(groups: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Purity, NMI, and precision and recall of pairs."""
    from sklearn.metrics import normalized_mutual_info_score

    labels = labels.to(groups.device)
    both = (groups >= 0) & (labels >= 0)
    group, label = groups[both], labels[both]
    classes = int(label.max()) + 1 if len(label) else 1
    cells, counts = (group * classes + label).unique(return_counts=True)  # images of each group and class
    place = (cells // classes).unique(return_inverse=True)[1]
    majority = torch.zeros_like(counts).scatter_reduce(0, place, counts, "amax")
    right, of_group = _pairs(counts), _pairs(group.unique(return_counts=True)[1])
    of_class = _pairs(labels[labels >= 0].unique(return_counts=True)[1])
    return {
        "purity": int(majority.sum()) / len(group) if len(group) else None,
        "nmi": float(normalized_mutual_info_score(label.cpu(), group.cpu())) if len(group) else None,
        "precision": right / of_group if of_group else None,
        "recall": right / of_class if of_class else None,
    }


def _pairs(sizes: Tensor) -> int:
    """Unordered pairs within sets of these sizes."""
    return int((sizes * (sizes - 1) // 2).sum())
