"""A bundle's graphs as `build-trt` prepares them for TensorRT, run by ONNX Runtime on the CPU.

ONNX Runtime computes in float32 what it has no half-precision kernel for, and rounds to half
between the nodes: the rounding of TensorRT's strongly typed networks, though not its order of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from model_export.export.precision import prepare
from service.bundle import Bundle
from service.core import Plan


@dataclass
class Maps:
    values: dict[str, np.ndarray]

    @property
    def paused(self) -> np.ndarray | None:
        return self.values.get("paused")

    def take(self, rows: Sequence[int]) -> Maps:
        return Maps({name: value[list(rows)] for name, value in self.values.items()})


class PreparedBackend:
    name = "prepared"

    def __init__(self, served: Bundle, precision: str, folder: Path) -> None:
        self.encoder_of, self.sessions = served.manifest.encoder_of, {}
        for name, stage in served.manifest.stages.items():
            path = folder / f"{name}-{precision}.onnx"
            onnx.save(prepare(served.root / stage.file, precision), path)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = 1, 3
            self.sessions[name] = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )

    def front(self, images: np.ndarray) -> tuple[Maps, np.ndarray]:
        values = self.run("front", {"image": images})
        return Maps(values), values["quality"]

    def encode(self, plan: Plan, features: Maps) -> Maps:
        return Maps(features.values | self.run(self.encoder_of[plan.name], features.values))

    def decode(self, features: Maps) -> np.ndarray:
        return self.run("decoder", features.values)["probabilities"]

    def close(self) -> None:
        self.sessions = {}

    def run(self, stage: str, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = self.sessions[stage]
        names = [output.name for output in session.get_outputs()]
        found = session.run(
            names, {given.name: values[given.name] for given in session.get_inputs()}
        )
        return dict(zip(names, found, strict=True))
