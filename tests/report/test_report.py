import base64
import csv
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from falseneg.compare.summary import summarise
from falseneg.compare.tables import tables
from falseneg.errors import UserError
from falseneg.report import write_report

VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """What is on a page; fails on tags that do not match."""

    def __init__(self, html):
        super().__init__()
        self.html, self.open, self.tags, self.words = html, [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    def all(self, tag, **attributes):
        return [found for name, found in self.tags if name == tag and attributes.items() <= found.items()]

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def report(folder, out):
    return Page(write_report(folder, out).read_text())


@pytest.fixture(scope="module")
def run_page(run_folder, tmp_path_factory):
    return report(run_folder, tmp_path_factory.mktemp("out") / "run.html")


@pytest.fixture(scope="module")
def compare_page(compare_folder, tmp_path_factory):
    return report(compare_folder, tmp_path_factory.mktemp("out") / "compare.html")


@pytest.fixture(params=["run", "compare"])
def page(request):
    return request.getfixturevalue(f"{request.param}_page")


def test_it_needs_no_network_no_script_and_no_other_file(page):
    assert page.all("link") == [] and page.all("iframe") == []
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href", "action", "data", "srcset"):
                assert value.startswith(("#", "data:image/", "data:text/csv;base64,"))
    style = page.html[page.html.index("<style>") : page.html.index("</style>")]
    assert "url(" not in style and "@import" not in style
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy.startswith("default-src 'none'; img-src data:; ") and "'unsafe-inline'; script-src 'sha256-" in policy


def the_only_script(page):
    """What the browser runs: nothing but the one script whose hash the policy names."""
    assert page.all("script") == [{}]
    (script,) = re.findall(r"<script>(.*?)</script>", page.html, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert re.findall(r"script-src ([^;]*)", policy) == [f"'sha256-{digest}'"]
    return script


def test_one_script_runs_whatever_the_data(page):
    script = the_only_script(page)
    for reached in ("fetch", "XMLHttpRequest", "import(", "innerHTML", "eval(", "document.write", "http:", "https:"):
        assert reached not in script


def test_the_pairs_can_be_downloaded_without_a_script(run_page, run_folder):
    (link,) = run_page.all("a", download="my run-pairs.csv")
    lines = list(csv.DictReader(io.StringIO(base64.b64decode(link["href"].split(",")[1]).decode())))
    table = pq.read_table(run_folder / "flagged.parquet").to_pylist()
    last = [pair for pair in table if pair["epoch"] == 8]
    assert len(lines) == len(last) > 100 and f"Download {len(last):,} pairs" in run_page.text
    assert [float(line["score"]) for line in lines] == sorted((float(line["score"]) for line in lines), reverse=True)
    found = {(line["anchor_name"], line["candidate_name"], line["correct"], line["anchor_class"]) for line in lines}
    assert found == {
        (pair["anchor_name"], pair["candidate_name"], str(pair["correct"]).lower(), pair["anchor_class"])
        for pair in last
    }


def test_a_large_table_is_cut_and_says_so(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("falseneg.report.sections.gallery.DOWNLOADED", 10)
    page = report(run_folder, tmp_path / "out.html")
    (link,) = page.all("a", download="my run-pairs.csv")
    assert base64.b64decode(link["href"].split(",")[1]).decode().count("\n") == 11
    assert (
        "Download 10 pairs" in page.text
        and "the most similar 10 of" in page.text
        and "falseneg report --pairs" in page.text
    )


def test_it_can_be_read_without_seeing_and_by_keyboard(page):
    assert all(image["alt"] for image in page.all("img")) and page.all("img")
    plots = page.all("svg", role="img")
    assert len(plots) > 8 and all(len(plot["aria-label"]) > 20 for plot in plots)
    assert all(sample.get("aria-hidden") == "true" for sample in page.all("svg", **{"class": "sample"}))
    assert len(page.all("table")) == len(page.all("caption")) == page.html.count('class="scroll"')
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in page.all("div", **{"class": "scroll"}))
    assert len(page.all("h1")) == 1
    identities = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identities) == len(set(identities))
    assert {link["href"][1:] for link in page.all("a") if "download" not in link} <= set(identities)
    assert page.all("html")[0]["lang"] == "en"


def test_it_suits_phones_and_dark_rooms(page):
    assert page.all("meta", name="viewport")[0]["content"] == "width=device-width, initial-scale=1"
    assert "prefers-color-scheme: dark" in page.html and "max-width: 760px" in page.html
    for svg in re.findall(r'<svg[^>]*class="plot".*?</svg>', page.html, re.S):
        ElementTree.fromstring(svg)
        assert not re.search(r'(fill|stroke)="(?!none)', svg)  # colours come from the style sheet, which knows both


def test_every_class_of_a_plot_is_in_the_style_sheet(page):
    style = page.html[page.html.index("<style>") : page.html.index("</style>")]
    used = {
        name for svg in re.findall(r"<svg.*?</svg>", page.html, re.S) for name in re.findall(r'class="([^"]*)"', svg)
    }
    marks_without_own_style = {"square", "triangle", "diamond", "tick", "axis", "mean", "reference"}
    for name in {part for names in used for part in names.split()} - marks_without_own_style:
        assert f".{name}" in style, name


def test_a_run_shows_figures_curves_gallery_histograms_and_map(run_page, run_folder):
    final = json.loads((run_folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"{100 * final['linear']:.1f}".removesuffix(".0") + "%" in run_page.text
    sections = {"summary", "curves", "gallery", "classes", "similarities", "map", "about"}
    assert {section["id"] for section in run_page.all("section")} == sections
    titles = ("Loss", "Accuracy, nearest neighbours", "Share flagged", "Precision", "Recall", "F1")
    assert all(f"<b>{title}</b>" in run_page.html for title in titles)
    assert re.search(r"chance \d", run_page.text)
    assert "epoch 1: " in run_page.text and "epoch 8: " in run_page.text
    assert run_page.all("li", **{"class": "thumb right"}) and run_page.all("li", **{"class": "thumb wrong"})
    assert "threshold" in run_page.text and "t-SNE" in run_page.text
    assert "falseneg pretrain --detector fnc-attract" in run_page.text and "batch_size: 64" in run_page.text


def test_right_and_wrong_differ_in_more_than_colour(run_page):
    style = run_page.html
    assert re.search(r"\.thumb\.right img \{ border: 3px solid", style)
    assert re.search(r"\.thumb\.wrong img \{ border: 3px dashed", style)
    for verdict, sign in (("right", "✓"), ("wrong", "✗")):
        thumbs = re.findall(rf'<li class="thumb {verdict}"[^>]*>(.*?)</li>', run_page.html, re.S)
        assert thumbs and all(sign in thumb and f'alt="{verdict}, ' in thumb for thumb in thumbs)


def test_the_gallery_shows_the_stored_pictures(run_page, run_folder):
    stored = {picture.tobytes() for picture in np.load(run_folder / "thumbnails.npz")["images"]}
    for image in run_page.all("img")[:20]:
        kind, content = image["src"].split(",")
        assert kind == "data:image/png;base64"  # drawn pixels are kept exactly
        assert np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))).tobytes() in stored


