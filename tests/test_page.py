"""The HTML page of a comparison: what it says, and that nothing in it acts or loads."""

import base64
import copy
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from spkexp.report.finding import figure, finding, interval
from spkexp.report.page import columns, write_page
from tests.comparison_sample import EER, HOSTILE, comparison, row, three

PARTS = Path(__file__).parents[1] / "spkexp/report/page"
VOID = {"meta", "link", "input", "br", "img", "hr"}


class Page(HTMLParser):
    """All elements of a page as (tag, attributes, text directly in it), in order; fails where one is not closed."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self._open: list[int] = []
        self.feed(file.read_text(encoding="utf-8"))
        assert not self._open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attributes}, []))
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attributes}, []))

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for index in self._open:
            self.elements[index][2].append(data)

    def all(self, *tags: str) -> list[tuple[dict[str, str], str]]:
        """(attributes, text in it and below) of the elements."""
        return [(attributes, "".join(texts)) for tag, attributes, texts in self.elements if tag in tags]


@pytest.fixture
def page(tmp_path: Path) -> Page:
    write_page(tmp_path / "new" / "page.html", three())
    return Page(tmp_path / "new" / "page.html")


def words(text: str) -> str:
    return " ".join(text.split())


def test_structure(page: Page) -> None:
    assert [words(text) for _, text in page.all("h1")] == ["3 configurations on test"]
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.all("html")[0][0]["lang"] == "en"
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [
        target
        for _, attributes, _ in page.elements
        for key in ("for", "aria-labelledby", "aria-describedby")
        for target in attributes.get(key, "").split()
    ]
    assert named
    assert set(named) <= set(ids)
    anchors = [attributes["href"] for attributes, _ in page.all("a")]
    assert {anchor.removeprefix("#") for anchor in anchors} <= set(ids)
    for attributes, text in page.all("button"):
        assert attributes["type"] == "button"
        assert words(text)
    labelled = {attributes.get("for") for attributes, _ in page.all("label")}
    ticks = [attributes for attributes, _ in page.all("input") if "data-draw-row" in attributes]
    assert [tick["id"] in labelled for tick in ticks] == [True] * 3
    assert all("checked" in tick for tick in ticks)


def test_table_says_the_numbers(page: Page) -> None:
    headings = [
        (words(text), attributes.get("aria-sort"))
        for attributes, text in page.all("th")
        if attributes.get("scope") == "col"
    ]
    assert [heading for heading, _ in headings] == [
        *("Run", "EER %", "Δ %", "minDCF(0.01)", "AUC %", "Parameters M", "Training s", "Speed utt/s"),
        *("model", "lr", "EER, val %"),
    ]
    assert [heading for heading, order in headings if order] == ["EER %"]
    cells = [(words(text), attributes.get("data-sort")) for attributes, text in page.all("td")]
    assert len(cells) == 3 * 10
    assert cells[10:20] == [
        ("2.00 1.60–2.50", "0.02"),
        ("+1.00 † 0.70–1.30; p = 0.030", "0.01"),
        ("0.200", "0.2"),
        ("98.00 97.50–98.40", "0.98"),
        ("50.0", "50.0"),
        ("90.0", "90.0"),
        ("1,234", "1234.0"),
        ("xvector", "xvector"),
        ("0.002", "0.002"),
        ("1.00", "0.01"),
    ]
    assert cells[1][0] == "reference"
    assert cells[21][0] == "+7.00 n.s. 6.70–7.30; p = 0.22"
    names = [words(text) for attributes, text in page.all("th") if attributes.get("scope") == "row"]
    assert names[1].startswith("xvector 3c4d")
    assert "seed 1: EER 2.20 runs/xvector 3c4d-1" in names[1]


def test_names_break_between_words(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", comparison(row("ecapa_small-v2 <b>", 0.01, None)))
    assert '">ecapa_<wbr>small-<wbr>v2 &lt;b&gt;<span' in (tmp_path / "page.html").read_text()


def test_bars_share_an_axis() -> None:
    # 0.008 to 0.1 is more than sixfold, so the axis is logarithmic: ln(0.02/0.008) / ln(12.5).
    (eer, *_) = columns(three())
    assert eer.cells[0].bar == pytest.approx((0, math.log(1.25) / math.log(12.5), math.log(1.5625) / math.log(12.5)))
    assert eer.cells[1].bar is not None
    assert eer.cells[1].bar[1] == pytest.approx(math.log(2.5) / math.log(12.5))
    assert eer.cells[2].bar is not None
    assert eer.cells[2].bar[2] == pytest.approx(1)
    # An interval as good as endless takes the axis to a third of the least value, and no further; it is cut off there.
    endless = [row("a", 0.09, None), row("b", 0.1, 0.3)]
    endless[0]["metrics"]["eer"]["ci95"] = [1e-6, 0.999]
    assert columns(comparison(*endless))[0].cells[0].bar == pytest.approx((0, math.log(3) / math.log(10), 1))
    near = comparison(row("a", 0.01, None), row("b", 0.02, 0.3))  # 0.008 to 0.025: linear
    assert columns(near)[0].cells[1].bar == pytest.approx((8 / 17, 12 / 17, 1))


@pytest.mark.parametrize(
    ("p", "text"),
    [
        ([0.2], "a has the lowest EER, 1.00 % (0.80–1.25); it is not significantly better than b (p = 0.20)."),
        ([0.0001], "a has the lowest EER, 1.00 % (0.80–1.25); it is significantly better than b (p < 0.001)."),
        ([0.01, 0.01, 0.2], "it is significantly better than 2 of the others, but not than d."),
        ([0.01, 0.02], "it is significantly better than both others."),
        ([0.2] * 3, "it is not significantly better than any of the others."),
        ([0.01, *[0.2] * 6], "than 1 of the others, but not than c, d, e and 3 more."),
    ],
)
def test_finding(p: list[float], text: str) -> None:
    rows = [
        row(name, 0.01 + 0.01 * index, one)
        for index, (name, one) in enumerate(zip("abcdefgh", [None, *p], strict=False))
    ]
    assert finding(comparison(*rows)).endswith(text)


def test_finding_of_what_was_not_tested() -> None:
    a, b, c = row("a", 0.01, None), row("b", 0.02, None), row("c", 0.03, 0.01)
    assert finding(comparison(a, b)).endswith("1.00 % (0.80–1.25); whether that is chance was not tested.")
    assert finding(comparison(a, b, c)).endswith("better than c (p = 0.010); 1 other could not be tested.")
    assert finding(comparison(a)) == "a has an EER of 1.00 % (0.80–1.25)."
    assert finding(comparison(a, row("b", 0.01, 0.9))) == "a and b share the lowest EER, 1.00 % (0.80–1.25)."
    highest = finding(comparison(a, b, metric="auc"))
    assert highest.startswith("a has the highest AUC, 99.00 % (98.75–99.20)")
    assert finding(comparison(metric=None)) == "None of these runs has results to compare."
    # Held against the last: of the tests, the best row's own is the one that counts.
    first, last = row("first", 0.01, 0.04), row("last", 0.03, None)
    text = finding(comparison(first, row("middle", 0.02, 0.5), last, reference=2))
    assert text.endswith("it is significantly better than last (p = 0.040).")


def test_numbers() -> None:
    assert figure(-0.0003, EER) == "−0.03"
    assert interval([-0.0003, 0.0031], EER) == "−0.03 to 0.31"
    assert interval([None, 0.0031], EER) == interval(None, EER) == ""  # type: ignore[list-item]


def test_hostile_names_are_text(page: Page, tmp_path: Path) -> None:
    content = json.loads(json.dumps(three()).replace("xvector", json.dumps(HOSTILE)[1:-1]))
    content |= {"trials": HOSTILE, "notes": [HOSTILE], "lists": [HOSTILE, "val"]}
    content["rows"][2] |= {"missing": HOSTILE, "status": "failed"}
    content["rows"][0]["config"]["trainer.optimizer.lr"] = [HOSTILE, None, {"a": HOSTILE}]
    content["rows"][0]["runs"][0]["folder"] = "runs/\udcff"  # a name on disk that is no UTF-8
    content["rows"][0]["curves"][0]["train"]["loss"][0] = math.nan
    before = copy.deepcopy(content)
    write_page(tmp_path / "hostile.html", content)
    hostile = Page(tmp_path / "hostile.html")
    assert repr(content) == repr(before)
    assert {tag for tag, _, _ in hostile.elements} <= {tag for tag, _, _ in page.elements} | {"strong", "h3"}
    attributes = {key for _, attributes, _ in hostile.elements for key in attributes}
    assert attributes <= {key for _, attributes, _ in page.elements for key in attributes}
    assert not [key for key in attributes if key.startswith("on") or key == "style"]
    assert HOSTILE in hostile.all("h1")[0][1]
    # The JSON says what was given; NaN, which JSON has no word for, is null.
    (text,) = (text for attributes, text in hostile.all("script") if attributes.get("type") == "application/json")
    content["rows"][0]["curves"][0]["train"]["loss"][0] = None
    content["rows"][0]["runs"][0]["folder"] = "runs/?"
    assert json.loads(text) == content
    assert not {"<", ">", "\u2028"} & set(text)


def test_nothing_is_loaded_and_only_the_own_scripts_act(page: Page) -> None:
    for tag, attributes, _ in page.elements:
        assert not {"src", "srcset", "action", "background", "data", "poster"} & attributes.keys(), tag
        assert attributes.get("href", "#").startswith(("#", "data:,"))
    (style,) = (text for _, text in page.all("style"))
    assert "url(" not in style
    assert "@import" not in style
    theme, data, script = page.all("script")
    assert data[0]["type"] == "application/json"
    addresses = set(re.findall(r"https?://[^\s\"'`]+", theme[1] + script[1]))
    assert addresses == {"http://www.w3.org/1999/xhtml", "http://www.w3.org/2000/svg"}  # names of languages
    assert not re.search(r"fetch\(|XMLHttp|import\(|innerHTML|eval\(|document\.write", theme[1] + script[1])
    policies = [a["content"] for a, _ in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policies[0].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["style-src"].split() == [sha256(style)]
    assert rules["script-src"].split() == [sha256(theme[1]), sha256(script[1])]


def sha256(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_scripts_are_all_in_the_page_and_short(page: Page) -> None:
    script = "".join(text for _, text in page.all("script"))
    for file in PARTS.iterdir():
        text = file.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 300, file.name
        if file.suffix == ".js":
            assert text in script, file.name


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast(scheme: int) -> None:
    """WCAG 2.2: 4.5:1 for text (1.4.3), 3:1 for what one must see to read a chart or find a control (1.4.11)."""
    css = (PARTS / "page.css").read_text(encoding="utf-8")
    pairs = re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", css)
    colours = {name: (light, dark)[scheme] for name, light, dark in pairs if name != "own"}
    own = [(light, dark)[scheme] for name, light, dark in pairs if name == "own"]
    assert len(own) == 6
    for ground in ("paper", "raised", "hover"):
        for ink in ("ink", "soft", "accent"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    assert contrast(colours["edge"], colours["paper"]) >= 3
    assert all(contrast(one, colours["paper"]) >= 3 for one in own)


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, definitions of relative luminance and contrast ratio."""
    luminances = []
    for colour in (one, other):
        parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        luminances.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


def test_without_results_it_says_why(tmp_path: Path) -> None:
    nothing: dict[str, Any] = {"metrics": {}, "det": None, "conditions": {}, "curves": []}
    lost = row("ecapa 1a2b", 0.01, None) | nothing | {"missing": "killed"}
    write_page(tmp_path / "page.html", comparison(lost, metric=None, metrics=[], reference=None, trials=None))
    page = Page(tmp_path / "page.html")
    assert not page.all("table")
    assert any("killed" in text for _, text in page.all("li"))
    assert not page.all("figure")


def test_many_rows_tick_the_best_ten(tmp_path: Path) -> None:
    rows = [row(f"m {index}", 0.01 + index / 1000, 0.5 if index else None) for index in range(40)]
    write_page(tmp_path / "page.html", comparison(*rows))
    ticks = [attributes for attributes, _ in Page(tmp_path / "page.html").all("input") if "data-draw-row" in attributes]
    assert [index for index, tick in enumerate(ticks) if "checked" in tick] == list(range(10))
    assert len(ticks) == 40
