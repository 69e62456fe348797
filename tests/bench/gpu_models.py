"""The models part of the GPU benchmark: a bundle's network from an image in host memory to
probabilities there.

Each route is a backend as the service has them, so that parity is checked by what accepts engines,
per plan and batch, and every route is timed by the same few lines: one image at a time, the copies
to the GPU and back included.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from model_export.data.augment import on_canvases
from model_export.data.datasets import open_dataset
from model_export.export.engine_parity import LIMITS, compare
from model_export.training.runs import RunError
from service.bundle import Bundle
from service.core import Frames, Plan
from service.engines import engine_cache
from service.engines.base import Backend
from service.engines.cuda import Device
from service.engines.engine_cache import EngineSet
from service.engines.onnxruntime import OnnxRuntimeBackend
from service.engines.tensorrt import TensorRTBackend
from service.engines.tensorrt_runtime import installed
from service.errors import BackendError
from service.inference.stages import Stages
from tests.bench.gpu_clock import ERRORS, Clock, Figures, Setting, reason
from tests.bench.gpu_kernel import Json, compiled, short
from tests.bench.gpu_layers import NO_TIME
from tests.bench.gpu_torch import TorchBackend

IMAGES, BATCHES = "scenes:4:5", (1, 2, 4)
RUNS, WARM = 50, 5


@dataclass(frozen=True)
class Route:
    """precision: of storage, a key of LIMITS. batches: that are compared with ONNX Runtime on the
    CPU."""

    backend: Backend
    precision: str
    batches: tuple[int, ...] = (1,)


def steps(setting: Setting) -> dict[str, Callable[[], Json]]:
    served, left = setting.served, setting.left
    torch = partial(by_torch, served, setting.clock)
    routes: dict[str, Callable[[], Route]] = {
        "torch eager, fp32": partial(torch, "fp32"),
        "torch eager, bf16": partial(torch, "bf16"),
        "torch eager, bf16, CUDA graph": partial(torch, "bf16", graphs=True),
        "ONNX Runtime CUDA, fp32": partial(by_onnxruntime, served),
        "TensorRT": partial(by_tensorrt, served, setting.cache, left),
        "torch.compile, bf16": partial(torch, "bf16", wrap=compiled),
        "torch.compile, bf16, CUDA graph": partial(torch, "bf16", graphs=True, wrap=compiled),
    }
    return {
        name: partial(time_plans, open_route, served, left) for name, open_route in routes.items()
    }


# --------------------------------------------------------------------------------------------------
# the routes


def by_torch(served: Bundle, clock: Clock, precision: str, **choices: Any) -> Route:
    return Route(TorchBackend(served, clock, half=precision == "bf16", **choices), precision)


def by_onnxruntime(served: Bundle) -> Route:
    from service.engines.onnxruntime_cuda import OnnxRuntimeCudaBackend  # brings the CUDA libraries

    return Route(OnnxRuntimeCudaBackend(served, max_batch=BATCHES[-1]), "fp32", BATCHES)


def by_tensorrt(served: Bundle, cache: Path, left: Callable[[], float]) -> Route:
    """Raises BackendError."""
    about = engines_of(served, cache, left)
    return Route(
        TensorRTBackend(served, cache=cache, max_batch=about.batches[-1]),
        about.precision,
        about.batches,
    )


def engines_of(served: Bundle, cache: Path, left: Callable[[], float]) -> EngineSet:
    """Those of the cache that the service would take; built by `build-trt` if there are none.
    Raises BackendError."""
    there = [(runtime.flavour, runtime.version) for runtime in installed()]
    if not there:
        raise BackendError(
            "TensorRT is not installed: pip install '.[tensorrt]' or '.[tensorrt-rtx]'"
        )
    device = Device()
    chip = "{}.{}".format(*device.capability)
    device.close()
    sizes = ",".join(str(size) for size in BATCHES)
    words = [
        "-m",
        "model_export",
        "build-trt",
        str(served.root),
        "--cache",
        str(cache),
        "--batches",
        sizes,
    ]
    content, build_command = engine_cache.content_of(served.manifest), f"python {' '.join(words)}"
    try:
        return engine_cache.find(cache, content, there, chip, build_command=build_command)
    except BackendError:
        build(words, left())
        return engine_cache.find(cache, content, there, chip, build_command=build_command)


def build(words: list[str], seconds: float) -> None:
    """`python WORDS`, which compares what it builds with ONNX Runtime. Raises RuntimeError with its
    last words when it fails, BackendError when the time is over."""
    command = [sys.executable, *words]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=max(1.0, seconds), check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BackendError(
            f"the engines take longer to build than the {seconds:.0f} s that were left"
        ) from error
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise RuntimeError(
            f"the engines were not built: {said[-1] if said else f'exit status {done.returncode}'}"
        )


# -------------------------------------------------------------------------------------------------
# parity and latency


def time_plans(open_route: Callable[[], Route], served: Bundle, left: Callable[[], float]) -> Json:
    """plans: of each its parity (mean difference of the probabilities) and milliseconds, or why it
    has none."""
    try:
        route = open_route()
    except BackendError as error:
        return {"not_measured": error.detail}
    except ImportError as error:
        return {"not_measured": reason(error)}
    manifest, samples = served.manifest, open_dataset(IMAGES, None)
    images = [  # on every canvas before anything is timed
        dict(on_canvases(samples[i], manifest.input.canvases)) for i in range(max(route.batches))
    ]
    cpu = OnnxRuntimeBackend(served, threads=min(8, os.cpu_count() or 1))
    ours, reference = Stages(route.backend, manifest), Stages(cpu, manifest)
    plans = manifest.plans
    found: dict[str, Json] = {plan.name: {} for plan in plans}
    try:
        # The ends first: should the time run out, they say most.
        for plan in dict.fromkeys((plans[0], plans[-1], *plans)):
            found[plan.name] = (
                time_plan(route, ours, reference, plan, images)
                if left() > 0
                else {"not_measured": NO_TIME}
            )
    finally:
        route.backend.close()
    return {"precision": route.precision, "batches": list(route.batches), "plans": found}


def time_plan(
    route: Route, ours: Stages, reference: Stages, plan: Plan, images: Sequence[Frames]
) -> Json:
    """images: all of one size."""
    limits, manifest = LIMITS[route.precision], reference.manifest
    # What runs for the plan: the glance, and the front of its own canvas.
    frames = {
        images[0][canvas].geometry.shape: [each[canvas] for each in images]
        for canvas in dict.fromkeys((manifest.glance.name, plan.canvas))
    }
    own = replace(manifest, graphs={shape: manifest.graphs[shape] for shape in frames})
    both = (Stages(stages.backend, own) for stages in (ours, reference))
    try:
        parity = compare(*both, (plan,), frames, route.batches, limits)
        return {"parity": parity[plan.name], "ms": latency(ours, plan, images[0])}
    except RunError as error:
        return {"wrong": str(error)}
    except BackendError as error:
        return {"not_measured": error.detail}
    except ERRORS as error:
        return {"not_measured": reason(error)}


def latency(stages: Stages, plan: Plan, frames: Frames) -> dict[str, float]:
    """Milliseconds from the image on its canvases to its probabilities, which are in host memory
    when the clock stops: glance, front, encoder and decoder, without what decides on the plan."""
    glance, frame = stages.manifest.glance.name, frames[plan.canvas]
    taken = []
    for _ in range(WARM + RUNS):
        begun = time.perf_counter()
        features, _ = stages.glance([frames[glance]])
        if plan.canvas != glance:
            features = stages.front([frame])
        shape = frame.geometry.shape
        stages.head(shape, stages.encode(plan, shape, features))
        taken.append(time.perf_counter() - begun)
    figures = Figures.of(taken[WARM:])
    values = {"median": figures.median, "q1": figures.low, "q3": figures.high}
    return {name: short(1000 * value) for name, value in values.items()}
