"""The page: what a run or a comparison has to show, put into the template."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from falseneg.compare.summary import ACCURACIES, BASELINE
from falseneg.compare.tables import INTERVALS, NAMES, Table, of_test_images, tables
from falseneg.errors import UserError
from falseneg.report import svg
from falseneg.report.clusters import ShownCluster, Sizes, cluster_charts, cluster_gallery, size_charts
from falseneg.report.comparison import ComparisonRecord
from falseneg.report.curves import QUANTITIES, Chart, Point, Quantity, Style, chart, points, style_of
from falseneg.report.embedding_map import Map, draw_map
from falseneg.report.gallery import Gallery, build_gallery
from falseneg.report.histogram import Histogram, histograms
from falseneg.report.read import RunRecord
from falseneg.report.strips import by_variant, gap_strip, seeds_strip
from falseneg.report.svg import counted, percent
from falseneg.report.thresholds import Scatter, scatters, spread_charts, variant_charts
from falseneg.report.verdict import Judgement, headline, judge, run_headline

T = TypeVar("T")
DAMAGED = (TypeError, ValueError, LookupError, ArithmeticError, OSError, UserError)
"""What data of another form make drawing raise; any other error is a fault of the program, and is not hidden."""
ANCHORS_OF_RUN, ANCHORS_OF_VARIANT = 10, 5
"""Anchors in the gallery of a run, and of each variant of a comparison."""


@dataclass(frozen=True)
class Tile:
    """A figure in large type: what it is, its value, and a remark."""

    name: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class Pictures:
    """What is drawn of one run: its title (empty for the page's only run), flags, similarities and map."""

    title: str
    style: Style | None
    gallery: Gallery | None
    histograms: list[Histogram]
    map: Map | None


@dataclass
class ClusterPart:
    """What is drawn of clusters: figures over training with their legend, sizes and pictures."""

    charts: list[Chart] = field(default_factory=list)
    legend: list[Style] = field(default_factory=list)
    sizes: list[Sizes] = field(default_factory=list)
    gallery: list[ShownCluster] = field(default_factory=list)


@dataclass
class Page:
    """What the template shows. Empty parts are left out of the page."""

    kind: str
    title: str
    facts: list[str]
    headline: str
    notes: list[str]
    labelled: bool
    settings: str
    about: Mapping[str, Any]
    tiles: list[Tile] = field(default_factory=list)
    judgements: list[tuple[Style, Judgement]] = field(default_factory=list)
    measure: str = ""
    intervals: str = ""
    legend: list[Style] = field(default_factory=list)
    seeds: int = 1
    strips: list[Any] = field(default_factory=list)
    gaps: list[Any] = field(default_factory=list)
    tables: Sequence[Table] = ()
    charts: list[Chart] = field(default_factory=list)
    thresholds: list[Chart] = field(default_factory=list)
    learners: list[Style] = field(default_factory=list)
    scatters: list[Scatter] = field(default_factory=list)
    clusters: ClusterPart = field(default_factory=ClusterPart)
    pictures: list[Pictures] = field(default_factory=list)


def _part(notes: list[str], what: str, draw: Callable[[], T], otherwise: T) -> T:
    """A part of the page; if its data make drawing fail, that is said on the page instead.

    Files are checked as they are read; this is for what passes and yet cannot be drawn. Tests see a fault of ours by the
    sentence, which a whole folder must not give.
    """
    try:
        return draw()
    except DAMAGED as error:
        notes.append(
            f"{what} cannot be drawn from the data on record ({type(error).__name__}), so this part is left out"
        )
        return otherwise


def run_page(run: RunRecord) -> str:
    """The HTML page of a run."""
    facts = [*_facts(run), f"seed {run.about['seed']}"] if "seed" in run.about else _facts(run)
    notes = run.notes
    opening = _part(notes, "the headline", lambda: run_headline(run), "")
    page = Page("run", run.name, facts, opening, notes, _labelled(run), run.settings_text, run.about)
    page.tiles = _part(notes, "the figures", lambda: _tiles(run), [])
    page.charts = _charts([(style_of(0, "this run"), [run])], notes)
    page.thresholds = _part(notes, "what is learned for each image", lambda: spread_charts(run), [])
    page.scatters = _part(notes, "learned thresholds against true quantiles", lambda: scatters(run), [])
    page.clusters = _cluster_part([("", [run])], notes)
    page.clusters.sizes = _part(notes, "the sizes of the clusters", lambda: size_charts(run), [])
    if (clusters := run.clusters) is not None:
        page.clusters.gallery = _part(notes, "the gallery of clusters", lambda: cluster_gallery(clusters), [])
    page.pictures = [_pictures("", None, run, ANCHORS_OF_RUN, _class_names([run]), notes)]
    return _render(page)


def _cluster_part(variants: Sequence[tuple[str, Sequence[RunRecord]]], notes: list[str]) -> ClusterPart:
    return _part(notes, "figures of clusters", lambda: ClusterPart(*cluster_charts(variants)), ClusterPart())


def comparison_page(record: ComparisonRecord) -> str:
    """The HTML page of a comparison."""
    summary, runs = record.summary, record.runs
    oracles = {variant.name for variant in summary.variants if variant.oracle}
    names = list(dict.fromkeys([*(variant.name for variant in summary.variants), *runs]))
    styles = variant_styles(names, oracles)
    first = next((run for of in runs.values() for run in of.values()), None)
    about = first.about if first else {}
    seeds = len({str(result["seed"]) for result in record.results})
    facts = [*(_facts(first) if first else []), counted(len(names), "variant"), counted(seeds, "seed")]
    labelled = any(_labelled(run) for of in runs.values() for run in of.values())
    notes = record.notes
    opening = _part(notes, "the headline", lambda: headline(summary), "")
    page = Page("comparison", record.name, facts, opening, notes, labelled, record.settings_text, about)
    judged = [item for item in summary.variants if item.name != BASELINE]
    page.judgements = _part(
        notes, "the verdicts", lambda: [(styles[item.name], judge(item, summary)) for item in judged], []
    )
    page.legend = [styles[name] for name in names]
    page.seeds = max((len(of) for of in runs.values()), default=1)
    if record.results:
        page.tables = _part(notes, "the tables", lambda: tables(summary), ())
        page.measure, page.intervals = NAMES[summary.primary], f"{INTERVALS} {of_test_images(summary)}"
        for key in sorted(ACCURACIES, key=lambda key: key != summary.primary):
            rows = [(styles[name], by_variant(record.results, key, name)) for name in names]
            gaps = [
                (styles[v.name], v.gap_closed.get(key)) for v in summary.variants if not v.oracle and v.name != BASELINE
            ]
            page.strips.append(
                _part(notes, f"{NAMES[key]} accuracy", partial(seeds_strip, f"{NAMES[key]} accuracy", rows), None)
            )
            page.gaps.append(
                _part(notes, f"gap closed, {NAMES[key]}", partial(gap_strip, f"gap closed, {NAMES[key]}", gaps), None)
            )
    page.strips, page.gaps = ([drawn for drawn in part if drawn] for part in (page.strips, page.gaps))
    of_variants = [(name, list(runs[name].values())) for name in names if name in runs]
    styled = [(styles[name], of_variant) for name, of_variant in of_variants]
    page.charts = _charts(styled, notes)
    nothing: tuple[list[Chart], list[Style]] = ([], [])
    page.thresholds, page.learners = _part(notes, "learned thresholds", lambda: variant_charts(styled), nothing)
    page.clusters = _cluster_part(of_variants, notes)
    class_names = _class_names(run for of in runs.values() for run in of.values())
    for name in names:
        if found := record.example(name):
            most = 0 if name in oracles else ANCHORS_OF_VARIANT
            page.pictures.append(
                _pictures(f"{name}, seed {found[0]}", styles[name], found[1], most, class_names, notes)
            )
    return _render(page)


def variant_styles(names: Sequence[str], oracles: set[str]) -> dict[str, Style]:
    """Colours for the methods; grey for the baseline and ink, dashed, for the oracles: they are there to compare with."""
    styles: dict[str, Style] = {}
    methods = with_labels = 0
    for name in names:
        if name == BASELINE:
            styles[name] = Style(name, "baseline", "disc")
        elif name in oracles:
            mark = ("cross", "plus", "triangle", "diamond")[with_labels % 4]
            styles[name] = Style(name, ("oracle", "oracle-other")[with_labels % 2], mark, dashed=True)
            with_labels += 1
        else:
            styles[name] = style_of(methods, name)
            methods += 1
    return styles


def _labelled(run: RunRecord) -> bool:
    return any("chance" in line or "recall" in line for line in run.epochs)


def _facts(run: RunRecord) -> list[str]:
    facts = [counted(run.about["images"], "image")] if isinstance(run.about.get("images"), int) else []
    if run.epochs:
        facts.append(counted(run.last["epoch"], "epoch"))
    if isinstance(run.about.get("started"), str):
        facts.append(run.about["started"][:10])
    return facts


def _tiles(run: RunRecord) -> list[Tile]:
    figures = {**run.last, **(run.final or {})}
    tiles = [
        Tile(f"{NAMES[key]} accuracy", percent(figures[key])) for key in ACCURACIES if figures.get(key) is not None
    ]
    if figures.get("few_label_sd") is not None and tiles:
        tiles[-1] = Tile(tiles[-1].name, tiles[-1].value, f"± {percent(figures['few_label_sd'])} over draws of labels")
    if figures.get("precision") is not None:
        by_chance = f"by chance {percent(figures['chance'])}" if figures.get("chance") is not None else ""
        tiles.append(Tile("precision of flags", percent(figures["precision"]), by_chance))
    if figures.get("share_flagged"):
        found = f"{percent(figures['recall'])} of all false ones" if figures.get("recall") is not None else ""
        tiles.append(Tile("negatives flagged", percent(figures["share_flagged"]), found))
    seconds = figures.get("seconds_per_epoch", figures.get("seconds"))
    if seconds is not None:
        memory = figures.get("peak_memory_mib")
        tiles.append(Tile("seconds per epoch", f"{seconds:.3g}", f"{memory:,.0f} MiB at peak" if memory else ""))
    return tiles


def _charts(variants: Sequence[tuple[Style, Sequence[RunRecord]]], notes: list[str]) -> list[Chart]:
    drawn = [_part(notes, q.title, partial(_chart, q, variants), None) for q in QUANTITIES]
    return [one for one in drawn if one is not None]


def _chart(quantity: Quantity, variants: Sequence[tuple[Style, Sequence[RunRecord]]]) -> Chart | None:
    lines = [(style, [run.epochs or _from_steps(run, quantity.key) for run in runs]) for style, runs in variants]
    curves = [(style, points(of_runs, quantity.key)) for style, of_runs in lines]
    if quantity.of_flags:  # true labels are always right, and who flags nothing has nothing to show
        curves = [(style, values) for style, values in curves if not style.dashed and any(p.mean for p in values)]
    chance: list[Point] = []
    if quantity.key == "precision":
        chance = points([of_run for _, of_runs in lines for of_run in of_runs], "chance")
    return chart(quantity, curves, chance)


def _from_steps(run: RunRecord, key: str) -> list[dict[str, Any]]:
    """In the first epoch there are only steps to draw."""
    return [line for line in run.steps if key in line][:2000]


def _class_names(runs: Iterable[RunRecord]) -> list[str] | None:
    """The names of the classes, from the first run that has them."""
    return next((run.thumbnails.class_names for run in runs if run.thumbnails and run.thumbnails.class_names), None)


def _pictures(
    title: str,
    style: Style | None,
    run: RunRecord,
    anchors: int,
    class_names: list[str] | None,
    notes: list[str],
) -> Pictures:
    flagged, embedding, gallery, drawn = run.flagged, run.embedding, None, None
    if flagged is not None and anchors:
        build = partial(build_gallery, flagged, run.thumbnails, anchors)
        gallery = _part(notes, f"{run.name}: what was flagged", build, None)
    # An oracle's flags are right by definition: of a comparison's oracles only the map is shown.
    spread: list[Histogram] = []
    if anchors:
        spread = _part(notes, f"{run.name}: similarities", lambda: histograms(run.similarities), spread)
    if embedding is not None:
        draw = partial(draw_map, embedding.features, embedding.labels, class_names)
        drawn = _part(notes, f"{run.name}: the map", draw, None)
    return Pictures(title, style, gallery, spread, drawn)


def _render(page: Page) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("falseneg.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.globals["mark"] = svg.mark
    return environment.get_template("report.html").render(page=page)
