"""Every call of KServe's gRPC client, unmodified: python kserve_grpc_calls.py HOST:PORT IMAGE.

Runs where kserve is installed, which is not where the tests run (see test_clients.py).
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from pathlib import Path

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.infer_type import RequestedOutput


async def main(address: str, path: str) -> None:
    file = Path(path).read_bytes()
    async with InferenceGRPCClient(address, timeout=60) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("fake")
        missing = None
        try:
            await client.is_model_ready("other")
        except grpc.RpcError as error:
            missing = error
        assert missing is not None
        assert missing.code() == grpc.StatusCode.NOT_FOUND
        tensor = InferInput(name="image", shape=[1], datatype="BYTES")
        tensor.set_data_from_numpy(np.array([file], dtype=np.object_))
        request = InferRequest(
            model_name="fake",
            infer_inputs=[tensor],
            request_id="seven",
            request_outputs=[RequestedOutput("segments"), RequestedOutput("labels")],
            parameters={"depth": 2, "gflops": "6.5", "strict": False},
        )
        found = await client.infer(request)
        assert found.id == "seven"
        labels = found.get_output_by_name("labels")
        segments = found.get_output_by_name("segments")
        assert labels is not None
        assert segments is not None
        assert labels.as_numpy().shape == (1, 48, 64)
        assert json.loads(segments.as_numpy()[0])
        assert found.parameters["depth"].int64_param <= 2
        public = {
            name
            for name, _ in inspect.getmembers(type(client), callable)
            if not name.startswith("_")
        }
        done = {"infer", "is_server_live", "is_server_ready", "is_model_ready", "close"}
        assert public == done, public ^ done
    print(f"all calls: {len(done)}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
