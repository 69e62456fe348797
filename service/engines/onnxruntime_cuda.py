"""ONNX Runtime on a GPU by its CUDA provider: no kernel of ours, features that stay on the GPU by
io-binding.

A session has one batch size. With the batch known, ONNX Runtime works out every shape while it
opens a graph; left open, it would compute shapes on the CPU at each run, and could not be told to
refuse nodes that the GPU cannot run. It is told so: no node falls back to the CPU unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.bundle import Bundle, Stage, TensorSpec
from service.core import Plan
from service.engines.base import Features
from service.engines.cuda import Device, DriverError
from service.engines.onnxruntime import compare
from service.errors import BackendError

PROVIDER = "CUDAExecutionProvider"
# TensorFloat-32 keeps 10 bits of a number: the gate's margins were calibrated with more.
OPTIONS = {"device_id": "0", "use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
ON_HOST = ("quality", "paused")  # beside the decoder's output: what the service reads


class Copier(Protocol):
    """Of `cuda.Device`, what copying rows on the GPU needs."""

    def make_stream(self) -> int: ...
    def on_device(self, target: int, source: int, size: int, stream: int) -> None: ...
    def wait(self, stream: int) -> None: ...
    def free_stream(self, stream: int) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class CudaFeatures:
    """maps: name of a tensor -> `ort.OrtValue` (size, channels, h, w) on the GPU, of which the
    first `count` rows are images. paused: (count, rows, columns) uint8."""

    maps: Mapping[str, Any]
    count: int
    paused: NDArray[np.uint8] | None
    owner: OnnxRuntimeCudaBackend

    def take(self, rows: Sequence[int]) -> CudaFeatures:
        return self.owner.take(self, rows)


class OnnxRuntimeCudaBackend:
    """Opens every graph of a verified bundle for the batches 1, 2, 4, ... up to max_batch; others
    are filled up.

    device, provider, place: for tests. Raises BackendError that says what is missing, or names the
    file.
    """

    name = "onnxruntime-cuda"

    def __init__(
        self,
        bundle: Bundle,
        *,
        max_batch: int = 1,
        device: Callable[[], Copier] = Device,
        provider: str = PROVIDER,
        place: str = "cuda",
    ) -> None:
        if provider not in ort.get_available_providers():
            raise BackendError(
                f"onnxruntime {ort.__version__} has no {provider}: in place of fathom[cpu], pip "
                f"install 'fathom[gpu]'"
            )
        try:
            self._device = device()
            self._stream = self._device.make_stream()
        except DriverError as error:
            raise BackendError(f"onnxruntime-cuda needs a GPU: {error}") from error
        manifest = bundle.manifest
        self._place, self._stages, self._encoder_of = place, manifest.stages, manifest.encoder_of
        self._sizes = sizes_up_to(max_batch)
        if provider == PROVIDER:
            ort.preload_dlls()  # CUDA and cuDNN, from the packages of fathom[gpu]
        self._sessions = {
            (name, size): _open(bundle.root, stage, size, provider)
            for name, stage in manifest.stages.items()
            for size in self._sizes
        }

    def front(self, images: NDArray[np.uint8]) -> tuple[CudaFeatures, NDArray[np.float32]]:
        count, size = len(images), self._size(len(images))
        filled = np.concatenate((images, np.zeros((size - count, *images.shape[1:]), np.uint8)))
        maps = self._run(
            "front", size, {"image": ort.OrtValue.ortvalue_from_numpy(filled, self._place, 0)}
        )
        quality = maps.pop("quality").numpy()[:count]  # (B, plans)
        return CudaFeatures(maps, count, None, self), quality

    def take(self, features: CudaFeatures, rows: Sequence[int]) -> CudaFeatures:
        """The images at these rows, copied on the GPU."""
        if not all(0 <= row < features.count for row in rows):
            raise IndexError(f"rows {list(rows)} of {features.count}")
        size, maps = self._size(len(rows)), {}
        for name, source in features.maps.items():
            shape = source.shape()
            maps[name] = ort.OrtValue.ortvalue_from_shape_and_type(
                [size, *shape[1:]], np.float32, self._place, 0
            )
            row_bytes = 4 * int(np.prod(shape[1:]))
            for to, row in enumerate(rows):
                self._device.on_device(
                    maps[name].data_ptr() + to * row_bytes,
                    source.data_ptr() + row * row_bytes,
                    row_bytes,
                    self._stream,
                )
        self._device.wait(self._stream)  # ONNX Runtime has streams of its own
        paused = None if features.paused is None else features.paused[list(rows)]
        return CudaFeatures(maps, len(rows), paused, self)

    def encode(self, plan: Plan, features: Features) -> CudaFeatures:
        own = self._own(features)
        encoded = self._run(self._encoder_of[plan.name], self._size(own.count), own.maps)
        paused = encoded.pop("paused").numpy()[: own.count] if "paused" in encoded else None
        return CudaFeatures({**own.maps, **encoded}, own.count, paused, self)

    def decode(self, features: Features) -> NDArray[np.float32]:
        own = self._own(features)
        (probabilities,) = self._run("decoder", self._size(own.count), own.maps).values()
        found: NDArray[np.float32] = probabilities.numpy()[: own.count]
        return found  # (B, channels, h, w)

    def close(self) -> None:
        """Free the sessions. Once is enough, twice does no harm."""
        if self._sessions:
            self._sessions = {}
            self._device.free_stream(self._stream)
            self._device.close()

    def _run(self, name: str, size: int, maps: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs by name, on the GPU but for those that the service reads. Back when the GPU is
        done."""
        stage, session = self._stages[name], self._sessions[name, size]
        binding = session.io_binding()
        for spec in stage.inputs:
            binding.bind_ortvalue_input(spec.name, maps[spec.name])
        for spec in stage.outputs:
            on_host = name == "decoder" or spec.name in ON_HOST
            binding.bind_output(spec.name, "cpu" if on_host else self._place, 0)
        session.run_with_iobinding(binding)
        return dict(zip((spec.name for spec in stage.outputs), binding.get_outputs(), strict=True))

    def _size(self, count: int) -> int:
        """The smallest batch of a session that holds so many images."""
        if not 1 <= count <= self._sizes[-1]:
            raise ValueError(f"{count} images: the sessions take 1 to {self._sizes[-1]}")
        return next(size for size in self._sizes if size >= count)

    def _own(self, features: Features) -> CudaFeatures:
        if not isinstance(features, CudaFeatures) or features.owner is not self:
            raise TypeError(f"features of another backend: {type(features).__name__}")
        return features


