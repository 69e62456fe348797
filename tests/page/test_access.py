"""The page for everybody: keyboard, names, narrow windows, contrast by day and by night."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from playwright.sync_api import expect

from service.api.pages import WEB
from tests.page.visits import CONTRAST, DEPTHS, Shallow, Visit, picture, set_limit

pytestmark = pytest.mark.browser


def test_the_page_works_with_the_keyboard_alone(visit: Visit) -> None:
    page = visit.page
    reached: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")
        )
    wanted = [
        "API",
        "Plans",
        "Metrics",
        "file",
        "limit-depth",
        "limit-gflops",
        "limit-ms",
        "limit-max-loss",
        "copy",
    ]
    assert [name for name in reached if name in wanted][: len(wanted)] == wanted


def test_every_control_has_a_name(visit: Visit) -> None:
    page = visit.page
    names = (
        "Depth: Most encoder layers",
        "Compute: Most GFLOPs",
        "Deadline: Milliseconds",
        "Max loss: Largest",
        "Masks",
    )
    visit.open(picture())
    visit.segmented()
    for name in names:
        assert page.get_by_role("slider", name=name).count() == 1
    for name in ("Depth", "Compute", "Deadline", "Max loss"):
        assert page.get_by_role("checkbox", name=name, exact=True).count() == 1
    nameless = page.eval_on_selector_all(
        "button, input, canvas, img",
        """(all) => all.filter((one) => !(one.labels?.length || one.ariaLabel
            || one.textContent.trim()
            || one.hasAttribute("alt")) && one.checkVisibility()).map((one) => one.outerHTML)""",
    )
    assert nameless == []


def test_nothing_is_wider_than_the_window(visit: Visit) -> None:
    page, widths = visit.page, (360, 390, 700, 768, 1120, 1280)

    def too_wide() -> list[int]:
        found = []
        for width in widths:
            page.set_viewport_size({"width": width, "height": 800})
            if page.evaluate("document.documentElement.scrollWidth") > width:
                found.append(width)
        return found

    assert too_wide() == []
    visit.open(picture(), "a-photo-with-quite-a-long-name-that-no-line-of-a-phone-can-hold.png")
    visit.segmented()
    page.get_by_role("button", name="Every plan").click()
    expect(page.locator(".card.done")).to_have_count(DEPTHS)
    assert too_wide() == []
    page.set_viewport_size({"width": 360, "height": 800})
    box = page.locator("#opacity").bounding_box()
    assert box is not None
    assert box["width"] >= 60


def test_text_has_contrast_by_day_and_by_night(visit: Visit) -> None:
    page = visit.page
    visit.open(picture())
    visit.segmented()
    page.get_by_role("button", name="Every plan").click()
    expect(page.locator(".card.done")).to_have_count(DEPTHS)
    set_limit(page, "depth", "Home")
    expect(page.locator("#gauge tr.over")).to_have_count(DEPTHS - 1)
    papers = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        papers.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        found: Sequence[tuple[str, float]] = page.eval_on_selector_all("body *", CONTRAST)
        assert len(found) > 60
        assert [(scheme, text, round(ratio, 2)) for text, ratio in found if ratio < 4.5] == []
    assert len(papers) == 2


def test_colours_that_mean_something_stay_where_the_system_has_its_own(visit: Visit) -> None:
    page = visit.page
    visit.open(picture())
    visit.segmented()
    colours = """(all) => all.map((one) => getComputedStyle(one).backgroundColor)"""
    meant = "#legend .swatch, #stages i"
    before = page.eval_on_selector_all(meant, colours)
    page.emulate_media(forced_colors="active")
    try:
        assert page.eval_on_selector_all(meant, colours) == before
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper not in page.eval_on_selector_all("#limits .marks i", colours)
    finally:
        page.emulate_media(forced_colors="none")


def test_a_photo_that_is_being_segmented_is_said_to_be(visit: Visit) -> None:
    page, drop = visit.page, visit.page.locator("#drop")
    Shallow.gate.clear()
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": picture()})
    expect(page.get_by_role("status").filter(has_text="Segmenting the photo")).to_have_count(1)
    expect(drop).to_have_attribute("aria-busy", "true")
    Shallow.gate.set()
    visit.segmented()
    expect(drop).to_have_attribute("aria-busy", "false")
    expect(page.locator("#progress")).to_be_empty()


@pytest.mark.parametrize("size", [(16, 1200), (1200, 16)])
def test_a_tall_or_wide_photo_makes_no_tall_page(heads: Visit, size: tuple[int, int]) -> None:
    page = heads.page
    heads.open(picture(*size))
    expect(page.locator(".view")).to_have_count(1)
    page.get_by_role("button", name="Every plan").click()
    expect(page.locator(".card.done").first).to_be_visible()
    heights = page.eval_on_selector_all(
        "#frame, .view canvas, .card canvas",
        "(all) => all.map((one) => one.getBoundingClientRect().height)",
    )
    assert len(heights) > 3
    assert max(heights) <= 0.73 * 860
    photo, overlay = (page.locator(name).bounding_box() for name in ("#photo", "#overlay"))
    assert photo == overlay
    expect(page.locator("#strip-status")).to_contain_text("Press one")


def test_every_column_of_plans_is_whole_in_every_width(heads: Visit) -> None:
    page = heads.page
    for width in (320, 360, 700, 1120, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        wide, shown = page.eval_on_selector("#plans", "(one) => [one.scrollWidth, one.clientWidth]")
        assert wide == shown, width


def test_the_page_has_no_script_or_style_in_its_text() -> None:
    text = (WEB / "index.html").read_text("utf-8")
    for forbidden in (" style=", "<style", " onclick=", "javascript:", "<script>"):
        assert forbidden not in text
