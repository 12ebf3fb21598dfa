"""The pieces that plots are made of, and each plot against the numbers that it is given."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from falseneg.compare.differences import GapClosed
from falseneg.report.chart import chart, points, style_of, variant_styles
from falseneg.report.frame import Axis, Frame, ticks
from falseneg.report.sections.curves import QUANTITIES
from falseneg.report.sections.map import MapPoints, draw_map, in_two_dimensions, sheet_of
from falseneg.report.sections.results import gap_strip, seeds_strip
from falseneg.report.sections.similarities import histograms
from falseneg.report.svg import MARKS, mark, percent, plain, round_steps, tag


def elements(drawing, name, css=None):
    found = ElementTree.fromstring(str(drawing)).iter(name)
    return [element for element in found if css is None or css in element.get("class", "").split()]


def numbers(path):
    return [tuple(map(float, pair)) for pair in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)]


def test_tags_escape_text_and_attributes():
    drawn = str(tag("text", "<b>&", class_="a", aria_label='"<', x=1.0, y=None))
    assert drawn == '<text class="a" aria-label="&#34;&lt;" x="1">&lt;b&gt;&amp;</text>'


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0.52, 0.68, [0.5, 0.55, 0.6, 0.65, 0.7]),
        (3, 3, [1, 2, 3, 4, 5]),
        (0, 0, [-0.5, -0.25, 0, 0.25, 0.5]),
        (-0.3, 0.2, [-0.4, -0.2, 0, 0.2]),
    ],
)
def test_axes_have_round_numbers_around_the_data(low, high, expected):
    steps = round_steps(low, high)
    assert steps[0] <= low and steps[-1] >= high
    assert steps == pytest.approx(expected)


@pytest.mark.parametrize(
    ("steps", "share", "texts"),
    [
        ([0, 0.00025, 0.0005], False, ["0", "0.00025", "0.00050"]),
        ([0.9975, 0.998, 0.9985], True, ["99.75%", "99.80%", "99.85%"]),
        ([0, 12_500, 25_000], False, ["0", "12,500", "25,000"]),
        ([0, 250_000, 500_000], False, ["0", "250k", "500k"]),
        ([-1.5, 0, 1.5], False, ["−1.5", "0", "1.5"]),
        ([0, 1.25e6], False, ["0", "1.25M"]),
        ([0, 2e-7, 4e-7], False, ["0", "2e−07", "4e−07"]),
        ([3], False, ["3"]),
        ([], True, []),
    ],
)
def test_numbers_of_an_axis_are_never_rounded(steps, share, texts):
    assert ticks(steps, share) == texts


def number(text):
    share = 0.01 if text.endswith("%") else 1
    unit = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(text.rstrip("%")[-1], 1)
    return float(text.rstrip("kMGT%").replace("−", "-").replace(",", "")) * unit * share


@pytest.mark.parametrize("scale", [3e-6, 0.0123, 1.0, 987.0, 1.3e5, 4e9])
@pytest.mark.parametrize("share", [False, True])
def test_every_number_stands_exactly_where_it_says_and_has_its_line(scale, share):
    x, y = Axis(scale, 3.3 * scale, round_steps(scale, 3.3 * scale, 5)), Axis.along(round_steps(0, scale), share=share)
    frame = Frame(x, y)
    drawn = frame.draw("label")
    lines = {float(line.get("y1")) for line in elements(drawn, "line", "grid")}
    marks = {float(at) for at in re.findall(r"M([\d.]+) [\d.]+v4", elements(drawn, "path", "base")[1].get("d"))}
    up = [tick for tick in elements(drawn, "text", "tick") if tick.get("text-anchor") == "end"]
    across = [tick for tick in elements(drawn, "text", "tick") if tick.get("text-anchor") == "middle"]
    assert len(up) == len(lines) == len(y.steps) and len(across) == len(marks) > 1
    for tick in up:
        assert float(tick.get("y")) - 4 == pytest.approx(frame.up(number(tick.text)), abs=0.011)
        assert min(abs(float(tick.get("y")) - 4 - line) for line in lines) < 0.011
    for tick in across:
        assert float(tick.get("x")) == pytest.approx(frame.across(number(tick.text)), abs=0.011)
        assert min(abs(float(tick.get("x")) - at) for at in marks) < 0.06


def test_epochs_are_whole():
    assert round_steps(1, 3, 5, whole=True) == [1, 2, 3]


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.5, "50%"), (0.123456, "12.3%"), (0.0052, "0.52%"), (0, "0%"), (1, "100%"), (-0.2, "−20%"), (0.1, "10%")],
)
def test_percentages(share, text):
    assert percent(share) == text


def test_plain_numbers():
    assert plain(4.25) == "4.25" and plain(20.0) == "20" and plain(-1.5) == "−1.5"


def test_points_are_means_and_ranges_over_seeds():
    runs = [
        [{"epoch": 1, "knn": 0.2}, {"epoch": 2, "knn": 0.5}],
        [{"epoch": 1, "knn": 0.4}, {"epoch": 2}, {"epoch": 3, "knn": float("nan")}],
    ]
    first, second = points(runs, "knn")
    assert (first.epoch, first.mean, first.low, first.high) == (1, pytest.approx(0.3), 0.2, 0.4)
    assert (second.epoch, second.mean, second.low, second.high) == (2, 0.5, 0.5, 0.5)


def test_a_chart_draws_the_numbers_it_is_given():
    quantity = next(quantity for quantity in QUANTITIES if quantity.key == "precision")
    runs = [[{"epoch": e, "precision": p + d} for e, p in enumerate((0.1, 0.3, 0.4), 1)] for d in (-0.05, 0.05)]
    chance = points([[{"epoch": e, "chance": 0.1} for e in (1, 2, 3)]], "chance")
    drawn = chart(quantity, [(style_of(0, "mine"), points(runs, "precision"))], chance)
    (line,) = elements(drawn.drawing, "path", "line")
    places = numbers(line.get("d").replace("M", "").replace("L", " , "))
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    heights = [y for _, y in places]
    (level,) = elements(drawn.drawing, "path", "chance")
    at_chance = float(re.search(r"M[\d.]+ ([\d.]+)H", level.get("d"))[1])
    assert heights[0] == pytest.approx(at_chance, abs=0.1)  # 10% is at the height of chance, 10%
    # Equal differences are equal distances, upwards: .1 to .3 is twice .3 to .4.
    assert heights[0] - heights[1] == pytest.approx(2 * (heights[1] - heights[2]), abs=0.3)
    assert heights[0] > heights[1] > heights[2]
    titles = [title.text for title in elements(drawn.drawing, "title")]
    assert "mine, epoch 3: 40% (35% to 45%)" in titles
    assert "mine: from 10% at epoch 1 to 40% at 3; chance 10%" in elements(drawn.drawing, "svg")[0].get("aria-label")
    assert drawn.columns == ["epoch", "mine"]
    assert drawn.rows == [["1", "10%"], ["2", "30%"], ["3", "40%"]]


def test_a_figure_that_no_run_has_is_no_chart():
    assert chart(QUANTITIES[0], [(style_of(0, "mine"), [])], []) is None


def test_a_single_epoch_can_be_drawn():
    assert (
        "at epoch 1"
        in chart(QUANTITIES[0], [(style_of(0, "mine"), points([[{"epoch": 1, "loss": 2.0}]], "loss"))], []).drawing
    )


def test_long_runs_have_few_marks_and_a_short_table():
    lines = [{"epoch": e, "loss": 1 / e} for e in range(1, 801)]
    drawn = chart(QUANTITIES[0], [(style_of(0, "mine"), points([lines], "loss"))], [])
    assert len(drawn.rows) == 12 and drawn.rows[0][0] == "1" and drawn.rows[-1][0] == "800"
    assert len(elements(drawn.drawing, "circle")) == 40


def test_variants_can_be_told_apart_without_colours():
    names = ["none", *(f"m{n}" for n in range(12)), "oracle", "oracle-eliminate"]
    styles = variant_styles(names, {"oracle", "oracle-eliminate"})
    methods = [styles[f"m{n}"] for n in range(12)]
    assert len({(style.colour, style.mark) for style in styles.values()}) == 15
    assert len({style.mark for style in methods[:6]}) == 6
    assert styles["oracle"].dashed and not styles["none"].dashed


def test_every_mark_has_its_own_shape():
    assert len({mark(shape, 10, 10, 4) for shape in MARKS}) == 6


def test_strips_show_every_seed_and_the_mean():
    style = style_of(0, "mine")
    drawn = seeds_strip("kNN accuracy", [(style, [0.5, 0.7]), (style_of(1, "other"), [])])
    (mean,) = elements(drawn, "path", "mean")
    (dots,) = elements(drawn, "path", "open")
    seeds = [x for x, _ in numbers(dots.get("d"))]
    assert numbers(mean.get("d"))[0][0] == pytest.approx(sum(seeds) / 2, abs=0.1)
    assert "mine: mean 60%; seeds 50%, 70%" in elements(drawn, "svg")[0].get("aria-label")
    assert "not measured" in str(drawn)
    assert seeds_strip("kNN accuracy", [(style, [])]) is None


def test_gaps_are_drawn_with_their_interval_and_arrows_where_it_goes_on():
    inside = GapClosed(0.5, 0.2, 0.9, "oracle", 3)
    beyond = GapClosed(0.5, -9.0, 9.0, "oracle", 3)
    unbounded = GapClosed(0.5, None, None, "oracle", 3)
    rows = [(style_of(n, f"m{n}"), gap) for n, gap in enumerate((inside, beyond, unbounded, None))]
    drawn = gap_strip("gap closed", rows)
    first, second = (path.get("d") for path in elements(drawn, "path", "whisker"))
    assert first.count("v10") == 2 and second.count("v10") == 0
    label = elements(drawn, "svg")[0].get("aria-label")
    assert "m0: 50% (95% interval 20% to 90%)" in label and "m2: not known" in label and "m3: not defined" in label
    assert gap_strip("gap closed", rows[2:]) is None


def entry(epoch, shift=0, threshold=0.3):
    true, false = np.zeros(100, int), np.zeros(100, int)
    true[40:60], false[50 + shift : 60 + shift] = 30, 10
    flagged = np.where(np.arange(100) >= 55 + shift, false, 0)
    kinds = {"true_negative": true.tolist(), "false_negative": false.tolist(), "flagged_true_negative": [0] * 100}
    kinds["flagged_false_negative"] = flagged.tolist()
    return {"epoch": epoch, "edges": np.linspace(-1, 1, 101).tolist(), "threshold": threshold, **kinds}


def test_histograms_of_the_first_and_last_epoch_share_their_axes():
    early, late = histograms([entry(9, 20), entry(5), entry(1)])
    assert (early.epoch, late.epoch) == (1, 9)
    assert (
        early.sentence
        == "0% of the true negatives were flagged; 50% of the false negatives were flagged; the threshold was at 0.30"
    )
    outlines = [elements(drawn.drawing, "path", "kind-true")[0].get("d") for drawn in (early, late)]
    assert outlines[0] == outlines[1]
    assert elements(early.drawing, "path", "kind-false")[0].get("d") != elements(late.drawing, "path", "kind-false")[
        0
    ].get("d")


def area(path):
    """Of stairs over the base line."""
    start, base = map(float, re.match(r"M([\d.]+) ([\d.]+)", path).groups())
    total, x = 0.0, start
    for y, across in re.findall(r"V([\d.]+)H([\d.]+)", path):
        total += (base - float(y)) * (float(across) - x)
        x = float(across)
    return total


def test_outlines_have_the_same_area_and_the_filled_part_is_the_share_flagged():
    (drawn,) = histograms([entry(1)])
    true, false = (elements(drawn.drawing, "path", kind)[0].get("d") for kind in ("kind-true", "kind-false"))
    assert area(true) == pytest.approx(area(false), rel=0.02)
    (filled,) = elements(drawn.drawing, "path", "filled")
    assert area(filled.get("d")) == pytest.approx(area(false) / 2, rel=0.03)


def test_histograms_without_labels_flags_or_pairs():
    base = {"epoch": 1, "edges": np.linspace(-1, 1, 101).tolist(), "threshold": None}
    (plain_one,) = histograms([base | {"negative": [0] * 50 + [5] * 50, "flagged": [0] * 100}])
    assert plain_one.sentence == "Nothing was flagged"
    (flagged,) = histograms([base | {"negative": [0] * 50 + [4] * 50, "flagged": [0] * 75 + [4] * 25}])
    assert flagged.sentence == "50% of the negatives were flagged"
    assert histograms([base | {"negative": [0] * 100, "flagged": [0] * 100}]) == []
    assert histograms([]) == []


def clusters(rows=90, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(rows) % 3
    return (np.eye(3)[labels] @ random.normal(size=(3, 16)) + 0.05 * random.normal(size=(rows, 16))).astype(
        "float32"
    ), labels


@pytest.mark.parametrize(("rows", "method"), [(90, "t-SNE"), (20, "PCA")])
def test_near_in_the_embedding_is_near_on_the_map(rows, method):
    features, labels = clusters(rows)
    flat, name = in_two_dimensions(features)
    assert name == method
    distances = np.linalg.norm(flat[:, None] - flat, axis=2) + np.eye(rows) * 1e9
    assert (labels[distances.argmin(axis=1)] == labels).all()
    assert (in_two_dimensions(features)[0] == flat).all()


def test_a_map_shows_each_class_once_by_name():
    features, labels = clusters()
    labels[:5] = -1
    drawn = draw_map(MapPoints(features, labels), ["a", "<b>", "c"])
    assert [text.text for text in sorted(elements(drawn.drawing, "text"), key=lambda e: e.text)] == ["<b>", "a", "c"]
    marks = elements(drawn.drawing, "path", "point")
    assert [path.find("title").text for path in marks] == ["no label", "a", "<b>", "c"]
    assert sum(path.get("d").count("M") for path in marks) >= 90
    assert drawn.points == 90 and "3 classes" in elements(drawn.drawing, "svg")[0].get("aria-label")


def test_maps_of_odd_embeddings():
    features, labels = clusters()
    assert "without labels" in draw_map(MapPoints(features, None), None).drawing
    assert "class 2" in draw_map(MapPoints(features, labels), None).drawing
    assert draw_map(MapPoints(features[:2], labels[:2]), None) is None
    broken = features.copy()
    broken[:80] = np.nan
    assert draw_map(MapPoints(broken, labels), None).points == 10
    assert draw_map(MapPoints(np.full((40, 8), np.nan), None), None) is None
    assert draw_map(MapPoints(np.zeros((40, 8)), None), None) is None
    assert draw_map(MapPoints(np.ones((40, 8)), None), None).points == 40  # a collapsed encoder


def test_names_on_a_map_never_lie_on_one_another_and_stay_inside():
    random = np.random.default_rng(0)
    features = random.normal(size=(200, 8)).astype("float32")  # all classes have the same middle
    names = [f"a rather long name {number}" for number in range(20)]
    drawn = draw_map(MapPoints(features, np.arange(200) % 20), names)
    boxes = []
    for text in elements(drawn.drawing, "text", "place"):
        half, x, y = 3.5 * len(text.text), float(text.get("x")), float(text.get("y"))
        boxes.append((x - half, y - 10, x + half, y + 3))
    assert 5 < len(boxes) <= 20  # the others have no room, and are in the key
    for index, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0 and top >= 0 and right <= 360 and bottom <= 300
        for other in boxes[index + 1 :]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
    assert [group.name for group in drawn.groups] == names and [group.images for group in drawn.groups] == [10] * 20


@pytest.mark.parametrize("shape", [(7, 48), (26, 16), (1, 8)])
def test_the_sheet_has_every_picture_in_its_place(shape):
    count, side = shape
    images = np.random.default_rng(0).integers(0, 2, (count, side, side, 3)).astype("uint8") * 255
    kind, content = sheet_of(images).split(",")
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))
    assert sheet.shape[1] == 25 * side
    for index in range(count):
        top, left = index // 25 * side, index % 25 * side
        difference = sheet[top : top + side, left : left + side].astype(int) - images[index]
        assert np.abs(difference).mean() < (1 if "png" in kind else 40)