def test_a_comparison_shows_verdicts_tables_and_all_variants(compare_page, compare_folder):
    results = json.loads((compare_folder / "results.json").read_text())
    for table in tables(summarise(results)):
        for row in table.rows:
            for cell in row:
                assert not cell or f">{cell}<" in compare_page.html
    assert [found["class"] for found in compare_page.all("article")] != []
    assert len(compare_page.all("article")) == 4
    assert "gap closed, few-label" in compare_page.html
    assert "oracle, seed 0" in compare_page.text  # its map
    assert compare_page.html.count('class="variant"') == 2  # galleries of the two methods, not of the oracles


def test_names_are_escaped_wherever_they_come_from(fake, tmp_path):
    evil = '<script>alert("1")</script>'
    names = (evil, "a&b", '"><img src=x onerror=y>', *("class" + str(n) for n in range(7)))
    folder = tmp_path / "<b onclick=x> & 'co'"
    fake(images=120, epochs=2, class_names=names).run(folder, variant="<i>mine")
    thumbnails = dict(np.load(folder / "thumbnails.npz"))
    thumbnails["names"] = np.array([evil] * 120)
    np.savez(folder / "thumbnails.npz", **thumbnails)
    (folder / "config.yaml").write_text(f"name: '</pre>{evil}'\n")
    about = json.loads((folder / "run.json").read_text()) | {"command": evil, "platform": evil, "git": {"commit": evil}}
    (folder / "run.json").write_text(json.dumps(about))
    page = report(folder, tmp_path / "run.html")
    assert the_only_script(page) and page.all("b", onclick="x") == [] and page.all("i") == []
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert page.html.count("&lt;script&gt;") > 5
    assert 'alert("1")' in page.text


