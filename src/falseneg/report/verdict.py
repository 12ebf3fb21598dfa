"""What the figures say, in plain words and no more than they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from falseneg.compare.summary import ACCURACIES, BASELINE, Summary, VariantSummary
from falseneg.compare.tables import NAMES, VERDICTS, difference_words
from falseneg.report.read import RunRecord
from falseneg.report.svg import percent

SIGNS = {"helped": "▲", "hurt": "▼", "unclear": "●", "unknown": "?"}
"""Of every verdict."""


@dataclass(frozen=True)
class Judgement:
    """What is said of one variant against the baseline.

    Attributes:
        name: of the variant.
        level: the verdict by the primary accuracy: a key of `SIGNS`.
        primary: the name of the primary accuracy, the difference in points and its interval; None where unknown.
        secondary: the same of each other accuracy: shown, but no part of the verdict.
        detection: a sentence on its flags, or nothing.
        gap: a sentence on the gap closed, or nothing.
    """

    name: str
    level: str
    primary: tuple[str, str, str] | None = None
    secondary: list[tuple[str, str, str]] = field(default_factory=list)
    detection: str = ""
    gap: str = ""

    @property
    def sign(self) -> str:
        return SIGNS[self.level]

    @property
    def words(self) -> str:
        return VERDICTS[self.level]


def judge(variant: VariantSummary, summary: Summary) -> Judgement:
    """Say of a variant whether it helped: whether the interval of the primary difference leaves out zero."""
    known = {
        key: (NAMES[key], *difference_words(difference))
        for key in ACCURACIES
        if (difference := variant.versus_none.get(key)) is not None
    }
    primary = known.pop(summary.primary, None)
    gap = _gap_sentence(variant, summary.primary)
    return Judgement(variant.name, summary.verdict(variant), primary, [*known.values()], detection_words(variant), gap)


def detection_words(variant: VariantSummary) -> str:
    """How often its flags were right at the last epoch, against chance."""
    precision, chance, recall = (variant.figures[key].mean for key in ("precision", "chance", "recall"))
    if variant.oracle or precision is None:
        return ""
    sentence = f"{percent(precision)} of its flags were right at the last epoch"
    sentence += f" (chance: {percent(chance)})" if chance is not None else ""
    return sentence + (f"; it found {percent(recall)} of the false negatives." if recall is not None else ".")


def _gap_sentence(variant: VariantSummary, key: str) -> str:
    gap = variant.gap_closed.get(key)
    if gap is None:
        return ""
    if gap.low is None or gap.high is None:
        return f"How much of the gain from true labels ({gap.oracle}) it achieves is not known: it takes more seeds to say."
    interval = f"95% interval {percent(gap.low)} to {percent(gap.high)}"
    return f"It achieves {percent(gap.value)} of the gain from true labels ({gap.oracle}) in {NAMES[key]} accuracy ({interval})."


def headline(summary: Summary) -> str:
    """The comparison in one or two sentences."""
    if not any(variant.name == BASELINE for variant in summary.variants):
        return "There is no plain baseline (none) among the finished runs, so there is nothing to compare with."
    judged = [(variant.oracle, judge(variant, summary)) for variant in summary.variants if variant.name != BASELINE]
    methods = [judgement for oracle, judgement in judged if not oracle]
    oracles = [judgement for oracle, judgement in judged if oracle]
    sentences = [_of_methods(methods, NAMES[summary.primary])] if methods else []
    if oracles:
        sentences.append(_of_oracles(oracles))
    return " ".join(sentences) or "Only the plain baseline has finished so far."


def _of_methods(methods: Sequence[Judgement], measure: str) -> str:
    if all(method.primary is None for method in methods):
        return f"There is no verdict: {measure} accuracy, the primary measure, was not measured."
    if all(method.level == "unknown" for method in methods):
        return "There is no verdict yet: it takes at least two seeds of a method and of none."
    said = []
    for level in ("helped", "hurt"):
        shown = [f"{method.name} ({method.primary[1]} points, {method.primary[2]})"
                 for method in methods if method.level == level and method.primary is not None]  # fmt: skip
        if shown:
            said.append(f"{_listed(shown)} {level}")
    if not said:
        return f"By {measure} accuracy, no method differed clearly from the plain baseline."
    rest = [method.name for method in methods if method.level in ("unclear", "unknown")]
    if rest:
        said.append(f"{_listed(rest)} made no clear difference")
    return f"By {measure} accuracy, {'; '.join(said)}."


def _of_oracles(oracles: Sequence[Judgement]) -> str:
    helped = [oracle.name for oracle in oracles if oracle.level == "helped"]
    if helped:
        return f"True labels ({_listed(helped)}) helped, so there is something to gain."
    if all(oracle.level == "unknown" for oracle in oracles):
        return ""
    if all(oracle.level == "hurt" for oracle in oracles):
        return f"Even with true labels ({_listed([oracle.name for oracle in oracles])}), accuracy fell."
    return "Not even true labels made a clear difference; more seeds or longer training might show one."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def run_headline(run: RunRecord) -> str:
    """One run in a few sentences: how detection went, and whether the run has finished."""
    if not run.epochs:
        return "This run has not finished its first epoch yet."
    sentences = []
    if not run.finished:
        planned = run.settings.get("epochs")
        of_planned = f" of {planned}" if isinstance(planned, int) else ""
        sentences.append(f"This run has not finished: epoch {run.last['epoch']}{of_planned} is the last one recorded.")
    return " ".join([*sentences, *_of_flags(run)])


def _of_flags(run: RunRecord) -> list[str]:
    last = run.last
    if not last.get("share_flagged"):
        agreed = last.get("graph agreement")
        why = (
            ""
            if agreed is None
            else f", for two graphs made of different views agree on {percent(agreed)} of the pairs only"
        )
        return [f"Nothing was flagged{why}: this is the plain loss."]
    flagged = f"In the last epoch, {percent(last['share_flagged'])} of the negatives were flagged as false"
    precision, chance = last.get("precision"), last.get("chance")
    if precision is None or chance is None:
        return [f"{flagged}. Without labels, there is no measure of how many of these flags are right."]
    sentences = [f"{flagged}; {percent(precision)} of these flags were right, {_against_chance(precision, chance)}."]
    first = next((line for line in run.epochs[:-1] if line.get("precision") is not None), None)
    if first is not None:
        sentences.append(f"In epoch {first['epoch']}, {percent(first['precision'])} were right.")
    return sentences


def _against_chance(precision: float, chance: float) -> str:
    if precision <= 1.1 * chance:
        return f"no better than chance ({percent(chance)})"
    return (
        f"{precision / chance:.1f} times the chance level ({percent(chance)})"
        if chance
        else "where chance would give none"
    )
