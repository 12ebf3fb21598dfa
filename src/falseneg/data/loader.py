"""Batches of views: which images in which order, and the worker processes that make them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from falseneg.batch import Batch
from falseneg.data.image_set import ImageSet
from falseneg.data.views import Augmentation, kernels, view_generator_seed
from falseneg.data.workers import IDLE, at_row, batches_of, handed_over, worker_options
from falseneg.errors import UserError

_ORDER = -1  # the "row" of the seed that shuffles an epoch
_APART = 2**20  # the "views" between the seeds of two streams
_READING = 2**32  # the "view" of the seed under which an image is read
_CAPTIONS = _READING + 1  # and of the one that orders its captions
_READ_AHEAD = 2**21  # bytes of images that are held before their views are made


class ViewSample(NamedTuple):
    """The views of one image.

    Attributes:
        row: the data-set row.
        streams: (V, 3, H, W) uint8 views or (V, L) int64 tokens, as in a `Batch`.
    """

    row: int
    streams: dict[str, Tensor]


@dataclass(frozen=True)
class Captions:
    """What is made of an image's captions.

    Args:
        tokenize: n texts to (n, L) numbers of tokens.
        streams: how many captions there are of an image in each stream.
    """

    tokenize: Callable[[Sequence[str]], Tensor]
    streams: Mapping[str, int]

    def __call__(self, captions: Sequence[str], seed: int) -> dict[str, Tensor]:
        """(number, L) tokens for each stream: of different captions, as long as there are any.

        Args:
            captions: of one image, at least one.
            seed: of the order in which they are taken.
        """
        order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(seed)).tolist()
        places = itertools.cycle(order)
        return {
            name: self.tokenize([captions[place] for place in itertools.islice(places, number)])
            for name, number in self.streams.items()
        }


class ViewSet(Dataset[ViewSample]):
    """The views of every image in every epoch. Each image is decoded once, however many views are made of it.

    A view depends on (seed, epoch, row, place of its stream, number of the view) and on nothing else.

    Args:
        image_set: the images.
        streams: what is made of an image, by name: for each view of a stream what makes it, (3, H, W) of the image. It
            draws from torch's global generator, which is left as it was found.
        seed: of all views, and of the captions' order.
        captions: what is made of an image's captions; None for a data set of images alone.
    """

    def __init__(
        self,
        image_set: ImageSet,
        streams: Mapping[str, Sequence[Callable[[Tensor], Tensor]]],
        seed: int = 0,
        captions: Captions | None = None,
    ) -> None:
        self.image_set, self.captions = image_set, captions
        self.streams = {name: list(makers) for name, makers in streams.items()}
        self.seed = seed

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, key: tuple[int, int]) -> ViewSample:
        """The views of an image in an epoch.

        Args:
            key: epoch (from 0) and row.

        Raises:
            UserError: the image cannot be read.
        """
        return self._samples([key])[0]

    def _samples(self, keys: Sequence[tuple[int, int]]) -> list[ViewSample]:
        state = torch.get_rng_state()
        self.image_set.fetch([row for _, row in keys])
        try:
            return [self._sample(*each) for group in self._read(keys) for each in group]
        finally:
            torch.set_rng_state(state)
            at_row(IDLE)

    def _read(self, keys: Sequence[tuple[int, int]]) -> Iterator[list[tuple[Tensor, int, int]]]:
        """Images with their epochs and rows, as many as one should hold at a time.

        A processor that does one thing for a while, and then the other, takes up to a fifth less time than one that
        goes to and fro between the decoder and the views of small images.
        """
        group: list[tuple[Tensor, int, int]] = []
        held = 0
        for epoch, row in keys:
            at_row(row)
            _seed(view_generator_seed(self.seed, epoch, row, _READING))  # in case the data set draws numbers, too
            image = self.image_set.reduced(row, self._reduction)
            group.append((image, epoch, row))
            held += image.numel()
            if held >= _READ_AHEAD:
                yield group
                group, held = [], 0
        yield group

    def _reduction(self, height: int, width: int) -> int:
        """What all augmentations allow; a user's own may need every pixel."""
        makers = itertools.chain.from_iterable(self.streams.values())
        return min(each.reduction(height, width) if isinstance(each, Augmentation) else 1 for each in makers)

    def _sample(self, image: Tensor, epoch: int, row: int) -> ViewSample:
        at_row(row)
        made: dict[str, list[Tensor]] = {}
        with torch.inference_mode():  # less to do around every operation
            for place, (name, makers) in enumerate(self.streams.items()):
                sizes: dict[torch.Size, list[Tensor]] = {}
                for number, maker in enumerate(makers):
                    _seed(view_generator_seed(self.seed, epoch, row, _number(place, number)))
                    view = maker(image)
                    sizes.setdefault(view.shape, []).append(view)
                made |= {name if k == 0 else f"{name} {k + 1}": views for k, views in enumerate(sizes.values())}
        # Stacked outside of it they are ordinary tensors.
        streams = {name: torch.stack(views) for name, views in made.items()}
        if self.captions is not None:
            streams |= self.captions(self._captions_of(row), view_generator_seed(self.seed, epoch, row, _CAPTIONS))
        return ViewSample(row, streams)

    def _captions_of(self, row: int) -> Sequence[str]:
        if captions := self.image_set.captions(row):
            return captions
        raise UserError(f"{self.image_set.describe(row)} has no caption; give one, or leave such images out")

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[ViewSample] | UserError:
        """The views of a batch; an error that is the user's is handed back, for torch would bury it in a traceback."""
        try:
            return self._samples(keys)
        except UserError as error:
            return UserError(*error.args)


