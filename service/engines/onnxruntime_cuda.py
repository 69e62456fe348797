"""ONNX Runtime on a GPU by its CUDA provider, without kernels of our own.

Tensors stay on the GPU by io-binding. A session has one batch size, so ONNX Runtime knows every
shape when it opens a graph. Otherwise it would compute shapes on the CPU in each run, and could not
be told to refuse nodes that the GPU cannot run. It is told to: no node falls back to the CPU
silently.

Every session runs once when the backend opens: the first run searches for cuDNN's algorithms and
allocates the memory that later runs reuse. Each session has its own weights and activations, for
every batch size; the log has their total.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.bundle import Bundle, Stage, TensorSpec
from service.engines.base import (
    WHOLE_BATCH,
    Arrays,
    DeviceTensors,
    Tensors,
    fitting,
    on_device,
    passed_on,
)
from service.engines.cuda import Device
from service.engines.device_memory import Held
from service.engines.onnxruntime import compare
from service.errors import BackendError

PROVIDER = "CUDAExecutionProvider"
# TensorFloat-32 keeps 10 bits of the mantissa; the gate's margins were calibrated with more.
OPTIONS = {"device_id": "0", "use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
Values: TypeAlias = Mapping[TensorSpec, Any]  # `ort.OrtValue` (a session's size, ...) on the GPU
_log = logging.getLogger("fathom")


class OnnxRuntimeCudaBackend:
    """Opens every graph of a verified bundle for the batches 1, 2, 4, ... up to max_batch.

    Other batches are padded to the next size. device, provider, place: for tests. Raises
    BackendError that says what is missing, or names the file.
    """

    name = "onnxruntime-cuda"
    whole_batch = WHOLE_BATCH

    def __init__(
        self,
        bundle: Bundle,
        *,
        max_batch: int = 1,
        device: Callable[[], Device] = Device,
        provider: str = PROVIDER,
        place: str = "cuda",
    ) -> None:
        if provider not in ort.get_available_providers():
            raise BackendError(
                f"onnxruntime {ort.__version__} has no {provider}: instead of the extra "
                "cpu, pip install '.[gpu]' in Fathom's source folder"
            )
        self._place, self._stages = place, bundle.manifest.stages
        self._passed_on, self._sizes = passed_on(self._stages), sizes_up_to(max_batch)
        self._sessions: dict[tuple[str, int], ort.InferenceSession] = {}
        self._held = Held(device, self.name)
        try:
            self._open(bundle.root, provider)
        except BackendError:
            self.close()
            raise

    def _open(self, root: Path, provider: str) -> None:
        device = self._held.device
        self._stream, free = self._held.stream(), device.free_memory
        self._held.also(self._sessions.clear)
        if provider == PROVIDER:
            ort.preload_dlls()  # CUDA and cuDNN, from the packages of the extra gpu
        for size in self._sizes:
            for name, stage in self._stages.items():
                self._sessions[name, size] = open_session(root, stage, size, provider)
            self._run_each(size)
        taken = (free - device.free_memory) / 1e6
        _log.info(
            "%s %s, batches %s: %d sessions, %.0f MB on the device",
            self.name,
            ort.__version__,
            self._sizes,
            len(self._sessions),
            taken,
        )

    def _run_each(self, size: int) -> None:
        """Run each session of a size for the first time, on zeros. Raises BackendError."""
        specs = {spec for stage in self._stages.values() for spec in stage.inputs}
        zeros = {spec: self._on_gpu(np.zeros((size, *spec.sizes), spec.dtype)) for spec in specs}
        for name, stage in self._stages.items():
            try:
                self._execute(name, size, zeros)
            except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
                raise BackendError(
                    f"{stage.file}: ONNX Runtime {ort.__version__} cannot run it on the GPU for "
                    f"{size} images at once: {error}. If memory ran out, free some, or set a "
                    "smaller --max-batch"
                ) from error

    def run(self, stage: str, tensors: Tensors | Arrays) -> DeviceTensors[Values]:
        if isinstance(tensors, Mapping):
            inputs = {spec: tensors[spec.name] for spec in self._stages[stage].inputs}
            images = len(next(iter(inputs.values())))
            size = fitting(self._sizes, images)
            values: Values = {spec: self._on_gpu(_filled(inputs[spec], size)) for spec in inputs}
        else:
            batch = on_device(tensors, self)
            images, values = batch.count, batch.handles
            size = fitting(self._sizes, images)
        values = {**values, **self._execute(stage, size, values)}
        answers = {
            spec.name: values[spec].numpy()[:images]
            for spec in self._stages[stage].outputs
            if spec not in self._passed_on
        }
        handles = {spec: value for spec, value in values.items() if spec in self._passed_on}
        return DeviceTensors(self, images, handles, answers)

    def take(self, handles: Values, rows: Sequence[int]) -> Values:
        size, taken = fitting(self._sizes, len(rows)), dict[TensorSpec, Any]()
        for spec, source in handles.items():
            shape, dtype = (size, *spec.sizes), np.dtype(spec.dtype)
            taken[spec] = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, self._place, 0)
            row_bytes = dtype.itemsize * prod(shape[1:])
            into, out_of = taken[spec].data_ptr(), source.data_ptr()
            for to, row in enumerate(rows):
                self._held.device.on_device(
                    into + to * row_bytes, out_of + row * row_bytes, row_bytes, self._stream
                )
        self._held.device.wait(self._stream)  # ONNX Runtime has streams of its own
        return taken

    def close(self) -> None:
        self._held.release()

    def _execute(self, name: str, size: int, values: Values) -> Values:
        """A stage's outputs: those that are passed on are on the GPU, the others on the host."""
        stage, session = self._stages[name], self._sessions[name, size]
        binding = session.io_binding()
        for spec in stage.inputs:
            binding.bind_ortvalue_input(spec.name, values[spec])
        for spec in stage.outputs:
            binding.bind_output(spec.name, self._place if spec in self._passed_on else "cpu", 0)
        session.run_with_iobinding(binding)  # returns once the GPU is done
        return dict(zip(stage.outputs, binding.get_outputs(), strict=True))

    def _on_gpu(self, values: NDArray[Any]) -> Any:
        return ort.OrtValue.ortvalue_from_numpy(values, self._place, 0)


