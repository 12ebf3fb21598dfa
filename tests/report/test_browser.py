"""The page in a browser: what can be clicked and typed, what is seen on a phone, and what remains without a script."""

import pytest
from report.browser import CHROMIUM, Browser

from falseneg.report import write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt install chromium)")

SHOWN = "[...document.querySelectorAll('{}')].filter(e => e.offsetParent !== null).length"
RING = "(() => { const r = document.querySelector('.ring'); return [r.getAttribute('cx'), r.getAttribute('cy')]; })()"
MARKS = "document.querySelector('#map .map path.point').getAttribute('d')"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# Texts of one plot that lie on one another, each by a pixel or more.
COLLISIONS = """(() => { const found = [];
for (const svg of document.querySelectorAll('svg.plot')) {
  const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  for (const [i, [a, p]] of boxes.entries()) for (const [b, q] of boxes.slice(i + 1))
    if (p.left + 1 < q.right && q.left + 1 < p.right && p.top + 3 < q.bottom - 3 && q.top + 3 < p.bottom - 3)
      found.push(`${svg.getAttribute('aria-label').slice(0, 40)}: ${a} / ${b}`);
} return found; })()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def run_file(run_folder, tmp_path_factory):
    return write_report(run_folder, tmp_path_factory.mktemp("page") / "run.html")


@pytest.fixture(scope="module")
def compare_file(compare_folder, tmp_path_factory):
    return write_report(compare_folder, tmp_path_factory.mktemp("page") / "compare.html")


@pytest.fixture
def page(browser, run_file):
    yield browser.open(run_file)
    assert browser.errors == []


def test_an_anchor_is_enlarged_by_mouse_and_keyboard(page):
    page.click("#gallery div.anchor:nth-of-type(3) .opener")
    assert page.js("document.querySelector('dialog').open")
    assert page.js("document.querySelector('dialog h3').textContent") == "Anchor 2 of 12"
    group = "document.querySelectorAll('#gallery div.anchor')[1]"
    names = f"[...{group}.querySelectorAll('.thumb:not(.further)')].map(t => t.dataset.name)"
    tiles = "[...document.querySelectorAll('dialog .tile')].filter(e => e.offsetParent).map(t => t.querySelector('span').textContent)"
    assert page.js(tiles) == page.js(names)
    assert page.js("document.querySelector('dialog .strip, dialog .tile.right, dialog .tile.wrong').textContent").count(
        "cosine"
    )
    assert page.js("document.querySelector('dialog .tile img').offsetWidth") > 90
    page.press("ArrowRight")
    assert page.js("document.querySelector('dialog h3').textContent") == "Anchor 3 of 12"
    page.press("ArrowLeft"), page.press("ArrowLeft"), page.press("ArrowLeft")
    assert page.js("document.querySelector('dialog h3').textContent") == "Anchor 12 of 12"
    page.press("Escape")
    assert not page.js("document.querySelector('dialog').open")
    page.js("document.querySelector('.opener').focus()")
    page.press("Enter")
    assert page.js("document.querySelector('dialog h3').textContent") == "Anchor 1 of 12"
    page.click("dialog button[aria-label=Close]")
    assert not page.js("document.querySelector('dialog').open")


def test_only_the_wrong_flags_are_shown(page):
    right, wrong = (page.js(SHOWN.format(f"#gallery .thumb.{verdict}")) for verdict in ("right", "wrong"))
    assert right > 0 and wrong > 0
    page.click("#only-wrong")
    assert page.js(SHOWN.format("#gallery .thumb.right")) == 0
    assert page.js(SHOWN.format("#gallery .thumb.wrong")) >= wrong
    page.click(".opener")
    assert page.js("document.querySelector('dialog input').checked")
    assert page.js(SHOWN.format("dialog .thumb.right")) == 0 < page.js(SHOWN.format("dialog .thumb.wrong"))
    page.click("dialog input")
    assert page.js(SHOWN.format("dialog .thumb.right")) > 0 and not page.js(
        "document.getElementById('only-wrong').checked"
    )


def test_the_map_tells_of_the_image_under_the_pointer(page):
    page.place("#map svg.plot")
    corner, scale = page.js(
        "(() => { const b = document.querySelector('#map svg.plot').getBoundingClientRect();"
        "return [[b.x, b.y], b.width / 360]; })()"
    )
    points = page.js("JSON.parse(document.querySelector('#map .map').dataset.points)")
    for index in (0, 150, 399):
        page.mouse("mouseMoved", corner[0] + scale * points["x"][index], corner[1] + scale * points["y"][index])
        at = [float(number) for number in page.js(RING)]
        assert at == pytest.approx([points["x"][index], points["y"][index]], abs=0.2)
        found = [n for n, place in enumerate(zip(points["x"], points["y"], strict=True)) if list(place) == at]
        said = page.js("document.querySelector('.look').textContent")
        assert any(points["names"][n] in said for n in found)
    side = page.js("document.querySelector('.picture').offsetWidth")
    chosen = next(n for n, name in enumerate(points["names"]) if name in said)
    left, top = page.js("getComputedStyle(document.querySelector('.picture')).backgroundPosition").split()
    assert (left, top) == (f"{-(chosen % 25) * side}px", f"{-(chosen // 25) * side}px")
    assert page.js("document.querySelector('.picture').style.backgroundImage").startswith('url("data:image/')


def test_the_map_is_zoomed_moved_and_walked(page):
    before = page.js(MARKS)
    page.click("button[aria-label='Zoom in']")
    zoomed = page.js(MARKS)
    assert zoomed != before and page.js("document.querySelector('#map svg.plot').classList.contains('zoomed')")
    # Marks keep their size, and their distances grow by the same factor.
    assert [part.split("h")[-1:] for part in zoomed.split("M")[1:]] == [
        part.split("h")[-1:] for part in before.split("M")[1:]
    ]
    x, y = page.place("#map svg.plot")
    page.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
    page.mouse("mouseMoved", x + 40, y + 30, buttons=1)
    page.mouse("mouseReleased", x + 40, y + 30, button="left", buttons=0, clickCount=1)
    assert page.js(MARKS) != zoomed
    page.click("button[aria-label='Whole map']")
    assert page.js(MARKS) == before
    page.js("document.querySelector('#map svg.plot').focus()")
    page.press("ArrowRight")
    first = [float(n) for n in page.js(RING)]
    page.press("ArrowRight")
    second = [float(n) for n in page.js(RING)]
    assert second[0] > first[0]
    page.press("+")
    assert page.js(MARKS) != before
    page.press("0")
    assert page.js(MARKS) == before


def test_the_key_shows_one_class_alone(page):
    dimmed = "[...document.querySelectorAll('#map .map path.point')].map(p => p.classList.contains('dim'))"
    assert page.js(SHOWN.format("#map .key-list button")) == 10
    page.click("#map .key-list li:nth-child(4) button")
    assert page.js(dimmed) == [place != 3 for place in range(10)]
    assert page.js("document.querySelectorAll('#map .key-list [aria-pressed=true]').length") == 1
    page.click("#map .key-list li:nth-child(4) button")
    assert not any(page.js(dimmed))


def test_the_pairs_are_a_link_that_needs_no_script(browser, run_file):
    browser.open(run_file, script=False)
    text = "atob(document.querySelector('a[download]').href.split(',')[1]).split('\\n')[0]"
    # A page whose script is off can still be asked by the debugger once it is on.
    browser("Emulation.setScriptExecutionDisabled", value=False)
    assert browser.js(text).startswith('"anchor_name","candidate_name","score"')
    assert browser.js("document.querySelector('.opener, .ring, dialog')") is None
    assert browser.js(SHOWN.format("#gallery div.anchor")) == 12 and browser.js(SHOWN.format("#map svg.plot")) == 1


def test_a_script_that_came_with_the_data_does_not_run(browser, run_file, tmp_path):
    page = tmp_path / "evil.html"
    page.write_text(
        run_file.read_text().replace("<main", "<script>window.evil = 1</script><img src=x onerror='evil=1'><main")
    )
    browser.open(page)
    assert browser.js("window.evil === undefined") and browser.errors
    assert browser.js("document.querySelectorAll('.opener').length") == 12


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("which", ["run_file", "compare_file"])
def test_nothing_is_wider_than_the_window_and_no_text_lies_on_another(browser, request, which, width):
    browser.open(request.getfixturevalue(which), width=width, height=800)
    assert browser.js(OVERFLOW) == 0
    assert browser.js(COLLISIONS) == []
    if which == "run_file":
        browser.click(".opener")
        box = browser.js("JSON.parse(JSON.stringify(document.querySelector('dialog').getBoundingClientRect()))")
        assert box["left"] >= 0 and box["right"] <= width and box["top"] >= 0 and box["bottom"] <= 800
    assert browser.errors == []


def test_motion_and_colours_follow_the_reader(browser, run_file):
    scroll, ink = "getComputedStyle(document.documentElement).scrollBehavior", "getComputedStyle(document.body).color"
    browser.open(run_file)
    light = browser.js(ink)
    assert browser.js(scroll) == "smooth"
    browser.open(run_file, dark=True, reduced=True)
    assert browser.js(scroll) == "auto" and browser.js(ink) != light


def test_maps_of_a_comparison_share_their_pictures(browser, compare_file):
    browser.open(compare_file)
    assert browser.js("document.querySelectorAll('#map .map').length") == 5
    assert browser.js("document.querySelectorAll('#map .sheet').length") == 1
    browser.click("#map .key-list button")
    assert browser.js("document.querySelectorAll('#map path.dim').length") == 5 * 9
    browser.click("#gallery .opener")
    assert browser.js("document.querySelector('dialog .of').textContent") == "fnc-eliminate, seed 0"
