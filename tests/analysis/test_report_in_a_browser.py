"""The page of a report in a real browser: it asks nobody for anything, and mouse, keyboard and narrow screens work."""

import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from planted_runs import plant
from playwright.sync_api import sync_playwright
from report_runs import opened, with_pictures
from tools import browser as browser_path

from domainbed.analysis.recorded import RecordedRun
from domainbed.analysis.report import parts, write

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two runs, one with a wide section, with hostile names in its map."""
    folder = tmp_path_factory.mktemp("report")
    figures = {(seed, "x"): {"accuracy": 0.5 + seed / 8, "psnr": 20.0 + seed} for seed in range(2)}
    curves = {
        (seed, "x"): {step: {"accuracy": step / 100, "total_loss": 2397 - step / 1e4} for step in (10, 20, 30)}
        for seed in (0, 1)
    }
    for seed in (0, 1):  # a loss that starts high above what follows
        curves[seed, "x"] |= {step: {"recon_loss": 60.0 if step == 101 else 1 + step % 7} for step in range(101, 141)}
    runs = [
        plant(folder / name, figures, majority={"accuracy": 0.3}, curves=curves, hparams={"lr": lr})
        for name, lr in (("first_run", 0.1), ("a_second_run_with_a_name_that_does_not_end_where_lines_do", 0.2))
    ]
    with_pictures(runs[0])

    def analyse(run: Any, folder: Path) -> dict[str, Any]:
        Image.new("RGB", (1600, 300), "white").save(folder / "wide.png")
        return {"pictures": [{"file": "wide.png", "title": "Wide", "caption": "A wide picture."}]}

    module = types.ModuleType("domainbed.analysis.stub")
    module.analyse = analyse  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        patch.setattr(parts, "SECTIONS", {"stub": "Stub"})
        write([RecordedRun.read(run) for run in runs], folder / "page.html", lambda *training: opened(), report=str)
    return folder / "page.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = browser_path()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, page_file: Path) -> Iterator[Open]:
    """Open the page; afterwards nothing may have failed, and nobody may have been asked for anything."""
    said: list[str] = []
    contexts = []

    def open_page(width: int = 1200, height: int = 900, **options: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda one: one.url.startswith(("file:", "data:", "blob:")) or said.append(one.url))
        page.goto(page_file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def test_hostile_names_are_text(visit: Open) -> None:
    page = visit()
    assert page.evaluate("window.evil") is None
    assert page.locator("img[src='x']").count() == 0


def test_the_slider_moves_through_the_steps_by_keyboard_and_the_select_through_images(visit: Open) -> None:
    page = visit()
    image, slider, label = (page.locator(f".slider {one}") for one in ("img", "input", "output"))
    last, text = image.get_attribute("src"), label.text_content()
    assert "the last" in text
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert image.get_attribute("src") != last and label.text_content() == "step 10"
    assert slider.get_attribute("aria-valuetext") == "step 10" and "step 10" in image.get_attribute("alt")
    before = image.get_attribute("src")
    page.locator(".slider select").select_option("samples")
    assert image.get_attribute("src") != before and "samples" in image.get_attribute("alt")
    assert image.evaluate("one => one.complete && one.naturalWidth > 0")


def test_a_column_sorts_by_keyboard_and_says_so(visit: Open) -> None:
    page = visit()
    table = page.locator("#figures table").first
    head = table.locator("th", has_text="accuracy").first
    column = head.evaluate("one => one.cellIndex")
    for direction in ("descending", "ascending"):
        head.locator("button").focus()
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == direction
        cells = table.locator("tbody tr").evaluate_all(f"rows => rows.map(row => row.cells[{column}].textContent)")
        values = [float(cell.split()[0]) for cell in cells]
        assert values == sorted(values, reverse=direction == "descending") and len(set(values)) > 1
    other = table.locator("th button").first
    other.press("Space")
    assert head.get_attribute("aria-sort") == "none"


def test_the_map_shows_the_image_under_the_mouse_and_by_arrow_keys(visit: Open) -> None:
    page = visit()
    place = page.locator(".map").first
    text, thumb = place.locator(".shown p"), place.locator(".thumb")
    assert "png" not in text.text_content()
    marks = place.locator(".plot > svg > path")
    assert marks.count() == 40
    marks.nth(7).scroll_into_view_if_needed()
    marks.nth(7).hover(force=True)
    shown = text.text_content()
    assert ".png" in shown and ("home" in shown or "away" in shown) and "class" in shown
    picture, position = thumb.evaluate("one => [getComputedStyle(one).backgroundImage, one.style.backgroundPosition]")
    assert picture.startswith('url("data:image/webp')
    assert place.locator(".legend svg").first.bounding_box()["height"] < 30
    place.locator(".plot > svg").focus()
    page.keyboard.press("ArrowRight")
    assert text.text_content() != shown and thumb.evaluate("one => one.style.backgroundPosition") != position
    colours = "paths => paths.map(one => one.getAttribute('style'))"
    before = marks.evaluate_all(colours)
    place.locator("select").select_option("environment")
    assert marks.evaluate_all(colours) != before and "away" in place.locator(".legend").text_content()


def test_a_curve_says_its_values_under_the_mouse_and_by_arrow_keys(visit: Open) -> None:
    page = visit()
    figure = page.locator(".curves figure", has_text="accuracy").first
    svg, readout = figure.locator("svg"), figure.locator(".readout")
    svg.scroll_into_view_if_needed()
    svg.focus()
    page.keyboard.press("Home")
    assert "step 10" in readout.text_content() and "first_run (lr=0.1): 0.1" in readout.text_content()
    page.keyboard.press("ArrowRight")
    assert "step 20" in readout.text_content() and ": 0.2" in readout.text_content()
    box = svg.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 5, box["y"] + box["height"] / 2)
    assert "step 30" in readout.text_content()


def test_what_lies_beyond_the_scale_of_a_curve_is_said(visit: Open) -> None:
    figures = visit().locator(".curves figure")
    said = {one.locator("h4").text_content(): one.locator(".readout").text_content() for one in figures.all()}
    assert [name for name, text in said.items() if text] == ["reconstruction loss"]
    assert said["reconstruction loss"] == "beyond this scale: 60 at step 101, and more"


def test_the_marks_of_an_axis_are_told_apart(visit: Open) -> None:
    texts = "svg => [...svg.querySelectorAll('text[text-anchor=end]')].map(one => one.textContent)"
    for svg in visit().locator(".curves figure svg").all():
        marks = svg.evaluate(texts)
        assert len(set(marks)) == len(marks) >= 2


@pytest.mark.parametrize("width", [360, 768, 1200])
def test_no_screen_scrolls_sideways(visit: Open, width: int) -> None:
    page = visit(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    texts = "[...document.querySelectorAll('h1,h2,h3,h4,p,li,select,button')].filter(one => !one.closest('.scroll'))"
    assert page.evaluate(f"{texts}.filter(one => one.getBoundingClientRect().right > {width} + 1).length") == 0


def test_dark_is_what_the_system_asks_for_and_what_the_button_turns(visit: Open) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = visit(color_scheme="light"), visit(color_scheme="dark")
    colours = [page.evaluate(ground) for page in (light, dark)]
    assert colours[0] != colours[1]
    for page, expected in ((light, colours[1]), (dark, colours[0])):
        button = page.locator("#theme")
        pressed = button.get_attribute("aria-pressed")
        button.press("Enter")
        assert page.evaluate(ground) == expected and button.get_attribute("aria-pressed") != pressed


def test_all_figures_can_be_saved(visit: Open, tmp_path: Path) -> None:
    import json

    page = visit()
    with page.expect_download() as download:
        page.locator("#save").press("Enter")
    download.value.save_as(tmp_path / "figures.json")
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["comparison"]["differences"] and found["first_run"]["final"]


def test_print_is_light_and_has_no_buttons(visit: Open) -> None:
    page = visit(color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#theme").is_visible() and not page.locator("nav").is_visible()
    assert page.locator(".slider img").is_visible() and page.locator(".curves svg").first.is_visible()


def test_every_control_has_a_name_and_can_be_reached(visit: Open) -> None:
    page = visit()
    named = "one.labels?.length || one.textContent.trim() || one.ariaLabel"
    nameless = f"[...document.querySelectorAll('select, input, button')].filter(one => !({named}))"
    assert page.evaluate(f"{nameless}.length") == 0
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
