"""Where anchors, candidates and positives come from: one file each."""

from falseneg.methods.base import Method
from falseneg.methods.clip import CLIP
from falseneg.methods.memory_bank import MemoryBank
from falseneg.methods.moco import MoCo
from falseneg.methods.open_clip import OpenCLIP
from falseneg.methods.simclr import SimCLR
from falseneg.methods.two_towers import TwoTowers

__all__ = ["CLIP", "MemoryBank", "Method", "MoCo", "OpenCLIP", "SimCLR", "TwoTowers"]
