"""Views per second from the bytes of image files, beside lightly's SimCLR transform and torchvision's v2.

    pip install lightly
    python benchmarks/views.py --out benchmarks/results/DATE-views.md

Everybody gets the same bytes, one image after the other, on one thread, and makes what a training step is handed: a
batch of V views of each image, with the same strengths of the same distortions. Images of 32 and 96 pixels are PNG, as in
the usual Parquet files of CIFAR-10; for views of 224 they are JPEG of 500 × 375, quality 90, as in ImageNet. Without
`--photos` they are made: smooth noise whose amplitude falls as one over the frequency, as that of photos does.
lightly decodes with PIL, once for all views, and hands over normalised floats; ours are bytes, which the encoder
normalises on its device. The second row normalises them here as well. Views of 32 pixels are not blurred. Calls
alternate in one process, so that a busy machine is as unfair to one as to the other; figures are medians of CPU time.
What ours spends its time with are differences of such medians: a small negative one is noise.
"""

from __future__ import annotations

import argparse
import datetime
import io
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from falseneg.data import Augmentation, ViewSet, collate
from falseneg.data.decoding import decode
from falseneg.data.image_set import EncodedSet
from falseneg.models.encoder import SMALL_IMAGE

Call = Callable[[], object]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OURS, LIGHTLY = "falseneg", "lightly SimCLRTransform"
PHOTO = 500, 375


class Files(EncodedSet):
    """Bytes of image files in a list."""

    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def encoded(self, row: int) -> bytes:
        return self.files[row]


def made_photo(number: int, width: int, height: int) -> Image.Image:
    """Noise whose amplitude falls as one over the frequency, its channels mixed so that they resemble each other."""
    draw = np.random.default_rng(number)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    noise = [np.fft.irfft2(np.fft.rfft2(draw.standard_normal((height, width))) / frequency) for _ in range(3)]
    colours = np.einsum("ij,jhw->hwi", np.array([[1, 0.4, 0], [1, 0, 0.3], [1, -0.3, -0.2]]), np.stack(noise))
    return Image.fromarray((128 + 50 * colours / colours.std()).clip(0, 255).astype(np.uint8))


def files_for(size: int, number: int, photos: Path | None) -> list[bytes]:
    """Image files for views of so many pixels: PNG of that size, or for large views JPEG, photos as they are."""
    paths = sorted(photos.rglob("*.jpg")) if photos else []
    chosen = paths[:: max(1, len(paths) // number)][:number]
    if size > 96 and chosen:
        return [path.read_bytes() for path in chosen]
    shape = PHOTO if size > 96 else (size, size)
    pictures = [Image.open(path).convert("RGB").resize(shape) for path in chosen]
    pictures = pictures or [made_photo(seed, *shape) for seed in range(number)]
    return [encoded(picture, "JPEG" if size > 96 else "PNG") for picture in pictures]


def encoded(picture: Image.Image, form: str) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **({"quality": 90} if form == "JPEG" else {}))
    return stream.getvalue()


def blur_probability(size: int) -> float:
    return 0.0 if size <= SMALL_IMAGE else 0.5


def ours(files: list[bytes], size: int, views: int, normalised: bool = False) -> Call:
    """The library's own path from bytes to a batch; `normalised` adds what the encoder does with it."""
    view_set, keys = (
        ViewSet(Files(files), {"image": [Augmentation(size)] * views}),
        [(0, row) for row in range(len(files))],
    )
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))

    def call() -> Tensor:
        main = collate(view_set.__getitems__(keys)).streams["image"]
        return (main.float() / 255 - mean) / std if normalised else main

    return call


def lightly(files: list[bytes], size: int, views: int) -> Call:
    from lightly.transforms.multi_view_transform import MultiViewTransform
    from lightly.transforms.simclr_transform import SimCLRTransform

    two = SimCLRTransform(size, gaussian_blur=blur_probability(size))
    transform = MultiViewTransform([two.transforms[0]] * views)
    return lambda: default_collate([transform(Image.open(io.BytesIO(data)).convert("RGB")) for data in files])


def torchvision(files: list[bytes], size: int, views: int) -> Call:
    """What its own documentation advises: v2 on uint8 tensors, decoded by its own decoder."""
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.08, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(max(3, size // 10 | 1), (0.1, 2.0))], blur_probability(size)),
        ]
    )

    def views_of(data: bytes) -> Tensor:
        image = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
        return torch.stack([transform(image) for _ in range(views)])

    return lambda: torch.stack([views_of(data) for data in files])