def sizes_up_to(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `most`: 5 -> (1, 2, 4, 5)."""
    return (*(1 << k for k in range(most.bit_length()) if 1 << k < most), most)


def _open(root: Path, stage: Stage, size: int, provider: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_free_dimension_override_by_name(_batch(stage.inputs), size)
    given: list[str | tuple[str, dict[str, str]]] = [provider]
    if provider == PROVIDER:
        given = [(provider, OPTIONS)]
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        # Without `enable_fallback`, Python's half of ONNX Runtime would try once more, on the CPU.
        session = ort.InferenceSession(
            root / stage.file, options, providers=given, enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        raise BackendError(
            f"{stage.file}: ONNX Runtime {ort.__version__} cannot open it on the GPU: {error}. "
            f"Nodes on the CPU can "
            "also mean that its CUDA libraries were not found (the log has their names): pip "
            "install 'fathom[gpu]'"
        ) from error
    compare(stage.file, "input", _sized(stage.inputs, size), session.get_inputs())
    compare(stage.file, "output", _sized(stage.outputs, size), session.get_outputs())
    return session


def _batch(specs: Sequence[TensorSpec]) -> str:
    """The name of the size that varies."""
    return str(specs[0].dims[0])


def _sized(specs: Sequence[TensorSpec], size: int) -> list[TensorSpec]:
    return [TensorSpec(spec.name, spec.dtype, (size, *spec.dims[1:])) for spec in specs]
