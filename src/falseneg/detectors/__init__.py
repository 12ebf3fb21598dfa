"""Which negatives are suspected to be false: one file each."""

from falseneg.detectors.base import Detector, Features, Rules
from falseneg.detectors.batch_components import BatchComponents
from falseneg.detectors.combine import AllOf, AnyOf, StartAt
from falseneg.detectors.global_threshold import GlobalThreshold
from falseneg.detectors.identical_captions import IdenticalCaptions
from falseneg.detectors.incremental_clusters import IncrementalClusters
from falseneg.detectors.neighbour_graph import NeighbourGraph
from falseneg.detectors.neighbours import Neighbours
from falseneg.detectors.oracle import Oracle
from falseneg.detectors.relative_to_positive import RelativeToPositive
from falseneg.detectors.support_set import SupportSet
from falseneg.detectors.threshold import BatchQuantile, FixedThreshold, NoDetection

__all__ = [
    "AllOf",
    "AnyOf",
    "BatchComponents",
    "BatchQuantile",
    "Detector",
    "Features",
    "FixedThreshold",
    "GlobalThreshold",
    "IdenticalCaptions",
    "IncrementalClusters",
    "NeighbourGraph",
    "Neighbours",
    "NoDetection",
    "Oracle",
    "RelativeToPositive",
    "Rules",
    "StartAt",
    "SupportSet",
]
