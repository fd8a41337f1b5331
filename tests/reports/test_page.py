"""The page of a comparison, opened in a browser: what it says, by keyboard, on a telephone, in the dark."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from written_runs import write_method

from ftlab.reports.compare import Options, compare, find_runs
from ftlab.reports.compare.charts import SERIES
from ftlab.reports.compare.page import page

CHROMIUM = shutil.which("chromium")
Open = Callable[..., Page]


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three methods with three seeds each, and answers that would break a page that is put together carelessly."""
    place = tmp_path_factory.mktemp("page")
    for number, middle in enumerate((50.0, 60.0, 61.0)):
        write_method(place / f"method{number}", middle, records=60, config={"model.method.init_args.r": number + 1})
    for text in place.glob("*/*/predictions/test.jsonl"):
        text.write_text(text.read_text().replace('"prompt": "p7"', '"prompt": "</script><b id=broken>p7"'))
    comparison, groups = compare(find_runs([str(path) for path in sorted(place.iterdir())]), Options(resamples=200))
    written = place / "page.html"
    written.write_text(page(comparison, groups), encoding="utf-8")
    return written


@pytest.fixture
def opened(browser: Browser, file: Path) -> Iterator[Open]:
    """Opens the page; nothing may be asked of a network, and nothing may go wrong in it."""
    contexts, wrong = [], []

    def opened(width: int = 1280, dark: bool = False) -> Page:
        scheme: Any = "dark" if dark else "light"
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        tab = contexts[-1].new_page()
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("console", lambda said: wrong.append(said.text))
        tab.on("request", lambda asked: None if asked.url.startswith("file:") else wrong.append(asked.url))
        tab.goto(file.as_uri())
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def rows(tab: Page) -> list[list[str]]:
    lines = tab.locator("#records tbody tr").all()
    return [line.locator("th, td").all_inner_texts() for line in lines]


def test_it_says_what_the_comparison_does(opened: Open) -> None:
    tab = opened()
    assert tab.title() == "test_rougeL: method0, method1, method2"
    headings = tab.get_by_role("heading", level=2).all_inner_texts()
    assert headings == ["In words", "Quality", "Difference", "Cost", "Figures", "Answers"]
    assert "method1 is better than method0" in tab.locator("main ul").first.inner_text()
    charts = tab.get_by_role("img")
    names = [chart.get_attribute("aria-label") or "" for chart in charts.all()]
    assert [name.split(".")[0] for name in names] == [
        "test_rougeL against peak memory, GB",
        "test_rougeL against training, s",
        "test_rougeL against on disk, MB",
        "training loss while training",
        "validation loss while training",
        "lengths of answers",
    ]
    assert all(chart.bounding_box()["width"] > 300 for chart in charts.all())  # type: ignore[index]
    assert tab.locator("#broken").count() == 0


def test_records_are_sorted_and_chosen_by_keyboard(opened: Open) -> None:
    tab = opened()
    first = [float(line[1]) for line in rows(tab)]
    assert len(first) == 50  # of 60
    assert first == sorted(first)
    tab.get_by_role("button", name="difference").focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#records th").nth(1).get_attribute("aria-sort") == "descending"
    assert tab.evaluate("document.activeElement.textContent") == "difference"
    turned = [float(line[1]) for line in rows(tab)]
    assert turned == sorted(turned, reverse=True)
    for line in rows(tab):
        assert float(line[1]) == pytest.approx(float(line[3]) - float(line[2]), abs=0.011)
    tab.keyboard.press("Shift+Tab")  # to the record's number, the column before
    tab.keyboard.press("Enter")
    assert [line[0] for line in rows(tab)] == [str(number) for number in range(1, 51)]
    tab.get_by_role("button", name="More records").press("Enter")
    assert len(rows(tab)) == 60
    assert tab.get_by_role("status").inner_text() == "60 of 60 records"
    before = rows(tab)
    tab.get_by_role("combobox", name="Method").select_option("method2")
    assert [line[2] for line in rows(tab)] == [line[2] for line in before]
    assert [line[3] for line in rows(tab)] != [line[3] for line in before]
    tab.get_by_label("Containing").fill("<b id=broken>p7")
    [only] = rows(tab)
    assert only[0] == "8"
    tab.locator("summary").press("Enter")
    beside = tab.locator(".beside")
    assert beside.get_by_role("heading").all_inner_texts() == ["prompt", "reference", "method0", "method2"]
    assert beside.locator("p").all_inner_texts() == ["</script><b id=broken>p7", "r7", "a", "a"]


@pytest.mark.parametrize("width", [320, 360, 768])
def test_nothing_is_wider_than_a_telephone(width: int, opened: Open) -> None:
    tab = opened(width)
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    wide = [box["width"] for chart in tab.get_by_role("img").all() if (box := chart.bounding_box())]
    assert max(wide) <= width
    assert len(tab.get_by_role("row").all()) > 50  # a table for those who hear it, whatever it looks like


@pytest.mark.parametrize("width", [320, 360])
def test_headers_are_not_broken_within_a_word_on_a_telephone(width: int, opened: Open) -> None:
    tab = opened(width)
    for name in ("record", "difference", "method0"):
        word = tab.locator("#records thead").get_by_role("button", name=name)
        lines = word.evaluate(
            "button => { const all = document.createRange(); all.selectNodeContents(button.firstChild);"
            " return all.getClientRects().length }"
        )
        assert lines == 1, name


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG 2.2 defines it: 1 to 21."""

    def luminance(color: str) -> float:
        digits = color.strip().lstrip("#")
        digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
        parts = numpy.array([int(digits[place : place + 2], 16) for place in (0, 2, 4)]) / 255
        linear = numpy.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_all_can_be_read_in_the_light_and_in_the_dark(dark: bool, opened: Open) -> None:
    tab = opened(dark=dark)

    def color(name: str) -> str:
        return tab.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}')")

    back = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    level = sum(int(part) for part in re.findall(r"\d+", back)[:3])
    assert (level < 128) == dark
    for ground in ("back", "stripe"):
        for name in ("text", "faint", "link"):
            assert contrast(color(name), color(ground)) >= 4.5, name
    for name in ("grid", *(f"series-{number}" for number in range(1, SERIES + 1))):
        assert contrast(color(name), color("back")) >= 3, name
    fills = tab.evaluate("[...document.querySelectorAll('svg text')].map(text => getComputedStyle(text).fill)")
    assert set(fills) == {tab.evaluate("getComputedStyle(document.body).color")}
