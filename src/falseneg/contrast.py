"""What is compared with what: the records that every other room speaks in.

Letters: N anchors, M candidates, D dimensions, P known positives of an anchor, G images, S support views of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from falseneg.errors import UserError

NOBODY = -1
"""The sample number of a row that is excluded from nothing (a bank that keeps own keys stores it)."""


@dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings and who they are: one thing that travels through a gather or a memory bank.

    Attributes:
        z: (N, D) rows of unit length.
        sample: (N,) int64, who each row shows, in one namespace for anchors and candidates. Equal samples are never
            negatives of each other (the row itself, other views, old keys in a bank, a sampler's repetitions).
            ``NOBODY`` is excluded from nothing.
        row: (N,) int64, the line of this side's `SampleTable`; None means that ``sample`` is the line.
    """

    z: Tensor
    sample: Tensor
    row: Tensor | None = None

    @property
    def table_row(self) -> Tensor:
        """(N,) int64: the line of each row in this side's `SampleTable`."""
        return self.sample if self.row is None else self.row

    def __len__(self) -> int:
        return self.z.shape[0]


@dataclass(frozen=True, eq=False)
class Space:
    """Another similarity to detect in: support views, momentum features, the other modality, a guide model.

    The score of anchor i and candidate j is the largest cosine of the S queries of i with candidate j.

    Attributes:
        queries: (G, S, E), without gradient.
        query_of: (N,) int64, which of the G each anchor uses: all views of an image share one.
        candidates: (M, E), without gradient, in the order of the contrast's candidates.
        positives: (N,) the similarity of each anchor with its positive here; None where that is the anchor's own image,
            which is as similar to itself as can be.
    """

    queries: Tensor
    query_of: Tensor
    candidates: Tensor
    positives: Tensor | None = None

    def mean(self) -> Space:
        """The space whose one query is the mean of the S, *not* rescaled to unit length: its score is the mean cosine."""
        return replace(self, queries=self.queries.mean(dim=1, keepdim=True))


@dataclass(frozen=True, eq=False)
class Contrast:
    """One direction of comparison: SimCLR has one, CLIP two.

    Attributes:
        name: "views", "image->text", ...; known when the method is built. Tables and detector state are kept per name.
        anchors: (N, D), with gradient.
        candidates: (M, D), of all ranks, or of this one only; with gradient in a batch, without in a bank. ``candidates is anchors`` says
            that the matrix of similarities is symmetric.
        positives: (N, P) cosines with the known positives, with gradient.
        spaces: other similarities to detect in, by name.
        parts: ranges of columns by name ("batch", "bank"); a detector may look in one of them only.
        weight: the weight of this direction in the loss.
        denominator: the part of the candidates that is pushed away; None for all of them. Others can only be attracted.
        gathered: the candidates are the same on all ranks; otherwise each rank has its own.
    """

    name: str
    anchors: Embedded
    candidates: Embedded
    positives: Tensor
    spaces: Mapping[str, Space] = field(default_factory=dict)
    parts: Mapping[str, slice] = field(default_factory=dict)
    weight: float = 1.0
    denominator: str | None = None
    gathered: bool = True

    def space(self, name: str | None) -> Space | None:
        """The space of that name; None for the contrast's own similarity.

        Raises:
            UserError: there is no space of that name.
        """
        if name is None:
            return None
        if name not in self.spaces:
            known = ", ".join(sorted(self.spaces)) or "none"
            raise UserError(
                f"there is no space {name!r} to detect in (the method offers: {known}); for 'support', give the method support views"
            )
        return self.spaces[name]

    def columns(self, part: str | None) -> slice:
        """The range of columns of that part; all columns for None.

        Raises:
            UserError: there is no part of that name.
        """
        if part is None:
            return slice(0, len(self.candidates))
        if part not in self.parts:
            known = ", ".join(sorted(self.parts)) or "none"
            raise UserError(f"there is no part {part!r} among the candidates (the method offers: {known})")
        return self.parts[part]
