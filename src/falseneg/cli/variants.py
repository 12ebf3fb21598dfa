"""The treatments of `falseneg compare` by name, for every command that takes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from falseneg.cli.configuration import Configuration, check, circumstances, settle
from falseneg.cli.messages import did_you_mean
from falseneg.compare.other_runs import with_runs
from falseneg.compare.variants import NAMES, Overrides, changed, named_variants, two_towers
from falseneg.data import ImageSet
from falseneg.errors import UserError


def as_variant(name: str, configuration: Mapping[str, Any], given: Sequence[str], images: ImageSet) -> Configuration:
    """A configuration with the options of a variant in it, and nothing left open.

    Args:
        name: of the variant.
        configuration: of the run, with nothing left open.
        given: the command's arguments: what a variant decides must not be among them.
        images: to learn from.

    Raises:
        UserError: there is no such variant, it cannot work with these images, or an option contradicts it.
    """
    known = named_variants(configuration, len(images))
    check_known(name, NAMES, known, classes_of(images), two_towers(configuration))
    if with_runs(known[name], None) != known[name]:
        raise UserError(
            f"the variant {name} uses another run of the same comparison; compare both with falseneg compare --variants none "
            f"{name}, or name a finished run with --detector NeighbourGraph --detector.guide RUN"
        )
    named = {argument.partition("=")[0].partition(".")[0].removeprefix("--") for argument in given}
    for option in sorted((named & {*known[name]}) - {"method"}):
        raise UserError(f"--{option} is what --variant {name} decides; leave one of the two out")
    return settle(check(changed(configuration, known[name])), circumstances(configuration, images))


def classes_of(images: ImageSet) -> int | None:
    """How many classes the labels have; None without labels."""
    return None if images.labels is None else len(images.labels[images.labels >= 0].unique())


def check_known(
    name: str, every: Sequence[str], known: Mapping[str, Overrides], classes: int | None, pairs: bool
) -> None:
    """Refuse a variant that does not exist, or that cannot work with these images.

    Args:
        name: of a variant that the user did not describe.
        every: the names that could be chosen.
        known: those that come with the package and can be made.
        classes: among the labels; None without labels.
        pairs: whether images are compared with texts.
    """
    if name not in NAMES:
        raise UserError(f"there is no variant {name}{did_you_mean(name, every)}; choose one of {', '.join(every)}")
    if name.startswith("oracle") and not classes:
        raise UserError(f"the variant {name} needs labels, and these images have none; leave it out")
    if name not in known and name.startswith(("moco", "second-pass") if pairs else "same-"):
        raise UserError(
            f"the variant {name} is for {'images alone' if pairs else 'images with captions'}; leave it out, or change --method"
        )
    if name not in known:
        hint = f" (the labels say {classes})" if classes else ""
        raise UserError(
            f"the variant {name} depends on the number of classes: say with --expected-classes how many kinds of images to "
            f"expect{hint}"
        )
