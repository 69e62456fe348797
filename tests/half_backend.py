"""A bundle's graphs as `build-trt` prepares them for TensorRT, run by ONNX Runtime on the CPU.

ONNX Runtime computes in float32 what it has no half-precision kernel for, and rounds to half
between the nodes: the rounding of TensorRT's strongly typed networks, though not its order of sums.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime

from model_export.export.precision import prepare
from service.bundle import Bundle
from service.engines.base import WHOLE_BATCH, Arrays, HostTensors, Tensors, on_host


class PreparedBackend:
    name = "prepared"
    whole_batch = WHOLE_BATCH

    def __init__(self, served: Bundle, precision: str, folder: Path) -> None:
        self.sessions = {}
        for name, stage in served.manifest.stages.items():
            path = folder / f"{name}-{precision}.onnx"
            onnx.save(prepare(served.root / stage.file, precision), path)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = 1, 3
            self.sessions[name] = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )

    def run(self, stage: str, tensors: Tensors | Arrays) -> HostTensors:
        session, given = self.sessions[stage], on_host(tensors)
        names = [output.name for output in session.get_outputs()]
        made = session.run(names, {read.name: given[read.name] for read in session.get_inputs()})
        return HostTensors({**given, **dict(zip(names, made, strict=True))})

    def close(self) -> None:
        self.sessions = {}
