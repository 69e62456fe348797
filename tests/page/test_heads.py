"""The page of a bundle with several heads: a preference by sliders, and answers side by side."""

from __future__ import annotations

import base64
import io

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.page.visits import CONTRAST, Visit, picture, set_limit

pytestmark = pytest.mark.browser
QUARTERS = picture()


def preferences(visit: Visit) -> list[str | None]:
    """Task-Preference of every image that was sent so far."""
    return [r.headers.get("task-preference") for r in visit.requests if r.method == "POST"]


def set_weight(visit: Visit, head: str, key: str) -> None:
    """Move a slider with the keyboard, and wait for the answer."""
    with visit.page.expect_response("**/segment*"):
        visit.page.locator(f"#weight-{head}").press(key)


def test_a_bundle_with_one_head_has_no_sliders_of_preference(visit: Visit) -> None:
    visit.open(QUARTERS)
    visit.segmented()
    expect(visit.page.locator("#weights")).to_be_hidden()
    expect(visit.page.locator("#views")).to_be_hidden()
    assert preferences(visit) == [None]


def test_sliders_begin_with_the_preference_of_the_bundle(heads: Visit) -> None:
    page = heads.page
    for name, text in (("semantic", "50 %"), ("boxes", "not run"), ("depth", "50 %")):
        slider = page.get_by_role("slider", name=name, exact=True)
        assert slider.count() == 1
        assert slider.get_attribute("aria-valuetext") == text
    heads.open(QUARTERS)
    expect(page.locator(".view")).to_have_count(1)
    assert preferences(heads) == [None]  # nothing was moved: the bundle's own counts
    expect(page.locator("#header-used")).to_contain_text("heads=(")


def test_a_moved_slider_asks_for_other_plans_and_segments_again(heads: Visit) -> None:
    page = heads.page
    heads.open(QUARTERS)
    expect(page.locator(".view")).to_have_count(1)
    set_weight(heads, "boxes", "End")
    expect(page.locator(".view")).to_have_count(2)
    assert preferences(heads)[-1] == "semantic=0.5, boxes=1, depth=0.5"
    expect(page.locator("#header-sent")).to_contain_text("Task-Preference: semantic=0.5, boxes=1")
    assert "-H 'Task-Preference: semantic=0.5, boxes=1, depth=0.5'" in (
        page.locator("#curl").text_content() or ""
    )
    last = page.locator("#gauge tbody tr").last
    assert last.get_attribute("data-plan") == "c64-d4+semantic+boxes+depth"
    expect(page.locator("#bundle")).to_contain_text("semantic, boxes, depth")
    set_weight(heads, "semantic", "Home")
    set_weight(heads, "depth", "Home")
    assert preferences(heads)[-1] == "boxes=1"
    expect(page.locator(".view")).to_have_count(1)
    expect(page.locator("#legend-title")).to_have_text("No masks")
    assert [row.get_attribute("data-plan") for row in page.locator("#gauge tbody tr").all()] == [
        "c32-d1+boxes",
        "c64-d1+boxes",
        "c64-d4+boxes",
    ]


def test_the_heads_of_the_columns_stay_when_the_list_of_plans_scrolls(heads: Visit) -> None:
    plans = heads.page.locator("#plans")
    hidden = plans.evaluate(
        """list => {
            list.style.maxHeight = "120px";
            list.scrollTop = 60;
            const head = list.querySelector("thead").getBoundingClientRect();
            return [list.scrollTop, list.getBoundingClientRect().top - head.top];
        }"""
    )
    assert hidden == [60, 0]


def test_what_is_asked_right_after_a_moved_weight_gets_the_plans_of_the_preference(
    heads: Visit,
) -> None:
    page = heads.page
    heads.open(QUARTERS)
    expect(page.locator(".view")).to_have_count(1)
    page.locator("#weight-semantic").press("Home")
    page.locator("#run").click()
    expect(page.locator("#gauge tr[aria-current]")).to_have_attribute("data-plan", "c64-d4+depth")
    assert preferences(heads)[-1] == "depth=0.5"
    page.locator("#weight-boxes").press("End")
    set_limit(page, "depth", "ArrowLeft", 3)
    expect(page.locator("#gauge tr[aria-current]")).to_have_attribute(
        "data-plan", "c32-d1+boxes+depth"
    )
    assert preferences(heads)[-1] == "boxes=1, depth=0.5"
    page.locator("#weight-depth").press("Home")
    page.locator("#every").click()
    expect(page.locator("#strip-status")).to_contain_text("3 of 3 done")
    assert preferences(heads)[-1] == "boxes=1"
    expect(page.locator("#problem")).to_be_hidden()


