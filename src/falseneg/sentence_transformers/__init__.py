"""False negatives in the training of sentence-transformers: needs ``pip install falseneg[text]``."""

from falseneg.sentence_transformers.callback import FollowTraining
from falseneg.sentence_transformers.loss import FalseNegativeRankingLoss
from falseneg.sentence_transformers.same_text import SameText
from falseneg.sentence_transformers.suspects import Skipped

__all__ = ["FalseNegativeRankingLoss", "FollowTraining", "SameText", "Skipped"]
