"""Digits with captions, and two towers so small that they learn in seconds."""

import torch

import falseneg as fn
from falseneg.data import Digits, Subset

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


class CaptionedDigits(Subset):
    """Every digit with a caption of its own, and one that all of its class share."""

    captioned = True

    def __init__(self, split="train", images=None, own=True):
        digits = Digits(split)
        super().__init__(digits, range(len(digits) if images is None else images))
        self.captioned, self.own = True, own

    def captions(self, row):
        word = WORDS[int(self.labels[row])]
        return (f"{word}, a handwritten digit",) + ((f"picture {row} of the digit {word}",) if self.own else ())


def towers(**options):
    torch.manual_seed(0)
    encoder = fn.Encoder("resnet10t", image_size=8, arguments={"stem_width": 8, "channels": [8, 16, 16, 16]})
    return fn.CLIP(encoder, fn.TextEncoder(width=16, layers=1, heads=2, context_length=12), dim=16, **options)


def run(**options):
    given = {"augmentation": fn_augmentation(), "temperature": fn.LearnedTemperature(), "batch_size": 64, "epochs": 1}
    given |= {"data": CaptionedDigits(images=300), "test": CaptionedDigits("test", images=100), "workers": 0}
    if "method" not in options:
        given["method"] = towers()
    return fn_run(**(given | options))


def fn_augmentation():
    from falseneg.data import Augmentation

    return Augmentation(size=8, crop_scale=(0.6, 1.0), flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0)


def fn_run(**options):
    from falseneg.train.run import Run

    return Run(**options)
