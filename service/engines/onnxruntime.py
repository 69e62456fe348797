"""ONNX Runtime on the CPU: one session per graph, one memory arena for all of them.

One stage runs at a time. So the threads of a session sleep when it is done (by default they spin
on, and take the cores from the next session), and all sessions share one arena (by default each
keeps the memory of its largest batch).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.bundle import Bundle, Stage, TensorSpec
from service.core import Plan
from service.engines.base import Features
from service.errors import BackendError

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}


@dataclass(frozen=True, slots=True)
class HostFeatures:
    """maps: name of a tensor -> (B, channels, h, w) float32 in host memory. paused: (B, rows,
    columns) uint8."""

    maps: Mapping[str, NDArray[np.float32]]
    paused: NDArray[np.uint8] | None = None

    def take(self, rows: Sequence[int]) -> HostFeatures:
        kept = list(rows)
        paused = None if self.paused is None else self.paused[kept]
        return HostFeatures({name: values[kept] for name, values in self.maps.items()}, paused)


class OnnxRuntimeBackend:
    """Opens every graph of a verified bundle.

    threads: per session, at least 1. Raises BackendError that names the file, and the tensor where
    it is not the manifest's.
    """

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, *, threads: int) -> None:
        _share_arena()
        manifest = bundle.manifest
        self._stages, self._encoder_of = manifest.stages, manifest.encoder_of
        self._sessions = {
            name: _open(bundle.root, stage, threads) for name, stage in manifest.stages.items()
        }

    def front(self, images: NDArray[np.uint8]) -> tuple[HostFeatures, NDArray[np.float32]]:
        maps = self._run("front", {"image": images})
        quality = maps.pop("quality")  # (B, plans)
        return HostFeatures(maps), quality

    def encode(self, plan: Plan, features: Features) -> HostFeatures:
        maps = _own(features).maps
        encoded = self._run(self._encoder_of[plan.name], maps)
        paused = encoded.pop("paused", None)
        return HostFeatures({**maps, **encoded}, paused)

    def decode(self, features: Features) -> NDArray[np.float32]:
        (probabilities,) = self._run("decoder", _own(features).maps).values()
        return probabilities  # (B, channels, h, w)

    def close(self) -> None:
        """Free the sessions."""
        self._sessions = {}

    def _run(self, name: str, maps: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        stage = self._stages[name]
        outputs = [spec.name for spec in stage.outputs]
        values = self._sessions[name].run(
            outputs, {spec.name: maps[spec.name] for spec in stage.inputs}
        )
        return dict(zip(outputs, values, strict=True))


@functools.cache
def _share_arena() -> None:
    """Once per process, as ONNX Runtime has it: the CPU arena that sessions with use_env_allocators
    share."""
    memory = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    ort.create_and_register_allocator(memory, None)


def _open(root: Path, stage: Stage, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_mem_pattern = (
        False  # it keeps one plan of memory per batch size, and saves no time here
    )
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(
            root / stage.file, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        raise BackendError(
            f"{stage.file}: ONNX Runtime {ort.__version__} cannot open it: {error}"
        ) from error
    compare(stage.file, "input", stage.inputs, session.get_inputs())
    compare(stage.file, "output", stage.outputs, session.get_outputs())
    return session


def compare(
    file: str, kind: str, specs: Sequence[TensorSpec], found: Sequence[ort.NodeArg]
) -> None:
    """The manifest's tensors must be the graph's, whatever their order. A size that varies may have
    any name."""
    wanted = {spec.name: (spec.dtype, _sizes(spec.dims)) for spec in specs}
    given = {arg.name: (_DTYPES.get(arg.type, arg.type), _sizes(arg.shape)) for arg in found}
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            raise BackendError(
                f"{file}: {kind} {name!r} is {given.get(name, 'missing')}, the manifest has "
                f"{wanted.get(name, 'none')}"
            )


def _sizes(dims: Sequence[int | str | None]) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in dims)


def _own(features: Features) -> HostFeatures:
    if not isinstance(features, HostFeatures):
        raise TypeError(f"features of another backend: {type(features).__name__}")
    return features
