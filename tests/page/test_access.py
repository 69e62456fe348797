"""The page for everybody: keyboard, names, narrow windows, contrast by day and by night."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from playwright.sync_api import expect

from service.api.pages import WEB
from tests.page.visits import CONTRAST, DEPTHS, Visit, picture

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
    papers = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        papers.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        found: Sequence[tuple[str, float]] = page.eval_on_selector_all("body *", CONTRAST)
        assert len(found) > 60
        assert [(scheme, text, round(ratio, 2)) for text, ratio in found if ratio < 4.5] == []
    assert len(papers) == 2


def test_the_page_has_no_script_or_style_in_its_text() -> None:
    text = (WEB / "index.html").read_text("utf-8")
    for forbidden in (" style=", "<style", " onclick=", "javascript:", "<script>"):
        assert forbidden not in text
