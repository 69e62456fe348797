"""How a photo comes to the page, and what it says when the service cannot take it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.page.visits import DEPTHS, Visit, picture
from tests.pictures import encoded

pytestmark = pytest.mark.browser


# Drops or pastes files of these bytes.
DROP = """([event, bytes, kind]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], "a.png", { type: kind }));
    document.dispatchEvent(event === "drop"
        ? new DragEvent("drop", { dataTransfer: data, cancelable: true })
        : new ClipboardEvent("paste", { clipboardData: data }));
}"""


def test_a_text_file_shows_the_problem_in_the_words_of_the_service(visit: Visit) -> None:
    visit.open(picture())
    visit.segmented()
    visit.refused = 1
    visit.open(b"not a photo", "notes.txt", "text/plain")
    problem = visit.page.locator("#problem")
    expect(problem).to_contain_text("The image cannot be decoded")
    sent = httpx.post(
        f"{visit.url}/segment",
        content=b"not a photo",
        headers={"Content-Type": "application/octet-stream"},
    )
    expect(visit.page.locator("#problem-detail")).to_have_text(sent.json()["detail"])
    assert visit.pixels("#overlay").shape == (1, 1, 4)  # no mask of the photo before
    expect(visit.page.locator("#header-used")).to_contain_text("422")
    expect(visit.page.locator("#problem-retry")).to_be_hidden()  # trying again would not help
    visit.page.get_by_role("button", name="Dismiss").click()
    expect(problem).to_be_hidden()


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (120_400, "121 kB, 21 kB more than the 100 kB that this service takes"),
        (100_001, "1 kB more than"),  # in MB, both sizes could read the same
    ],
)
def test_a_file_over_the_limit_is_refused_before_it_is_sent(
    visit: Visit, size: int, words: str
) -> None:
    large = encoded(Image.fromarray(np.full((200, 200, 3), 7, np.uint8))).ljust(size, b"\0")
    visit.page.set_input_files(
        "#file", {"name": "big.png", "mimeType": "image/png", "buffer": large}
    )
    expect(visit.page.locator("#problem")).to_contain_text(words)
    assert visit.budgets() == []


def refuse_once(page: Page, path: str, status: int, title: str) -> None:
    """The next request for the path is answered with a problem and Retry-After: 1, all others by
    the service."""

    def handle(route: Route) -> None:
        body = json.dumps({"title": title, "detail": "Seven images are waiting.", "status": status})
        headers = {"Retry-After": "1", "Content-Type": "application/problem+json"}
        route.fulfill(status=status, headers=headers, body=body)

    page.route(path, handle, times=1)


def test_a_saturated_service_is_tried_again_when_it_said_so(visit: Visit) -> None:
    page = visit.page
    refuse_once(page, "**/segment", 429, "The service is saturated")
    visit.refused = 1
    visit.open(picture())
    expect(page.locator("#problem")).to_contain_text("The service is saturated")
    expect(page.locator("#problem")).to_contain_text("Seven images are waiting.")
    retry = page.locator("#problem-retry")
    expect(retry).to_have_text("Try again in 1 s")
    expect(retry).to_be_disabled()
    expect(retry).to_have_text("Try again")
    retry.click()
    visit.segmented()
    expect(page.locator("#problem")).to_be_hidden()


def test_a_refusal_is_in_sight_where_the_button_is_that_asked(visit: Visit) -> None:
    """On a phone, that is screens below the top of the page."""
    page = visit.page
    page.set_viewport_size({"width": 320, "height": 640})
    visit.open(picture())
    visit.segmented()
    refuse_once(page, "**/segment", 429, "The service is saturated")
    visit.refused = 1
    page.locator("#run").click()
    expect(page.locator("#problem-retry")).to_be_in_viewport(ratio=1)
    expect(page.locator("#run")).to_be_in_viewport()


def test_a_page_that_opens_while_the_engine_warms_up_starts_by_itself(visit: Visit) -> None:
    page = visit.page
    refuse_once(page, "**/readyz", 503, "The service is starting or draining")
    visit.refused = 1
    page.reload()
    expect(page.locator("#problem")).to_contain_text("The service is starting or draining")
    expect(page.locator("html")).to_have_attribute("data-ready", "yes")
    expect(page.locator("#problem")).to_be_hidden()
    expect(page.locator("#gauge tbody tr")).to_have_count(DEPTHS)


def test_a_dismissed_start_goes_on_and_a_photo_that_comes_before_waits(visit: Visit) -> None:
    page, problem = visit.page, visit.page.locator("#problem")
    refuse_once(page, "**/readyz", 503, "The service is starting or draining")
    visit.refused = 1
    page.reload()
    expect(problem).to_contain_text("The service is starting or draining")
    page.get_by_role("button", name="Dismiss").click()
    expect(problem).to_be_hidden()
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": picture()})
    expect(page.locator("#waiting")).to_have_text("a.png waits until the service can be used.")
    expect(problem).to_be_visible()
    visit.segmented()
    expect(problem).to_be_hidden()
    expect(page.locator("#waiting")).to_be_empty()


def test_a_start_that_fails_without_a_time_to_wait_can_be_tried_again(visit: Visit) -> None:
    page = visit.page
    page.route("**/readyz", lambda route: route.fulfill(status=502, body="<h1>Bad</h1>"), times=1)
    visit.refused = 1
    page.reload()
    expect(page.locator("#problem")).to_contain_text("502")
    page.locator("#problem-retry").click()
    expect(page.locator("html")).to_have_attribute("data-ready", "yes")


def test_a_retry_that_is_far_away_is_told_by_the_clock(visit: Visit) -> None:
    page = visit.page
    headers = {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}
    page.route("**/segment", lambda route: route.fulfill(status=503, headers=headers), times=1)
    visit.refused = 1
    visit.open(picture())
    expect(page.locator("#problem-retry")).to_have_text(re.compile(r"Try again after .*2099"))
    expect(page.locator("#problem-retry")).to_be_disabled()


def test_a_sign_in_page_in_place_of_the_plans_is_said_and_asked_for_once(visit: Visit) -> None:
    page, asked = visit.page, []

    def sign_in(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(status=200, headers={"Content-Type": "text/html"}, body="<h1>Sign in</h1>")

    page.route("**/plans", sign_in)
    page.reload()
    expect(page.locator("#problem")).to_contain_text("Something else than the service answered")
    expect(page.locator("#problem-retry")).to_be_enabled()
    page.wait_for_timeout(600)
    assert len(asked) == 1
    page.unroute_all()
    page.locator("#problem-retry").click()
    expect(page.locator("html")).to_have_attribute("data-ready", "yes")
    expect(page.locator("#problem")).to_be_hidden()


def serve_another_bundle(page: Page) -> None:
    """From now on /plans and /segment answer as if the bundle's name, and its plans, had an x."""

    def renamed(route: Route) -> None:
        got = route.fetch()
        text = got.text()
        for name in (*(f"d{depth}" for depth in range(1, DEPTHS + 1)), "fake"):
            text = text.replace(f'"{name}"', f'"{name}x"')
        route.fulfill(response=got, body=text)

    page.route("**/plans", renamed)
    page.route("**/segment*", renamed)


