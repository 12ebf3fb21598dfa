"""How the runs were made: versions, command and settings."""

from __future__ import annotations

from dataclasses import dataclass

from falseneg.report.comparison import ComparisonRecord
from falseneg.report.read import RunRecord
from falseneg.report.section import Section

COMMON = ("started", "falseneg", "torch", "python", "platform")
"""Of run.json, what all runs of a comparison share."""


@dataclass(frozen=True)
class About:
    """What is known, by name; the command and the settings as they were given."""

    facts: dict[str, str]
    command: str
    settings: str


def _of_run(run: RunRecord) -> About:
    about = run.about
    return About(_facts(run, ("started", "seed", *COMMON[1:])), str(about.get("command", "")), run.settings_text)


def _of_comparison(record: ComparisonRecord) -> About:
    facts = _facts(record.all_runs[0], COMMON) if record.all_runs else {}
    return About(facts, "", record.settings_text)


def _facts(run: RunRecord, chosen: tuple[str, ...]) -> dict[str, str]:
    facts = {key: str(run.about[key]) for key in chosen if key in run.about}
    if isinstance(git := run.about.get("git"), dict):
        facts["git"] = git["commit"][:12] + (", with changes" if git["dirty"] else "")
    return facts


SECTION = Section(100, "about", "How it was made", "How it was made", _of_run, _of_comparison)
