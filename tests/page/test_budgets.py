"""The page's limits and what they send, and every plan side by side."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
from playwright.sync_api import Route, expect

from tests.page.visits import DEPTHS, Shallow, Visit, answer, classes_of, picture, set_limit

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation:DeprecationWarning"
    ),  # pycocotools.mask.decode
]


def test_the_depth_slider_changes_the_header_that_is_sent_and_the_depth_that_is_used(
    visit: Visit,
) -> None:
    page = visit.page
    visit.open(picture())
    visit.segmented()
    expect(page.locator("#depth-taken")).to_have_text("depth 4 of 4gate")
    with page.expect_response("**/segment") as got:
        set_limit(page, "depth", "ArrowLeft", 2)
    assert got.value.request.headers["compute-budget"] == "depth=2"
    assert "depth=2, of=4" in got.value.headers["compute-used"]
    expect(page.locator("#depth-taken")).to_have_text("depth 2 of 4request")
    expect(page.locator("#why")).to_contain_text("limit on depth")
    expect(page.locator("#header-sent")).to_have_text("Compute-Budget: depth=2")
    expect(page.locator("#header-used")).to_have_text(
        f"Compute-Used: {got.value.headers['compute-used']}"
    )
    expect(page.locator("#request-id")).to_have_text(got.value.headers["x-request-id"])
    expect(page.locator("#curl")).to_contain_text("-H 'Compute-Budget: depth=2'")
    expect(page.locator("#gauge tr[aria-current]")).to_have_attribute("data-plan", "d2")
    assert visit.budgets() == [None, "depth=2"]  # one request for a burst of key presses


def test_every_limit_says_which_plans_it_leaves_and_can_be_taken_away(visit: Visit) -> None:
    page = visit.page
    fits, over = page.locator("#fits"), page.locator("#gauge tr.over")
    expect(fits).to_have_text("4 of 4 plans fit the budget.")
    for key, presses, left in (("depth", "ArrowLeft", 3), ("gflops", "Home", 0), ("ms", "Home", 0)):
        set_limit(page, key, presses)
        expect(over).to_have_count(4 - left)
        expect(page.locator(f".limit[data-key={key}] .marks .over")).to_have_count(4 - left)
        expect(page.locator("#header-sent")).to_contain_text(f"{key}=")
        page.locator(f".limit[data-key={key}] input[type=checkbox]").uncheck()
        expect(over).to_have_count(0)
        expect(page.locator(f".limit[data-key={key}] output")).to_have_text("no limit")
    set_limit(page, "max-loss", "Home")
    expect(page.locator("#header-sent")).to_have_text("Compute-Budget: max-loss=0")
    expect(fits).to_have_text("4 of 4 plans fit the budget.")
    assert visit.budgets() == []  # no photo yet, nothing to ask


def test_all_positions_of_the_sliders_make_a_header_that_the_service_accepts(visit: Visit) -> None:
    headers = visit.page.evaluate(
        """() => ["depth", "gflops", "ms", "max-loss"].flatMap((key) => {
            const range = document.getElementById(`limit-${key}`);
            const box = range.closest(".limit").querySelector("input[type=checkbox]");
            const made = [...Array(Number(range.max) + 1).keys()].map((position) => {
                range.value = position;
                range.dispatchEvent(new Event("input"));
                return document.getElementById("header-sent").textContent;
            });
            box.checked = false;
            box.dispatchEvent(new Event("change"));
            return made;
        })"""
    )
    budgets = sorted({text.removeprefix("Compute-Budget: ") for text in headers})
    assert len(budgets) > 150
    with httpx.Client(base_url=visit.url) as client:
        for budget in budgets[:: len(budgets) // 25]:
            sent = {"Content-Type": "image/png", "Compute-Budget": budget}
            status = client.post("/segment", content=picture(32, 24), headers=sent).status_code
            # Understood: 400 is for a header that is not.
            assert status in (200, 422, 429, 504), budget


def test_every_plan_has_a_card_that_shows_what_differs_from_the_full_plan(visit: Visit) -> None:
    page = visit.page
    visit.open(picture())
    visit.segmented()
    page.get_by_role("button", name="Every plan").click()
    expect(page.locator(".card.done")).to_have_count(DEPTHS)
    assert visit.budgets()[1:] == [f"gflops={gflops}, max-loss=0" for gflops in (5, 2, 3, 4)]
    results = [
        answer(visit.url, picture(), f"depth={depth}, max-loss=0") for depth in range(1, DEPTHS + 1)
    ]
    classes = [classes_of(found) for found in results]
    for card, found, labels in zip(page.locator(".card").all(), results, classes, strict=True):
        share = float(np.mean(labels != classes[-1]))
        expect(card.locator(".sounding")).to_have_text(str(found["usage"]["depth"]))
        expect(card.locator(".numbers")).to_contain_text(f"{found['usage']['gflops']:.2f} GFLOPs")
        shown = (card.locator(".numbers > span").nth(2).text_content() or "").split(" % ")
        assert shown[-1] == ("differs" if share else "reference for the others")
        assert not share or float(shown[0]) == pytest.approx(100 * share, abs=0.051)
    assert [np.mean(labels != classes[-1]) > 0 for labels in classes] == [True, True, True, False]
    page.get_by_label("mark pixels that differ").check()
    marked = visit.pixels("li:first-child .card canvas")[..., :3]
    assert np.array_equal((marked == (255, 46, 154)).all(axis=2), classes[0] != classes[-1])
    page.locator(".card").first.click()
    expect(page.locator("#depth-taken")).to_have_text("depth 1 of 4request")
    expect(page.locator("#why")).to_contain_text("limit on gflops")


def test_a_pressed_card_brings_the_photo_into_sight(visit: Visit) -> None:
    page = visit.page
    page.set_viewport_size({"width": 360, "height": 640})
    visit.open(picture())
    visit.segmented()
    page.get_by_role("button", name="Every plan").click()
    expect(page.locator(".card.done")).to_have_count(DEPTHS)
    card = page.locator(".card").first
    card.scroll_into_view_if_needed()
    expect(page.locator("#frame")).not_to_be_in_viewport()
    card.press("Enter")
    expect(page.locator("#frame")).to_be_in_viewport()
    expect(page.locator("#depth-taken")).to_contain_text("depth 1 of 4")
    expect(card).to_be_focused()  # the next Tab goes on from there


def test_every_plan_can_be_cancelled_and_asks_for_nothing_more(visit: Visit) -> None:
    page = visit.page
    visit.open(picture())
    visit.segmented()
    Shallow.gate.clear()
    page.get_by_role("button", name="Every plan").click()
    expect(page.locator(".card.running")).to_have_count(1)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#strip-status")).to_have_text("Cancelled.")
    expect(page.locator(".card.idle")).to_have_count(DEPTHS)
    Shallow.gate.set()
    page.wait_for_timeout(100)
    assert len(visit.budgets()) == 2
    expect(page.locator("#problem")).to_be_hidden()


def test_every_plan_goes_on_where_it_was_refused(visit: Visit) -> None:
    page = visit.page
    visit.open(picture())
    visit.segmented()
    answered = []

    def third_is_refused(route: Route) -> None:
        answered.append(route)
        if len(answered) == 3:
            route.fulfill(status=429, headers={"Retry-After": "0"}, body="")
        else:
            route.continue_()

    page.route("**/segment", third_is_refused)
    visit.refused = 1
    page.get_by_role("button", name="Every plan").click()
    expect(page.locator("#problem")).to_contain_text("429")
    expect(page.locator(".card.done")).to_have_count(2)
    page.locator("#problem-retry").click()
    expect(page.locator(".card.done")).to_have_count(DEPTHS)
    expect(page.locator("#strip-status")).to_contain_text("4 of 4 done")
    assert visit.budgets()[1:] == [f"gflops={gflops}, max-loss=0" for gflops in (5, 2, 3, 3, 4)]