@pytest.mark.parametrize("button", ["Segment", "Every plan"])
def test_an_answer_of_another_bundle_is_said_and_a_reload_shows_it(
    visit: Visit, button: str
) -> None:
    page = visit.page
    visit.open(picture())
    visit.segmented()
    serve_another_bundle(page)
    page.get_by_role("button", name=button, exact=True).click()
    expect(page.locator("#problem")).to_contain_text("now serves another bundle")
    page.get_by_role("button", name="Reload the page").click()
    expect(page.locator("#bundle")).to_contain_text("fakex")
    visit.open(picture())
    visit.segmented()
    expect(page.locator("#problem")).to_be_hidden()


def test_after_a_break_the_page_looks_whether_the_bundle_is_the_same(visit: Visit) -> None:
    page = visit.page
    visit.open(picture())
    visit.segmented()
    page.route("**/segment", lambda route: route.abort())
    visit.refused = 1
    page.locator("#run").click()
    expect(page.locator("#problem")).to_contain_text("The service cannot be reached")
    page.unroute_all()
    serve_another_bundle(page)
    page.locator("#problem-retry").click()
    expect(page.locator("#problem")).to_contain_text("now serves another bundle")
    assert visit.budgets() == [None, None]  # the photo was not sent again


def test_a_service_that_is_gone_is_said_to_be_gone(visit: Visit) -> None:
    visit.page.route("**/segment", lambda route: route.abort())
    visit.refused = 1
    visit.page.set_input_files(
        "#file", {"name": "a.png", "mimeType": "image/png", "buffer": picture()}
    )
    expect(visit.page.locator("#problem")).to_contain_text("The service cannot be reached")
    expect(visit.page.locator("#problem-retry")).to_be_enabled()