def test_variants_with_markup_in_their_names_are_escaped(fake, tmp_path):
    folder = tmp_path / "comparison"
    folder.mkdir()
    fake(images=60, epochs=2).compare(folder, variants=("none", "<script>x", "oracle"), seeds=(0, 1))
    page = report(folder, tmp_path / "compare.html")
    assert the_only_script(page) and "<script>x" in page.text


def test_without_labels_everything_else_is_shown(fake, tmp_path):
    fake(images=120, epochs=3, labelled=False).run(tmp_path / "run")
    page = report(tmp_path / "run", tmp_path / "run.html")
    assert "Without labels, there is no measure" in page.text
    sections = {"summary", "curves", "gallery", "similarities", "map", "about"}
    assert {section["id"] for section in page.all("section")} == sections
    assert "<b>Precision</b>" not in page.html and "<b>Share flagged</b>" in page.html
    assert page.all("li", **{"class": "thumb unknown"})
    assert not page.all("li", **{"class": "thumb right"}) and not page.all("li", **{"class": "thumb wrong"})
    assert "dashed:" not in page.text and "pairs (CSV)" in page.text and "false negatives were flagged" not in page.text


def killed(fake, folder, keep):
    fake(images=60, epochs=4, finished=False).run(folder)
    for path in folder.iterdir():
        if path.name not in keep:
            path.unlink()


def test_a_killed_run_shows_what_there_is_and_says_so(fake, tmp_path):
    folder = tmp_path / "run"
    killed(fake, folder, ("metrics.jsonl", "run.json", "config.yaml"))
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"kind": "epoch", "epoch": 5, "lo')
    page = report(folder, tmp_path / "run.html")
    assert "has not finished: epoch 4 of 4 is the last" in page.text
    assert {section["id"] for section in page.all("section")} == {"summary", "curves", "about"}
    assert "damaged" not in page.text  # a half-written last line is how a killed run ends


