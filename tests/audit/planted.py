"""A folder of pictures in which it is known what is equal, what is nearly so and what is of one kind."""

import numpy as np
import torch
from PIL import Image
from torch import nn

CLASSES, OF_CLASS, SIDE = 6, 12, 16
COLOURS = [(200, 30, 30), (30, 180, 30), (30, 30, 200), (210, 200, 30), (160, 40, 190), (160, 40, 190)]
"""Of the classes: the last two are two names for one thing."""


class Pixels(nn.Module):
    """Features that are the pixels."""

    image_size = SIDE
    feature_dim = 3 * SIDE * SIDE

    def forward(self, images):
        return images.flatten(1).float() / 255


def picture(rng, kind):
    """A colour for the class, and what differs from image to image: a smooth texture that views leave alone."""
    coarse = rng.normal(0, 38, (4, 4, 3))
    texture = np.kron(coarse, np.ones((SIDE // 4, SIDE // 4, 1)))
    return np.clip(np.array(COLOURS[kind]) + texture, 0, 255).astype(np.uint8)


def plant(folder, labelled=True):
    """Write the folder.

    Returns:
        names of exact copies, as pairs, and of near copies: file names below the folder.
    """
    rng = np.random.default_rng(0)
    made = {}
    for kind in range(CLASSES):
        place = folder / f"kind{kind}" if labelled else folder
        place.mkdir(parents=True, exist_ok=True)
        for number in range(OF_CLASS):
            made[kind, number] = picture(rng, kind)
            Image.fromarray(made[kind, number]).save(place / f"k{kind}-{number:02d}.png")

    def path(kind, name):
        return folder / f"kind{kind}" / name if labelled else folder / name

    path(0, "copy.png").write_bytes(path(0, "k0-00.png").read_bytes())
    Image.fromarray(made[1, 3]).save(path(1, "other-format.bmp"))
    near = np.clip(made[2, 5].astype(int) + rng.integers(-2, 3, made[2, 5].shape), 0, 255).astype(np.uint8)
    Image.fromarray(near).save(path(2, "near.png"))
    exact = {frozenset(pair) for pair in (("copy.png", "k0-00.png"), ("k1-03.png", "other-format.bmp"))}
    return exact, {frozenset(("k2-05.png", "near.png"))}


def random_sample(rows=60, features=6, kinds=4, seed=0):
    """A sample of the detectors, of images that lie around a few centres, and their kinds."""
    from falseneg.audit.sample import Sample

    draws = torch.Generator().manual_seed(seed)
    kind = torch.arange(rows) % kinds
    points = torch.randn(kinds, features, generator=draws)[kind] * 2 + torch.randn(rows, features, generator=draws)
    views = points[:, None] + 0.3 * torch.randn(rows, 2, features, generator=draws)
    return Sample(torch.arange(rows) + 100, points, views), kind
