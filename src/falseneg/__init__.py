"""Find the false negatives of contrastive learning and stop the loss from repelling them.

Everything public is importable from here; nothing is imported before it is used, so that the command answers at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_ROOMS = {
    "falseneg.batch": ("Batch", "Embeddings"),
    "falseneg.clock": ("Clock", "Duration"),
    "falseneg.contrast": ("Contrast", "Embedded", "NOBODY", "Space"),
    "falseneg.detectors": (
        "AllOf",
        "AnyOf",
        "BatchComponents",
        "BatchQuantile",
        "Detector",
        "FixedThreshold",
        "GlobalThreshold",
        "IdenticalCaptions",
        "IncrementalClusters",
        "NeighbourGraph",
        "Neighbours",
        "NoDetection",
        "Oracle",
        "RelativeToPositive",
        "StartAt",
        "SupportSet",
    ),
    "falseneg.errors": ("UserError",),
    "falseneg.facts": ("Facts",),
    "falseneg.losses": ("ContrastiveLoss", "Criterion"),
    "falseneg.pair_loss": ("PairLoss",),
    "falseneg.methods": ("CLIP", "MemoryBank", "Method", "MoCo", "OpenCLIP", "SimCLR", "TwoTowers"),
    "falseneg.models": ("Encoder", "Momentum", "ProjectionHead", "TextEncoder"),
    "falseneg.objectives": (
        "Debiased",
        "Decoupled",
        "GlobalContrastive",
        "HardNegatives",
        "InfoNCE",
        "Objective",
        "OwnDenominators",
        "Sigmoid",
    ),
    "falseneg.row_step": ("AdamStep", "GradientStep", "RowStep"),
    "falseneg.rules": ("AboveThreshold", "Listed", "NoPairs", "PairRule", "SameGroup", "Tiers"),
    "falseneg.sample_table": ("SampleTable",),
    "falseneg.schedule": ("Cosine", "Linear", "Schedule", "Stairs"),
    "falseneg.statistics": (
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
        "top_k",
    ),
    "falseneg.strategy": ("ATTRACT", "ATTRACT_OUTSIDE", "ELIMINATE", "IGNORE", "STRATEGIES", "Strategy"),
    "falseneg.temperature": ("FixedTemperature", "IndividualTemperature", "LearnedTemperature", "Temperature"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = ["__version__", *sorted(_ROOM_OF)]


def __getattr__(name: str) -> Any:
    if name in _ROOM_OF:
        return getattr(import_module(_ROOM_OF[name]), name)
    raise AttributeError(f"module 'falseneg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
