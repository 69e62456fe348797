"""The full plan of a bundle as a plain model: bytes of an image -> PNG of its classes.

The other servers of the benchmark serve this. Decoding, graphs, sessions and answers are the
service's own. ONNX Runtime runs the graphs as they stand, in its own operators: the compiled
attention belongs to the service's engine. BENCH_KERNEL=1 lends it to them, so that nothing but the
serving differs. For the semantic task, and bundles with one shape.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service import bundle
from service.core import Frame, Geometry
from service.engines.onnxruntime import OnnxRuntimeBackend
from service.pixels.decode import Limits, decode
from service.settings import Settings
from service.tasks.semantic import Semantic

BUNDLE = "BENCH_BUNDLE"  # environment variables that the servers read
THREADS = "BENCH_THREADS"
BATCHED = "BENCH_BATCHED"
KERNEL = "BENCH_KERNEL"

MAX_BATCH = 4
BATCH_WAIT_S = 0.01


class FullPlan:
    """threads: of each session, as in the service. kernel: run the compiled attention."""

    def __init__(self, folder: str, threads: int, *, kernel: bool = False) -> None:
        opened = bundle.load(Path(folder))
        manifest = opened.manifest
        head, plan = manifest.head, manifest.plans[-1]
        self._task, self._classes = Semantic(), head.classes
        (canvas,) = (each for each in manifest.input.canvases if each.name == plan.canvas)
        (shape,) = canvas.shapes
        graphs = manifest.graphs[f"{shape.height}x{shape.width}"]
        self._names = (graphs.front, graphs.encoders[plan.encoder], graphs.heads[head.name])
        self._backend = OnnxRuntimeBackend(opened, threads=threads, decomposed=not kernel)
        defaults = Settings()
        self._limits = Limits(defaults.max_pixels, defaults.max_side, defaults.min_side)
        self._input = replace(manifest.input, canvases=(canvas,))

    @classmethod
    def from_environment(cls) -> FullPlan:
        kernel = os.environ[KERNEL] == "1"
        return cls(os.environ[BUNDLE], int(os.environ[THREADS]), kernel=kernel)

    def decode(self, image: bytes) -> Frame:
        """A file on the canvas of the full plan."""
        (frame,) = decode(image, "", self._limits, self._input).values()
        return frame

    def predict(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, H, W, 3) -> the classes' probabilities (B, classes, h, w)."""
        front, encoder, head = self._names
        features = self._backend.run(front, {"image": pixels})
        tensors = self._backend.run(head, self._backend.run(encoder, features))
        return np.asarray(tensors["probabilities"])

    def encode(self, probabilities: NDArray[np.float32], geometry: Geometry) -> bytes:
        """(classes, h, w) -> PNG."""
        labels = self._task.read({"probabilities": probabilities}, geometry).labels
        return self._task.to_png(labels, self._classes)

    def segment(self, image: bytes) -> bytes:
        """All of it, for one image."""
        frame = self.decode(image)
        return self.encode(self.predict(frame.pixels[None])[0], frame.geometry)
