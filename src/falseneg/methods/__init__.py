"""Where anchors, candidates and positives come from: one file each."""

from falseneg.methods.base import Method
from falseneg.methods.memory_bank import MemoryBank
from falseneg.methods.moco import MoCo
from falseneg.methods.simclr import SimCLR

__all__ = ["MemoryBank", "Method", "MoCo", "SimCLR"]
