"""The names of the files in a run's folder: here once, for those who write them and those who read them."""

from __future__ import annotations

ABOUT = "run.json"
CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
ENCODER = "encoder.safetensors"
FLAGGED = "flagged.parquet"
SIMILARITIES = "similarities.json"
EMBEDDING = "embedding.npz"
THUMBNAILS = "thumbnails.npz"
CLUSTERS = "clusters.npz"
PER_SAMPLE = "per_sample"
"""A folder of epoch-NNNNN.npz."""
