"""The full plan's stages without a service: the glance, its own front, encoder and heads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from service import bundle
from service.engines.onnxruntime import OnnxRuntimeBackend
from service.inference.stages import Stages
from service.pixels.decode import Limits, decode


def bare_stages(folder: str, photo: Path, threads: int) -> Callable[[], None]:
    """Runs them once for an image that is decoded already. threads: of the engine."""
    opened = bundle.load(Path(folder))
    manifest = opened.manifest
    stages = Stages(OnnxRuntimeBackend(opened, threads=threads), manifest)
    plan = manifest.plans[-1]
    frames = decode(photo.read_bytes(), "", Limits(10**8, 10**5, 1), manifest.input, "full")
    glance, own = frames[manifest.glance.name], frames[plan.canvas]
    shape = own.geometry.shape

    def run() -> None:
        stages.glance([glance])
        encoded = stages.encode(plan, shape, stages.front([own]))
        for head in plan.heads or (None,):
            stages.head(shape, encoded, head and head.key)

    return run
