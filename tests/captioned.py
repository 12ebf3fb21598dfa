"""Digits with captions, and two towers so small that they learn in seconds."""

import io
import json
import tarfile

import torch
from PIL import Image

import falseneg as fn
from falseneg.data import Augmentation, Digits, Subset
from falseneg.train import AdamW, Run

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

TINY_OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4},
    "text_cfg": {"context_length": 10, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


class CaptionedDigits(Subset):
    """Each digit has a caption that all of its class share, and two of its own, unless it is to have one only."""

    def __init__(self, split="train", images=96, one=False):
        super().__init__(Digits(split), range(images))
        self.captioned, self.one = True, one

    def captions(self, row):
        word = WORDS[int(self.labels[row])]
        several = f"{word}, a handwritten digit", f"picture {row} of the digit {word}", f"{word} number {row}"
        return several[:1] if self.one else several


def two_towers(seed=0, **options):
    torch.manual_seed(seed)
    encoder = fn.Encoder("resnet10t", image_size=8, arguments={"stem_width": 8, "channels": [8, 8, 16, 16]})
    return fn.CLIP(encoder, fn.TextEncoder(width=16, layers=1, heads=2, context_length=12), dim=16, **options)


def pair_run(seed=0, **options):
    """A run of a second or two: 96 digits, 3 batches an epoch."""
    parts = {
        "data": CaptionedDigits(),
        "method": options.pop("method", None) or two_towers(seed),
        "temperature": fn.LearnedTemperature(),
        "augmentation": Augmentation(crop_scale=(0.6, 1.0), flip=0.0, jitter=0.0, grayscale=0.0),
        "optimiser": AdamW(3e-3),
        "test": CaptionedDigits("test", 60),
        "epochs": 3,
        "batch_size": 32,
        "workers": 0,
        "log_every": 2,
        "deterministic": True,
        "seed": seed,
    }
    return Run(**{**parts, **options})


def write_shards(folder, split="train", images=96, shards=3):
    """The same images as webdataset writes them: pictures, captions and names of classes in KEY.json."""
    folder.mkdir()
    data = CaptionedDigits(split, images)
    for shard in range(shards):
        with tarfile.open(folder / f"{split}-{shard}.tar", "w") as tar:
            for row in range(shard, images, shards):
                picture = io.BytesIO()
                Image.fromarray(data.image(row).permute(1, 2, 0).numpy()).save(picture, "png")
                about = {"name": WORDS[int(data.labels[row])], "captions": data.captions(row)}
                for ending, content in (("png", picture.getvalue()), ("json", json.dumps(about).encode())):
                    member = tarfile.TarInfo(f"{row:04d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return str(folder / f"{split}-*.tar")
