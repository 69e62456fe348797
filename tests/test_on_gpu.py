"""The backends for a GPU, on a GPU: they answer what the CPU answers, and go on doing so.

TensorRT's engines are those of camvid-tiny in the folder that ENGINE_CACHE names, .cache/engines if
it names none (`python -m model_export build-trt trained_weights/camvid-tiny --cache DIR`).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service import bundle
from service.bundle import Bundle
from service.core import Frame
from service.engines.cuda import Device, DriverError
from service.engines.tensorrt import TensorRTBackend
from service.errors import BackendError
from service.inference.stages import Stages
from tests.bench.latency import only, photos, post, used
from tests.bench.served import Served, served

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "trained_weights/camvid-tiny"
ENGINES = Path(os.environ.get("ENGINE_CACHE", ROOT / ".cache/engines"))
REPLAYS, EQUAL = 1000, 0.995

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", autouse=True)
def device() -> Iterator[Device]:
    try:
        found = Device()
    except DriverError as error:
        pytest.skip(f"there is no GPU: {error}")
    yield found
    found.close()


@pytest.fixture(scope="module")
def camvid() -> Bundle:
    return bundle.load(BUNDLE)


@pytest.fixture(scope="module")
def on_cpu() -> Iterator[Served]:
    with served(str(BUNDLE), "--backend", "onnxruntime") as service:
        yield service


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "tensorrt"])
def test_masks_over_http_are_the_cpus(backend: str, on_cpu: Served) -> None:
    flags = ["--backend", backend, "--engine-cache", str(ENGINES), "--max-batch", "1"]
    try:
        with served(str(BUNDLE), *flags, limit_s=200) as on_gpu:
            compare(on_cpu, on_gpu)
    except RuntimeError as error:
        if "is not installed" in str(error) or "has no CUDAExecutionProvider" in str(error):
            pytest.skip(str(error).strip().splitlines()[-1])
        raise


def compare(on_cpu: Served, on_gpu: Served) -> None:
    """Every plan on two photos, then what the gate chooses."""
    with (
        httpx.Client(base_url=on_cpu.url, timeout=60) as cpu,
        httpx.Client(base_url=on_gpu.url, timeout=60) as gpu,
    ):
        asked = {plan["name"]: only(plan) for plan in cpu.get("/plans").json()["plans"]}
        for name, budget in asked.items() | {("the gate's choice", "max-loss=0.01")}:
            for photo in photos(2):
                (_, right), (_, mine) = (post(client, photo, budget) for client in (cpu, gpu))
                assert used(mine)["gflops"] == used(right)["gflops"], name
                share = (labels(mine) == labels(right)).mean()
                assert share >= EQUAL, f"{name}: {share:.3%} of the pixels have the same class"


def labels(response: httpx.Response) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(response.content)))


def test_a_thousand_replays_give_the_same_bits_and_take_no_memory(
    camvid: Bundle, device: Device
) -> None:
    try:
        backend = TensorRTBackend(camvid, cache=ENGINES, max_batch=1)
    except BackendError as error:
        pytest.skip(error.detail)
    manifest = camvid.manifest
    stages, plan = Stages(backend, manifest), manifest.plans[-1]
    shape = next(c.largest for c in manifest.input.canvases if c.name == plan.canvas)
    rng = np.random.default_rng(0)
    frame = Frame.filling(rng.integers(0, 256, (shape.height, shape.width, 3), dtype=np.uint8))

    def answer() -> NDArray[np.float32]:
        features = stages.front([frame])
        (values,) = stages.head(shape.name, stages.encode(plan, shape.name, features)).values()
        return np.asarray(values)

    try:
        first, free = answer(), device.free_memory
        for _ in range(REPLAYS):
            np.testing.assert_array_equal(answer(), first)
        assert device.free_memory == free
    finally:
        backend.close()