def test_plans_that_come_late_do_not_replace_those_of_a_later_preference(heads: Visit) -> None:
    page = heads.page
    page.evaluate(
        """() => {
            const sent = window.fetch;
            window.fetch = async (path, options) => {
                if (path === "plans") await new Promise((resolve) => setTimeout(resolve, 700));
                return sent(path, options);
            };
        }"""
    )
    page.locator("#weight-semantic").press("Home")
    page.wait_for_timeout(500)  # it has settled, and its plans are on their way
    page.locator("#weight-boxes").press("End")
    page.locator("#weight-depth").press("Home")
    last = page.locator("#gauge tbody tr").last
    expect(last).to_have_attribute("data-plan", "c64-d4+boxes")
    page.wait_for_timeout(500)
    expect(last).to_have_attribute("data-plan", "c64-d4+boxes")


def test_without_any_weight_nothing_is_sent(heads: Visit) -> None:
    page = heads.page
    heads.open(QUARTERS)
    expect(page.locator(".view")).to_have_count(1)
    set_weight(heads, "semantic", "Home")
    sent = len(preferences(heads))
    page.locator("#weight-depth").press("Home")
    expect(page.locator("#weights")).to_contain_text("Give at least one head a weight.")
    expect(page.locator("#run")).to_be_disabled()
    page.wait_for_timeout(500)
    assert len(preferences(heads)) == sent
    set_weight(heads, "depth", "ArrowRight")
    expect(page.locator("#run")).to_be_enabled()
    assert preferences(heads)[-1] == "depth=0.1"


def test_the_limits_follow_the_plans_of_the_preference(heads: Visit) -> None:
    page = heads.page
    marks = page.locator("[data-key=gflops] .marks i")
    before = marks.count()
    heads.open(QUARTERS)
    expect(page.locator(".view")).to_have_count(1)
    set_weight(heads, "semantic", "Home")
    expect(page.locator("#gauge tbody tr").last).to_have_attribute("data-plan", "c64-d4+depth")
    assert marks.count() == page.locator("#gauge tbody tr").count() != before
    page.locator("#limit-gflops").press("Home")
    expect(page.locator("#fits")).to_contain_text("No plan fits the budget")
    page.locator("#limit-gflops").press("End")
    plans = marks.count()
    expect(page.locator("#fits")).to_have_text(f"{plans} of {plans} plans fit the budget.")


def test_boxes_and_values_are_drawn_where_they_are(heads: Visit) -> None:
    page = heads.page
    heads.open(picture(384, 288))
    expect(page.locator(".view")).to_have_count(1)
    set_weight(heads, "boxes", "End")
    expect(page.locator("[data-head=boxes] p")).to_have_text("1 car, 1 person")
    shown = heads.pixels("[data-head=boxes] canvas")
    assert shown.shape[:2] == (288, 384)
    # The box of what is bright is the lower half, in the colour of persons.
    line = shown[140:150, 100:300].reshape(-1, 4)
    assert (np.abs(line.astype(int) - (220, 20, 60, 255)).max(1) < 8).any()
    depth = heads.pixels("[data-head=depth] canvas")
    near, far = depth[20, 20, :3].astype(int), depth[-20, -20, :3].astype(int)
    assert np.abs(near - (253, 231, 37)).max() < 4  # the dark quarter is near
    assert np.abs(far - (68, 1, 84)).max() < 4
    label = page.locator("[data-head=depth] canvas").get_attribute("aria-label")
    assert label == "depth from 1.00 to 49.0 m, in colours"
    expect(page.locator("[data-head=depth] .ends")).to_contain_text("49.0\u00a0m")


