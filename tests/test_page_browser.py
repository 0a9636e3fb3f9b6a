"""The HTML page of a comparison in a browser: ticks, sorting, keys, charts, files, themes; where Chromium is."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

from spkexp.report.page import write_page
from tests.browser import CHROMIUM, Browser
from tests.comparison_sample import HOSTILE, three


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def opened(browser: Browser, file: Path, content: dict[str, Any]) -> None:
    write_page(file, content)
    browser.open(file)
    browser.wait("document.querySelectorAll('.canvas svg').length === document.querySelectorAll('.chart').length")


def check_quiet(browser: Browser) -> None:
    """No error in the console, and nothing asked for but the page itself."""
    kinds = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
    assert not [event for event in browser.events if event["method"] in kinds]
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("file:", "blob:", "data:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == 1


def rows_of(browser: Browser, chart: str) -> set[str]:
    """The rows that a chart draws in colour."""
    script = f"[...document.querySelectorAll('#{chart}-canvas g[data-row]:not(.faint)')].map(e => e.dataset.row)"
    return set(browser.run(script))


CHARTS = ("errors", "det", "cost", "conditions", "curves", "effects", "parallel")


def test_ticks_sorting_and_filter_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path / "page.html", three())
    assert [rows_of(browser, chart) for chart in CHARTS] == [{"0", "1", "2"}] * 7
    browser.run("document.getElementById('draw-1').focus()")
    browser.press(" ", 32, " ")
    assert [rows_of(browser, chart) for chart in CHARTS] == [{"0", "2"}] * 7
    assert browser.run("document.getElementById('count').textContent") == "3 listed, 2 drawn"

    order = "[...document.querySelectorAll('tbody tr')].map(row => row.dataset.row).join('')"
    browser.run("document.querySelector('.choices input[data-column=\"3\"]').click()")  # AUC is not shown at first
    browser.run("document.querySelector('thead button[data-column=\"3\"]').focus()")  # and the higher the better
    browser.press("Enter", 13, "\r")
    sort = "document.querySelector('[aria-sort]').textContent.trim() + document.querySelector('[aria-sort]').ariaSort"
    assert (browser.run(order), browser.run(sort)) == ("012", "AUC %descending")
    browser.press("Enter", 13, "\r")
    assert (browser.run(order), browser.run(sort)) == ("210", "AUC %ascending")
    browser.run("document.querySelector('thead button').click()")  # by name
    assert browser.run(order) == "021"

    browser.run("document.getElementById('filter').focus()")
    browser.call("Input.insertText", text="LR=0.002 xvec")
    assert browser.run("[...document.querySelectorAll('tbody tr:not([hidden])')].map(row => row.dataset.row)") == ["1"]
    browser.run("document.querySelector('[data-draw=listed]').click()")
    assert [rows_of(browser, chart) for chart in CHARTS] == [{"1"}] * 7
    check_quiet(browser)


def test_keys_tell_exact_values_and_light_the_run_everywhere(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path / "page.html", three())
    browser.run("document.getElementById('draw-2').focus()")
    browser.press("Tab", 9)
    browser.run("document.querySelector('#errors-canvas svg').focus()")
    browser.press("ArrowDown", 40)
    told = browser.run("document.getElementById('announcement').textContent")
    assert told.startswith("xvector 3c4d, EER 2.00 %, 95 % interval 1.60–2.50, seeds: 1.80, 2.20, ")
    assert told.endswith("+1.00 (0.70–1.30) to ecapa 1a2b, p = 0.03")
    lit = browser.run("[...new Set([...document.querySelectorAll('.own')].map(e => e.dataset.row))]")
    assert lit == ["1"]
    assert browser.run("['TR', 'g'].every(tag => document.querySelector(`${tag}.own`))")
    browser.press("Escape", 27)
    assert browser.run("document.getElementById('tooltip').hidden && !document.querySelector('.own')")
    check_quiet(browser)


def test_tab_reaches_everything_and_leaves_again(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path / "page.html", three())
    browser.run("document.body.focus(); window.seen = new Set()")
    controls = "button, summary, input, select, .canvas svg, nav a, .skip"
    browser.run(f"window.wanted = [...document.querySelectorAll('{controls}')].filter(e => e.checkVisibility())")
    for _ in range(browser.run("window.wanted.length") + 20):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key="Tab", windowsVirtualKeyCode=9)
        browser.run("window.seen.add(document.activeElement)")
    # Chromium lets one tab to any drawing that listens for the focus; other browsers ask for the attribute.
    assert browser.run("wanted.filter(e => e.matches('svg')).map(e => e.getAttribute('tabindex'))") == ["0"] * 7
    assert browser.run("window.wanted.filter(e => !seen.has(e)).map(e => e.outerHTML.slice(0, 80))") == []
    assert browser.run("seen.has(document.body)")  # it went past the last one


def test_charts_are_true_to_the_numbers(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path / "page.html", three())
    browser.run("window.place = e => e.transform.baseVal.getItem(0).matrix")
    x = browser.run("[...document.querySelectorAll('#errors-canvas .mark')].map(e => place(e).e)")
    # Logarithmic, as the values differ eightfold: from 1 to 2 % is a third of the way from 1 to 8 %.
    assert (x[1] - x[0]) / (x[2] - x[0]) == pytest.approx(1 / 3, abs=2e-3)
    # The axes of the DET plot are those of normal deviates, and its marks are at the equal error rates.
    probit = NormalDist().inv_cdf
    labels = "[...document.querySelectorAll('#det-canvas .tick[text-anchor=middle]')]"
    labels += ".map(e => [e.textContent, e.getAttribute('x')])"
    ticks = [(probit(float(percent) / 100), float(x)) for percent, x in browser.run(labels)]
    slope = (ticks[-1][1] - ticks[0][1]) / (ticks[-1][0] - ticks[0][0])
    assert len(ticks) >= 6
    assert [x for _, x in ticks] == pytest.approx([ticks[0][1] + slope * (t - ticks[0][0]) for t, _ in ticks], abs=0.11)
    marks = "[...document.querySelectorAll('#det-canvas g[clip-path] .mark')].map(e => [place(e).e, place(e).f])"
    det = browser.run(marks)
    for rate, (across, _) in zip((0.01, 0.02, 0.08), det, strict=True):
        assert across == pytest.approx(ticks[0][1] + slope * (probit(rate) - ticks[0][0]), abs=1)
    rise = [(before[1] - after[1]) / (after[0] - before[0]) for before, after in pairwise(det)]
    assert rise == pytest.approx([1, 1], abs=0.02)  # on the diagonal
    # Curves end at the frame, and the single runs are drawn beside their mean: of three rows, two seeds each.
    clip = "[...['x', 'width'].map(of => Number(document.querySelector('#det-clip rect').getAttribute(of)))]"
    left, side = browser.run(clip)
    grid = "[...document.querySelectorAll('#det-canvas .axis .grid')].map(e => Number(e.getAttribute('x2')))"
    assert left + side == pytest.approx(max(browser.run(grid)), abs=0.1)
    marks = browser.run("[...document.querySelectorAll('#effects-canvas .mark')].map(e => place(e).e)")
    assert len(marks) == 6
    assert len(set(marks)) == 6
    # The files hold the same numbers.
    browser.run("window.saved = []; window.old = URL.createObjectURL.bind(URL)")
    browser.run("URL.createObjectURL = blob => (saved.push(blob), old(blob)); 0")
    for chart, kind in (("det", "csv"), ("runs", "json"), ("errors", "svg"), ("effects", "json")):
        browser.run(f"document.querySelector('[data-chart={chart}][data-file={kind}]').click()")
    csv, whole, drawing, effects = browser.run("Promise.all(saved.map(blob => blob.text()))")
    assert json.loads(whole) == three()
    lines = csv.splitlines()
    assert lines[0] == "run,false_alarm,miss"
    assert len(lines) == 1 + 3 * 299
    first = three()["rows"][0]["det"]
    assert [float(one) for one in lines[1].split(",")[1:]] == [first["false_alarm"][0], first["miss"][0]]
    assert drawing.startswith("<?xml")
    assert "var(--" not in drawing
    assert drawing.count('fill="rgb(0, 114, 178)"') >= 1  # of the first row, in the light
    level = {"value": "ecapa", "runs": 1, "mean": 0.01, "low": 0.009, "high": 0.011}
    assert json.loads(effects)[0] == {"setting": "model", **level}
    parsed = f"new DOMParser().parseFromString({json.dumps(drawing)}, 'image/svg+xml')"
    assert browser.run(f"{parsed}.querySelectorAll('.mark').length") == 3
    check_quiet(browser)


def test_an_endless_interval_leaves_room_for_the_others(browser: Browser, tmp_path: Path) -> None:
    content = three()
    for row, value in zip(content["rows"], (0.7, 0.8, 0.9), strict=True):
        row["metrics"]["eer"] |= {"value": value, "ci95": [value - 0.05, value + 0.05], "of_seeds": []}
    content["rows"][2]["metrics"]["eer"]["ci95"] = [1e-6, 0.999999]
    opened(browser, tmp_path / "page.html", content)
    for chart, extent in (("errors", "width"), ("cost", "height")):
        lines = f"[...document.querySelectorAll('#{chart}-canvas .whisker')].map(e => e.getBBox().{extent})"
        low, _, endless = browser.run(lines)
        assert low > endless / 10
        assert browser.run(f"document.querySelectorAll('#{chart}-canvas g[data-row=\"2\"] .arrow').length") == 1
    check_quiet(browser)


def test_themes_and_hostile_names_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    content = json.loads(json.dumps(three()).replace("xvector", json.dumps(HOSTILE)[1:-1]))
    content["rows"][0]["curves"][0]["val"] = {}
    for media, before in (("dark", "rgb(20, 22, 26)"), ("light", "rgb(255, 255, 255)")):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": media}])
        opened(browser, tmp_path / f"{media}.html", content)
        paper = "getComputedStyle(document.body).backgroundColor"
        assert browser.run(paper) == before
        browser.run("document.getElementById('theme').click()")
        assert browser.run(paper) != before
        browser.run("localStorage.removeItem('spkexp-theme')")
    assert browser.run("typeof window.hacked") == "undefined"
    assert browser.run("document.images.length") == 0
    check_quiet(browser)
    for width in (360, 1920):  # nothing makes the page scroll sideways; the table scrolls in its own box
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        browser.frames()
        assert browser.run("document.documentElement.scrollWidth") == width
    browser.call("Emulation.clearDeviceMetricsOverride")
