"""The treatments that can be compared by name: what each changes in a configuration. All else stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from falseneg.compare.other_runs import RUN_OF

Overrides = Mapping[str, Any]

NAMES = (
    *("none", "fnc-eliminate", "fnc-attract", "ifnd", "glofnd", "batch-quantile", "shared-threshold"),
    *("sogclr", "sogclr-glofnd", "moco", "moco-fnc-attract", "debiased", "hard-negatives", "relative-to-positive"),
    *("same-text", "same-image", "neighbour-graph", "second-pass", "wcl"),
    *("oracle", "oracle-eliminate"),
)
"""All variants that have a name."""
BY_DEFAULT = ("none", "fnc-eliminate", "ifnd", "glofnd", "second-pass", "oracle-eliminate")
"""Those that are compared when none is named: the papers' by elimination, so that one oracle shows the gap of each, and a second pass.

The latter attracts most of what it flags, and so may close more than the gap of elimination.

On digits FNC's attraction spreads twice as much as the others and blurs what can be seen of them.
"""
AGREEMENT = 0.35
"""Of two graphs of a run, made of different views: below, a second pass does nothing.

It errs on the safe side: where the graph was right in a third or less it was .29 at most, where acting helped .28 and more
(docs/which-detector.md).
"""
TWO_TOWERS = ("falseneg.CLIP", "falseneg.OpenCLIP")
"""Methods that compare images with texts."""
SUPPORT_VIEWS = 4
"""Support views of the FNC variants where the configuration has none. The paper finds 8 best; 4 cost half."""
GLOFND_START = "35%"
"""Of the training: when GloFND and its baselines start; epoch 70 of 200 in the paper's experiments."""
MOST_KEYS = 65_536
"""Of the bank of the MoCo variants, at most: that of MoCo itself, on 1.28 million images."""
MOMENTUM = (0.9, 0.999)
"""Of the momentum encoder, at least and at most: the latter is MoCo's."""


def named_variants(base: Mapping[str, Any], images: int) -> dict[str, Overrides]:
    """The variants by name.

    FNC (Huynh et al. 2022, section 4.3) does best with the 8 most similar of 8,190 candidates in 1,000 classes for
    elimination, which is one over the number of classes, and with half as many for attraction. IFND and GloFND keep the
    configuration's method, so that only the treatment of false negatives differs. Two towers have variants that compare
    texts with texts, and images with images, and none with a memory bank or a second pass.

    Args:
        base: the configuration that all variants share, with nothing left open. Without ``expected_classes``, the
            variants that cannot do without are left out.
        images: how many there are to learn from.
    """
    variants: dict[str, Overrides] = {"none": _treatment(_part("NoDetection"), "ignore")}
    if base["expected_classes"] is not None:
        variants |= _of_classes(base, images)
    variants["sogclr"] = _without_detector(_sogclr(base))
    if not two_towers(base):
        variants["moco"] = {"method": _moco(base, images)} | _treatment(_part("NoDetection"), "ignore")
    variants["relative-to-positive"] = _treatment(_part("RelativeToPositive", relative_margin=0.05), "eliminate")
    variants["wcl"] = _treatment(_part("BatchComponents"), "attract")
    variants["oracle"] = _treatment(_part("Oracle"), "attract")
    variants["oracle-eliminate"] = _treatment(_part("Oracle"), "eliminate")
    return {name: variants[name] for name in NAMES if name in variants}


def two_towers(base: Mapping[str, Any]) -> bool:
    """Whether the method of a configuration compares images with texts."""
    return any(_same_class(base["method"]["class_path"], name) for name in TWO_TOWERS)