def test_a_file_that_has_changed_since_it_was_chosen_is_not_blamed_on_the_service(
    visit: Visit, tmp_path: Path
) -> None:
    page, problem, file = visit.page, visit.page.locator("#problem"), tmp_path / "photo.png"
    file.write_bytes(picture())
    with page.expect_response("**/segment"):
        page.set_input_files("#file", file)
    visit.segmented()
    file.write_bytes(picture(120, 80))
    os.utime(file, (1, 1))
    visit.refused = 2
    page.locator("#run").click()
    expect(problem).to_contain_text("has changed since it was chosen")
    expect(page.locator("#problem-retry")).to_be_hidden()
    file.unlink()
    page.locator("#every").click()
    expect(page.locator("#strip-status")).to_have_text("The photo cannot be read")
    expect(problem).to_contain_text("choose it again")


def test_the_bytes_of_a_file_count_and_not_its_name(visit: Visit) -> None:
    files = (
        ("photo.jpg", "image/jpeg", "WEBP"),
        ("photo", "", "PNG"),
        ("a.png", "image/png", "PNG"),
    )
    for name, kind, format_ in files:
        with visit.page.expect_response("**/segment") as got:
            visit.open(picture(kind=format_), name, kind)
        assert got.value.status == 200, name
        sent = got.value.request.headers["content-type"]
        expect(visit.page.locator("#curl")).to_contain_text(f"-H 'Content-Type: {sent}'")


def test_a_photo_can_be_dropped_and_pasted(visit: Visit) -> None:
    for event, data in (("drop", picture()), ("paste", picture(64, 64))):
        with visit.page.expect_response("**/segment") as got:
            visit.page.evaluate(DROP, [event, list(data), "image/png"])
        assert got.value.status == 200
        visit.segmented()
        expect(visit.page.locator("#photo-facts")).to_contain_text(
            "96 × 72" if event == "drop" else "64 × 64"
        )


def test_of_several_files_the_first_is_taken_and_something_else_is_said_to_be_no_file(
    visit: Visit,
) -> None:
    page = visit.page
    visit.open(picture())
    visit.segmented()
    page.evaluate("""() => {
        const data = new DataTransfer();
        data.setData("text/uri-list", "https://example.com/a.jpg");
        document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
    }""")
    expect(page.locator("#problem")).to_contain_text("What was dropped is no file")
    expect(page.locator("#legend button").first).to_be_visible()  # of the photo before
    with page.expect_response("**/segment"):
        page.evaluate(
            """(bytes) => {
                const data = new DataTransfer();
                for (const name of ["b.png", "c.png"]) {
                    data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
                }
                document.dispatchEvent(new DragEvent("drop", { dataTransfer: data }));
            }""",
            list(picture()),
        )
    expect(page.locator("#photo-facts")).to_contain_text("b.png")
    expect(page.locator("#photo-facts")).to_contain_text("the first of 2 files")
    expect(page.locator("#problem")).to_be_hidden()


def test_a_photo_that_the_browser_cannot_draw_shows_its_masks_alone(visit: Visit) -> None:
    page = visit.page
    visit.open(picture(kind="TIFF"), "a.tif", "image/tiff")
    visit.segmented()
    expect(page.locator("#photo")).to_be_hidden()
    expect(page.locator("#overlay")).to_be_visible()
    expect(page.locator("#notes")).to_contain_text("This browser cannot show the photo")
    visit.open(picture())
    visit.segmented()
    expect(page.locator("#photo")).to_be_visible()
    expect(page.locator("#notes")).to_be_empty()


def test_names_from_outside_stay_text(visit: Visit) -> None:
    name = "<img src=x onerror=alert(1)>'; rm.png"
    visit.open(picture(), name)
    visit.segmented()
    expect(visit.page.locator("#photo-facts")).to_contain_text(name)
    expect(visit.page.locator("#curl")).to_contain_text(
        "'@<img src=x onerror=alert(1)>'\\''; rm.png'"
    )
    assert visit.page.locator("#tools img").count() == 0
