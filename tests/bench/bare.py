"""A plan's stages without a service: the glance, its own front, encoder and heads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from service import bundle
from service.engines.onnxruntime import OnnxRuntimeBackend
from service.inference.stages import Stages
from service.pixels.decode import Limits, decode


def bare_stages(folder: str, photo: Path, threads: int, number: int = -1) -> Callable[[], None]:
    """Runs them once for an image that is decoded already. threads: of the engine. number: of the
    plan, from cheap to full."""
    opened = bundle.load(Path(folder))
    manifest = opened.manifest
    stages = Stages(OnnxRuntimeBackend(opened, threads=threads), manifest)
    plan = manifest.plans[number]
    frames = decode(photo.read_bytes(), "", Limits(10**8, 10**5, 1), manifest.input, "full")
    glance, own = frames[manifest.glance.name], frames[plan.canvas]
    shape = own.geometry.shape

    def run() -> None:
        features, _ = stages.glance([glance])
        if plan.canvas != manifest.glance.name:
            features = stages.front([own])
        encoded = stages.encode(plan, shape, features)
        for head in plan.heads or (None,):
            stages.head(shape, encoded, head and head.key)

    return run
