"""A detector of your own: flags the mutual nearest neighbours of a batch. One class, one rule.

In a training loop: see drop_in_loss.py. On the command line, from the folder of this file:
falseneg pretrain --data Digits --detector own_detector.MutualNeighbours --detector.k 4 --out runs/mutual
"""

import torch

import falseneg as fn


class MutualNeighbours(fn.Detector):
    """Flags negatives that are among each other's k most similar rows.

    Args:
        k: how many neighbours of each row to look at.
    """

    def __init__(self, k: int = 5) -> None:
        super().__init__()
        self.k = k

    @torch.no_grad()
    def flag(self, contrast: fn.Contrast, clock: fn.Clock) -> fn.PairRule:
        nearest = fn.top_k(contrast, self.k)  # exact, in O(N) memory, never the anchor's own views
        n = len(contrast.anchors)
        row = torch.arange(n).repeat_interleave(nearest.offsets.diff())
        pairs = row * n + nearest.columns
        mutual = torch.isin(pairs, nearest.columns * n + row)
        return fn.Listed.from_pairs(row[mutual], nearest.columns[mutual], n)


if __name__ == "__main__":
    views = [torch.randn(64, 16) for _ in range(2)]
    loss = fn.ContrastiveLoss(MutualNeighbours(k=5), fn.ELIMINATE)
    print(f"loss {float(loss(*views)):.3f}")
