"""OpenVINO on the CPU: a compiled model per graph, in bfloat16 where the processor computes in it.

The shapes of the models are fixed, which is faster than a free batch and keeps the memory of a
stage that of one image; the images of a batch run one after the other, each on all threads.
Compiled models are kept in a folder of the engine cache, where OpenVINO finds them by a hash of
graph, weights, settings and version. The deformable attention is our compiled one.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13
from openvino.frontend.onnx import ConversionExtension

from service.bundle import Bundle, Stage
from service.engines.base import WHOLE_BATCH, Arrays, HostTensors, Tensors, on_host, passed_on
from service.engines.compiled import Attention, Compiled, compiled
from service.errors import BackendError
from service.native.library import MEND

_log = logging.getLogger("fathom")


class OpenVinoBackend:
    """Opens every graph of a verified bundle.

    threads: for each stage, at least 1. cache: folder for compiled models, which is made if needed.
    precision: "f32" or "bf16"; None: bf16 where the processor computes in it, f32 elsewhere.
    Raises BackendError that names the file, or what is missing.
    """

    name = "openvino"
    whole_batch = WHOLE_BATCH

    def __init__(
        self, bundle: Bundle, *, threads: int, cache: Path, precision: str | None = None
    ) -> None:
        attention = compiled()
        if attention is None:
            raise BackendError(f"OpenVINO needs the compiled deformable attention: {MEND}")
        self._stages = bundle.manifest.stages
        self._passed_on = {spec.name for spec in passed_on(self._stages)}
        core = ov.Core()
        if precision is None:
            able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            precision = "bf16" if "BF16" in able else "f32"
        _log.info(
            "OpenVINO %s in %s; deformable attention compiled for %s",
            *(ov.__version__, precision, attention.instructions),
        )
        node = _node(attention, threads)
        core.add_extension(node)
        core.add_extension(ConversionExtension("MsDeformAttn", "fathom", node.from_onnx))
        config = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # the cores are shared with the rest of the service
            "INFERENCE_PRECISION_HINT": precision,
            "CACHE_DIR": str(_writable(cache)),
        }
        self._requests = {
            name: _open(core, bundle.root, stage, config) for name, stage in self._stages.items()
        }

    def run(self, stage: str, tensors: Tensors | Arrays) -> HostTensors:
        available, about = on_host(tensors), self._stages[stage]
        inputs = {spec.name: available[spec.name] for spec in about.inputs}
        rows = [
            self._run_one(stage, inputs, row) for row in range(len(next(iter(inputs.values()))))
        ]
        passed_on = {name: array for name, array in available.items() if name in self._passed_on}
        outputs = {
            spec.name: rows[0][spec.name]
            if len(rows) == 1
            else np.concatenate([row[spec.name] for row in rows])
            for spec in about.outputs
        }
        return HostTensors({**passed_on, **outputs})

    def _run_one(self, stage: str, inputs: Arrays, row: int) -> dict[str, NDArray[Any]]:
        one = {name: array[row : row + 1] for name, array in inputs.items()}
        results = self._requests[stage].infer(one, share_inputs=True)
        return {spec.name: results[spec.name] for spec in self._stages[stage].outputs}

    def close(self) -> None:
        self._requests = {}


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
    except OSError as error:
        raise BackendError(
            f"OpenVINO cannot keep its compiled models in {folder} ({error.strerror}): name "
            "another folder with --engine-cache"
        ) from error
    return folder


def _open(core: ov.Core, root: Path, stage: Stage, config: dict[str, Any]) -> ov.InferRequest:
    try:
        model = core.read_model(root / stage.file)
        for spec in stage.outputs:
            model.output(spec.name)  # or it raises
        dims = {spec.name: spec.dims for spec in stage.inputs}
        model.reshape(
            {each.any_name: ov.PartialShape([1, *dims[each.any_name][1:]]) for each in model.inputs}
        )
        return core.compile_model(model, "CPU", config).create_infer_request()
    except (RuntimeError, KeyError) as error:
        raise BackendError(
            f"{stage.file}: OpenVINO {ov.__version__} cannot open it: {error}"
        ) from error


def _node(attention: Compiled, threads: int) -> Any:
    """fathom.MsDeformAttn as a class of OpenVINO's, which calls the compiled one."""

    class MsDeformAttn(ov.Op):  # type: ignore[misc]
        class_type_info = ov.DiscreteTypeInfo("MsDeformAttn", "fathom")

        def __init__(self, inputs: Any = None) -> None:
            """inputs: value, offsets, logits, reference and the levels' sizes."""
            super().__init__(self)
            if inputs is not None:  # OpenVINO's cache makes one without, and fills it
                self.set_arguments(inputs)
                self.constructor_validate_and_infer_types()

        @classmethod
        def from_onnx(cls, node: Any) -> list[Any]:
            sizes = opset13.constant(np.array(node.get_attribute("sizes"), np.int32).reshape(-1, 2))
            return [cls([*(node.get_input(i) for i in range(4)), sizes.output(0)]).output(0)]

        def validate_and_infer_types(self) -> None:
            batch, _, heads, width = self.get_input_partial_shape(0)
            queries = self.get_input_partial_shape(2)[1]
            channels = heads.get_length() * width.get_length()
            self.set_output_type(0, ov.Type.f32, ov.PartialShape([batch, queries, channels]))

        def clone_with_new_inputs(self, inputs: Any) -> Any:
            return MsDeformAttn(inputs)

        def get_type_info(self) -> Any:
            return MsDeformAttn.class_type_info

        def visit_attributes(self, _: Any) -> bool:
            return True

        def has_evaluate(self) -> bool:
            return True

        def evaluate(self, outputs: Any, inputs: Any) -> bool:
            value, offsets, logits, reference, sizes = (tensor.data for tensor in inputs)
            call = Attention.of(value, offsets, logits, reference, sizes, outputs[0].data)
            attention.attend(call, threads)
            return True

    return MsDeformAttn
