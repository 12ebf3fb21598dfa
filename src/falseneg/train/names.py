"""The names of the files in a run's folder: here once, for those who write them and those who read them."""

from __future__ import annotations

from falseneg.methods.base import ENCODER as ENCODER
from falseneg.methods.clip import TOWERS as TOWERS
from falseneg.methods.open_clip import OPEN_CLIP as OPEN_CLIP

EXPORTED = (ENCODER, TOWERS, OPEN_CLIP)
"""What a finished run leaves for others; the last is a folder."""

ABOUT = "run.json"
CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
START = "start_"
"""Before the name of a figure in the final line of METRICS: that of the starting encoder."""
UNREADABLE = "unreadable.txt"
"""A sentence for each image that was left out, if there are any."""
CHECKPOINTS = "checkpoints"
NOT_FINITE = "not-finite"
"""Among them, with .pt: where a step had a loss or a gradient that is not finite; with .json: that step's images."""
FLAGGED = "flagged.parquet"
SIMILARITIES = "similarities.json"
EMBEDDING = "embedding.npz"
PAIRS = "flagged.csv"
"""The same pairs as FLAGGED, for spreadsheets."""
THUMBNAILS = "thumbnails.npz"
PICTURES = "thumbnails"
"""A folder of the same pictures as PNG files, each named by its row."""
RETRIEVAL = "retrieval.npz"
"""Of two towers: images with the texts that they find first, and texts with their images."""
CLUSTERS = "clusters.npz"
PER_SAMPLE = "per_sample"
"""A folder of epoch-NNNNN.npz."""
EVALUATIONS = "evaluations"
"""A folder of the figures of protocols, each NAME.json."""
