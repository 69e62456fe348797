"""The page's key field, in a real browser, on the real app with a file of API keys."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from service.bundle import Manifest
from tests.api_keys import KEY, OTHER, line
from tests.page.visits import CONTRAST, DEPTHS, Visit, opened, picture, serving

pytestmark = pytest.mark.browser
STORED = "fathom-api-key"
LETTERS = "Schlüssel-钥匙"  # beyond what header fields hold as text


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "api-keys"
    path.write_text(line("page", KEY) + line("letters", LETTERS))
    return path


@pytest.fixture
def guarded(tab: Page, fake_manifest: Manifest, keys: Path) -> Iterator[Visit]:
    """The page of a service that asks for keys, opened without one."""
    with serving(fake_manifest, api_keys_file=str(keys)) as url, opened(tab, url) as started:
        started.refused = 1
        expect(field(tab)).to_be_visible()
        yield started


def field(page: Page) -> Locator:
    return page.get_by_label("API key", exact=True)


def give(page: Page, key: str) -> None:
    field(page).fill(key)
    field(page).press("Enter")


def ready(page: Page) -> None:
    expect(page.locator("#key")).to_be_hidden()
    expect(page.locator("html")).to_have_attribute("data-ready", "yes")


def stores(page: Page) -> list[dict[str, str]]:
    """What the tab keeps, and what the browser would keep for longer."""
    found: list[dict[str, str]] = page.evaluate("[{ ...sessionStorage }, { ...localStorage }]")
    assert page.evaluate("document.cookie") == ""
    return found


def detail(url: str, headers: dict[str, str]) -> str:
    response = httpx.get(f"{url}/plans", headers=headers)
    assert response.status_code == 401
    return str(response.json()["detail"])


def test_a_service_without_keys_shows_no_field_and_gets_no_key(
    tab: Page, fake_manifest: Manifest
) -> None:
    with serving(fake_manifest) as url, opened(tab, url) as visit:
        ready(tab)
        visit.open(picture())
        visit.segmented()
        expect(tab.locator("#key")).to_be_hidden()
        expect(tab.get_by_role("link", name="Plans")).to_be_visible()
        expect(tab.locator("#curl")).not_to_contain_text("X-API-Key")
        assert not any("x-api-key" in request.headers for request in visit.requests)


def test_401_brings_the_field_which_is_described_and_has_the_focus(guarded: Visit) -> None:
    page = guarded.page
    expect(field(page)).to_be_focused()
    expect(field(page)).to_have_attribute("type", "password")
    expect(field(page)).to_have_accessible_description(
        "This service asks for an API key. Yours stays in this tab, "
        "and goes to this service and nowhere else."
    )
    expect(page.locator("#key-error")).to_have_text("")  # nothing was wrong
    expect(page.locator("#problem")).to_be_hidden()
    field(page).press("Enter")  # without a key nothing is asked
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Use it")).to_be_focused()
    assert sum(request.url.endswith("/plans") for request in guarded.requests) == 1


def test_with_keys_there_is_no_link_to_what_a_link_cannot_ask_for(guarded: Visit) -> None:
    page = guarded.page
    expect(page.get_by_role("link", name="API")).to_be_visible()
    expect(page.get_by_role("link", name="Plans")).to_be_hidden()
    give(page, KEY)
    ready(page)
    page.reload()
    ready(page)
    expect(page.get_by_role("link", name="Plans")).to_be_hidden()


def test_a_wrong_key_is_said_to_be_wrong_beside_the_field_and_is_not_kept(guarded: Visit) -> None:
    page, wrong = guarded.page, f"{KEY}x"
    guarded.refused = 3
    for _ in range(2):
        give(page, wrong)
        expect(page.locator("#key-error")).to_have_text(detail(guarded.url, {"X-API-Key": wrong}))
    expect(page.locator("#key-error")).to_have_attribute("aria-live", "assertive")
    expect(field(page)).to_have_attribute("aria-invalid", "true")
    expect(field(page)).to_be_focused()
    assert stores(page) == [{}, {}]
    page.keyboard.type(KEY)  # over the wrong one, which is selected
    page.get_by_role("button", name="Use it").click()
    ready(page)


def test_a_right_key_loads_the_plans_and_segments_a_photo(guarded: Visit) -> None:
    page = guarded.page
    give(page, KEY)
    ready(page)
    expect(page.locator("#gauge tbody tr")).to_have_count(DEPTHS)
    expect(page.locator("#file")).to_be_focused()
    guarded.open(picture())
    guarded.segmented()
    page.get_by_role("button", name="Every plan").click()
    expect(page.locator(".card.done")).to_have_count(DEPTHS)
    sent = {
        request.url.removeprefix(guarded.url): request.headers.get("x-api-key")
        for request in guarded.requests
    }
    assert {path: key for path, key in sent.items() if key} == {"/plans": KEY, "/segment": KEY}
    assert "/readyz" in sent


def test_a_key_stays_in_its_tab_and_out_of_sight(guarded: Visit) -> None:
    page = guarded.page
    give(page, KEY)
    ready(page)
    guarded.open(picture())
    guarded.segmented()
    assert stores(page) == [{STORED: KEY}, {}]
    assert KEY not in page.content()
    assert field(page).input_value() == ""
    assert not any(KEY in request.url for request in guarded.requests)
    assert page.url == f"{guarded.url}/"
    page.reload()
    ready(page)
    expect(page.locator("#gauge tbody tr")).to_have_count(DEPTHS)


def test_the_curl_line_takes_the_key_from_a_variable(guarded: Visit) -> None:
    page = guarded.page
    give(page, KEY)
    ready(page)
    shown = page.locator("#curl").text_content() or ""
    assert KEY not in shown
    assert '-H "X-API-Key: $API_KEY"' in shown
    script = f"curl() {{ printf '%s\\n' \"$@\"; }}\n{shown}"
    ran = subprocess.run(
        ["/bin/sh", "-c", script],
        env={"API_KEY": OTHER},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"X-API-Key: {OTHER}" in ran.stdout.splitlines()


def test_a_key_that_is_taken_back_brings_the_field_and_the_next_one_goes_on(
    guarded: Visit, keys: Path
) -> None:
    page = guarded.page
    give(page, KEY)
    ready(page)
    guarded.open(picture())
    guarded.segmented()
    keys.write_text(line("page", OTHER))
    end = time.monotonic() + 20
    while httpx.get(f"{guarded.url}/plans", headers={"X-API-Key": KEY}).status_code != 401:
        assert time.monotonic() < end
        time.sleep(0.1)
    guarded.refused = 2
    page.get_by_role("button", name="Segment", exact=True).click()
    expect(field(page)).to_be_focused()
    expect(page.locator("#key-error")).to_have_text(detail(guarded.url, {"X-API-Key": KEY}))
    expect(page.locator("#problem")).to_be_hidden()
    assert stores(page) == [{}, {}]
    give(page, OTHER)
    guarded.segmented()
    expect(page.locator("#key")).to_be_hidden()
    expect(page.locator("#depth-taken")).to_have_text("depth 4 of 4gate")
    expect(page.get_by_role("button", name="Segment", exact=True)).to_be_focused()  # as before
    assert stores(page) == [{STORED: OTHER}, {}]


def test_a_photo_that_comes_before_the_key_is_segmented_after_it(guarded: Visit) -> None:
    page = guarded.page
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": picture()})
    assert guarded.budgets() == []
    with page.expect_response("**/segment") as got:
        give(page, KEY)
    assert got.value.status == 200
    guarded.segmented()
    expect(page.locator("#photo-facts")).to_contain_text("a.png")


def test_a_key_of_any_letters_is_sent_as_the_bytes_that_a_shell_sends(guarded: Visit) -> None:
    give(guarded.page, LETTERS)
    ready(guarded.page)


def test_a_key_is_tried_once_however_often_it_is_submitted(guarded: Visit) -> None:
    field(guarded.page).fill(KEY)
    guarded.page.eval_on_selector("#key", "(form) => [1, 2, 3].forEach(() => form.requestSubmit())")
    ready(guarded.page)
    assert sum(request.url.endswith("/plans") for request in guarded.requests) == 2


def test_a_browser_that_stores_nothing_can_use_a_key(guarded: Visit) -> None:
    browser = guarded.page.context.browser
    assert browser is not None
    page = browser.new_page()
    try:
        page.add_init_script(
            """Object.defineProperty(window, "sessionStorage", {
                get() { throw new DOMException("", "SecurityError"); },
            });"""
        )
        page.goto(guarded.url)
        give(page, KEY)
        ready(page)
    finally:
        page.close()


def test_the_field_fits_every_width_and_has_contrast_by_day_and_by_night(guarded: Visit) -> None:
    page = guarded.page
    guarded.refused = 2
    give(page, "wrong")
    expect(page.locator("#key-error")).not_to_have_text("")
    for width in (360, 390, 700, 1120, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        box = field(page).bounding_box()
        assert box is not None
        assert box["width"] >= 160
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found: list[tuple[str, float]] = page.eval_on_selector_all("#key, #key *", CONTRAST)
        assert len(found) == 5  # title, help, label, button, error
        assert [(scheme, text, round(ratio, 2)) for text, ratio in found if ratio < 4.5] == []
