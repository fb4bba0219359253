"""The page: what it holds, and what a browser makes of it."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from noveltylab.report.__main__ import report
from noveltylab.report.page import HEAT_STEPS, HERE, heat, relative
from tests.report.conftest import WriteRun, edit

HOSTILE = "<img src=x onerror=alert(1)>&\"'javascript:;"
SCRIPT = "<script>window.pwned=1</script>"
ESCAPE = "red \x1b[31m and \u202eturned\u2069"


class Reader(HTMLParser):
    """Tags with their attributes, and the text of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page_of(outputs: Path) -> Path:
    _, paths = report(outputs)
    return paths["html"]


@pytest.fixture
def hostile(outputs: Path, write_run: WriteRun) -> Path:
    """A page about runs with hostile names, everywhere a name can stand."""

    def change(result: dict[str, Any]) -> None:
        result["inlier_name"] = result["primary"] = SCRIPT
        result["scores"] = {SCRIPT: result["scores"]["mse"]}
        result["warnings"] = [SCRIPT, ESCAPE]
        result["provenance"]["commit"] = SCRIPT
        result["config"]["trainer"][SCRIPT] = result["inlier"]

    for label in range(2):
        folder = write_run(HOSTILE, inlier=label, auroc=0.9, change=change)
        (folder / "metrics.csv").write_text("".join(f"{i},train/{SCRIPT},{i}\n" for i in range(3)))
        (folder / "figures" / "a#b?c%.png").write_bytes(b"")
    edit(write_run(HOSTILE, seed=5, auroc=0.9), scores={SCRIPT: 1})
    return page_of(outputs)


def test_hostile_names_are_text(hostile: Path) -> None:
    text = hostile.read_text()
    reader = Reader(text)
    assert not reader.open
    assert [tag for tag, _ in reader.tags].count("script") == 1
    assert not {"img", "iframe", "object", "link", "base", "form"} & {tag for tag, _ in reader.tags}
    for _, attributes in reader.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    assert sum(SCRIPT in part for part in reader.text) > 5 and any(
        HOSTILE in part for part in reader.text
    )
    assert (
        not {"\x1b", "\u202e", "\u2069"} & set(text) and "red \\x1b[31m and \\u202eturned" in text
    )
    for kind in ("md", "tex", "csv"):
        written = hostile.with_suffix(f".{kind}").read_text()
        assert ("<script" in written) == (kind == "csv")  # data, not a page


def test_links_are_relative_and_lead_to_files(hostile: Path) -> None:
    links = [
        str(attributes["href"])
        for tag, attributes in Reader(hostile.read_text()).tags
        if tag == "a"
    ]
    inside, outside = (
        [link for link in links if link.startswith("#") == within_page]
        for within_page in (True, False)
    )
    assert inside == ["#s1"] and len(outside) == 2 * 3
    for link in outside:
        assert link.startswith("../") and ":" not in link
        assert (hostile.parent / unquote(link)).exists()


def test_a_link_cannot_be_an_address(tmp_path: Path) -> None:
    assert relative(tmp_path / "javascript:alert(1)", tmp_path) == "javascript%3Aalert%281%29"


def test_nothing_may_load_and_only_our_script_may_run(outputs: Path, write_run: WriteRun) -> None:
    write_run(auroc=0.9)
    text = page_of(outputs).read_text()
    (policy,) = [
        str(attributes["content"])
        for _, attributes in Reader(text).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:" and set(rules) == {
        "default-src", "script-src", "style-src", "img-src", "base-uri", "form-action",
    }  # fmt: skip
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    assert not re.search(r"https?://|@import|url\(", text)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_heat_map_is_legible_and_told_apart_by_lightness() -> None:
    style = (HERE / "page.css").read_text()
    styles = re.findall(r"\.h(\d+) \{ background: (#\w{6}); color: (#\w{6}); \}", style)
    assert [int(step) for step, _, _ in styles] == [*range(HEAT_STEPS)] * 2  # light, then dark
    assert all(contrast(back, text) >= 4.5 for _, back, text in styles)
    light, dark = (
        [luminance(back) for _, back, _ in styles[i : i + HEAT_STEPS]] for i in (0, HEAT_STEPS)
    )
    assert light == sorted(light, reverse=True) and dark == sorted(dark)
    assert [heat(value) for value in (0.0, 0.5, 0.999, 1.0)] == ["h0", "h6", "h11", "h11"]


def test_text_of_the_page_is_legible() -> None:
    style = (HERE / "page.css").read_text()
    for block in re.findall(r":root \{(.*?)\}", style, re.S)[:2]:
        colours = dict(re.findall(r"--(\w+): (#\w{6})", block))
        for name in ("text", "dim", "link"):
            assert (
                min(contrast(colours[name], colours[back]) for back in ("back", "panel", "ours"))
                >= 4.5
            ), name
        for index in range(7):
            assert contrast(colours[f"c{index}"], colours["back"]) >= 3  # lines


# In a browser.