def _number(place: int, view: int) -> int:
    """The number of a view in its seed: from 0 for the first stream, and below 0 for the others, so that the draws of one
    do not depend on how many views another has.
    """
    return view if place == 0 else -1 - view - (place - 1) * _APART


def _seed(seed: int) -> None:
    """Seed what views draw from; `torch.manual_seed` sees to every kind of device and takes a hundred times as long."""
    torch.default_generator.manual_seed(seed)


def collate(samples: list[ViewSample] | UserError) -> Batch | UserError:
    """One batch; images may differ in size, for only their views are stacked."""
    if isinstance(samples, UserError):
        return samples
    index = torch.tensor([sample.row for sample in samples], dtype=torch.int64)
    names = samples[0].streams
    batch = Batch(index, {name: torch.stack([sample.streams[name] for sample in samples]) for name in names})
    return handed_over(batch, batch.index, *batch.streams.values())


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """The batches of an epoch, each a list of (epoch, row): a permutation known by (seed, epoch).

    Batch k is the same set of images whatever the number of ranks; each rank takes every world-th of it. The last,
    incomplete batch is dropped (other images in each epoch), unless it is asked for, or the whole data set is smaller than
    a batch: then that is the one batch.

    Args:
        rows: n, images in the data set.
        batch_size: images in a batch, over all ranks.
        seed: of the order.
        rank: of this process.
        world: number of processes.
        keep_last: the last, incomplete batch is one of the epoch.

    Raises:
        UserError: a batch would hold fewer than two images, or none for some rank.
    """

    def __init__(
        self, rows: int, batch_size: int, seed: int = 0, rank: int = 0, world: int = 1, keep_last: bool = False
    ) -> None:
        if batch_size < 2:
            raise UserError(f"a batch of {batch_size} has no negatives: batch_size must be at least 2")
        if rows < 2:
            raise UserError(f"{rows} image has no negatives: the data set must hold at least 2 images")
        self.batch_size = min(batch_size, rows)
        if self.batch_size < world:
            raise UserError(
                f"a batch of {self.batch_size} images is too small for {world} processes: use fewer, or a larger batch"
            )
        last = rows % self.batch_size
        if keep_last and 0 < last < max(2, world):
            raise UserError(
                f"the last batch of {rows:,} images has {last}, too few for {world} process{'es' * (world > 1)}; leave keep_last "
                f"out, or give a batch size other than {self.batch_size}"
            )
        self.rows, self.seed, self.rank, self.world, self.keep_last = rows, seed, rank, world, keep_last
        self.epoch = 0
        self.start_batch = 0

    @property
    def batches_per_epoch(self) -> int:
        """Batches of a whole epoch."""
        return -(-self.rows // self.batch_size) if self.keep_last else self.rows // self.batch_size

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch that is gone through next, and the batch to start with (to resume within an epoch)."""
        if not 0 <= start_batch <= self.batches_per_epoch:
            raise ValueError(f"an epoch has {self.batches_per_epoch} batches: it cannot start with batch {start_batch}")
        self.epoch, self.start_batch = epoch, start_batch

    def __len__(self) -> int:
        return self.batches_per_epoch - self.start_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        generator = torch.Generator().manual_seed(view_generator_seed(self.seed, epoch, _ORDER, 0))
        order = torch.randperm(self.rows, generator=generator)
        for batch in range(self.start_batch, self.batches_per_epoch):
            images = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(epoch, row) for row in images[self.rank :: self.world].tolist()]


class ViewLoader(DataLoader):
    """A `DataLoader` of `Batch`es that raises a worker's `UserError` as that one sentence. Made by `view_loader`."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        if getattr(self._iterator, "_shutdown", False):  # after an error
            self._iterator = None
        return batches_of(super().__iter__())


def view_loader(
    view_set: ViewSet, sampler: Iterable[list[tuple[int, int]]], workers: int = 0, device: torch.device | str = "cpu"
) -> ViewLoader:
    """Loads batches of views in worker processes.

    Choose the epoch with `EpochSampler.set_epoch` before each pass. Batches do not depend on the number of workers, and the
    global random state of this process is left alone.

    Args:
        view_set: the views.
        sampler: batches of (epoch, row), as an `EpochSampler` gives them; they become the loader's.
        workers: processes that make views; 0 for this process.
        device: where the batches go: for a CUDA device they are put into pinned memory.
    """
    if workers:
        kernels()  # loaded once here rather than in each forked worker
    options: dict[str, Any] = {"persistent_workers": True} if workers else {}
    return ViewLoader(
        view_set,
        batch_sampler=sampler,
        **worker_options(view_set, workers),
        collate_fn=collate,
        pin_memory=torch.device(device).type == "cuda",
        **options,
    )
