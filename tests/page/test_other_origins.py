"""Pages of other origins in a real browser: what they can cause and read, and what they cannot."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import Page

from service.bundle import Manifest
from tests.api.server import running
from tests.pictures import quarters

pytestmark = pytest.mark.browser

FETCH = """async ([url, photo, headers]) => {
  const body = Uint8Array.from(atob(photo), (letter) => letter.charCodeAt(0));
  try {
    const answer = await fetch(url, { method: "POST", body, headers });
    return [answer.status, answer.headers.get("Compute-Used"), (await answer.json()).task ?? null];
  } catch (error) {
    return [0, null, null];
  }
}"""
# A form needs nobody's permission to be sent.
FORM = """async ([url, photo]) => {
  const form = new FormData();
  form.append("file", new Blob([Uint8Array.from(atob(photo), (c) => c.charCodeAt(0))]), "a.png");
  await fetch(url, { method: "POST", body: form, mode: "no-cors" });
}"""


class _Empty(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>another page</title>")

    def log_message(self, *words: Any) -> None:
        """Nothing to say."""


@contextmanager
def other_page() -> Iterator[str]:
    """The origin of a page that is not the service's."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Empty) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_page_of_another_origin_asks_if_it_is_allowed_and_costs_nothing_if_not(
    tab: Page, fake_manifest: Manifest
) -> None:
    photo = base64.b64encode(quarters()).decode()
    headers = {"Content-Type": "image/png", "Compute-Budget": "depth=1", "X-API-Key": "k"}
    with other_page() as origin:
        tab.goto(origin)
        with running(fake_manifest, cors_origins=origin) as server:
            found = tab.evaluate(FETCH, [f"{server.url}/segment", photo, headers])
            assert (found[0], found[2]) == (200, "semantic")
            assert found[1].startswith("depth=1,")
            wrong = headers | {"Compute-Budget": "depth=99"}
            assert tab.evaluate(FETCH, [f"{server.url}/segment", photo, wrong])[0] == 400
        with running(fake_manifest) as server:
            assert tab.evaluate(FETCH, [f"{server.url}/segment", photo, headers])[0] == 0
            tab.evaluate(FORM, [f"{server.url}/segment", photo])
            assert server.value("fathom_requests_total", outcome="ok") == 0
            assert server.value("fathom_requests_total", outcome="foreign-origin") == 2
            assert server.value("fathom_stage_duration_seconds_count", stage="decode") == 0