class Opened:
    """A page in the browser, with all that it complained about or asked the network for."""

    def __init__(self, browser: Any, path: Path, width: int = 1280, scheme: str = "light") -> None:
        self.page = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme
        ).new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss())
        )
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def column(self, table: str, index: int) -> list[str]:
        texts: list[str] = self.page.eval_on_selector_all(
            f"{table} tbody tr",
            f"rows => rows.filter(r => !r.hidden).map(r => r.cells[{index}].textContent.trim())",
        )
        return texts


@pytest.fixture
def two_sections(outputs: Path, write_run: WriteRun) -> Path:
    for label in range(10):
        for method, auroc in (("ocgan", 0.9), ("oled", 0.8), ("nda", 0.7)):
            write_run(method, inlier=label, auroc=auroc + label / 200)
        write_run(data="cifar10", inlier=label, auroc=0.6)
    return page_of(outputs)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "light"), (360, "dark")])
def test_opens_without_a_complaint_and_fits(
    browser: Any, two_sections: Path, width: int, scheme: str
) -> None:
    opened = Opened(browser, two_sections, width, scheme)
    opened.page.evaluate(
        "document.querySelectorAll('details').forEach(one => { one.open = true; })"
    )
    assert opened.complaints == [] and opened.requests == [two_sections.as_uri()]
    assert opened.page.evaluate("document.documentElement.scrollWidth") == width
    back = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(16, 21, 27)")


def test_sorts_by_mouse_and_by_keyboard(browser: Any, two_sections: Path) -> None:
    opened = Opened(browser, two_sections)
    table = "section:nth-of-type(2) figure:has(figcaption:text-matches('^AUROC by class')) table"
    opened.page.evaluate(
        "document.querySelectorAll('table').forEach((t, i) => { t.id = 't' + i; })"
    )
    selector = f"#{opened.page.locator(table).get_attribute('id')}"
    header = opened.page.locator(f"{selector} thead th").nth(4)  # digit 3
    expected = sorted(opened.column(selector, 4), key=float)
    header.locator("button").click()
    assert (
        opened.column(selector, 4) == expected and header.get_attribute("aria-sort") == "ascending"
    )
    opened.page.keyboard.press("Enter")
    assert (
        opened.column(selector, 4) == expected[::-1]
        and header.get_attribute("aria-sort") == "descending"
    )
    opened.page.locator(f"{selector} thead button").first.focus()
    opened.page.keyboard.press("Space")
    names = opened.column(selector, 0)
    assert names == sorted(names) and header.get_attribute("aria-sort") == "none"


def test_cells_without_a_number_come_last(browser: Any, outputs: Path, write_run: WriteRun) -> None:
    write_run(auroc=0.9)
    opened = Opened(browser, page_of(outputs))
    # a printed table: others' rows have no number for digit 0, the column after "trained on"
    table = opened.page.locator("figure table").first
    for reverse in (False, True):
        table.locator("thead button").nth(2).click()
        texts = table.evaluate(
            "t => [...t.tBodies[0].rows].map(row => row.cells[2].textContent.trim())"
        )
        numbers = [text for text in texts if text != "-"]
        assert texts == numbers + ["-"] * (len(texts) - len(numbers)) and len(numbers) < len(texts)
        assert numbers == sorted(numbers, reverse=reverse, key=float)


def test_filters_by_method_data_and_protocol(browser: Any, two_sections: Path) -> None:
    opened = Opened(browser, two_sections)
    box = opened.page.get_by_role("searchbox")
    box.fill("p2 cifar10")
    titles = opened.page.locator("section:visible h2").all_text_contents()
    assert titles == ["p2 · cifar10"]
    box.fill("NDA mnist")
    rows = opened.page.locator("section tbody tr:visible").all_text_contents()
    assert rows and all("nda" in row.lower() for row in rows)
    assert (
        f"{opened.page.locator('section tbody tr:not([hidden]), section .item:not([hidden])').count()} of"
        in (opened.page.get_by_role("status").text_content())
    )
    box.fill("no such thing")
    assert opened.page.locator("section:visible").count() == 0
    box.fill("")
    assert opened.page.locator("section:visible").count() == 2


def test_prints_all_that_is_folded(browser: Any, two_sections: Path) -> None:
    opened = Opened(browser, two_sections)
    data = opened.page.pdf(prefer_css_page_size=True)
    assert data.startswith(b"%PDF") and data.rstrip().endswith(b"%%EOF")
    assert opened.page.evaluate("[...document.querySelectorAll('details')].every(one => one.open)")
    assert opened.complaints == []


def test_hostile_names_do_nothing_in_a_browser(browser: Any, hostile: Path) -> None:
    opened = Opened(browser, hostile, 360)
    opened.page.evaluate(
        "document.querySelectorAll('details').forEach(one => { one.open = true; })"
    )
    assert opened.page.evaluate("window.pwned") is None
    assert opened.complaints == [] and len(opened.requests) == 1
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 360


def test_reads_without_script(browser: Any, two_sections: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(two_sections.as_uri())
    assert page.locator("section:visible").count() == 2
