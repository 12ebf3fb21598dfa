"""The embeddings of all training images and captions, for detectors that look at the whole data set."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from falseneg.data import ImageSet, Subset, ViewSet, view_loader
from falseneg.errors import UserError
from falseneg.evaluation.features import evaluation_mode, extract_features, feature_batches
from falseneg.files import replacing
from falseneg.methods.base import Method
from falseneg.methods.two_towers import TwoTowers
from falseneg.models.text import Tokenizer
from falseneg.statistics.gather import gather_rows
from falseneg.train.guards import end_workers, outlast_signals
from falseneg.train.session import Session

MOST_IN_MEMORY = 2**30
"""Bytes that the embeddings of a data set may take as float32; more of them go to a file, as float16."""
AT_ONCE = 256
"""Images that each rank embeds at a time."""
FILE, FEATURES_FILE = "embeddings.f16", "features.f16"


class Passes:
    """Passes over all training images and captions, for detectors: `falseneg.detectors.base.Features` says what they give.

    Each rank embeds its share, and all receive the whole. What would take more than 1 GiB as float32 goes to a file in the
    run's folder: `remove` it when it is no longer needed. No global random state is touched.

    Args:
        session: the run.
        after_batch: called after each batch, equally often on each rank; what it raises ends the pass.
    """

    def __init__(self, session: Session, after_batch: Callable[[], None]) -> None:
        self.session, self.after_batch = session, after_batch

    def __call__(self, modality: str = "image") -> Tensor:
        method = self.session.learner.method
        if modality == "text":
            return self._texts(EmbedTexts(method), FILE, unit=True)
        return self._clean(EmbedImages(method), self.session.plan.size, FILE)

    def encoded(self, encoder: nn.Module | None = None, modality: str = "image") -> Tensor:
        if modality == "text":
            return self._texts(self.session.learner.method.towers["text"], FEATURES_FILE, unit=False)
        return self._clean(*self._network(encoder), FEATURES_FILE)

    def of_views(self, row: Tensor, views: int, encoder: nn.Module | None = None) -> Tensor:
        session, (network, size) = self.session, self._network(encoder)
        makers = {"image": [session.run.augmentation.for_size(size)] * views}
        own = row[session.fabric.global_rank :: session.fabric.world_size]
        keys = [[(session.clock.epoch, each) for each in piece.tolist()] for piece in own.split(AT_ONCE)]
        made = ViewSet(session.plan.train, makers, session.run.seed)
        options = session.plan.workers, session.fabric.device
        with closing(embed_views(network, made, keys, *options)) as batches:
            return torch.cat(list(self._of_all(batches, len(row), "embedding views of images")))

    def remove(self) -> None:
        """Remove the files, if there are any; not before all ranks have done with them."""
        if self.session.fabric.is_global_zero:
            for name in (FILE, FEATURES_FILE):
                (self.session.folder / name).unlink(missing_ok=True)

    def _network(self, encoder: nn.Module | None) -> tuple[nn.Module, int]:
        """The encoder, on the device, and the side of the images that it sees."""
        size = getattr(encoder, "image_size", None) or self.session.plan.size
        chosen = self.session.learner.method.towers["image"] if encoder is None else encoder
        return chosen.to(self.session.fabric.device), size

    def _clean(self, network: nn.Module, size: int, file: str) -> Tensor:
        """What a network gives for all images without augmentation."""
        session, device = self.session, self.session.fabric.device
        options = AT_ONCE, device, session.plan.workers, outlast_signals
        own = _share(session, session.plan.train)
        return self._kept(feature_batches(network, own, size, *options), file, "images")

    def _texts(self, network: nn.Module, file: str, unit: bool) -> Tensor:
        """What a network of tokens gives for the captions of all images."""
        tokenize, device = self.session.learner.method.tokenize, self.session.fabric.device
        assert tokenize is not None
        own = _share(self.session, self.session.plan.train)
        return self._kept(text_batches(network, tokenize, own, device, unit), file, "captions")

    def _kept(self, batches: Generator[Tensor], file: str, what: str) -> Tensor:
        """The batches of all ranks as one, in memory or in a file."""
        session, fabric, rows = self.session, self.session.fabric, len(self.session.plan.train)
        with closing(batches), _Kept(rows, session.folder / file, fabric.is_global_zero) as kept:
            for batch in self._of_all(batches, rows, f"embedding all {what}"):
                kept.add(batch)
        fabric.barrier()  # what the first rank wrote is complete
        return kept.embeddings()

    def _of_all(self, batches: Iterator[Tensor], number: int, what: str) -> Iterator[Tensor]:
        for batch in _of_all_ranks(self.session, batches, number, what):
            yield batch
            self.after_batch()


def text_batches(
    network: nn.Module, tokenize: Tokenizer, images: ImageSet, device: torch.device | str, unit: bool
) -> Generator[Tensor]:
    """The features of the captions of images, in evaluation mode and without gradient. Close it, which ends that mode.

    Args:
        network: (B, L) tokens to (B, F) features, on ``device`` already.
        tokenize: n texts to (n, L) tokens.
        images: with captions.
        device: where the network lies.
        unit: the mean over the captions of an image becomes a unit row.

    Yields:
        (b, F) float32 on the CPU, the mean over the captions of each image.

    Raises:
        UserError: an image has no caption, or it cannot be read.
    """
    with evaluation_mode(network), torch.no_grad():
        for rows in torch.arange(len(images)).split(AT_ONCE):
            captions = [images.captions(row) for row in rows.tolist()]
            if () in captions:
                raise UserError(f"{images.place(int(rows[captions.index(())]))} has no caption any more; give it one")
            texts, number = [text for own in captions for text in own], torch.tensor([len(own) for own in captions])
            pieces = [texts[start : start + AT_ONCE] for start in range(0, len(texts), AT_ONCE)]
            found = torch.cat([network(tokenize(piece).to(device)).float().cpu() for piece in pieces])
            mean = torch.stack([own.mean(dim=0) for own in found.split(number.tolist())])
            yield normalize(mean, dim=1) if unit else mean


def embed_views(
    network: nn.Module, made: ViewSet, keys: Sequence[list[tuple[int, int]]], workers: int, device: torch.device | str
) -> Generator[Tensor]:
    """The features of views of some images, in evaluation mode and without gradient. Close it, which ends the workers.

    Args:
        network: images to features, on ``device`` already.
        made: the views, all V of them in the stream "image".
        keys: batches of (epoch, row).
        workers: processes that make views.
        device: where the network lies.

    Yields:
        (b, V, F) float32 on the CPU.

    Raises:
        UserError: an image cannot be read, or a worker was killed.
    """
    loader = view_loader(made, keys, workers, device)
    loader.worker_init_fn = outlast_signals
    try:
        with evaluation_mode(network):
            for batch in loader:
                images = batch.streams["image"].to(device)
                with torch.no_grad():
                    features: Tensor = network(images.flatten(0, 1)).float().cpu()
                yield features.unflatten(0, images.shape[:2])
    finally:
        end_workers(loader)


def shared_features(session: Session, network: nn.Module, images: ImageSet, alone: bool = False) -> Tensor | None:
    """(n, F) float32 features of all images, each of them extracted by one rank; on the first rank, and None on the others.

    Args:
        session: every rank has to ask.
        network: (B, 3, size, size) uint8 images to (B, F), on the device.
        images: n of them.
        alone: the first rank asks by itself.
    """
    fabric, size, workers = session.fabric, session.plan.size, session.plan.workers
    if alone or fabric.world_size == 1 or len(images) < fabric.world_size:  # too few for a share each
        first = fabric.is_global_zero
        return extract_features(network, images, size, device=fabric.device, workers=workers) if first else None
    own = _share(session, images)
    with closing(feature_batches(network, own, size, AT_ONCE, fabric.device, workers, outlast_signals)) as batches:
        everyone = _of_all_ranks(session, batches, len(images), "extracting features")
        whole = [batch for batch in everyone if fabric.is_global_zero]
    return torch.cat(whole) if fabric.is_global_zero else None


def _share(session: Session, images: ImageSet) -> Subset:
    """The images that this rank takes, in turn with the others."""
    return Subset(images, torch.arange(session.fabric.global_rank, len(images), session.fabric.world_size))


def _of_all_ranks(session: Session, batches: Iterator[Tensor], number: int, what: str) -> Iterator[Tensor]:
    """(b, …) the batches of all ranks, by row, of this many images that they take in turn; exchanged on the device."""
    fabric, done = session.fabric, 0
    own = torch.arange(fabric.global_rank, number, fabric.world_size)
    rounds = -(-number // (AT_ONCE * fabric.world_size))
    batch = torch.empty(0)
    for start in range(0, rounds * AT_ONCE, AT_ONCE):
        batch = next(batches, batch[:0])  # a rank may have no image left in the last round
        everyone = gather_rows(own[start : start + AT_ONCE].to(fabric.device)).cpu()
        whole = gather_rows(batch.to(fabric.device)).cpu()[everyone.argsort()]
        done += len(whole)
        yield whole
        session.progress.aside(what, done, number)


class _Kept:
    """Embeddings that come one after the other: in memory, or in a file that one rank writes and all read."""

    def __init__(self, rows: int, path: Path, writes: bool) -> None:
        self.rows, self.path, self.writes = rows, path, writes
        self.rows_done, self.columns = 0, 0
        self.in_memory: Tensor | None = None
        self.file: BinaryIO | None = None
        self.opened = ExitStack()

    def __enter__(self) -> _Kept:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.opened.__exit__(kind, error, trace)

    def add(self, batch: Tensor) -> None:
        """The next (b, D) float32."""
        if self.rows_done == 0:
            self.columns = batch.shape[1]
            if 4 * self.rows * self.columns <= MOST_IN_MEMORY:
                self.in_memory = torch.empty(self.rows, self.columns)
            elif self.writes:
                self.file = self.opened.enter_context(replacing(self.path))
        if self.in_memory is not None:
            self.in_memory[self.rows_done : self.rows_done + len(batch)] = batch
        elif self.file is not None:
            self.file.write(batch.half().numpy().tobytes())
        self.rows_done += len(batch)

    def embeddings(self) -> Tensor:
        """(rows, D) all of them."""
        if self.in_memory is not None:
            return self.in_memory
        numbers = torch.from_file(str(self.path), size=self.rows * self.columns, dtype=torch.float16)
        return numbers.view(self.rows, self.columns)


class EmbedTexts(nn.Module):
    """Tokens to the embedding that two towers compare."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        assert isinstance(method, TwoTowers)
        self.method = method

    def forward(self, tokens: Tensor) -> Tensor:
        return self.method.embed_texts(tokens)


class EmbedImages(nn.Module):
    """Images to the embedding that the method compares."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> Tensor:
        return self.method.embed(images)
