import io
import itertools
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from falseneg.batch import Batch
from falseneg.data import (
    Augmentation,
    Digits,
    EpochSampler,
    Folder,
    ImageSet,
    Subset,
    ViewSet,
    collate,
    loader,
    view_loader,
)
from falseneg.errors import UserError

RICH = Augmentation(12, blur=0.5, solarize=0.3, randaugment=(2, 9), rotation=10.0)


@pytest.fixture
def digits():
    return Subset(Digits(), range(30))


def made(images, main=RICH, views=2, seed=0, support=()):
    further = [maker for number, maker in support for _ in range(number)]
    return ViewSet(images, {"image": [main] * views, "support": further}, seed)


def by_row(loader):
    return {
        int(row): views
        for batch in loader
        for row, *views in zip(batch.index, batch.streams["image"], batch.streams["support"], strict=True)
    }


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(a, b) for row in first for a, b in zip(first[row], second[row], strict=True)
    )


def views_of(images, batch_size=5, workers=0, epoch=1, seed=0, views=2, order=0):
    view_set = made(images, RICH, views, seed, [(2, Augmentation(8))])
    sampler = EpochSampler(len(images), batch_size, seed=order)
    sampler.set_epoch(epoch)
    return by_row(view_loader(view_set, sampler, workers))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_views_do_not_depend_on_workers_or_on_the_batch(digits):
    expected = views_of(digits)
    for workers, batch_size, order in ((1, 5, 0), (3, 5, 0), (0, 15, 7), (3, 6, 3)):
        torch.manual_seed(workers)
        assert same(expected, views_of(digits, batch_size, workers, order=order))


def test_views_depend_on_seed_epoch_row_and_view(digits):
    views = views_of(digits)
    for other in (views_of(digits, epoch=2), views_of(digits, seed=1)):
        assert sum(torch.equal(views[row][0], other[row][0]) for row in views) == 0
    assert not torch.equal(views[0][0][0], views[0][0][1]) and not torch.equal(views[0][1][0], views[0][1][1])
    twice = made(Subset(Digits(), [4, 4]), RICH)
    assert not torch.equal(twice[0, 0].streams["image"], twice[0, 1].streams["image"])


def test_more_views_change_neither_the_first_nor_the_support_views(digits):
    two, three = views_of(digits, views=2), views_of(digits, views=3)
    assert all(torch.equal(two[row][0], three[row][0][:2]) for row in two)
    assert all(torch.equal(two[row][1], three[row][1]) for row in two)


def test_support_views_are_other_views_even_with_the_same_augmentation(digits):
    sample = made(digits, RICH, views=2, support=[(2, RICH)])[0, 3]
    assert sample.streams["support"].shape == (2, 3, 12, 12)
    assert len({view.numpy().tobytes() for view in [*sample.streams["image"], *sample.streams["support"]]}) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_state_is_left_alone(digits, workers):
    sampler = EpochSampler(len(digits), 10)
    loader = view_loader(made(digits, RICH), sampler, workers)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), state)


def test_random_state_is_restored_after_an_error():
    class Broken(ImageSet):
        def __len__(self):
            return 2

        def image(self, row):
            raise UserError("broken")

    state = torch.get_rng_state()
    with pytest.raises(UserError, match="broken"):
        made(Broken(), RICH)[0, 0]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_data_set_that_draws_numbers_is_tamed(digits):
    class Noisy(ImageSet):
        def __len__(self):
            return 12

        def image(self, row):
            return torch.randint(0, 256, (3, 12, 12), dtype=torch.uint8)

    assert same(views_of(Noisy(), 4, 0), views_of(Noisy(), 4, 2))


def test_image_is_decoded_once_for_all_views(digits):
    class Counting(ImageSet):
        reads = 0

        def __len__(self):
            return 4

        def image(self, row):
            self.reads += 1
            return digits.image(row)

    images = Counting()
    made(images, RICH, views=3, support=[(4, RICH)])[0, 1]
    assert images.reads == 1


class Tall(ImageSet):
    """Images of 1,200 bytes; `events` lists what is read and what is made of it."""

    def __init__(self):
        self.events = []

    def __len__(self):
        return 6

    def image(self, row):
        self.events.append("read")
        return torch.full((3, 20, 20), row, dtype=torch.uint8)

    def augmentation(self, image):
        self.events.append("view")
        return image


