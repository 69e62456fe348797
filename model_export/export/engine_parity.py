"""Whether TensorRT engines compute what ONNX Runtime does: every plan, shape and batch, by the
backends of the service itself.

Half precision turns over some decisions by threshold (which tokens pause, where the decoder looks),
so the limits are on the mean difference and on the share of pixels with the same class, not on the
largest difference. The gate's scores have two limits: bf16 shifts all scores of an image by up to
0.01, but the differences, by which plans are chosen, by less than 0.001.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_export.data.augment import frames_by_shape
from model_export.data.datasets import open_dataset
from model_export.export.parity import probabilities_of
from model_export.training.runs import RunError
from service.bundle import Bundle
from service.core import Frame, Plan
from service.engines.base import Tensors
from service.engines.engine_cache import EngineSet
from service.engines.onnxruntime import OnnxRuntimeBackend
from service.engines.tensorrt import TensorRTBackend
from service.inference.stages import Stages


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
    manifest, samples = served.manifest, open_dataset(spec, data)
    frames = frames_by_shape(samples, manifest.input.canvases, about.batches[-1])
    backend = TensorRTBackend(served, cache=cache, max_batch=about.batches[-1], only=about)
    try:
        ours = Stages(backend, manifest)
        theirs = Stages(OnnxRuntimeBackend(served, threads=1), manifest)
        limits = LIMITS[about.precision]
        return compare(ours, theirs, manifest.plans, frames, about.batches, limits)
    finally:
        backend.close()


def compare(
    ours: Stages,
    theirs: Stages,
    plans: tuple[Plan, ...],
    frames: Mapping[str, Sequence[Frame]],
    batches: tuple[int, ...],
    limits: Limits,
) -> dict[str, float]:
    """Each plan, shape and batch twice: the second time over what the first left in memory.

    frames: by shape, images on it. Raises RunError that names plan, shape and batch.
    """
    differences: dict[str, float] = {}
    for shape, graphs in theirs.manifest.graphs.items():
        for batch in batches:
            shown = frames[shape][:batch]
            right, left = theirs.front(shown), ours.front(shown)
            at = f"{shape}, batch {batch}"
            if "quality" in {s.name for s in theirs.manifest.stages[graphs.front].outputs}:
                _check_gate(left["quality"] - right["quality"], at, limits)
            for plan in plans:
                if plan.name not in graphs.encoders:
                    continue
                q = _answer(theirs, plan, shape, right)
                for _ in range(2):
                    p = _answer(ours, plan, shape, left)
                    mean = float(np.abs(p - q).mean())
                    equal = float((p.argmax(1) == q.argmax(1)).mean())
                    # In this form nan is refused, too.
                    if not (mean <= limits.mean and equal >= limits.equal):
                        raise RunError(
                            f"{plan.name} ({at}): probabilities differ by {mean:.2e} in the mean, "
                            f"the class on {1 - equal:.3%} of the pixels; no engine is accepted"
                        )
                    largest = max(differences.get(plan.name, 0.0), float(f"{mean:.3g}"))
                    differences[plan.name] = largest
    return differences


def _check_gate(off: NDArray[np.float32], at: str, limits: Limits) -> None:
    """off: (B, plans), the differences of its scores."""
    for what, gaps, limit in (
        ("scores", off, limits.gate),
        ("losses", off[:, -1:] - off, limits.loss),
    ):
        gap = float(np.abs(gaps).max())
        if not gap <= limit:
            raise RunError(f"the gate's {what} ({at}) differ by {gap:.2e}; no engine is accepted")


def _answer(stages: Stages, plan: Plan, shape: str, features: Tensors) -> NDArray[np.float32]:
    head = stages.head(shape, stages.encode(plan, shape, features))
    return np.asarray(probabilities_of(head), np.float32)
