"""The page of a bundle with a tiled canvas: only larger images are offered its plans."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from service.bundle import load
from tests.page.conftest import visiting
from tests.page.visits import Visit, picture
from tests.tiled_bundle import write_tiled_bundle

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation:DeprecationWarning"
    ),  # pycocotools.mask.decode
]


@pytest.fixture
def tiles(tab: Page, services: dict[str, Any], tmp_path: Path) -> Iterator[Visit]:
    manifest = load(write_tiled_bundle(tmp_path / "tiles")).manifest
    with visiting(tab, services, manifest) as started:
        yield started


def test_the_canvases_tell_their_tiles(tiles: Visit) -> None:
    expect(tiles.page.locator("#canvases")).to_contain_text(
        "t96: 96 × 96 or 160 × 96, 4 tiles of c64, for larger images alone."
    )
    expect(tiles.page.locator("#gauge tbody th")).to_have_text(["1c64", "1t96", "2c64", "2t96"])


@pytest.mark.parametrize(
    ("size", "names", "full"),
    [((60, 48), ["c64"], "c64"), ((200, 150), ["c64", "t96"], "t96")],
    ids=["small", "larger"],
)
def test_every_plan_is_every_plan_of_the_image(
    tiles: Visit, size: tuple[int, int], names: list[str], full: str
) -> None:
    page = tiles.page
    tiles.open(picture(*size))
    tiles.segmented()
    page.get_by_role("button", name="Every plan").click()
    expect(page.locator(".card.done")).to_have_count(2 * len(names))
    headings = [heading.split()[0] for heading in page.locator("#cards h3").all_inner_texts()]
    assert headings == names
    page.locator(".card").last.click()
    expect(page.locator("#depth-taken")).to_contain_text(f"canvas {full}depth 2 of 2")
    expect(page.locator("#why")).to_contain_text("so the full plan ran")
