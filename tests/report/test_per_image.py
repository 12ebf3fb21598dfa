import json
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from falseneg.report import write_report
from falseneg.report.clusters import cluster_charts, cluster_gallery, levels_of, size_charts
from falseneg.report.read import RunRecord, read_run
from falseneg.report.svg import percent
from falseneg.report.thresholds import scatters, spread_charts, variant_charts
from falseneg.train.observers.per_sample import summary


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from report.conftest import Fake

    folder = tmp_path_factory.mktemp("per image") / "run"
    Fake(images=200, epochs=5, clusters=(10, 30), thresholds=True).run(folder)
    return folder


@pytest.fixture(scope="module")
def run(folder):
    return read_run(folder)


@pytest.fixture(scope="module")
def html(folder, tmp_path_factory):
    return write_report(folder, tmp_path_factory.mktemp("page") / "page.html").read_text()


def sections(html):
    return re.findall(r'<section id="(\w+)"', html)


def test_a_run_shows_thresholds_and_clusters(html):
    assert sections(html) == ["summary", "curves", "thresholds", "clusters", "gallery", "similarities", "map", "about"]
    for title in (
        "Learned threshold",
        "Share flagged, image by image",
        "Purity of clusters",
        "Recall of pseudo-labels",
    ):
        assert f"<b>{title}</b>" in html
    assert 'href="#thresholds"' in html and 'href="#clusters"' in html
    for svg in re.findall(r'<svg[^>]*class="plot".*?</svg>', html, re.S):
        ElementTree.fromstring(svg)
        assert not re.search(r'(fill|stroke)="(?!none)', svg)
        assert "nan" not in svg.lower()


def test_runs_without_them_do_not_speak_of_them(fake, tmp_path):
    fake(images=60, epochs=2).run(tmp_path / "run")
    html = write_report(tmp_path / "run").read_text()
    assert not {"thresholds", "clusters"} & set(sections(html)) and "pseudo-label" not in html


def test_quantiles_over_training(run):
    charts = {chart.quantity.key: chart for chart in spread_charts(run)}
    assert charts.keys() == {"threshold", "share_flagged"}
    for name, write in (("threshold", lambda value: f"{value:,.4g}"), ("share_flagged", percent)):
        rows = charts[name].rows
        assert [row[0] for row in rows] == ["1", "2", "3", "4", "5"]
        shares = ("0%", "5%", "25%", "50%", "75%", "95%", "100%")
        assert rows[-1][1:] == [write(run.epochs[-1][f"{name}/{share}"]).replace("-", "−") for share in shares]
    assert "alpha 10%" in charts["share_flagged"].drawing and "alpha" not in charts["threshold"].drawing
    assert charts["threshold"].drawing.count('class="band') == 3


def test_bands_lie_where_the_figures_are():
    lines = [{"epoch": 1, **summary({"mine": torch.tensor([0.0, 1.0])}, None)}]
    lines.append({"epoch": 2, **summary({"mine": torch.tensor([0.0, 0.5])}, None)})
    chart = spread_charts(RunRecord("run", epochs=lines))[0]
    assert chart.quantity.title == "Mine"
    outline = re.search(r'<path d="M([^"]*)z" class="band all s0"', chart.drawing)[1]
    places = [tuple(float(number) for number in place.split()) for place in outline.split("L")]
    bottom = max(y for _, y in places)
    heights = [bottom - y for _, y in places]
    assert heights[1] == pytest.approx(heights[0] / 2, abs=0.2) and heights[2:] == [0, 0]
    assert places[0][0] == places[3][0] < places[1][0] == places[2][0]


def test_one_epoch_is_a_bar_and_epochs_without_a_threshold_are_left_out():
    lines = [{"epoch": 1, **summary({"threshold": torch.full((4,), torch.nan)}, None)}]
    assert spread_charts(RunRecord("run", epochs=lines)) == []
    lines.append({"epoch": 2, **summary({"threshold": torch.rand(4)}, None)})
    chart = spread_charts(RunRecord("run", epochs=lines))[0]
    assert [row[0] for row in chart.rows] == ["2"]
    widths = re.findall(r'class="line s0"|d="M([\d.]+) [\d.]+L([\d.]+) ', chart.drawing)
    assert any(start and float(end) - float(start) > 10 for start, end in widths)