@pytest.mark.parametrize(("ahead", "at_once"), [(1, 1), (1200, 1), (2500, 3), (10**6, 6)])
def test_no_more_images_are_read_ahead_than_are_allowed(monkeypatch, ahead, at_once):
    monkeypatch.setattr(loader, "_READ_AHEAD", ahead)
    images = Tall()
    samples = made(images, images.augmentation, views=2).__getitems__([(0, row) for row in range(6)])
    assert (
        [int(sample.streams["image"][0, 0, 0, 0]) for sample in samples]
        == [sample.row for sample in samples]
        == list(range(6))
    )
    assert images.events == (["read"] * at_once + ["view"] * 2 * at_once) * (6 // at_once)


def test_views_do_not_depend_on_how_far_is_read_ahead(digits, monkeypatch):
    view_set, keys = made(digits, RICH, support=[(2, Augmentation(8))]), [(1, row) for row in range(30)]
    together = collate(view_set.__getitems__(keys))
    monkeypatch.setattr(loader, "_READ_AHEAD", 0)
    apart = collate(view_set.__getitems__(keys))
    assert torch.equal(together.streams["image"], apart.streams["image"]) and torch.equal(
        together.streams["support"], apart.streams["support"]
    )


def test_views_are_ordinary_tensors(digits):
    sample = made(digits, RICH, support=[(1, RICH)])[0, 0]
    for views in sample.streams.values():
        assert not views.is_inference()
        views.mul_(1)  # a training loop may change them


@pytest.fixture(scope="module")
def photo():
    """A JPEG file of 1600 × 1200: noise whose amplitude falls as one over the frequency, as in photos."""
    draw, height, width = np.random.default_rng(0), 1200, 1600
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    waves = [np.fft.irfft2(np.fft.rfft2(draw.standard_normal((height, width))) / frequency) for _ in range(3)]
    colours = np.stack(waves, axis=-1)
    stream = io.BytesIO()
    Image.fromarray((128 + 50 * colours / colours.std()).clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


class Whole(Folder):
    """Decodes every pixel, for it has a decoder of its own."""

    def image(self, row):
        return super().image(row)


def test_views_of_a_large_photo_are_distributed_as_without_reduction(photo, tmp_path):
    (tmp_path / "a.jpg").write_bytes(photo)
    reduced, whole = (
        made(folder(str(tmp_path)), Augmentation(96), 200)[0, 0].streams["image"] for folder in (Folder, Whole)
    )
    assert not torch.equal(reduced, whole)
    reduced, whole = reduced.float(), whole.float()
    assert (reduced - whole).abs().mean() < 2.5  # the same crops, up to a pixel of the photo
    for statistic in (
        lambda views: views.mean(dim=(2, 3)),
        lambda views: views.std(dim=(2, 3)),
        lambda views: views.diff(dim=2).abs().mean(dim=(2, 3)),  # how sharp they are
        lambda views: views.diff(dim=3).abs().mean(dim=(2, 3)),
    ):
        difference = (statistic(reduced) - statistic(whole)).mean(dim=0)
        assert (difference.abs() < 0.02 * statistic(whole).mean(dim=0)).all()


def test_who_may_need_every_pixel_gets_it(photo, tmp_path):
    (tmp_path / "a.jpg").write_bytes(photo)
    folder, seen = Folder(str(tmp_path)), []

    def own(image):
        seen.append(tuple(image.shape))
        return image[:, :96, :96]

    class Watching(Augmentation):
        def __call__(self, image):
            seen.append(tuple(image.shape))
            return super().__call__(image)

    made(folder, own)[0, 0]
    made(folder, Watching(96), support=[(1, own)])[0, 0]
    made(folder, Watching(96), support=[(1, Watching(600))])[0, 0]
    made(Whole(str(tmp_path)), Watching(96))[0, 0]
    assert set(seen) == {(3, 1200, 1600)}
    seen.clear()
    made(Subset(folder, [0]), Watching(96), support=[(1, Watching(64))])[0, 0]
    assert set(seen) == {(3, 600, 800)}
    assert folder.image(0).shape == folder.load(0).image.shape == (3, 1200, 1600)


def test_batch_is_uint8_views_of_images_of_any_size(tmp_path, encode, picture):
    for number, (height, width) in enumerate([(20, 30), (7, 50), (64, 9)]):
        (tmp_path / f"{number}.png").write_bytes(encode(picture(number, height, width)))
    sampler = EpochSampler(3, 3)
    (batch,) = view_loader(made(Folder(str(tmp_path)), Augmentation(16), views=3), sampler)
    assert (
        isinstance(batch, Batch)
        and batch.streams["image"].shape == (3, 3, 3, 16, 16)
        and batch.streams["image"].dtype == torch.uint8
    )
    assert (
        batch.streams.keys() == {"image"}
        and batch.index.dtype == torch.int64
        and sorted(batch.index.tolist()) == [0, 1, 2]
    )


def test_collate_keeps_the_order(digits):
    view_set = made(digits, RICH, support=[(1, Augmentation(8))])
    batch = collate([view_set[0, row] for row in (7, 2)])
    assert batch.index.tolist() == [7, 2] and batch.streams["support"].shape == (2, 1, 3, 8, 8)
    assert torch.equal(batch.streams["image"][1], view_set[0, 2].streams["image"])


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_one_sentence_from_any_worker(tmp_path, write_images, workers):
    write_images(tmp_path, *(f"{number}.png" for number in range(8)))
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:-40])
    loader = view_loader(made(Folder(str(tmp_path)), Augmentation(8)), EpochSampler(8, 4), workers)
    with pytest.raises(UserError, match=r"^\S*5\.png cannot be read as an image") as caught:
        list(loader)
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


