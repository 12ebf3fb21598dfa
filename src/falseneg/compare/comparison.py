"""A comparison and its folder.

OUT/compare.yaml                      what is compared: the base configuration, the variants, the seeds, the primary measure
OUT/runs/<variant>/seed-<seed>/       the runs
OUT/results.json                      one record for each finished run
OUT/summary.json, OUT/report.html     what they say
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from falseneg.compare.other_runs import RUN_OF, runs_named, with_runs
from falseneg.compare.summary import ACCURACIES, PRIMARY
from falseneg.compare.tasks import Task
from falseneg.errors import UserError
from falseneg.files import LOCK, alone, write_bytes
from falseneg.foreign.text import read_yaml
from falseneg.train.folder import final_figures

ABOUT = "compare.yaml"

Configuration = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        base: the resolved configuration that all variants share.
        variants: the resolved configuration of each variant, without seed.
        seeds: every variant is run with each.
        primary: the accuracy that makes the verdicts: one of `falseneg.compare.summary.ACCURACIES`.
    """

    base: Configuration
    variants: Mapping[str, Configuration]
    seeds: Sequence[int]
    primary: str = PRIMARY

    def __post_init__(self) -> None:
        for name in self.variants:
            if not re.fullmatch(r"[\w][\w.+-]*", name):
                raise UserError(
                    f"the variant {name!r} cannot name a folder; use letters, digits, dots, dashes and underscores"
                )
        if not self.variants or not self.seeds:
            raise UserError("a comparison needs at least one variant and one seed")
        if self.primary not in ACCURACIES:
            raise UserError(f"the primary measure is {self.primary!r}; choose one of {', '.join(ACCURACIES)}")
        needed = {name: runs_named(configuration) for name, configuration in self.variants.items()}
        for name, others in needed.items():
            for other in others:
                if other not in self.variants:
                    raise UserError(f"the variant {name} uses the {RUN_OF}{other}; compare the variant {other} as well")
        try:
            TopologicalSorter(needed).prepare()
        except CycleError as error:
            circle = ", ".join(dict.fromkeys(error.args[1]))
            raise UserError(
                f"a run cannot use itself, directly or through others ({circle}); change one variant"
            ) from error

    def tasks(self, folder: Path) -> list[Task]:
        """The runs, seed by seed, so that an unfinished comparison has whole seeds."""
        tasks = []
        for seed in self.seeds:
            folders = {name: folder / "runs" / name / f"seed-{seed}" for name in self.variants}
            for name, configuration in self.variants.items():
                own = {**with_runs(configuration, {other: str(path) for other, path in folders.items()}), "seed": seed}
                after = tuple(folders[other] for other in runs_named(configuration))
                tasks.append(Task(name, seed, own, folders[name], after=after))
        return tasks

    def joined_with(self, earlier: Comparison) -> Comparison:
        """This one and the earlier one in the same folder as one."""
        seeds = [*earlier.seeds, *(seed for seed in self.seeds if seed not in earlier.seeds)]
        return Comparison(self.base, {**earlier.variants, **self.variants}, seeds, self.primary)


@contextlib.contextmanager
def claimed(comparison: Comparison, folder: Path, free: Iterable[str]) -> Iterator[Comparison]:
    """Hold the folder for this comparison, and note there what is compared.

    Args:
        comparison: what is asked for.
        folder: new, empty, or of an earlier comparison from the same base: then its runs count as well.
        free: settings that may differ from before, because no result depends on them.

    Yields:
        What is asked for, joined with what the folder holds from before.

    Raises:
        UserError: the folder holds something else, or is in use, or cannot be written.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file; choose a new folder with --out")
    with alone(folder, f"another comparison is running in {folder}; wait for it, or choose another folder with --out"):
        earlier = read_comparison(folder)
        if earlier is not None:
            _check_same(comparison, earlier, folder, set(free))
            comparison = comparison.joined_with(earlier)
        elif any(path.name != LOCK for path in folder.iterdir()):
            raise UserError(f"{folder} holds something other than a comparison; choose a new folder with --out")
        content: dict[str, Any] = {"base": comparison.base, "variants": comparison.variants}
        content |= {"seeds": comparison.seeds, "primary": comparison.primary}
        write_bytes(folder / ABOUT, yaml.safe_dump(_plain(content), sort_keys=False, allow_unicode=True).encode())
        yield comparison


def read_comparison(folder: Path) -> Comparison | None:
    """The comparison in a folder; None if there is none.

    Raises:
        UserError: its description is damaged.
    """
    path = folder / ABOUT
    if not path.is_file():
        return None
    try:
        content = read_yaml(path)
        if not all(isinstance(seed, int) for seed in content["seeds"]):  # they name folders
            raise TypeError("seeds")
        return Comparison(content["base"], content["variants"], content["seeds"], content.get("primary", PRIMARY))
    except (UserError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged; choose another folder with --out") from error


def finished(comparison: Comparison, folder: Path) -> list[Task]:
    """All runs of a comparison that are finished."""
    tasks = [task for task in comparison.tasks(folder) if final_figures(task.folder)]
    for task in tasks:
        task.state = "done"
    return tasks


def _check_same(comparison: Comparison, earlier: Comparison, folder: Path, free: set[str]) -> None:
    """Refuse to add to runs that were made otherwise, and to choose another measure when some are known."""
    if comparison.primary != earlier.primary:
        raise UserError(
            f"{folder} holds a comparison whose primary measure is {earlier.primary}, fixed before its runs; continue it with "
            f"--primary {earlier.primary}, or choose another folder with --out"
        )
    pairs = {"": (comparison.base, earlier.base)}
    pairs |= {f" of {name}": (comparison.variants[name], earlier.variants[name])
              for name in comparison.variants if name in earlier.variants}  # fmt: skip
    for whose, (ours, theirs) in pairs.items():
        for key in sorted({*ours, *theirs} - free):
            if _plain(ours.get(key)) != theirs.get(key):
                raise UserError(
                    f"{folder} holds another comparison ({key.replace('_', '-')}{whose} differs); repeat its options to "
                    "continue it, or choose another folder with --out"
                )


def _plain(value: Any) -> Any:
    """Tuples as lists and paths as texts: as they come back from a YAML file."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
