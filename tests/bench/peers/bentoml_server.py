"""The full plan in BentoML. `bentoml serve tests.bench.peers.bentoml_server:Service --port PORT`

Batched, as BentoML's guide has it: one service takes requests, another one the batches.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import ContentType
from numpy.typing import NDArray

from tests.bench.peers.full_plan import BATCHED, MAX_BATCH, FullPlan

Png = Annotated[bytes, ContentType("image/png")]


@bentoml.service
class OneByOne:
    def __init__(self) -> None:
        self.model = FullPlan.from_environment()

    @bentoml.api(route="/segment")
    def segment(self, image: Path) -> Png:
        return self.model.segment(image.read_bytes())


@bentoml.service
class Graphs:
    def __init__(self) -> None:
        self.model = FullPlan.from_environment()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=60_000)
    def predict(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.model.predict(pixels)


@bentoml.service
class Batched:
    graphs = bentoml.depends(Graphs)

    def __init__(self) -> None:
        self.model = FullPlan.from_environment()

    @bentoml.api(route="/segment")
    async def segment(self, image: Path) -> Png:
        frame = self.model.decode(image.read_bytes())
        found = await self.graphs.to_async.predict(frame.pixels[None])
        return self.model.encode(found[0], frame.geometry)


Service = Batched if os.environ[BATCHED] == "1" else OneByOne
