"""The graph of the whole data set: images are of one kind if their neighbours' neighbours are the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from falseneg.clock import Clock, Duration
from falseneg.clustering import check_points
from falseneg.contrast import Contrast, Space
from falseneg.detectors.base import Detector, Features, check_modality
from falseneg.detectors.guide import TABLES, check_one_for_each, is_table, read_embeddings
from falseneg.detectors.threshold import check_share
from falseneg.errors import UserError
from falseneg.facts import Facts
from falseneg.graph import agreement as agreement_of
from falseneg.graph import nearest, quantiles_of_pairs, spectral_coordinates, whitened
from falseneg.models import Encoder
from falseneg.rules import AboveThreshold, NoPairs, PairRule, Tiers
from falseneg.statistics.gather import from_first_rank, rank
from falseneg.strategy import ATTRACT

REFRESHED = ("1 epoch", "2 epochs", "3 epochs", "4 epochs", "6 epochs", "8 epochs", "10 epochs", "12 epochs")
"""When the graph is made again; afterwards each time that a quarter more epochs are done."""
GROWTH = 1.25
VIEWED = 8192
"""Images whose views say what does not matter, and whether graphs agree, at most."""
CLOSED = 2.0
"""A threshold that no cosine exceeds."""


class NeighbourGraph(Detector):
    """Flags the pairs that are closest in the leading eigenvectors of the data set's graph of nearest neighbours.

    From time to time, before an epoch: the encoder's features of all images, without augmentation and before the head, are
    whitened by the covariance of the views of an image, so that the augmentations say what does not matter
    (`falseneg.graph.whitened`); each image is joined to its nearest neighbours; and its coordinates in the leading
    eigenvectors of that graph are kept. Of all pairs of images, the share with the highest cosine of these coordinates is
    flagged. The surest part of them is attracted, whatever the strategy of the run; the others are treated by it.

    Costs a forward pass over the data set, two more over at most 8,192 images, and O(rows² · F) for the neighbours, beyond
    65,536 images about O(rows^1.5 · F), on the CPU of the first rank; a step costs a look-up for each row and products of
    C numbers for each pair. Memory: O(rows · (k + C + F)).

    Args:
        neighbours: k, how many neighbours of each image are joined to it.
        eigenvectors: C, the coordinates of an image; None for the number of expected classes.
        share: the share of all pairs of images to flag, above 0 and below 1 (pairs that the graph does not tell apart are flagged
            together); None for one over the number of expected classes.
        attract: the part of them that is attracted, from 0 to 1: the surest.
        refresh: when the graph is made: durations, the first of which is when flagging begins; None for after epochs 1, 2, 3,
            4, 6, 8, 10 and 12, and then whenever a quarter more epochs are done.
        guide: compare by another model: an encoder.safetensors, the folder of a finished run, or a file with an embedding of
            each image to learn from or of its text, (rows, F) floating point, in a NumPy file (.npy) or a .safetensors file
            of one tensor, which is centred and not whitened. Of several guides the mean cosine counts: runs that differ in
            their seed alone are more often right together. The graph is then made once, at the start.
        agreement: act only while two graphs of different views agree by so much (`falseneg.graph.agreement`), from 0 to 1; 0
            always acts. With the first graph that does, pairs are treated as the run's strategy says, and if the next one does
            so, too, the surest are attracted; below, nothing is flagged. The figure "graph agreement" of an epoch tells it.
        modality: whose graph it is: that of the "image", or with two towers of the "text", the captions of each image. Features of
            texts have no views, and are centred and not whitened.

    Raises:
        UserError: an option is outside its range, or the guide cannot be read.
    """

    table: Tensor
    thresholds: Tensor
    agreed: Tensor

    def __init__(
        self,
        neighbours: int = 20,
        eigenvectors: int | None = None,
        share: float | None = None,
        attract: float = 0.5,
        refresh: list[str] | None = None,
        guide: list[str] | str | Path | None = None,
        agreement: float = 0.0,
        modality: str = "image",
    ) -> None:
        super().__init__()
        for name, number in (("neighbours", neighbours), ("eigenvectors", eigenvectors)):
            if number is not None and number < 1:
                raise UserError(f"NeighbourGraph: {name} is {number}; give at least 1")
        check_share("NeighbourGraph: share", share)
        if not 0 <= attract <= 1:
            raise UserError(f"NeighbourGraph: attract is {attract}; it is a share of the flagged pairs, so give 0 to 1")
        if not 0 <= agreement <= 1:
            raise UserError(f"NeighbourGraph: agreement is {agreement}; it is a share of pairs, so give 0 to 1")
        if agreement and modality == "text":
            raise UserError("NeighbourGraph: texts have no views that could agree; leave agreement out")
        if guide is not None and refresh is not None:
            raise UserError("NeighbourGraph: the graph of a guide never changes; leave refresh out")
        if refresh is not None and not refresh:
            raise UserError("NeighbourGraph: refresh is empty, so that there would be no graph; give a duration")
        self.neighbours, self.eigenvectors, self.share, self.attract = neighbours, eigenvectors, share, attract
        self.refresh = [Duration.parse(each) for each in refresh or (REFRESHED if guide is None else ["0 epochs"])]
        self.agreement, self.modality = agreement, modality
        self.grows = refresh is None and guide is None
        named = [guide] if isinstance(guide, str | Path) else guide or []
        if guide is not None and not named:
            raise UserError("NeighbourGraph: guide is an empty list; give at least one, or leave it out")
        files = [str(_file_of(Path(each))) for each in named]
        # Not among what a resumed run has to share: it may lie elsewhere by then, and its graph is made.
        self._guides = {file: self._checked(file) for file in files}

    def prepare(self, facts: Facts) -> None:
        """Make room for the coordinates.

        Raises:
            UserError: there are no texts; nothing says how many pairs to flag, there are too few images, or a guide's embeddings are not one for each.
        """
        check_modality("NeighbourGraph", self.modality, facts)
        if facts.classes is None and (self.share is None or self.eigenvectors is None):
            raise UserError("NeighbourGraph: give share and eigenvectors, or the number of expected classes")
        self.share = self.share or 1 / (facts.classes or 1)
        self.eigenvectors = self.eigenvectors or facts.classes
        assert self.eigenvectors is not None
        least = max(self.neighbours + 1, self.eigenvectors + 2)
        if facts.rows < least:
            raise UserError(
                f"NeighbourGraph: {self.neighbours} neighbours and {self.eigenvectors} eigenvectors take at least {least} "
                f"images, and there are {facts.rows}; give smaller numbers"
            )
        for path, embeddings in self._guides.items():
            if embeddings is not None:
                check_one_for_each(embeddings, facts.rows, path, "NeighbourGraph")
        self.seed = facts.seed
        # The last line is nobody's. What is not known is NaN, which is above no threshold.
        self.register_buffer("table", torch.full((facts.rows + 1, self.eigenvectors), torch.nan))
        self.register_buffer("thresholds", torch.ones(2))
        self.register_buffer("agreed", torch.tensor(torch.nan))

    def start_epoch(self, features: Features, clock: Clock) -> None:
        """Make the graph, if it is time.

        Raises:
            UserError: the features are not finite or all equal.
        """
        if clock.epoch not in self._epochs(clock):
            return
        guides: list[str | None] = [*self._guides] or [None]
        compared = [self._compared(features, guide) for guide in guides]
        for points, _ in compared:
            check_points(points)
        table, thresholds, agreed = torch.full(self.table.shape, torch.nan), torch.ones(2), torch.tensor(torch.nan)
        if rank() == 0:
            share = self.share or 0.0
            table[:-1] = self._coordinates([whitened(points, views) for points, views in compared])
            thresholds = quantiles_of_pairs(table, [share * self.attract, share], self.seed)
            of_views = [views for _, views in compared if views is not None]
            if len(of_views) == len(compared):
                halves = ([whitened(views[:, half], views) for views in of_views] for half in (0, 1))
                one, other = map(self._coordinates, halves)
                agreed = torch.tensor(agreement_of(one, other, share / 2, self.seed))
            thresholds = self._opened(thresholds, float(agreed))
        # At the end, so that what is broken off leaves nothing behind.
        found = [from_first_rank(each) for each in (table, thresholds, agreed)]
        for held, new in zip((self.table, self.thresholds, self.agreed), found, strict=True):
            held.copy_(new)

    def _opened(self, thresholds: Tensor, agreed: float) -> Tensor:
        """The thresholds, or what nothing is above, as long as the graphs do not agree."""
        if not self.agreement:
            return thresholds
        now = agreed >= self.agreement
        before = now if self._guides else float(self.agreed) >= self.agreement  # a guide has one graph only
        return torch.where(torch.tensor([before and now, now]), thresholds, CLOSED)

    def _checked(self, guide: str) -> Tensor | None:
        """The embeddings in a file; None for an encoder, of which is said at once what is wrong.

        Raises:
            UserError: it cannot be read, or cannot do what was asked for.
        """
        if is_table(Path(guide)):
            if self.agreement:
                raise UserError(
                    "NeighbourGraph: embeddings in a file have no views that could agree; leave agreement out"
                )
            return read_embeddings(Path(guide), "NeighbourGraph").float()
        if self.modality == "text":
            raise UserError(
                f"NeighbourGraph: {guide} is an encoder of images, and modality is 'text'; give a file of embeddings of the "
                "texts as the guide"
            )
        Encoder.load(guide)
        return None

    def _compared(self, features: Features, guide: str | None) -> tuple[Tensor, Tensor | None]:
        """(rows, F) features, and those of views of some images, if there is an encoder to embed them."""
        if guide is not None and (embeddings := self._guides[guide]) is not None:
            return embeddings, None
        if self.modality == "text" and guide is None:
            return features.encoded(modality=self.modality), None
        encoder = None if guide is None else Encoder.load(guide).eval()
        rows = len(self.table) - 1
        viewed = torch.linspace(0, rows - 1, min(rows, VIEWED)).round().long()
        return features.encoded(encoder), features.of_views(viewed, 2, encoder)

    def _coordinates(self, unit: list[Tensor]) -> Tensor:
        """(n, C) of the graph in which images are as similar as their mean cosine over the models says."""
        points = torch.cat(unit, dim=1) / len(unit) ** 0.5 if len(unit) > 1 else unit[0]
        return spectral_coordinates(*nearest(points, self.neighbours), self.eigenvectors or 0)

    def figures(self) -> Mapping[str, float]:
        """Give "graph agreement", from the first graph on."""
        agreed = float(self.agreed)
        return {} if math.isnan(agreed) else {"graph agreement": agreed}

    def _epochs(self, clock: Clock) -> set[int]:
        """The epochs, from 0, before which the graph is made."""
        steps = [each.steps(clock.steps_per_epoch, clock.epochs) for each in self.refresh]
        epochs = sorted({-(-each // clock.steps_per_epoch) for each in steps})
        while self.grows and epochs[-1] < clock.epochs:
            epochs.append(max(epochs[-1] + 1, round(GROWTH * epochs[-1])))
        return set(epochs)

    @torch.no_grad()
    def flag(self, contrast: Contrast, clock: Clock) -> PairRule:
        if not hasattr(self, "table"):
            raise UserError("NeighbourGraph: call prepare with the facts of the data set before training")
        if clock.epoch < min(self._epochs(clock)):
            return NoPairs()
        images, image_of = contrast.anchors.sample.unique(return_inverse=True)
        space = Space(self._of(images)[:, None], image_of, self._of(contrast.candidates.sample))
        surest, flagged = (AboveThreshold(threshold, space) for threshold in self.thresholds)
        return Tiers(((surest, ATTRACT), (flagged, None))) if self.attract > 0 else flagged

    def _of(self, sample: Tensor) -> Tensor:
        """(n, C) the coordinates of samples."""
        return self.table[sample.clamp(min=-1)]


def _file_of(path: Path) -> Path:
    """The file of a guide, which has a form that is known."""
    if path.is_dir():
        path = path / "encoder.safetensors"
    if path.suffix not in TABLES or not path.is_file():
        raise UserError(
            f"NeighbourGraph: there is no file {path}; give an encoder.safetensors, the folder of a finished run or a .npy or "
            ".safetensors file of embeddings as the guide"
        )
    return path
