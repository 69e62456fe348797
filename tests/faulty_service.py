"""The real service with an engine that fails or dawdles on request: `python -m tests.faulty_service
[flags]`.

A red picture makes the engine fail its batch, a blue one takes SLOW_S; all else is the fake
backend.
"""

from __future__ import annotations

import os
import sys
import time

from service import __main__ as entry
from service.bundle import Bundle, Manifest
from service.engines.base import Arrays, HostTensors, Tensors, on_host
from service.engines.choice import Choice
from service.engines.fake import FakeBackend
from service.settings import Settings

RED, BLUE = (255, 0, 0), (0, 0, 255)
SLOW_S = 0.7  # longer than the 0.5 s of the objective


class Faulty(FakeBackend):
    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self._glances = {manifest.graphs[shape.name].front for shape in manifest.glance.shapes}

    def run(self, stage: str, tensors: Tensors | Arrays) -> HostTensors:
        if stage in self._glances:
            corners = on_host(tensors)["image"][:, 0, 0]
            if (corners == RED).all(axis=1).any():
                raise RuntimeError("asked to fail")
            if (corners == BLUE).all(axis=1).any():
                time.sleep(SLOW_S)
        return super().run(stage, tensors)


def open_backend(choice: Choice, settings: Settings, served: Bundle) -> Faulty:
    return Faulty(served.manifest)


if __name__ == "__main__":
    entry.open_backend = open_backend
    sys.exit(entry.main(sys.argv[1:], os.environ))
