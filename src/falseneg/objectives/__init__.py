"""What is minimised: one file each."""

from falseneg.objectives.base import Objective
from falseneg.objectives.decoupled import Decoupled
from falseneg.objectives.info_nce import InfoNCE
from falseneg.objectives.own_denominators import OwnDenominators

__all__ = ["Decoupled", "InfoNCE", "Objective", "OwnDenominators"]