def test_learned_against_true_quantiles(run):
    drawn = scatters(run)
    assert [scatter.epoch for scatter in drawn] == [1, 3, 5]
    arrays = run.samples[5]
    error = np.abs(arrays["threshold/learned"] - arrays["threshold/true"]).mean()
    assert (
        f"mean absolute difference {float(f'{error:.2g}'):.4g}" in drawn[-1].sentence
        and "60 images" in drawn[-1].sentence
    )
    assert "10% should" in drawn[-1].sentence
    dots = re.search(r'<path d="([^"]*)" class="point disc s0"', drawn[-1].drawing)[1]
    places = np.array([[float(number) for number in dot.split()] for dot in re.findall(r"M([\d.]+ [\d.]+)h0", dots)])
    diagonal = re.search(r'<path d="M([\d. ]+)L([\d. ]+)" class="reference"', drawn[-1].drawing)
    (x0, y0), (x1, y1) = ([float(number) for number in diagonal[end].split()] for end in (1, 2))
    above = (places[:, 1] - y0) / (y1 - y0) - (places[:, 0] - x0) / (x1 - x0)
    difference = arrays["threshold/learned"] - arrays["threshold/true"]
    assert len(places) == 60 and np.corrcoef(above, difference)[0, 1] > 0.999


def test_images_without_a_threshold_are_left_out_of_the_scatter(run):
    arrays = {key: value.copy() for key, value in run.samples[5].items()}
    arrays["threshold/learned"][:50] = np.nan
    drawn = scatters(RunRecord("run", samples={5: arrays}))
    assert "10 images" in drawn[0].sentence and "nan" not in drawn[0].drawing
    arrays["threshold/learned"][:] = np.nan
    assert scatters(RunRecord("run", samples={5: arrays})) == []


def test_one_threshold_for_all_has_no_correlation(run):
    arrays = {**run.samples[5], "threshold/learned": np.full(60, 0.3)}
    drawn = scatters(RunRecord("run", samples={5: arrays}))
    assert "correlation" not in drawn[0].sentence and "nan" not in drawn[0].drawing


def test_figures_of_each_level(run):
    assert levels_of([run]) == ["10", "30"]
    charts, legend = cluster_charts([("", [run])])
    assert [style.label for style in legend] == ["10 clusters", "30 clusters"]
    assert [chart.quantity.key for chart in charts] == ["purity", "nmi", "assigned", "precision", "recall"]
    purity = charts[0].rows[-1]
    assert purity == ["5", *(percent(run.epochs[-1][f"clusters {level}/purity"]) for level in (10, 30))]
    assert "chance" in charts[3].drawing and "chance" not in charts[4].drawing


def test_levels_are_in_order_of_their_numbers():
    lines = [{"epoch": 1, "clusters 100/purity": 0.5, "clusters 30/purity": 0.5, "clusters 9/purity": 0.5}]
    assert levels_of([RunRecord("run", epochs=lines)]) == ["9", "30", "100"]
    assert cluster_charts([("", [RunRecord("run", epochs=[{"epoch": 1, "loss": 2.0}])])]) == ([], [])


