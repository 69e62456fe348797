"""Whether TensorRT engines compute what ONNX Runtime does: every plan and batch, by the backends of
the service itself.

Half precision turns over some decisions by threshold (which tokens pause, where the decoder looks),
so the limits are on the mean difference and on the share of pixels with the same class, not on the
largest difference. The gate's scores have two limits: bf16 shifts all scores of an image by up to
0.01, but the differences, by which plans are chosen, by less than 0.001.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_export.data.augment import on_canvas
from model_export.data.datasets import open_dataset
from model_export.training.runs import RunError
from service.bundle import Bundle, Manifest
from service.core import Plan
from service.engines.base import Backend
from service.engines.engine_cache import EngineSet
from service.engines.onnxruntime import OnnxRuntimeBackend
from service.engines.tensorrt import TensorRTBackend


@dataclass(frozen=True)
class Limits:
    """gate: largest difference of a predicted quality. loss: the same for predicted losses against
    the full plan. mean: of the probabilities. equal: share of pixels with the same class."""

    gate: float
    loss: float
    mean: float
    equal: float


LIMITS = {
    "fp32": Limits(gate=1e-3, loss=1e-3, mean=1e-4, equal=0.999),
    "fp16": Limits(gate=1e-3, loss=1e-3, mean=1e-3, equal=0.995),
    "bf16": Limits(gate=1e-2, loss=2e-3, mean=1e-2, equal=0.97),
}


def check(
    served: Bundle, cache: Path, about: EngineSet, spec: str, data: Path | None
) -> dict[str, float]:
    """Mean difference of each plan's probabilities, the largest over the batches. Raises RunError,
    BackendError."""
    samples = open_dataset(spec, data)
    canvas = (served.manifest.input.height, served.manifest.input.width)
    images = np.stack(
        [on_canvas(samples[i % len(samples)], canvas)[0] for i in range(about.batches[-1])]
    )
    ours = TensorRTBackend(served, cache=cache, max_batch=about.batches[-1], only=about)
    try:
        theirs = OnnxRuntimeBackend(served, threads=1)
        limits = LIMITS[about.precision]
        plans = served.manifest.plans
        return compare(ours, theirs, served.manifest, plans, images, about.batches, limits)
    finally:
        ours.close()


def compare(
    ours: Backend,
    theirs: Backend,
    manifest: Manifest,
    plans: tuple[Plan, ...],
    images: np.ndarray,
    batches: tuple[int, ...],
    limits: Limits,
) -> dict[str, float]:
    """Each plan and batch twice: the second time over what the first left in memory. Raises
    RunError that names both."""
    differences: dict[str, float] = {}
    answer = manifest.stages["decoder"].outputs[0].name
    for batch in batches:
        pixels = images[:batch]
        right = theirs.run("front", {"image": pixels})
        left = ours.run("front", {"image": pixels})
        off = left["quality"] - right["quality"]
        for what, gaps, limit in (
            ("scores", off, limits.gate),
            ("losses", off[:, -1:] - off, limits.loss),
        ):
            gap = float(np.abs(gaps).max())
            if not gap <= limit:
                raise RunError(
                    f"the gate's {what} at batch {batch} differ by {gap:.2e}; no engine is accepted"
                )
        for plan in plans:
            encoder = manifest.encoder_of[plan.name]
            q = theirs.run("decoder", theirs.run(encoder, right))[answer]
            for _ in range(2):
                p = ours.run("decoder", ours.run(encoder, left))[answer]
                mean, equal = (
                    float(np.abs(p - q).mean()),
                    float((p.argmax(1) == q.argmax(1)).mean()),
                )
                # In this form nan is refused, too.
                if not (mean <= limits.mean and equal >= limits.equal):
                    raise RunError(
                        f"{plan.name} at batch {batch}: probabilities differ by {mean:.2e} in the "
                        f"mean, the class on {1 - equal:.3%} of the pixels; no engine is accepted"
                    )
                largest = max(differences.get(plan.name, 0.0), float(f"{mean:.3g}"))
                differences[plan.name] = largest
    return differences
