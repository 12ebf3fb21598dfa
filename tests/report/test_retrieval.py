"""The page of two towers: what finds what, and flagged pairs with their texts."""

import csv
import re

import captioned
import numpy as np
import pytest

import falseneg as fn
from falseneg.report import write_report
from falseneg.train import fit


class Marked(captioned.CaptionedDigits):
    """Captions that are not harmless in a page or in a spreadsheet."""

    def captions(self, row):
        return (*(f"<script>{text}</script> & more" for text in super().captions(row)), "=1+1" + "x" * 10_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "run"
    data, test = Marked(), Marked("test", 60)
    fit(captioned.pair_run(data=data, test=test, detector=fn.BatchQuantile(0.1), epochs=2), folder)
    return folder


def section(page, anchor):
    return re.search(rf'<section[^>]*id="{anchor}".*?</section>', page, re.DOTALL)[0]


def test_what_finds_what_is_shown_as_text(folder):
    page = write_report(folder).read_text()
    found = section(page, "retrieval")
    assert "<script>" not in found and found.count("&lt;script&gt;") > 8 * 6
    assert found.count('class="query"') == 16
    arrays = np.load(folder / "retrieval.npz")
    # The best text of the first image, as the file has it, stands first, and is right if its words are the image's own.
    text = int(arrays["found"][0, 0, 0])
    place = arrays["texts"].tolist().index(text)
    first = re.search(
        r'<ol class="words"><li class="(\w+)">.*?</span> <span class="unseen">\w+: </span>(.*?) <span', found
    )
    own = arrays["group"][arrays["image_of"] == arrays["asked"][0, 0]]
    assert first[1] == ("right" if arrays["group"][place] in own else "wrong")
    assert first[2].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") == str(arrays["words"][place])
    assert np.diff(arrays["cosine"], axis=2).max() <= 0


def test_flagged_pairs_have_their_texts(folder):
    page = write_report(folder).read_text()
    assert "&lt;script&gt;" in section(page, "gallery") and "<script>" not in section(page, "gallery")
    with open(folder / "flagged.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines and all(
        len(line["anchor_caption"]) <= 201 and "handwritten digit" in line["anchor_caption"] for line in lines
    )


@pytest.mark.parametrize("name", ["found", "words", "asked", "image_of"])
def test_a_damaged_file_costs_its_own_part_only(folder, tmp_path, name):
    import shutil

    shutil.copytree(folder, tmp_path / "run")
    arrays = dict(np.load(folder / "retrieval.npz"))
    arrays[name] = arrays[name][:1] if name != "found" else arrays[name] + 10**6
    np.savez(tmp_path / "run" / "retrieval.npz", **arrays)
    page = write_report(tmp_path / "run").read_text()
    assert 'id="retrieval"' not in page and "retrieval.npz" in page and 'id="gallery"' in page
