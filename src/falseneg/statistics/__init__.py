"""The only code that sees anchors × candidates: what an objective needs of each row, without storing the matrix."""

from falseneg.statistics.gather import gather, global_mean
from falseneg.statistics.measuring import Confusion, confusion, flagged_pairs, similarity_histogram
from falseneg.statistics.negatives import NegativeStats, negative_stats, stats_of_contrasts, stats_of_levels
from falseneg.statistics.scan import count_above, row_quantile, top_k

__all__ = [
    "Confusion",
    "NegativeStats",
    "confusion",
    "count_above",
    "flagged_pairs",
    "gather",
    "global_mean",
    "negative_stats",
    "row_quantile",
    "similarity_histogram",
    "stats_of_contrasts",
    "stats_of_levels",
    "top_k",
]
