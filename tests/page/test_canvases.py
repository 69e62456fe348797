"""The page of a bundle with several canvases: which one a plan has, and the same image by canvas
and depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from playwright.sync_api import expect

from tests.page.visits import CONTRAST, Visit, answer, classes_of, picture, set_limit

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation:DeprecationWarning"
    ),  # pycocotools.mask.decode
]
PORTRAIT = picture(72, 96)


def test_plans_show_their_canvas_and_the_canvases_their_shapes(canvases: Visit) -> None:
    page = canvases.page
    expect(page.locator("#bundle")).to_have_text(
        "fake · semantic · 4 classes · 3 plans on 2 canvases"
    )
    expect(page.locator("#gauge tbody th")).to_have_text(["1c32", "1c64", "4c64"])
    expect(page.locator("#canvases")).to_have_text(
        "Canvases, in pixels. c32: 32 × 24. c64: 64 × 48 or 48 × 64. "
        "The gate glances at every image on c32."
    )


def test_one_canvas_is_not_named(visit: Visit) -> None:
    page = visit.page
    visit.open(picture())
    visit.segmented()
    expect(page.locator("#canvases")).to_be_hidden()
    expect(page.locator("#depth-taken")).to_have_text("depth 4 of 4gate")
    expect(page.locator("#why")).not_to_contain_text("glance")
    expect(page.locator("#gauge tbody th")).to_have_text(["1", "2", "3", "4"])
    page.get_by_role("button", name="Every plan").click()
    expect(page.locator(".card.done")).to_have_count(4)
    expect(page.locator("#cards h3")).to_have_count(0)
    expect(page.locator(".cards")).to_have_count(1)


@pytest.mark.parametrize(
    ("data", "pixels"),
    [(picture(), "64 × 48"), (PORTRAIT, "48 × 64")],
    ids=["landscape", "portrait"],
)
def test_the_result_says_canvas_depth_and_why(canvases: Visit, data: bytes, pixels: str) -> None:
    page, taken, why = canvases.page, "#depth-taken", "#why"
    canvases.open(data)
    canvases.segmented()
    expect(page.locator(taken)).to_have_text("canvas c64depth 4 of 4gate")
    expect(page.locator(why)).to_contain_text("too large a loss from any cheaper plan")
    expect(page.locator(why)).to_contain_text(
        f"glanced at the image on c32; the plan looks at it on c64, {pixels}"
    )
    expect(page.locator("#header-used")).to_contain_text("canvas=c64, depth=4")
    expect(page.locator("#stage-list")).to_contain_text("glance")
    set_limit(page, "gflops", "PageDown", 8)  # between 1.5 and 2.5
    expect(page.locator(taken)).to_have_text("canvas c32depth 1 of 4request")
    expect(page.locator(why)).to_contain_text("limit on gflops")
    expect(page.locator(why)).to_contain_text("stays on the canvas of the gate's glance, 32 × 24")
    expect(page.locator("#stage-list")).not_to_contain_text("glance")


def test_the_same_image_is_shown_in_a_row_for_each_canvas(canvases: Visit) -> None:
    page = canvases.page
    canvases.open(PORTRAIT)
    canvases.segmented()
    page.get_by_role("button", name="Every plan").click()
    expect(page.locator(".card.done")).to_have_count(3)
    assert canvases.budgets()[1:] == [f"gflops={gflops}, max-loss=0" for gflops in (5.5, 1.5, 2.5)]
    expect(page.locator("#cards h3")).to_have_text(["c32 32 × 24 pixels", "c64 48 × 64 pixels"])
    rows = [page.get_by_role("list", name=name) for name in ("c32", "c64")]
    expect(rows[0].locator(".sounding")).to_have_text(["1"])
    expect(rows[1].locator(".sounding")).to_have_text(["1", "4"])
    tops = [row.bounding_box() for row in rows]
    assert tops[0] is not None
    assert tops[1] is not None
    assert tops[0]["y"] + tops[0]["height"] < tops[1]["y"]
    widths = page.eval_on_selector_all(
        ".card", "(all) => all.map((one) => Math.round(one.getBoundingClientRect().width))"
    )
    assert len(set(widths)) == 1  # so that cards stand below each other
    full, *others = (
        classes_of(answer(canvases.url, PORTRAIT, f"gflops={gflops}, max-loss=0"))
        for gflops in (5.5, 1.5, 2.5)
    )
    for card, labels in zip(page.locator(".card").all(), others, strict=False):
        share = 100 * float(np.mean(labels != full))
        shown = (card.locator(".numbers > span").nth(2).text_content() or "").split(" % ")
        assert (float(shown[0]), shown[1]) == (pytest.approx(share, abs=0.051), "differs")
    page.locator(".card").first.click()
    expect(page.locator("#depth-taken")).to_have_text("canvas c32depth 1 of 4request")
    expect(page.get_by_role("button", name="Plan c32-d1")).to_have_attribute("aria-pressed", "true")


def test_nothing_of_the_page_is_wider_than_the_window_and_all_text_has_contrast(
    canvases: Visit,
) -> None:
    page = canvases.page
    canvases.open(picture())
    canvases.segmented()
    page.get_by_role("button", name="Every plan").click()
    expect(page.locator(".card.done")).to_have_count(3)
    for width in (360, 700, 1120):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found: Sequence[tuple[str, float]] = page.eval_on_selector_all("body *", CONTRAST)
        assert [(scheme, text, round(ratio, 2)) for text, ratio in found if ratio < 4.5] == []
