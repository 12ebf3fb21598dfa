"""MoCo: queries of one network against keys of another that follows it, in the batch and in a memory bank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from falseneg.batch import Batch, Embeddings
from falseneg.clock import Clock
from falseneg.contrast import NOBODY, Contrast, Embedded, Space
from falseneg.errors import UserError
from falseneg.methods.base import Method, told_apart, unit_rows, with_support_set
from falseneg.methods.memory_bank import MOST, MemoryBank
from falseneg.models import Encoder, Momentum, ProjectionHead
from falseneg.schedule import cosine_weights
from falseneg.statistics.gather import from_first_rank, gather_rows, order_of_one, place_of_rank, rank, world_size

PARTS = ("both", "bank", "batch")


class MoCo(Method):
    """MoCo v2 (Chen et al. 2020, arXiv 2003.04297), MoCo v3 (2021, arXiv 2104.02057), and what lies between, with FNC's
    support views.

    An anchor is a query: a view embedded by the main network, and by the prediction head if there is one. Candidates
    and positives are keys: views embedded by the momentum network, without gradient. The candidates are the keys of
    the batch, of all ranks (part "batch"), and those of earlier steps in the memory bank (part "bank"). Which of them
    are pushed away, and in which of them a detector looks (its ``part``), are independent of each other: flagged keys
    outside the denominator can only be attracted.

    MoCo v2, the default: the first view is the query, the others are keys (contrast "views"). MoCo v3: every view is
    a query, and the other views' keys of its image are its positives (contrasts "view 1", "view 2", …, each with weight
    1 / V): ``MoCo(encoder, prediction_layers=2, symmetric=True, bank=0, denominator="batch", head_batch_norm=True,
    head_last_batch_norm=True, head_last_affine=False, shuffle_groups=0, …)``. The loss is the mean over the queries;
    MoCo v3's released code has 4 tau times as much. A query's candidates are the keys of the other view, as in MoCo v3;
    with more than two views they are the keys of all views.

    FNC as released, with a memory: V views, ``symmetric``, ``support_from_views``, ``keep_own_keys``, denominator "both"
    and attraction. Its memory holds the step's own V · B keys too, so that ``bank`` is its length less these.

    The momentum network begins as a copy of the main one. Its BatchNorm normalises by its own batch (`Momentum`). Keys
    enter the bank after the step that they were made for, in the order of the batch, on any number of ranks. In the
    first step the bank is empty: with denominator "bank" nothing is pushed away then (MoCo's released code begins with
    random keys). FNC's released code enqueues before the loss, which "both" amounts to.

    Shuffling BatchNorm (MoCo, section 3.3): where keys of earlier steps are pushed away, the positive is the only key
    whose BatchNorm statistics come from the query's batch, from which the encoder can recognise it. So queries are normalised
    in ``shuffle_groups`` groups on each rank, and keys in as many, drawn again at each step over the images of all ranks.
    Synchronised BatchNorm undoes it.

    Args:
        encoder: images to features.
        head_layers: layers of the projection head, 1 to 3.
        head_hidden: width inside the heads; None for the width of the features.
        head_dim: dimensions of the embedding that is compared.
        head_batch_norm: BatchNorm between the layers of the projection head; MoCo v2 has none.
        head_last_batch_norm: end the projection head with a BatchNorm (MoCo v3, FNC).
        head_last_affine: whether that one has weights and biases (MoCo v3: no).
        prediction_layers: layers of the prediction head on top of the queries' projection head (MoCo v3), 1 to 3; 0 for
            none. Negatives are scored against support views that have not passed it, as the keys have not.
        momentum: of the momentum network's weights at each step, from 0 to 1; .999 looks back over about 1,000
            steps, so use less for a short training.
        cosine_momentum: let the momentum rise to 1 over the training, along half a cosine (BYOL, MoCo v3).
        bank: places of the memory bank; 0 for no bank.
        symmetric: every view is a query in turn, not only the first.
        denominator: which candidates are pushed away: those of the "bank", of the "batch", or "both".
        views: main views of each image, at least 2.
        support_views: further views of each image that help to detect false negatives (FNC).
        support_from_main: negatives are scored against the support views as the main network embeds them, not as the
            momentum network does.
        support_as_positives: the support views are positives as well: multi-crop, if they are small, as in section 4.1.2 of
            FNC. They are then queries, with gradient, whose positives are the keys of their image (contrast "crops"); all
            queries weigh the same.
        support_from_views: the keys of all main views of an image are its support set, at no further cost: one set of
            flagged negatives for each image, shared by its V queries (FNC as released). Needs ``symmetric``.
        keep_own_keys: keep an anchor's own keys of earlier steps among its negatives, as MoCo's and FNC's released code
            do. Nobody knows who is in the bank then: neither do detectors that look rows up, nor measurements.
        shuffle_groups: groups of a rank's images that share BatchNorm statistics; 1 shuffles over the ranks only, 0 does
            not shuffle.

    Raises:
        UserError: an option is outside its range, or the bank is to be pushed away and there is none. When a step's
            contrasts are formed: support views are asked for as positives where there are none, or beside main views
            that are the support set.
    """

    def __init__(
        self,
        encoder: Encoder,
        head_layers: int = 2,
        head_hidden: int | None = None,
        head_dim: int = 128,
        head_batch_norm: bool = False,
        head_last_batch_norm: bool = False,
        head_last_affine: bool = True,
        prediction_layers: int = 0,
        momentum: float = 0.999,
        cosine_momentum: bool = False,
        bank: int = 65536,
        symmetric: bool = False,
        denominator: Literal["both", "bank", "batch"] = "bank",
        views: int = 2,
        support_views: int = 0,
        support_from_main: bool = False,
        support_as_positives: bool = False,
        support_from_views: bool = False,
        keep_own_keys: bool = False,
        shuffle_groups: int = 0,
    ) -> None:
        super().__init__()
        _check(momentum, bank, denominator, views, support_views)
        if support_from_views and not symmetric:
            raise UserError("MoCo: support_from_views needs the keys of all views; set symmetric to true as well")
        if shuffle_groups < 0:
            raise UserError(f"MoCo: shuffle_groups is {shuffle_groups}; give at least 1, or 0 not to shuffle")
        hidden, norms = head_hidden or encoder.feature_dim, (head_last_batch_norm, head_last_affine, head_batch_norm)
        self.encoder = encoder
        self.head = ProjectionHead(encoder.feature_dim, hidden, head_dim, head_layers, *norms)
        predictor = ProjectionHead(head_dim, hidden, head_dim, prediction_layers) if prediction_layers else None
        self.prediction = predictor
        self.momentum_network = Momentum(self._main_network())
        self.bank = MemoryBank(bank, head_dim) if bank else None
        self.dim, self.momentum, self.cosine_momentum = head_dim, momentum, cosine_momentum
        self.symmetric, self.denominator, self.keep_own_keys = symmetric, denominator, keep_own_keys
        self.views = views
        self.streams = {"image": views} | ({"support": support_views} if support_views else {})
        self.with_gradient = ("image", "support") if support_as_positives else ("image",)
        self.support_from_main, self.support_as_positives = support_from_main, support_as_positives
        self.support_from_views, self.shuffle_groups = support_from_views, shuffle_groups
        self.contrast_names = tuple(f"view {v + 1}" for v in range(views)) if symmetric else ("views",)
        self.contrast_names += ("crops",) if support_as_positives else ()

    def encode(self, batch: Batch) -> Embeddings:
        """Rows "image", the queries (B, V, D), and "keys" (B, V, D), of all main views, and the support views.

        Unless symmetric: queries (B, 1, D) of the first view, and keys (B, V − 1, D) of the others. Where "support" are
        support views that learn, "support keys" are those that detect, unless they are the same.
        """
        rows = dict(self.encode_again(batch).rows)
        views = batch.streams["image"]
        rows["keys"] = unit_rows(self._key_network(), views if self.symmetric else views[:, 1:])
        if not batch.sizes("support"):
            return Embeddings(batch.index, rows)
        if self.support_from_main and "support" in rows and self.prediction is None:
            return Embeddings(batch.index, rows)  # what learns is also what detects
        network = self._in_groups(self._main_network()) if self.support_from_main else self._key_network()
        with torch.no_grad():
            rows["support keys" if "support" in rows else "support"] = _support_rows(network, batch)
        return Embeddings(batch.index, rows)

    def encode_again(self, batch: Batch) -> Embeddings:
        network, views = self._in_groups(self._queries), batch.streams["image"]
        rows = {"image": unit_rows(network, views if self.symmetric else views[:, :1])}
        if self.support_as_positives and batch.sizes("support"):
            rows["support"] = _support_rows(network, batch)
        return Embeddings(batch.index, rows)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images to (B, D) unit rows of the momentum network, without gradient."""
        return unit_rows(self.momentum_network, images[:, None])[:, 0]

    def made_up(self, streams: Mapping[str, int], device: torch.device) -> Embeddings:
        made = super().made_up(streams, device)
        return Embeddings(made.index, {**made.rows, "keys": made.rows["image"]})

    def contrasts(self, embeddings: Embeddings) -> list[Contrast]:
        asked = self.support_as_positives, self.support_from_views
        embeddings = with_support_set(embeddings, embeddings.rows["keys"], *asked, owner="MoCo")
        embeddings = Embeddings(told_apart(embeddings.index), embeddings.rows)
        queries, own_keys = embeddings.rows["image"], embeddings.rows["keys"]
        keys, sample = gather_rows(own_keys), gather_rows(embeddings.index)
        of_other_view = self.symmetric and self.views == 2
        if not of_other_view or self.support_as_positives:
            everyone = self._candidates(_embedded(keys, sample))
        contrasts = []
        for view, name in enumerate(self.contrast_names[: queries.shape[1]]):
            own = _without(own_keys, view) if self.symmetric else own_keys
            against = self._candidates(_embedded(_without(keys, view), sample)) if of_other_view else everyone
            contrasts.append(self._contrast(name, queries[:, view : view + 1], embeddings, own, against))
        if self.support_as_positives:
            contrasts.append(self._contrast("crops", embeddings.rows["support"], embeddings, own_keys, everyone))
        return contrasts

    def negatives(self, images: int) -> int:
        """Candidates of other images for each anchor, once the bank is full.

        Raises:
            UserError: the images are too few for the groups of shuffling BatchNorm.
        """
        of_rank = images // world_size()
        if self.shuffle_groups > 1 and of_rank < 2 * self.shuffle_groups:
            raise UserError(
                f"MoCo: shuffle_groups is {self.shuffle_groups}, but a process sees {of_rank} images in a step; give groups of "
                f"at least 2 images, so at most {of_rank // 2} groups, or 0 not to shuffle"
            )
        keys = self.views if self.symmetric and self.views > 2 else self.views - 1
        return keys * (images - 1) + (0 if self.bank is None else self.bank.length)

    def caution(self) -> str:
        """Whether the positive can be told from the bank's keys by BatchNorm (MoCo, section 3.3)."""
        shuffled = self.shuffle_groups > 1 or (self.shuffle_groups == 1 and world_size() > 1)
        normalised = any(
            isinstance(module, _BatchNorm) and module.training for module in self.momentum_network.modules()
        )
        if shuffled or not normalised or self.denominator == "batch":
            return ""
        return (
            "note: a query's positive key is normalised with the query's own batch, the bank's keys are not, which can give it "
            "away (MoCo, section 3.3); --method.shuffle-groups 8 normalises queries and keys in different groups"
        )

    def after_step(self, embeddings: Embeddings, clock: Clock) -> None:
        """Let the momentum network follow, and store the keys of the step."""
        momentum = self.momentum
        if self.cosine_momentum:
            momentum = 1 - (1 - momentum) * cosine_weights(clock.progress)[0]
        self.momentum_network.follow(self._main_network(), momentum)
        if self.bank is not None:
            index = told_apart(embeddings.index)
            order = order_of_one(index)
            # In a later step the numbers of nobody are others'.
            sample = gather_rows(index)[order].clamp(min=NOBODY)
            new = _embedded(gather_rows(embeddings.rows["keys"])[order], sample)
            self.bank.enqueue(
                Embedded(new.z, torch.full_like(new.sample, NOBODY), new.sample) if self.keep_own_keys else new
            )

    def after_loading(self) -> None:
        """Begin with a copy of the main network, and with an empty bank: keys of other images mean nothing here."""
        self.momentum_network.restart(self._main_network())
        if self.bank is not None:
            self.bank.clear()

    def _main_network(self) -> nn.Module:
        """What the momentum network follows."""
        return nn.Sequential(self.encoder, self.head)

    def _key_network(self) -> Callable[[Tensor], Tensor]:
        """(n, 3, H, W) images to (n, D) rows of the momentum network."""
        return self._shuffled if self.shuffle_groups > 0 and self.training else self.momentum_network

    def _shuffled(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) images to (n, D) rows of the momentum network, normalised with others than the queries are."""
        everyone = gather_rows(images)
        order = from_first_rank(torch.randperm(len(everyone))).to(images.device)
        own = order.tensor_split(world_size())[rank()]
        z = gather_rows(self._in_groups(self.momentum_network)(everyone[own]))
        return z[order.argsort()[place_of_rank(images)]]

    def _in_groups(self, network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The network, for one group of images after the other in training; a group has at least two."""
        if self.shuffle_groups < 2 or not self.training:
            return network

        def each(images: Tensor) -> Tensor:
            groups = max(1, min(self.shuffle_groups, len(images) // 2))
            return torch.cat([network(group) for group in images.tensor_split(groups)])

        return each

    def _queries(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) images to (n, D) rows of the main network and its prediction head."""
        z: Tensor = self._main_network()(images)
        return z if self.prediction is None else self.prediction(z)

    def _candidates(self, batch: Embedded) -> tuple[Embedded, dict[str, slice]]:
        """The keys of the batch and those of the bank, and which columns they are."""
        if self.bank is None:
            return batch, {"batch": slice(0, len(batch))}
        candidates = _joined([batch, self.bank.contents()])
        return candidates, {"batch": slice(0, len(batch)), "bank": slice(len(batch), len(candidates))}

    def _contrast(
        self,
        name: str,
        queries: Tensor,
        embeddings: Embeddings,
        positive_keys: Tensor,
        against: tuple[Embedded, dict[str, slice]],
    ) -> Contrast:
        """Queries (B, Q, D) against candidates; the positives of each are its image's (B, K, D) keys."""
        candidates, parts = against
        number, spaces = queries.shape[1], {}
        image_of = torch.arange(len(queries), device=queries.device).repeat_interleave(number)
        if (scored := embeddings.rows.get("support keys", embeddings.rows.get("support"))) is not None:
            spaces["support"] = Space(scored.detach(), image_of, candidates.z)
        cosines = (queries @ positive_keys.mT).flatten(0, 1)
        anchors = Embedded(queries.flatten(0, 1), embeddings.index.repeat_interleave(number))
        pushed = None if self.denominator == "both" else self.denominator
        every = sum(embeddings.rows[name].shape[1] for name in self.with_gradient)
        return Contrast(name, anchors, candidates, cosines, spaces, parts, number / every, pushed)


def _check(momentum: float, bank: int, denominator: str, views: int, support_views: int) -> None:
    if not 0 <= momentum <= 1:
        raise UserError(f"MoCo: momentum is {momentum}; give a number from 0 to 1, such as 0.999")
    if denominator not in PARTS:
        raise UserError(f"MoCo: denominator is {denominator!r}; give one of {', '.join(PARTS)}")
    if not 0 <= bank <= MOST:
        raise UserError(f"MoCo: bank is {bank}; give the number of keys to keep, at most {MOST:,}, or 0 for no bank")
    if bank == 0 and denominator == "bank":
        raise UserError("MoCo: denominator is 'bank', but bank is 0; give a bank, or denominator 'batch'")
    if views < 2:
        raise UserError(f"MoCo: views is {views}; a query needs a key, so give at least 2")
    if support_views < 0:
        raise UserError(f"MoCo: support_views is {support_views}; give 0 or more")


def _support_rows(network: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    """(B, S, D) unit rows of the support views, those of each size in one pass."""
    return torch.cat([unit_rows(network, group) for group in batch.sizes("support")], dim=1)


def _embedded(keys: Tensor, sample: Tensor) -> Embedded:
    """(G, K, D) keys of G images, image by image."""
    return Embedded(keys.flatten(0, 1), sample.repeat_interleave(keys.shape[1]))


def _without(keys: Tensor, view: int) -> Tensor:
    """(G, V, D) keys to (G, V − 1, D), without those of one view."""
    return torch.cat([keys[:, :view], keys[:, view + 1 :]], dim=1)


def _joined(pieces: Sequence[Embedded]) -> Embedded:
    """One after the other, in the type of the first. Copies: what is compared must outlive the next enqueue."""
    z = torch.cat([piece.z.to(pieces[0].z.dtype) for piece in pieces])
    sample = torch.cat([piece.sample for piece in pieces])
    return Embedded(z, sample, torch.cat([piece.table_row for piece in pieces]))
