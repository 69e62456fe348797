"""The full plan in Ray Serve. `python -m tests.bench.peers.ray_server PORT`"""

from __future__ import annotations

import os
import sys

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from service.core import Frame
from tests.bench.peers.full_plan import BATCH_WAIT_S, BATCHED, MAX_BATCH, FullPlan


@serve.deployment
class OneByOne:
    def __init__(self) -> None:
        self.model = FullPlan.from_environment()

    async def __call__(self, request: Request) -> Response:
        return Response(self.model.segment(await request.body()), media_type="image/png")


@serve.deployment(max_ongoing_requests=2 * MAX_BATCH)
class Batched:
    def __init__(self) -> None:
        self.model = FullPlan.from_environment()

    async def __call__(self, request: Request) -> Response:
        frame = self.model.decode(await request.body())
        found = await self.predict(frame)
        return Response(self.model.encode(found, frame.geometry), media_type="image/png")

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def predict(self, frames: list[Frame]) -> list[NDArray[np.float32]]:
        return list(self.model.predict(np.stack([frame.pixels for frame in frames])))


if __name__ == "__main__":
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    app = Batched if os.environ[BATCHED] == "1" else OneByOne
    serve.run(app.bind(), route_prefix="/segment", blocking=True)
