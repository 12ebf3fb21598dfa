"""``falseneg audit``: from the command line to the page and the files."""

import csv
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import falseneg as fn
from falseneg.cli import main
from falseneg.cli.audit import _with_data
from falseneg.data import Digits, Folder
from falseneg.report.audit import PAGE

sys.path.insert(0, str(Path(__file__).parent.parent / "audit"))
from planted import plant

ENCODER = ["--encoder", "timm:resnet10t", "--image-size", "16", "--workers", "0", "--accelerator", "cpu"]
SETTINGS = ["--batch-size", "30", "--expected-classes", "5"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    place = tmp_path_factory.mktemp("audits")
    exact, near = plant(place / "photos")
    out = place / "out"
    assert main(["audit", str(place / "photos"), *ENCODER, *SETTINGS, "--out", str(out)]) == 0
    return place / "photos", out, exact, near


def pairs_of(table, photos):
    images = Folder(str(photos))
    columns = (table[name].to_pylist() for name in ("anchor", "candidate"))
    return [frozenset(Path(images.describe(row)).name for row in pair) for pair in zip(*columns, strict=True)]


def test_the_files_hold_what_was_planted(done):
    photos, out, exact, near = done
    table = pq.read_table(out / "pairs.parquet")
    named = pairs_of(table, photos)
    assert {pair for pair, is_exact in zip(named, table["exact"].to_pylist(), strict=True) if is_exact} == exact
    assert near <= {pair for pair, is_near in zip(named, table["near"].to_pylist(), strict=True) if is_near}
    detectors = ["support set", "batch quantile", "relative margin", "clusters", "neighbour graph"]
    assert table.column_names[-7:] == ["exact", "near", *detectors]
    for line in table.to_pylist():
        flags = [line[name] for name in detectors]
        assert line["anchor_name"] and line["correct"] == (line["anchor_class"] == line["candidate_class"])
        assert all(flag is None for flag in flags) or any(flags)
    rows = list(csv.DictReader((out / "pairs.csv").open()))
    assert len(rows) == len(table) and rows[0]["anchor_name"] == table["anchor_name"][0].as_py()
    assert [row["support set"] for row in rows] == [
        {True: "true", False: "false", None: ""}[flag] for flag in table["support set"].to_pylist()
    ]


def test_the_detector_of_neighbours_takes_the_duplicates(done):
    photos, out, exact, near = done
    pairs = pairs_of(pq.read_table(out / "duplicates.parquet"), photos)
    assert exact | near <= set(pairs) and all(pairs.count(pair) == 2 for pair in pairs)
    rule = fn.Neighbours(out / "duplicates.parquet")
    assert len(rule.anchors) == len(pairs)


def test_figures_are_those_of_the_pairs(done):
    _, out, _, _ = done
    figures = json.loads((out / "audit.json").read_text())
    table = pq.read_table(out / "pairs.parquet").to_pylist()
    assert figures["images"] == figures["looked_at_by_detectors"] == 75
    assert figures["exact_duplicates"] == {"groups": 2, "copies": 2}
    assert figures["near_duplicates"]["pairs"] == sum(
        line["near"] for line in table if line["support set"] is None
    ) + len(
        {
            frozenset((line["anchor"], line["candidate"]))
            for line in table
            if line["near"] and line["support set"] is not None
        }
    )
    negatives = 2 * 30 * 29
    for name, measured in figures["detectors"].items():
        flagged = [line for line in table if line[name]]
        assert measured["share_flagged"] == pytest.approx(len(flagged) / negatives)
        assert measured["precision"] == pytest.approx(sum(line["correct"] for line in flagged) / len(flagged))
        for other, share in figures["also_flagged"][name].items():
            assert share == pytest.approx(sum(line[other] for line in flagged) / len(flagged))
    assert (
        "--detector.alpha 0.2</code>" in (out / PAGE).read_text()
        and "suggested share of negatives" in (out / PAGE).read_text()
    )
    assert figures["suggestion"]["alpha"] == 0.2 and figures["suggestion"]["top_k"] == 12
    assert figures["encoder"]["source"] == "timm:resnet10t" and len(figures["encoder"]["sha256"]) == 64


def test_the_page_needs_no_script_and_no_other_file(done):
    _, out, _, _ = done
    html = (out / PAGE).read_text()
    assert "<script" not in html and "script-src" not in html and "default-src 'none'" in html
    outside = [link for link in re.findall(r'(?:src|href)="([^"]*)"', html) if not link.startswith(("#", "data:"))]
    assert outside == [] and "url(" not in html and "@import" not in html
    for anchor in ("findings", "twins", "detectors", "suggestion", "lookalikes", "suspects"):
        assert f'<section id="{anchor}"' in html and f'href="#{anchor}"' in html
    figures = json.loads((out / "audit.json").read_text())
    text = html.split("</style>")[1]
    assert "captions" not in text and "of them are false; at least 3 of 5" in text and "random weights" in text
    row = re.search(r'<th scope="row">clusters</th>(.*?)</tr>', html)[1]
    shown = re.findall("<td>(.*?)</td>", row)
    clusters = figures["detectors"]["clusters"]
    for cell, name in zip(shown[1:], ("share_flagged", "precision", "recall", "f1"), strict=True):
        assert float(cell.removesuffix("%")) == pytest.approx(100 * clusters[name], abs=0.06)
    assert html.count("<li class=") > 30 and "copy.png" in html and "other-format.bmp" in html


def test_what_is_printed(done, tmp_path, capsys, monkeypatch):
    photos = done[0]
    monkeypatch.chdir(tmp_path)
    assert main(["audit", str(photos), *ENCODER, *SETTINGS, "--near-duplicates", "1", "--seed", "2"]) == 0
    shown = capsys.readouterr().out
    named = tmp_path / f"audit-{photos.parent.name}-photos"
    assert (named / "audit.html").is_file() and str(Path(named.name) / "audit.html") in shown
    figures = json.loads((named / "audit.json").read_text())
    assert figures["near_duplicates"] == {"pairs": 0, "threshold": 1.0, "same_class": None} and figures["seed"] == 2
    assert "2 images equal to an earlier one, 2 groups" in shown and "0 pairs above a cosine of 1.000" in shown
    assert "take alpha = 0.2, top_k = 12: for the classes that you expect" in shown
    precision = figures["detectors"]["clusters"]["precision"]
    assert re.search(rf"clusters .* flagged, {100 * precision:.3g}", shown)
    assert "seen by timm:resnet10t with random weights at 16 pixels" in shown
    assert main(["audit", str(photos), *ENCODER]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "place, given",
    [
        ("photos", "Folder --data.root"),
        ("s3://bucket/photos", "Folder --data.root"),
        ("hf://datasets/a-*.tar", "Shards --data.path"),
        ("PAIRS.PARQUET", "Parquet --data.path"),
        ("a-{0..3}.tar", "Shards --data.path"),
        ("list.tsv", "FileList --data.path"),
        ("some.list", "FileList --data.path"),
        ("without-ending", "FileList --data.path"),
    ],
)
def test_data_that_stand_first_and_a_path_that_is_given_as_data_are_read_alike(
    place, given, tmp_path, monkeypatch, capsys
):
    (tmp_path / "photos").mkdir()
    for name in ("PAIRS.PARQUET", "list.tsv", "some.list", "without-ending"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert _with_data([place])[0] == ["--data", *given.split(), place]
    assert main(["pretrain", "--data", place, "--out", "o"]) == 2
    assert f"{place} is a path; give --data {given} {shlex.quote(place)}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "typed, called",
    [
        ("photos", "photos"),
        ("data/photos/", "data/photos"),
        ("../data/photos", "data/photos"),
        ("..", "data"),
        ("pairs.parquet", "pairs"),
        ("s3://bucket/photos", "bucket/photos"),
    ],
)
def test_data_are_called_as_they_are_typed(typed, called, tmp_path, monkeypatch):
    for name in ("photos", "data/photos"):
        (tmp_path / "data" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "data")
    if typed == "..":
        monkeypatch.chdir(tmp_path / "data" / "photos")
    assert _with_data([typed])[1].endswith(called) and (typed == ".." or _with_data([typed])[1] == called)


def test_unlabelled_images_and_the_same_seed(tmp_path, capsys):
    plant(tmp_path / "photos", labelled=False)
    for name in ("one", "two"):
        assert (
            main(["audit", str(tmp_path / "photos"), *ENCODER, "--batch-size", "30", "--out", str(tmp_path / name)])
            == 0
        )
    one, two = (json.loads((tmp_path / name / "audit.json").read_text()) for name in ("one", "two"))
    assert {**one, "seconds": 0} == {**two, "seconds": 0}
    suggestion = one["suggestion"]
    assert suggestion["by"] == "agreement" and one["confusable"] is None
    assert suggestion["alpha"] is suggestion["top_k"] is None
    fewest, most = suggestion["fitting"]
    assert fewest <= suggestion["detectors_set_to"] <= most
    assert one["detectors"]["clusters"]["precision"] is None
    shown = capsys.readouterr().out
    assert "right" not in shown and "take alpha" not in shown
    assert (
        f"alpha from {1 / most:.4g} to {1 / fewest:.4g} fits" in shown and "give --expected-classes, or labels" in shown
    )
    html = (tmp_path / "one" / PAGE).read_text()
    assert "none of them is suggested" in html and "← suggested" not in html and "--detector.alpha" not in html
    assert (
        "lookalikes" not in re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
        and "precision" not in html.split("</header>")[1].split("</details>")[1]
    )


def test_a_run_and_the_digits(tmp_path, capsys):
    small = ["--method.encoder.arguments", '{"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}', "--accelerator", "cpu"]
    assert main(["pretrain", "--config", "digits", *small, "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    options = ["--data", "Digits", "--encoder", str(tmp_path / "run"), "--workers", "0", "--accelerator", "cpu"]
    assert main(["audit", *options, "--out", str(tmp_path / "out")]) == 0
    figures = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert figures["images"] == len(Digits()) and figures["suggestion"]["by"] == "labels"
    labels = Digits().labels
    chance = (torch.bincount(labels) / len(labels)).square().sum()
    assert figures["detectors"]["clusters"]["chance"] == pytest.approx(float(chance), abs=0.01)


def test_images_that_cannot_be_read_are_left_out_if_asked(tmp_path, capsys):
    plant(tmp_path / "photos")
    (tmp_path / "photos" / "kind0" / "cut.png").write_bytes(b"no picture")
    options = [*ENCODER, *SETTINGS, "--skip-unreadable", "true", "--out", str(tmp_path / "out")]
    assert main(["audit", str(tmp_path / "photos"), *options]) == 0
    shown = capsys.readouterr().out
    assert "1 image left out, the first because:" in shown and "cut.png" in shown and "75 images, seen by" in shown


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], ["--encoder", "timm:NAME"]),
        (["nowhere", *ENCODER], ["no folder nowhere", "--data"]),
        (["photos"], ["audit needs --encoder"]),
        (["--encoder", "timm:resnet10t"], ["DATA first"]),
        (["photos", "--data", "Digits", *ENCODER], ["both name the data"]),
        (["photos", "--encoder", "timm:resnet10", "--accelerator", "cpu"], ["resnet10"]),
        (["photos", "--encoder", "runs/none"], ["runs/none"]),
        (["photos", *ENCODER, "--batch-size", "1"], ["batch_size is 1"]),
        (["photos", *ENCODER, "--expected-classes", "1"], ["expected_classes is 1"]),
        ([*ENCODER, "photos"], ["DATA first"]),
        (["one", *ENCODER], ["there is one image", "at least 2"]),
        (["photos", *ENCODER, "--expected-classes", "80"], ["80", "75 images"]),
        (["photos", *ENCODER, "--near-duplicates", "2"], ["near_duplicates is 2"]),
        (["photos", *ENCODER, "--seed", "-1"], ["seed is -1"]),
        (["photos", *ENCODER, "--out", "full"], ["full is there already", "--out"]),
        (["photos", *ENCODER, "--out", "list.csv/out"], ["list.csv", "--out"]),
        (["broken", *ENCODER], ["cut.png", "--skip-unreadable true"]),
        (["few", *ENCODER], ["3 images", "at least 8"]),
        (["list.csv", *ENCODER], ["no such picture.png"]),
        (["photos", *ENCODER, "--batchsize", "3"], ["--batchsize", "batch-size"]),
    ],
)
def test_what_a_user_can_do_wrong(arguments, said, tmp_path, monkeypatch, capsys):
    from PIL import Image

    plant(tmp_path / "photos")
    for name in ("full", "few", "one"):
        (tmp_path / name).mkdir()
    (tmp_path / "list.csv").write_text("no such picture.png")
    shutil.copytree(tmp_path / "photos", tmp_path / "broken")
    (tmp_path / "broken" / "kind0" / "cut.png").write_bytes(
        (tmp_path / "photos" / "kind0" / "k0-01.png").read_bytes()[:50]
    )
    (tmp_path / "full" / "note.txt").write_text("mine")
    Image.new("RGB", (16, 16)).save(tmp_path / "one" / "only.png")
    for number in range(3):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / "few" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["audit", *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith("falseneg: ") and told.count("\n") == 1
    for part in said:
        assert part in told, told
    assert sorted(tmp_path.rglob("*")) == before
