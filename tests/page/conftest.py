"""One tab for all tests of the page, and the services that it opens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from service.bundle import Manifest
from tests.browser import chromium
from tests.page.visits import Visit, opened, serving


@pytest.fixture(scope="package")
def tab() -> Iterator[Page]:
    """A fresh one costs more than most tests."""
    # The machine may be busy; what holds at once still passes at once.
    expect.set_options(timeout=10_000)
    with chromium() as browser:
        page = browser.new_page(reduced_motion="reduce")
        page.set_default_timeout(10_000)
        yield page


@pytest.fixture(scope="package")
def services() -> Iterator[dict[str, Any]]:
    """The package's services by task and number of canvases, each started by its first test:
    manifests come from fixtures of narrower scope."""
    with ExitStack() as stack:
        yield {"stack": stack}


@contextmanager
def visiting(tab: Page, services: dict[str, Any], manifest: Manifest) -> Iterator[Visit]:
    """The page of the manifest's service, ready."""
    key = f"{manifest.head.task} {len(manifest.input.canvases)} {len(manifest.heads)}"
    if key not in services:
        services[key] = services["stack"].enter_context(serving(manifest))
    with opened(tab, services[key]) as started:
        expect(started.page.locator("html")).to_have_attribute("data-ready", "yes")
        yield started


@pytest.fixture
def visit(tab: Page, services: dict[str, Any], fake_manifest: Manifest) -> Iterator[Visit]:
    """The page, ready."""
    with visiting(tab, services, fake_manifest) as started:
        yield started


@pytest.fixture
def objects(tab: Page, services: dict[str, Any], instance_manifest: Manifest) -> Iterator[Visit]:
    """The page of an instance bundle, one plan of which pauses tokens."""
    with visiting(tab, services, instance_manifest) as started:
        yield started


@pytest.fixture
def canvases(tab: Page, services: dict[str, Any], canvases_manifest: Manifest) -> Iterator[Visit]:
    """The page of a bundle with two canvases, the larger one in two shapes."""
    with visiting(tab, services, canvases_manifest) as started:
        yield started


@pytest.fixture
def heads(tab: Page, services: dict[str, Any], several_heads: Manifest) -> Iterator[Visit]:
    """The page of a bundle with the heads semantic, boxes and depth, on two canvases."""
    with visiting(tab, services, several_heads) as started:
        yield started
