"""Services that all tests share which leave them as they were, and one with tracing for each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from service.bundle import Manifest
from tests.api.server import Server, running
from tests.api.traced import World


class Servers:
    """The package's services by name, each started by its first test: manifests come from fixtures
    of narrower scope."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack, self.started = stack, dict[str, Server]()

    def get(self, name: str, manifest: Manifest, **settings: object) -> Server:
        if name not in self.started:
            service = running(manifest, **settings)
            self.started[name] = self.stack.enter_context(service)
        return self.started[name]


@pytest.fixture(scope="package")
def servers() -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack)


@pytest.fixture
def server(servers: Servers, fake_manifest: Manifest) -> Server:
    return servers.get("semantic", fake_manifest, max_body_bytes=200_000)


@pytest.fixture
def instance_server(servers: Servers, instance_manifest: Manifest) -> Server:
    """The same for an instance bundle; its plan d4-k25-w50 pauses tokens."""
    return servers.get("instance", instance_manifest)


@pytest.fixture
def canvases_server(servers: Servers, canvases_manifest: Manifest) -> Server:
    """The same for a bundle with two canvases, the larger one in two shapes."""
    return servers.get("canvases", canvases_manifest)


@pytest.fixture
def world(fake_manifest: Manifest) -> World:
    """The app with tracing, not yet started."""
    return World(fake_manifest)
