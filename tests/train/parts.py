"""Small parts that the training tests share."""

import torch

import falseneg as fn
from falseneg.data import Augmentation, Digits, ImageSet, Subset
from falseneg.train import AdamW, Run
from falseneg.train.metrics import read_metrics

TINY = {"channels": [8, 8, 8, 8], "drop_rate": 0.2, "drop_path_rate": 0.2, "zero_init_last": False}


def tiny_encoder(seed=0, **arguments):
    torch.manual_seed(seed)
    return fn.Encoder("resnet18", 8, arguments={**TINY, **arguments})


def digits(images=96, split="train"):
    return Subset(Digits(split), torch.arange(images))


def tiny_run(seed=0, **options):
    """A run of a second or two: 96 digits, 3 batches an epoch."""
    method = options.pop("method", None) or fn.SimCLR(tiny_encoder(seed), support_views=1)
    parts = {
        "data": digits(),
        "method": method,
        "detector": fn.SupportSet(top_k=4),
        "temperature": fn.LearnedTemperature(),
        "augmentation": Augmentation(crop_scale=(0.4, 1.0), flip=0.0),
        "optimiser": AdamW(1e-3),
        "test": digits(60, "test"),
        "epochs": 3,
        "batch_size": 32,
        "workers": 0,
        "log_every": 2,
        "deterministic": True,
        "seed": seed,
    }
    return Run(**{**parts, **options})


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["method"]


def assert_same_weights(one, other):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def untimed(folder):
    timed = ("seconds", "seconds_per_epoch", "images_per_second", "peak_memory_mib")
    return [{key: value for key, value in line.items() if key not in timed} for line in read_metrics(folder)]


class FirstWeights(fn.InfoNCE):
    """Notes a method's state as the first step finds it."""

    def __init__(self, method):
        super().__init__()
        self.look, self.seen = method.state_dict, {}

    def forward(self, *arguments, clock=None):
        if not self.seen:
            self.seen = {key: value.clone() for key, value in self.look().items()}
        return super().forward(*arguments)


class Unlabelled(ImageSet):
    """Digits without labels; one of them can be broken."""

    def __init__(self, broken=None):
        self.inside, self.broken = digits(), broken

    def __len__(self):
        return len(self.inside)

    def image(self, row):
        if row == self.broken:
            raise fn.UserError(f"number {row} is broken")
        return self.inside.image(row)