def test_every_plan_shows_the_plans_of_the_preference(heads: Visit) -> None:
    page = heads.page
    heads.open(QUARTERS)
    expect(page.locator(".view")).to_have_count(1)
    set_weight(heads, "boxes", "End")
    set_weight(heads, "semantic", "Home")
    set_weight(heads, "depth", "Home")
    page.locator("#every").click()
    expect(page.locator("#strip-status")).to_contain_text("3 of 3 done")
    assert preferences(heads)[-3:] == ["boxes=1"] * 3
    assert "differs" not in (page.locator("#cards").text_content() or "")


def test_a_card_names_the_widths_of_heads_below_its_picture(heads: Visit) -> None:
    page = heads.page
    heads.open(QUARTERS)
    expect(page.locator(".view")).to_have_count(1)
    page.locator("#every").click()
    expect(page.locator("#strip-status")).to_contain_text("done. Press one")
    card = page.locator(".card").filter(has=page.locator(".heads")).first
    expect(card.locator(".heads")).to_contain_text("-w")
    assert "-w" not in card.locator(".sounding").inner_text()
    picture, words = (card.locator(name).bounding_box() for name in ("canvas", ".heads"))
    assert picture is not None
    assert words is not None
    assert words["y"] >= picture["y"] + picture["height"]


def test_the_line_reaches_its_plan_within_a_second_however_many_there_are(heads: Visit) -> None:
    page = heads.page
    plans = httpx.get(f"{heads.url}/plans").json()
    first, *others = plans["plans"]
    many = [first | {"name": f"{first['name']}-{number}"} for number in range(40)]
    plans["plans"] = [*many, first, *others]
    page.route("**/plans", lambda route: route.fulfill(json=plans))
    page.emulate_media(reduced_motion="no-preference")
    try:
        page.reload()
        expect(page.locator("#gauge tbody tr")).to_have_count(len(plans["plans"]))
        heads.open(QUARTERS)
        expect(page.locator("#gauge tr[aria-current]")).to_be_visible()
        ends = page.evaluate(
            """() => document.getAnimations()
                .filter(({ effect }) => effect.pseudoElement && effect.target.matches(".line"))
                .map(({ effect }) => effect.getComputedTiming().endTime)"""
        )
    finally:
        page.emulate_media(reduced_motion="reduce")
    assert ends
    assert max(ends) <= 1000  # ms


def test_sixteen_bits_are_read_as_pillow_reads_them(visit: Visit) -> None:
    random = np.random.default_rng(3)
    ramp = np.add.outer(np.arange(40) * 700, np.arange(61) * 300) % 65536
    for pixels in (random.integers(0, 65536, (23, 17)), ramp, np.full((1, 1), 513)):
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint16)).save(file, "PNG")
        found = visit.page.evaluate(
            """async (png) => {
                const { readGray16 } = await import("/static/gray16.js");
                const { width, height, values } = await readGray16(png);
                return [width, height, [...values]];
            }""",
            base64.b64encode(file.getvalue()).decode(),
        )
        assert found == [pixels.shape[1], pixels.shape[0], pixels.ravel().tolist()]


def test_a_png_of_another_kind_is_refused(visit: Visit) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    for data, words in ((file.getvalue(), "16-bit gray"), (b"GIF89a..", "no PNG")):
        said = visit.page.evaluate(
            """async (png) => {
                const { readGray16 } = await import("/static/gray16.js");
                return readGray16(png).then(() => "read", (error) => error.message);
            }""",
            base64.b64encode(data).decode(),
        )
        assert words in said


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_text_of_heads_has_enough_contrast_and_every_picture_a_name(
    heads: Visit, scheme: str
) -> None:
    page = heads.page
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    heads.open(QUARTERS)
    set_weight(heads, "boxes", "End")
    expect(page.locator(".view")).to_have_count(2)
    found = page.eval_on_selector_all("#weights *, #views *", CONTRAST)
    assert len(found) > 8
    assert [text for text, ratio in found if ratio < 4.5] == []
    pictures = page.locator("#views canvas")
    assert all(one.get_attribute("aria-label") for one in pictures.all())


def test_a_narrow_window_needs_no_sideways_scrolling(heads: Visit) -> None:
    page = heads.page
    page.set_viewport_size({"width": 360, "height": 800})
    heads.open(QUARTERS)
    set_weight(heads, "boxes", "End")
    expect(page.locator(".view")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