def changed(configuration: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """The configuration with the overrides in it. A class of another name takes nothing over from the one before."""
    result = copy.deepcopy(dict(configuration))
    for key, value in overrides.items():
        if key == "class_path" and key in result:  # here it is the same, perhaps by its bare name
            continue
        old = result.get(key)
        other_class = isinstance(value, Mapping) and not _same_class(value.get("class_path"), _class_of(old))
        if isinstance(value, Mapping) and isinstance(old, Mapping) and not other_class:
            result[key] = changed(old, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _of_classes(base: Mapping[str, Any], images: int) -> dict[str, Overrides]:
    """The variants that flag one over the number of classes, or cluster into multiples of it."""
    share = 1 / base["expected_classes"]
    crops = sum(group["number"] for group in base.get("multi_crop") or ())
    support_views = crops or base["method"].get("init_args", {}).get("support_views") or SUPPORT_VIEWS
    support = {"method": {"init_args": {"support_views": support_views}}}
    attract = _treatment(_part("SupportSet", share=share / 2), "attract")
    learned = _part("GlobalThreshold", alpha=share, start=GLOFND_START)
    shared = _part("GlobalThreshold", alpha=share, start=GLOFND_START, shared=True)
    quantile = _part("StartAt", detector=_part("BatchQuantile", alpha=share), at=GLOFND_START)
    variants: dict[str, Overrides] = {
        "fnc-eliminate": support | _treatment(_part("SupportSet", share=share), "eliminate"),
        "fnc-attract": support | attract,
        "ifnd": _treatment(_part("IncrementalClusters"), "eliminate"),
        "glofnd": _treatment(learned, "eliminate-renormalised"),
        "batch-quantile": _treatment(quantile, "eliminate-renormalised"),
        "shared-threshold": _treatment(shared, "eliminate-renormalised"),
        "sogclr-glofnd": {"objective": _sogclr(base)} | _treatment(learned, "eliminate"),
        "neighbour-graph": _treatment(_part("NeighbourGraph"), "eliminate"),
        "debiased": _without_detector(_part("Debiased", class_prior=share)),
        "hard-negatives": _without_detector(_part("HardNegatives", class_prior=share)),
    }
    if not two_towers(base):
        variants["second-pass"] = _treatment(_second_pass(base["expected_classes"]), "eliminate")
        return variants | {"moco-fnc-attract": {"method": _moco(base, images, support_views)} | attract}
    for kind in ("text", "image"):
        similar = _part("StartAt", detector=_part("BatchQuantile", alpha=share, space=kind), at=GLOFND_START)
        variants[f"same-{kind}"] = _treatment(similar, "eliminate-renormalised")
    return variants


def _second_pass(classes: int) -> dict[str, Any]:
    """Compares by the run without treatment; the numbers were chosen on digits (10 kinds), with the seeds 0 to 2."""
    return _part(
        "NeighbourGraph",
        guide=f"{RUN_OF}none",
        neighbours=5,
        eigenvectors=classes + classes // 5,
        attract=0.9,
        agreement=AGREEMENT,
    )


def _sogclr(base: Mapping[str, Any]) -> dict[str, Any]:
    return _part("GlobalContrastive", **({"relative": True} if two_towers(base) else {}))


def _moco(base: Mapping[str, Any], images: int, support_views: int | None = None) -> dict[str, Any]:
    """MoCo v2 with the encoder and the head of the configuration.

    Its bank holds half of the images, but at least the keys of a step; its momentum encoder averages over a twentieth of the
    training, but not over more steps than MoCo's own: both follow from the data's size, because MoCo's are made for 1.28
    million images.
    """
    method = base["method"]
    kept = (
        *("encoder", "head_layers", "head_hidden", "head_dim", "head_batch_norm", "head_last_batch_norm"),
        *("head_last_affine", "views", "support_views", "support_as_positives"),
    )
    arguments = {name: value for name, value in method.get("init_args", {}).items() if name in kept}
    if support_views is not None:
        arguments["support_views"] = support_views
    if not _same_class(method["class_path"], "falseneg.MoCo"):
        arguments.setdefault("head_batch_norm", True)  # as in SimCLR: only the method is to differ
        steps = base["epochs"] * max(1, images // base["batch_size"])
        least, most = MOMENTUM
        arguments["momentum"] = round(min(most, max(least, 1 - 20 / steps)), 4)
        keys = base["batch_size"] * ((arguments.get("views") or 2) - 1)  # of one step
        arguments["bank"] = max(keys, min(MOST_KEYS, images // 2))
    return _part("MoCo", **arguments)


def _class_of(value: Any) -> Any:
    return value.get("class_path") if isinstance(value, Mapping) else None


def _same_class(given: str | None, old: str | None) -> bool:
    """Whether a class path, or the bare name of a class of falseneg's, names the class from before; None names none."""
    if not given or given == old:
        return True
    return old is not None and old.startswith("falseneg.") and given == old.rsplit(".", 1)[-1]


def _treatment(detector: dict[str, Any], strategy: str) -> dict[str, Any]:
    return {"detector": detector, "strategy": strategy}


def _without_detector(objective: dict[str, Any]) -> dict[str, Any]:
    return {"objective": objective} | _treatment(_part("NoDetection"), "ignore")


def _part(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"falseneg.{name}", "init_args": arguments}