CONTENDERS: dict[str, Callable[[list[bytes], int, int], Call]] = {
    OURS: ours,
    f"{OURS}, and normalised": lambda files, size, views: ours(files, size, views, normalised=True),
    LIGHTLY: lightly,
    "torchvision v2 on uint8": torchvision,
}


def parts(files: list[bytes], size: int, views: int) -> dict[str, Call]:
    """Calls of ours, of which each does one thing more than the one before; the decoder apart, and the whole."""
    images = [decode(data, "").image for data in files]
    options: dict[str, float] = dict.fromkeys(("flip", "jitter", "grayscale", "blur"), 0.0)

    def distort(augmentation: Augmentation) -> Call:
        return lambda: [augmentation(image) for image in images for _ in range(views)]

    found: dict[str, Call] = {"decode": lambda: [decode(data, "") for data in files]}
    found["draw, crop and resize"] = distort(Augmentation(size, **options))  # type: ignore[arg-type]
    for name in options:
        options[name] = blur_probability(size) if name == "blur" else getattr(Augmentation(), name)
        found[name] = distort(Augmentation(size, **options))  # type: ignore[arg-type]
    return found | {"whole": ours(files, size, views), "normalised": ours(files, size, views, normalised=True)}


def decomposed(spent: dict[str, float]) -> dict[str, float]:
    """From the calls of `parts` what each operation takes."""
    names = list(spent)
    steps = names[1:-2]
    found = {"decode": spent["decode"], steps[0]: spent[steps[0]]}
    found |= {name: spent[name] - spent[before] for before, name in pairwise(steps)}
    found["seeds, stacks, cold caches"] = spent["whole"] - spent["decode"] - spent[steps[-1]]
    return found | {"whole": spent["whole"], "to normalise": spent["normalised"] - spent["whole"]}


def alternating(calls: dict[str, Call], seconds: float) -> dict[str, float]:
    """Median CPU seconds of each call."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    started = time.perf_counter()
    while min(map(len, spent.values())) < 5 or time.perf_counter() - started < seconds:
        for name, call in calls.items():
            before = time.process_time()
            call()
            spent[name].append(time.process_time() - before)
    return {name: statistics.median(times) for name, times in spent.items()}


def table(size: int, views: int, files: list[bytes], seconds: float) -> str:
    """Of one size and number of views: the contenders, and what ours spends its time with, per view."""
    made = len(files) * views
    spent = alternating({name: make(files, size, views) for name, make in contenders().items()}, seconds)
    lines = [
        f"\n## {size} pixels, {views} views an image\n",
        "| | CPU ms a view | views a CPU second | lightly's time over this |",
    ]
    lines.append("| --- | --- | --- | --- |")
    for name, time_of_all in spent.items():
        ratio = f"{spent[LIGHTLY] / time_of_all:.2f}" if LIGHTLY in spent else ""
        lines.append(f"| {name} | {1e3 * time_of_all / made:.3f} | {made / time_of_all:,.0f} | {ratio} |")
    operations = decomposed(alternating(parts(files, size, views), seconds))
    lines += [
        "",
        "Of ours, CPU ms a view: " + ", ".join(f"{n} {1e3 * t / made:.3f}" for n, t in operations.items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def contenders() -> dict[str, Callable[[list[bytes], int, int], Call]]:
    """Those that are installed."""
    try:
        import lightly.transforms  # noqa: F401
    except ImportError:
        return {name: make for name, make in CONTENDERS.items() if name != LIGHTLY}
    return CONTENDERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 96, 224])
    parser.add_argument("--views", nargs="+", type=int, default=[2, 10])
    parser.add_argument("--images", type=int, default=32, help="in a batch")
    parser.add_argument("--photos", type=Path, help="a folder of .jpg files to take in the place of made images")
    parser.add_argument("--seconds", type=float, default=20.0, help="for all calls that alternate, about")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    heading = (
        f"# Views, {datetime.date.today()}\n\n`python {' '.join(['benchmarks/views.py', *sys.argv[1:]])}`\n\n"
        f"{platform.machine()}, one thread of {os.cpu_count()} cores, torch {torch.__version__}, torchvision "
        f"{version('torchvision')}, Pillow {version('pillow')}. {__doc__.split(chr(10) * 2)[2]}\n"
    )
    text = heading
    for size in options.sizes:
        files = files_for(size, options.images, options.photos)
        for views in options.views:
            found = table(size, views, files, options.seconds)
            print(found, flush=True)
            text += found
            if options.out:
                options.out.write_text(text)


if __name__ == "__main__":
    main()
