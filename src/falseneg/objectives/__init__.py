"""What is minimised: one file each."""

from falseneg.objectives.base import Objective
from falseneg.objectives.debiased import Debiased
from falseneg.objectives.decoupled import Decoupled
from falseneg.objectives.global_contrastive import GlobalContrastive
from falseneg.objectives.hard_negatives import HardNegatives
from falseneg.objectives.info_nce import InfoNCE
from falseneg.objectives.own_denominators import OwnDenominators
from falseneg.objectives.sigmoid import Sigmoid

__all__ = [
    "Debiased",
    "Decoupled",
    "GlobalContrastive",
    "HardNegatives",
    "InfoNCE",
    "Objective",
    "OwnDenominators",
    "Sigmoid",
]
