"""A running service that the tests of these files share and leave as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from service.bundle import Manifest
from tests.api.server import Server, running


@pytest.fixture
def server(fake_manifest: Manifest) -> Iterator[Server]:
    with running(fake_manifest, queue_size=8) as found:
        yield found