def test_a_bug_in_a_worker_keeps_its_traceback():
    class Bug(ImageSet):
        def __len__(self):
            return 4

        def image(self, row):
            return [][row]

    with pytest.raises(IndexError, match="Original Traceback"):
        list(view_loader(made(Bug(), RICH), EpochSampler(4, 2), workers=1))


def test_killed_worker_is_one_sentence():
    class Killed(ImageSet):
        def __len__(self):
            return 4

        def image(self, row):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError, match="data-loading process was killed.*fewer workers"):
        list(view_loader(made(Killed(), RICH), EpochSampler(4, 2), workers=1))


def test_epochs_follow_each_other_with_lasting_workers(digits):
    sampler = EpochSampler(len(digits), 10)
    loader = view_loader(made(digits, RICH, support=[(1, RICH)]), sampler, workers=2)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        expected = made(digits, RICH, support=[(1, RICH)])
        found = by_row(loader)
        assert len(found) == 30 and all(
            torch.equal(found[row][0], expected[epoch, row].streams["image"]) for row in range(30)
        )


def batches(rows, batch_size, epoch=0, start=0, **options):
    sampler = EpochSampler(rows, batch_size, **options)
    sampler.set_epoch(epoch, start)
    found = list(sampler)
    assert len(found) == len(sampler)
    assert all(of_epoch == epoch for batch in found for of_epoch, _ in batch)
    return [[row for _, row in batch] for batch in found]


def test_order_is_a_permutation_known_by_seed_and_epoch():
    first = batches(20, 4)
    assert sorted(itertools.chain(*first)) == list(range(20)) and list(itertools.chain(*first)) != list(range(20))
    torch.manual_seed(5)
    assert first == batches(20, 4)
    assert first != batches(20, 4, epoch=1) and first != batches(20, 4, seed=1)


def test_last_incomplete_batch_is_dropped():
    found = batches(23, 5)
    assert [len(batch) for batch in found] == [5, 5, 5, 5] and len(set(itertools.chain(*found))) == 20


@pytest.mark.parametrize("rows", [2, 7])
def test_data_smaller_than_a_batch_are_one_batch(rows):
    (batch,) = batches(rows, 8)
    assert sorted(batch) == list(range(rows))


def test_epoch_can_start_in_its_middle():
    assert batches(50, 6, epoch=3, start=5) == batches(50, 6, epoch=3)[5:]
    assert batches(50, 6, start=8) == []
    sampler = EpochSampler(50, 6)
    sampler.set_epoch(0, 5)
    sampler.set_epoch(1)
    assert len(sampler) == 8 == sampler.batches_per_epoch
    with pytest.raises(ValueError, match="8 batches"):
        sampler.set_epoch(0, 9)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_share_the_very_batches_of_one_process(world):
    alone = batches(26, 6, epoch=2)
    shares = [batches(26, 6, epoch=2, rank=rank, world=world) for rank in range(world)]
    for number, batch in enumerate(alone):
        parts = [share[number] for share in shares]
        assert sorted(itertools.chain(*parts)) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1 and min(map(len, parts)) >= 1
    assert {len(share) for share in shares} == {4}


@pytest.mark.parametrize(
    ("rows", "batch_size", "world", "message"),
    [
        (10, 1, 1, "batch of 1 has no negatives"),
        (1, 4, 1, "at least 2 images"),
        (10, 2, 3, "too small for 3 processes"),
    ],
)
def test_batches_without_negatives_are_refused(rows, batch_size, world, message):
    with pytest.raises(UserError, match=message):
        EpochSampler(rows, batch_size, world=world)


def test_memory_is_pinned_for_cuda_only(digits):
    view_set, sampler = made(digits, RICH), EpochSampler(30, 10)
    assert not view_loader(view_set, sampler).pin_memory
    assert view_loader(view_set, sampler, device=torch.device("cuda", 0)).pin_memory


def test_full_shared_memory_is_one_sentence_and_no_endless_wait(digits, monkeypatch):
    def full(tensor):
        raise RuntimeError("unable to write to file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(UserError, match=r"shared memory \(/dev/shm\), through which .* is full: enlarge it"):
        list(view_loader(made(digits, RICH), EpochSampler(30, 10), workers=1))