def sizes_up_to(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `most`: 5 -> (1, 2, 4, 5)."""
    return (*(1 << k for k in range(most.bit_length()) if 1 << k < most), most)


def open_session(root: Path, stage: Stage, size: int, provider: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    varying = str(stage.inputs[0].dims[0])
    options.add_free_dimension_override_by_name(varying, size)
    providers: list[str | tuple[str, dict[str, str]]] = [provider]
    if provider == PROVIDER:
        providers = [(provider, OPTIONS)]
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        # By default ONNX Runtime's Python code would try again on the CPU.
        session = ort.InferenceSession(
            root / stage.file, options, providers=providers, enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        raise BackendError(
            f"{stage.file}: ONNX Runtime {ort.__version__} cannot open it on the GPU: {error}. "
            "Nodes on the CPU can also mean that its CUDA libraries were not found (the log has "
            "their names): pip install '.[gpu]' in Fathom's source folder"
        ) from error
    compare(stage.file, "input", _sized(stage.inputs, size), session.get_inputs())
    compare(stage.file, "output", _sized(stage.outputs, size), session.get_outputs())
    return session


def _sized(specs: Sequence[TensorSpec], size: int) -> list[TensorSpec]:
    return [TensorSpec(spec.name, spec.dtype, (size, *spec.sizes)) for spec in specs]


def _filled(images: NDArray[Any], size: int) -> NDArray[Any]:
    """Pad with images of zeros to the batch size of a session."""
    rest = np.zeros((size - len(images), *images.shape[1:]), images.dtype)
    return np.concatenate((images, rest))
