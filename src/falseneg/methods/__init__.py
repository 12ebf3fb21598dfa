"""Where anchors, candidates and positives come from: one file each."""

from falseneg.methods.base import Embeddings, Method, Views
from falseneg.methods.simclr import SimCLR

__all__ = ["Embeddings", "Method", "SimCLR", "Views"]
