"""The page of a run or a comparison: a frame around the list of sections."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from falseneg.report import svg
from falseneg.report.comparison import ComparisonRecord
from falseneg.report.read import RunRecord
from falseneg.report.section import Heading, Section
from falseneg.report.sections import all_sections
from falseneg.report.svg import counted

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Page:
    """What the templates of all sections may speak of.

    Attributes:
        kind: "a run", "a comparison" or "an audit".
        title: its heading.
        facts: how much and when, a few words each.
        labelled: whether detection was measured by labels.
        notes: what is missing or damaged, a sentence each.
    """

    kind: str
    title: str
    facts: list[str]
    labelled: bool
    notes: list[str]


def run_page(run: RunRecord) -> str:
    """The HTML page of a run."""

    def content(section: Section) -> Any:
        run.load(section.needs)
        return section.of_run(run)

    facts = [*_facts(run), f"seed {run.about['seed']}"] if "seed" in run.about else _facts(run)
    return _render(Page("a run", run.name, facts, run.labelled, run.notes), content)


def comparison_page(record: ComparisonRecord) -> str:
    """The HTML page of a comparison."""

    def content(section: Section) -> Any:
        for _, run in record.examples.values():
            run.load(section.needs)
        return section.of_comparison(record)

    seeds = len({str(result["seed"]) for result in record.results})
    facts = _facts(record.all_runs[0]) if record.all_runs else []
    facts += [counted(len(record.names), "variant"), counted(seeds, "seed")]
    labelled = any(run.labelled for run in record.all_runs)
    return _render(Page("a comparison", record.name, facts, labelled, record.notes), content)


def _facts(run: RunRecord) -> list[str]:
    facts = [counted(run.about["images"], "image")] if isinstance(run.about.get("images"), int) else []
    if run.epochs:
        facts.append(counted(run.last["epoch"], "epoch"))
    if isinstance(run.about.get("started"), str):
        facts.append(run.about["started"][:10])
    return facts


def _render(page: Page, content: Callable[[Section], Any]) -> str:
    # All before the first is shown: it has the notes.
    made = [(section, content(section)) for section in all_sections()]
    script = (TEMPLATES / "script.js").read_text("utf-8")  # with the ends of lines that a browser sees
    return render(page, made, script)


def render(page: Page, made: Sequence[tuple[Heading, Any]], script: str = "") -> str:
    """The HTML page.

    Args:
        page: what its frame says.
        made: sections with their contents; one whose content is None is left out.
        script: what it runs, if anything.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = svg.percent
    environment.globals["mark"] = svg.mark
    shown = [(section, _shown(environment, section, page, it)) for section, it in made if it is not None]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        page=page, sections=shown, script=Markup(script), script_hash=f"sha256-{digest}"
    )


def _shown(environment: Any, section: Heading, page: Page, it: Any) -> Markup:
    return Markup(environment.get_template(f"{section.anchor}.html").render(page=page, it=it))