def test_without_labels_only_the_accepted_share_is_drawn(fake, tmp_path):
    fake(images=60, epochs=2, labelled=False, clusters=(5,)).run(tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert [chart.quantity.key for chart in cluster_charts([("", [run])])[0]] == ["assigned"]
    html = write_report(tmp_path / "run").read_text()
    assert 'class="cluster"' in html and "thumb right" not in html and "most frequent class</span>" not in html


@pytest.mark.parametrize("sizes", [[3], [5, 5, 5], [1, 2, 3, 400], list(range(1, 300)), [1000, 1001]])
def test_sizes_are_counted(sizes):
    groups = np.concatenate([np.repeat(np.arange(len(sizes)), sizes), [-1, -1]])
    (drawn,) = size_charts(RunRecord("run", samples={3: {"clusters 7": groups}}))
    assert drawn.title == "7 clusters"
    assert f"{min(sizes):,} to {max(sizes):,} images" in drawn.sentence and f"{len(sizes):,} with" in drawn.sentence
    told = re.findall(r"<title>([\d,]+) clusters? of ([\d,]+)(?: to ([\d,]+))? image", drawn.drawing)
    counted = [tuple(int(part.replace(",", "") or 0) for part in bar) for bar in told]
    assert sum(count for count, *_ in counted) == len(sizes)
    for count, low, high in counted:
        assert count == sum(low <= size <= (high or low) for size in sizes)
    edges = [float(edge) for edge in re.findall(r'class="filled s0"|d="M([\d.]+) ', drawn.drawing) if edge]
    assert all(40 < edge < 350 for edge in edges)


def test_before_the_first_clustering_there_are_no_sizes():
    nothing = np.full(9, -1)
    assert size_charts(RunRecord("run", samples={1: {"clusters 3": nothing}})) == []


def test_the_gallery_of_clusters(folder, run, html):
    shown = cluster_gallery(run.clusters)
    stored = np.load(folder / "clusters.npz")
    assert len(shown) == len(stored["groups"]) == 8
    for place, cluster in enumerate(shown):
        assert f"{stored['sizes'][place]} image" in cluster.sentence
        assert percent(float(stored["purity"][place])) in cluster.sentence
        names = stored["class_names"]
        assert str(names[stored["majority"][place]]) in cluster.sentence
        of_majority = stored["labels"][stored["group_of"] == stored["groups"][place]] == stored["majority"][place]
        assert [picture.verdict == "right" for picture in cluster.pictures] == of_majority.tolist()
    assert html.count('class="cluster"') == 8 and "pseudo-label for" in html


@pytest.mark.parametrize("name", ["clusters.npz", "per_sample/epoch-00005.npz"])
@pytest.mark.parametrize("content", [b"", b"\x00\x80 no format \xff"])
def test_a_damaged_file_costs_its_own_part_only(folder, tmp_path, name, content):
    copy = shutil.copytree(folder, tmp_path / "run")
    (copy / "embedding.npz").unlink()  # slow to draw
    (copy / name).write_bytes(content)
    html = write_report(copy).read_text()
    assert f"{name} cannot be read" in html and "<b>Purity of clusters</b>" in html
    assert ('class="cluster"' in html) == (name != "clusters.npz")


def test_a_comparison_shows_who_learns_and_who_clusters(tmp_path, fake):
    for variant, options in (
        ("none", {}),
        ("glofnd", {"thresholds": True}),
        ("ifnd", {"clusters": (10, 30)}),
    ):
        for seed in (0, 1):
            fake(images=60, epochs=3, **options).run(tmp_path / "runs" / variant / f"seed-{seed}", variant, seed)
    html = write_report(tmp_path).read_text()
    assert {"thresholds", "clusters"} < set(sections(html))
    assert "ifnd, 10 clusters" in html and "ifnd, 30 clusters" in html and 'class="cluster"' not in html
    thresholds = html[html.index('<section id="thresholds"') : html.index('<section id="clusters"')]
    assert thresholds.count("<figure>") == 2 and "glofnd" in thresholds and "none" not in thresholds
    runs = [read_run(tmp_path / "runs" / "glofnd" / f"seed-{seed}") for seed in (0, 1)]
    from falseneg.report.curves import style_of

    charts, learners = variant_charts([(style_of(0, "glofnd"), runs), (style_of(1, "none"), [])])
    assert [style.label for style in learners] == ["glofnd"]
    mean = np.mean([run.epochs[-1]["threshold/50%"] for run in runs])
    assert charts[0].rows[-1] == ["3", f"{mean:.4g}"]


def test_names_are_escaped(fake, tmp_path):
    evil = '<script>alert("1")</script>'
    fake(images=60, epochs=2, clusters=(5,), thresholds=True, class_names=(evil,) * 10).run(tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    for place, text in enumerate(lines):
        line = json.loads(text)
        figures = {key.replace("threshold/", f"{evil}/"): value for key, value in line.items()}
        lines[place] = json.dumps({key.replace("clusters 5/", f"clusters {evil}/"): v for key, v in figures.items()})
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    html = write_report(tmp_path / "run").read_text()
    assert "<script" not in html and "&lt;script&gt;" in html