def test_a_run_in_its_first_epoch_shows_the_loss_of_its_steps(tmp_path):
    lines = [{"kind": "step", "step": n, "epoch": n / 100, "loss": 5 - n / 50, "share_flagged": 0.0} for n in range(30)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = report(tmp_path, tmp_path / "out.html")
    assert "This run has not finished its first epoch yet" in page.text
    assert "<b>Loss</b>" in page.html
    assert "run.json is missing" in page.text


def test_an_empty_run_is_a_page_too(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    assert "first epoch yet" in report(tmp_path, tmp_path / "out.html").text


@pytest.mark.parametrize(
    "name",
    [
        "metrics.jsonl",
        "run.json",
        "config.yaml",
        "flagged.parquet",
        "similarities.json",
        "thumbnails.npz",
        "embedding.npz",
    ],
)
@pytest.mark.parametrize("content", [b"", b"\x00\x80 no format \xff", b"[1, 2]"])
def test_a_damaged_file_costs_its_own_part_only(run_folder, tmp_path, name, content):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    for big in {"embedding.npz", "flagged.parquet"} - {name}:
        (folder / big).unlink()  # tested elsewhere, and slow
    (folder / name).write_bytes(content)
    page = report(folder, tmp_path / "out.html")
    assert "How it was made" in page.text
    if name not in ("metrics.jsonl", "config.yaml"):
        assert f"{name} cannot be read" in page.text


def test_arrays_with_code_in_them_are_not_opened(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    (folder / "thumbnails.npz").unlink()

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    np.savez(folder / "embedding.npz", features=np.array([Bomb()], dtype=object), rows=np.arange(1))
    page = report(folder, tmp_path / "out.html")
    assert "embedding.npz cannot be read" in page.text
    assert not (tmp_path / "exploded").exists()


def test_a_diverged_run_is_called_so(tmp_path):
    lines = [{"kind": "epoch", "epoch": n, "loss": 1.0 if n < 3 else float("nan"), "seconds": 1.0} for n in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = report(tmp_path, tmp_path / "out.html")
    assert "not a finite number from epoch 3 on" in page.text
    assert "nan" not in "".join(re.findall(r"<svg.*?</svg>", page.html, re.S)).lower()


def test_an_unfinished_comparison_shows_what_there_is(compare_folder, tmp_path):
    folder = shutil.copytree(compare_folder, tmp_path / "comparison")
    (folder / "results.json").unlink()
    for seed in (0, 1, 2):
        shutil.rmtree(folder / "runs" / "oracle" / f"seed-{seed}")
    shutil.rmtree(folder / "runs" / "oracle-eliminate")
    unfinished = folder / "runs" / "fnc-attract" / "seed-2" / "metrics.jsonl"
    unfinished.write_text("".join(line + "\n" for line in unfinished.read_text().splitlines()[:5]))
    page = report(folder, tmp_path / "out.html")
    assert "results.json is missing" in page.text
    assert "fnc-attract, seed 2 has not finished" in page.text
    accuracy = next(table for table in page.html.split("<table>")[1:] if "<caption>Accuracy" in table)
    assert re.findall(r'<th scope="row">([^<]*)', accuracy) == ["none", "fnc-attract", "fnc-eliminate"]
    assert len(re.findall(r"<td>[^<]*±", accuracy)) == 9


def test_a_damaged_results_file_is_said(compare_folder, tmp_path):
    folder = shutil.copytree(compare_folder, tmp_path / "comparison")
    (folder / "results.json").write_text('[{"variant": "none"')
    assert "results.json is damaged" in report(folder, tmp_path / "out.html").text


def test_one_seed_is_not_enough_for_a_verdict(fake, tmp_path):
    fake(images=60, epochs=2).compare(tmp_path, variants=("none", "fnc-attract"), seeds=(0,))
    page = report(tmp_path, tmp_path / "out.html")
    assert "no verdict yet: it takes at least two seeds" in page.text
    assert "1 seed " in page.text + " "


def test_it_is_written_into_the_folder_unless_told_otherwise(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    assert write_report(tmp_path) == tmp_path / "report.html"
    assert write_report(tmp_path, tmp_path / "new" / "page.html").is_file()


@pytest.mark.parametrize(("make", "words"), [(False, "there is no folder"), (True, "neither a run nor a comparison")])
def test_other_folders_are_refused_in_one_sentence(tmp_path, make, words):
    folder = tmp_path / "other"
    if make:
        folder.mkdir()
    with pytest.raises(UserError, match=words) as error:
        write_report(folder)
    assert "\n" not in str(error.value)


def test_a_folder_is_no_place_for_the_page(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="is a folder"):
        write_report(tmp_path, tmp_path)
