"""The full plan in LitServe. `python -m tests.bench.peers.litserve_server PORT`"""

from __future__ import annotations

import base64
import os
import sys

import litserve
import numpy as np
from fastapi import Response
from numpy.typing import NDArray

from service.core import Frame, Geometry
from tests.bench.peers.full_plan import BATCH_WAIT_S, BATCHED, MAX_BATCH, FullPlan


class FullPlanAPI(litserve.LitAPI):
    """Decoding, graphs and answers one after the other, in the worker process."""

    def setup(self, device: str) -> None:
        self.model = FullPlan.from_environment()

    def decode_request(self, request: dict[str, str]) -> Frame:
        """JSON: an uploaded file of a form does not reach the worker process (LitServe 0.2.19)."""
        return self.model.decode(base64.b64decode(request["image"]))

    def predict(self, frame: Frame) -> tuple[NDArray[np.float32], Geometry]:
        return self.model.predict(frame.pixels[None])[0], frame.geometry

    def encode_response(self, output: tuple[NDArray[np.float32], Geometry]) -> Response:
        return Response(self.model.encode(*output), media_type="image/png")


class Batched(FullPlanAPI):
    def batch(self, frames: list[Frame]) -> list[Frame]:
        return frames

    def predict(self, frames: list[Frame]) -> list[tuple[NDArray[np.float32], Geometry]]:
        found = self.model.predict(np.stack([frame.pixels for frame in frames]))
        return [(row, frame.geometry) for row, frame in zip(found, frames, strict=True)]

    def unbatch(
        self, outputs: list[tuple[NDArray[np.float32], Geometry]]
    ) -> list[tuple[NDArray[np.float32], Geometry]]:
        return outputs


if __name__ == "__main__":
    if os.environ[BATCHED] == "1":
        api = Batched(api_path="/segment", max_batch_size=MAX_BATCH, batch_timeout=BATCH_WAIT_S)
    else:
        api = FullPlanAPI(api_path="/segment")
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
