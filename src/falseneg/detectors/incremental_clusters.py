"""IFND: images of one cluster are false negatives of each other, first the surest of them, later all."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from falseneg.clock import Clock, Duration
from falseneg.clustering import assign, check_points, spherical_k_means
from falseneg.contrast import Contrast
from falseneg.detectors.base import Detector, Features, Rules, check_modality
from falseneg.errors import UserError
from falseneg.facts import Facts
from falseneg.rules import NoPairs, SameGroup
from falseneg.schedule import Linear, Schedule, extremes, value_at

LEVELS = (1, 3, 10)
"""The numbers of clusters by default, in multiples of the expected classes."""
RISING = Linear(0.0, 1.0)


class IncrementalClusters(Detector):
    """Incremental False Negative Detection, IFND (Chen et al. 2022, arXiv 2106.03719).

    At the start of an epoch the embeddings of all images, without augmentation, are clustered by spherical k-means, with
    several numbers of clusters, each of which is a level: the step averages the losses of the levels. Of each level the
    images with the surest clusters (`falseneg.clustering.assign`) carry their cluster as a pseudo-label, and negatives
    with the anchor's pseudo-label are flagged. An image without one is a negative of all, and has no false negatives.
    How many are accepted follows the clock at every step, also between two clusterings; of equally sure images, those in
    lower rows are accepted.

    A clustering costs a pass over the data set and O(rows · clusters · D · iterations · restarts), on the GPUs
    that train where there are any; a step costs two look-ups for each row. Use it with elimination, as the paper
    prefers, or with `OwnDenominators` and "attract-outside". With a memory bank, images are looked up by who they are,
    so that old keys get the latest pseudo-labels. With two towers both directions go by the same groups of rows, those of
    the images or those of the texts; `AnyOf` and `AllOf` of one detector for each combine the two.

    Args:
        clusters: the numbers of clusters, one for each level; None for one, three and ten times the expected classes.
        temperature: what cosines with the centroids are divided by in the confidence, above 0.
        warmup: until when nothing is flagged: "20 epochs", "10%". The first clustering is made for the epoch in which
            this ends.
        acceptance: the share of the images that is accepted, from 0 to 1, or a schedule of it (`Linear`, `Stairs`),
            which runs from the start of training, through the warm-up.
        every: from one clustering to the next, rounded up to whole epochs.
        iterations: of k-means.
        restarts: k-means starts this often, and the best by its objective counts (PCL's five).
        points_per_centroid: learn the centroids from this many images for each cluster, drawn again each time; None for
            all, which are held in memory as float32 then.
        modality: what is clustered: "image", or with two towers "text", the captions of each image.

    Raises:
        UserError: an option is outside its range.
    """

    clusters_of: Tensor
    place_of: Tensor
    accepted: Tensor

    def __init__(
        self,
        clusters: list[int] | None = None,
        temperature: float = 0.2,
        warmup: str = "10%",
        acceptance: float | Schedule = RISING,
        every: str = "1 epoch",
        iterations: int = 20,
        restarts: int = 5,
        points_per_centroid: int | None = None,
        modality: str = "image",
    ) -> None:
        super().__init__()
        self.clusters = None if clusters is None else _checked(clusters)
        if not temperature > 0:
            raise UserError(f"IncrementalClusters: temperature is {temperature}; give a number above 0")
        for share in extremes(acceptance):
            if not 0 <= share <= 1:
                raise UserError(
                    f"IncrementalClusters: acceptance is {share}; it is a share of the images, so give a number from 0 to 1"
                )
        limits = {"iterations": iterations, "restarts": restarts, "points_per_centroid": points_per_centroid}
        for name, value in limits.items():
            if value is not None and value < 1:
                raise UserError(f"IncrementalClusters: {name} is {value}; give at least 1")
        self.warmup, self.every = Duration.parse(warmup), Duration.parse(every)
        if self.every.amount == 0:
            raise UserError(f"IncrementalClusters: every is {every!r}; give more than 0")
        self.temperature, self.acceptance, self.modality = temperature, acceptance, modality
        self.iterations, self.restarts, self.points_per_centroid = iterations, restarts, points_per_centroid

    def prepare(self, facts: Facts) -> None:
        """Set the numbers of clusters, and allocate the pseudo-labels.

        Raises:
            UserError: nothing says how many clusters to make, or they are more than the images; or there are no texts.
        """
        check_modality("IncrementalClusters", self.modality, facts)
        if self.clusters is None:
            if facts.classes is None:
                raise UserError("IncrementalClusters: give clusters, or the number of expected classes")
            self.clusters = [facts.classes * times for times in LEVELS]
        if max(self.clusters) > facts.rows:
            raise UserError(
                f"IncrementalClusters: clusters is {self.clusters}, but there are {facts.rows} images to learn from; "
                f"give numbers of at most {facts.rows}"
            )
        self.seed = facts.seed
        shape = facts.rows, len(self.clusters)
        self.register_buffer("clusters_of", torch.full(shape, -1, dtype=torch.int32))
        # The place in the order of confidence, from 0 for the surest image.
        self.register_buffer("place_of", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("accepted", torch.zeros((), dtype=torch.int64))

    def start_epoch(self, features: Features, clock: Clock) -> None:
        """Cluster, if it is time; depends on the embeddings, the run's seed and the epoch alone.

        Raises:
            UserError: the embeddings are not finite, all equal, or not one for each image.
        """
        numbers = self._levels()
        first = self.warmup.steps(clock.steps_per_epoch, clock.epochs) // clock.steps_per_epoch
        period = -(-self.every.steps(clock.steps_per_epoch, clock.epochs) // clock.steps_per_epoch)
        if clock.epoch < first or (clock.epoch - first) % max(1, period):
            return
        points = features(self.modality)
        if len(points) != len(self.clusters_of):
            raise UserError(
                f"IncrementalClusters: {len(points)} embeddings for {len(self.clusters_of)} images; give one for each"
            )
        check_points(points)
        if self.clusters_of.device.type != "cpu":
            points = points.to(self.clusters_of.device)
        found = [self._cluster(points, clusters, clock.epoch) for clusters in numbers]
        # At the end, so that a clustering that is broken off leaves nothing behind.
        self.clusters_of.copy_(torch.stack([cluster for cluster, _ in found], dim=1))
        self.place_of.copy_(torch.stack([place for _, place in found], dim=1))

    def _cluster(self, points: Tensor, clusters: int, epoch: int) -> tuple[Tensor, Tensor]:
        """(rows,) the cluster of each image, and its place in the order of confidence."""
        seed = int(np.random.SeedSequence([self.seed, epoch, clusters]).generate_state(1)[0])
        options = self.iterations, self.restarts, self.points_per_centroid
        centroids = spherical_k_means(points, clusters, seed, *options)
        cluster, confidence = assign(points, centroids, self.temperature, self.clusters_of.device)
        order = confidence.argsort(descending=True, stable=True)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        return cluster, place

    @torch.no_grad()
    def flag(self, contrast: Contrast, clock: Clock) -> Rules:
        numbers = self._levels()
        if not self.warmup.reached(clock):
            return NoPairs()
        self.accepted.fill_(round(value_at(self.acceptance, clock) * len(self.clusters_of)))
        anchor, candidate = (self._pseudo_labels(side.sample) for side in (contrast.anchors, contrast.candidates))
        of_level = [slice(level, level + 1) for level in range(len(numbers))]
        levels = tuple(SameGroup(anchor[:, one].contiguous(), candidate[:, one].contiguous()) for one in of_level)
        return levels if len(levels) > 1 else levels[0]

    def per_sample(self) -> Mapping[str, Tensor]:
        """All clusters, and those that are accepted at the moment, of each level."""
        held: dict[str, Tensor] = {}
        every_row = torch.arange(len(self.clusters_of), device=self.clusters_of.device)
        of = "" if self.modality == "image" else f" {self.modality}"
        for level, number in enumerate(self._levels()):
            held[f"clusters {number}{of}"] = self.clusters_of[:, level].long()
            held[f"pseudo-labels {number}{of}"] = self._pseudo_labels(every_row)[:, level]
        return held

    def _pseudo_labels(self, sample: Tensor) -> Tensor:
        """(n, R) int64 the accepted cluster of each sample in each level; −1 for none, and for nobody."""
        rows = sample.clamp(min=0)
        accepted = (self.place_of[rows] < self.accepted) & (sample >= 0)[:, None]
        return torch.where(accepted, self.clusters_of[rows], -1).long()

    def _levels(self) -> list[int]:
        """The numbers of clusters.

        Raises:
            UserError: the detector was not told about the data.
        """
        if self.clusters is None or not hasattr(self, "clusters_of"):
            raise UserError("IncrementalClusters: call prepare with the facts of the data set before training")
        return self.clusters


def _checked(clusters: list[int]) -> list[int]:
    """Numbers of clusters, one for each level.

    Raises:
        UserError: there are none, one is below 2, or one appears twice.
    """
    numbers = [int(number) for number in clusters]
    if not numbers or min(numbers) < 2 or len(set(numbers)) < len(numbers):
        raise UserError(f"IncrementalClusters: clusters is {numbers}; give one or more different numbers of at least 2")
    return numbers
