"""What the figures say, in plain words and no more than they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from falseneg.compare.summary import ACCURACIES, BASELINE, Difference, Summary, VariantSummary
from falseneg.report.read import RunRecord
from falseneg.report.svg import MINUS, percent

NAMES = {"knn": "kNN", "linear": "linear", "few_label": "few-label"}
"""What the accuracies are called."""
LEVELS = {
    "helped": ("▲", "helped"),
    "hurt": ("▼", "hurt"),
    "mixed": ("◆", "mixed"),
    "unclear": ("●", "no clear difference"),
    "unknown": ("?", "cannot be told"),
}
"""Every verdict: its sign and its words."""


@dataclass(frozen=True)
class Judgement:
    """What is said of one variant against the baseline.

    Attributes:
        name: of the variant.
        level: a key of `LEVELS`.
        differences: for each accuracy its name, the difference in points and its interval.
        detection: a sentence on its flags, or nothing.
        gap: a sentence on the gap closed, or nothing.
    """

    name: str
    level: str
    differences: list[tuple[str, str, str]] = field(default_factory=list)
    detection: str = ""
    gap: str = ""

    @property
    def sign(self) -> str:
        return LEVELS[self.level][0]

    @property
    def words(self) -> str:
        return LEVELS[self.level][1]


def judge(variant: VariantSummary) -> Judgement:
    """Say of a variant whether it helped: whether the 95% interval of its paired difference leaves out zero."""
    known = {key: difference for key in ACCURACIES if (difference := variant.versus_none.get(key)) is not None}
    differences = [(NAMES[key], *difference_words(difference)) for key, difference in known.items()]
    verdicts = {difference.verdict for difference in known.values()}
    return Judgement(variant.name, _level(verdicts), differences, detection_words(variant), _gap_sentence(variant))


def _level(verdicts: set[str]) -> str:
    if not verdicts or verdicts == {"one seed"}:
        return "unknown"
    if {"higher", "lower"} <= verdicts:
        return "mixed"
    return "helped" if "higher" in verdicts else "hurt" if "lower" in verdicts else "unclear"


def difference_words(difference: Difference) -> tuple[str, str]:
    """The difference in percentage points, and its interval."""
    if difference.low is None or difference.high is None:
        return _points(difference.mean), "one seed"
    return _points(difference.mean), f"{_points(difference.low)} to {_points(difference.high)}"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", MINUS)


def detection_words(variant: VariantSummary) -> str:
    """How often its flags were right at the last epoch, against chance."""
    precision, chance, recall = (variant.figures[key].mean for key in ("precision", "chance", "recall"))
    if variant.oracle or precision is None:
        return ""
    sentence = f"{percent(precision)} of its flags were right at the last epoch"
    sentence += f" (by chance {percent(chance)})" if chance is not None else ""
    return sentence + (f"; it found {percent(recall)} of the false negatives." if recall is not None else ".")


def _gap_sentence(variant: VariantSummary) -> str:
    found = [(NAMES[key], gap) for key in ACCURACIES if (gap := variant.gap_closed.get(key)) is not None]
    if not found:
        return ""
    parts = [f"{percent(gap.value)} on {name}" for name, gap in found]
    return f"Of what true labels gain ({found[0][1].oracle}) it reaches {', '.join(parts)} accuracy."


def headline(summary: Summary) -> str:
    """The comparison in one or two sentences."""
    if not any(variant.name == BASELINE for variant in summary.variants):
        return (
            "There is no plain baseline (none) among the finished runs, so it cannot be told whether anything helped."
        )
    methods = [judge(variant) for variant in summary.variants if not variant.oracle and variant.name != BASELINE]
    oracles = [judge(variant) for variant in summary.variants if variant.oracle]
    sentences = [_of_methods(methods)] if methods else []
    if oracles:
        sentences.append(_of_oracles(oracles))
    return " ".join(sentences) or "Only the plain baseline has finished so far."


def _of_methods(methods: Sequence[Judgement]) -> str:
    if all(method.level == "unknown" for method in methods):
        return "Whether any method helped cannot be told: that needs at least two seeds of it and of none."
    said = []
    for level, verb in (("helped", "helped"), ("mixed", "helped in one measure and hurt in another"), ("hurt", "hurt")):
        names = [method.name for method in methods if method.level == level]
        if names:
            said.append(f"{_listed(names)} {verb}")
    if not said:
        return "No method differed clearly from the plain baseline."
    rest = [method.name for method in methods if method.level in ("unclear", "unknown")]
    if rest:
        said.append(f"{_listed(rest)} made no clear difference")
    return "; ".join(said) + "."


def _of_oracles(oracles: Sequence[Judgement]) -> str:
    helped = [oracle.name for oracle in oracles if oracle.level == "helped"]
    if helped:
        return f"With true labels ({_listed(helped)}) there was something to win."
    if all(oracle.level == "unknown" for oracle in oracles):
        return ""
    if all(oracle.level == "hurt" for oracle in oracles):
        return f"Even with true labels ({_listed([oracle.name for oracle in oracles])}) accuracy fell."
    return "Not even true labels made a clear difference: to see one would take more seeds or a longer training."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def run_headline(run: RunRecord) -> str:
    """One run in a few sentences: how detection went, and whether the run has finished."""
    if not run.epochs:
        return "No epoch of this run is finished yet."
    sentences = []
    if not run.finished:
        planned = run.settings.get("epochs")
        of_all = f" of {planned}" if isinstance(planned, int) else ""
        sentences.append(f"This run has not finished: epoch {run.last['epoch']}{of_all} is the last on record.")
    return " ".join([*sentences, *_of_flags(run)])


def _of_flags(run: RunRecord) -> list[str]:
    last = run.last
    if not last.get("share_flagged"):
        return ["Nothing was flagged: this is the plain loss."]
    flagged = f"In the last epoch {percent(last['share_flagged'])} of the negatives were flagged as false"
    precision, chance = last.get("precision"), last.get("chance")
    if precision is None or chance is None:
        return [f"{flagged}; without labels it cannot be told how many of them are."]
    sentences = [f"{flagged}; {percent(precision)} of these flags were right, {_against_chance(precision, chance)}."]
    first = next((line for line in run.epochs[:-1] if line.get("precision") is not None), None)
    if first is not None:
        sentences.append(f"In epoch {first['epoch']} it was {percent(first['precision'])}.")
    return sentences


def _against_chance(precision: float, chance: float) -> str:
    if precision <= 1.1 * chance:
        return f"no better than chance ({percent(chance)})"
    return f"{precision / chance:.1f} times what chance gives ({percent(chance)})" if chance else "and none by chance"
