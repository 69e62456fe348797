"""A headless Chromium for the page's tests: the system's own, driven by playwright, which downloads
nothing here."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

from tests.needs import missing

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Whatever would call home, or needs a machine with a screen, is off.
FLAGS = (
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running browser with a fresh profile. Without one the test skips, or fails where
    REQUIRE_BROWSER=1 is set."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        names = ", ".join(NAMES)
        missing(
            "BROWSER",
            f"no browser: none of {names} is installed (Debian: apt-get install chromium)",
        )
    with sync_playwright() as playwright:
        # Chromium's sandbox refuses to run as root, as which containers run; the page under test is
        # our own.
        browser = playwright.chromium.launch(
            executable_path=program, args=list(FLAGS), chromium_sandbox=False
        )
        try:
            yield browser
        finally:
            browser.close()
