"""What the papers publish, to stand beside what is measured here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from falseneg.evaluation.metrics import TOP_1, TOP_5
from falseneg.evaluation.transfer_sets import TRANSFER_SETS
from falseneg.evaluation.voc_detection import AP50, VOC_TEST


@dataclass(frozen=True)
class Published:
    """A published figure.

    Attributes:
        protocol: the name of the protocol.
        on: what it was measured on or with, as a `Figure` says it.
        metric: as there.
        method: whose it is.
        value: a share in [0, 1].
    """

    protocol: str
    on: str
    metric: str
    method: str
    value: float


SOURCES = {
    "linear": "ImageNet, ResNet-50; FNC (arXiv 2011.11765), table 5",
    "semi-supervised": "ImageNet, ResNet-50; FNC (arXiv 2011.11765), table 6",
    "transfer": "ResNet-50 pretrained on ImageNet; FNC (arXiv 2011.11765), table 7, linear evaluation",
    "fine-tuning": "ResNet-50 pretrained on ImageNet; FNC (arXiv 2011.11765), table 7, fine-tuned",
    "voc-detection": "ResNet-50 pretrained on ImageNet; FNC (arXiv 2011.11765), table 8",
    "label-fractions": "ImageNet-100, ResNet-50, SogCLR, mean of 3; GloFND (arXiv 2502.20612), read from its plots",
    "few-label": "NSCL (arXiv 2506.04411), 100 labels a class",
}
"""Where the figures of a protocol stand, and what they were measured on."""

_LINEAR = """
Supervised 76.5 -
MoCo v2    71.1 -
SimCLR v1  69.3 89.0
SimCLR v2  71.7 90.4
BYOL       74.3 91.6
SwAV       75.3 -
FNC        74.4 91.8
"""
_SEMI_SUPERVISED = """
Supervised 25.4 56.4 48.4 80.4
SimCLR v1  48.3 75.5 65.6 87.8
SimCLR v2  57.9 82.5 68.4 89.2
BYOL       53.2 78.4 68.8 89.0
SwAV       53.9 78.5 70.2 89.9
FNC        63.7 85.3 71.1 90.2
"""
_TRANSFER = """
SimCLR v1  68.4 90.6 71.6 37.4 58.8 50.3 50.3 80.5 74.5 83.6 90.3 91.2
SimCLR v2  73.9 92.4 76.0 44.7 61.0 54.9 51.1 81.2 76.5 85.0 91.2 93.5
BYOL       75.3 91.3 78.4 57.2 62.2 67.8 60.6 82.5 75.5 90.4 94.2 96.1
FNC        74.4 93.0 76.8 54.0 63.2 68.8 61.3 83.0 76.3 89.0 93.5 94.9
"""
_FINE_TUNING = """
SimCLR v1  88.2 97.7 85.9 75.9 63.5 91.3 88.1 84.1 73.2 89.2 92.1 97.0
SimCLR v2  88.2 97.5 86.0 74.9 64.6 91.8 87.6 84.1 74.7 89.9 92.3 97.2
BYOL       88.5 97.8 86.1 76.3 63.7 91.6 88.1 85.4 76.2 91.7 93.8 97.0
FNC        88.3 97.7 86.8 76.3 64.2 92.0 88.5 84.7 76.0 90.9 93.6 97.5
"""
_DETECTION = """
Supervised 81.3
MoCo v2    82.5
SwAV       82.6
FNC        82.8
"""
_LABEL_FRACTIONS = """
SogCLR     76.55 72.21 63.23 34.81
GloFND     77.59 73.36 65.09 37.38
"""
_FEW_LABEL = """
CIFAR-10                        86.3
CIFAR-10, with true labels      95.6
CIFAR-100                       61.7
CIFAR-100, with true labels     73.7
mini-ImageNet                   72.9
mini-ImageNet, with true labels 81.3
"""


def _table(protocol: str, text: str, columns: Sequence[tuple[str, str]]) -> Iterator[Published]:
    """Figures from a table: the method, then a percentage or "-" for each column."""
    for line in text.strip().splitlines():
        words = line.split()
        method = " ".join(words[: -len(columns)])
        for (on, metric), percent in zip(columns, words[-len(columns) :], strict=True):
            if percent != "-":
                yield Published(protocol, on, metric, method, float(percent) / 100)


_SETS = [(name, kind.metric) for name, kind in TRANSFER_SETS.items()]
_SHARES = [(f"{share}% of the labels", TOP_1) for share in ("100", "10", "1", "0.1")]

PUBLISHED: tuple[Published, ...] = (
    *_table("linear", _LINEAR, [("", TOP_1), ("", TOP_5)]),
    *_table(
        "semi-supervised", _SEMI_SUPERVISED, [(f"{n}% of the labels", top) for n in (1, 10) for top in (TOP_1, TOP_5)]
    ),
    *_table("transfer", _TRANSFER, _SETS),
    *_table("fine-tuning", _FINE_TUNING, _SETS),
    *_table("voc-detection", _DETECTION, [(VOC_TEST, AP50)]),
    *_table("label-fractions", _LABEL_FRACTIONS, _SHARES),
    *_table("few-label", _FEW_LABEL, [("100 labels a class", TOP_1)]),
)
"""The figures of `SOURCES`."""


def methods_of(protocol: str) -> list[str]:
    """Whose figures there are for a protocol, in the papers' order."""
    return list(dict.fromkeys(each.method for each in PUBLISHED if each.protocol == protocol))


def published(protocol: str, on: str, metric: str) -> dict[str, float]:
    """The figures that stand beside one of these, by method."""
    key = protocol, on, metric
    return {each.method: each.value for each in PUBLISHED if (each.protocol, each.on, each.metric) == key}
